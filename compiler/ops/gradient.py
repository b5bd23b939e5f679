"""How an op's stanza says what its gradient is: by text over other ops, or by a function.

    y = f(a, b, c),  d = dL/dy   ->   dL/da, dL/db, dL/dc

A text is an expression over the operands `a`, `b`, `c`, the result `y` and its gradient `d`, such as
`d * y * (1 - y)`; an empty one says that no gradient flows. A function is given an `Adjoint` and returns
a value for each operand, or None. Neither minds axes that an operand lacks or has beside: whoever
asks sums over the former, repeats along the latter and rounds to the operand's dtype.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from ...dsl.dims import Dim
from ..ir.graph import AttrValue, Axis, Builder, Node

Rule = Callable[["Adjoint"], Sequence[int | None]]
Gradient = tuple[str, ...] | Rule
OPERANDS = "abc"
SIGNS: dict[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
}


@dataclass(frozen=True, slots=True)
class Adjoint:
    """One node under differentiation: where its gradient is built, and what is known of its results.

    `node` and its operands are in `builder`; `results` has the gradient of each result, or None.
    `axis` makes an axis of a name that nothing else has.
    """

    builder: Builder
    node: Node
    results: tuple[int | None, ...]
    wanted: frozenset[int]
    axis: Callable[[str, Dim], Axis]

    @property
    def d(self) -> int:
        """The gradient of the only result."""
        (found,) = self.results
        assert found is not None
        return found

    def operand(self, index: int) -> Node:
        return self.builder[self.node.inputs[index]]

    def add(self, op: str, *inputs: int, **attrs: AttrValue) -> int:
        """A new value, which comes from where the node comes from."""
        return self.builder.add(op, inputs, attrs, origins=self.node.origins)

    def number(self, value: float | Dim) -> int:
        return self.add("const", value=value)

    def text(self, text: str) -> int:
        """The value of a text."""
        names = dict(zip(OPERANDS, self.node.inputs, strict=False))
        names |= {"y": self.node.id, "d": self.d}
        return self._value(_parsed(text), names)

    def _value(self, tree: ast.expr, names: dict[str, int]) -> int:
        if isinstance(tree, ast.Name):
            return names[tree.id]
        if isinstance(tree, ast.Constant):
            assert isinstance(tree.value, int | float)
            return self.number(float(tree.value))
        if isinstance(tree, ast.UnaryOp):
            return self.add("mul", self._value(tree.operand, names), self.number(-1.0))
        if isinstance(tree, ast.BinOp):
            sides = (self._value(side, names) for side in (tree.left, tree.right))
            return self.add(SIGNS[type(tree.op)], *sides)
        assert isinstance(tree, ast.Call)
        assert isinstance(tree.func, ast.Name)
        return self.add(tree.func.id, *(self._value(x, names) for x in tree.args))


@cache
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def flows(gradient: Gradient, operand: int) -> bool:
    """Whether a gradient may flow to an operand."""
    return not isinstance(gradient, tuple) or bool(gradient[operand])


def gradients(gradient: Gradient, at: Adjoint) -> Sequence[int | None]:
    """What a rule gives for each operand that is wanted."""
    if not isinstance(gradient, tuple):
        return gradient(at)
    return [at.text(text) if text and i in at.wanted else None for i, text in enumerate(gradient)]
