"""y[i, e] = sum_j w(softmax_j s(i, j)) * v[j, e]  ->  attend: the scores s are never stored.

Legal when, between the sum over j and its leaves, every op acts alongside j: then a tile of keys
needs nothing of another tile but the running maximum and total. s may be any such expression over
tile products (dot of a value without j and one without i), gathers and leaves; w must be linear
in the weights. Declined: a reduction or contraction of scores, weights or scores that something
else reads, `round_to`. The mask's proved bounds on j - i come along as `upper` and `lower`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..ir.graph import AttrValue, Axis, Node
from ..ops.attend import mentions
from ..rewrite import Edit, Fuse, Guard, Pass, Region, Rule, close
from .bounds import EVERYWHERE, Interval, Visibility
from .properties import VIEWS, constant, is_elementwise, line, traffic, unfused_traffic


@dataclass(frozen=True, slots=True)
class Attention:
    """A candidate: `product` sums weights times values over the axis `key`.

    `rows` are the axes of the weights, before or after relabelling, that the values lack; `totals`
    the `logsumexp` of the same scores, which the same tiles give.
    `carriers` lead from the softmax to the product, each with the operand that carries the weights
    where there is one such; `masks` are applied on the way, `scores` are what the softmax is of.
    """

    product: Node
    weights: Node
    softmax: Node
    key: Axis
    rows: frozenset[Axis]
    carriers: dict[int, int | None] = field(default_factory=dict)
    masks: set[int] = field(default_factory=set)
    scores: set[int] = field(default_factory=set)
    totals: set[int] = field(default_factory=set)

    def is_pair(self, node: Node) -> bool:
        """Has the key axis and a row axis: stored whole, it would be a score matrix."""
        return self.key in node.axes and not self.rows.isdisjoint(node.axes)

    @property
    def members(self) -> set[int]:
        above = {*self.carriers, *self.masks, *self.scores}
        return {self.product.id, self.softmax.id, *above, *self.totals}


def attentions(edit: Edit, node: Node) -> Iterator[Attention]:
    """A dot over one axis, one of whose operands comes from a softmax over that axis."""
    for weights, values in (edit.operands(node), edit.operands(node)[::-1]):
        softmax = _softmax_above(edit, node, weights, values)
        if softmax is not None:
            (key,) = node.attrs.axes("axes")
            rows = frozenset({*weights.axes, *softmax.axes} - {*values.axes})
            site = Attention(node, weights, softmax, key, rows)
            site.scores.update(_pairs_above(edit, site, softmax.inputs[0]))
            site.totals.update(u.id for u in edit.users(softmax.inputs[0]) if _is_total(u, softmax))
            _follow_weights(edit, site)
            yield site


def _is_total(node: Node, softmax: Node) -> bool:
    return node.op == "logsumexp" and node.attrs["axis"] == softmax.attrs["axis"]


def _softmax_above(edit: Edit, node: Node, weights: Node, values: Node) -> Node | None:
    """The softmax over the summed axis that `weights` comes from through any path; or one over an
    axis of which the summed one is a slice: that of keys and a sink."""
    axes = node.attrs.axes("axes")
    if len(axes) != 1 or axes[0] not in values.axes or set(weights.axes) <= set(values.axes):
        return None
    todo, seen = [weights.id], set()
    while todo:
        current = edit[todo.pop()]
        if current.op == "softmax":
            return current if current.attrs["axis"] == axes[0] else None
        if current.id not in seen and axes[0] in current.axes and current.op != "dot":
            seen.add(current.id)
            todo += current.inputs
            if current.op == "slice" and current.attrs["into"] == axes[0]:
                (whole,) = edit.operands(current)
                if whole.op == "softmax" and whole.attrs["axis"] == current.attrs["axis"]:
                    return whole
    return None


def _follow_weights(edit: Edit, site: Attention) -> None:
    """Fills in the nodes between the product and the softmax, and the masks they apply."""
    todo = [site.weights.id]
    while todo:
        current = edit[todo.pop()]
        if current.id in site.carriers or current.id == site.softmax.id:
            continue
        carrying = [i for i in current.inputs if _carries(edit, site, i)]
        site.carriers[current.id] = carrying[0] if len(carrying) == 1 else None
        todo += carrying
        for other in current.inputs:
            if other not in carrying and site.is_pair(edit[other]):
                site.masks.update(_pairs_above(edit, site, other))


def _carries(edit: Edit, site: Attention, value: int) -> bool:
    return value == site.softmax.id or edit.reaches([site.softmax.id], [value])


def _pairs_above(edit: Edit, site: Attention, start: int) -> set[int]:
    """The pair values above `start`, down to leaves."""
    found: set[int] = set()
    todo = [start]
    while todo:
        node = edit[todo.pop()]
        if node.id not in found and site.is_pair(node) and node.op not in STORED:
            found.add(node.id)
            todo += node.inputs
    return found


# Pair values that exist in memory anyway: a tile of them is loaded.
STORED = frozenset({"input", "weight", "table", "derived", "result", "attend"})


def tile_attention(edit: Edit, site: Attention) -> Fuse:
    region = close(edit, site.members, [site.product.id, *sorted(site.totals)])
    rows = tuple(a for a in site.weights.axes if a in site.rows)
    query, seen = _visible(edit, site)
    attrs: dict[str, AttrValue] = {"keys": site.key, "rows": rows, "query": query}
    attrs |= {"lower": seen.lower, "upper": seen.upper}
    return _with_traffic(edit, region, attrs)


def _with_traffic(edit: Edit, region: Region, attrs: dict[str, AttrValue]) -> Fuse:
    before = unfused_traffic(edit, region.nodes)
    after = traffic(edit, region.leaves, region.outputs)
    upper, lower = attrs["upper"], attrs["lower"]
    seen = [f"j <= i + {upper}"] * (upper is not None) + [f"j >= i - {lower}"] * (lower is not None)
    note = f"tiles with {' and '.join(seen)}" if seen else "all tiles"
    return Fuse("attend", region, attrs, note, before, after)


def _visible(edit: Edit, site: Attention) -> tuple[Axis | None, Interval]:
    """The row axis of the keys' own timeline and the mask's proved bounds along it."""
    scores = edit[site.softmax.inputs[0]]
    rows = [a for a in scores.axes if a != site.key and _timeline(a) == _timeline(site.key)]
    if len(rows) != 1:
        return None, EVERYWHERE
    seen = Visibility(edit, site.key, rows[0]).seen(scores.id)
    return rows[0], EVERYWHERE if seen.empty else seen


def _timeline(axis: Axis) -> str:
    return axis.time or axis.name


# ------------------------------------------------------------------------------- guards

# op -> the operand slots in which it is linear
LINEAR: dict[str, tuple[int, ...]] = {
    "mul": (0, 1),
    "div": (0,),
    "cast": (0,),
    "where": (1,),
    "stop_gradient": (0,),
} | {op: (0,) for op in VIEWS}


def _not_linear(edit: Edit, site: Attention) -> str:
    for node_id, carrier in site.carriers.items():
        node = edit[node_id]
        if carrier is None or node.inputs.index(carrier) not in LINEAR.get(node.op, ()):
            return f"`{node.op}` at {line(node)} is not linear in the weights"
    return ""


def _filled(edit: Edit, site: Attention) -> str:
    for node in (edit[i] for i in site.carriers):
        if node.op == "where" and constant(edit[node.inputs[2]]) != 0:
            return f"weights become another number at {line(node)}"
    return ""


def _moved_keys(edit: Edit, site: Attention) -> str:
    for node in (edit[i] for i in (*site.scores, *site.carriers, *site.masks)):
        if node.op in VIEWS - {"transpose"} and mentions(node, site.key):
            return f"`{node.op}` at {line(node)} moves keys"
    return ""


def _contracted(edit: Edit, site: Attention) -> str:
    for node in _pairs(edit, site, "dot"):
        summed = set(node.attrs.axes("axes"))
        if any(site.is_pair(o) and summed & set(o.axes) for o in edit.operands(node)):
            return f"scores are contracted at {line(node)}"
    return ""


def _gathered(edit: Edit, site: Attention) -> str:
    for node in _pairs(edit, site, "take"):
        if site.is_pair(edit[node.inputs[0]]):
            return f"scores are gathered at {line(node)}"
    return ""


def _mixed(edit: Edit, site: Attention) -> str:
    for node in (edit[i] for i in sorted(site.scores | site.masks)):
        beside = is_elementwise(node) and node.op != "round_to"
        if node.op not in VIEWS | BESIDE_KEYS and not beside:
            return f"`{node.op}` of scores at {line(node)}"
    return ""


# Ops of pair values that act alongside the keys where the guards for them say so.
BESIDE_KEYS = frozenset({"dot", "take", "concat"})


def _pairs(edit: Edit, site: Attention, op: str) -> list[Node]:
    return [edit[i] for i in sorted(site.scores | site.masks) if edit[i].op == op]


def _cheap(edit: Edit, site: Attention) -> str:
    if any(edit[i].op == "dot" for i in site.scores):
        return ""
    return "the scores contain no product of queries and keys"


def _read_elsewhere(edit: Edit, site: Attention) -> str:
    members = site.members
    for member in sorted({site.softmax.id, *site.carriers, *_below_products(edit, site.scores)}):
        outside = [u for u in edit.users(member) if u.id not in members]
        if outside or edit.is_output(member):
            what = "weights" if edit[member].op == "softmax" else f"`{edit[member].op}`"
            where = f"at {line(outside[0])}" if outside else "as an output"
            return f"the scores' {what} are read {where}"
    return ""


def _below_products(edit: Edit, scores: set[int]) -> set[int]:
    """The scores that a product or gather leads to. The rest are cheap masks and offsets, which
    other readers may compute for themselves."""
    heavy: set[int] = set()
    for node_id in edit.order():
        node = edit[node_id]
        if node_id in scores and (node.op in ("dot", "take") or heavy & set(node.inputs)):
            heavy.add(node_id)
    return heavy


GUARDS = (
    Guard("linear", "every op between softmax and sum is linear in the weights", _not_linear),
    Guard("masked-to-zero", "weights that are hidden after the softmax become 0", _filled),
    Guard("keys-in-place", "no view relabels, cuts or turns the axis of the keys", _moved_keys),
    Guard("not-contracted", "no product sums over scores", _contracted),
    Guard("not-gathered", "no gather is from scores", _gathered),
    Guard(
        "beside-keys",
        "every other op of scores is elementwise or a join, and rounds nothing",
        _mixed,
    ),
    Guard("product", "the scores contain a product of queries and keys", _cheap),
    Guard("private", "no one else reads weights, or scores that a product made", _read_elsewhere),
)


TILE_ATTENTION = Pass(
    "tile-attention",
    "sum_j softmax_j(s) v[j] = (sum over tiles of e^(s - m) v) / (sum over tiles of e^(s - m))",
    (
        Rule(
            "attend",
            tile_attention,
            ("dot",),
            attentions,
            GUARDS,
            "sum_j w(softmax_j s) v[j] = w(sum over tiles of e^(s - m) v) / sum over tiles of e^(s - m)",
        ),
    ),
)
