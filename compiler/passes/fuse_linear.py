"""f(dot(a(x), b(W)), ...) -> linear: operands are prepared, and the result finished, in registers.

The epilogue f is any elementwise expression of the product with one result (bias, activation,
residual, a row scale); the prologues are casts and row or column corrections of an operand. Legal when
nothing else reads what lies between. A row statistic over the contracted axes that the epilogue reads
joins the loop over them (strategy `in-loop`) where that is cheaper than a kernel of its own:

    in-loop:        3 flops for each element of x, once per 128 columns
    row-statistic:  one launch, and reading x once more

with the figures of a large accelerator; a run-time size counts as `ROWS` rows.
"""

from __future__ import annotations

from ..ir.graph import Axis, Node
from ..rewrite import Edit, Fuse, Outcome, Pass, Rule, close
from .properties import (
    SOURCES,
    elements,
    is_elementwise,
    parameter_expression,
    traffic,
    unfused_traffic,
)

ROWS = 4096  # rows of a prefill, where a size is only known at run time
COLUMN_TILE = 128
FLOPS, BANDWIDTH, LAUNCH = 67e12, 3.35e12, 3e-6  # float32 flop/s, bytes/s, s

# Corrections cheap enough to repeat for every tile of columns.
PROLOGUE = frozenset({"add", "sub", "mul", "div"})


def fuse_linear(edit: Edit, node: Node) -> Outcome:
    """Starts at a product without batch axes: a matrix product."""
    a, b = edit.operands(node)
    summed = set(node.attrs.axes("axes"))
    if set(a.axes) & set(b.axes) != summed or not summed:
        return None
    members = {node.id} | _prologue(edit, node, a) | _prologue(edit, node, b)
    members |= _epilogue(edit, node)
    statistic = _statistic(edit, members, node)
    strategy = "plain"
    if statistic:
        strategy = "in-loop" if _loop_is_cheaper(edit, node, a) else "row-statistic"
        members |= statistic if strategy == "in-loop" else set()
    region = close(edit, members)
    if len(members) == 1 or len(region.outputs) != 1:
        return None
    before = unfused_traffic(edit, region.nodes)
    after = traffic(edit, region.leaves, region.outputs)
    return Fuse("linear", region, {"strategy": strategy}, strategy, before, after)


def _prologue(edit: Edit, product: Node, operand: Node) -> set[int]:
    """Casts, and elementwise corrections that read one full operand and only smaller others."""
    found: set[int] = set()
    while operand.op not in SOURCES and edit.used_once(operand.id):
        full = [o for o in edit.operands(operand) if set(o.axes) == set(operand.axes)]
        cheap = operand.op == "cast" or (operand.op in PROLOGUE and len(full) == 1)
        if not cheap:
            break
        found.add(operand.id)
        operand = full[0]
    return found


def _epilogue(edit: Edit, product: Node) -> set[int]:
    """The largest elementwise region below the product that ends in one value."""
    region, best = {product.id}, {product.id}
    grown = True
    while grown:
        grown = False
        for user in [u for i in sorted(region) for u in edit.users(i)]:
            if user.id not in region and _may_follow(edit, user, product, region):
                region.add(user.id)
                grown = True
                best = set(region) if _ends_in_one(edit, region) else best
    return best


def _may_follow(edit: Edit, user: Node, product: Node, region: set[int]) -> bool:
    if not is_elementwise(user) or set(user.axes) != set(product.axes):
        return False
    outside = [i for i in user.inputs if i not in region]
    return not edit.reaches([product.id], outside)


def _ends_in_one(edit: Edit, region: set[int]) -> bool:
    def escapes(node_id: int) -> bool:
        readers = edit.users(node_id)
        return edit.is_output(node_id) or any(u.id not in region for u in readers)

    return sum(map(escapes, region)) == 1


def _statistic(edit: Edit, members: set[int], product: Node) -> set[int]:
    """The nodes of row statistics that only this epilogue reads, down to the product's operand."""
    summed = frozenset(product.attrs.axes("axes"))
    found: set[int] = set()
    for leaf in [i for m in sorted(members) for i in edit[m].inputs if i not in members]:
        if summed.isdisjoint(edit[leaf].axes):
            found |= _row_statistic(edit, leaf, members | found, summed) or set()
    return found


def _row_statistic(
    edit: Edit, leaf: int, readers: set[int], summed: frozenset[Axis]
) -> set[int] | None:
    """The nodes from a leaf up to one sum over `summed` and what is summed; None if it is none."""
    found: set[int] = set()
    todo, sums = [leaf], 0
    while todo:
        node = edit[todo.pop()]
        if node.id in found or node.op in SOURCES or parameter_expression(edit, node.id):
            continue
        if any(u.id not in readers | found for u in edit.users(node.id)) or edit.is_output(node.id):
            if summed <= set(node.axes):
                continue
            return None
        if node.op == "sum" and frozenset(node.attrs.axes("axes")) == summed:
            sums += 1
        elif not is_elementwise(node):
            if summed <= set(node.axes):
                continue
            return None
        found.add(node.id)
        todo += node.inputs
    return found if sums == 1 else None


def _loop_is_cheaper(edit: Edit, product: Node, operand: Node) -> bool:
    sizes = edit.program.sizes
    unknown = {s: ROWS for a in operand.axes for s in a.size.symbols() - sizes.keys()}
    values = elements(operand.type).evaluate({**sizes, **dict.fromkeys(unknown, 1)})
    values *= ROWS if unknown else 1
    columns = 1
    for axis in product.axes:
        if axis not in operand.axes:
            columns *= axis.size.evaluate(sizes)
    loop = values * 3 * -(-columns // COLUMN_TILE) / FLOPS
    return loop < LAUNCH + values * 2 / BANDWIDTH


FUSE_LINEAR = Pass(
    "fuse-linear",
    "f(a(x) b(W), ...) in one kernel",
    (Rule("linear", fuse_linear, ("dot",)),),
)
