"""The comment above a kernel: what it computes, the model's lines it comes from, the bytes it moves."""

from __future__ import annotations

from collections.abc import Iterator

from ...compiler.ir.graph import Axis, DType, Origin
from ...dsl.dims import Dim, product
from .regions import FREE, Region, value_name

LONGEST_LINE = 92
# Bytes of an element where floats of the model's type have two.
BYTES: dict[DType, int] = {"float": 2, "f32": 4, "f64": 8, "int": 8, "i8": 1, "bool": 1}


def header(region: Region, what: str = "") -> tuple[str, ...]:
    """The lines of the comment, without `#`; `what` says which share of the region it is."""
    least = () if what else (bound(region),)
    return (what + equation(region), *places(region.origins), *least)


def bound(region: Region) -> str:
    """What the kernel moves at least: each array once. Of one that it gathers from, nothing counts:
    which entries it reads depends on data."""
    gathered = {
        _source(region, n.inputs[0]) for n in region.nodes.values() if n.op in ("take", "topk")
    }
    read = [region.nodes[i] for i in region.leaves if i not in gathered]
    total = Dim()
    for node in [*read, *(region.nodes[i] for i in region.outputs)]:
        size = product([region.size(axis) for axis in node.axes])
        total = total + size * BYTES[node.type.dtype]
    return f"bytes in bf16, at least: {total}"


def _source(region: Region, node_id: int) -> int:
    node = region.nodes[node_id]
    while node.op in FREE and node.inputs:
        node = region.nodes[node.inputs[0]]
    return node.id


def places(origins: tuple[Origin, ...]) -> Iterator[str]:
    """The model's lines that a kernel comes from, each with the regions that it makes."""
    found: dict[str, dict[str, None]] = {}
    for origin in origins:
        outer = origin.spans[-1] if origin.spans else None
        line = f"{outer.source.name}:{outer.line}" if outer else ""
        found.setdefault(line, {})[origin.region] = None
    for line, regions in found.items():
        named = ", ".join(filter(None, regions))
        yield " ".join(filter(None, [line, f"({named})" if named and line else named]))


INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "le": "<=", "lt": "<", "eq": "=="}


def equation(region: Region) -> str:
    """What the kernel computes, on one line."""
    output = region.nodes[region.outputs[0]]
    left = f"{value_name(region.node)}[{_axes(output.axes)}]"
    right = _term(region, output.id)
    text = f"{left} = {right}"
    return text if len(text) <= LONGEST_LINE else text[: LONGEST_LINE - 3] + "..."


def _axes(axes: tuple[Axis, ...]) -> str:
    return ", ".join(a.name for a in axes)


def _term(region: Region, node_id: int) -> str:
    node = region.nodes[node_id]
    if node.op == "leaf":
        return region.names[node_id]
    if node.op == "const":
        return str(node.attrs["value"])
    terms = [_term(region, i) for i in node.inputs]
    if node.op in FREE | {"cast"} and terms:
        return terms[0]
    if node.op in INFIX:
        return f"({f' {INFIX[node.op]} '.join(terms)})"
    named = node.attrs.get("axes") or node.attrs.get("axis") or ()
    axes = named if isinstance(named, tuple) else (named,)
    over = f"; {', '.join(map(str, axes))}" if axes and node.op not in FREE else ""
    return f"{node.op}({', '.join(terms)}{over})"
