"""dot(x, take(W, i)) -> grouped: rows that pick the same matrix are multiplied with it together.

    y[r] = W[i[r]] x[r]   for rows r   =   y[S_e] = W[e] x[S_e]   for each e,  S_e = {r : i[r] = e}

Legal where i picks whole matrices: every summed axis is one of W and of x, i does not run along
it, and a matrix shares no other axis with a row. Two products stay as they are: where a matrix has
summed axes only, W is a table of vectors, of which the plain form reads no more than this one; and
where a call decides how many matrices there are, W is a sequence and not a bank. The matrices as
they are picked, one for each row, are never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..ir.graph import Axis, Node
from ..ops.grouped import GroupedPlan, plan_product
from ..rewrite import Edit, Fuse, Guard, Pass, Region, Rule
from .properties import is_static, traffic, unfused_traffic


@dataclass(frozen=True, slots=True)
class Picked:
    """A product of x with a gather, its summed axes, and what it is if it is one of experts."""

    plan: GroupedPlan
    summed: frozenset[Axis]


def picked(edit: Edit, node: Node) -> Iterator[Picked]:
    """A product with entries that an index picks."""
    for x, take in (edit.operands(node), edit.operands(node)[::-1]):
        if take.op == "take" and x.id != take.id:
            matrices, index = edit.operands(take)
            plan = plan_product(x, take, matrices, index, node)
            yield Picked(plan, frozenset(node.attrs.axes("axes")))


def group(edit: Edit, found: Picked) -> Fuse:
    x, take, node = found.plan.x, found.plan.take, found.plan.product
    region = Region((take.id, node.id), tuple(dict.fromkeys((x.id, *take.inputs))), (node.id,))
    before = unfused_traffic(edit, region.nodes)
    return Fuse("grouped", region, {}, "", before, traffic(edit, region.leaves, [node.id]))


def _is_filled(edit: Edit, found: Picked) -> bool:
    return found.plan.take.attrs["fill"] is not None


def _has_one_row(edit: Edit, found: Picked) -> bool:
    return not found.plan.index.axes


def _picks_vectors(edit: Edit, found: Picked) -> bool:
    return not found.plan.outer


def _picks_from_a_sequence(edit: Edit, found: Picked) -> bool:
    return not is_static(edit, found.plan.entries)


def _picks_parts(edit: Edit, found: Picked) -> bool:
    inner = frozenset(found.plan.inner)
    return not found.summed == inner <= frozenset(found.plan.x.axes)


def _shares_rows(edit: Edit, found: Picked) -> bool:
    return not {*found.plan.inner, *found.plan.outer}.isdisjoint(found.plan.rows)


GUARDS = (
    Guard("exact-index", "the gather has no fill for an index outside", _is_filled),
    Guard("indexed-rows", "the index has an axis", _has_one_row),
    Guard("matrices", "a matrix has an axis that is not summed", _picks_vectors),
    Guard("bank", "how many matrices there are is known before a call", _picks_from_a_sequence),
    Guard("whole-matrices", "the summed axes are those of a matrix and of x", _picks_parts),
    Guard("free-rows", "a matrix and a row share the summed axes alone", _shares_rows),
)

GROUP_EXPERTS = Pass(
    "group-experts",
    "W[i[r]] x[r] for rows r = one product for each matrix that rows pick",
    (
        Rule(
            "group",
            group,
            ("dot",),
            picked,
            GUARDS,
            "y[r] = W[i[r]] x[r]  =  y[S_e] = W[e] x[S_e], S_e = {r : i[r] = e}",
        ),
    ),
)
