"""Lowering of one function: nodes in order, each to a value that later nodes read.

A scope knows what the text around its function offers: the parameters, the names of sizes, the
words for dtypes, and the class that keeps weights, tables and layers. What an op becomes is in
`lowering.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ...compiler.ir.graph import Axis, DType, Function, Node
from ...compiler.ops import OPS
from ...dsl.diagnostics import InternalError
from ...dsl.dims import Dim
from ...dsl.errors import NoLowering
from ..base import plain_symbol, span_of
from .layout import Layout, Value, arranged, single
from .source import Method, Statement, expression, identifier, number, plain, replaced, text_of

if TYPE_CHECKING:
    from .module import Module

Result = Value | tuple[Value, ...]
# Names of values that the text does not name; else the op's.
OP_WORDS = {
    "add": "total",
    "append": "seen",
    "const": "constant",
    "dequantise": "weight",
    "div": "quotient",
    "dot": "product",
    "eq": "mask",
    "index": "slots",
    "le": "mask",
    "lt": "mask",
    "merge": "flat",
    "mul": "scaled",
    "not": "mask",
    "packed": "matrix",
    "pick": "part",
    "rsqrt": "inverse",
    "slice": "part",
    "softmax": "probabilities",
    "split": "parts",
    "sub": "difference",
    "sum": "total",
    "take": "rows",
    "where": "chosen",
}
KEEP_KNOWN = frozenset({"input", "index", "le", "rename", "broadcast", "transpose"})
KEEP_QUANTISED = frozenset({"dequantise", "input", "cast", "transpose"})


@dataclass(frozen=True, slots=True)
class Extent:
    """A run-time size as dimension `dim` of parameter `source`, which has `rank` of them."""

    name: str
    source: str
    dim: int
    rank: int


@dataclass(slots=True)
class Scope:
    """One function on its way into a method of `module`. `inputs` are the values of its parameters.

    `source` is the first parameter, `extents` the sizes that parameters' shapes give, `used` those
    that the text mentions.
    """

    module: Module
    function: Function
    method: Method = field(default_factory=Method)
    inputs: tuple[Value, ...] = ()
    source: str = ""
    extents: dict[Dim, Extent] = field(default_factory=dict)
    used: dict[Dim, Extent] = field(default_factory=dict)
    lengths: dict[Dim, ast.expr] = field(default_factory=dict)  # of the chunks that loops are in
    in_chunk: bool = False  # the function is a method for a chunk, which has loops over its steps
    values: dict[int, Result] = field(default_factory=dict)
    caller: tuple[Scope, Node] | None = None  # of a body written out in another function
    splits: dict[tuple[int, Axis], dict[Dim, Value]] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)  # better hints of some nodes
    joined: set[int] = field(default_factory=set)  # sums that are written as part of a product

    def lower_all(self) -> None:
        """Lowers every node, each followed by its tap where the file has taps."""
        for node in self.function.nodes:
            result = self.lower(node)
            value = result if isinstance(result, Value) else result[0]
            if self.module.tapped(node):
                full = self.full(unpacked(value), node.axes)
                self.method.append(Statement(self.module.tap(node, full.expr)))

    def inside(self, body: Function, operands: Sequence[Value], call: Node) -> Scope:
        """The scope of `body`, whose code is written here in place of `call`."""
        return replace(
            self,
            function=body,
            inputs=tuple(operands),
            values={},
            splits={},
            labels={},
            joined=set(),
            caller=(self, call),
        )

    def inline(self, body: Function, operands: Sequence[Value], call: Node) -> tuple[Value, ...]:
        """The values of `body`'s outputs, its code written here."""
        inner = self.inside(body, operands, call)
        for node in body.nodes:
            inner.lower(node)
        return tuple(inner.value(i) for i in body.output_ids)

    def rooted(self, node_id: int) -> tuple[Scope, int]:
        """The value a body's input stands for, with the scope that computes it."""
        if self.caller is None or node_id not in self.function.inputs:
            return self, node_id
        outer, call = self.caller
        return outer.rooted(call.inputs[self.function.inputs.index(node_id)])

    def lower(self, node: Node) -> Result:
        result = self._lowered(node)
        if isinstance(result, Value):
            known = result.known if node.op in KEEP_KNOWN else ()
            quantised = result.quantised if node.op in KEEP_QUANTISED else None
            result = self.bind(node, replace(result, known=known, quantised=quantised))
        self.values[node.id] = result
        return result

    def _lowered(self, node: Node) -> Result:
        if node.op == "input":
            return self.inputs[self.function.inputs.index(node.id)]
        if node.op == "result":
            several = self.values[node.inputs[0]]
            return several[node.attrs.integer("index")] if isinstance(several, tuple) else several
        lowering = OPS[node.op].lowerings.get("torch") if node.op in OPS else None
        if lowering is None:
            raise NoLowering(op=node.op, backend="torch", span=span_of(node))
        result: Result = lowering(self, node, *map(self.value, node.inputs))
        return result

    def need(self, node_id: int) -> Value:
        """The value of a node, lowered now with what it reads if it has not been."""
        if node_id not in self.values:
            node = self.function[node_id]
            for source in node.inputs:
                self.need(source)
            self.lower(node)
        return self.value(node_id)

    def value(self, node_id: int) -> Value:
        found = self.values[node_id]
        return found if isinstance(found, Value) else found[0]

    def bind(self, node: Node, value: Value) -> Value:
        """Gives an expression a statement; names, attributes and literals need none."""
        if isinstance(value.expr, ast.Name):
            self.method.name(value.expr, self.hint(node))
        if value.literal or isinstance(value.expr, ast.Name | ast.Attribute):
            return value
        return replace(value, expr=self.assign(value.expr, node, note=self._note(node, value)))

    def assign(
        self, expr: ast.expr, node: Node, note: str = "", hint: str | None = None
    ) -> ast.Name:
        """A statement for the value of a node, or with a hint of its own for a part of it."""
        wanted = self.hint(node) if hint is None else hint
        return self.method.assign(
            expr, wanted, OP_WORDS.get(node.op, node.op), note, **comments(node)
        )

    def hint(self, node: Node) -> str:
        return self.labels.get(node.id) or hint_of(node)

    def assign_all(self, expr: ast.expr, node: Node, hints: Sequence[str]) -> list[ast.Name]:
        """A statement for several results at once."""
        targets = tuple(self.method.placeholder() for _ in hints)
        unpacked = ast.Tuple([ast.Name(target) for target in targets])
        assign = ast.Assign([unpacked], expr, lineno=0)
        self.method.append(Statement(assign, targets, tuple(hints), **comments(node)))
        return [ast.Name(target) for target in targets]

    def _note(self, node: Node, value: Value) -> str:
        """The shape as a comment, where it is not that of an operand."""
        known = [self.value(i).layout for i in node.inputs if i in self.values]
        return "" if value.layout in known or not value.layout else shape_note(value.layout)

    def bound(self, value: Value, node: Node, hint: str = "") -> Value:
        """The value as a name, for an expression that is needed twice."""
        if isinstance(value.expr, ast.Name | ast.Attribute):
            return value
        return replace(value, expr=self.assign(value.expr, node, hint=hint))

    # ---- dtypes

    def word(self, dtype: DType) -> ast.expr:
        return self.module.word(dtype)

    def converted(self, value: Value, dtype: DType) -> Value:
        """The value in another element kind. A literal and a packed weight take that of what they meet."""
        word = self.word(dtype)
        if value.literal or value.packed or text_of(word) == text_of(self.word(value.dtype)):
            return replace(value, dtype=dtype)
        return replace(value, expr=expression("{0}.to({1})", value.expr, word), dtype=dtype)

    def tensor(self, value: Value) -> Value:
        """A literal as a 0-d tensor; anything else as it is."""
        if not value.literal:
            return value
        words = {"dtype": self.word(value.dtype), "device": self.device()}
        expr = expression("torch.tensor({0}, dtype={dtype}, device={device})", value.expr, **words)
        return replace(value, expr=expr, literal=False)

    def device(self) -> ast.expr:
        """Where the function's parameters are; a table, which has none, is computed on the CPU."""
        return (
            expression("{0}.device", ast.Name(self.source)) if self.source else expression("None")
        )

    # ---- layouts and sizes

    def full(self, value: Value, axes: Sequence[Axis]) -> Value:
        """The value as a tensor with one dimension per axis, in this order."""
        return arranged(self.tensor(value), single(axes), self.size)

    def arranged(self, value: Value, layout: Layout) -> Value:
        return arranged(value, layout, self.size)

    def size(self, axis: Axis) -> ast.expr:
        return self.dim(axis.size)

    def dim(self, dim: Dim) -> ast.expr:
        """A size as an expression over hyperparameters and the shapes of parameters."""
        if dim.constant is not None:
            return number(dim.constant)
        if dim in self.lengths:
            return self.lengths[dim]
        if dim in self.extents:
            self.used[dim] = self.extents[dim]
            return ast.Name(self.extents[dim].name)
        symbols = {symbol: self._symbol(symbol) for symbol in sorted(dim.symbols())}
        holes = {symbol: f"_{i}" for i, symbol in enumerate(symbols)}
        renamed = dim.substitute({symbol: Dim.symbol(hole) for symbol, hole in holes.items()})
        names = {hole: symbols[symbol] for symbol, hole in holes.items()}
        return replaced(ast.parse(str(renamed), mode="eval").body, names)

    def _symbol(self, symbol: str) -> ast.expr:
        name = self.module.constant(symbol)
        if name is not None:
            return ast.Name(name)
        whole = Dim.symbol(symbol)
        if whole in self.extents | self.lengths:
            return self.dim(whole)
        for extent in self.extents:  # `s + 2*n`, of a sequence with something before and behind it
            rest = extent - whole
            if all(
                self.module.constant(s) or Dim.symbol(s) in self.extents for s in rest.symbols()
            ):
                return expression("{0} - {1}", self.dim(extent), self.dim(rest))
        raise InternalError(f"no input of {self.function.name} has the size `{symbol}`")


def labels_of(node: Node) -> list[str]:
    """The innermost label of the text that each of a node's origins stands under."""
    return [o.region.split(".")[-1] for o in node.origins if "." in o.region]


def hint_of(node: Node) -> str:
    """What the text calls a value. In a labelled part of a block the label says more than `y`."""
    labels = set(labels_of(node))
    return labels.pop() if len(node.hint) == 1 and len(labels) == 1 else node.hint


def comments(node: Node) -> dict[str, Any]:
    """Region and place of a node, for the comment where a region begins."""
    origin = next(iter(node.origins), None)
    if origin is None:
        return {}
    span = origin.spans[-1] if origin.spans else None
    place = f"  ({plain(PurePath(span.source.name).name)}:{span.line})" if span else ""
    return {"region": origin.region, "place": place}


def unpacked(value: Value) -> Value:
    """The value as any op can read it."""
    if not value.packed:
        return value
    return replace(value, expr=expression("{0}.to_dense()", value.expr), packed=False)


def shape_note(layout: Layout) -> str:
    groups = (" * ".join(axis.name for axis in group) or "1" for group in layout)
    return f"[{', '.join(groups)}]"


def extents(
    inputs: Sequence[Value], constants: Set[str], method: Method, names: Collection[str]
) -> dict[Dim, Extent]:
    """Every run-time size that is a dimension of a parameter, with a name that no parameter has."""
    found: dict[Dim, Extent] = {}
    for value in inputs:
        assert isinstance(value.expr, ast.Name)
        for dim, (axis,) in enumerate(value.layout):
            if axis.size not in found and not axis.size.symbols() <= constants:
                name = identifier(
                    plain_symbol(axis.size) or axis.name, method.reserved | {*names}, "n"
                )
                found[axis.size] = Extent(name, value.expr.id, dim, len(value.layout))
                method.reserved.add(name)
    return found
