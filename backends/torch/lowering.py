"""What each op becomes in PyTorch: functions of a scope, a node and the operands' values.

Pointwise ops read their expression from the op table. The rest are below, in the order of
`compiler/ops`. A lowering returns an expression and the layout of its result; it permutes nothing
that need not be permuted, since every reader aligns by axis.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from ...compiler.ir.graph import Axis, DType, Node
from ...compiler.ops import OPS
from ...dsl.dims import Dim
from .layout import (
    Group,
    Layout,
    Value,
    aligned,
    along,
    flat,
    joint,
    signed,
    single,
    ungrouped,
)
from .packing import split_off
from .scope import Result, Scope
from .source import expression, number

Lower = TypeVar("Lower", bound=Callable[..., Result])
FORMAT_WORDS = {
    "f64": "torch.float64",
    "f32": "torch.float32",
    "bf16": "torch.bfloat16",
    "f16": "torch.float16",
    "f8_e4m3": "torch.float8_e4m3fn",
    "f8_e5m2": "torch.float8_e5m2",
}
# Ops written with operators, which Python's own numbers have too: `2 * size(s)` stays a number.
PYTHON_OPS = frozenset({"add", "sub", "mul", "div", "neg"})
# Ops that make no infinity of finite numbers, short of overflow.
KEEP_FINITE = frozenset(
    "add sub mul where abs sin cos tanh sigmoid erf round floor min max to_float to_int"
    " stop_gradient round_to".split()
)
# torch.minimum and torch.maximum take tensors only.
BOUNDS = {"min": "{0}.clamp(max={1})", "max": "{0}.clamp(min={1})"}


def lowers(*names: str) -> Callable[[Lower], Lower]:
    def register(function: Lower) -> Lower:
        for name in names:
            OPS[name].lowering("torch")(function)
        return function

    return register


# ------------------------------------------------------------------------ pointwise


@lowers(*(name for name, op in OPS.items() if op.pointwise and name not in ("cast", "add")))
def pointwise(scope: Scope, node: Node, *operands: Value) -> Value:
    """The op table's expression over operands aligned by axis, in the element kinds it asks for."""
    op = OPS[node.op]
    wanted = op.operands(tuple(x.dtype for x in operands))
    template = op.template("torch", wanted[-1])
    assert template is not None
    literal = all(x.literal for x in operands)
    if not (literal and node.op in PYTHON_OPS):
        operands, template = _with_tensors(scope, node.op, operands, template)
    operands = _converted(scope, operands, wanted)
    layout = joint([x.layout for x in operands], _keys_last(node.axes))
    exprs = [aligned(x, layout, scope.size) for x in operands]
    words = {"dtype": scope.word(node.type.dtype)}
    if "format" in node.attrs:
        words["format"] = expression(FORMAT_WORDS[node.attrs.string("format")])
    expr = expression(template, *exprs, **words)
    finite = node.op in KEEP_FINITE and all(x.finite for x in operands)
    literal = literal and node.op in PYTHON_OPS
    known = _known(node.op, operands)
    return Value(expr, node.type.dtype, layout, literal=literal, finite=finite, known=known)


def _keys_last(axes: Group) -> Group:
    """Axes with another's time behind the others: a mask of [t] and [s] is [s, t]."""
    return tuple(sorted(axes, key=lambda axis: axis.time not in (None, axis.name)))


def _known(op: str, operands: Sequence[Value]) -> tuple[str | Axis, ...]:
    kinds = [x.known[:1] for x in operands]
    if op == "le" and kinds == [("slot",), ("slot",)]:
        return ("causal", operands[1].known[1], operands[0].known[1])
    return ()


def _with_tensors(
    scope: Scope, op: str, operands: tuple[Value, ...], template: str
) -> tuple[tuple[Value, ...], str]:
    """As many tensors among the operands as PyTorch needs; `clamp` for a bound that is a number."""
    if op in BOUNDS and operands[1].dtype != "bool" and operands[0].literal != operands[1].literal:
        return (operands[::-1] if operands[0].literal else operands), BOUNDS[op]
    if op == "where":
        condition, first, second = operands
        either = scope.tensor(first) if second.literal else first
        return (scope.tensor(condition), either, second), template
    if all(x.literal for x in operands) or op in BOUNDS:
        return tuple(map(scope.tensor, operands)), template
    return operands, template


def _converted(
    scope: Scope, operands: Sequence[Value], wanted: Sequence[DType]
) -> tuple[Value, ...]:
    """Operands in the wanted kinds, by PyTorch's own promotion where that does the same.

    It promotes by the widest float among tensors with dimensions; 0-d tensors and integers it
    treats otherwise, so those cases are written out.
    """
    widest = {x.dtype for x in operands if x.layout and not x.literal}

    def promoted(x: Value, to: DType) -> bool:
        return x.dtype in ("float", "f32") and to in widest and len(operands) > 1

    return tuple(
        x if promoted(x, to) else scope.converted(x, to)
        for x, to in zip(operands, wanted, strict=True)
    )


@lowers("cast")
def cast(scope: Scope, node: Node, x: Value) -> Value:
    return scope.converted(x, node.type.dtype)


# ------------------------------------------------------------------------ sources


@lowers("const")
def const(scope: Scope, node: Node) -> Value:
    value = node.attrs["value"]
    assert isinstance(value, int | float | Dim)
    expr = scope.dim(value) if isinstance(value, Dim) else number(value)
    finite = isinstance(value, Dim) or math.isfinite(value)
    return Value(expr, node.type.dtype, literal=True, finite=finite)


@lowers("index")
def index(scope: Scope, node: Node) -> Value:
    axis = node.attrs.axis("axis")
    words = {"device": scope.device()}
    template = "torch.arange({0}, device={device})" if scope.source else "torch.arange({0})"
    expr = expression(template, scope.size(axis), **words)
    return Value(expr, "int", single((axis,)), known=("slot", axis))


@lowers("size")
def size(scope: Scope, node: Node) -> Value:
    return Value(scope.size(node.attrs.axis("axis")), "int", literal=True)


@lowers("weight")
def weight(scope: Scope, node: Node) -> Value:
    return scope.module.weight(node)


@lowers("state")
def state(scope: Scope, node: Node) -> Value:
    return scope.module.states[node.attrs.string("path")]


@lowers("append")
def append(scope: Scope, node: Node, kept: Value, rows: Value) -> Value:
    """Rows written into the tensor of a state, which has room for them."""
    before, new = node.attrs.axes("parts")
    axis = node.attrs.axis("axis")
    rows = scope.full(rows, tuple(new if a == before else a for a in kept.axes))
    call = expression("{0}({1}, {2})", scope.module.helper("append"), kept.expr, scope.size(before))
    assert isinstance(call, ast.Call)
    call.args += [rows.expr, number(kept.dim(before))]
    return Value(
        call, node.type.dtype, single(tuple(axis if a == before else a for a in kept.axes))
    )


@lowers("table")
def table(scope: Scope, node: Node) -> Value:
    return scope.module.table(node)


# ------------------------------------------------------------------------ structure


@lowers("broadcast", "transpose")
def unchanged(scope: Scope, node: Node, x: Value) -> Value:
    """Axes that are only repeated stay implied, and the order of axes has no meaning."""
    return x


@lowers("rename")
def rename(scope: Scope, node: Node, x: Value) -> Value:
    new = dict(node.attrs.pairs("pairs"))
    layout = tuple(tuple(new.get(axis, axis) for axis in group) for group in x.layout)
    known = tuple(new.get(part, part) if isinstance(part, Axis) else part for part in x.known)
    return replace(x, layout=layout, known=known)


@lowers("split")
def split(scope: Scope, node: Node, x: Value) -> Value:
    axis, into = node.attrs.axis("axis"), node.attrs.axes("into")
    if axis not in x.axes:
        return x
    grouped = _substituted(x, axis, into)
    return grouped if x.weight else ungrouped(grouped, into, scope.size)


def _substituted(x: Value, axis: Axis, by: Group) -> Value:
    """The same tensor with `by`, row-major, for `axis` in its group."""
    return replace(
        x, layout=tuple(flat((by if a == axis else (a,)) for a in group) for group in x.layout)
    )


@lowers("merge")
def merge(scope: Scope, node: Node, x: Value) -> Value:
    parts, into = node.attrs.axes("axes"), node.attrs.axis("into")
    if not set(parts) & set(x.axes):
        return x
    layout = _with_merged(x.layout, parts) or tuple(
        parts if axis == into else (axis,) for axis in node.axes if axis == into or axis in x.axes
    )
    merged = scope.arranged(x, layout)
    return replace(
        merged, layout=tuple((into,) if group == parts else group for group in merged.layout)
    )


def _with_merged(layout: Layout, parts: Group) -> Layout | None:
    """The layout with the dimensions of `parts` joined, if they follow one another in it."""
    for i in range(len(layout)):
        for j in range(i + 1, len(layout) + 1):
            if flat(layout[i:j]) == parts:
                return (*layout[:i], parts, *layout[j:])
    return None


@lowers("concat")
def concat(scope: Scope, node: Node, *operands: Value) -> Value:
    axis, parts = node.attrs.axis("axis"), node.attrs.axes("parts")
    named = [
        _substituted(_over(scope, x, (part,)), part, (axis,))
        for x, part in zip(operands, parts, strict=True)
    ]
    layout = joint([x.layout for x in named], node.axes)
    joined = ast.List([scope.arranged(x, layout).expr for x in named])
    dim = number(signed(layout.index((axis,)), len(layout)))
    finite = all(x.finite for x in operands)
    expr = expression("torch.cat({0}, {1})", joined, dim)
    return Value(expr, node.type.dtype, layout, finite=finite)


@lowers("slice")
def slice_(scope: Scope, node: Node, x: Value) -> Value:
    axis, into = node.attrs.axis("axis"), node.attrs.axis("into")
    if axis not in x.axes:
        return x
    part = split_off(scope, node, x)
    if part is not None:
        return _substituted(part, axis, (into,))
    start, step = node.attrs.dim("start"), node.attrs.integer("step")
    x = _substituted(ungrouped(x, (axis,), scope.size), axis, (into,))
    stop = start + (into.size - 1) * step
    low, high = (start, stop) if step > 0 else (stop, start)
    bounds = ast.Slice(
        scope.dim(low) if low.constant != 0 else None,
        scope.dim(high + 1) if high + 1 != axis.size else None,
        number(abs(step)) if abs(step) != 1 else None,
    )
    sliced = replace(x, expr=_sliced(x, into, bounds, scope.size(into)))
    if step > 0:
        return sliced
    return replace(x, expr=expression("{0}.flip({1})", sliced.expr, number(x.dim(into))))


def _sliced(x: Value, axis: Axis, bounds: ast.Slice, length: ast.expr) -> ast.expr:
    """A slice, as `narrow` where both ends would be written out."""
    if bounds.lower is bounds.upper is bounds.step is None:
        return x.expr
    if bounds.lower and bounds.upper and not bounds.step:
        dim = number(x.dim(axis))
        return expression("{0}.narrow({1}, {2}, {3})", x.expr, dim, bounds.lower, length)
    return along(x, axis, bounds)


@lowers("pick")
def pick(scope: Scope, node: Node, x: Value) -> Value:
    axis = node.attrs.axis("axis")
    if axis not in x.axes:
        return x
    x = ungrouped(x, (axis,), scope.size)
    layout = tuple(group for group in x.layout if group != (axis,))
    return replace(x, expr=along(x, axis, scope.dim(node.attrs.dim("at"))), layout=layout)


# ------------------------------------------------------------------------ take


@lowers("take")
def take(scope: Scope, node: Node, x: Value, index: Value) -> Value:
    """Indices that are in range by themselves, or else made so and the fill put over them."""
    axis, fill = node.attrs.axis("axis"), node.attrs["fill"]
    x, index = scope.tensor(x), scope.tensor(index)
    if axis not in x.axes:
        x = scope.arranged(x, (*x.layout, (axis,)))
    if fill is None:
        index = scope.bound(index, node, "index") if scope.module.checks else index
        scope.module.check(scope, node, index.expr)
        return _taken(scope, node, x, index)
    assert isinstance(fill, int | float)
    index = scope.bound(index, node, "index")
    within = expression("({0} >= 0) & ({0} < {1})", index.expr, scope.size(axis))
    inside = scope.bound(Value(within, "bool", index.layout), node, "inside")
    clipped = expression("{0}.where({1}, 0)", index.expr, inside.expr)
    taken = _taken(scope, node, x, replace(index, expr=clipped))
    layout = joint([taken.layout, inside.layout], node.axes)
    found, condition = aligned(taken, layout, scope.size), aligned(inside, layout, scope.size)
    expr = expression("torch.where({0}, {1}, {2})", condition, found, number(fill))
    return replace(taken, expr=expr, layout=layout, weight=False)


def _taken(scope: Scope, node: Node, x: Value, index: Value) -> Value:
    axis = node.attrs.axis("axis")
    shared = [a for a in index.axes if a in x.axes and a != axis]
    if shared:
        return _gathered(scope, node, x, index, shared)
    if len(x.layout) == 2 and x.layout[0] == (axis,) and x.dtype not in ("int", "i8", "bool"):
        expr = expression("F.embedding({0}, {1})", index.expr, x.expr)
        return replace(x, expr=expr, layout=(*index.layout, x.layout[1]), weight=False)
    x = ungrouped(x, (axis,), scope.size)
    place = x.layout.index((axis,))
    layout = (*x.layout[:place], *index.layout, *x.layout[place + 1 :])
    return replace(x, expr=_selected(scope, node, x, index, place), layout=layout, weight=False)


def _selected(scope: Scope, node: Node, x: Value, index: Value, place: int) -> ast.expr:
    """index_select, which unlike `x[index]` refuses negative indices."""
    dim, rank = number(signed(place, len(x.layout))), len(index.layout)
    if rank == 0:
        return expression("{0}.index_select({1}, {2}).squeeze({1})", x.expr, dim, index.expr)
    if rank == 1:
        return expression("{0}.index_select({1}, {2})", x.expr, dim, index.expr)
    index = scope.bound(index, node, "index")
    flattened = "{0}.index_select({1}, {2}.flatten()).unflatten({1}, {2}.shape)"
    return expression(flattened, x.expr, dim, index.expr)


def _gathered(scope: Scope, node: Node, x: Value, index: Value, shared: Sequence[Axis]) -> Value:
    """Aligned on the shared axes: x and the index broadcast against each other but along `axis`."""
    axis = node.attrs.axis("axis")
    x = ungrouped(x, (axis, *shared), scope.size)
    index = ungrouped(index, shared, scope.size)
    own = tuple(a for a in index.axes if a not in shared)
    place = x.layout.index((axis,))
    layout = (*x.layout[:place], own, *x.layout[place + 1 :]) if own else x.layout
    by = aligned(index, layout, scope.size, leading=True)
    dim = number(signed(place, len(x.layout)))
    expr = expression("torch.take_along_dim({0}, {1}, {2})", x.expr, by, dim)
    if not own:
        expr = expression("{0}.squeeze({1})", expr, dim)
        return replace(x, expr=expr, layout=(*x.layout[:place], *x.layout[place + 1 :]))
    return ungrouped(replace(x, expr=expr, layout=layout), own, scope.size)


# ------------------------------------------------------------------------ reductions


def _over(scope: Scope, x: Value, axes: Sequence[Axis]) -> Value:
    """x as a tensor with each of `axes` a dimension of its own, filled in where broadcast."""
    x = scope.tensor(x)
    missing = tuple(axis for axis in axes if axis not in x.axes)
    if missing:
        x = scope.arranged(x, (*x.layout, *single(missing)))
    return ungrouped(x, axes, scope.size)


def _reduced(x: Value, template: str, axes: Sequence[Axis], dtype: DType) -> Value:
    dims = sorted(x.layout.index((axis,)) for axis in axes)
    rank = len(x.layout)
    wanted = (
        ast.Tuple([number(d) for d in dims]) if len(dims) > 1 else number(signed(dims[0], rank))
    )
    layout = tuple(group for i, group in enumerate(x.layout) if i not in dims)
    return replace(x, expr=expression(template, x.expr, wanted), dtype=dtype, layout=layout)


@lowers("sum")
def sum_(scope: Scope, node: Node, x: Value) -> Value:
    axes = node.attrs.axes("axes")
    return _reduced(_over(scope, x, axes), "{0}.sum({1})", axes, node.type.dtype) if axes else x


@lowers("amax")
def amax(scope: Scope, node: Node, x: Value) -> Value:
    """An axis that x lacks is read once, unless there may be nothing along it."""
    sizes = scope.module.program.sizes
    empty = {a for a in node.attrs.axes("axes") if a.size.substitute(sizes).constant in (None, 0)}
    axes = [axis for axis in node.attrs.axes("axes") if axis in x.axes or axis in empty]
    template = "{0}.any({1})" if x.dtype == "bool" else "{0}.amax({1})"
    if x.dtype != "bool" and empty:  # `amax` of nothing is an error
        scope.module.helper("amax")
        template = "amax({0}, {1})"
    return _reduced(_over(scope, x, axes), template, axes, node.type.dtype) if axes else x


@lowers("cumsum")
def cumsum(scope: Scope, node: Node, x: Value) -> Value:
    axis = node.attrs.axis("axis")
    x = _over(scope, x, (axis,))
    expr = expression("{0}.cumsum({1})", x.expr, number(x.dim(axis)))
    return replace(x, expr=expr, dtype=node.type.dtype)


@lowers("cumprod")
def cumprod(scope: Scope, node: Node, x: Value) -> Value:
    axis = node.attrs.axis("axis")
    x = _over(scope, x, (axis,))
    dim = number(x.dim(axis))
    template = (
        "{0}.flip({1}).cumprod({1}).flip({1})" if node.attrs["reverse"] else "{0}.cumprod({1})"
    )
    return replace(x, expr=expression(template, x.expr, dim))


@lowers("convolve")
def convolve(scope: Scope, node: Node, *operands: Value) -> Value:
    into = node.attrs.axis("into")
    named = []
    for operand, name in zip(operands, ("axis", "lag"), strict=True):
        old = node.attrs.axis(name)
        whole = _over(scope, scope.converted(operand, node.type.dtype), (old,))
        named.append(_substituted(whole, old, (into,)))
    layout = joint([x.layout for x in named], node.axes)
    x, kernel = (aligned(value, layout, scope.size) for value in named)
    helper, dim = scope.module.helper("convolve"), number(layout.index((into,)) - len(layout))
    expr = expression("{f}({0}, {1}, {2})", x, kernel, dim, f=helper)
    return Value(expr, node.type.dtype, layout)


@lowers("substitute")
def substitute(scope: Scope, node: Node, t: Value, y: Value) -> Value:
    """Matrices of rows and columns, beside one another what the triangle has else."""
    axis, column = node.attrs.axis("axis"), node.attrs.axis("column")
    batch = single(a for a in t.axes if a not in (axis, column))
    others = tuple(a for a in node.axes if a != axis and (a,) not in batch)
    layout = (*batch, (axis,), others)
    t, y = (scope.converted(x, node.type.dtype) for x in (t, y))
    triangle = scope.arranged(t, (*batch, (axis,), (column,)))
    right = scope.arranged(y, layout)
    reverse, helper = ast.Constant(bool(node.attrs["reverse"])), scope.module.helper("substitute")
    expr = expression("{f}({0}, {1}, {2})", triangle.expr, right.expr, reverse, f=helper)
    return Value(expr, node.type.dtype, layout)


@lowers("softmax")
def softmax(scope: Scope, node: Node, x: Value) -> Value:
    axis = node.attrs.axis("axis")
    x = _over(scope, scope.converted(x, node.type.dtype), (axis,))
    function = expression("torch.softmax") if x.finite else scope.module.helper("softmax")
    expr = expression("{f}({0}, {1})", x.expr, number(x.dim(axis)), f=function)
    return Value(expr, node.type.dtype, x.layout)


@lowers("logsumexp")
def logsumexp(scope: Scope, node: Node, x: Value) -> Value:
    axis = node.attrs.axis("axis")
    x = _over(scope, scope.converted(x, node.type.dtype), (axis,))
    return _reduced(x, "{0}.logsumexp({1})", (axis,), node.type.dtype)


@lowers("topk")
def topk(scope: Scope, node: Node, x: Value) -> tuple[Value, ...]:
    """A stable sort: torch.topk leaves the order of equal values open."""
    axis, k = node.attrs.axis("axis"), node.attrs.axis("k")
    x = _over(scope, x, (axis,))
    template = "torch.sort({0}, dim={1}, descending=True, stable=True)"
    ordered = expression(template, x.expr, number(x.dim(axis)))
    targets = scope.assign_all(ordered, node, ["values", "indices"])
    sorted_ = (replace(x, expr=t) for t in targets)
    kept = ast.Slice(None, scope.size(k))
    values, indices = (
        _substituted(replace(y, expr=along(y, axis, kept)), axis, (k,)) for y in sorted_
    )
    return values, replace(indices, dtype="int")
