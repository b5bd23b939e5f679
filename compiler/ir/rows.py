"""Whether a function works row by row: its value at one entry of an axis needs no other entry.

A function does where no op of it reads or makes the axis as a whole (a sum over it, its index, its
size) and no other axis has a size that depends on its own. What holds for all entries then holds for any
few of them, so a backend may run the function on some rows only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...dsl.dims import Dim
from .graph import AttrValue, Axis, Function, Node, callees

# They name axes, but each row of the result is the same for however many there are.
ROW_BY_ROW = frozenset({"broadcast", "transpose"})


def mixing(functions: Mapping[str, Function], name: str, row: Axis) -> Node | None:
    """The first node of a function, or of what it runs, that does not work row by row along `row`."""
    for node in functions[name].nodes:
        if _mixes(node, row):
            return node
        for callee in callees(node):
            found = mixing(functions, callee, row)
            if found is not None:
                return found
    return None


def _mixes(node: Node, row: Axis) -> bool:
    axes = (axis for kind in node.types for axis in kind.axes)
    if any(axis != row and _depends(axis, row) for axis in axes):
        return True
    if node.op in ROW_BY_ROW:
        return False
    named = (part for key, value in node.attrs.items() if key != "exit" for part in _parts(value))
    return any(_depends(part, row) for part in named)


def _parts(value: AttrValue) -> Iterator[Axis | Dim]:
    """The axes and sizes in an attribute."""
    if isinstance(value, tuple):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, Axis | Dim):
        yield value


def _depends(part: Axis | Dim, row: Axis) -> bool:
    size = part.size if isinstance(part, Axis) else part
    return part == row or not size.symbols().isdisjoint(row.size.symbols())
