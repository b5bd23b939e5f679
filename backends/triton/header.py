"""The comment above a kernel: what it computes, the model's lines it comes from, the bytes it moves."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from ...compiler.ir.graph import Axis, Node, Origin
from ...compiler.passes.properties import ELEMENT_BYTES
from ...dsl.dims import Dim, product
from .regions import FREE, Region, value_name
from .steps import Scan

LONGEST_LINE, MOST_LINES = 92, 4
CUTS = ("slice", "pick", "rename", "split", "merge", "transpose")  # views that repeat no entry


def header(region: Region, what: str = "") -> tuple[str, ...]:
    """The lines of the comment, without `#`; `what` says which share of the region it is."""
    lines = wrap(
        what + equation(region), LONGEST_LINE, subsequent_indent="    ", max_lines=MOST_LINES
    )
    least = () if what else (bound(region),)
    return (*lines, *least, *places(region.origins))


def scan_header(scan: Scan) -> tuple[str, ...]:
    """The same for a whole scan: what it carries from step to step."""
    nodes, by = scan.region.nodes, f"{scan.length} at a time" if scan.chunk else "one at a time"
    carried = ", ".join(f"{nodes[i].hint or 'state'}[{_axes(nodes[i].axes)}]" for i in scan.carried)
    order = "from the last, " if scan.reverse else ""
    return (f"for steps along {scan.axis}, {order}{by}: {carried}", *places(scan.region.origins))


def bound(region: Region) -> str:
    """What the kernel moves at least: of each array once what it reads of it, and its results."""
    users: dict[int, list[Node]] = {}
    for node in region.nodes.values():
        for operand in node.inputs:
            users.setdefault(operand, []).append(node)
    read = ((region.nodes[i], _entries(region, region.nodes[i], users)) for i in region.leaves)
    written = ((region.nodes[i], _size(region, region.nodes[i])) for i in region.outputs)
    total = sum(
        (count * ELEMENT_BYTES[node.type.dtype] for node, count in (*read, *written)), Dim()
    )
    return f"bytes in bf16, at least: {total}"


def _entries(region: Region, node: Node, users: dict[int, list[Node]]) -> Dim:
    """How many entries of a value are surely read: all, but for slices; of what is gathered from none,
    for which they are depends on data."""
    found = Dim()
    for user in users.get(node.id, []):
        if user.op == "take" and user.inputs[0] == node.id:
            continue
        some = _entries(region, user, users) if user.op in CUTS else _size(region, node)
        if all(coefficient >= 0 for _, coefficient in (some - found).terms):
            found = some
    return found if users.get(node.id) else _size(region, node)


def _size(region: Region, node: Node) -> Dim:
    return product([region.size(axis) for axis in node.axes])


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
    """What the kernel computes."""
    output = region.nodes[region.outputs[0]]
    left = f"{value_name(region.node)}[{_axes(output.axes)}]"
    return f"{left} = {_term(region, output.id)}"


def _axes(axes: tuple[Axis, ...]) -> str:
    return ", ".join(a.name for a in axes)


def _term(region: Region, node_id: int) -> str:
    node = region.nodes[node_id]
    if node.op == "leaf":
        return region.names[node_id]
    if node.op == "const":
        return str(node.attrs["value"])
    if node.op in ("index", "size"):
        axis = node.attrs.axis("axis").name
        return axis if node.op == "index" else f"size of {axis}"
    terms = [_term(region, i) for i in node.inputs]
    if node.op in FREE | {"cast"} and terms:
        return terms[0]
    if node.op in INFIX:
        return f"({f' {INFIX[node.op]} '.join(terms)})"
    named = node.attrs.get("axes") or node.attrs.get("axis") or ()
    axes = named if isinstance(named, tuple) else (named,)
    over = f"; {', '.join(map(str, axes))}" if axes and node.op not in FREE else ""
    return f"{node.op}({', '.join(terms)}{over})"
