"""dot(x, take(W, i)) -> grouped: rows that pick the same matrix are multiplied with it together.

    y[r] = W[i[r]] x[r]   for rows r   =   y[S_e] = W[e] x[S_e]   for each e,  S_e = {r : i[r] = e}

Legal where i picks whole matrices: every summed axis is one of W and of x, i does not run along
it, and a matrix shares no other axis with a row. Two products stay as they are: where a matrix has
summed axes only, W is a table of vectors, of which the plain form reads no more than this one; and
where a call decides how many matrices there are, W is a sequence and not a bank. The matrices as
they are picked, one for each row, are never stored.
"""

from __future__ import annotations

from ..ir.graph import Node
from ..ops.grouped import plan_product
from ..rewrite import Edit, Fuse, Outcome, Pass, Region, Rule
from .properties import is_static, traffic, unfused_traffic


def group(edit: Edit, node: Node) -> Outcome:
    """Starts at a product."""
    for x, take in (edit.operands(node), edit.operands(node)[::-1]):
        if take.op == "take" and x.id != take.id and _picks_matrices(edit, node, x, take):
            region = Region(
                (take.id, node.id), tuple(dict.fromkeys((x.id, *take.inputs))), (node.id,)
            )
            before = unfused_traffic(edit, region.nodes)
            return Fuse("grouped", region, {}, "", before, traffic(edit, region.leaves, [node.id]))
    return None


def _picks_matrices(edit: Edit, node: Node, x: Node, take: Node) -> bool:
    matrices, index = edit.operands(take)
    if take.attrs["fill"] is not None or not index.axes or x.id in take.inputs:
        return False
    plan = plan_product(x, take, matrices, index, node)
    summed = set(node.attrs.axes("axes"))
    return (
        bool(plan.outer)
        and is_static(edit, plan.entries)
        and summed == set(plan.inner) <= set(x.axes)
        and {*plan.inner, *plan.outer}.isdisjoint(plan.rows)
    )


GROUP_EXPERTS = Pass(
    "group-experts",
    "W[i[r]] x[r] for rows r = one product for each matrix that rows pick",
    (Rule("group", group, ("dot",)),),
)
