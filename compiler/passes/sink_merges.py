"""f(merge(x), y) -> merge(f(x, split(y))) where a split of the merged axis lies below f.

Grouped heads are merged for the text's score hook and split again for the values; once the merge
has sunk to that split the two cancel, and scores keep the axes of their queries and keys. Legal
when f treats all positions of the merged axis alike: any elementwise op, a softmax along another
axis.
"""

from __future__ import annotations

from ..ir.graph import Axis, Node
from ..rewrite import Edit, Outcome, Pass, Rule
from .canonicalize import CANCEL_RELABEL, TIDY
from .properties import is_elementwise


def sink_merge(edit: Edit, node: Node) -> Outcome:
    """f(merge(x), y) -> merge(f(x, split(y))) where a split of the merged axis lies below f."""
    for operand in edit.operands(node):
        if operand.op == "merge" and _acts_alongside(node, operand.attrs.axis("into")):
            axis, parts = operand.attrs.axis("into"), operand.attrs.axes("axes")
            if _is_split_below(edit, node, axis, parts) and not set(parts) & set(node.axes):
                return _sunk(edit, node, axis, parts)
    return None


def _acts_alongside(node: Node, axis: Axis) -> bool:
    """Whether a node treats all positions of `axis` alike, and keeps the axis."""
    return is_elementwise(node) or (node.op == "softmax" and node.attrs["axis"] != axis)


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


def _sunk(edit: Edit, node: Node, axis: Axis, parts: tuple[Axis, ...]) -> int:
    inputs = tuple(_opened(edit, o, axis, parts) for o in edit.operands(node))
    inner = edit.add(node.op, inputs, node.attrs)
    return edit.add("merge", (inner,), {"axes": parts, "into": axis})


def _opened(edit: Edit, operand: Node, axis: Axis, parts: tuple[Axis, ...]) -> int:
    if axis not in operand.axes:
        return operand.id
    if operand.op == "merge" and operand.attrs["axes"] == parts:
        return operand.inputs[0]
    return edit.add("split", (operand.id,), {"axis": axis, "into": parts})


SINK_MERGES = Pass(
    "sink-merges",
    "f(merge(x), y) = merge(f(x, split(y)))",
    (Rule("sink-merge", sink_merge), CANCEL_RELABEL, *TIDY),
)
