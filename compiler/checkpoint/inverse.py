"""Config lines turned round: from hyperparameter values to the config that says them.

`ways(expr, value)` yields the fields that make `expr` come out as `value`: a path is given the
value, a table gives back its word, a condition adds what makes it hold. A line has few ways and
lines must agree, so a search in order finds the config. What has no way (arithmetic on a field) is
left out and named. Nothing rests on this alone: an export reads its config back and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...dsl import syntax as syn
from ...dsl.diagnostics import ArchError
from .config import Path, Present, config_lines
from .fold import Fold, Value

Fields = dict[Path, Value]


@dataclass(frozen=True, slots=True)
class Derived:
    """A config, and the hyperparameters whose lines cannot be turned round for their values."""

    config: dict[str, Any]
    unsaid: tuple[str, ...] = ()


def values_of(hypers: Mapping[str, syn.Assign], overrides: Mapping[str, Any]) -> dict[str, Value]:
    """Every hyperparameter's value, folded as far as numbers, words and lists go."""
    values: dict[str, Value] = {}
    for name, statement in hypers.items():
        given = overrides.get(name, statement.value)
        values[name] = Fold(values)(given) if isinstance(given, syn.Expr) else given
    return values


def config_of(
    checkpoint: syn.CheckpointDef,
    values: Mapping[str, Value],
    class_name: str | None = None,
    tensors: Collection[str] | None = None,
) -> Derived:
    """The config for which the lines of `checkpoint` give the hyperparameters `values`.

    `class_name` is one of the block's, else its first; `tensors` are the names to be written.
    """
    lines = tuple(config_lines(checkpoint.lines))
    named = {line.name: line.value for line in lines if isinstance(line, syn.ConfigLine)}
    chosen = class_name or checkpoint.class_names[0]
    known = {**values, "tensors": None if tensors is None else Present(tensors)}
    inverse = Inverse(known, {n: e for n, e in named.items() if n not in values}, chosen)
    goals: list[tuple[str, syn.Expr, Value]] = [
        (name, expr, values[name]) for name, expr in named.items() if name in values
    ]
    goals += [("", line.condition, True) for line in lines if isinstance(line, syn.RequireLine)]
    unsaid = tuple(n for n, expr, value in goals if n and not inverse.possible(expr, value))
    solvable = [(e, v) for n, e, v in goals if n not in unsaid and inverse.possible(e, v)]
    found = next(inverse.all_of(solvable, {}), None)
    if found is None:
        return Derived({}, tuple(name for name, _, _ in goals if name))
    return Derived(_nested(chosen, found), unsaid)


class _Absent:
    """The value of a field that must not be there."""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Any = _Absent()


@dataclass(frozen=True, slots=True)
class Inverse:
    """Solves for config fields where hyperparameters are `values` and `named` are the locals."""

    values: Mapping[str, Value]
    named: Mapping[str, syn.Expr]
    class_name: str

    def possible(self, expr: syn.Expr, value: Value) -> bool:
        return next(self.ways(expr, value), None) is not None

    def all_of(self, goals: Sequence[tuple[syn.Expr, Value]], fields: Fields) -> Iterator[Fields]:
        """Fields that reach every goal at once."""
        if not goals:
            yield fields
            return
        (expr, value), *rest = goals
        for way in self.ways(expr, value):
            joint = _joined(fields, way)
            if joint is not None:
                yield from self.all_of(rest, joint)

    def ways(self, expr: syn.Expr, value: Value) -> Iterator[Fields]:
        if isinstance(expr, syn.Name) and expr.name in self.named:
            yield from self.ways(self.named[expr.name], value)
        elif not self.reads_config(expr):
            if _same(self.constant(expr), value):
                yield {}
        else:
            path = self.path(expr)
            rule = _RULES.get(type(expr))
            if path is not None and not isinstance(expr, syn.Binary):
                if not isinstance(value, syn.Expr):
                    yield {path: value}
            elif rule is not None:
                yield from rule(self, expr, value)

    def reads_config(self, expr: syn.Expr) -> bool:
        names = {node.name for node in syn.walk(expr) if isinstance(node, syn.Name)}
        return "config" in names or any(
            self.reads_config(self.named[name]) for name in names if name in self.named
        )

    def constant(self, expr: syn.Expr) -> Value:
        """The value of an expression without config fields; of a mistake, the expression."""
        known = dict(self.values)
        for name, local in self.named.items():
            if not self.reads_config(local):
                known[name] = self.constant(local)
        try:
            return Fold(known)(expr)
        except ArchError:
            return expr

    def path(self, expr: syn.Expr) -> Path | None:
        """The field that `expr` reads first."""
        if isinstance(expr, syn.Name):
            local = self.named.get(expr.name)
            return () if expr.name == "config" else self.path(local) if local else None
        if isinstance(expr, syn.Binary) and expr.op == "??":
            return self.path(expr.left)
        if isinstance(expr, syn.Attribute):
            lead = self.path(expr.value)
            return None if lead is None else (*lead, expr.name)
        return None

    # ------------------------------------------------------------------- one rule a construct

    def default(self, expr: syn.Binary, value: Value) -> Iterator[Fields]:
        if expr.op != "??":
            yield from self.condition(expr, value)
            return
        if not self.reads_config(expr.left):
            known = self.constant(expr.left)
            yield from (
                self.ways(expr.right, value) if known is None else self.ways(expr.left, value)
            )
            return
        left = tuple(self.ways(expr.left, value))
        path = self.path(expr.left)
        if left or path is None:
            yield from left
            return
        for way in self.ways(expr.right, value):
            joint = _joined(way, {path: ABSENT})
            if joint is not None:
                yield joint

    def condition(self, expr: syn.Binary, value: Value) -> Iterator[Fields]:
        if not isinstance(value, bool):
            return
        if expr.op in ("==", "!="):
            yield from self.equality(expr, value == (expr.op == "=="))
        elif expr.op in ("and", "or"):
            if value == (expr.op == "and"):
                yield from self.all_of(((expr.left, value), (expr.right, value)), {})
            else:
                yield from self.ways(expr.left, value)
                yield from self.ways(expr.right, value)

    def equality(self, expr: syn.Binary, wanted: bool) -> Iterator[Fields]:
        """What makes both sides equal. What makes them differ is anything, and left to the rest."""
        sides = (expr.left, expr.right), (expr.right, expr.left)
        for asked, given in sides:
            if self.reads_config(asked) and not self.reads_config(given):
                if wanted:
                    yield from self.ways(asked, self.constant(given))
                else:
                    yield {}
                return

    def negation(self, expr: syn.Unary, value: Value) -> Iterator[Fields]:
        if expr.op == "not" and isinstance(value, bool):
            yield from self.ways(expr.operand, not value)

    def choice(self, expr: syn.Index, value: Value) -> Iterator[Fields]:
        item = expr.items[0]
        if not isinstance(item, syn.AxisRef) or item.value is None:
            return
        if isinstance(expr.value, syn.Table):
            for word, entry in expr.value.entries:
                if _same(self.constant(entry), value):
                    yield from self.ways(item.value, word)
        elif self.path(expr.value) == ("architectures",) and _same(self.class_name, value):
            yield {}

    def conditional(self, expr: syn.Conditional, value: Value) -> Iterator[Fields]:
        for branch, holds in ((expr.then, True), (expr.otherwise, False)):
            yield from self.all_of(((expr.condition, holds), (branch, value)), {})

    def call(self, expr: syn.Call, value: Value) -> Iterator[Fields]:
        if not isinstance(value, syn.Call) or expr.function != value.function:
            return
        asked, given = expr.arguments, value.arguments
        if [a.name for a in asked] == [a.name for a in given]:
            pairs = zip(asked, given, strict=True)
            yield from self.all_of([(a.value, self.constant(g.value)) for a, g in pairs], {})


_RULES: dict[type[syn.Expr], Callable[[Inverse, Any, Value], Iterator[Fields]]] = {
    syn.Binary: Inverse.default,
    syn.Unary: Inverse.negation,
    syn.Index: Inverse.choice,
    syn.Conditional: Inverse.conditional,
    syn.Call: Inverse.call,
}


def _same(a: Value, b: Value) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _joined(a: Fields, b: Fields) -> Fields | None:
    if any(not _same(a[path], b[path]) for path in a.keys() & b.keys()):
        return None
    return {**a, **b}


def _nested(class_name: str, fields: Fields) -> dict[str, Any]:
    """The fields as a config. A field that is none is written where it stands alone: there its
    absence may have another default."""
    config: dict[str, Any] = {"architectures": [class_name]}
    for path, value in fields.items():
        if value is ABSENT or (value is None and len(path) > 1):
            continue
        group = config
        for name in path[:-1]:
            group = group.setdefault(name, {})
        group[path[-1]] = value
    return config
