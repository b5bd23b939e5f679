"""What a model costs: parameters by weight identity, operations by call, bytes kept and moved.

Everything is read off the graph: a contraction's flops are its op's own count, a weight counts
once however often it is read, a layer kind is counted once and multiplied by how often it runs.
Results are closed forms in the run-time sizes (`b`, `s`), and numbers once those are given. A
causal product is counted whole: the flops are those of the unmasked sums, an upper bound.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

from ..dsl.dims import Dim, minimum
from .buffers import AT_LOAD, VIEWS, Memory
from .cost_report import CostReport, WeightRow, Work
from .ir.graph import Axis, Function, Node, Parameter, Program, callees, elements, operand_types
from .ir.walk import cone, join
from .ops import FUSED, OPS
from .passes.drop_unread import drop_unread
from .passes.properties import ELEMENT_BYTES
from .reads import Picks, bank_reads, pattern, reads
from .rewrite import Session
from .state import state_of
from .unknowns import Unknown, depth_of, of_bank

ZERO, ONE = Dim(), Dim.of(1)
LOOPS = frozenset({"repeat", "scan"})  # what they run is counted where it stands
Place = TypeVar("Place", bound=Hashable)  # what sums of weights are by
Picked = Mapping[str, Picks | None]


def cost(program: Program, at: Mapping[str, int] | None = None) -> CostReport:
    """The report of a program as elaborated. `at` gives run-time sizes to evaluate the forms at.

    A layer that nobody reads has weights, and costs nothing else.
    """
    needed, _ = drop_unread(program, Session())
    regions = _regions(needed)
    sizes = dict(at or {})
    missing = run_time_symbols(program) - sizes.keys()
    weight_bytes, banks = weight_bytes_by(needed, reads(needed), pattern)
    return CostReport(
        program.name,
        weights_by(program, reads(program), lambda path: "")[""],
        _embedding(program),
        sum(regions.values(), Work()),
        tuple(sorted(regions.items())),
        state_of(needed),
        sum(weight_bytes.values(), ZERO),
        (*_depths(needed), *banks),
        _is_masked(needed),
        sizes,
        None if missing else Memory(needed, sizes, bank_reads(needed)).peak(needed.main),
    )


def weights_by(
    program: Program, picked: Picked, place: Callable[[str], Place]
) -> dict[Place, tuple[WeightRow, ...]]:
    """Rows by the place that is made of a path, in the order of the text.

    Layers of one repeat share a row where their place and sizes agree.
    """
    counts: dict[Place, Counter[tuple[str, int, bool, int]]] = defaultdict(Counter)
    sizes: dict[tuple[Axis, ...], int] = {}
    for parameter in program.parameters:
        if parameter.axes not in sizes:
            sizes[parameter.axes] = parameter.size(program.sizes)
        size, picks = sizes[parameter.axes], picked.get(parameter.path)
        active = size // picks.of * picks.entries if picks is not None and picks.bank else size
        row = (pattern(parameter.path), size, parameter.trained, active)
        counts[place(parameter.path)][row] += 1
    found = {
        at: tuple(
            WeightRow(path, n, size, trained, active)
            for (path, size, trained, active), n in rows.items()
        )
        for at, rows in counts.items()
    }
    return defaultdict(tuple, found)


# ------------------------------------------------------------------------ weights in a call


def weight_bytes_by(
    program: Program, picked: Picked, place: Callable[[str], Place]
) -> tuple[dict[Place, Dim], tuple[Unknown, ...]]:
    """Bytes of the weights that a call reads, each once, by place, and the unknowns of its banks.

    A table is read by as many rows as the call may look up, a bank by the entries it touches.
    """
    known = {p.path: p for p in program.parameters}
    totals: dict[Place, Dim] = {}
    unknowns: dict[str, Unknown] = {}
    for (at, size, picks), paths in _alike(program, picked, known, place).items():
        read = Dim.of(size)
        if picks is not None:
            entries = picks.most
            if picks.bank:
                made = tuple(of_bank(picks))
                unknowns |= {unknown.name: unknown for unknown in made}
                entries = made[0].symbol
            read = entries * (size // picks.of)
        more = _runs_of(program, paths) * read * ELEMENT_BYTES["float"]
        totals[at] = totals.get(at, ZERO) + more
    return totals, tuple(unknowns.values())


def _alike(
    program: Program,
    picked: Picked,
    known: Mapping[str, Parameter],
    place: Callable[[str], Place],
) -> dict[tuple[Place, int, Picks | None], list[str]]:
    """The paths of weights by place, size and how they are read."""
    found: dict[tuple[Place, int, Picks | None], list[str]] = {}
    sizes: dict[tuple[Axis, ...], int] = {}
    for path, picks in picked.items():
        axes = known[path].axes
        if axes not in sizes:
            sizes[axes] = known[path].size(program.sizes)
        found.setdefault((place(path), sizes[axes], picks), []).append(path)
    return found


def _runs_of(program: Program, paths: Sequence[str]) -> Dim:
    """How many of the weights at `paths` a call reads: fewer where a repeat is left early."""
    loops = {n.attrs.string("path"): n for n in program.main.nodes if "exit" in n.attrs}
    runs: Counter[tuple[str, int]] = Counter()
    total = ZERO
    for path in paths:
        match = re.match(r"(.*?)\[(\d+)\]", path)
        if match is None or match[1] not in loops:
            total = total + 1
        else:
            runs[match[1], int(match[2])] += 1
    for loop in {name for name, _ in runs}:
        known = [runs[loop, i] for i in range(len(_kinds(loops[loop])))]
        total = total + _left_early(depth_of(loop, len(known)).symbol, known)
    return total


def run_time_symbols(program: Program) -> set[str]:
    kinds = [program.main[i].type for i in program.main.inputs]
    return {s for t in kinds for a in t.axes for s in a.size.symbols()} - program.sizes.keys()


# --------------------------------------------------------------------------- operations


def _regions(program: Program) -> dict[str, Work]:
    """Work by region; a region inside a repeat is `path[].region`, all its iterations together."""
    found: dict[str, Work] = {}
    for path, function, count in kinds(program):
        for node in function.nodes:
            work = work_of(program, function, node).times(count)
            if work != Work():
                label = _region(path, node)
                found[label] = found.get(label, Work()) + work
    return found


def kinds(
    program: Program, function: Function | None = None, path: str = "", count: Dim = ONE
) -> Iterator[tuple[str, Function, Dim]]:
    """(path, function, how often it runs) of main, of each layer kind and each step of a scan."""
    function = function or program.main
    yield path, function, count
    for node in function.nodes:
        if node.op == "scan":
            steps = node.attrs.axis("axis").size.substitute(program.sizes)
            yield from kinds(program, program.body(node), path, count * steps)
        if node.op == "repeat":
            inner = join(path, f"{node.attrs.string('path')}[]")
            for kind in callees(node):
                times = count * iterations_of(path, node, kind)
                yield from kinds(program, program.function(kind), inner, times)


def _kinds(loop: Node) -> tuple[str, ...]:
    """The function that each iteration runs."""
    kinds = loop.attrs["kinds"]
    assert isinstance(kinds, tuple)
    return tuple(str(kind) for kind in kinds)


def iterations_of(path: str, loop: Node, kind: str) -> Dim:
    """How many iterations run a kind: a form in the depth where the repeat is left early."""
    counts = [int(k == kind) for k in _kinds(loop)]
    if "exit" not in loop.attrs:
        return Dim.of(sum(counts))
    return _left_early(_depth(path, loop).symbol, counts)


def _left_early(depth: Dim, counts: Sequence[int]) -> Dim:
    """The sum of the counts of the first `depth` iterations, of which at least one runs."""
    ends = [ZERO, ONE, *(minimum(depth, i) for i in range(2, len(counts))), depth]
    ends = ends if len(counts) > 1 else [ZERO, ONE]
    return sum((n * (b - a) for n, a, b in zip(counts, ends, ends[1:], strict=False)), ZERO)


def _depth(path: str, loop: Node) -> Unknown:
    return depth_of(join(path, loop.attrs.string("path")), len(_kinds(loop)))


def _depths(program: Program) -> tuple[Unknown, ...]:
    """How far repeats run that are left early."""
    loops = ((path, n) for path, function, _ in kinds(program) for n in function.nodes)
    found = [_depth(path, n) for path, n in loops if n.op == "repeat" and "exit" in n.attrs]
    return tuple({unknown.name: unknown for unknown in found}.values())


def _is_masked(program: Program) -> bool:
    """Whether a condition on two positions of one sequence hides some of what is computed."""
    conditions = (
        function[node.inputs[0]]
        for _, function, _ in kinds(program)
        for node in function.nodes
        if node.op == "where"
    )
    clocks = ([a.time for a in c.axes if a.time is not None] for c in conditions)
    return any(len(found) > len(set(found)) for found in clocks)


def _region(path: str, node: Node) -> str:
    """The outermost label of where a node came from."""
    label = next((o.region.split(".")[0] for o in node.origins if o.region), "")
    return join(path, label) if label else path


def work_of(program: Program, function: Function, node: Node) -> Work:
    """What one node does in a run; a fused node does what its body does."""
    if node.op in AT_LOAD | LOOPS:
        return Work()
    if node.op in FUSED:
        body = program.body(node)
        return sum((work_of(program, body, n) for n in body.nodes), Work())
    types = operand_types(node.op, [function[i] for i in node.inputs])
    op = OPS[node.op]
    counts = (count(node.attrs, types, node.types) for count in (op.flops, op.elementwise))
    return Work(*(c.substitute(program.sizes) for c in counts))


def work_where(program: Program, wanted: Callable[[Node], bool]) -> Work:
    """The operations of some nodes in one forward pass, as often as they run."""
    parts = (
        work_of(program, function, node).times(count)
        for _, function, count in kinds(program)
        for node in function.nodes
        if wanted(node)
    )
    return sum(parts, Work())


def weights_where(program: Program, wanted: Callable[[Node], bool]) -> int:
    """The elements of the weights that some nodes are."""
    read = {
        join(path, node.attrs.string("path"))
        for path, function, _ in kinds(program)
        for node in function.nodes
        if node.op == "weight" and wanted(node)
    }
    sizes = program.sizes
    return sum(p.size(sizes) for p in program.parameters if pattern(p.path) in read)


# --------------------------------------------------------------------------- parameters


def _embedding(program: Program) -> int:
    """Elements of the token embedding: the largest table that an `ids` input looks rows up in."""
    return max((_table_size(program, node) for node in _lookups(program)), default=0)


def _lookups(program: Program) -> Iterator[Node]:
    """The tables of main that are indexed by an expression of token ids; a bank is none."""
    main = program.main
    banks = {p.path for p in program.parameters if p.banks}
    ids = {i for i in main.inputs if main[i].attrs.get("kind") == "ids"}
    for node in main.nodes:
        if node.op == "take" and not ids.isdisjoint(cone(main, node.inputs[1:2])):
            source = main[node.inputs[0]]
            while source.op in VIEWS:
                source = main[source.inputs[0]]
            if source.op == "weight" and source.attrs["path"] not in banks:
                yield source


def _table_size(program: Program, node: Node) -> int:
    return elements(node.axes).evaluate(program.sizes)
