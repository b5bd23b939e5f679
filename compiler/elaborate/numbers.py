"""Compile-time arithmetic: sizes stay symbolic while they are whole, all else is a number."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ...dsl import errors
from ...dsl.dims import Dim, maximum, minimum
from ...dsl.span import Span
from .labels import AxisSize
from .values import Bank, Builtin, Closure, Instance, PerLayer, Template, Tensor, each_layer

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
    "int": int,
    "float": float,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)),
}


LARGEST = 2**63 - 1  # as for numbers that are written out
MOST_FACTORS = 200  # of a symbolic size; real ones have a dozen


def binary(op: str, a: Any, b: Any, bindings: Mapping[str, int], span: Span) -> Any:
    """`a op b` for compile-time values, element by element when one differs per layer."""
    if isinstance(a, PerLayer) or isinstance(b, PerLayer):
        return each_layer(lambda x, y: binary(op, x, y, bindings, span), a, b)
    if op in ("==", "!="):
        return same(a, b, bindings) == (op == "==")
    if op in ("and", "or"):
        left, right = boolean(a, span), boolean(b, span)
        return (left and right) if op == "and" else (left or right)
    return arithmetic(op, a, b, bindings, span)


def arithmetic(op: str, a: Any, b: Any, bindings: Mapping[str, int], span: Span) -> Any:
    """Sizes stay symbolic under the operations that `Dim` has; all else is plain arithmetic."""
    for value in (a, b):
        if isinstance(value, bool) or not isinstance(value, Dim | float):
            raise errors.NotANumber(op=op, got=describe(value), span=span)
    if isinstance(a, Dim) and isinstance(b, Dim) and op in SYMBOLIC:
        if op in ("//", "%") and b.substitute(bindings).constant == 0:
            raise errors.DivisionByZero(span=span)
        return _limited(op, SYMBOLIC[op](a, b), bindings, span)
    left, right = number(a, bindings, span), number(b, bindings, span)
    is_power = op == "**" and isinstance(left, int) and isinstance(right, int)
    if is_power and right * int(left).bit_length() > 2 * LARGEST.bit_length():
        raise errors.NumberOutOfRange(op=op, span=span)
    return _limited(op, _calculated(op, NUMERIC[op], (left, right), span), bindings, span)


def _calculated(
    op: str, function: Callable[..., Any], operands: tuple[int | float, ...], span: Span
) -> Any:
    try:
        value = function(*operands)
    except ZeroDivisionError:
        raise errors.DivisionByZero(span=span) from None
    except (OverflowError, ValueError):
        raise errors.NumberOutOfRange(op=op, span=span) from None
    if isinstance(value, complex):
        raise errors.NumberOutOfRange(op=op, span=span)
    return Dim.of(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _limited(op: str, value: Any, bindings: Mapping[str, int], span: Span) -> Any:
    """A whole number must fit in 64 bits, and a symbolic size must not grow without end."""
    if isinstance(value, Dim):
        if _factors(value) > MOST_FACTORS:
            raise errors.NumberOutOfRange(op=op, span=span)
        whole = value.substitute(bindings).constant
        if whole is not None and abs(whole) > LARGEST:
            raise errors.NumberOutOfRange(op=op, span=span)
    return value


def _factors(size: Dim) -> int:
    inside = (arg for monomial, _ in size.terms for atom in monomial for arg in atom.args)
    own = sum(len(monomial) + 1 for monomial, _ in size.terms)
    return own + sum(_factors(arg) for arg in inside)


def unary(op: str, value: Any, bindings: Mapping[str, int], span: Span) -> Any:
    """A function of one number; `ceil`, `floor`, `round` and `int` give whole numbers."""
    if isinstance(value, PerLayer):
        return each_layer(lambda v: unary(op, v, bindings, span), value)
    if op == "not":
        return not boolean(value, span)
    if isinstance(value, bool) or not isinstance(value, Dim | float):
        raise errors.NotANumber(op=op, got=describe(value), span=span)
    if op == "-":
        return -value
    plain = number(value, bindings, span)
    return _limited(op, _calculated(op, UNARY[op], (plain,), span), bindings, span)


def number(value: Any, bindings: Mapping[str, int], span: Span) -> int | float:
    """The plain number behind a value; a size only known at run time is refused."""
    if isinstance(value, float):
        return value
    if isinstance(value, Dim):
        try:
            return value.evaluate(bindings)
        except KeyError as missing:
            raise errors.RunTimeSize(axis=missing.args[0], span=span) from None
    raise errors.NotASize(got=describe(value), span=span)


def whole(value: Any, bindings: Mapping[str, int], span: Span) -> int:
    """The plain number behind a compile-time size."""
    found = number(value, bindings, span)
    if isinstance(found, float):
        raise errors.NotWhole(got=str(found), span=span)
    return found


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


KINDS: dict[type, str] = {
    Tensor: "a tensor",
    Closure: "a lambda",
    Bank: "a bank",
    Instance: "a shared block",
    PerLayer: "a value that differs per layer",
    list: "a list",
    dict: "a table",
    tuple: "several results",
}


def describe(value: Any) -> str:
    """A value in words, for messages."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, AxisSize):
        value = value.size
    if isinstance(value, Dim | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f'the string "{value}"'
    if isinstance(value, Template):
        return f"the {value.definition.kind} `{value.name}`"
    if isinstance(value, Builtin):
        return f"the function `{value.name}`"
    return KINDS.get(type(value), f"a Python {type(value).__name__}")
