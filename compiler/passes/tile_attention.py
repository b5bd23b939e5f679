"""y[i, e] = sum_j w(softmax_j s(i, j)) * v[j, e]  ->  attend: the scores s are never stored.

Legal when, between the sum over j and its leaves, every op acts alongside j: then a tile of keys
needs nothing of another tile but the running maximum and total. s may be any such expression over
tile products (dot of a value without j and one without i), gathers and leaves; w must be linear
in the weights. Declined: a reduction or contraction of scores, weights or scores that something
else reads, `round_to`. The mask's proved bounds on j - i come along as `upper` and `lower`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.graph import AttrValue, Axis, Node
from ..rewrite import Declined, Edit, Fuse, Outcome, Pass, Region, Rule, close
from .bounds import EVERYWHERE, Interval, Visibility
from .properties import VIEWS, constant, is_elementwise, line, traffic, unfused_traffic


@dataclass(frozen=True, slots=True)
class Attention:
    """A candidate: `product` sums weights times values over the axis `key`.

    `rows` are the axes of the weights, before or after relabelling, that the values lack.
    """

    product: Node
    weights: Node
    softmax: Node
    key: Axis
    rows: frozenset[Axis]

    def is_pair(self, node: Node) -> bool:
        """Has the key axis and a row axis: stored whole, it would be a score matrix."""
        return self.key in node.axes and not self.rows.isdisjoint(node.axes)


@dataclass(frozen=True, slots=True)
class _Refused(Exception):
    """Raised inside the walk; the rule turns it into `Declined`."""

    reason: str


def tile_attention(edit: Edit, node: Node) -> Outcome:
    """Starts at a dot over one axis, one of whose operands comes from a softmax over that axis."""
    for weights, values in (edit.operands(node), edit.operands(node)[::-1]):
        softmax = _softmax_above(edit, node, weights, values)
        if softmax is not None:
            (key,) = node.attrs.axes("axes")
            rows = frozenset({*weights.axes, *softmax.axes} - {*values.axes})
            try:
                return _fuse(edit, Attention(node, weights, softmax, key, rows))
            except _Refused as refused:
                return Declined(refused.reason)
    return None


def _softmax_above(edit: Edit, node: Node, weights: Node, values: Node) -> Node | None:
    """The softmax over the summed axis that `weights` comes from through any one-operand path."""
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
    return None


def _fuse(edit: Edit, site: Attention) -> Fuse:
    scores = _pair_closure(edit, site, site.softmax.inputs[0])
    after, masks = _weights_region(edit, site)
    heavy = _below_products(edit, scores)
    if not any(edit[i].op == "dot" for i in heavy):
        raise _Refused("the scores contain no product of queries and keys")
    members = {site.product.id, site.softmax.id, *after, *masks, *scores}
    _refuse_other_readers(edit, members, {site.softmax.id, *after, *heavy})
    region = close(edit, members, [site.product.id])
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


def _weights_region(edit: Edit, site: Attention) -> tuple[set[int], set[int]]:
    """The nodes between the softmax and the sum, and the masks they apply."""
    carriers: set[int] = set()
    masks: set[int] = set()
    current = site.weights
    while current.id != site.softmax.id:
        carriers.add(current.id)
        carrier = _linear_operand(edit, site, current)
        for other in current.inputs:
            if other != carrier and site.is_pair(edit[other]):
                masks |= _pair_closure(edit, site, other)
        current = edit[carrier]
    return carriers, masks


def _linear_operand(edit: Edit, site: Attention, node: Node) -> int:
    """The operand that carries the weights, when `node` is linear in it."""
    softmax = site.softmax.id
    carriers = [i for i in node.inputs if i == softmax or edit.reaches([softmax], [i])]
    allowed = LINEAR.get(node.op, ())
    if len(carriers) != 1 or node.inputs.index(carriers[0]) not in allowed:
        raise _Refused(f"`{node.op}` at {line(node)} is not linear in the weights")
    if node.op == "where" and constant(edit[node.inputs[2]]) != 0:
        raise _Refused(f"weights become another number at {line(node)}")
    _refuse_key_change(edit, site, node)
    return carriers[0]


# op -> the operand slots in which it is linear
LINEAR: dict[str, tuple[int, ...]] = {
    "mul": (0, 1),
    "div": (0,),
    "cast": (0,),
    "where": (1,),
    "stop_gradient": (0,),
} | {op: (0,) for op in VIEWS}


def _refuse_key_change(edit: Edit, site: Attention, node: Node) -> None:
    """A view must leave the key axis, and the values' axes, as they are."""
    if node.op in VIEWS:
        touched = set(node.axes) ^ set(edit[node.inputs[0]].axes)
        if site.key in touched:
            raise _Refused(f"`{node.op}` at {line(node)} moves keys")


def _pair_closure(edit: Edit, site: Attention, start: int) -> set[int]:
    """The pair values above `start`, through ops that act alongside the keys, down to leaves."""
    found: set[int] = set()
    todo = [start]
    while todo:
        node = edit[todo.pop()]
        if node.id not in found and site.is_pair(node) and node.op not in STORED:
            _refuse_op(edit, site, node)
            found.add(node.id)
            todo += node.inputs
    return found


# Pair values that exist in memory anyway: a tile of them is loaded.
STORED = frozenset({"input", "weight", "table", "derived", "result", "attend"})


def _refuse_op(edit: Edit, site: Attention, node: Node) -> None:
    if node.op == "dot":
        summed = set(node.attrs.axes("axes"))
        if any(site.is_pair(o) and summed & set(o.axes) for o in edit.operands(node)):
            raise _Refused(f"scores are contracted at {line(node)}")
    elif node.op in VIEWS:
        _refuse_key_change(edit, site, node)
    elif node.op == "take":
        if site.is_pair(edit[node.inputs[0]]):
            raise _Refused(f"scores are gathered at {line(node)}")
    elif node.op == "round_to" or not (is_elementwise(node) or node.op == "concat"):
        raise _Refused(f"`{node.op}` of scores at {line(node)}")


def _below_products(edit: Edit, scores: set[int]) -> set[int]:
    """The scores that a product or gather leads to. The rest are cheap masks and offsets, which
    other readers may compute for themselves."""
    heavy: set[int] = set()
    for node_id in edit.order():
        node = edit[node_id]
        if node_id in scores and (node.op in ("dot", "take") or heavy & set(node.inputs)):
            heavy.add(node_id)
    return heavy


def _refuse_other_readers(edit: Edit, members: set[int], private: set[int]) -> None:
    for member in sorted(private):
        outside = [u for u in edit.users(member) if u.id not in members]
        if outside or edit.is_output(member):
            what = "weights" if edit[member].op == "softmax" else f"`{edit[member].op}`"
            where = f"at {line(outside[0])}" if outside else "as an output"
            raise _Refused(f"the scores' {what} are read {where}")


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


TILE_ATTENTION = Pass(
    "tile-attention",
    "sum_j softmax_j(s) v[j] = (sum over tiles of e^(s - m) v) / (sum over tiles of e^(s - m))",
    (Rule("attend", tile_attention, ("dot",)),),
)
