"""What a plan of kernels moves, read off a graph: bytes of operands and results, each once.

The rule: every node that computes something is a kernel; it reads each distinct operand once and
writes its results once. Views are free: an operand is read where it is stored, as many elements of it
as the view has (a broadcast: as many as are stored). Constants, indices and sizes are computed where
they are used. A lookup reads no more of its table than its result has. Of an `append` only the new
rows move. A layer kind counts as often as it runs. Of the graph as elaborated this is the unfused
plan, of an optimised one the fused plan; a float that the run decides has two bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..dsl.dims import Dim, minimum
from .buffers import AT_LOAD
from .cost import LOOPS, cost, kinds
from .ir.graph import STATE, Function, Node, Program, elements
from .ops import FUSED
from .passes.properties import ELEMENT_BYTES, VIEWS, bytes_of
from .unknowns import between

COMPUTED = frozenset({"const", "index", "size"})
FREE = VIEWS | COMPUTED | AT_LOAD | LOOPS | frozenset({"input", "state", "result", "stop_gradient"})


@dataclass(frozen=True, slots=True)
class Plan:
    """How many kernels run, and the bytes that they move: forms in the run-time sizes."""

    kernels: Dim
    moved: Dim


def plan(program: Program) -> Plan:
    """The plan in which each node of the program is a kernel."""
    kernels, moved = Dim(), Dim()
    for _, function, count in kinds(program):
        for node in function.nodes:
            if node.op not in FREE:
                kernels = kernels + count
                moved = moved + count * _moved(program, function, node).substitute(program.sizes)
    return Plan(kernels, moved)


def lower_bound(program: Program, at: Mapping[str, int]) -> int | None:
    """Bytes of weights, inputs, states and outputs, each once, at sizes `at`: what any plan moves.

    Of a bank that tensors index, the least that a call may read. None where a size is missing.
    """
    report = cost(program, at)
    weights, _, _ = between(report.weight_bytes, {u.name: u for u in report.unknowns}, at)
    main = program.main
    ends = [main[i] for i in main.inputs]
    ends += [main[i] for name, i in main.outputs if not name.startswith(STATE)]
    states = [count * bytes_of(n.type) for _, f, count in kinds(program) for n in f.states]
    total = sum((*map(bytes_of, (node.type for node in ends)), *states), weights)
    return total.substitute(program.sizes).substitute(at).constant


def _moved(program: Program, function: Function, node: Node) -> Dim:
    if node.op == "append":
        return bytes_of(function[node.inputs[1]].type) * 2
    read: dict[int, Dim] = {}
    for position, source, size in _stored(function, node):
        table = _looked_up(program, node, position)
        kind = function[source].type.dtype
        found = (size if table is None else minimum(size, table)) * ELEMENT_BYTES[kind]
        read[source] = found if source not in read else _larger(read[source], found)
    return sum(read.values(), sum(map(bytes_of, node.types), Dim()))


def _larger(a: Dim, b: Dim) -> Dim:
    """Of two forms, the one with more terms or the larger constant: an array read under two views."""
    return max(a, b, key=lambda form: (len(form.symbols()), form.constant or 0, str(form)))


def _stored(function: Function, node: Node) -> Iterator[tuple[int, int, Dim]]:
    """Of each operand that is in memory: its position, the stored value, how many elements are read."""
    for position, operand in enumerate(node.inputs):
        value = function[operand]
        size = elements(value.axes)
        while value.op in VIEWS or value.op == "stop_gradient":
            source = function[value.inputs[0]]
            size = elements(source.axes) if value.op == "broadcast" else size
            value = source
        if value.op not in COMPUTED:
            yield position, value.id, size


def _looked_up(program: Program, node: Node, position: int) -> Dim | None:
    """The elements that lookups pick of an operand, if lookups alone read it."""
    if node.op == "take":
        return elements(node.axes) if position == 0 else None
    if node.op not in FUSED:
        return None
    body = program.body(node)
    readers = [n for n in body.nodes if body.inputs[position] in n.inputs]
    takes = [n for n in readers if n.op == "take" and n.inputs[0] == body.inputs[position]]
    return elements(takes[0].axes) if readers and len(takes) == len(readers) == 1 else None
