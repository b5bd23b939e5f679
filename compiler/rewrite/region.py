"""A region of a function: nodes that become the body of one fused node.

The body's inputs are the region's leaves (values from outside, in order of first use), its
outputs the region's values that someone outside reads. Sources that cost nothing, such as
constants and indices, are copied into the body rather than passed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..ir.graph import Builder, Function, Node
from .edit import Edit

FREE_SOURCES = frozenset({"const", "index", "size", "dequantise"})


def is_free(edit: Edit, node: Node) -> bool:
    """Costs nothing to have again in another kernel: a number, an index, a raised value.

    What codes stand for costs less than nothing: to store it takes more than to compute it.
    """
    if node.op != "cast":
        return node.op in FREE_SOURCES
    return node.type.dtype in ("f32", "f64")


@dataclass(frozen=True, slots=True)
class Region:
    """`nodes` in topological order, `leaves` read from outside, `outputs` read outside."""

    nodes: tuple[int, ...]
    leaves: tuple[int, ...]
    outputs: tuple[int, ...]


def close(edit: Edit, members: Collection[int], outputs: Collection[int] | None = None) -> Region:
    """The region of `members` and what is free above it; finds the outputs unless given."""
    wanted = set(members)
    todo = list(members)
    while todo:
        for source in edit[todo.pop()].inputs:
            if source not in wanted and is_free(edit, edit[source]):
                wanted.add(source)
                todo.append(source)
    nodes = tuple(i for i in edit.order() if i in wanted)
    leaves = dict.fromkeys(s for n in nodes for s in edit[n].inputs if s not in wanted)
    if outputs is None:
        outputs = [n for n in nodes if n in members and _escapes(edit, n, wanted)]
    return Region(nodes, tuple(leaves), tuple(outputs))


def _escapes(edit: Edit, node_id: int, region: set[int]) -> bool:
    return edit.is_output(node_id) or any(u.id not in region for u in edit.users(node_id))


def extract(edit: Edit, region: Region, name: str) -> Function:
    """The region as a function of its leaves; names of inputs and outputs are the values' hints."""
    body = Builder(name)
    inside: dict[int, int] = {}
    names = _Names()
    for leaf in region.leaves:
        node = edit[leaf]
        attrs = {"name": names.free(node.hint or "x")}
        inside[leaf] = body.add("input", (), attrs, (node.type,), node.origins, node.hint)
    for node_id in region.nodes:
        node = edit[node_id]
        inputs = tuple(inside[i] for i in node.inputs)
        inside[node_id] = body.add(node.op, inputs, node.attrs, node.types, node.origins, node.hint)
    outputs = [(names.free(edit[o].hint or "y"), inside[o]) for o in region.outputs]
    return body.finish(outputs)


class _Names:
    """Hands out names, numbering repeats: `x`, `x2`, `x3`."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}

    def free(self, wanted: str) -> str:
        count = self._count[wanted] = self._count.get(wanted, 0) + 1
        return wanted if count == 1 else self.free(f"{wanted}{count}")
