"""dot(x, W1), dot(x, W2), ... -> slices of dot(x, concat(W1, W2, ...)): x is read once.

Legal when all contract the same axes of one x with weights that share no other axis with it: the
columns of a product do not know of each other. Biases are packed too when every member has one.
The packed matrix is a derived parameter; a weight that something else reads (a tied table) stays
out, or it would be stored twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...dsl.dims import Dim
from ..ir.graph import Axis, Node, elements
from ..rewrite import Edit, Guard, Pass, Rewrite, Rule
from .parameters import tied
from .properties import line, other_readers, parameter_expression, traffic


@dataclass(frozen=True, slots=True)
class Projection:
    """dot(x, weight), and the `add` of a bias to it where that is its only reader."""

    product: Node
    weight: Node
    columns: tuple[Axis, ...]
    biased: Node | None = None
    bias: Node | None = None

    @property
    def size(self) -> Dim:
        return elements(self.columns)


@dataclass(frozen=True, slots=True)
class Projections:
    """The products of x that are alike, the one at hand among them, and of which weights nothing
    else is made: `tied` are the others, each with who reads its weight."""

    node: Node
    x: Node
    alike: tuple[Projection, ...]
    free: tuple[Projection, ...]
    tied: tuple[tuple[Node, Node], ...]


def projections(edit: Edit, node: Node) -> Iterator[Projections]:
    """A product of a value with a weight, and those that are like it."""
    for x, weight in (edit.operands(node), edit.operands(node)[::-1]):
        if parameter_expression(edit, x.id) is None and _columns(edit, x, weight, node):
            group = [p for p in (_projection(edit, u, x) for u in edit.users(x.id)) if p]
            alike = tuple(p for p in group if _alike(p, node, group))
            stored = [other_readers(edit, p.weight, p.product) for p in alike]
            free = tuple(p for p, (_, others) in zip(alike, stored, strict=True) if not others)
            tied = tuple((root, others[0]) for root, others in stored if others)
            yield Projections(node, x, alike, free, tied)


def _is_alone(edit: Edit, found: Projections) -> bool:
    return len(found.alike) < 2


def _is_told(edit: Edit, found: Projections) -> bool:
    return any(edit.before(p.product.id, found.node.id) for p in found.alike)


def _is_tied(edit: Edit, found: Projections) -> str:
    return tied(*found.tied[0]) if found.tied and len(found.free) < 2 else ""


def _columns(edit: Edit, x: Node, weight: Node, product: Node) -> tuple[Axis, ...]:
    """The axes that `weight` gives to a product with x; none when it is no projection of x."""
    summed = set(product.attrs.axes("axes"))
    shared = set(x.axes) & set(weight.axes)
    if shared != summed or parameter_expression(edit, weight.id) is None:
        return ()
    return tuple(a for a in weight.axes if a not in summed)


def _projection(edit: Edit, product: Node, x: Node) -> Projection | None:
    if product.op != "dot" or product.inputs[0] == product.inputs[1]:
        return None
    weight = edit[product.inputs[1 - product.inputs.index(x.id)]]
    columns = _columns(edit, x, weight, product)
    if not columns:
        return None
    if edit.used_once(product.id):
        (reader,) = edit.users(product.id)
        bias = [i for i in reader.inputs if i != product.id]
        if reader.op == "add" and bias and _is_bias(edit, edit[bias[0]], columns):
            return Projection(product, weight, columns, reader, edit[bias[0]])
    return Projection(product, weight, columns)


def _is_bias(edit: Edit, bias: Node, columns: tuple[Axis, ...]) -> bool:
    return set(bias.axes) == set(columns) and parameter_expression(edit, bias.id) is not None


def _alike(p: Projection, node: Node, group: list[Projection]) -> bool:
    """Of one kind with the product `node`: dtype, summed axes, dtype of the weight."""
    first = next(g for g in group if g.product.id == node.id)
    return (
        p.product.attrs == node.attrs
        and p.product.type.dtype == node.type.dtype
        and p.weight.type.dtype == first.weight.type.dtype
    )


def pack(edit: Edit, found: Projections) -> Rewrite:
    x, group = found.x, found.free
    biases = [p.bias for p in group if p.bias is not None]
    biased = len(biases) == len(group) and len({b.type.dtype for b in biases}) == 1
    parts = tuple(_part(edit, p) for p in group)
    packed = edit.axis("packed", sum((a.size for a in parts), Dim()))
    weight = _joined(edit, [p.weight for p in group], group, parts, packed)
    result = edit.add("dot", (x.id, weight), group[0].product.attrs)
    if biased:
        result = edit.add("add", (result, _joined(edit, biases, group, parts, packed)))
    values, start = {}, Dim()
    for p, part in zip(group, parts, strict=True):
        old = p.biased if biased and p.biased is not None else p.product
        values[old.id] = _column_slice(edit, result, packed, part, start, p.columns)
        start = start + part.size
    reads = [i for p in group for i in p.product.inputs]
    writes = [p.product.id for p in group]
    note = f"{len(group)} products of {line(x)}{' with biases' if biased else ''}"
    after = traffic(edit, [x.id, *(p.weight.id for p in group)], writes)
    return Rewrite(values, note, traffic(edit, reads, writes), after)


def _part(edit: Edit, p: Projection) -> Axis:
    return p.columns[0] if len(p.columns) == 1 else edit.axis("columns", p.size)


def _joined(
    edit: Edit,
    operands: list[Node],
    group: Sequence[Projection],
    parts: tuple[Axis, ...],
    packed: Axis,
) -> int:
    """The operands, each with its columns merged into one part, concatenated."""
    flat = tuple(
        node.id
        if len(p.columns) == 1
        else edit.add("merge", (node.id,), {"axes": p.columns, "into": part})
        for node, p, part in zip(operands, group, parts, strict=True)
    )
    return edit.add("concat", flat, {"axis": packed, "parts": parts})


def _column_slice(
    edit: Edit, whole: int, packed: Axis, part: Axis, start: Dim, columns: tuple[Axis, ...]
) -> int:
    piece = edit.add("slice", (whole,), {"axis": packed, "into": part, "start": start, "step": 1})
    if len(columns) == 1:
        return piece
    return edit.add("split", (piece,), {"axis": part, "into": columns})


GUARDS = (
    Guard("several", "x has more than one such product", _is_alone),
    Guard("first", "none of them stands before this one", _is_told),
    Guard("untied", "nothing else reads the weights of two of them", _is_tied),
)

PACK_PROJECTIONS = Pass(
    "pack-projections",
    "[x W1, x W2] = x [W1, W2]",
    (Rule("pack", pack, ("dot",), projections, GUARDS, "[x W1, x W2] = x [W1, W2]"),),
)
