"""dot(x, take(W, i)) -> grouped: rows that pick the same matrix are multiplied with it together.

    y[r] = W[i[r]] x[r]   for rows r   =   y[S_e] = W[e] x[S_e]   for each e,  S_e = {r : i[r] = e}

Legal where i picks whole matrices: every summed axis is one of W and of x, along which i does not
run, and beside these x and the matrices share no axis. W is a weight or made of weights, so that a
matrix is worth reading once; with no axis of its own left it is a table of vectors, and the plain
form reads no more than this one. The weights as they are picked, one matrix for each row, are
never stored.
"""

from __future__ import annotations

from ..ir.graph import Node
from ..ops.grouped import grouped_plan
from ..rewrite import Edit, Fuse, Outcome, Pass, Region, Rule
from .properties import parameter_expression, traffic, unfused_traffic


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
    if parameter_expression(edit, matrices.id) is None:
        return False
    plan = grouped_plan(x, take, matrices, index, node)
    own = {*plan.inner, *plan.outer}
    summed = set(node.attrs.axes("axes"))
    return (
        bool(plan.outer)
        and summed == set(plan.inner) == summed & set(x.axes)
        and own.isdisjoint(plan.rows)
    )


GROUP_EXPERTS = Pass(
    "group-experts",
    "W[i[r]] x[r] for rows r = one product for each matrix that rows pick",
    (Rule("group", group, ("dot",)),),
)
