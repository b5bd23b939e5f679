"""What is left becomes regions of one kernel each.

A region is elementwise ops, views, joins, gathers from stored values, and reductions of one kind:
over the same axes of the same rows. It grows from a seed: a producer joins when only the region
reads it, a consumer joins when the region's results then still have one set of axes (a row
statistic may be a result beside full rows) and no path leaves the region and comes back. Views
and raised values are never results: they are had again wherever they are read. Views alone are no
kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..ir.graph import Axis, Node
from ..rewrite import Edit, Fuse, Outcome, Pass, Rule, close, is_free
from .properties import (
    SOURCES,
    VIEWS,
    is_elementwise,
    parameter_expression,
    traffic,
    unfused_traffic,
)

ROW_OPS = frozenset({"sum", "amax", "softmax"})
MOVERS = frozenset({"concat", "take"})

# Views that finish a result, so that it is stored as its readers want it.
FINISHING = frozenset({"merge", "split", "transpose"})

Reduction = tuple[frozenset[Axis], frozenset[Axis]]  # rows, reduced axes
NO_REDUCTION: Reduction = (frozenset(), frozenset())


def fuse_region(edit: Edit, node: Node) -> Outcome:
    """Starts at any op that computes something."""
    if not _is_candidate(edit, node) or is_transparent(edit, node):
        return None
    growth = Growth(edit)
    growth.join(node)
    growth.grow()
    region = close(edit, growth.members, growth.results(growth.members))
    before = unfused_traffic(edit, region.nodes)
    after = traffic(edit, region.leaves, region.outputs)
    count = sum(edit[i].op not in VIEWS | SOURCES for i in region.nodes)
    return Fuse("pointwise", region, {}, f"{count} ops", before, after)


def is_transparent(edit: Edit, node: Node) -> bool:
    return node.op in VIEWS or is_free(edit, node)


def _is_candidate(edit: Edit, node: Node) -> bool:
    known = node.op in ROW_OPS | MOVERS | VIEWS or is_elementwise(node)
    return known and parameter_expression(edit, node.id) is None


@dataclass(slots=True)
class Growth:
    """A region under way. The first reduction fixes `reduction`; `finished` views are results."""

    edit: Edit
    members: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)
    reduction: Reduction = NO_REDUCTION

    def grow(self) -> None:
        while self._absorb_producer() or self._absorb_consumer() or self._absorb_finish():
            pass

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

    def _absorb_producer(self) -> bool:
        for member in sorted(self.members):
            for source in inlined_operands(self.edit[member]):
                node = self.edit[source]
                if source not in self.members and self._is_private(node) and self._fits(node):
                    self.join(node)
                    return True
        return False

    def _is_private(self, node: Node) -> bool:
        readers = self.edit.users(node.id)
        private = not self.edit.is_output(node.id) and all(u.id in self.members for u in readers)
        return private and _is_candidate(self.edit, node)

    def _absorb_consumer(self) -> bool:
        for member in sorted(self.members - self.finished):
            for path in self._ways_out(member):
                if all(map(self._fits, path)) and self._stays_even(path):
                    self.join(*path)
                    return True
        return False

    def _ways_out(self, member: int) -> Iterator[tuple[Node, ...]]:
        """Each reader that computes, with the views and raising casts on the way to it."""
        for user in self.edit.users(member):
            if not _is_candidate(self.edit, user) or member not in inlined_operands(user):
                continue
            if is_transparent(self.edit, user):
                yield from ((user, *rest) for rest in self._ways_out(user.id))
            elif user.id not in self.members:
                yield (user,)

    def _absorb_finish(self) -> bool:
        """A merge or split that is the only reader of the only result."""
        results = self.results(self.members)
        if len(results) != 1 or not self.edit.used_once(results[0]):
            return False
        (user,) = self.edit.users(results[0])
        if user.op not in FINISHING or not self._fits(user):
            return False
        self.finished.add(user.id)
        self.join(user)
        return True

    def _fits(self, node: Node) -> bool:
        """The node keeps to the rows of the region's reduction."""
        own = _reduction(self.edit, node)
        if own != NO_REDUCTION and self.reduction != NO_REDUCTION:
            return own == self.reduction
        rows = (own if own != NO_REDUCTION else self.reduction)[0]
        moving = [node] if own == NO_REDUCTION else [self.edit[i] for i in self.members]
        return not any(_moves(self.edit, m, rows) for m in moving)

    def _stays_even(self, path: tuple[Node, ...]) -> bool:
        """No way around, and the results keep one set of axes."""
        members = self.members | {n.id for n in path}
        outside = [i for n in path for i in n.inputs if i not in members]
        if self.edit.reaches(self.members, outside):
            return False
        reduction = self.reduction
        if reduction == NO_REDUCTION:
            reduction = _reduction(self.edit, path[-1])
        return _even([self.edit[i] for i in self.results(members)], reduction[0])


def _reduction(edit: Edit, node: Node) -> Reduction:
    if node.op not in ROW_OPS:
        return NO_REDUCTION
    (x,) = edit.operands(node)
    axes = (node.attrs.axis("axis"),) if node.op == "softmax" else node.attrs.axes("axes")
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


def inlined_operands(node: Node) -> tuple[int, ...]:
    """The operands that the same kernel may compute: what is gathered from must be stored."""
    return node.inputs[1:] if node.op == "take" else node.inputs


FUSE_POINTWISE = Pass(
    "fuse-pointwise",
    "h(x) = f(g(x)) in one kernel",
    (Rule("region", fuse_region),),
)
