"""`grouped` as a machine runs it: rows sorted by their index, one product for each matrix picked.

`compiler/ops/grouped.py` has the equation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ...compiler.ir.graph import Axis, Function
from ...compiler.ops import Array, align
from ...compiler.ops.grouped import plan_grouped
from ...dsl.errors import IndexOutOfRange
from ..base import span_of
from .interpreter import Interpreter


def grouped(interpreter: Interpreter, body: Function, operands: Sequence[Array]) -> Array:
    """The output of a grouped node's body. Raises IndexOutOfRange."""
    plan = plan_grouped(body)
    values = dict(zip(body.inputs, operands, strict=True))
    x, matrices, index = (values[n.id] for n in (plan.x, plan.matrices, plan.index))

    def shape(axes: Sequence[Axis]) -> tuple[int, ...]:
        return tuple(axis.size.evaluate(interpreter.sizes) for axis in axes)

    def for_each_row(value: Array, axes: Sequence[Axis]) -> Array:
        return np.broadcast_to(align(value, axes, plan.rows), shape(plan.rows)).ravel()

    (count,), inner, outer = (shape(a) for a in ((plan.entries,), plan.inner, plan.outer))
    outside = index[(index < 0) | (index >= count)]
    if outside.size:
        take = plan.take
        facts = {"axis": plan.entries.name, "index": int(outside[0]), "size": count}
        raise IndexOutOfRange(**facts, span=span_of(take), calls=take.spans[1:])
    picked = for_each_row(index, plan.index.axes)
    own = [axis for axis in plan.x.axes if axis not in plan.inner]
    source = for_each_row(np.arange(math.prod(shape(own))).reshape(shape(own)), own)  # rows of x
    features = math.prod(inner), math.prod(outer)
    x = align(x, plan.x.axes, (*own, *plan.inner)).reshape(-1, features[0])
    order = (plan.entries, *plan.inner, *plan.outer)
    matrices = align(matrices, plan.matrices.axes, order).reshape(count, *features)

    kind = plan.product.type
    precision = interpreter.shared.precision
    result = np.empty((picked.size, features[1]), precision.storage(kind.dtype))
    dtype = precision.compute(kind.dtype)
    sorted_rows = np.argsort(picked, kind="stable")
    entries, starts = np.unique(picked[sorted_rows], return_index=True)
    for entry, (start, stop) in zip(entries, pairwise([*starts, picked.size]), strict=True):
        rows = sorted_rows[start:stop]
        result[rows] = x[source[rows]].astype(dtype) @ matrices[entry].astype(dtype)
    result = result.reshape(*shape(plan.rows), *outer)
    return align(result, (*plan.rows, *plan.outer), kind.axes)
