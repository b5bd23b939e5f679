"""`grouped` as a machine runs it: rows sorted by their index, one product for each matrix picked.

`compiler/ops/grouped.py` has the equation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from ...compiler.ir.graph import Axis, Function
from ...compiler.ops import Array, Precision, align
from ...compiler.ops.grouped import plan_grouped
from ...dsl.errors import IndexOutOfRange
from ..base import span_of


def grouped(
    body: Function, sizes: Mapping[str, int], precision: Precision, *operands: Array
) -> Array:
    """The output of a grouped node's body. Raises IndexOutOfRange."""
    plan = plan_grouped(body)
    values = dict(zip(body.inputs, operands, strict=True))
    x, matrices, index = (values[n.id] for n in (plan.x, plan.matrices, plan.index))

    def shape(axes: Sequence[Axis]) -> tuple[int, ...]:
        return tuple(axis.size.evaluate(sizes) for axis in axes)

    def for_each_row(value: Array, axes: Sequence[Axis]) -> Array:
        return np.broadcast_to(align(value, axes, plan.rows), shape(plan.rows)).ravel()

    (count,), inner, outer = (shape(a) for a in ((plan.entries,), plan.inner, plan.outer))
    outside = index[(index < 0) | (index >= count)]
    if outside.size:
        take = plan.take
        raise IndexOutOfRange(
            axis=plan.entries.name,
            index=int(outside[0]),
            size=count,
            span=span_of(take),
            calls=take.spans[1:],
        )
    picked = for_each_row(index, plan.index.axes)
    own = [axis for axis in plan.x.axes if axis not in plan.inner]
    source = for_each_row(np.arange(math.prod(shape(own))).reshape(shape(own)), own)  # rows of x
    features = math.prod(inner), math.prod(outer)
    x = align(x, plan.x.axes, (*own, *plan.inner)).reshape(-1, features[0])
    order = (plan.entries, *plan.inner, *plan.outer)
    matrices = align(matrices, plan.matrices.axes, order).reshape(count, *features)

    kind = plan.product.type
    result = np.empty((picked.size, features[1]), precision.storage(kind.dtype))
    dtype = precision.compute(kind.dtype)
    sorted_rows = np.argsort(picked, kind="stable")
    entries, starts = np.unique(picked[sorted_rows], return_index=True)
    for entry, (start, stop) in zip(entries, pairwise([*starts, picked.size]), strict=True):
        rows = sorted_rows[start:stop]
        result[rows] = x[source[rows]].astype(dtype, copy=False) @ matrices[entry].astype(
            dtype, copy=False
        )
    result = result.reshape(*shape(plan.rows), *outer)
    return align(result, (*plan.rows, *plan.outer), kind.axes)
