"""Compile-time arithmetic: sizes stay symbolic while they are whole, everything else is a number."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ...dsl import errors
from ...dsl.dims import Dim, ceildiv, maximum, minimum
from ...dsl.span import Span
from .values import Closure, PerLayer, Template

SYMBOLIC: dict[str, Callable[[Dim, Dim], Dim]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "min": minimum,
    "max": maximum,
}
NUMERIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "min": min,
    "max": max,
}
UNARY: dict[str, Callable[[float], Any]] = {
    "exp": math.exp,
    "log": math.log,
    "log1p": math.log1p,
    "log2": math.log2,
    "sqrt": math.sqrt,
    "rsqrt": lambda x: 1 / math.sqrt(x),
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
    "erf": math.erf,
    "abs": abs,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
    "to_int": int,
}


def binary(op: str, a: Any, b: Any, bindings: Mapping[str, int], span: Span) -> Any:
    """`a op b` for compile-time values, element by element when one differs per layer."""
    if isinstance(a, PerLayer) or isinstance(b, PerLayer):
        count = len(a.values if isinstance(a, PerLayer) else b.values)
        lefts = a.values if isinstance(a, PerLayer) else (a,) * count
        rights = b.values if isinstance(b, PerLayer) else (b,) * count
        pairs = zip(lefts, rights, strict=True)
        return PerLayer.of(tuple(binary(op, x, y, bindings, span) for x, y in pairs))
    if op in ("==", "!="):
        return same(a, b, bindings) == (op == "==")
    if op in ("and", "or"):
        left, right = boolean(a, span), boolean(b, span)
        return (left and right) if op == "and" else (left or right)
    if op == "+" and isinstance(a, list) and isinstance(b, list):
        return a + b
    return arithmetic(op, a, b, bindings, span)


def arithmetic(op: str, a: Any, b: Any, bindings: Mapping[str, int], span: Span) -> Any:
    for value in (a, b):
        if isinstance(value, bool) or not isinstance(value, Dim | float):
            raise errors.NotANumber(op=op, got=describe(value), span=span)
    try:
        if isinstance(a, Dim) and isinstance(b, Dim) and op in SYMBOLIC:
            return SYMBOLIC[op](a, b)
        return plain(NUMERIC[op](number(a, bindings, span), number(b, bindings, span)))
    except ZeroDivisionError:
        raise errors.DivisionByZero(span=span) from None
    except (OverflowError, ValueError):
        raise errors.NumberOutOfRange(op=op, span=span) from None


def unary(op: str, value: Any, bindings: Mapping[str, int], span: Span) -> Any:
    """A function of one compile-time number; `ceil`, `floor`, `round` and `int` give whole numbers."""
    if isinstance(value, PerLayer):
        return PerLayer.of(tuple(unary(op, v, bindings, span) for v in value.values))
    if op == "not":
        return not boolean(value, span)
    if isinstance(value, bool) or not isinstance(value, Dim | float):
        raise errors.NotANumber(op=op, got=describe(value), span=span)
    if op == "neg":
        return -value
    if op == "to_float":
        return float(number(value, bindings, span))
    if op not in UNARY:
        raise errors.NotANumber(op=op, got=describe(value), span=span)
    try:
        return plain(UNARY[op](number(value, bindings, span)))
    except (OverflowError, ValueError, ZeroDivisionError):
        raise errors.NumberOutOfRange(op=op, span=span) from None


def number(value: Any, bindings: Mapping[str, int], span: Span) -> int | float:
    """The plain number behind a compile-time value; a size only known at run time is refused."""
    if isinstance(value, float):
        return value
    if isinstance(value, Dim):
        try:
            return value.evaluate(bindings)
        except KeyError as missing:
            raise errors.RunTimeSize(axis=missing.args[0], span=span) from None
    raise errors.NotANumber(op="this", got=describe(value), span=span)


def plain(value: Any) -> Any:
    """Integers become `Dim`, the rest stays."""
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return Dim.of(value)


def boolean(value: Any, span: Span) -> bool:
    if isinstance(value, bool):
        return value
    raise errors.NotACondition(got=describe(value), span=span)


def same(a: Any, b: Any, bindings: Mapping[str, int]) -> bool:
    """Equality under the bindings; values of different kinds differ."""
    left = a.substitute(bindings) if isinstance(a, Dim) else a
    right = b.substitute(bindings) if isinstance(b, Dim) else b
    if isinstance(left, Dim) and isinstance(right, float):
        return left.constant == right
    if isinstance(right, Dim) and isinstance(left, float):
        return right.constant == left
    return type(left) is type(right) and bool(left == right)


def describe(value: Any) -> str:
    """A compile-time value in words, for messages."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Dim | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f'the string "{value}"'
    if isinstance(value, Template):
        return f"the {value.definition.kind} `{value.name}`"
    if isinstance(value, Closure):
        return "a lambda"
    return f"a {type(value).__name__.lower()}"


__all__ = ["binary", "boolean", "ceildiv", "describe", "number", "same", "unary"]
