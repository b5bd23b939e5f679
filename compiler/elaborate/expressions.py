"""Expressions: a table from syntax class to meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...dsl import errors, syntax
from ...dsl.dims import Dim
from ...dsl.span import Span
from . import binding, brackets, calls, instances, numbers
from .body import Body
from .labels import AxisSize
from .values import Bank, Closure, Instance, PerLayer, Tensor, each_layer

POINTWISE: dict[str, str] = {
    "+": "add",
    "-": "sub",
    "*": "mul",
    "/": "div",
    "//": "floordiv",
    "%": "mod",
    "**": "pow",
    "==": "eq",
    "<": "lt",
    "<=": "le",
    "and": "min",
    "or": "max",
}
SWAPPED: dict[str, str] = {">": "lt", ">=": "le"}


def evaluate(body: Body, expr: syntax.Expr) -> Any:
    """The value of an expression. A size that is also an axis comes out as a plain size."""
    value = argument(body, expr)
    return body.size(value, expr.span) if isinstance(value, AxisSize) else value


def argument(body: Body, expr: syntax.Expr) -> Any:
    """Like `evaluate`, but a bare name keeps the axis it stands for."""
    body.session.spend(1, expr.span)
    with body.at(expr.span):
        value = MEANING[type(expr)](body, expr)
    body.session.watch(expr, value)
    return value


def tensor(body: Body, expr: syntax.Expr) -> Tensor:
    return as_tensor(body, evaluate(body, expr), expr.span)


def as_tensor(body: Body, value: Any, span: Span) -> Tensor:
    """A run-time value; a number becomes a 0-d constant."""
    if isinstance(value, AxisSize):
        value = body.size(value, span)
    if isinstance(value, Tensor):
        return value
    if isinstance(value, bool | float | Dim | PerLayer):
        return body.emitter.number(value)
    raise errors.NotATensor(got=numbers.describe(value), span=span)


def condition(body: Body, expr: syntax.Expr) -> bool:
    """A compile-time condition."""
    value = body.settled(evaluate(body, expr))
    if isinstance(value, Tensor):
        raise errors.RunTimeCondition(span=expr.span)
    return numbers.boolean(value, expr.span)


def _name(body: Body, expr: syntax.Name) -> Any:
    value = body.lookup(expr.name, expr.span)
    home = body.environment.find(expr.name)
    if isinstance(value, Dim) and home is not None:
        return AxisSize(value, body.axis_label(expr.name))
    if isinstance(value, Tensor) and home is not body.environment:
        return binding.captured(body, value)
    return value


def _number(_: Body, expr: syntax.Number) -> Dim | float:
    return Dim.of(expr.value) if isinstance(expr.value, int) else expr.value


def _string(_: Body, expr: syntax.String) -> str:
    return expr.value


def _list(body: Body, expr: syntax.ListExpr) -> list[Any]:
    if expr.variable is None or expr.over is None:
        return [evaluate(body, item) for item in expr.items]
    found = []
    for item in _items(body, expr.over):
        inner = body.nested()
        inner.environment.values[expr.variable] = item
        found.append(evaluate(inner, expr.items[0]))
    return found


def _items(body: Body, over: syntax.Expr) -> list[Any]:
    """What a comprehension runs over: a list, or 0, 1, .. up to a number."""
    value = body.settled(evaluate(body, over))
    if isinstance(value, list):
        return value
    if not isinstance(value, Dim | float):
        raise errors.NotAList(got=numbers.describe(value), span=over.span)
    count = max(numbers.whole(value, body.bindings, over.span), 0)
    body.session.spend(count, over.span)
    return [Dim.of(i) for i in range(count)]


def _table(body: Body, expr: syntax.Table) -> dict[str, Any]:
    return {key: evaluate(body, value) for key, value in expr.entries}


def _unary(body: Body, expr: syntax.Unary) -> Any:
    value = evaluate(body, expr.operand)
    if not isinstance(value, Tensor):
        return numbers.unary(expr.op, value, body.bindings, expr.span)
    if expr.op == "-":
        return body.emitter.pointwise("mul", [value, Dim.of(-1)], expr.span)
    _must_be_true_or_false(value, expr.span)
    return body.emitter.pointwise("not", [value], expr.span)


def _must_be_true_or_false(value: Any, span: Span) -> None:
    if not isinstance(value, bool) and not (isinstance(value, Tensor) and value.dtype == "bool"):
        raise errors.NotABoolTensor(got=brackets.kind_of(value), span=span)


def _binary(body: Body, expr: syntax.Binary) -> Any:
    left = evaluate(body, expr.left)
    if expr.op == "??":
        return _default(body, left, expr)
    if expr.op in ("and", "or") and isinstance(left, bool) and left == (expr.op == "or"):
        return left
    right = evaluate(body, expr.right)
    # whether a value is given at all is known at compile time, for tensors too
    if expr.op in ("==", "!=") and (left is None or right is None):
        return each_layer(lambda x, y: (x is y) == (expr.op == "=="), left, right)
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return tensor_binary(body, expr.op, left, right, expr.span)
    if expr.op == "+" and isinstance(left, list) and isinstance(right, list):
        body.session.spend(len(left) + len(right), expr.span)
        return left + right
    return numbers.binary(expr.op, left, right, body.bindings, expr.span)


def _default(body: Body, left: Any, expr: syntax.Binary) -> Any:
    if isinstance(left, PerLayer) and None in left.values:
        left = body.settled(left)
    return left if left is not None else argument(body, expr.right)


def tensor_binary(body: Body, op: str, left: Any, right: Any, span: Span) -> Tensor:
    """A binary operator with at least one run-time operand."""
    if op in ("and", "or"):
        left, right = body.settled(left), body.settled(right)
        for value in (left, right):
            _must_be_true_or_false(value, span)
        if isinstance(right, bool):
            return left if right == (op == "and") else body.emitter.number(right)
    if op in SWAPPED:
        return body.emitter.pointwise(SWAPPED[op], [right, left], span)
    if op == "!=":
        equal = body.emitter.pointwise("eq", [left, right], span)
        return body.emitter.pointwise("not", [equal], span)
    return body.emitter.pointwise(POINTWISE[op], [left, right], span)


def _conditional(body: Body, expr: syntax.Conditional) -> Any:
    chosen = expr.then if condition(body, expr.condition) else expr.otherwise
    return argument(body, chosen)


def _choice(body: Body, expr: syntax.Choice) -> Any:
    return evaluate(body, expr.options[0])


def _lambda(body: Body, expr: syntax.Lambda) -> Closure:
    return Closure(expr, body.frame, body.environment, body.library)


def _attribute(body: Body, expr: syntax.Attribute) -> Any:
    path = [expr.name]
    owner_text = expr.value
    while isinstance(owner_text, syntax.Attribute):
        path.insert(0, owner_text.name)
        owner_text = owner_text.value
    owner = body.settled(evaluate(body, owner_text))
    if not isinstance(owner, Instance):
        raise errors.NoAttribute(got=numbers.describe(owner), name=path[0], span=expr.span)
    return instances.weight(body, owner, ".".join(path), expr.span)


def _index(body: Body, expr: syntax.Index) -> Any:
    owner = evaluate(body, expr.value)
    if isinstance(owner, Tensor):
        return brackets.index_tensor(body, owner, expr)
    item = expr.items[0]
    if len(expr.items) != 1 or not isinstance(item, syntax.AxisRef) or item.value is None:
        raise errors.NotIndexable(got=numbers.describe(owner), span=expr.span)
    key = evaluate(body, item.value)
    if isinstance(owner, Bank):
        return instances.entry(body, owner, key, item.span)
    return each_layer(lambda o, k: _entry(body, o, k, expr, item.span), owner, key)


def _entry(body: Body, owner: Any, key: Any, expr: syntax.Index, span: Span) -> Any:
    """`kinds[i]`, `{"silu": silu}["silu"]`."""
    if isinstance(owner, dict) and isinstance(key, str):
        if key not in owner:
            raise errors.NoEntry(key=key, known=tuple(owner), span=span)
        return owner[key]
    if isinstance(owner, list) and isinstance(key, Dim):
        position = numbers.whole(key, body.bindings, span)
        if not -len(owner) <= position < len(owner):
            raise errors.ListIndex(index=position, length=len(owner), span=span)
        return owner[position]
    raise errors.NotIndexable(got=numbers.describe(owner), span=expr.span)


def _call(body: Body, expr: syntax.Call) -> Any:
    return calls.direct_call(body, expr)


def _pipeline(body: Body, expr: syntax.Pipeline) -> Any:
    value = evaluate(body, expr.value)
    for stage in expr.stages:
        with body.at(stage.span):
            value = calls.stage(body, value, stage)
        body.session.watch(stage, value)
    return value


MEANING: dict[type[syntax.Expr], Callable[[Body, Any], Any]] = {
    syntax.Name: _name,
    syntax.Number: _number,
    syntax.String: _string,
    syntax.ListExpr: _list,
    syntax.Table: _table,
    syntax.Unary: _unary,
    syntax.Binary: _binary,
    syntax.Conditional: _conditional,
    syntax.Choice: _choice,
    syntax.Lambda: _lambda,
    syntax.Attribute: _attribute,
    syntax.Index: _index,
    syntax.Call: _call,
    syntax.Pipeline: _pipeline,
}

__all__ = ["argument", "as_tensor", "condition", "evaluate", "tensor", "tensor_binary"]
