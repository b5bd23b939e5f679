"""A reduction cut into parts, one for each program, and a second kernel that joins them.

    sum_k x = sum_p y[p]                            y[p] the sum over part p
    sum_j softmax_j(s) v[j] = sum_p softmax_p(l)[p] y[p]
                                                    y[p] the same over the keys j of part p,
                                                    l[p] = log sum_j exp(s)

With few rows there are fewer programs than processors, and each reads all keys, or all of the
weights' rows, alone. Legal where the kernel has one such reduction, which no other one feeds; what
comes after it is computed by the kernel that joins. How many parts there are is decided at launch: as
many as keep every processor at work, unless a part then ends before a second kernel could start.
An H100's processor reads 25 GB/s; the 3 us of a launch are 75 KB, which are 150 keys and values of
128 numbers, or 600 columns of 64 rows of a weight, in bf16. `least` is the next power of two.
A product is only cut in a program that goes on from states: others have many rows. So does an
attention whose keys are its own rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...compiler.ir.graph import Attrs, Axis, Node, TensorType
from ...dsl.dims import Dim, product
from .mapping import REDUCTIONS
from .regions import Region
from .space import leads_to, plan_space

PARTS = Axis("part", Dim.symbol("split.parts"))
PROCESSORS = 304  # of the largest device; a kernel with more than half as many programs has enough
LEAST = {True: 256, False: 1024}  # keys of an attention, summed entries of a product
FEW_COLUMNS = 64  # of a product's tile, where rows are few
PARTIAL, LOG_TOTAL = -1, -2  # leaves of the joining region that are no values of the function


@dataclass(frozen=True, slots=True)
class Split:
    """`part` computes the contraction over one part; `join` what the whole region does.

    `totals` are the axes of the logarithm of the sum of an attention's weights.
    """

    part: Region
    join: Region
    totals: tuple[Axis, ...] | None = None

    @property
    def contraction(self) -> Node:
        return self.part.nodes[self.part.outputs[0]]

    @property
    def least(self) -> int:
        """The shortest part, in keys or in summed entries."""
        return LEAST[self.totals is not None]


def split(region: Region, extents: tuple[Dim, Dim, Dim], *, few_rows: bool) -> Split | None:
    """How the region is cut, if it can and should be. `extents` are its kernel's rows, columns and
    batch; whether there may be `few_rows` a product does not say by itself."""
    node = _contraction(region)
    if node is None or not _is_worth_it(region, node, extents, few_rows):
        return None
    totals = None
    if region.attend is not None:
        totals = _weight_axes(region, node, region.attend.softmaxes[node.id])
    part = replace(region, outputs=(node.id,))
    return Split(part, joining(region, node, (PARTS, *node.axes), totals), totals)


def _contraction(region: Region) -> Node | None:
    """The one reduction that is worth cutting."""
    if region.attend is not None:
        found = [region.nodes[i] for i in region.attend.softmaxes]
        reached = {n.id for n in above(region, region.outputs)}
        after = [n for n in above(region, region.outputs, found) if n.op in REDUCTIONS]
        if any(region.nodes[i].op == "logsumexp" for i in region.outputs):
            return None
        alone = len(found) == 1 and found[0].id in reached and len(after) == 1
        return found[0] if alone and found[0].op == "dot" else None
    space = plan_space(region)
    node = space.product
    if node is None or [n.id for n in space.reductions] != [node.id]:
        return None
    below = (n for n in above(region, node.inputs) if n.op in REDUCTIONS)
    return node if next(below, None) is None else None


def _is_worth_it(region: Region, node: Node, extents: tuple[Dim, Dim, Dim], few_rows: bool) -> bool:
    rows, columns, batch = extents
    length = reduced_length(region, node)
    if region.attend is not None:
        return not length.symbols() <= (rows * batch).symbols()
    programs = 1 if columns.constant is None else columns.constant // FEW_COLUMNS
    long = length.constant is None or length.constant >= 2 * LEAST[region.attend is not None]
    return few_rows and long and 2 * programs <= PROCESSORS


def reduced_length(region: Region, node: Node) -> Dim:
    return product([region.size(axis) for axis in node.attrs.axes("axes")])


def above(region: Region, start: tuple[int, ...], stop: list[Node] | None = None) -> Iterator[Node]:
    """Everything that the nodes are computed from, through `stop` no further."""
    ends = {n.id for n in stop or ()}
    todo, seen = [*start], set()
    while todo:
        node = region.nodes[todo.pop()]
        if node.id not in seen:
            seen.add(node.id)
            yield node
            todo += () if node.id in ends else node.inputs


def _weight_axes(region: Region, node: Node, softmax: int) -> tuple[Axis, ...]:
    weights = next(o for o in region.operands(node) if leads_to(region, o.id, softmax))
    return tuple(a for a in weights.axes if a not in node.attrs.axes("axes"))


def joining(
    region: Region,
    node: Node,
    axes: tuple[Axis, ...],
    totals: tuple[Axis, ...] | None = None,
) -> Region:
    """The region with a contraction, or another reduction, computed from its parts, which have `axes`."""
    join = replace(
        region, nodes=dict(region.nodes), leaves=dict(region.leaves), names=dict(region.names),
        attend=None,
    )  # fmt: skip
    y = _leaf(join, node, PARTIAL, "part", axes)
    over = Attrs({"axes": (PARTS,)})
    if totals is None:
        op = "sum" if node.op == "dot" else node.op
        join.nodes[node.id] = replace(node, op=op, inputs=(y,), attrs=over)
    else:
        log = _leaf(join, node, LOG_TOTAL, "log_total", (PARTS, *totals))
        kind = (TensorType("f32", (PARTS, *totals)),)
        share = join.add(
            replace(node, op="softmax", attrs=Attrs({"axis": PARTS}), types=kind), (log,)
        )
        join.nodes[node.id] = replace(node, op="dot", inputs=(share, y), attrs=over)
    kept = {n.id for n in above(join, join.outputs)}
    join.nodes = {i: n for i, n in join.nodes.items() if i in kept}
    join.leaves = {i: v for i, v in join.leaves.items() if i in kept}
    join.rooms = {key: room for key, room in join.rooms.items() if key[0] in kept}
    return join


def _leaf(join: Region, like: Node, value: int, name: str, axes: tuple[Axis, ...]) -> int:
    kind = (TensorType("f32", axes),)
    leaf = join.add(replace(like, op="leaf", attrs=Attrs({}), types=kind), ())
    join.leaves[leaf], join.names[leaf] = value, name
    return leaf
