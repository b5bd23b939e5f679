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

from ...dsl.dims import product as size_of
from ..ir.graph import Axis, Node
from ..rewrite import Declined, Edit, Outcome, Pass, Rewrite, Rule, close
from .parameters import refuse_copy, tied
from .properties import other_readers, parameter_expression, traffic

LAUNCH, BANDWIDTH, ELEMENT = 20e-6, 20e9, 4  # s, bytes/s of a CPU, bytes of a float32
LEAST = int(LAUNCH * BANDWIDTH / ELEMENT)  # elements


def pack(edit: Edit, node: Node) -> Outcome:
    """Starts at a product with a weight."""
    for x, weight in (edit.operands(node), edit.operands(node)[::-1]):
        summed = node.attrs.axes("axes")
        if _is_matrix(edit, x, weight, summed):
            return _packed(edit, node, x, weight, summed)
    return None


def _is_matrix(edit: Edit, x: Node, weight: Node, summed: tuple[Axis, ...]) -> bool:
    """Whether rows of x, which is computed, meet a matrix of weights: no axis but those summed."""
    if parameter_expression(edit, x.id) or not parameter_expression(edit, weight.id):
        return False
    return bool(summed) and set(x.axes) & set(weight.axes) == set(summed) < set(weight.axes)


def _packed(edit: Edit, node: Node, x: Node, weight: Node, summed: tuple[Axis, ...]) -> Outcome:
    stored, raises = _stored(edit, weight)
    members = parameter_expression(edit, stored.id) or frozenset()
    if any(function.states or function.left for function in edit.program.functions):
        return Declined("a step reads it as it is stored, and the programs of a decoding share it")
    made = any(edit[i].op in ("packed", "derived") for i in members)  # by an earlier run
    if made or stored.type.dtype != "float":
        return None
    count = size_of([axis.size for axis in stored.axes]).evaluate(edit.program.sizes)
    if count < LEAST:
        return Declined(f"{count:,} elements are read before a packed product has begun")
    refused = _refuse(edit, node, weight, stored, members)
    if refused:
        return Declined(refused)
    inner = tuple(axis for axis in stored.axes if axis in summed)
    operand = edit.add("packed", (stored.id,), {"inner": inner})
    for cast in reversed(raises):
        operand = edit.add("cast", (operand,), cast.attrs)
    moved = edit.add("dot", (x.id, operand), node.attrs)
    rows, columns = (
        size_of([a.size for a in stored.axes if (a in summed) == within])
        for within in (False, True)
    )
    bytes_ = traffic(edit, [x.id, stored.id], [node.id])
    return Rewrite({node.id: moved}, f"{rows} x {columns} for oneDNN", bytes_, bytes_)


def _stored(edit: Edit, weight: Node) -> tuple[Node, list[Node]]:
    """The weight as it is stored, and the casts, innermost last, that raise it for the product."""
    raises = []
    while weight.op == "cast" and weight.type.dtype != "float":
        raises.append(weight)
        weight = edit[weight.inputs[0]]
    return weight, raises


def _refuse(edit: Edit, node: Node, weight: Node, stored: Node, members: frozenset[int]) -> str:
    root, others = other_readers(edit, weight, node)
    if others:
        return tied(root, others[0])
    region = close(edit, [i for i in members if edit[i].op != "weight"], [stored.id])
    return refuse_copy(edit, region, (stored.type,)) if region.nodes else ""


PACK_WEIGHTS = Pass(
    "pack-weights", "dot(x, W) = dot(x, packed(W))", (Rule("pack-weight", pack, ("dot",)),)
)
