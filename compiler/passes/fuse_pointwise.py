"""What is left becomes regions of one kernel each.

A region is elementwise ops, views, joins, gathers from stored values, and reductions of one kind: over
the same axes of the same rows. It grows from a seed: a producer joins when only the region reads it, a
consumer joins when the region's results then still have one set of axes (a row statistic may be a
result beside full rows) and no path leaves the region and comes back. Views alone are no kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ir.graph import Axis, Node
from ..rewrite import Edit, Fuse, Outcome, Pass, Rule, close
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
TAIL_VIEWS = frozenset({"merge", "split", "transpose"})

Reduction = tuple[frozenset[Axis], frozenset[Axis]]  # rows, reduced axes


@dataclass(slots=True)
class Growth:
    """A region under way. `reduction` is fixed by the first reduction that joins."""

    edit: Edit
    members: set[int] = field(default_factory=set)
    reduction: Reduction | None = None

    def grow(self) -> None:
        changed = True
        while changed:
            changed = self._absorb_producers() or self._absorb_consumers()

    def _absorb_producers(self) -> bool:
        for member in sorted(self.members):
            for source in _inlined_operands(self.edit[member]):
                if source not in self.members and self._takes_producer(self.edit[source]):
                    self._join(self.edit[source])
                    return True
        return False

    def _absorb_consumers(self) -> bool:
        for member in sorted(self.members):
            for user in self.edit.users(member):
                if user.id not in self.members and self._takes_consumer(user, member):
                    self._join(user)
                    return True
        return False

    def _join(self, node: Node) -> None:
        self.members.add(node.id)
        self.reduction = self.reduction or _reduction(self.edit, node)

    def _takes_producer(self, node: Node) -> bool:
        readers = self.edit.users(node.id)
        private = not self.edit.is_output(node.id) and all(u.id in self.members for u in readers)
        return private and _is_candidate(self.edit, node) and self._fits(node)

    def _takes_consumer(self, node: Node, member: int) -> bool:
        if not _is_candidate(self.edit, node) or member not in _inlined_operands(node):
            return False
        if node.op in VIEWS and not (node.op in TAIL_VIEWS and self.edit.used_once(member)):
            return self._is_inner_view(node) and self._joins_evenly(node)
        return self._fits(node) and self._joins_evenly(node)

    def _is_inner_view(self, node: Node) -> bool:
        """A view all of whose readers are, or may become, part of the region."""
        readers = self.edit.users(node.id)
        return self._fits(node) and bool(readers) and all(u.id in self.members for u in readers)

    def _fits(self, node: Node) -> bool:
        """The node keeps to the rows of the region's reduction."""
        wanted = _reduction(self.edit, node)
        if wanted is not None and self.reduction is not None:
            return wanted == self.reduction
        rows = (wanted or self.reduction or (frozenset(), frozenset()))[0]
        views = [node] if wanted is None else [self.edit[i] for i in self.members]
        return not any(_touches(self.edit, v, rows) for v in views)

    def _joins_evenly(self, node: Node) -> bool:
        """No path around, and the results keep one set of axes."""
        members = self.members | {node.id}
        outside = [i for i in node.inputs if i not in members]
        if self.edit.reaches(self.members, outside):
            return False
        reduction = self.reduction or _reduction(self.edit, node)
        results = [self.edit[i] for i in members if _escapes(self.edit, i, members)]
        return _even(results, reduction)


def _reduction(edit: Edit, node: Node) -> Reduction | None:
    if node.op not in ROW_OPS:
        return None
    (x,) = edit.operands(node)
    axes = (node.attrs.axis("axis"),) if node.op == "softmax" else node.attrs.axes("axes")
    return frozenset(x.axes) - frozenset(axes), frozenset(axes)


def _even(results: list[Node], reduction: Reduction | None) -> bool:
    """One set of axes; in a region with a reduction, at least its rows, and row values beside."""
    sets = {frozenset(n.axes) for n in results}
    if reduction is None:
        return len(sets) == 1
    rows = reduction[0]
    return all(rows <= s for s in sets) and len(sets - {rows}) <= 1


def _touches(edit: Edit, node: Node, rows: frozenset[Axis]) -> bool:
    """Whether a view, join or gather re-indexes a row axis."""
    if node.op not in VIEWS | MOVERS:
        return False
    moved: set[Axis] = set()
    for operand in edit.operands(node):
        moved |= set(operand.axes) ^ set(node.axes)
    if node.op == "rename":
        moved |= {a for pair in node.attrs.pairs("pairs") for a in pair}
    return not rows.isdisjoint(moved)


def _inlined_operands(node: Node) -> tuple[int, ...]:
    """The operands that may be computed in the same kernel: what is gathered from must be stored."""
    return node.inputs[1:] if node.op == "take" else node.inputs


def _is_candidate(edit: Edit, node: Node) -> bool:
    known = node.op in ROW_OPS | MOVERS | VIEWS or is_elementwise(node)
    return known and parameter_expression(edit, node.id) is None


def _escapes(edit: Edit, node_id: int, members: set[int]) -> bool:
    return edit.is_output(node_id) or any(u.id not in members for u in edit.users(node_id))


def fuse_region(edit: Edit, node: Node) -> Outcome:
    """Starts at any op that computes something."""
    if node.op in SOURCES | VIEWS or not _is_candidate(edit, node):
        return None
    growth = Growth(edit)
    growth._join(node)
    growth.grow()
    region = close(edit, growth.members)
    before = unfused_traffic(edit, region.nodes)
    after = traffic(edit, region.leaves, region.outputs)
    note = f"{sum(edit[i].op not in VIEWS | SOURCES for i in region.nodes)} ops"
    return Fuse("pointwise", region, {}, note, before, after)


FUSE_POINTWISE = Pass(
    "fuse-pointwise",
    "h(x) = f(g(x)) in one kernel",
    (Rule("region", fuse_region),),
)
