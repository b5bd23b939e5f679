"""dot(x, W) -> dot(x, packed(W)): a matrix is stored once in the order in which it is multiplied.

    time of a product = launch + max(2 rows |W| / flops, bytes(W) / bandwidth)

Rows do not decide: what a packed matrix saves is the reordering at every call when there are many
rows, and strided reads when there are few. What decides is the launch, which is dearer than that
of a plain product: a matrix that is read faster than that stays plain. `packed` is the identity,
so the equation holds exactly; the packed matrix is a derived parameter in place of the original.
Declined for a matrix that something else reads (a tied table), which would be stored twice, and in
the programs of a decoding: a step of a few rows reads it fastest in plain order, and they share it.
Whether there is a packed order for a dtype on a CPU, the text decides where it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...dsl.dims import product as size_of
from ..ir.graph import Axis, Node, elements
from ..rewrite import Edit, Guard, Pass, Rewrite, Rule, close
from .parameters import refuse_copy, tied
from .properties import other_readers, parameter_expression, traffic

LAUNCH, BANDWIDTH, ELEMENT = 20e-6, 20e9, 4  # s, bytes/s of a CPU, bytes of a float32
LEAST = int(LAUNCH * BANDWIDTH / ELEMENT)  # elements


@dataclass(frozen=True, slots=True)
class Product:
    """A product of rows x with a weight, which is `raises` of what is `stored`.

    `members` are the nodes that make the stored value from weights.
    """

    node: Node
    x: Node
    weight: Node
    stored: Node
    raises: tuple[Node, ...]
    members: frozenset[int]

    @property
    def summed(self) -> tuple[Axis, ...]:
        return self.node.attrs.axes("axes")


def products(edit: Edit, node: Node) -> Iterator[Product]:
    """A product of what is computed with what is made of weights."""
    for x, weight in (edit.operands(node), edit.operands(node)[::-1]):
        if not parameter_expression(edit, x.id) and parameter_expression(edit, weight.id):
            stored, raises = _stored(edit, weight)
            members = parameter_expression(edit, stored.id) or frozenset()
            yield Product(node, x, weight, stored, tuple(raises), members)


def pack(edit: Edit, found: Product) -> Rewrite:
    stored, node = found.stored, found.node
    inner = tuple(axis for axis in stored.axes if axis in found.summed)
    operand = edit.add("packed", (stored.id,), {"inner": inner})
    for cast in reversed(found.raises):
        operand = edit.add("cast", (operand,), cast.attrs)
    moved = edit.add("dot", (found.x.id, operand), node.attrs)
    rows, columns = (
        size_of([a.size for a in stored.axes if (a in found.summed) == within])
        for within in (False, True)
    )
    bytes_ = traffic(edit, [found.x.id, stored.id], [node.id])
    return Rewrite({node.id: moved}, f"{rows} x {columns} for oneDNN", bytes_, bytes_)


def _stored(edit: Edit, weight: Node) -> tuple[Node, list[Node]]:
    """The weight as it is stored, and the casts, innermost last, that raise it for the product."""
    raises = []
    while weight.op == "cast" and weight.type.dtype != "float":
        raises.append(weight)
        weight = edit[weight.inputs[0]]
    return weight, raises


def _is_no_matrix(edit: Edit, found: Product) -> bool:
    shared, summed = set(found.x.axes) & set(found.weight.axes), set(found.summed)
    return not (summed and shared == summed < set(found.weight.axes))


def _is_decoded(edit: Edit, found: Product) -> str:
    if any(function.states or function.left for function in edit.program.functions):
        return "a step reads it as it is stored, and the programs of a decoding share it"
    return ""


def _is_packed(edit: Edit, found: Product) -> bool:
    made = any(edit[i].op in ("packed", "derived") for i in found.members)  # by an earlier run
    return made or found.stored.type.dtype != "float"


def _is_small(edit: Edit, found: Product) -> str:
    count = elements(found.stored.axes).evaluate(edit.program.sizes)
    if count < LEAST:
        return f"{count:,} elements are read before a packed product has begun"
    return ""


def _is_tied(edit: Edit, found: Product) -> str:
    root, others = other_readers(edit, found.weight, found.node)
    return tied(root, others[0]) if others else ""


def _is_made_dearly(edit: Edit, found: Product) -> str:
    making = [i for i in found.members if edit[i].op != "weight"]
    region = close(edit, making, [found.stored.id])
    return refuse_copy(edit, region, (found.stored.type,)) if region.nodes else ""


GUARDS = (
    Guard("matrix", "x and W share the summed axes alone, and W has others", _is_no_matrix),
    Guard("no-decoding", "no step of a few rows reads it", _is_decoded),
    Guard("plain", "W is not packed yet, and in the dtype of the model", _is_packed),
    Guard("large", "reading W takes longer than to begin", _is_small),
    Guard("untied", "nothing else reads W", _is_tied),
    Guard(
        "no-copy", "what W is made of is not kept as well, and not much smaller", _is_made_dearly
    ),
)

PACK_WEIGHTS = Pass(
    "pack-weights",
    "dot(x, W) = dot(x, packed(W))",
    (Rule("pack-weight", pack, ("dot",), products, GUARDS, "dot(x, W) = dot(x, packed(W))"),),
)
