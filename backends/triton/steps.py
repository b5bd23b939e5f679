"""The region of a scan: the body of a step, or of a chunk of steps, with states between the steps.

An operand that is stepped through is read by `entry`, which adds the place of the step to the
coordinates of the rest; a state is a `carried` value, which has its coordinates and no others. The
views of the function around the scan are taken in, so an operand is read where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...compiler.ir.graph import Attrs, Axis, Function, Node, Program
from ...dsl.dims import Dim
from .regions import Importer, Region

COUNT = "count"  # the variable that has how many steps a chunk has
INSIDE = frozenset({"pointwise", "linear"})  # fused nodes that mean nothing but their bodies


@dataclass(slots=True)
class Scan:
    """The nodes of a region that its steps begin and end with.

    `sequences` maps a result of the scan to the value of a step; `initial` and `updates` are those
    of the states `carried`, `last` maps a result of the scan to the state that it is the last of.
    A chunk has `length` steps along `chunk`, the last one what is left.
    """

    region: Region
    axis: Axis
    reverse: bool
    chunk: Axis | None = None
    length: int = 1
    carried: list[int] = field(default_factory=list)
    initial: list[int] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    sequences: dict[int, int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)

    @property
    def roots(self) -> list[int]:
        """What a step computes."""
        return [*self.updates, *self.sequences.values()]


def scan_of(program: Program, function: Function, node: Node) -> Scan:
    """The region of a `scan` or `chunked_scan` of a function."""
    region = Region(node, dict(program.sizes))
    axis, body = node.attrs.axis("axis"), program.body(node)
    scan = Scan(region, axis, bool(node.attrs["reverse"]))
    if node.op == "chunked_scan":
        scan.chunk, scan.length = node.attrs.axis("chunk"), node.attrs.integer("length")
        (symbol,) = scan.chunk.size.symbols()
        region.sizes[symbol] = Dim.symbol(f"%{COUNT}")
    importer = Importer(program, function, region)
    first, states = node.attrs.integer("stepped"), node.attrs.integer("states")
    inside: dict[int, int] = {}
    for place, (inner, operand) in enumerate(zip(body.inputs, node.inputs, strict=True)):
        taken = importer.take(operand)
        if place < first:
            attrs = Attrs({"axis": axis, "chunk": scan.chunk})
            inside[inner] = region.add(replace(body[inner], op="entry", attrs=attrs), (taken,))
        elif place < first + states:
            inside[inner] = region.add(replace(body[inner], op="carried", attrs=Attrs()), ())
            scan.carried.append(inside[inner])
            scan.initial.append(taken)
        else:
            inside[inner] = taken
    _inlined(program, body, region, inside)
    outputs = [inside[i] for i in body.output_ids]
    scan.updates = outputs[-states:]
    for index in function.read_results(node):
        of_state = index - (len(node.types) - states)
        if of_state < 0:
            scan.sequences[index] = outputs[index]
        else:
            scan.last[index] = of_state
    region.outputs = tuple(scan.roots)
    return scan


def _inlined(program: Program, body: Function, region: Region, inside: dict[int, int]) -> None:
    """Adds the nodes of a body, and those of the bodies of its fused nodes, to the region."""
    several: dict[int, list[int]] = {}
    for node in body.nodes:
        if node.op == "result" and node.inputs[0] in several:
            inside[node.id] = several[node.inputs[0]][node.attrs.integer("index")]
        elif node.op in INSIDE:
            inner = program.body(node)
            values = dict(zip(inner.inputs, (inside[i] for i in node.inputs), strict=True))
            _inlined(program, inner, region, values)
            several[node.id] = [values[i] for i in inner.output_ids]
            inside[node.id] = several[node.id][0]
        elif node.op != "input":
            inside[node.id] = region.add(node, tuple(inside[i] for i in node.inputs))
