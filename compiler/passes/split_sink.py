"""dot(softmax(concat(s, z))[of s], v) -> dot(softmax(s), v) * sigmoid(lse(s) - lse(z)): sinks set apart.

    e^s / (sum e^s + sum e^z)  =  e^s / sum e^s  *  1 / (1 + e^(lse z - lse s)),    lse x = log sum e^x

A sink z takes a share of the weights that no value gets (Xiao et al., 2023; a learned logit of each
head). The factor is one number a row, so it leaves the sum over keys, and the softmax is of the scores
alone, which `tile-attention` tiles. Legal when the slice that is weighed is one whole part of what is
joined, and nothing but casts and views of rows stand between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from ...dsl.dims import Dim
from ..ir.graph import Axis, Node, TensorType
from ..rewrite import Edit, Guard, Pass, Rule
from .properties import VIEWS, constant, is_elementwise, line

CARRIERS = VIEWS | {"cast", "stop_gradient"}


@dataclass(frozen=True, slots=True)
class Sunk:
    """`product` weighs `values` with the slice `part` of a softmax of `joined`; `carriers` stand
    between, the nearest to the product first, each with what it calls the keys.

    `joins` are the joins below `joined`, with only elementwise ops between; None stands for another op.
    """

    product: Node
    values: Node
    carriers: tuple[tuple[Node, Axis], ...]
    part: Node
    softmax: Node
    joined: Node
    joins: tuple[Node | None, ...]

    @property
    def axis(self) -> Axis:
        """Of the keys and the sink."""
        return self.part.attrs.axis("axis")

    @property
    def parts(self) -> tuple[Axis, ...]:
        """The axes that the scores are joined of: of the join with the most."""
        joins = (n for n in self.joins if n is not None)
        return max(joins, key=lambda n: len(n.axes)).attrs.axes("parts")


def sunk(edit: Edit, node: Node) -> Iterator[Sunk]:
    """A sum over one axis of values times a slice of a softmax of something joined."""
    if len(node.attrs.axes("axes")) != 1:
        return
    for weights, values in (edit.operands(node), edit.operands(node)[::-1]):
        (key,) = node.attrs.axes("axes")
        carriers, part = list[tuple[Node, Axis]](), weights
        while part.op in CARRIERS - {"slice"}:
            carriers.append((part, key))
            if part.op == "rename":
                key = {new: old for old, new in part.attrs.pairs("pairs")}.get(key, key)
            part = edit[part.inputs[0]]
        if part.op != "slice" or key != part.attrs.axis("into"):
            continue
        (softmax,) = edit.operands(part)
        if softmax.op == "softmax" and softmax.attrs["axis"] == part.attrs["axis"]:
            (joined,) = edit.operands(softmax)
            joins = tuple(_joins(edit, joined, softmax.attrs.axis("axis")))
            if any(joins):
                yield Sunk(node, values, tuple(carriers), part, softmax, joined, joins)


def _joins(edit: Edit, node: Node, axis: Axis) -> Iterator[Node | None]:
    if axis not in node.axes:
        return
    if node.op == "concat" and node.attrs["axis"] == axis:
        yield node
    elif is_elementwise(node) or node.op == "broadcast":
        for operand in edit.operands(node):
            yield from _joins(edit, operand, axis)
    else:
        yield None


def split(edit: Edit, found: Sunk) -> int:
    """The product with the scores' own softmax, times what the sink leaves of each row."""
    own, other = (0, 1) if _begins(found, 0) else (1, 0)
    key, rest = (found.parts[i] for i in (own, other))
    scores = _part(edit, found.joined.id, found.axis, own, key)
    sink = _part(edit, found.joined.id, found.axis, other, rest)
    total = edit.add("logsumexp", (scores,), {"axis": key})
    left = edit.add("sigmoid", (edit.add("sub", (total, _log_total(edit, sink, rest))),))
    kind = edit[total].type.dtype
    least, none = (edit.add("const", (), {"value": n}, (TensorType(kind),)) for n in (-inf, 0.0))
    factor = edit.add("where", (edit.add("eq", (total, least)), none, left))
    weights = edit.add("softmax", (scores,), {"axis": key})
    for node, called in reversed(found.carriers):
        weights, factor = (_carried(edit, node, called, i) for i in (weights, factor))
    (summed,) = found.product.attrs.axes("axes")
    values = found.values.id
    if key != summed:
        values = edit.add("rename", (values,), {"pairs": ((summed, key),)})
    return edit.add("mul", (edit.add("dot", (weights, values), {"axes": (key,)}), factor))


def _part(edit: Edit, value: int, axis: Axis, part: int, into: Axis) -> int:
    """One part of a joined value, along `into`."""
    node = edit[value]
    if axis not in node.axes:
        return value
    if node.op == "concat" and node.attrs["axis"] == axis:
        x, was = node.inputs[part], node.attrs.axes("parts")[part]
        return x if was == into else edit.add("rename", (x,), {"pairs": ((was, into),)})
    inputs = tuple(_part(edit, i, axis, part, into) for i in node.inputs)
    if node.op == "where" and _is_true(edit, inputs[0]):
        return inputs[1]
    attrs = node.attrs
    if node.op == "broadcast":
        axes = tuple(into if a == axis else a for a in attrs.axes("axes"))
        return edit.add("broadcast", inputs, {**attrs, "axes": axes})
    return edit.add(node.op, inputs, attrs)


def _is_true(edit: Edit, value: int) -> bool:
    node = edit[value]
    while node.op in VIEWS:
        node = edit[node.inputs[0]]
    return constant(node) is True


def _carried(edit: Edit, node: Node, key: Axis, value: int) -> int:
    """What a carrier makes of a value of rows: the keys keep their name."""
    if node.op == "transpose":  # an order is nothing here
        return value
    if node.op != "rename":
        return edit.add(node.op, (value,), node.attrs)
    pairs = tuple((old, new) for old, new in node.attrs.pairs("pairs") if new != key)
    return edit.add("rename", (value,), {"pairs": pairs}) if pairs else value


def _log_total(edit: Edit, x: int, axis: Axis) -> int:
    if axis.size == Dim.of(1):
        return edit.add("pick", (x,), {"axis": axis, "at": Dim()})
    return edit.add("logsumexp", (x,), {"axis": axis})


def _begins(found: Sunk, part: int) -> bool:
    """Whether the slice is this one of two parts."""
    start = Dim() if part == 0 else found.parts[0].size
    cut = found.part.attrs
    return cut.dim("start") == start and cut.axis("into").size == found.parts[part].size


# ------------------------------------------------------------------------------- guards


def _cut(edit: Edit, found: Sunk) -> str:
    two = len(found.parts) == 2 and found.part.attrs["step"] == 1
    if two and (_begins(found, 0) or _begins(found, 1)):
        return ""
    return "the weights are cut elsewhere than between two parts"


def _mixes(edit: Edit, found: Sunk) -> str:
    sizes = [p.size for p in found.parts]
    for node in found.joins:
        if node is None or [p.size for p in node.attrs.axes("parts")] != sizes:
            return f"the parts are mixed above {line(found.softmax)}"
    return ""


def _read_elsewhere(edit: Edit, found: Sunk) -> str:
    for node in (*(node for node, _ in found.carriers), found.part, found.softmax):
        if not edit.used_once(node.id):
            return f"the weights are read twice, at {line(node)}"
    return ""


GUARDS = (
    Guard("one-part", "the slice is one whole part of two", _cut),
    Guard("apart", "what the softmax is of is elementwise in joins of the same parts", _mixes),
    Guard("private", "no one else reads the weights", _read_elsewhere),
)

SPLIT_SINK = Pass(
    "split-sink",
    "softmax(concat(s, z))[of s] v = softmax(s) v * sigmoid(lse(s) - lse(z))",
    (
        Rule(
            "split",
            split,
            ("dot",),
            sunk,
            GUARDS,
            "dot(softmax(concat(s, z))[of s], v) = dot(softmax(s), v) * sigmoid(lse(s) - lse(z))",
        ),
    ),
)
