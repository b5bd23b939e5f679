"""What a loop makes and nobody reads is not made, nor what it is given for that alone:

    (x, l) <- (f(x), g(x, l)) n times, l unread        =  x <- f(x) n times
    .., then (x, y) <- (f(x), y) at the end, x unread  =  ..

Always legal: what is read is computed as before. What decides an exit is read, and so is a state;
where rows may leave or states are left, the last layers stay. So does one state of a scan, and a
function that several loops run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..ir.graph import Attrs, AttrValue, Function, Node, Program, callees
from ..ops import LOOPS, SCANS
from ..rewrite import Moved, Moves, Pass, Session, Site, code

RULE = "drop-unread"
T = TypeVar("T")


def drop_unread(program: Program, session: Session) -> tuple[Program, Moves]:
    """The program with narrower loops, and where results went of repeats that do nothing."""
    needs = _Needs(program)
    loops = {f.name: needs.loops(f) for f in needs.functions}
    done = {f.name: f for f in needs.functions}
    for function in needs.functions:
        for loop in filter(_Loop.is_narrower, loops[function.name].values()):
            session.fired += 1
            session.sites.append(_site(program, function, loop))
            done |= {name: loop.narrowed_body(done[name]) for name in callees(loop.node)}
    moved: Moves = {}
    for name, function in done.items():
        done[name], gone = _with_loops(function, loops[name])
        moved |= {(name, old): Moved(new) for old, new in gone.items()}
    return program.with_functions(done.values()), moved


@dataclass(frozen=True, slots=True)
class _Loop:
    """A loop and what of it is needed, by position; of a repeat the first `runs` iterations."""

    node: Node
    operands: tuple[int, ...]
    results: tuple[int, ...]
    scalars: tuple[int, ...]
    runs: int

    def is_narrower(self) -> bool:
        return self != whole(self.node)

    def callees(self) -> tuple[str, ...]:
        return callees(self.narrowed())

    def narrowed(self) -> Node:
        attrs = self._scan() if self.node.op in SCANS else self._repeat()
        return replace(
            self.node,
            inputs=_chosen(self.node.inputs, self.operands),
            types=_chosen(self.node.types, self.results),
            attrs=Attrs({**self.node.attrs, **attrs}),
        )

    def narrowed_body(self, function: Function) -> Function:
        """A function that the loop runs, without inputs and outputs that are not needed."""
        given = len(self.node.inputs)
        others = range(len(self.node.types), len(function.outputs))
        inputs = _chosen(function.inputs, (*self.operands, *(given + i for i in self.scalars)))
        outputs = _chosen(function.outputs, (*self.results, *others))
        return Function(function.name, function.nodes, inputs, outputs)

    def _scan(self) -> dict[str, AttrValue]:
        stepped, first = self.node.attrs.integer("stepped"), _states(self.node).start
        return {
            "stepped": sum(i < stepped for i in self.operands),
            "states": sum(i >= first for i in self.results),
        }

    def _repeat(self) -> dict[str, AttrValue]:
        kinds, indices, scalars = _table(self.node)
        return {
            "kinds": kinds[: self.runs],
            "indices": indices[: self.runs],
            "scalars": tuple(column[: self.runs] for column in _chosen(scalars, self.scalars)),
            "carried": len(self.results),
        }


def whole(node: Node) -> _Loop:
    """All of a loop."""
    kinds, _, scalars = _table(node)
    counts = (len(node.inputs), len(node.types), len(scalars))
    operands, results, columns = (tuple(range(count)) for count in counts)
    return _Loop(node, operands, results, columns, len(kinds))


class _Needs:
    """Which outputs of each function are needed: from those of main back through every loop."""

    def __init__(self, program: Program) -> None:
        self.program, self.functions = program, code(program)
        nodes = [n for f in self.functions for n in f.nodes if n.op in LOOPS]
        self.callers = Counter(name for node in nodes for name in callees(node))
        self.outputs: dict[str, set[int]] = defaultdict(set)
        self.outputs[program.main_name] = set(range(len(program.main.outputs)))
        known = -1
        while known != (known := sum(map(len, self.outputs.values()))):  # needs only grow
            self._spread()

    def _spread(self) -> None:
        for function in self.functions:
            for loop in self.loops(function).values():
                for name in loop.callees():
                    outputs = len(self.program.function(name).outputs)
                    self.outputs[name] |= {*loop.results, *range(len(loop.node.types), outputs)}

    def loops(self, function: Function) -> dict[int, _Loop]:
        """The loops that are needed in a function, by id."""
        return self._traced(function)[1]

    def _traced(self, function: Function) -> tuple[set[int], dict[int, _Loop]]:
        """The values and the loops that the needed outputs of a function are computed from."""
        live = {function.output_ids[i] for i in self.outputs[function.name]}
        read: dict[int, set[int]] = defaultdict(set, {i: {0} for i in live})  # results, by node
        loops: dict[int, _Loop] = {}
        for node in reversed(function.nodes):
            if node.id not in live:
                continue
            sources = node.inputs
            if node.op in LOOPS:
                loops[node.id] = loop = self._needed(node, read[node.id])
                sources = _chosen(sources, loop.operands)
            for source in sources:
                read[source].add(node.attrs.integer("index") if node.op == "result" else 0)
            live.update(sources)
        return live, loops

    def _needed(self, node: Node, read: set[int]) -> _Loop:
        """What is needed of a loop of which the results `read` are."""
        if any(self.callers[name] > 1 for name in callees(node)):
            return whole(node)
        runs = self._runs(node, read)
        kinds, _, scalars = _table(node)
        names = kinds[:runs] if node.op == "repeat" else callees(node)
        bodies = [self.program.function(str(name)) for name in dict.fromkeys(names)]
        inputs = {i for body in bodies for i in self._inputs_read(body)}
        states, given = _states(node), len(node.inputs)
        entry = _entry(node) - states.start  # from the position of a state to that of its operand
        results = read | {i for body in bodies for i in self.outputs[body.name]}
        results &= set(range(len(node.types)))
        results |= {i for i in states if i + entry in inputs}
        if node.op in SCANS and results.isdisjoint(states):
            results.add(states[-1])
        operands = inputs - {i + entry for i in states} | {
            i + entry for i in results if i in states
        }
        return _Loop(
            node,
            tuple(i for i in range(given) if i in operands),
            tuple(sorted(results)),
            tuple(i for i in range(len(scalars)) if given + i in inputs),
            runs,
        )

    def _runs(self, node: Node, read: set[int]) -> int:
        """Up to the last iteration through which something that is read does not just pass."""
        kinds, _, _ = _table(node)
        leaving = [len(self.program.function(str(k)).outputs) > len(node.types) for k in kinds]
        if any(leaving):  # an exit or states
            return len(kinds)
        for runs in range(len(kinds), 0, -1):
            body = self.program.function(kinds[runs - 1])
            if any(body.inputs[i] != body.output_ids[i] for i in read):
                return runs
        return 0

    def _inputs_read(self, function: Function) -> Iterator[int]:
        live, _ = self._traced(function)
        return (i for i, node_id in enumerate(function.inputs) if node_id in live)


def _with_loops(function: Function, loops: dict[int, _Loop]) -> tuple[Function, dict[int, int]]:
    """The function with what is needed of its loops, and whose results are what they were given."""
    gone: dict[int, int] = {}
    nodes: list[Node] = []
    for node in function.nodes:
        source = loops.get(node.inputs[0]) if node.op == "result" else None
        if source is not None and node.attrs.integer("index") in source.results:
            index = source.results.index(node.attrs.integer("index"))
            if source.node.op == "repeat" and not source.runs:
                given = source.narrowed().inputs[index]
                gone[node.id] = gone.get(given, given)
                continue
            node = replace(node, attrs=Attrs({"index": index}))
        elif node.id in loops:
            node = loops[node.id].narrowed()
        inputs = tuple(gone.get(i, i) for i in node.inputs)
        nodes.append(node if inputs == node.inputs else replace(node, inputs=inputs))
    outputs = tuple((name, gone.get(i, i)) for name, i in function.outputs)
    return _swept(Function(function.name, tuple(nodes), function.inputs, outputs)), gone


def _swept(function: Function) -> Function:
    """Without what its outputs do not need."""
    live = {*function.inputs, *function.output_ids}
    for node in reversed(function.nodes):
        live.update(node.inputs if node.id in live else ())
    return replace(function, nodes=tuple(n for n in function.nodes if n.id in live))


def _site(program: Program, function: Function, loop: _Loop) -> Site:
    """Says what is dropped: results by the names that the loop's functions have for them."""
    names = [name for name, _ in program.function(callees(loop.node)[0]).outputs]
    dropped = [i for i in range(len(loop.node.types)) if i not in loop.results]
    what = [f"`{names[i]}`" for i in dropped]
    layers = len(_table(loop.node)[0])
    if loop.runs < layers:
        what.append(f"{layers - loop.runs} of {layers} layers, the last")
    reason = f"nobody reads {', '.join(what) or 'all that it is given'}"
    return Site(DROP_UNREAD.name, RULE, function.name, True, reason, loop.node.origins)


def _states(node: Node) -> range:
    """Which results are the last of a value that is passed on."""
    count = node.attrs.integer("states") if node.op in SCANS else len(node.types)
    return range(len(node.types) - count, len(node.types))


def _entry(node: Node) -> int:
    """The first operand that is passed on."""
    return node.attrs.integer("stepped") if node.op in SCANS else 0


def _table(node: Node) -> tuple[Any, Any, Any]:
    """The function, number and scalars of each iteration of a repeat."""
    if node.op != "repeat":
        return (), (), ()
    return node.attrs["kinds"], node.attrs["indices"], node.attrs["scalars"]


def _chosen(values: tuple[T, ...], positions: Iterable[int]) -> tuple[T, ...]:
    return tuple(values[i] for i in positions)


DROP_UNREAD = Pass(
    "drop-unread",
    "(x, l) <- (f(x), g(x, l)) n times, l unread = x <- f(x) n times",
    whole=drop_unread,
)
