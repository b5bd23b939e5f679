"""Where an op reads its operands: coordinates of a result to coordinates of each operand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ...compiler.ir.graph import Axis, Node
from ...compiler.ops import OPS
from ...dsl.dims import Dim
from .indexing import Coordinates, Indices, join
from .regions import Region

STEP = "step"  # the variable of a loop over the steps of a scan
Operand = dict[Axis, Dim]
Map = Callable[[Indices, Region, Node, Coordinates], Operand]
REDUCTIONS = ("sum", "amax", "dot", "softmax", "logsumexp")


def restrict(coordinates: Coordinates, axes: Sequence[Axis]) -> Operand:
    return {axis: coordinates[axis] for axis in axes}


def _rename(indices: Indices, region: Region, node: Node, at: Coordinates) -> Operand:
    new = dict(node.attrs.pairs("pairs"))
    (x,) = region.operands(node)
    return {axis: at[new.get(axis, axis)] for axis in x.axes}


def _split(indices: Indices, region: Region, node: Node, at: Coordinates) -> Operand:
    parts = node.attrs.axes("into")
    whole = join([at[a] for a in parts], [region.size(a) for a in parts])
    return {**at, node.attrs.axis("axis"): whole}


def _merge(indices: Indices, region: Region, node: Node, at: Coordinates) -> Operand:
    rest, found = at[node.attrs.axis("into")], dict(at)
    parts = node.attrs.axes("axes")
    for axis in reversed(parts[1:]):
        rest, found[axis] = indices.divide(rest, region.size(axis))
    found[parts[0]] = rest
    return found


def _slice(indices: Indices, region: Region, node: Node, at: Coordinates) -> Operand:
    start = node.attrs.dim("start").substitute(region.sizes)
    moved = at[node.attrs.axis("into")] * node.attrs.integer("step") + start
    return {**at, node.attrs.axis("axis"): moved}


def _pick(indices: Indices, region: Region, node: Node, at: Coordinates) -> Operand:
    return {**at, node.attrs.axis("axis"): node.attrs.dim("at").substitute(region.sizes)}


def _same(indices: Indices, region: Region, node: Node, at: Coordinates) -> Operand:
    return dict(at)


def _entry(indices: Indices, region: Region, node: Node, at: Coordinates) -> Operand:
    """At the step that a loop has reached, or a step of the chunk that starts there."""
    place, chunk = Dim.symbol(f"%{STEP}"), node.attrs["chunk"]
    inside = at[chunk] if isinstance(chunk, Axis) else Dim()
    return {**at, node.attrs.axis("axis"): place + inside}


# Ops with one operand that only move elements.
VIEWS: dict[str, Map] = {
    "broadcast": _same,
    "transpose": _same,
    "stop_gradient": _same,
    "rename": _rename,
    "split": _split,
    "merge": _merge,
    "slice": _slice,
    "pick": _pick,
    "entry": _entry,
}


def view(indices: Indices, region: Region, node: Node, at: Coordinates) -> Operand:
    """The operand's coordinates under an op of `VIEWS`."""
    (x,) = region.operands(node)
    return restrict(VIEWS[node.op](indices, region, node, at), x.axes)


def reads(
    indices: Indices, region: Region, node: Node, at: Coordinates
) -> Iterator[tuple[int, Operand]]:
    """Operands and where they are read, for ops that compute no index from data; the joined axis
    of a `concat` is taken relative to each part, or to the one that certainly holds it."""
    if node.op in VIEWS:
        yield node.inputs[0], view(indices, region, node, at)
    elif node.op == "concat":
        parts = list(_parts(region, node, at))
        certain = [p for p in parts if indices.within(p[2], region.size(p[1]))]
        for source, part, inside in certain or parts:
            yield source, restrict({**at, part: inside}, region.nodes[source].axes)
    elif OPS[node.op].pointwise if node.op in OPS else False:
        for source in node.inputs:
            yield source, restrict(at, region.nodes[source].axes)


def _parts(region: Region, node: Node, at: Coordinates) -> Iterator[tuple[int, Axis, Dim]]:
    """Each part of a join with the coordinate in it."""
    inside = at[node.attrs.axis("axis")]
    for source, part in zip(node.inputs, node.attrs.axes("parts"), strict=True):
        yield source, part, inside
        inside = inside - region.size(part)


def reached(
    indices: Indices, region: Region, roots: Sequence[tuple[int, Operand]]
) -> list[tuple[Node, Operand]]:
    """Every (node, coordinates) between the roots and the first reductions, those included."""
    found: dict[tuple[int, tuple[Dim, ...]], tuple[Node, Operand]] = {}
    todo = list(roots)
    while todo:
        node_id, at = todo.pop(0)
        node = region.nodes[node_id]
        key = node_id, tuple(at[axis] for axis in node.axes)
        if key not in found:
            found[key] = node, at
            todo += reads(indices, region, node, at)
    return list(found.values())
