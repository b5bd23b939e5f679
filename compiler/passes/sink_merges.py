"""f(merge(x), y) -> merge(f(x, split(y))) where a split of the merged axis lies below f.

Grouped heads are merged for the text's score hook and split again for the values; once the merge
has sunk to that split the two cancel, and scores keep the axes of their queries and keys. Legal
when f treats all positions of the merged axis alike: any elementwise op, a softmax or its
logsumexp along another axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..ir.graph import Axis, Node
from ..rewrite import Edit, Guard, Pass, Rule
from .canonicalize import CANCEL_RELABEL, TIDY
from .properties import is_elementwise


@dataclass(frozen=True, slots=True)
class Merged:
    """`node` reads a merge of `parts` into `axis`."""

    node: Node
    axis: Axis
    parts: tuple[Axis, ...]


def merged_operands(edit: Edit, node: Node) -> Iterator[Merged]:
    for operand in edit.operands(node):
        if operand.op == "merge":
            yield Merged(node, operand.attrs.axis("into"), operand.attrs.axes("axes"))


def _mixes(edit: Edit, found: Merged) -> bool:
    return not _acts_alongside(found.node, found.axis)


def _stays_merged(edit: Edit, found: Merged) -> bool:
    return not _is_split_below(edit, found.node, found.axis, found.parts)


def _acts_alongside(node: Node, axis: Axis) -> bool:
    """Whether a node treats all positions of `axis` alike, and keeps the axis."""
    normalises = node.op in ("softmax", "logsumexp")
    return is_elementwise(node) or (normalises and node.attrs["axis"] != axis)


def _is_split_below(edit: Edit, node: Node, axis: Axis, parts: tuple[Axis, ...]) -> bool:
    todo, seen = [node.id], {node.id}
    while todo:
        for user in edit.users(todo.pop()):
            if user.op == "split" and user.attrs["axis"] == axis and user.attrs["into"] == parts:
                return True
            if user.id not in seen and _acts_alongside(user, axis):
                seen.add(user.id)
                todo.append(user.id)
    return False


def sink_merge(edit: Edit, found: Merged) -> int:
    node, axis, parts = found.node, found.axis, found.parts
    inputs = tuple(_opened(edit, o, axis, parts) for o in edit.operands(node))
    inner = edit.add(node.op, inputs, node.attrs)
    return edit.add("merge", (inner,), {"axes": parts, "into": axis})


def _opened(edit: Edit, operand: Node, axis: Axis, parts: tuple[Axis, ...]) -> int:
    if axis not in operand.axes:
        return operand.id
    if operand.op == "merge" and operand.attrs["axes"] == parts:
        return operand.inputs[0]
    return edit.add("split", (operand.id,), {"axis": axis, "into": parts})


GUARDS = (
    Guard("alongside", "f treats all positions of the merged axis alike", _mixes),
    Guard("undone-below", "a split of the merged axis lies below f", _stays_merged),
)

SINK_MERGES = Pass(
    "sink-merges",
    "f(merge(x), y) = merge(f(x, split(y)))",
    (
        Rule(
            "sink-merge",
            sink_merge,
            match=merged_operands,
            guards=GUARDS,
            equation="f(merge(x), y) = merge(f(x, split(y)))",
        ),
        CANCEL_RELABEL,
        *TIDY,
    ),
)
