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
from dataclasses import dataclass, replace
from functools import partial, reduce

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
    """An integer: slot indices and something from `low` to `high`, all floor-divided by `divisor`.

    `keys` and `queries` count how often each index occurs, `prefixes` the length of the prefix. None
    is a bound that is not known.
    """

    keys: int = 0
    queries: int = 0
    low: Dim | None = ZERO
    high: Dim | None = ZERO
    divisor: Dim = ONE
    prefixes: int = 0

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.keys, self.queries, self.prefixes

    @property
    def number(self) -> Dim | None:
        """The value, where it is one known number."""
        return self.low if not any(self.counts) and self.low == self.high else None


UNKNOWN = Slot(low=None, high=None)


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
        if node.op in ("softmax", "logsumexp", "amax", "topk"):
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
        at_most = self._behind if a.prefixes != b.prefixes else _at_most
        if node.op == "eq":
            return at_most(a, b, 0).meet(at_most(b, a, 0)) if truth else EVERYWHERE
        strict = node.op == "lt"
        return at_most(a, b, -1 if strict else 0) if truth else at_most(b, a, 0 if strict else -1)

    def _behind(self, a: Slot, b: Slot, limit: int) -> Interval:
        """Behind the prefix j - prefix is never negative: a bound below 0 holds nowhere."""
        gap = _sum(a, b, -1)
        if gap.counts != (1, 0, -1) or gap.low is None:
            return EVERYWHERE
        slack = (limit - gap.low).substitute(self.edit.program.sizes).constant
        return NOWHERE if slack is not None and slack < 0 else EVERYWHERE

    def slot(self, node_id: int) -> Slot:
        """What is known of an int value."""
        if node_id in self.prefix:
            return Slot(prefixes=1)
        node = self.edit[node_id]
        value = constant(node)
        if isinstance(value, int | Dim) and not isinstance(value, bool):
            return Slot(low=Dim.of(value), high=Dim.of(value))
        if node.op == "index":
            axis = node.attrs.axis("axis")
            other = Slot(high=axis.size - 1)
            return {self.key: Slot(keys=1), self.query: Slot(queries=1)}.get(axis, other)
        if (above := self._above(node)) is not None:
            return above.slot(node.inputs[0])
        if node.op not in FORMS:
            return UNKNOWN
        a, b = (self.slot(i) for i in node.inputs[-2:])
        return FORMS[node.op](a, b)

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


def _sum(a: Slot, b: Slot, sign: int = 1) -> Slot:
    a, b = _undivided(a), _undivided(b)
    low, high = (b.low, b.high) if sign > 0 else (b.high, b.low)
    return Slot(
        a.keys + sign * b.keys,
        a.queries + sign * b.queries,
        None if a.low is None or low is None else a.low + low * sign,
        None if a.high is None or high is None else a.high + high * sign,
        prefixes=a.prefixes + sign * b.prefixes,
    )


def _multiple(a: Slot, b: Slot) -> Slot:
    factor = b.number.constant if b.number is not None else None
    if factor is None or factor < 0:
        return UNKNOWN
    a = _undivided(a)
    return Slot(
        a.keys * factor,
        a.queries * factor,
        None if a.low is None else a.low * factor,
        None if a.high is None else a.high * factor,
        prefixes=a.prefixes * factor,
    )


def _quotient(a: Slot, b: Slot) -> Slot:
    below_one = b.number is not None and b.number.constant is not None and b.number.constant < 1
    if b.number is None or below_one or b.divisor != ONE or a.divisor != ONE or a.prefixes:
        return UNKNOWN
    return replace(a, divisor=b.number)


def _undivided(slot: Slot) -> Slot:
    """Of an index that is divided: the index, as it is never below its quotient."""
    if slot.divisor == ONE:
        return slot
    if slot.counts not in ONE_INDEX or slot.high is None:
        return UNKNOWN
    return replace(slot, low=None, high=maximum(slot.high, 0), divisor=ONE)


def _alike(a: Slot, b: Slot) -> tuple[Slot, Slot]:
    """Two values as sums of the same indices. A number is no more than an index plus that number."""
    if (a.counts, a.divisor) == (b.counts, b.divisor):
        return a, b
    a, b = _undivided(a), _undivided(b)
    if a.counts in ONE_INDEX and not any(b.counts):
        b = replace(b, keys=a.keys, queries=a.queries, low=None)
    elif b.counts in ONE_INDEX and not any(a.counts):
        a = replace(a, keys=b.keys, queries=b.queries, low=None)
    return (a, b) if a.counts == b.counts else (UNKNOWN, UNKNOWN)


def _either_of(a: Slot, b: Slot) -> Slot:
    a, b = _alike(a, b)
    low = None if a.low is None or b.low is None else minimum(a.low, b.low)
    return replace(a, low=low, high=_looser(a.high, b.high))


def _largest(a: Slot, b: Slot) -> Slot:
    found, (a, b) = _either_of(a, b), _alike(a, b)
    known = [low for low in (a.low, b.low) if low is not None]
    return replace(found, low=reduce(maximum, known) if known else None)


def _smallest(a: Slot, b: Slot) -> Slot:
    found, (a, b) = _either_of(a, b), _alike(a, b)
    return replace(found, high=_tighter(a.high, b.high))


ONE_INDEX = ((1, 0, 0), (0, 1, 0))
FORMS: dict[str, Callable[[Slot, Slot], Slot]] = {
    "add": _sum,
    "sub": partial(_sum, sign=-1),
    "mul": _multiple,
    "floordiv": _quotient,
    "where": _either_of,
    "max": _largest,
    "min": _smallest,
}


def _at_most(a: Slot, b: Slot, limit: int) -> Interval:
    """The bound on j - i that a - b <= limit proves."""
    if a.divisor != b.divisor or a.low is None or b.high is None:
        return EVERYWHERE
    keys, queries = a.keys - b.keys, a.queries - b.queries
    slack = b.high - a.low + limit
    if a.divisor != ONE:
        # floor(x / c) - floor(y / c) <= n gives x - y <= n*c + c - 1
        slack = b.high - a.low + a.divisor * limit + a.divisor - 1
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
