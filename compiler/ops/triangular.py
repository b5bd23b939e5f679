"""`substitute`: a unit triangular system by forward substitution, as chunks of a delta rule have."""

from __future__ import annotations

from ...dsl.dims import Dim
from ..ir.graph import Attrs, Axis, TensorType, elements
from .numeric import Array, np
from .registry import (
    A,
    B,
    Call,
    N,
    Sample,
    Types,
    align,
    may_be_equal,
    op,
    promote,
    require,
    tensor,
)

ROW = Axis("row", N.size)


def _operations(attrs: Attrs, inputs: Types, outputs: Types) -> Dim:
    """A product and a sum for each pair of rows."""
    return elements(outputs[0].axes) * attrs.axis("column").size * 2


SUBSTITUTE = op(
    "substitute",
    "x[i] = y[i] + the sum over j before i of t[i, j] x[j], with i along `axis` and j along `column`;"
    " what t has elsewhere counts for nothing. From the end if `reverse`",
    time="M",
    flops=_operations,
    samples=(
        Sample(
            (tensor("f32", A, N, ROW), tensor("f32", N, A, B)),
            {"axis": N, "column": ROW, "reverse": False},
            domain=(-1, 1),
        ),
        Sample(
            (tensor("f64", ROW, N), tensor("f64", B, N)),
            {"axis": N, "column": ROW, "reverse": True},
            domain=(-1, 1),
        ),
    ),
)


@SUBSTITUTE.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (t, y), axis, column = inputs, attrs.axis("axis"), attrs.axis("column")
    require(may_be_equal(axis.size, column.size), "a triangle has as many rows as columns")
    require({axis, column} <= {*t.axes}, "a triangle has rows and columns")
    require(axis in y.axes and column not in y.axes, "the right side has rows and no columns")
    require({*t.axes} - {column} <= {*y.axes}, "the triangle has an axis that the right side lacks")
    dtype = promote(t.dtype, y.dtype)
    require(dtype not in ("bool", "int"), "a system of whole numbers")
    return (TensorType(dtype, y.axes),)


@SUBSTITUTE.meaning
def _(call: Call, t: Array, y: Array) -> Array:
    """Row by row: each takes what those before it leave."""
    (of_t, of_y), (result,) = call.inputs, call.outputs
    axis, column = call.attrs.axis("axis"), call.attrs.axis("column")
    rest = tuple(a for a in of_y.axes if a != axis)
    factors = align(call.compute(t, result.dtype), of_t.axes, (axis, column, *rest))
    x = align(call.compute(y, result.dtype), of_y.axes, (axis, *rest)).copy()
    order = range(len(x))
    for i in reversed(order) if call.attrs["reverse"] else order:
        before = slice(i + 1, None) if call.attrs["reverse"] else slice(0, i)
        x[i] += np.sum(factors[i, before] * x[before], axis=0)
    return align(x, (axis, *rest), of_y.axes)
