"""Which keys a score can see: proved bounds on key slot minus query slot.

An abstract interpretation. For a bool it finds an interval that j - i must lie in where the value
is true (and one for false); for a score, where it may be other than -inf. An end that is not
proved is None, so nothing is ever skipped by mistake. Assumed: values that are masked away are
finite.

With a `prefix`, the number of keys that any query may see, the interval is of the keys behind it:
what needs j < prefix is nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ...dsl.dims import Dim, maximum, minimum
from ..ir.graph import Axis, Node
from ..rewrite import Edit
from .properties import VIEWS, constant

ZERO, ONE = Dim(), Dim.of(1)


@dataclass(frozen=True, slots=True)
class Interval:
    """-lower <= j - i <= upper; None is no bound. `empty` is no j at all."""

    lower: Dim | None = None
    upper: Dim | None = None
    empty: bool = False

    def meet(self, other: Interval) -> Interval:
        if self.empty or other.empty:
            return NOWHERE
        return Interval(_tighter(self.lower, other.lower), _tighter(self.upper, other.upper))

    def join(self, other: Interval) -> Interval:
        if self.empty or other.empty:
            return other if self.empty else self
        return Interval(_looser(self.lower, other.lower), _looser(self.upper, other.upper))


EVERYWHERE, NOWHERE = Interval(), Interval(empty=True)


def _tighter(a: Dim | None, b: Dim | None) -> Dim | None:
    if a is None or b is None:
        return b if a is None else a
    return minimum(a, b)


def _looser(a: Dim | None, b: Dim | None) -> Dim | None:
    return None if a is None or b is None else maximum(a, b)


@dataclass(frozen=True, slots=True)
class Slot:
    """An integer value: sum of slot indices floor-divided by `divisor`, times signs, plus `offset`.

    `keys` and `queries` count how often each index occurs, `prefixes` the length of the prefix.
    """

    keys: int = 0
    queries: int = 0
    offset: Dim = ZERO
    divisor: Dim = ONE
    prefixes: int = 0


@dataclass(frozen=True, slots=True)
class Visibility:
    """The analysis for one pair of time axes of a function: `key` is j's, `query` is i's.

    None is an axis that the value at hand has lost: above a rename its entries are another's.

    `prefix` are the nodes that are the length of the prefix; with any, only keys j >= prefix count.
    """

    edit: Edit
    key: Axis | None
    query: Axis | None
    prefix: frozenset[int] = frozenset()

    def seen(self, node_id: int) -> Interval:
        """Where a score may differ from -inf."""
        node = self.edit[node_id]
        rule = SCORES.get(node.op)
        if node.op in ("cast", "stop_gradient"):
            return self.seen(node.inputs[0])
        if (above := self._above(node)) is not None:
            return above.seen(node.inputs[0])
        return rule(self, node) if rule else EVERYWHERE

    def support(self, node: Node) -> Interval:
        """Where what a reduction along `key` reads is not neutral."""
        if node.op in ("softmax", "amax", "topk"):
            return self.seen(node.inputs[0])
        found = EVERYWHERE
        for operand in node.inputs:
            found = found.meet(self.nonzero(operand))
        return found

    def nonzero(self, node_id: int) -> Interval:
        """Where a value may differ from zero."""
        node = self.edit[node_id]
        if node.op == "softmax" and node.attrs.axis("axis") == self.key:
            return self.seen(node.inputs[0])
        if node.type.dtype == "bool":
            return self.when(node_id, True)
        if node.op in ("cast", "to_float", "stop_gradient", "div", "neg"):
            return self.nonzero(node.inputs[0])
        if (above := self._above(node)) is not None:
            return above.nonzero(node.inputs[0])
        if node.op in ("add", "sub", "mul"):
            a, b = map(self.nonzero, node.inputs)
            return a.meet(b) if node.op == "mul" else a.join(b)
        if node.op == "where":
            condition, yes, no = node.inputs
            taken = self.when(condition, True).meet(self.nonzero(yes))
            return taken.join(self.when(condition, False).meet(self.nonzero(no)))
        return NOWHERE if constant(node) == 0 else EVERYWHERE

    def when(self, node_id: int, truth: bool) -> Interval:
        """Where a bool may be `truth`."""
        node = self.edit[node_id]
        value = constant(node)
        if isinstance(value, bool):
            return EVERYWHERE if value == truth else NOWHERE
        if (above := self._above(node)) is not None:
            return above.when(node.inputs[0], truth)
        if node.op == "not":
            return self.when(node.inputs[0], not truth)
        if node.op in ("min", "max"):
            sides = [self.when(i, truth) for i in node.inputs]
            both = (node.op == "min") == truth
            return sides[0].meet(sides[1]) if both else sides[0].join(sides[1])
        return self._compared(node, truth)

    def _compared(self, node: Node, truth: bool) -> Interval:
        """le, lt, eq of two slots: a <= b means a - b <= 0, and not a <= b means b - a <= -1."""
        if node.op not in ("le", "lt", "eq"):
            return EVERYWHERE
        a, b = (self.slot(i) for i in node.inputs)
        if a is None or b is None:
            return EVERYWHERE
        at_most = self._behind if a.prefixes != b.prefixes else _at_most
        if node.op == "eq":
            return at_most(a, b, 0).meet(at_most(b, a, 0)) if truth else EVERYWHERE
        strict = node.op == "lt"
        return at_most(a, b, -1 if strict else 0) if truth else at_most(b, a, 0 if strict else -1)

    def _behind(self, a: Slot, b: Slot, limit: int) -> Interval:
        """Behind the prefix j - prefix is never negative: a bound below 0 holds nowhere."""
        gap = (a.keys - b.keys, a.queries - b.queries, a.prefixes - b.prefixes)
        slack = (b.offset - a.offset + limit).substitute(self.edit.program.sizes).constant
        plain = gap == (1, 0, -1) and a.divisor == b.divisor == ONE
        return NOWHERE if plain and slack is not None and slack < 0 else EVERYWHERE

    def slot(self, node_id: int) -> Slot | None:
        """An int value as an affine form of the two slots and the length of the prefix."""
        if node_id in self.prefix:
            return Slot(prefixes=1)
        node = self.edit[node_id]
        value = constant(node)
        if isinstance(value, int | Dim) and not isinstance(value, bool):
            return Slot(offset=Dim.of(value))
        if node.op == "index":
            axis = node.attrs.axis("axis")
            return {self.key: Slot(keys=1), self.query: Slot(queries=1)}.get(axis)
        if (above := self._above(node)) is not None:
            return above.slot(node.inputs[0])
        if node.op not in ("add", "sub", "floordiv"):
            return None
        a, b = (self.slot(i) for i in node.inputs)
        return None if a is None or b is None else FORMS[node.op](a, b)

    def _above(self, node: Node) -> Visibility | None:
        """The analysis of a view's operand, whose entries at j and i the view has at j and i.

        A view along the prefix's own axes, its rows, has the prefix of other rows.
        """
        if node.op not in VIEWS:
            return None
        if node.op == "broadcast":
            return self
        (x,) = self.edit.operands(node)
        pairs = node.attrs.pairs("pairs") if node.op == "rename" else ()
        was: dict[Axis | None, Axis | None] = {**dict.fromkeys(a for a, _ in pairs)}
        was |= {new: old for old, new in pairs}
        changed = set(x.axes) ^ set(node.axes)
        if (changed - was.keys()) & {self.key, self.query}:
            return None
        rows = {a for i in self.prefix for a in self.edit[i].axes}
        prefix = frozenset[int]() if rows & (changed | was.keys()) else self.prefix
        key, query = was.get(self.key, self.key), was.get(self.query, self.query)
        return Visibility(self.edit, key, query, prefix)


def _sum(a: Slot, b: Slot, sign: int = 1) -> Slot | None:
    if a.divisor != ONE or b.divisor != ONE:
        return None
    return Slot(
        a.keys + sign * b.keys,
        a.queries + sign * b.queries,
        a.offset + b.offset * sign,
        prefixes=a.prefixes + sign * b.prefixes,
    )


def _quotient(a: Slot, b: Slot) -> Slot | None:
    if b.keys or b.queries or a.prefixes or b.prefixes or a.divisor != ONE:
        return None
    return Slot(a.keys, a.queries, a.offset, b.offset)


FORMS: dict[str, Callable[[Slot, Slot], Slot | None]] = {
    "add": _sum,
    "sub": partial(_sum, sign=-1),
    "floordiv": _quotient,
}


def _at_most(a: Slot, b: Slot, limit: int) -> Interval:
    """The bound on j - i that a - b <= limit proves."""
    if a.divisor != b.divisor:
        return EVERYWHERE
    keys, queries = a.keys - b.keys, a.queries - b.queries
    slack = b.offset - a.offset + limit
    if a.divisor != ONE:
        # floor(x / c) - floor(y / c) <= n gives x - y <= n*c + c - 1
        slack = b.offset - a.offset + a.divisor * limit + a.divisor - 1
        if abs(a.keys) + abs(a.queries) != 1 or abs(b.keys) + abs(b.queries) != 1:
            return EVERYWHERE
    if (keys, queries) == (1, -1):
        return Interval(upper=slack)
    if (keys, queries) == (-1, 1):
        return Interval(lower=slack)
    return EVERYWHERE


def _chosen(sight: Visibility, node: Node) -> Interval:
    condition, yes, no = node.inputs
    taken = sight.when(condition, True).meet(sight.seen(yes))
    return taken.join(sight.when(condition, False).meet(sight.seen(no)))


def _both(sight: Visibility, node: Node) -> Interval:
    """-inf in either operand is -inf in the result."""
    return sight.seen(node.inputs[0]).meet(sight.seen(node.inputs[1]))


def _either(sight: Visibility, node: Node) -> Interval:
    return sight.seen(node.inputs[0]).join(sight.seen(node.inputs[1]))


def _left(sight: Visibility, node: Node) -> Interval:
    return sight.seen(node.inputs[0])


def _scaled(sight: Visibility, node: Node) -> Interval:
    """-inf keeps its sign under a positive factor."""
    factor = constant(sight.edit[node.inputs[1]])
    positive = isinstance(factor, int | float) and factor > 0
    return sight.seen(node.inputs[0]) if positive else EVERYWHERE


def _literal(sight: Visibility, node: Node) -> Interval:
    return NOWHERE if constant(node) == float("-inf") else EVERYWHERE


SCORES: dict[str, Callable[[Visibility, Node], Interval]] = {
    "where": _chosen,
    "add": _both,
    "min": _both,
    "max": _either,
    "sub": _left,
    "mul": _scaled,
    "div": _scaled,
    "const": _literal,
}
