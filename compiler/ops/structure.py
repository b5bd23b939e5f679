"""Sources and ops that rearrange elements. None computes; most are views of their operand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...dsl.dims import Dim
from ...dsl.errors import IndexOutOfRange
from ..ir.graph import Attrs, Axis, DType, Node, TensorType, elements
from .gradient import Adjoint
from .numeric import Array, np
from .registry import (
    DTYPES,
    N2,
    A,
    B,
    C,
    Call,
    Evaluate,
    N,
    Sample,
    Types,
    align,
    may_be_equal,
    op,
    require,
    same,
    tensor,
)

A1, A2, AB = Axis("a1", Dim.of(2)), Axis("a2", Dim.of(2)), Axis("ab", Dim.of(6))
C1, C2, C3, K = (
    Axis("c1", Dim.of(4)),
    Axis("c2", Dim.of(8)),
    Axis("c3", Dim.of(2)),
    Axis("k", Dim.of(7)),
)


def replaced(axes: Sequence[Axis], axis: Axis, by: Sequence[Axis]) -> tuple[Axis, ...]:
    """`axes` with `by` in place of `axis`."""
    place = tuple(axes).index(axis)
    return (*axes[:place], *by, *axes[place + 1 :])


def along(axis: int, index: int | slice) -> tuple[int | slice, ...]:
    """The NumPy index that touches dimension `axis` only."""
    return (slice(None),) * axis + (index,)


op("input", "a run-time input `name` of the model or function", time="S")
op("state", "the state at `path`, relative to the call path of its function", time="S")
op("weight", "the parameter at `path`, relative to the call path of its function", time="S")


CONST = op(
    "const",
    "the number, truth value or size `value`, as `dtype` or as what it is",
    time="S",
    samples=(
        *(Sample((), {"value": v}) for v in (1.5, 3, True, Dim.symbol("n") * 2)),
        Sample((), {"value": Dim.symbol("n"), "dtype": "f32"}),
    ),
)


@CONST.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    value = attrs["value"]
    kinds: dict[type, DType] = {bool: "bool", int: "int", float: "float", Dim: "int"}
    require(type(value) in kinds, f"not a constant: {value!r}")
    asked = attrs.get("dtype", kinds[type(value)])
    found = [dtype for dtype in DTYPES if dtype == asked]
    require(len(found) == 1, f"no element kind {asked}")
    return (TensorType(found[0]),)


@CONST.meaning
def _(call: Call) -> Array:
    value = call.attrs["value"]
    number = value.evaluate(call.sizes) if isinstance(value, Dim) else value
    kind = call.outputs[0].dtype
    return np.asarray(number, call.precision.storage(kind) if kind in ("bool", "int") else float)


INDEX = op(
    "index", "0, 1, ... along `axis`: the slot", time="S", samples=(Sample((), {"axis": N}),)
)


@INDEX.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    return (TensorType("int", (attrs.axis("axis"),)),)


@INDEX.meaning
def _(call: Call) -> Array:
    return np.arange(*call.window(call.attrs.axis("axis")), dtype=np.int64)


SIZE = op("size", "the size of `axis`", time="S", samples=(Sample((), {"axis": N}),))


@SIZE.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    attrs.axis("axis")
    return (TensorType("int"),)


@SIZE.meaning
def _(call: Call) -> Array:
    return np.asarray(call.attrs.axis("axis").size.evaluate(call.sizes), dtype=np.int64)


BROADCAST = op(
    "broadcast",
    "x repeated along the new `axes`, which come first",
    samples=(
        Sample((tensor("float", A),), {"axes": (N, B)}),
        Sample((tensor("bool"),), {"axes": (A,)}),
    ),
)


@BROADCAST.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    return (TensorType(x.dtype, (*attrs.axes("axes"), *x.axes)),)


@BROADCAST.meaning
def _(call: Call, x: Array) -> Array:
    return np.broadcast_to(x, call.shape)


@BROADCAST.backward
def _(at: Adjoint) -> tuple[int]:
    return (at.add("sum", at.d, axes=at.node.attrs["axes"]),)


RENAME = op(
    "rename",
    "the same array with `pairs` of (old, new) axes exchanged, all at once",
    samples=(
        Sample((tensor("float", A, N),), {"pairs": ((N, N2),)}),
        Sample((tensor("float", N, N2),), {"pairs": ((N, N2), (N2, N))}),
    ),
)


@RENAME.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    new = dict(attrs.pairs("pairs"))
    require(set(new) <= set(x.axes), "renames an axis that is not there")
    require(
        all(may_be_equal(old.size, to.size) for old, to in new.items()), "a rename keeps the size"
    )
    return (TensorType(x.dtype, tuple(new.get(axis, axis) for axis in x.axes)),)


@RENAME.prepared_meaning
def _(call: Call) -> Evaluate:
    return same


@RENAME.backward
def _(at: Adjoint) -> tuple[int]:
    pairs = at.node.attrs.pairs("pairs")
    return (at.add("rename", at.d, pairs=tuple((new, old) for old, new in pairs)),)


TRANSPOSE = op(
    "transpose",
    "the same value laid out in `order`",
    samples=(Sample((tensor("float", A, B, C),), {"order": (C, A, B)}),),
)


@TRANSPOSE.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    order = attrs.axes("order")
    require(set(order) == set(x.axes), "the order names other axes")
    return (TensorType(x.dtype, order),)


@TRANSPOSE.prepared_meaning
def _(call: Call) -> Evaluate:
    (source,) = call.inputs
    order = [source.position(axis) for axis in call.outputs[0].axes]
    return lambda x: x.transpose(order)


@TRANSPOSE.backward
def _(at: Adjoint) -> tuple[int]:
    return (at.d,)


SPLIT = op(
    "split",
    "`axis` as the axes `into`, row-major, in its place",
    samples=(
        Sample((tensor("float", B, C, A),), {"axis": C, "into": (A1, A2)}),
        Sample((tensor("int", N, C),), {"axis": C, "into": (A1, A2)}),
    ),
)


@SPLIT.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    axis, into = attrs.axis("axis"), attrs.axes("into")
    require(
        may_be_equal(elements(into), axis.size),
        "the parts do not multiply to the axis",
    )
    return (TensorType(x.dtype, replaced(x.axes, axis, into)),)


@SPLIT.prepared_meaning
def _(call: Call) -> Evaluate:
    place = call.inputs[0].position(call.attrs.axis("axis"))
    parts = tuple(call.extent(a) for a in call.attrs.axes("into"))
    return lambda x: x.reshape(x.shape[:place] + parts + x.shape[place + 1 :])


@SPLIT.backward
def _(at: Adjoint) -> tuple[int]:
    attrs = at.node.attrs
    return (at.add("merge", at.d, axes=attrs["into"], into=attrs["axis"]),)


MERGE = op(
    "merge",
    "the axes `axes` as one axis `into`, row-major in the order given, where their last stood",
    samples=(
        Sample((tensor("float", N, A, B),), {"axes": (A, B), "into": AB}),
        Sample((tensor("float", B, N, A),), {"axes": (A, B), "into": AB}),
    ),
)


def _merged_order(x: TensorType, parts: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """x's axes with `parts` brought together, in their order, where the last of them stood."""
    last = next(axis for axis in reversed(x.axes) if axis in parts)
    kept = [axis for axis in x.axes if axis == last or axis not in parts]
    return replaced(kept, last, parts)


@MERGE.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    parts, into = attrs.axes("axes"), attrs.axis("into")
    require(bool(parts) and set(parts) <= set(x.axes), "merges an axis that is not there")
    require(
        may_be_equal(elements(parts), into.size),
        "the parts do not multiply to the axis",
    )
    order = _merged_order(x, parts)
    place = order.index(parts[0])
    return (TensorType(x.dtype, (*order[:place], into, *order[place + len(parts) :])),)


@MERGE.prepared_meaning
def _(call: Call) -> Evaluate:
    (source,) = call.inputs
    parts = call.attrs.axes("axes")
    axes = _merged_order(source, parts)
    order = [source.position(axis) for axis in axes]
    place = axes.index(parts[0])
    end = place + len(parts)

    def run(x: Array) -> Array:
        x = x.transpose(order)
        return x.reshape((*x.shape[:place], math.prod(x.shape[place:end]), *x.shape[end:]))

    return run


@MERGE.backward
def _(at: Adjoint) -> tuple[int]:
    attrs = at.node.attrs
    return (at.add("split", at.d, axis=attrs["into"], into=attrs["axes"]),)


CONCAT = op(
    "concat",
    "operands joined along `axis`; operand i has `parts[i]` where the result has `axis`",
    samples=(Sample((tensor("float", A, B), tensor("float", C, A)), {"axis": K, "parts": (B, C)}),),
)


@CONCAT.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    axis, parts = attrs.axis("axis"), attrs.axes("parts")
    require(len(parts) == len(inputs) > 0, "one part for each operand")
    total = sum((p.size for p in parts), Dim())
    require(may_be_equal(total, axis.size), "the parts do not add up to the axis")
    axes = replaced(inputs[0].axes, parts[0], (axis,))
    for x, part in zip(inputs, parts, strict=True):
        require(x.dtype == inputs[0].dtype, "operands of several dtypes")
        require(set(replaced(x.axes, part, (axis,))) == set(axes), "operands of several axes")
    return (TensorType(inputs[0].dtype, axes),)


@CONCAT.prepared_meaning
def _(call: Call) -> Evaluate:
    axes = call.outputs[0].axes
    axis, parts = call.attrs.axis("axis"), call.attrs.axes("parts")
    laid = [replaced(t.axes, part, (axis,)) for t, part in zip(call.inputs, parts, strict=True)]
    orders = [[of.index(axis) for axis in axes] for of in laid]
    place = axes.index(axis)

    def run(*arrays: Array) -> Array:
        aligned = [x.transpose(order) for x, order in zip(arrays, orders, strict=True)]
        return np.concatenate(aligned, axis=place)

    return run


@CONCAT.backward
def _(at: Adjoint) -> list[int | None]:
    axis, start, found = at.node.attrs["axis"], Dim(), list[int | None]()
    for i, part in enumerate(at.node.attrs.axes("parts")):
        attrs = {"axis": axis, "into": part, "start": start, "step": 1}
        found.append(at.add("slice", at.d, **attrs) if i in at.wanted else None)
        start = start + part.size
    return found


APPEND = op(
    "append",
    "rows after the state that is kept of earlier ones: as `concat` along `axis`, the state with"
    " `parts[0]` there and the rows with `parts[1]`. Where the state's array has room after it, the"
    " rows are written there",
    time="C",
    samples=(Sample((tensor("float", A, B), tensor("float", C, A)), {"axis": K, "parts": (B, C)}),),
)


@APPEND.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    require(len(inputs) == 2, "a state and rows")
    assert CONCAT.infer is not None
    return CONCAT.infer(attrs, inputs)


@APPEND.prepared_meaning
def _(call: Call) -> Evaluate:
    """The state may be an array with room: what is beyond the state's size is not of the state."""
    state, new = call.inputs
    part, added = call.attrs.axes("parts")
    dim, past = state.position(part), call.extent(part)
    laid = replaced(new.axes, added, (part,))
    order = [laid.index(axis) for axis in state.axes]
    as_laid = order == sorted(order)
    before = along(dim, slice(0, past))

    def run(kept: Array, rows: Array) -> Array:
        rows = rows if as_laid else rows.transpose(order)
        end = past + rows.shape[dim]
        if kept.shape[dim] < end:
            return np.concatenate([kept[before], rows], axis=dim)
        kept[along(dim, slice(past, end))] = rows
        return kept[along(dim, slice(0, end))]

    return run


SLICE = op(
    "slice",
    "elements `start`, `start + step`, ... of `axis`, as many as `into` has",
    samples=(
        Sample((tensor("float", A, K),), {"axis": K, "into": B, "start": Dim.of(1), "step": 2}),
        Sample((tensor("float", K, A),), {"axis": K, "into": C, "start": Dim.of(6), "step": -2}),
        Sample((tensor("int", N),), {"axis": N, "into": A, "start": N.size - 2, "step": 1}),
    ),
)


@SLICE.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    attrs.dim("start")
    require(attrs.integer("step") != 0, "a step of zero")
    return (TensorType(x.dtype, replaced(x.axes, attrs.axis("axis"), (attrs.axis("into"),))),)


@SLICE.prepared_meaning
def _(call: Call) -> Evaluate:
    start, step = call.attrs.dim("start").evaluate(call.sizes), call.attrs.integer("step")
    end = start + step * call.extent(call.attrs.axis("into"))
    entries = slice(start, None if end < 0 else end, step)
    index = along(call.inputs[0].position(call.attrs.axis("axis")), entries)
    return lambda x: x[index]


@SLICE.backward
def _(at: Adjoint) -> tuple[int]:
    """Each entry of the operand reads where it went, if it went anywhere."""
    attrs, step = at.node.attrs, at.node.attrs.integer("step")
    index = at.add("index", axis=attrs["axis"])
    index = at.add("sub", index, at.number(attrs.dim("start")))
    if step != 1:
        by = at.add("const", value=step)
        met = at.add("eq", at.add("mod", index, by), at.add("const", value=0))
        index = at.add("where", met, at.add("floordiv", index, by), at.add("const", value=-1))
    return (at.add("take", at.d, index, axis=attrs["into"], fill=0.0),)


PICK = op(
    "pick",
    "element `at` of `axis`",
    samples=(
        Sample((tensor("float", A, B, N),), {"axis": B, "at": Dim.of(2)}),
        Sample((tensor("float", N),), {"axis": N, "at": N.size - 1}),
    ),
)


@PICK.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    attrs.dim("at")
    return (TensorType(x.dtype, replaced(x.axes, attrs.axis("axis"), ())),)


@PICK.prepared_meaning
def _(call: Call) -> Evaluate:
    at = call.attrs.dim("at").evaluate(call.sizes)
    index = along(call.inputs[0].position(call.attrs.axis("axis")), at)
    return lambda x: x[index]


@PICK.backward
def _(at: Adjoint) -> tuple[int]:
    index = at.add("index", axis=at.node.attrs["axis"])
    here = at.add("eq", index, at.number(at.node.attrs.dim("at")))
    return (at.add("where", here, at.d, at.number(0.0)),)


TAKE = op(
    "take",
    "x at the indices along `axis`; axes both share align, the others stand where `axis` stood;"
    " an index outside reads `fill`, or is an error without one",
    time="M",
    samples=(
        Sample((tensor("float", K, A), tensor("int", N, B)), {"axis": K, "fill": None}, (0, 6)),
        Sample((tensor("float", A, K, B), tensor("int", N, A)), {"axis": K, "fill": 0.0}, (-3, 9)),
        Sample((tensor("int", A, N), tensor("int", N)), {"axis": N, "fill": -1}, (-3, 9)),
    ),
)


def _indexed_by(attrs: Attrs, x: TensorType, index: TensorType) -> tuple[Axis, ...]:
    """The index's axes that x does not keep: they replace the indexed axis."""
    kept = replaced(x.axes, attrs.axis("axis"), ())
    return tuple(axis for axis in index.axes if axis not in kept)


@TAKE.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    x, index = inputs
    require(index.dtype == "int", "the index is not an integer")
    require("fill" in attrs, "no fill")
    new = _indexed_by(attrs, x, index)
    return (TensorType(x.dtype, replaced(x.axes, attrs.axis("axis"), new)),)


@TAKE.meaning
def _(call: Call, x: Array, index: Array) -> Array:
    length = x.shape[call.inputs[0].position(call.attrs.axis("axis"))]
    outside = (index < 0) | (index >= length)
    if not outside.any():
        return _gather(call, x, index)
    fill = call.attrs["fill"]
    if fill is None:
        bad = int(index[outside].flat[0])
        raise IndexOutOfRange(axis=call.attrs.axis("axis").name, index=bad, size=length)
    if not length:
        return np.full(call.shape, fill, x.dtype)
    assert isinstance(fill, int | float)
    hidden = align(outside, call.inputs[1].axes, call.outputs[0].axes)
    inside = _gather(call, x, np.where(outside, 0, index))
    return np.where(hidden, np.asarray(fill, x.dtype), inside)


def _gather(call: Call, x: Array, index: Array) -> Array:
    source, by = call.inputs
    axis = call.attrs.axis("axis")
    new = _indexed_by(call.attrs, source, by)
    shared = [a for a in by.axes if a not in new]
    if not shared:
        return np.take(x, index, axis=source.position(axis))
    rest = [a for a in source.axes if a not in shared and a != axis]
    x = x.transpose([source.position(a) for a in (*shared, axis, *rest)])
    grid = np.ogrid[tuple(slice(n) for n in x.shape[: len(shared)])]
    ones = (1,) * len(new)
    picked: Array = x[
        (*(g.reshape(g.shape + ones) for g in grid), align(index, by.axes, [*shared, *new]))
    ]
    laid = [*shared, *new, *rest]
    return picked.transpose([laid.index(a) for a in call.outputs[0].axes])


@TAKE.backward
def _(at: Adjoint) -> tuple[int, None]:
    """Where each entry of the result came from is where its gradient goes; several add up.

    An index `i + c` that runs along an axis i of the result is turned round: x[m] gets d[m - c]. Any
    other is compared with all places, and the sum is a product with the zeros and ones found; of a
    gradient that is itself a product of two values along those axes, the second is never formed whole.
    """
    axis, (x, index) = at.node.attrs.axis("axis"), (at.operand(0), at.operand(1))
    new = _indexed_by(at.node.attrs, x.type, index.type)
    for along in [a for a in new if axis not in new or a == axis]:
        rest = _running(at, index, along)
        if rest is not None:
            back = at.add("index", axis=axis)
            back = back if rest == NOTHING else at.add("sub", back, rest)
            found = at.add("take", at.d, back, axis=along, fill=0.0)
            others = tuple(a for a in new if a != along)
            return (at.add("sum", found, axes=others) if others else found), None
    return _counted(at, axis, index.id, new), None


def _counted(at: Adjoint, axis: Axis, index: int, new: tuple[Axis, ...]) -> int:
    """The sum, for each place along `axis`, of the gradients along `new` that the index sends there."""
    d = at.builder[at.d]
    sides = [at.builder[i].id for i in d.inputs if set(new) <= set(at.builder[i].axes)]
    apart = d.op == "dot" and len(sides) == 2
    summed = (*(d.attrs.axes("axes") if apart else ()), *new)
    sides = sorted(sides, key=lambda i: len(at.builder[i].axes)) if apart else [d.id]
    if axis in new:
        other = at.axis(f"{axis}.from", axis.size)
        index, *sides = (at.add("rename", i, pairs=((axis, other),)) for i in (index, *sides))
        summed = tuple(other if a == axis else a for a in summed)
    ones = at.add("to_float", at.add("eq", at.add("index", axis=axis), index))
    first = at.add("mul", ones, sides[0]) if apart else ones
    if not summed:
        return at.add("mul", first, sides[-1])
    return at.add("dot", first, sides[-1], axes=summed)


NOTHING = -1  # what is added to an index that is the place itself


def _running(at: Adjoint, index: Node, along: Axis) -> int | None:
    """The value c without the axis `along` for an index that is `along + c`; None for any other."""
    if index.op == "index":
        return NOTHING if index.attrs["axis"] == along else None
    if index.op == "rename":
        (source,) = (at.builder[i] for i in index.inputs)
        found = dict((new, old) for old, new in index.attrs.pairs("pairs")).get(along)
        is_index = source.op == "index" and source.attrs["axis"] == found
        return NOTHING if is_index else None
    if index.op not in ("add", "sub"):
        return None
    a, b = (at.builder[i] for i in index.inputs)
    if along in b.axes and index.op == "add":
        a, b = b, a
    rest = None if along in b.axes else _running(at, a, along)
    if rest is None:
        return None
    if rest == NOTHING:
        return b.id if index.op == "add" else at.add("mul", b.id, at.add("const", value=-1))
    return at.add(index.op, rest, b.id)


PACKED = op(
    "packed",
    "the same value: a matrix that sums over `inner`, in an order of the backend's own",
    samples=(
        Sample((tensor("float", A, B),), {"inner": (B,)}),
        Sample((tensor("float", A, B, C),), {"inner": (A, C)}),
    ),
)


@PACKED.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    require(
        set(attrs.axes("inner")) < set(x.axes), "sums over axes that are not there, or over all"
    )
    return (x,)


@PACKED.meaning
def _(call: Call, x: Array) -> Array:
    return x


@PACKED.backward
def _(at: Adjoint) -> tuple[int]:
    return (at.d,)
