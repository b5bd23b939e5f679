"""A function of the program made ready for given sizes: what can be decided before a run is.

Its nodes become the lines of one Python function of arrays, those of fused bodies among them: what a
node runs, its operands by name, and `del` where values die. Values that depend on sizes alone (masks,
angles) are computed here, once for all layers. A pointwise op may overwrite an operand that nothing
else reads. What a node runs is kept from sizes to sizes as far as those that it depends on stay.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType
from typing import Any, Protocol

from ...compiler.ir.graph import Axis, Function, Node, Program, callees, operand_types
from ...compiler.ops import LOOPS, OPS, Array, Call, Precision, prepared, same
from ...compiler.ops.attend import AttendPlan
from ...dsl.diagnostics import ArchError
from ...dsl.dims import Dim
from ..base import span_of

Run = Callable[..., Any]  # arrays -> array, or a tuple of them from a node with several results
Windows = Mapping[Axis, tuple[int, int]]
KEPT = 1 << 20  # elements of a value that is computed once for all layers, at most
# Results that may be the operand itself: pointwise ones; the others are views.
OVERLAYS = frozenset({"cast", "stop_gradient", "to_float", "round_to"})
FRESH = frozenset({"dot", "sum", "amax", "concat", "softmax"})  # and pointwise: arrays of their own
CONSTANT = frozenset({"weight", "derived"})  # computed when the program is loaded
# What may be stored otherwise than its type says, or lead to what is.
INEXACT = frozenset({"const", "state", "derived", *LOOPS})


@dataclass(frozen=True, slots=True)
class Ready:
    """A function for given sizes: (call, see, *arguments) -> the outputs.

    `call(node, operands)` computes what needs weights or the call path; `see(node id, value)` is shown
    the first result of every node of the function itself, where it was made ready to be watched.
    """

    run: Callable[..., list[Any]]

    def one(self, *arguments: Array) -> Any:
        """As what a node runs: the only output as it is; what is inside is not shown."""
        made = self.run(None, _unseen, *arguments)
        return tuple(made) if len(made) > 1 else made[0]


def _unseen(node_id: int, value: Array) -> None:
    """Looks at nothing."""


class Structure:
    """What holds for a function at all sizes.

    `reuse` says which operand a node may overwrite, `symbols` which run-time sizes it depends on,
    `read` is what a run reads: not what is for derived parameters alone. `tilings` are how the body of
    an attention is tiled, by the axes of keys and queries.
    """

    def __init__(self, program: Program, function: Function) -> None:
        readers = Counter(i for n in function.nodes for i in n.inputs)
        readers.update(function.output_ids)
        self.reuse = {
            n.id: next((k for k, i in enumerate(n.inputs) if _is_fresh(function, readers, i)), None)
            for n in function.nodes
            if OPS[n.op].pointwise
        }
        self.symbols = {n.id: tuple(sorted(symbols(program, n))) for n in function.nodes}
        self.all_symbols = tuple(sorted({s for found in self.symbols.values() for s in found}))
        read = {i for n in function.nodes if n.op != "derived" for i in n.inputs}
        self.read = read | set(function.output_ids)
        self.tilings: dict[tuple[object, object], tuple[AttendPlan, Axis | None] | None] = {}


def symbols(program: Program, node: Node) -> set[str]:
    """The run-time sizes that a node and what it runs depend on."""
    found: set[str] = set()
    for name in callees(node):
        for inner in program.function(name).nodes:
            found |= symbols(program, inner)
    todo: list[object] = [*node.attrs.values(), *(a for t in node.types for a in t.axes)]
    while todo:
        value = todo.pop()
        if isinstance(value, tuple):
            todo += value
        elif isinstance(value, Axis | Dim):
            found |= (value.size if isinstance(value, Axis) else value).symbols()
    return found - program.sizes.keys()


def _is_fresh(function: Function, readers: Counter[int], value: int) -> bool:
    """Whether the one reader of `value` alone can see its array."""
    while readers[value] == 1:
        node = function[value]
        if node.op not in OVERLAYS:
            return node.op in FRESH or OPS[node.op].pointwise
        (value,) = node.inputs
    return False


class Runs(Protocol):
    """Where a function that is made ready gets what its nodes run."""

    def structure(self, function: Function) -> Structure: ...

    def run_of(
        self, function: Function, node: Node, reuse: int | None, exact: frozenset[int]
    ) -> Run | None:
        """What a node runs; None for one that needs the call path."""

    def inlined(self, function: Function, node: Node) -> Function | None:
        """The body that a node means, where it runs as any function does."""

    def ready(self, function: Function) -> Ready: ...


def make_ready(function: Function, runs: Runs, sizes: Mapping[str, int], watched: bool) -> Ready:
    """The function for these sizes; nothing is overwritten in one that is watched."""
    lines = _Lines(runs, sizes, watched)
    arguments = [lines.slot() for _ in function.inputs]
    outputs = lines.enter(function, arguments)
    return Ready(lines.function(function.name, arguments, outputs))


@dataclass(frozen=True, slots=True)
class _Line:
    """One node: `run` of the values in slots `sources`; without it, it is the caller's to compute."""

    node: Node
    run: Run | None
    sources: tuple[int, ...]
    targets: tuple[int, ...]

    def text(self, number: int) -> str:
        operands = "".join(f"v{i}, " for i in self.sources)
        several = (self.run is None and self.node.op in LOOPS) or len(self.targets) > 1
        left = ", ".join(f"v{i}" for i in self.targets) + ("," if several else "")
        called = f"f{number}({operands})" if self.run else f"call(f{number}, ({operands}))"
        return f"{left} = {called}"


@dataclass(slots=True)
class _Lines:
    """The lines so far. A slot is a value: known here, an argument, or assigned by one line.

    What leaves its operand as it is has the operand's slot; a result of several, one of its node's.
    """

    runs: Runs
    sizes: Mapping[str, int]
    watched: bool
    lines: list[_Line | tuple[int, int]] = field(default_factory=list)  # or (node id, slot) to see
    known: dict[int, Any] = field(default_factory=dict)
    exact: set[int] = field(default_factory=set)  # stored as their types say
    slots: int = 0

    def slot(self) -> int:
        self.slots += 1
        return self.slots

    def enter(
        self, function: Function, arguments: Sequence[int], within: bool = False
    ) -> list[int]:
        """The function's lines on these slots. Gives those of its outputs."""
        structure = self.runs.structure(function)
        scope: dict[int, tuple[int, ...]] = {
            i: (slot,) for i, slot in zip(function.inputs, arguments, strict=True)
        }
        for node in function.nodes:
            skipped = node.op in CONSTANT and not self.watched and node.id not in structure.read
            if node.id not in scope and not skipped:
                scope[node.id] = self.results(function, structure, node, scope)
            if self.watched and not within:
                self.lines.append((node.id, scope[node.id][0]))
        return [scope[i][0] for i in function.output_ids]

    def results(
        self,
        function: Function,
        structure: Structure,
        node: Node,
        scope: Mapping[int, tuple[int, ...]],
    ) -> tuple[int, ...]:
        """The slots of what a node gives."""
        if node.op == "result":
            return (scope[node.inputs[0]][node.attrs.integer("index")],)
        sources = () if node.op == "derived" else tuple(scope[i][0] for i in node.inputs)
        are_known = all(i in self.known for i in sources) and self.is_small(node)
        body = self.runs.inlined(function, node)
        if body is not None and not are_known:
            return tuple(self.enter(body, sources, within=True))
        reuse = None if self.watched else structure.reuse.get(node.id)
        if reuse is not None and sources[reuse] in self.known:
            reuse = None
        exact = frozenset(k for k, slot in enumerate(sources) if slot in self.exact)
        run = self.runs.ready(body).one if body else self.runs.run_of(function, node, reuse, exact)
        if run is same:
            return sources
        targets = tuple(self.slot() for _ in node.types)
        if body is None and node.op not in INEXACT:
            self.exact.update(targets)
        if run is not None and are_known:
            made = run(*(self.known[i] for i in sources))
            self.known |= zip(targets, made if len(targets) > 1 else (made,), strict=True)
        else:
            self.lines.append(_Line(node, run, sources, targets))
        return targets

    def is_small(self, node: Node) -> bool:
        return all(math.prod(t.shape(self.sizes)) <= KEPT for t in node.types)

    def function(
        self, name: str, arguments: Sequence[int], outputs: Sequence[int]
    ) -> Callable[..., list[Any]]:
        """All lines as one Python function, with what they run and what is known as its globals."""
        texts = [f"def run({', '.join(['call', 'see', *_names(arguments)])}):"]
        values: dict[str, Any] = {}
        dying = self.dying(outputs)
        for number, line in enumerate(self.lines):
            if isinstance(line, tuple):
                texts.append(f"  see({line[0]}, v{line[1]})")
                continue
            values[f"f{number}"] = line.run or line.node
            texts.append(f"  {line.text(number)}")
            if number in dying:
                texts.append(f"  del {', '.join(_names(dying[number]))}")
        texts.append(f"  return [{', '.join(_names(outputs))}]")
        read = {*outputs, *(i for line in self.lines for i in _read(line))}
        values |= {f"v{i}": self.known[i] for i in read & self.known.keys()}
        exec(_compiled("\n".join(texts), name), values)
        made: Callable[..., list[Any]] = values["run"]
        return made

    def dying(self, outputs: Sequence[int]) -> dict[int, list[int]]:
        """Which slots no line after a line reads, by its number."""
        last: dict[int, int] = {}
        for number, line in enumerate(self.lines):
            made = () if isinstance(line, tuple) else line.targets
            last |= dict.fromkeys((*_read(line), *made), number)
        found: dict[int, list[int]] = {}
        for slot, number in last.items():
            if slot not in self.known and slot not in outputs:
                found.setdefault(number, []).append(slot)
        return found


def _read(line: _Line | tuple[int, int]) -> tuple[int, ...]:
    return line.sources if isinstance(line, _Line) else line[1:]


def _names(slots: Iterable[int]) -> list[str]:
    return [f"v{i}" for i in slots]


@lru_cache(256)
def _compiled(text: str, name: str) -> CodeType:
    """One text for all sizes, as a rule."""
    return compile(text, f"<{name}>", "exec")


def ready_primitive(
    function: Function,
    node: Node,
    sizes: Mapping[str, int],
    precision: Precision,
    reuse: int | None = None,
    windows: Windows | None = None,
    exact: frozenset[int] = frozenset(),
) -> Run:
    """An op with a meaning of its own. Its errors know the node's place in the text."""
    types = operand_types(node.op, [function[i] for i in node.inputs])
    run = prepared(
        node.op, Call(node.attrs, types, node.types, sizes, precision, windows or {}, reuse, exact)
    )
    return _located(run, node) if OPS[node.op].time == "M" else run


def _located(run: Run, node: Node) -> Run:
    def located(*arrays: Array) -> Any:
        try:
            return run(*arrays)
        except ArchError as error:
            if error.span is None:
                error.span, error.calls = span_of(node), node.spans[1:]
            raise

    return located
