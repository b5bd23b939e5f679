"""Tables that are read by position must have a row for every position of a run.

NumPy notices a row that is not there; on a GPU the read is undefined. So it is checked beforehand,
for the indices that follow from sizes alone: slots of an axis, with constants added.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..compiler.ir.graph import Function, Node, Program
from ..dsl.errors import IndexOutOfRange

SAME_VALUES = frozenset({"broadcast", "rename", "split", "merge", "transpose"})


def check_lookups(program: Program, sizes: Mapping[str, int]) -> None:
    """Raises `IndexOutOfRange` when a `take` would read beyond its axis at these sizes."""
    for function in program.functions:
        for node in function.nodes:
            if node.op == "take" and node.attrs["fill"] is None:
                _check(function, node, sizes)


def _check(function: Function, take: Node, sizes: Mapping[str, int]) -> None:
    axis = take.attrs.axis("axis")
    last, size = _last(function, take.inputs[1], sizes), axis.size.evaluate(sizes)
    if last is not None and last >= size:
        here, calls = next(iter(take.spans), None), take.spans[1:]
        raise IndexOutOfRange(axis=axis.name, index=last, size=size, span=here, calls=calls)


def _last(function: Function, node_id: int, sizes: Mapping[str, int]) -> int | None:
    """The greatest element of an index, where sizes alone decide it."""
    node = function[node_id]
    if node.op == "index":
        return node.attrs.axis("axis").size.evaluate(sizes) - 1
    if node.op == "const" and node.type.dtype == "int":
        return node.attrs.dim("value").evaluate(sizes)
    if node.op != "add" and node.op not in SAME_VALUES:
        return None
    parts = [_last(function, i, sizes) for i in node.inputs]
    return None if None in parts else sum(part for part in parts if part is not None)
