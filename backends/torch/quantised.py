"""Quantised weights: codes and scales are buffers, and products read them as they are.

A value that `dequantise` made knows its codes. A product with it is `quantised_linear` where the
codes are rows of a matrix along the axis that is summed last, as in all of the library's blocks;
anything else reads the dequantised value. `compiler/ops/quantise.py` has the formulas.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace

from ...compiler.ir.graph import Axis, Node
from ...compiler.ops.quantise import Format
from ...compiler.ops.structure import replaced
from .layout import Group, Value, single
from .lowering import lowers
from .scope import Scope
from .source import expression, number


@lowers("quantise")
def quantise(scope: Scope, node: Node, w: Value) -> tuple[Value, ...]:
    form = Format.of(node.attrs)
    others = tuple(axis for axis in w.axes if axis != form.axis)
    rows = scope.full(w, (*others, form.axis)).expr
    helper = scope.module.helper("quantise")
    call = expression("{0}({1}, {2}, {3})", helper, rows, number(form.bits), number(form.group))
    hints = ["codes", "scales", "offsets"][: len(form.parts)]
    names = scope.assign_all(call, node, hints)
    return tuple(
        Value(name, kind.dtype, single((*others, part)))
        for name, kind, part in zip(names, node.types, form.parts, strict=True)
    )


@lowers("dequantise")
def dequantise(scope: Scope, node: Node, *operands: Value) -> Value:
    """The whole value, for readers that want it; nobody reads it where all are products."""
    form = Format.of(node.attrs)
    others = tuple(a for a in node.axes if a != form.axis and _has_any(operands, a))
    stored = tuple(
        scope.full(x, (*others, part)).expr for x, part in zip(operands, form.parts, strict=True)
    )
    call = _call(scope, "dequantise", (), stored, form)
    axes = (*others, form.axis)
    whole = Value(call, node.type.dtype, single(axes), weight=True)
    return replace(whole, quantised=(form, operands))


def _has_any(operands: Sequence[Value], axis: Axis) -> bool:
    return any(axis in x.axes for x in operands)


def _call(
    scope: Scope, name: str, first: Sequence[ast.expr], stored: Sequence[ast.expr], form: Format
) -> ast.expr:
    """A helper on codes, scales and offsets. The group and the length say where codes end."""
    helper = scope.module.helper(name)
    call = expression("{0}()", helper)
    assert isinstance(call, ast.Call)
    call.args = [*first, *stored]
    call.keywords = [
        ast.keyword("group", number(form.group)),
        ast.keyword("length", scope.size(form.axis)),
    ]
    return call


def product(
    scope: Scope, x: Value, rows: Sequence[Group], w: Value, outer: Group, inner: Group
) -> Value | None:
    """x[rows, inner] times a quantised w[outer, inner]; None where it is not stored so."""
    assert w.quantised is not None
    form, operands = w.quantised
    wanted = [(*outer, *inner)] if inner[-1:] == (form.axis,) and outer else []
    for part, stored in zip(form.parts, operands, strict=True):
        wanted.append(replaced(stored.axes, part, (form.axis,)))
    if len(wanted) <= len(operands) or len(set(wanted)) > 1:
        return None
    matrices = tuple(
        scope.arranged(stored, (outer, replaced(inner, form.axis, (part,)))).expr
        for part, stored in zip(form.parts, operands, strict=True)
    )
    left = scope.arranged(x, (*rows, inner)).expr
    scope.module.helper("dequantise")
    call = _call(scope, "quantised_linear", (left,), matrices, form)
    return Value(call, x.dtype, (*rows, outer))
