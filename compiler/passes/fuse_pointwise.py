"""What is left becomes regions of one kernel each.

A region is elementwise ops, views, joins, gathers from stored values, and reductions of one kind:
over the same axes of the same rows. It grows from a seed: a producer joins when only the region
reads it, a consumer joins when the region's results then still have one set of axes (a row
statistic may be a result beside full rows) and no path leaves the region and comes back; readers
of a result join together where one of them alone leaves another shape (the halves of a normalised
row that turn). Views and raised values are never results: they are had again wherever they are
read. Views alone are no kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ..ir.graph import Axis, Node
from ..rewrite import Edit, Fuse, Guard, Pass, Rule, close, is_free, refusal
from .properties import (
    ROW_OPS,
    SOURCES,
    VIEWS,
    is_elementwise,
    parameter_expression,
    reduced_axes,
    traffic,
    unfused_traffic,
)

MOVERS = frozenset({"concat", "take"})

# Views that finish a result, so that it is stored as its readers want it.
FINISHING = frozenset({"merge", "split", "transpose"})

DEPTH = 8  # ops below a result that join only together

Reduction = tuple[frozenset[Axis], frozenset[Axis]]  # rows, reduced axes
NO_REDUCTION: Reduction = (frozenset(), frozenset())


def seeds(edit: Edit, node: Node) -> Iterator[Growth]:
    """Any op that computes something."""
    if _is_candidate(edit, node) and not is_transparent(edit, node):
        seed = Growth(edit)
        seed.join(node)
        yield seed


def grow(edit: Edit, seed: Growth, joins: tuple[Guard, ...]) -> Growth:
    """Takes in the first neighbour that all `joins` admit, until there is none."""
    while found := next((n for n in seed.next() if not refusal(joins, edit, n)), None):
        seed.join(*found.path)
        seed.finished |= {n.id for n in found.path if found.side == "finish"}
    return seed


def fuse_region(edit: Edit, found: Growth) -> Fuse:
    region = close(edit, found.members, found.results(found.members))
    before = unfused_traffic(edit, region.nodes)
    after = traffic(edit, region.leaves, region.outputs)
    count = sum(edit[i].op not in VIEWS | SOURCES for i in region.nodes)
    return Fuse("pointwise", region, {}, f"{count} ops", before, after)


def is_transparent(edit: Edit, node: Node) -> bool:
    return node.op in VIEWS or is_free(edit, node)


def may_join(node: Node) -> bool:
    """Whether an op is one that regions consist of."""
    return node.op in ROW_OPS | MOVERS | VIEWS or is_elementwise(node)


def _is_candidate(edit: Edit, node: Node) -> bool:
    return may_join(node) and parameter_expression(edit, node.id) is None


@dataclass(slots=True)
class Growth:
    """A region under way. The first reduction fixes `reduction`; `finished` views are results."""

    edit: Edit
    members: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)
    reduction: Reduction = NO_REDUCTION

    def next(self) -> Iterator[Neighbour]:
        """What stands next to the region: producers first, then readers."""
        yield from self._producers()
        yield from self._consumers()
        yield from self._finishes()

    def join(self, *nodes: Node) -> None:
        for node in nodes:
            self.members.add(node.id)
            if self.reduction == NO_REDUCTION:
                self.reduction = _reduction(self.edit, node)

    def results(self, members: set[int]) -> list[int]:
        """The members that someone outside reads, perhaps through a view or a raising cast."""
        return [i for i in sorted(members) if not self._passes(i) and self._escapes(i, members)]

    def _passes(self, node_id: int) -> bool:
        return node_id not in self.finished and is_transparent(self.edit, self.edit[node_id])

    def _escapes(self, node_id: int, members: set[int]) -> bool:
        return self.edit.is_output(node_id) or any(
            u.id not in members or (self._passes(u.id) and self._escapes(u.id, members))
            for u in self.edit.users(node_id)
        )

    def _producers(self) -> Iterator[Neighbour]:
        for member in sorted(self.members):
            for node in (self.edit[i] for i in inlined_operands(self.edit[member])):
                if node.id not in self.members and _is_candidate(self.edit, node):
                    yield Neighbour(self, "producer", (node,))

    def _consumers(self) -> Iterator[Neighbour]:
        for member in sorted(self.members - self.finished):
            yield from (Neighbour(self, "consumer", path) for path in self._ways_out(member))
        for result in self.results(self.members):
            yield from (Neighbour(self, "consumer", path) for path in self._together(result))

    def _together(self, result: int) -> Iterator[tuple[Node, ...]]:
        """All readers of a result, then theirs too: pieces of a row that one op joins again."""
        found: dict[int, Node] = {}
        last = [result]
        for _ in range(DEPTH):
            readers = {u.id: u for i in last for u in self.edit.users(i)}
            outside = [u for u in readers.values() if u.id not in self.members]
            if not all(self._may_meet(u, last) for u in outside):
                return
            found |= {u.id: u for u in outside}
            if found:
                yield tuple(found.values())
            last = list(readers)

    def _may_meet(self, reader: Node, values: list[int]) -> bool:
        inlined = {*values} & {*reader.inputs} <= {*inlined_operands(reader)}
        return _is_candidate(self.edit, reader) and reader.op not in ROW_OPS and inlined

    def _ways_out(self, member: int) -> Iterator[tuple[Node, ...]]:
        """Each reader that computes, with the views and raising casts on the way to it."""
        for user in self.edit.users(member):
            if not _is_candidate(self.edit, user) or member not in inlined_operands(user):
                continue
            if is_transparent(self.edit, user):
                yield from ((user, *rest) for rest in self._ways_out(user.id))
            elif user.id not in self.members:
                yield (user,)

    def _finishes(self) -> Iterator[Neighbour]:
        """A merge or split that is the only reader of the only result."""
        results = self.results(self.members)
        if len(results) == 1 and self.edit.used_once(results[0]):
            (user,) = self.edit.users(results[0])
            if user.op in FINISHING:
                yield Neighbour(self, "finish", (user,))


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Nodes that may join a region, on one side of it."""

    region: Growth
    side: Literal["producer", "consumer", "finish"]
    path: tuple[Node, ...]


def _is_shared(edit: Edit, found: Neighbour) -> bool:
    if found.side != "producer":
        return False
    (node,) = found.path
    readers = {u.id for u in edit.users(node.id)}
    return edit.is_output(node.id) or not readers <= found.region.members


def _leaves_rows(edit: Edit, found: Neighbour) -> bool:
    return not all(_fits(edit, found.region, node) for node in found.path)


def _fits(edit: Edit, region: Growth, node: Node) -> bool:
    """The node keeps to the rows of the region's reduction."""
    own = _reduction(edit, node)
    if own != NO_REDUCTION and region.reduction != NO_REDUCTION:
        return own == region.reduction
    rows = (own if own != NO_REDUCTION else region.reduction)[0]
    moving = [node] if own == NO_REDUCTION else [edit[i] for i in region.members]
    return not any(_moves(edit, m, rows) and not _is_stored(edit, region, m) for m in moving)


def _goes_round(edit: Edit, found: Neighbour) -> bool:
    """A path leaves the region and comes back."""
    members = found.region.members | {n.id for n in found.path}
    outside = [i for n in found.path for i in n.inputs if i not in members]
    return found.side == "consumer" and edit.reaches(found.region.members, outside)


def _is_uneven(edit: Edit, found: Neighbour) -> bool:
    if found.side != "consumer":
        return False
    region = found.region
    results = region.results(region.members | {n.id for n in found.path})
    reduction = region.reduction
    if reduction == NO_REDUCTION:
        reduction = _reduction(edit, found.path[-1])
    return not _even([edit[i] for i in results], reduction[0])


def _reduction(edit: Edit, node: Node) -> Reduction:
    if node.op not in ROW_OPS:
        return NO_REDUCTION
    (x,) = edit.operands(node)
    axes = reduced_axes(node)
    return frozenset(x.axes) - frozenset(axes), frozenset(axes)


def _even(results: list[Node], rows: frozenset[Axis]) -> bool:
    """One set of axes; where there are rows all have them, and row values may stand beside."""
    sets = {frozenset(n.axes) for n in results}
    return all(rows <= s for s in sets) and len(sets - {rows} if rows else sets) <= 1


def _moves(edit: Edit, node: Node, rows: frozenset[Axis]) -> bool:
    """Whether a view, join or gather re-indexes a row axis."""
    if node.op not in VIEWS | MOVERS:
        return False
    moved: set[Axis] = set()
    for operand in edit.operands(node):
        moved |= set(operand.axes) ^ set(node.axes)
    if node.op == "rename":
        moved |= {a for pair in node.attrs.pairs("pairs") for a in pair}
    return not rows.isdisjoint(moved)


def _is_stored(edit: Edit, region: Growth, node: Node) -> bool:
    """A view of what is no member: a row may read any entry of it."""
    return node.op in VIEWS and all(
        i not in region.members or _is_stored(edit, region, edit[i]) for i in node.inputs
    )


def inlined_operands(node: Node) -> tuple[int, ...]:
    """The operands that the same kernel may compute: what is gathered from must be stored."""
    return node.inputs[1:] if node.op == "take" else node.inputs


JOINS = (
    Guard("private", "of a producer the region is the only reader", _is_shared),
    Guard("same-rows", "reductions are over the same axes of the same rows", _leaves_rows),
    Guard("no-detour", "no path leaves the region and comes back", _goes_round),
    Guard("one-shape", "its results have one set of axes, or are values of rows", _is_uneven),
)

FUSE_POINTWISE = Pass(
    "fuse-pointwise",
    "h(x) = f(g(x)) in one kernel",
    (
        Rule(
            "region",
            fuse_region,
            match=seeds,
            equation="h(x) = f(g(x)) in one kernel",
            grow=grow,
            joins=JOINS,
        ),
    ),
)
