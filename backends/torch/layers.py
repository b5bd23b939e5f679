"""A repeat: a loop over a list of layers, the carried values under one name each.

With an exit the loop tests what each layer returns last. Where rows stop by themselves, a layer is
given the rows that are left, and its results are put back into their places.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from ...compiler.ir.graph import Axis, Node
from ...dsl.dims import Dim
from .layout import Value, single
from .lowering import lowers
from .scope import Result, Scope
from .source import Statement, expression, number, statement


@lowers("repeat")
def repeat(scope: Scope, node: Node, *operands: Value) -> Result:
    """`for layer, scale in zip(self.layers, ...): x = layer(x, mask, scale)`."""
    layers = scope.module.layers(node, operands)
    kind = scope.module.program.function(layers.kind)
    inputs = [kind[i] for i in kind.inputs]
    values = [scope.full(x, i.axes) for x, i in zip(operands, inputs, strict=False)]
    carried = inputs[: len(node.types)]
    names = [initial(scope, node, x, i.hint) for x, i in zip(values, carried, strict=False)]
    arguments = [*map(ast.Name, names), *(x.expr for x in values[len(names) :])]
    layer, *scalars = map(ast.Name, layers.variables)
    loop = _Loop(scope, layer, scalars, inputs, names, arguments, layers.kind)
    if "exit" not in node.attrs:
        loop.run(names, arguments)
    elif node.attrs["exit"]:
        loop.by_row(*node.attrs.axes("exit"))
    else:
        loop.together()
    head = ast.Tuple([layer, *scalars]) if scalars else layer
    text = ast.For(head, layers.iterable, loop.steps, [], lineno=0)
    scope.method.append(Statement(text, tuple(loop.names), tuple(loop.names.values())))
    scope.method.reserved |= set(layers.variables)
    return tuple(
        Value(ast.Name(name), i.type.dtype, single(i.axes), finite=False)
        for name, i in zip(names, carried, strict=True)
    )


def initial(scope: Scope, node: Node, value: Value, hint: str) -> str:
    """A name for what a loop carries, with its first value."""
    name = scope.method.placeholder()
    assign = ast.Assign([ast.Name(name)], value.expr, lineno=0)
    scope.method.append(Statement(assign, (name,), (hint or "x",)))
    return name


class _Loop:
    """The statements of one round. `names` are those that a round makes for itself, with hints."""

    def __init__(
        self,
        scope: Scope,
        layer: ast.expr,
        scalars: Sequence[ast.expr],
        inputs: Sequence[Node],
        carried: Sequence[str],
        arguments: Sequence[ast.expr],
        kind: str,
    ) -> None:
        self.scope, self.layer, self.scalars = scope, layer, scalars
        self.inputs, self.carried, self.arguments = inputs, carried, arguments
        self.kind, self.leaves = kind, scope.module.file.returns_states(kind)
        self.names: dict[str, str] = {}
        self.steps: list[ast.stmt] = []

    def name(self, hint: str) -> str:
        made = self.scope.method.placeholder()
        self.names[made] = hint
        return made

    def run(self, targets: Sequence[str], arguments: Sequence[ast.expr]) -> None:
        """`x, y = layer(x, y, mask, scale)`."""
        named: list[ast.expr] = [ast.Name(name) for name in targets]
        target = named[0] if len(named) == 1 else ast.Tuple(named)
        call = ast.Call(self.layer, [*arguments, *self.scalars, *self._states()], [])
        if self.leaves:
            kept = expression("left[{0}.prefix]", self.layer)
            target = ast.Tuple([*named, ast.Starred(kept)])
        self.steps.append(ast.Assign([target], call, lineno=0))

    def _states(self) -> list[ast.expr]:
        """`past`, the layer's states, and what layers inside it need of theirs."""
        file = self.scope.module.file
        found: list[ast.expr] = []
        if file.continues:
            found.append(self.scope.dim(Dim.symbol(file.program.past)))
        if file.continues and self.leaves:
            found.append(expression("*layer_states[{0}.prefix]", self.layer))
        if file.passes_on(self.kind):
            found += map(ast.Name, ["layer_states", "left"] if file.continues else ["left"])
        return found

    def together(self) -> None:
        done = self.name("done")
        self.run([*self.carried, done], self.arguments)
        self.steps.append(statement("if {0}:\n    break", ast.Name(done)))

    def by_row(self, axis: Axis) -> None:
        """`rows` are the places along `axis` that have not stopped."""
        start = expression("torch.arange({0})", self.scope.size(axis))
        assert isinstance(start, ast.Call)
        start.keywords.append(ast.keyword("device", self.scope.device()))
        left = self.scope.method.placeholder()
        assign = ast.Assign([ast.Name(left)], start, lineno=0)
        self.scope.method.append(Statement(assign, (left,), ("rows",)))
        rows, done = ast.Name(left), self.name("done")
        dims = [i.type.position(axis) if axis in i.axes else None for i in self.inputs]
        given = [
            x if dim is None else expression("{0}.index_select({1}, {2})", x, number(dim), rows)
            for x, dim in zip(self.arguments, dims, strict=False)
        ]
        results = [self.name(f"{i.hint or 'x'}_rows") for i in self.inputs[: len(self.carried)]]
        self.steps.append(statement("if len({0}) == 0:\n    break", rows))
        self.run([*results, done], given)
        for name, dim, result in zip(self.carried, dims, results, strict=False):
            template = "{0} = {0}.index_copy({1}, {2}, {3})"
            place = number(dim if dim is not None else 0)
            self.steps.append(statement(template, ast.Name(name), place, rows, ast.Name(result)))
        self.steps.append(statement("{0} = {0}[~{1}]", rows, ast.Name(done)))
