"""Partial evaluation of compile-time expressions over a config.

What is known is computed: config fields, locals, arithmetic, choices. What is not (names of
definitions, hyperparameters left at their default, calls) stays a syntax expression around the
known parts, for the elaborator to evaluate in the file's scope. An absent field is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from ...dsl import syntax as syn
from ...dsl.diagnostics import ArchError
from ...dsl.errors import ConfigChoice, ConfigValue, MissingConfig
from ...dsl.span import Span
from ..elaborate.numbers import NUMERIC, UNARY

Json = None | bool | int | float | str | list[Any] | dict[str, Any]
Value = Json | syn.Expr

_LITERALS: dict[str, Value] = {"none": None, "true": True, "false": False}


class Fold:
    """Evaluates expressions where `names` are known. Raises `ArchError`.

    `taken` collects every `a ?? b` that came out as b, with its value.
    """

    def __init__(self, names: Mapping[str, Value]) -> None:
        self.names = names
        self.taken: list[tuple[syn.Binary, Value]] = []

    def __call__(self, expr: syn.Expr) -> Value:
        rule = _RULES.get(type(expr))
        return rule(self, expr) if rule else self.rebuild(expr)

    def expr(self, expr: syn.Expr) -> syn.Expr:
        """The folded expression, as syntax."""
        return lift(self(expr), expr.span)

    def rebuild(self, node: Any) -> Any:
        """`node` with every expression in it folded; its own kind stays."""
        if isinstance(node, tuple):
            return tuple(self._part(item) for item in node)
        parts = {f.name: self._part(getattr(node, f.name)) for f in fields(node) if f.init}
        return replace(node, **parts)

    def _part(self, part: Any) -> Any:
        if isinstance(part, syn.Expr):
            return self.expr(part)
        return self.rebuild(part) if isinstance(part, syn.Node | tuple) else part

    def name(self, expr: syn.Name) -> Value:
        return self.names.get(expr.name, _LITERALS.get(expr.name, expr))

    def attribute(self, expr: syn.Attribute) -> Value:
        value = self(expr.value)
        if isinstance(value, syn.Expr):
            return replace(expr, value=value)
        return _field(value, expr.name, expr.span)

    def unary(self, expr: syn.Unary) -> Value:
        value = self(expr.operand)
        if isinstance(value, syn.Expr):
            return replace(expr, operand=value)
        if expr.op == "not":
            return not _truth(value, expr.operand)
        return -_number(value, expr.operand)  # type: ignore[no-any-return]

    def binary(self, expr: syn.Binary) -> Value:
        left = self(expr.left)
        if expr.op == "??":
            return self.default(expr) if left is None else left
        if expr.op in ("and", "or") and not isinstance(left, syn.Expr):
            decided = _truth(left, expr.left) == (expr.op == "or")
            return left if decided else self(expr.right)
        right = self(expr.right)
        if isinstance(left, syn.Expr) or isinstance(right, syn.Expr):
            left, right = lift(left, expr.left.span), lift(right, expr.right.span)
            return replace(expr, left=left, right=right)
        if expr.op in ("==", "!="):
            return (left == right) == (expr.op == "==")
        try:
            return NUMERIC[expr.op](_number(left, expr.left), _number(right, expr.right))  # type: ignore[no-any-return]
        except (ZeroDivisionError, OverflowError) as problem:
            raise ConfigValue(span=expr.span, reason=str(problem)) from None

    def default(self, expr: syn.Binary) -> Value:
        value = self(expr.right)
        self.taken.append((expr, value))
        return value

    def conditional(self, expr: syn.Conditional) -> Value:
        condition = self(expr.condition)
        if isinstance(condition, syn.Expr):
            return self.rebuild(expr)  # type: ignore[no-any-return]
        return self(expr.then if _truth(condition, expr.condition) else expr.otherwise)

    def items(self, expr: syn.ListExpr) -> Value:
        if expr.variable is None or expr.over is None:
            return self._listed(expr, [self(item) for item in expr.items])
        over = self(expr.over)
        if isinstance(over, syn.Expr):
            return self.rebuild(expr)  # type: ignore[no-any-return]
        each = range(over) if isinstance(over, int) else _sequence(over, expr.over)
        inner = [Fold({**self.names, expr.variable: item})(expr.items[0]) for item in each]
        return self._listed(expr, inner)

    def _listed(self, expr: syn.ListExpr, values: list[Value]) -> Value:
        if not any(isinstance(v, syn.Expr) for v in values):
            return values
        items = tuple(lift(v, expr.span) for v in values)
        return syn.ListExpr(span=expr.span, items=items)

    def index(self, expr: syn.Index) -> Value:
        item = expr.items[0]
        if len(expr.items) != 1 or not isinstance(item, syn.AxisRef) or item.value is None:
            return self.rebuild(expr)  # type: ignore[no-any-return]
        key = self(item.value)
        if isinstance(expr.value, syn.Table) and not isinstance(key, syn.Expr):
            return self._choose(expr.value, key, item.span)
        value = self(expr.value)
        if isinstance(value, syn.Expr) or isinstance(key, syn.Expr):
            value = lift(value, expr.value.span)
            return replace(
                expr, value=value, items=(replace(item, value=lift(key, item.span), name=None),)
            )
        if isinstance(key, str):
            return _field(value, key, expr.span)
        return _element(_sequence(value, expr.value), key, item.span)

    def call(self, expr: syn.Call) -> Value:
        """A rounding of a known number is known; other calls configure blocks and stay."""
        function, arguments = expr.function, expr.arguments
        name = function.name if isinstance(function, syn.Name) else ""
        if name not in WHOLE or len(arguments) != 1 or arguments[0].name is not None:
            return self.rebuild(expr)  # type: ignore[no-any-return]
        value = self(arguments[0].value)
        if isinstance(value, syn.Expr):
            return self.rebuild(expr)  # type: ignore[no-any-return]
        try:
            return UNARY[name](_number(value, arguments[0].value))  # type: ignore[no-any-return]
        except (ValueError, OverflowError) as problem:  # of an infinity
            raise ConfigValue(span=expr.span, reason=str(problem)) from None

    def _choose(self, table: syn.Table, key: Value, span: Span) -> Value:
        for name, entry in table.entries:
            if name == key:
                return self(entry)
        shown = show(key)
        raise ConfigChoice(span=span, value=shown, known=tuple(name for name, _ in table.entries))


WHOLE = ("ceil", "floor", "int", "round")

_RULES: dict[type[syn.Expr], Callable[[Fold, Any], Value]] = {
    syn.Name: Fold.name,
    syn.Number: lambda _, e: e.value,
    syn.String: lambda _, e: e.value,
    syn.Attribute: Fold.attribute,
    syn.Unary: Fold.unary,
    syn.Binary: Fold.binary,
    syn.Conditional: Fold.conditional,
    syn.ListExpr: Fold.items,
    syn.Index: Fold.index,
    syn.Call: Fold.call,
}


def lift(value: Value, span: Span) -> syn.Expr:
    """A value as the expression that writes it."""
    if isinstance(value, syn.Expr):
        return value
    if value is None or isinstance(value, bool):
        return syn.Name(span=span, name=show(value))
    if isinstance(value, str):
        return syn.String(span=span, value=value)
    if isinstance(value, list):
        return syn.ListExpr(span=span, items=tuple(lift(v, span) for v in value))
    if isinstance(value, int | float):
        number = syn.Number(span=span, value=abs(value), text=repr(abs(value)))
        return number if value >= 0 else syn.Unary(span=span, op="-", operand=number)
    raise ConfigValue(span=span, reason="a group of config fields is no value; name one of them")


def show(value: Any) -> str:
    """A JSON value as an .arch file writes it."""
    words = {None: "none", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, list):
        return "[" + ", ".join(map(show, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def chain(expr: syn.Expr) -> str | None:
    """`config.a.b` as text, none for any other expression."""
    if isinstance(expr, syn.Name):
        return expr.name
    if isinstance(expr, syn.Attribute):
        head = chain(expr.value)
        return None if head is None else f"{head}.{expr.name}"
    return None


def missing(expr: syn.Expr) -> ArchError:
    """The error for an expression that came out as none where a value is needed."""
    text = chain(expr)
    if text is not None and text.startswith("config."):
        return MissingConfig(span=expr.span, field=text.removeprefix("config."))
    return ConfigValue(span=expr.span, reason="this is none")


def _field(value: Value, name: str, span: Span) -> Value:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ConfigValue(span=span, reason=f"{show(value)} has no field `{name}`")
    return value.get(name)


def _element(items: list[Any], position: Value, span: Span) -> Value:
    if not isinstance(position, int) or not -len(items) <= position < len(items):
        raise ConfigValue(span=span, reason=f"{show(position)} is no index of {len(items)} items")
    return items[position]  # type: ignore[no-any-return]


def _sequence(value: Value, expr: syn.Expr) -> list[Any]:
    if value is None:
        raise missing(expr)
    if not isinstance(value, list):
        raise ConfigValue(span=expr.span, reason=f"{show(value)} is no list")
    return value


def _truth(value: Value, expr: syn.Expr) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ConfigValue(span=expr.span, reason=f"{show(value)} is neither true nor false")


def _number(value: Value, expr: syn.Expr) -> Any:
    if value is None:
        raise missing(expr)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigValue(span=expr.span, reason=f"{show(value)} is no number")
    return value
