"""Ops that combine elements along axes. Half formats accumulate in float32 and round once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ...dsl.dims import Dim
from ..ir.graph import Attrs, Axis, DType, TensorType, elements
from .gradient import Adjoint
from .numeric import Array, np
from .registry import (
    N2,
    A,
    B,
    C,
    Call,
    Evaluate,
    N,
    Sample,
    Types,
    floating,
    op,
    per_operand,
    promote,
    require,
    tensor,
)
from .structure import replaced

K2 = Axis("k2", Dim.of(2))
LEAST_INT = -(2**31)  # a Triton kernel holds integers in 32 bits


def least(dtype: DType) -> bool | int | float:
    """The greatest of nothing."""
    return {"bool": False, "int": LEAST_INT}.get(dtype, -math.inf)


def without(x: TensorType, axes: Sequence[Axis]) -> tuple[Axis, ...]:
    require(set(axes) <= set(x.axes), "reduces an axis that is not there")
    return tuple(axis for axis in x.axes if axis not in axes)


def positions(call: Call, axes: Sequence[Axis]) -> tuple[int, ...]:
    return tuple(call.inputs[0].position(axis) for axis in axes)


SUM = op(
    "sum",
    "the sum over `axes`; on bool a count",
    time="M",
    elementwise=per_operand,
    samples=(
        Sample((tensor("float", A, N, B),), {"axes": (N,)}),
        Sample((tensor("f64", A, N),), {"axes": (N, A)}),
        Sample((tensor("int", A, N),), {"axes": (A,)}),
        Sample((tensor("bool", A, N),), {"axes": (N,)}),
    ),
)


@SUM.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    dtype = "int" if x.dtype == "bool" else x.dtype
    return (TensorType(dtype, without(x, attrs.axes("axes"))),)


@SUM.prepared_meaning
def _(call: Call) -> Evaluate:
    kind = call.precision.compute(call.outputs[0].dtype)
    along = positions(call, call.attrs.axes("axes"))
    return lambda x: np.asarray(np.add.reduce(x, axis=along, dtype=kind))


@SUM.backward
def _(at: Adjoint) -> tuple[int]:
    return (at.d,)


AMAX = op(
    "amax",
    "the greatest over `axes`, of nothing the least there is; `any` on bool",
    time="M",
    elementwise=per_operand,
    samples=tuple(Sample((tensor(d, A, N, B),), {"axes": (N,)}) for d in ("float", "int", "bool")),
)


@AMAX.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    return (TensorType(x.dtype, without(x, attrs.axes("axes"))),)


@AMAX.meaning
def _(call: Call, x: Array) -> Array:
    along = positions(call, call.attrs.axes("axes"))
    return np.asarray(np.max(x, axis=along, initial=least(call.outputs[0].dtype)))


@AMAX.backward
def _(at: Adjoint) -> tuple[int]:
    """Equal ones share it."""
    here = at.add("to_float", at.add("eq", at.node.inputs[0], at.node.id))
    share = at.add("div", at.d, at.add("sum", here, axes=at.node.attrs["axes"]))
    return (at.add("mul", here, share),)


CUMSUM = op(
    "cumsum",
    "the running sum along `axis`",
    time="C",
    elementwise=per_operand,
    samples=tuple(Sample((tensor(d, A, N, B),), {"axis": N}) for d in ("float", "int", "bool")),
)


@CUMSUM.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    x.position(attrs.axis("axis"))
    return (TensorType("int" if x.dtype == "bool" else x.dtype, x.axes),)


@CUMSUM.meaning
def _(call: Call, x: Array) -> Array:
    kind = call.precision.compute(call.outputs[0].dtype)
    return np.cumsum(x, axis=positions(call, [call.attrs.axis("axis")])[0], dtype=kind)


@CUMSUM.backward
def _(at: Adjoint) -> tuple[int]:
    """The running sum from the end."""
    axis = at.node.attrs.axis("axis")
    turned = at.axis(f"{axis}.turned", axis.size)
    last = axis.size - 1
    d = at.add("slice", at.d, axis=axis, into=turned, start=last, step=-1)
    d = at.add("cumsum", d, axis=turned)
    return (at.add("slice", d, axis=turned, into=axis, start=last, step=-1),)


CUMPROD_SAMPLES: tuple[tuple[DType, bool], ...] = (("float", False), ("f32", True), ("f64", True))
CUMPROD = op(
    "cumprod",
    "the running product along `axis`, from its end if `reverse`",
    time="M",
    elementwise=per_operand,
    samples=tuple(
        Sample((tensor(d, A, N, B),), {"axis": N, "reverse": reverse})
        for d, reverse in CUMPROD_SAMPLES
    ),
)


@CUMPROD.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    require(x.dtype in ("float", "f32", "f64"), "only floats have running products")
    x.position(attrs.axis("axis"))
    return (TensorType(x.dtype, x.axes),)


@CUMPROD.meaning
def _(call: Call, x: Array) -> Array:
    kind = call.precision.compute(call.outputs[0].dtype)
    (along,) = positions(call, [call.attrs.axis("axis")])
    if call.attrs["reverse"]:
        return np.flip(np.cumprod(np.flip(x, along), axis=along, dtype=kind), along)
    return np.cumprod(x, axis=along, dtype=kind)


def _softmax_operations(attrs: Attrs, inputs: Types, outputs: Types) -> Dim:
    """Maximum, difference, exponential, sum, quotient."""
    return per_operand(attrs, inputs, outputs) * 5


SOFTMAX = op(
    "softmax",
    "exp(x) / sum of exp(x) along `axis`; a row of -inf gives zeros",
    time="M",
    elementwise=_softmax_operations,
    samples=tuple(Sample((tensor(d, A, N, B),), {"axis": N}) for d in ("float", "f32", "f64")),
)


@SOFTMAX.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    x.position(attrs.axis("axis"))
    return (TensorType(floating(x.dtype), x.axes),)


@SOFTMAX.meaning
def _(call: Call, x: Array) -> Array:
    (along,) = positions(call, [call.attrs.axis("axis")])
    x = call.compute(x, call.outputs[0].dtype)
    weights = np.exp(x - finite(np.max(x, axis=along, keepdims=True, initial=-np.inf)))
    return divide_rows(weights, np.sum(weights, axis=along, keepdims=True))


@SOFTMAX.backward
def _(at: Adjoint) -> tuple[int]:
    mean = at.add("sum", at.text("d * y"), axes=(at.node.attrs.axis("axis"),))
    return (at.add("mul", at.node.id, at.add("sub", at.d, mean)),)


LOGSUMEXP = op(
    "logsumexp",
    "log of the sum of exp(x) along `axis`; -inf for a row of -inf. A softmax is exp(x - it)",
    time="M",
    elementwise=_softmax_operations,
    samples=tuple(Sample((tensor(d, A, N, B),), {"axis": N}) for d in ("float", "f32")),
)


@LOGSUMEXP.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    return (TensorType(floating(x.dtype), without(x, (attrs.axis("axis"),))),)


@LOGSUMEXP.meaning
def _(call: Call, x: Array) -> Array:
    (along,) = positions(call, [call.attrs.axis("axis")])
    x = call.compute(x, call.outputs[0].dtype)
    most = finite(np.max(x, axis=along, keepdims=True, initial=-np.inf))
    total: Array = np.sum(np.exp(x - most), axis=along)
    return np.squeeze(most, along) + np.log(total)


@LOGSUMEXP.backward
def _(at: Adjoint) -> tuple[int]:
    return (at.add("mul", at.d, weights(at, at.node.inputs[0], at.node.id)),)


def weights(at: Adjoint, x: int, total: int) -> int:
    """The softmax in terms of the `logsumexp`: zeros in a row of -inf."""
    empty = at.add("eq", total, at.number(-math.inf))
    shift = at.add("where", empty, at.number(0.0), total)
    return at.add("exp", at.add("sub", x, shift))


def finite(maximum: Array) -> Array:
    """The maximum to subtract: a finite one for an empty row, whose exponentials then vanish."""
    return np.asarray(np.maximum(maximum, np.finfo(maximum.dtype).min))


def divide_rows(numerator: Array, total: Array) -> Array:
    """numerator / total, and zeros where the total is zero.

    A total is of exponentials below that of a maximum which is subtracted: at least 1, if not zero.
    """
    return np.asarray(numerator / np.maximum(total, 1))


TOPK = op(
    "topk",
    "the greatest values along `axis`, NaN before all, greatest first, the lower index first among"
    " equals, and their indices: two results with axis `k` in its place",
    time="M",
    elementwise=per_operand,
    samples=tuple(
        Sample((tensor(d, A, C, B),), {"axis": C, "k": K2}) for d in ("float", "f32", "int")
    ),
)


@TOPK.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x,) = inputs
    axes = replaced(x.axes, attrs.axis("axis"), (attrs.axis("k"),))
    return TensorType(x.dtype, axes), TensorType("int", axes)


@TOPK.meaning
def _(call: Call, x: Array) -> tuple[Array, Array]:
    (along,) = positions(call, [call.attrs.axis("axis")])
    value = call.compute(x, call.inputs[0].dtype)
    order = np.lexsort((-value, ~np.isnan(value)), axis=along)  # stable
    chosen = np.take(order, range(call.extent(call.attrs.axis("k"))), axis=along)
    return np.take_along_axis(x, chosen, along), chosen


@TOPK.backward
def _(at: Adjoint) -> tuple[int | None]:
    values = at.results[0]
    if values is None:
        return (None,)
    places = at.add("result", at.node.id, index=1)
    here = at.add("eq", at.add("index", axis=at.node.attrs["axis"]), places)
    return (at.add("dot", at.add("to_float", here), values, axes=(at.node.attrs.axis("k"),)),)


def _dot_flops(attrs: Attrs, inputs: Types, outputs: Types) -> Dim:
    """A multiplication and an addition for each point of the product of all axes."""
    axes = dict.fromkeys(axis for t in inputs for axis in t.axes)
    return elements(axes) * 2


DOT = op(
    "dot",
    "the sum of a * b over `axes`; axes of both that are not summed are a batch",
    time="M",
    flops=_dot_flops,
    samples=(
        Sample((tensor("float", A, N, B), tensor("float", C, B)), {"axes": (B,)}),
        Sample((tensor("float", A, N, B), tensor("float", A, B, N2)), {"axes": (B,)}),
        Sample((tensor("float", N, A, B, C), tensor("float", A, C, N2)), {"axes": (C,)}),
        Sample((tensor("float", A, B, C), tensor("f32", C, N, B)), {"axes": (C, B)}),
        Sample((tensor("float", A, B, C), tensor("f64", C, A)), {"axes": (B, C)}),
        Sample((tensor("float", A), tensor("float", A)), {"axes": (A,)}),
        Sample((tensor("float", A), tensor("float", B)), {"axes": ()}),
        Sample((tensor("int", A, B), tensor("int", B, C)), {"axes": (B,)}),
    ),
)


@DOT.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    a, b = inputs
    dtype, summed = promote(a.dtype, b.dtype), attrs.axes("axes")
    require(dtype != "bool", "a dot of bools")
    union = tuple(dict.fromkeys((*a.axes, *b.axes)))
    require(set(summed) <= set(union), "sums an axis that is not there")
    return (TensorType(dtype, tuple(axis for axis in union if axis not in summed)),)


@DOT.prepared_meaning
def _(call: Call) -> Evaluate:
    """One matrix product, or a stack of them. What is laid out as it needs to be is not copied."""
    (dtype, to), summed = (call.outputs[0].dtype, call.outputs[0].axes), call.attrs.axes("axes")
    kind = call.precision.compute(dtype)
    of_a, of_b = (t.axes for t in call.inputs)
    a_axes = tuple(x for x in of_a if x in of_b or x not in summed)
    b_axes = tuple(x for x in of_b if x in of_a or x not in summed)
    batch = [x for x in a_axes if x in b_axes and x not in summed]
    rows = [x for x in a_axes if x not in b_axes]
    columns = [x for x in b_axes if x not in a_axes]
    laid = [*batch, *rows, *columns]
    lengths = [call.extent(x) for x in laid]
    order = [laid.index(x) for x in to]
    as_laid = order == sorted(order)
    # the summed axes in the order of either operand: the larger one should not move
    inner = [[x for x in axes if x in summed] for axes in (a_axes, b_axes)]
    lefts = [_matrices(call, a_axes, batch, rows, i) for i in inner]
    rights = [_matrices(call, b_axes, batch, columns, i) for i in inner]

    def run(a: Array, b: Array) -> Array:
        left = _presum(a.astype(kind, copy=False), of_a, a_axes)
        right = _presum(b.astype(kind, copy=False), of_b, b_axes)
        larger = right.size > left.size
        product: Array = np.matmul(lefts[larger](left), rights[larger](right).swapaxes(-1, -2))
        result: Array = product.reshape(lengths)
        return result if as_laid else result.transpose(order)

    return run


@DOT.backward
def _(at: Adjoint) -> list[int | None]:
    """d times the other operand, summed over what the operand lacks."""
    return [_of_side(at, i) if i in at.wanted else None for i in range(2)]


def _of_side(at: Adjoint, side: int) -> int:
    own, other, d = at.operand(side), at.operand(1 - side), at.builder[at.d]
    summed = tuple(a for a in dict.fromkeys((*d.axes, *other.axes)) if a not in own.axes)
    return at.add("dot", d.id, other.id, axes=summed)


def _presum(x: Array, axes: Sequence[Axis], kept: Sequence[Axis]) -> Array:
    """Sums the axes that only this operand has."""
    if len(kept) == len(axes):
        return x
    return np.asarray(x.sum(axis=tuple(i for i, axis in enumerate(axes) if axis not in kept)))


def _matrices(
    call: Call,
    axes: tuple[Axis, ...],
    batch: Sequence[Axis],
    rows: Sequence[Axis],
    inner: Sequence[Axis],
) -> Callable[[Array], Array]:
    """What makes x matrices [*batch, rows, inner], a view wherever its layout allows one."""
    stack = tuple(call.extent(a) for a in batch)
    n, m = (math.prod(call.extent(a) for a in group) for group in (rows, inner))
    upright = [axes.index(a) for a in (*batch, *rows, *inner)]
    turned = [axes.index(a) for a in (*batch, *inner, *rows)]
    of_rows, of_inner = (tuple(axes.index(a) for a in group) for group in (rows, inner))
    in_place = upright == sorted(upright)

    def run(x: Array) -> Array:
        if in_place and x.flags.c_contiguous:
            return x.reshape((*stack, n, m))
        if _stride(x, of_inner) > _stride(x, of_rows):
            return x.transpose(turned).reshape((*stack, m, n)).swapaxes(-1, -2)
        return x.transpose(upright).reshape((*stack, n, m))

    return run


def _stride(x: Array, axes: Sequence[int]) -> int:
    return max((x.strides[i] for i in axes), default=0)
