"""The shape of an `attend` body: what runs tile by tile along the key axis, and what does not.

    o = dot(w(softmax(s, t)), v, t)     with  s, v  local to tiles of t  and  w  linear

is o = a / l for running  m = max s,  l = sum exp(s - m),  a = dot(w(exp(s - m)), v, t), where a and
l are multiplied by exp(m_old - m_new) at each tile. Without a softmax a alone accumulates. A node
is *tile-local* when its elements at key j need only key j of its operands; other values along t (a
rename, a running sum) are computed whole and sliced. The factors have the row axes of the softmax;
structural ops between softmax and contraction move them as they move the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..ir.graph import Axis, Function, Node, TensorType
from .registry import OPS, infer

# Ops that only rearrange may stand between softmax and contraction; the attribute with their axes.
MOVES = {"rename": "pairs", "split": "axis", "merge": "axes", "pick": "axis", "slice": "axis"}
GENERATORS = ("broadcast", "index")  # they name the axis they make


class NotTileable(Exception):
    """Why a body is not of this shape."""


@dataclass(slots=True)
class AttendPlan:
    """How a body is tiled along `keys`. All ids are nodes of the body.

    `contractions` maps each accumulated `dot` or `sum` to the softmax that weighs it, or None;
    `weights` are the nodes between, in order; `rows` gives the row axes of softmaxes and weights.
    `totals` maps each `logsumexp` of the scores to the softmax that is of the same ones.
    """

    keys: Axis
    tiled: frozenset[int]
    softmaxes: tuple[int, ...] = ()
    contractions: dict[int, int | None] = field(default_factory=dict)
    rows: dict[int, tuple[Axis, ...]] = field(default_factory=dict)
    masks: dict[int, tuple[int, ...]] = field(default_factory=dict)
    source: dict[int, int] = field(default_factory=dict)  # softmax or weight -> its softmax
    totals: dict[int, int] = field(default_factory=dict)

    @property
    def weights(self) -> tuple[int, ...]:
        return tuple(i for i in self.source if i not in self.softmaxes)


def plan_attend(body: Function, keys: Axis | None = None) -> AttendPlan:
    """The plan of `body`, tiled along `keys` or the axis it normalises. Raises NotTileable."""
    keys = keys or _softmax_axis(body)
    plan = AttendPlan(keys, frozenset(_tile_local(body, keys)))
    plan.softmaxes = tuple(
        n.id for n in body.nodes if n.op == "softmax" and n.attrs["axis"] == keys
    )
    for node in body.nodes:
        if node.id in plan.softmaxes:
            _enter_softmax(plan, body, node)
        elif node.op == "logsumexp" and node.attrs["axis"] == keys:
            _enter_total(plan, body, node)
        elif _contracts(node, keys):
            _enter_contraction(plan, node)
        elif any(i in plan.source for i in node.inputs):
            _enter_weight(plan, body, node)
    _check_complete(plan, body)
    return plan


def _softmax_axis(body: Function) -> Axis:
    normalised = {n.attrs.axis("axis") for n in body.nodes if n.op == "softmax"}
    found = [axis for axis in normalised if any(_contracts(n, axis) for n in body.nodes)]
    if len(found) != 1:
        raise NotTileable("no single axis is both normalised and contracted")
    return found[0]


def _contracts(node: Node, axis: Axis) -> bool:
    return node.op in ("dot", "sum") and axis in node.attrs.axes("axes")


def _tile_local(body: Function, keys: Axis) -> Iterator[int]:
    """Nodes along the keys that need their operands at the same keys only."""
    for node in body.nodes:
        local = OPS[node.op].pointwise or node.op in GENERATORS or not mentions(node, keys)
        if keys in node.axes and node.op != "input" and len(node.types) == 1 and local:
            yield node.id


def mentions(node: Node, axis: Axis) -> bool:
    """Whether an attribute of the node names the axis: the op then acts along it."""
    todo = list(node.attrs.values())
    while todo:
        value = todo.pop()
        if isinstance(value, tuple):
            todo += value
        elif value == axis:
            return True
    return False


def runs_by_rows(body: Function, rows: Axis) -> bool:
    """Whether any run of entries of `rows` can be computed without the others."""
    local = all(
        OPS[n.op].pointwise or n.op in (*GENERATORS, "transpose", "size") or not mentions(n, rows)
        for n in body.nodes
    )
    return local and all(rows in body[i].axes for i in body.output_ids)


def _enter_softmax(plan: AttendPlan, body: Function, node: Node) -> None:
    if any(i in plan.source for i in node.inputs):
        raise NotTileable("a softmax of the weights of another")
    plan.source[node.id] = node.id
    plan.rows[node.id] = tuple(axis for axis in node.axes if axis != plan.keys)
    plan.masks[node.id] = tuple(_mask_chain(body, node.inputs[0]))


def _enter_total(plan: AttendPlan, body: Function, node: Node) -> None:
    """The sum of a softmax's exponentials is known when all tiles have been."""
    found = [i for i in plan.softmaxes if body[i].inputs == node.inputs]
    if not found:
        raise NotTileable("no softmax of the same scores")
    plan.totals[node.id] = found[0]


def _enter_contraction(plan: AttendPlan, node: Node) -> None:
    """A sum over the keys is accumulated, or, where no weights enter, computed whole."""
    weights = [i for i in node.inputs if i in plan.source]
    if not weights and plan.softmaxes:
        return
    if len(weights) > 1:
        raise NotTileable("the weights are multiplied with themselves")
    if weights and not set(plan.rows[weights[0]]) <= set(node.axes):
        raise NotTileable("the product also sums over rows")
    plan.contractions[node.id] = plan.source[weights[0]] if weights else None


def _enter_weight(plan: AttendPlan, body: Function, node: Node) -> None:
    """Between softmax and contraction only what is linear in the weights may stand."""
    reads = [i for i in node.inputs if i in plan.source]
    linear = {
        "mul": len(reads) == 1,
        "div": reads == [node.inputs[0]],
        "where": reads == list(node.inputs[1:2]) and is_constant(body, node.inputs[-1], 0.0),
    }
    moves = node.op in MOVES and not mentions(node, plan.keys)
    free = node.op in ("cast", "stop_gradient", "transpose")
    if not (linear.get(node.op, False) or moves or free):
        raise NotTileable(f"`{node.op}` stands between softmax and product")
    plan.source[node.id] = plan.source[reads[0]]
    plan.rows[node.id] = moved_rows(node, plan.rows[reads[0]]) if moves else plan.rows[reads[0]]


def moved_rows(node: Node, rows: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The row axes after an op of `MOVES`: those it consumes are rows all, or none is."""
    consumed = consumed_axes(node)
    if consumed.isdisjoint(rows):
        return rows
    if not consumed <= set(rows):
        raise NotTileable(f"`{node.op}` mixes row axes with others")
    return infer(node.op, node.attrs, (TensorType("f32", rows),))[0].axes


def consumed_axes(node: Node) -> set[Axis]:
    """The operand's axes that an op of `MOVES` acts on."""
    value = node.attrs[MOVES[node.op]]
    if node.op == "rename":
        return {old for old, _ in node.attrs.pairs("pairs")}
    return {value} if isinstance(value, Axis) else set(node.attrs.axes("axes"))


def is_constant(body: Function, node_id: int, value: float) -> bool:
    """Whether the node is the constant `value`, perhaps cast or broadcast."""
    node = body[node_id]
    while node.op in ("broadcast", "cast"):
        node = body[node.inputs[0]]
    return node.op == "const" and node.attrs["value"] == value


def _mask_chain(body: Function, score: int) -> Iterator[int]:
    """Conditions of the `where(c, s, -inf)` chain that ends in the scores."""
    node = body[score]
    while node.op in ("where", "cast"):
        if node.op == "where":
            if not is_constant(body, node.inputs[2], float("-inf")):
                return
            yield node.inputs[0]
        node = body[node.inputs[1 if node.op == "where" else 0]]


def _check_complete(plan: AttendPlan, body: Function) -> None:
    """Each softmax is used by contractions only, and no contraction feeds a tile."""
    if not plan.contractions or set(plan.softmaxes) - set(plan.contractions.values()):
        raise NotTileable("no product with the values follows the softmax")
    if not (plan.tiled | set(plan.source)).isdisjoint(body.output_ids):
        raise NotTileable("a value along the keys leaves the region")
    after = {*plan.contractions, *plan.totals}
    for node in body.nodes:
        if not after.isdisjoint(node.inputs):
            if node.id in plan.contractions or node.id in plan.tiled:
                raise NotTileable("a tile needs a value that all tiles make")
            after.add(node.id)
