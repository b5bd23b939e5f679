"""Slices that cut a value into consecutive parts are one `split`: `q, k = packed.split(...)`.

The slices may stand in different fused regions; a region's input is traced to the value it is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ...compiler.ir.graph import Axis, Function, Node, Program
from ...compiler.ops import SCANS
from ...dsl.dims import Dim
from .layout import Value, ungrouped
from .scope import Scope, hint_of, labels_of
from .source import expression, number


def split_off(scope: Scope, node: Node, x: Value) -> Value | None:
    """The part of x that a slice reads, still along the sliced axis; None where it is no split."""
    axis, start = node.attrs.axis("axis"), node.attrs.dim("start")
    root, source = scope.rooted(node.inputs[0])
    program = scope.module.program
    parts = _consecutive(list(_slices(program, root.function, source)), axis, program.sizes)
    if not parts:
        return None
    labels = _labels(parts)
    if (source, axis) not in root.splits:
        root.splits[source, axis] = _split(scope, node, x, parts, labels)
    label = dict(zip((p.attrs.dim("start") for p in parts), labels, strict=True))[start]
    _name_reader(scope, node, label)
    return root.splits[source, axis][start]


def _slices(program: Program, function: Function, source: int) -> Iterator[Node]:
    """The slices of a value, also inside the fused nodes that read it."""
    for node in function.nodes:
        if source not in node.inputs:
            continue
        if node.op == "slice":
            yield node
        elif "body" in node.attrs and node.op not in SCANS:
            body = program.body(node)
            yield from _slices(program, body, body.inputs[node.inputs.index(source)])


def _consecutive(slices: Sequence[Node], axis: Axis, sizes: Mapping[str, int]) -> list[Node]:
    """The slices in order, if they cover the axis and each begins where the one before ends."""
    if any(n.attrs["axis"] != axis or n.attrs["step"] != 1 for n in slices):
        return []
    at = {n.attrs.dim("start"): n for n in slices}
    parts, end = [], Dim()
    while end in at:
        parts.append(at.pop(end))
        end += parts[-1].attrs.axis("into").size
    covered = (end - axis.size).substitute(sizes).constant == 0
    return parts if covered and not at and len(parts) > 1 else []


def _split(
    scope: Scope, node: Node, x: Value, parts: Sequence[Node], labels: Sequence[str]
) -> dict[Dim, Value]:
    axis = node.attrs.axis("axis")
    x = ungrouped(x, (axis,), scope.size)
    lengths = ast.List([scope.size(part.attrs.axis("into")) for part in parts])
    call = expression("{0}.split({1}, {2})", x.expr, lengths, number(x.dim(axis)))
    names = scope.assign_all(call, node, labels)
    return {
        part.attrs.dim("start"): replace(x, expr=name, weight=False)
        for part, name in zip(parts, names, strict=True)
    }


def _labels(parts: Sequence[Node]) -> list[str]:
    """Packed projections keep their own labels: one origin for each part."""
    labels = labels_of(parts[0])
    return labels if len(labels) == len(parts) else [hint_of(part) or "part" for part in parts]


def _name_reader(scope: Scope, node: Node, label: str) -> None:
    """The heads that are made of a part go by its name too."""
    readers = [n for n in scope.function.nodes if node.id in n.inputs]
    if len(readers) == 1 and readers[0].op == "split":
        scope.labels[readers[0].id] = label
