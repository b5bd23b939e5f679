"""W -> W' = dequantise(quantise(W)): weights that are contracted are kept in few bits.

This changes results, so it runs only where it is asked for, and it is split in two. Here is the
parameter map: every reader of a weight reads W' instead, whatever else it does with it. All that
follows is exact for these W', and is checked like any other pass: `read-codes` below, and
`derive-parameters`, which computes codes and scales at load and leaves `dequantise` to the run.

W is what a product is given at the end of folding and packing: a weight or an expression of
weights, under the views that lead to the product. Groups of `GROUP` entries lie along the last
axis of W that the product sums. A table that is looked up as well stays at 8 bits: every token
passes through it twice, and reading its rows costs nothing. Declined where the summed axes are no
multiple of a group, and where there is too little to save.

    read-codes:  take(dequantise(c, s), i) = dequantise(take(c, i), take(s, i)), along other axes;
                 likewise for views: rows of a table are read in few bits
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ...dsl.diagnostics import InternalError
from ..ir.graph import AttrValue, Axis, Node, elements
from ..ops.grouped import plan_grouped
from ..ops.quantise import Format, pieces
from ..rewrite import Edit, Guard, Pass, Rewrite, Rule
from .properties import VIEWS, bytes_of, parameter_expression

Quant = Literal["int8", "int4"]
BITS: Mapping[Quant, int] = {"int8": 8, "int4": 4}
# A norm's gain differs from entry to entry of a group. Folded in, it sets the steps by its largest,
# which with few steps costs more accuracy than the pass saves time; and not every backend folds, but
# all must have the same codes. What is read as codes is not packed for oneDNN either.
LEFT_OUT = ("pack-weights", "fuse-norm-linear")
GROUP = 32
FEWEST = 4096  # elements: below this a scale for each group and a call to read it save nothing


@dataclass(frozen=True, slots=True)
class Kept:
    """What a product reads of weights as it is stored, and its axes that the product sums."""

    root: Node
    summed: frozenset[Axis]


def kept(edit: Edit, node: Node) -> Iterator[Kept]:
    """A product of rows with a weight, or with the one that each row's index picks."""
    for value, weight, summed in _operands(edit, node):
        if parameter_expression(edit, value.id) is None and _is_quantisable(edit, weight):
            yield Kept(*_stored(edit, weight, summed))


def _operands(edit: Edit, node: Node) -> list[tuple[Node, Node, frozenset[Axis]]]:
    """(value, weight, summed axes) for each operand that may be the weight."""
    if node.op == "grouped":
        plan = plan_grouped(edit.program.body(node))
        outer = dict(zip(edit.program.body(node).inputs, edit.operands(node), strict=True))
        return [(outer[plan.x.id], outer[plan.matrices.id], frozenset(plan.inner))]
    a, b = edit.operands(node)
    summed = frozenset(node.attrs.axes("axes"))
    return [(a, b, summed), (b, a, summed)]


def _is_quantisable(edit: Edit, weight: Node) -> bool:
    """Whether it is made of weights alone and not quantised yet."""
    members = parameter_expression(edit, weight.id)
    return members is not None and all(edit[i].op != "dequantise" for i in members)


def _stored(edit: Edit, node: Node, summed: Collection[Axis]) -> tuple[Node, frozenset[Axis]]:
    """The value above views and raised precision, and its axes that the product sums."""
    while node.op in VIEWS or (node.op == "cast" and node.type.dtype in ("f32", "f64")):
        summed = _above(node, frozenset(summed))
        (node,) = edit.operands(node)
    return node, frozenset(summed) & frozenset(node.axes)


def _above(view: Node, summed: frozenset[Axis]) -> frozenset[Axis]:
    """The axes of a view's operand of which every part is summed."""
    if view.op == "rename":
        old = {new: axis for axis, new in view.attrs.pairs("pairs")}
        return frozenset(old.get(axis, axis) for axis in summed)
    if view.op == "split" and set(view.attrs.axes("into")) <= summed:
        return summed | {view.attrs.axis("axis")}
    if view.op == "merge" and view.attrs["into"] in summed:
        return summed | set(view.attrs.axes("axes"))
    return summed


def _is_small(edit: Edit, found: Kept) -> str:
    count = elements(found.root.axes).evaluate(edit.program.sizes)
    if count < FEWEST:
        return f"{_named(edit, found.root)} has {count:,} elements: too few to save anything"
    return ""


def _has_ragged_groups(edit: Edit, found: Kept) -> str:
    sizes, root = edit.program.sizes, found.root
    axis = _group_axis(edit, found)
    if axis is not None and axis.size.evaluate(sizes) % GROUP == 0:
        return ""
    along = ", ".join(f"`{a}` = {a.size.evaluate(sizes)}" for a in root.axes if a in found.summed)
    what = along or "no axis as it is stored"
    return f"{_named(edit, root)} is summed along {what}: no multiple of {GROUP}"


def _named(edit: Edit, root: Node) -> str:
    """The paths of the matrices that the value is made of."""
    members = parameter_expression(edit, root.id) or frozenset()
    weights = [edit[i] for i in sorted(members) if edit[i].op == "weight"]
    matrices = [w for w in weights if len(w.axes) > 1] or weights
    return ", ".join(dict.fromkeys(f"`{w.attrs['path']}`" for w in matrices))


def _group_axis(edit: Edit, found: Kept) -> Axis | None:
    """The last of the summed axes that whole groups fill, else the last."""
    sizes = edit.program.sizes
    axes = [a for a in found.root.axes if a in found.summed]
    axes.sort(key=lambda a: a.size.evaluate(sizes) % GROUP == 0)
    return axes[-1] if axes else None


def quantise(edit: Edit, found: Kept, asked: int) -> Rewrite:
    """All readers read W'; a copy of W, whose readers they were, is what is quantised."""
    root, axis = found.root, _group_axis(edit, found)
    if axis is None:
        raise InternalError(f"no group of {_named(edit, root)} lies along one axis")
    bits = 8 if _is_looked_up(edit, root) else asked
    per_byte = 8 // bits
    packed = edit.axis("packed", pieces(axis, per_byte)) if per_byte > 1 else axis
    groups = edit.axis("groups", pieces(axis, GROUP))
    attrs: dict[str, AttrValue] = {
        "axis": axis,
        "bits": bits,
        "group": GROUP,
        "packed": packed,
        "groups": groups,
    }
    copy = edit.add(root.op, root.inputs, root.attrs, root.types, root.hint)
    codes = edit.add("quantise", (copy,), attrs)
    parts = [edit.add("result", (codes,), {"index": i}) for i in range(len(edit[codes].types))]
    kept = sum((bytes_of(edit[i].type) for i in parts[1:]), bytes_of(edit[parts[0]].type))
    whole = edit.add("dequantise", tuple(parts), attrs)
    note = f"{_named(edit, root)} in int{bits}, groups of {GROUP} along `{axis}`"
    return Rewrite({root.id: whole}, note, bytes_of(root.type), kept)


def _is_looked_up(edit: Edit, node: Node) -> bool:
    """Whether rows of the value are read by index."""
    for user in edit.users(node.id):
        if user.op == "take" and user.inputs[0] == node.id:
            return True
        if user.op in VIEWS | {"cast"} and _is_looked_up(edit, user):
            return True
    return False


def picks(edit: Edit, node: Node) -> Iterator[Node]:
    """What picks entries of a matrix in few bits."""
    if edit[node.inputs[0]].op == "dequantise":
        yield node


def read_codes(edit: Edit, node: Node) -> int:
    """It does so before they are dequantised."""
    source = edit[node.inputs[0]]
    picked = [edit.add(node.op, (part, *node.inputs[1:]), node.attrs) for part in source.inputs]
    return edit.add("dequantise", tuple(picked), source.attrs)


def _axis(edit: Edit, node: Node) -> Axis:
    return Format.of(edit[node.inputs[0]].attrs).axis


def _picks_within_groups(edit: Edit, node: Node) -> bool:
    return not _acts_beside(node, _axis(edit, node))


def _runs_along_groups(edit: Edit, node: Node) -> bool:
    return any(_axis(edit, node) in x.axes for x in edit.operands(node)[1:])


def _acts_beside(node: Node, axis: Axis) -> bool:
    """Whether an op leaves `axis` and its groups alone. What a `take` puts outside must be 0."""
    if node.op == "take" and node.attrs["fill"] not in (None, 0):
        return False
    touched = {node.attrs["axis"]} if "axis" in node.attrs else set()
    if node.op == "rename":
        touched = {a for pair in node.attrs.pairs("pairs") for a in pair}
    return axis in node.axes and axis not in touched


def quantise_to(quant: Quant) -> tuple[Pass, Pass]:
    """The parameter map for `quant`, and the exact pass that follows from it."""

    def apply(edit: Edit, found: Kept) -> Rewrite:
        return quantise(edit, found, BITS[quant])

    rule = Rule("quantise", apply, ("dot", "grouped"), kept, GUARDS, "W -> s q(W)")
    return Pass("quantise", "W -> s q(W)", (rule,), exact=False), READ_CODES


GUARDS = (
    Guard("large", "W has enough elements to save something", _is_small),
    Guard("whole-groups", "an axis that is summed holds whole groups", _has_ragged_groups),
)

READ_CODES = Pass(
    "read-codes",
    "take(s q, i) = take(s, i) take(q, i)",
    (
        Rule(
            "read-codes",
            read_codes,
            ("take", "slice", "pick", "rename"),
            picks,
            (
                Guard("beside-groups", "it picks along other axes", _picks_within_groups),
                Guard("index-apart", "the index does not run along a group", _runs_along_groups),
            ),
            "take(s q, i) = take(s, i) take(q, i)",
        ),
    ),
)
