"""Runs functions of a program in NumPy: ops that refer to functions here, the others as prepared.

A fused node runs its body; `attend` runs it tile by tile (`tiles.py`). Values are dropped after
their last use. Weights, derived parameters and tables are computed once and shared by all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ...compiler.ir.graph import STATE, Function, Node, Program, TensorType
from ...compiler.ir.walk import iterations, join
from ...compiler.ops import FUSED, LOOPS, Array, Precision
from ...compiler.ops.structure import along
from ..base import ValueKey
from .prepared import CONSTANT, Ready, Run, Structure, make_ready, ready_primitive

Values = tuple[Array, ...]
Observer = Callable[[ValueKey, Array], None]
Constants = Mapping[ValueKey, Array | Values]
LONGEST_CHUNK = 64
CALLING = CONSTANT | LOOPS | {"state"}  # they need the call path
RECENT = 4  # sizes that a function is kept ready for: a loop over chunks has a last one of its own


@dataclass(slots=True)
class Shared:
    """What outlives a run: the program, its constants, and functions made ready for recent sizes.

    `tile` is how many keys `attend` visits at a time, None for what suits the machine.
    """

    program: Program
    precision: Precision
    constants: Constants = field(default_factory=dict)
    tile: int | None = None
    tables: dict[tuple[str, tuple[int, ...]], Array] = field(default_factory=dict)
    structures: dict[str, Structure] = field(default_factory=dict)
    ready: dict[tuple[str, bool], dict[tuple[int, ...], Ready]] = field(default_factory=dict)
    runs: dict[tuple[object, ...], tuple[tuple[int, ...], Run | None]] = field(default_factory=dict)

    def structure(self, function: Function) -> Structure:
        name = function.name
        if name not in self.structures:
            self.structures[name] = Structure(self.program, function)
        return self.structures[name]


def _symbol(node: Node) -> str:
    """What stands for the length of a chunk in the sizes of its function."""
    (symbol,) = node.attrs.axis("chunk").size.symbols()
    return symbol


@dataclass(slots=True)
class Interpreter:
    """One run: sizes are bound, and `observe` sees every value outside fused bodies."""

    shared: Shared
    sizes: Mapping[str, int]
    observe: Observer | None = None
    states: Mapping[str, Array] = field(default_factory=dict)
    left: dict[str, Array] = field(default_factory=dict)  # states after the run, by path

    def run(self, function: Function, arguments: Sequence[Array], path: str = "") -> list[Array]:
        """The outputs of `function`, called with one array for each of its inputs."""
        return self.at(path, function)(*arguments)

    def at(self, path: str, function: Function) -> Callable[..., list[Array]]:
        """The function at a call path, ready to be called again and again."""

        def call(node: Node, operands: Sequence[Array]) -> Any:
            return self.call(node, function, operands, path)

        def see(node_id: int, value: Array | None) -> None:
            if self.observe is not None and value is not None:
                self.observe((path, node_id), value)

        return partial(self.ready(function).run, call, see)

    def ready(self, function: Function) -> Ready:
        """The function made ready for the sizes of this run."""
        recent = self.shared.ready.setdefault((function.name, self.observe is not None), {})
        sizes = self.values(self.structure(function).all_symbols)
        found = recent.get(sizes)
        if found is None:
            found = make_ready(function, self, self.sizes, self.observe is not None)
            while len(recent) >= RECENT:
                del recent[next(iter(recent))]
            recent[sizes] = found
        return found

    def structure(self, function: Function) -> Structure:
        return self.shared.structure(function)

    def values(self, symbols: Sequence[str]) -> tuple[int, ...]:
        return tuple([self.sizes.get(s, -1) for s in symbols]) if symbols else ()

    def run_of(
        self,
        function: Function,
        node: Node,
        reuse: int | None = None,
        exact: frozenset[int] = frozenset(),
    ) -> Run | None:
        """What a node runs; None for one that needs the call path."""
        sizes = self.values(self.structure(function).symbols[node.id])
        key = function.name, node.id, reuse, exact
        known = self.shared.runs.get(key)
        if known is None or known[0] != sizes:
            known = self.shared.runs[key] = sizes, self.made(function, node, reuse, exact)
        return known[1]

    def made(
        self, function: Function, node: Node, reuse: int | None, exact: frozenset[int]
    ) -> Run | None:
        if node.op in CALLING:
            return None
        if node.op == "table":
            value = self.table(node)
            return lambda: value
        if node.op in FUSED:
            return self.fused(node)
        precision = self.shared.precision
        return ready_primitive(function, node, self.sizes, precision, reuse, exact=exact)

    def inlined(self, function: Function, node: Node) -> Function | None:
        """The body of a fused node that has no way of its own to run."""
        if node.op not in FUSED or node.op == "derived" or self.run_of(function, node):
            return None
        return self.shared.program.body(node)

    def call(self, node: Node, function: Function, operands: Sequence[Array], path: str) -> Any:
        """A node that needs the call path. A weight that only derived parameters read is gone."""
        if node.op in ("weight", "derived"):
            return self.shared.constants.get((path, node.id))
        if node.op == "state":
            return self.states[join(path, node.attrs.string("path"))]
        if node.op == "repeat":
            return self.repeat(node, function, operands, path)
        if node.op == "scan":
            return self.scan(node, function, operands)
        return self.chunked_scan(node, function, operands)

    def repeat(
        self, node: Node, function: Function, operands: Sequence[Array], path: str
    ) -> Values:
        """With `exit`, a layer runs on the rows that have not stopped; with none of them, it does not."""
        count, leaving = len(node.types), node.attrs.get("exit")
        carried, captured = list(operands[:count]), list(operands[count:])
        if leaving:
            types = [function[i].type for i in node.inputs]
            return self.repeat_by_row(node, types, carried, captured, path)
        for inner, kind, numbers in self.layers(node, path):
            results = self.run(kind, [*carried, *captured, *numbers], inner)
            carried = results[:count]
            if leaving is not None and results[count]:
                break
            self.leave(kind, results, inner)
        return tuple(carried)

    def leave(self, function: Function, results: Sequence[Array], path: str) -> None:
        """Note the outputs that are states."""
        for (name, _), value in zip(function.outputs, results, strict=True):
            if name.startswith(STATE):
                self.left[join(path, name.removeprefix(STATE))] = value

    def repeat_by_row(
        self,
        node: Node,
        types: Sequence[TensorType],
        carried: list[Array],
        captured: list[Array],
        path: str,
    ) -> Values:
        (axis,) = node.attrs.axes("exit")
        rows = np.arange(axis.size.evaluate(self.sizes))
        places = [t.position(axis) if axis in t.axes else None for t in types]
        carried = [x.copy() for x in carried]
        for inner, kind, numbers in self.layers(node, path):
            if not len(rows):
                break
            chosen = [
                x if place is None else x.take(rows, place)
                for x, place in zip([*carried, *captured], places, strict=True)
            ]
            some = Interpreter(self.shared, {**self.sizes, str(axis.size): len(rows)}, self.observe)
            *results, done = some.run(kind, [*chosen, *numbers], inner)
            for x, place, value in zip(carried, places, results, strict=False):
                np.moveaxis(x, place or 0, 0)[rows] = np.moveaxis(value, place or 0, 0)
            rows = rows[~done]
        return tuple(carried)

    def layers(self, node: Node, path: str) -> Iterator[tuple[str, Function, list[Array]]]:
        """(call path, function, scalars) of each iteration of a `repeat`."""
        scalars = node.attrs["scalars"]
        assert isinstance(scalars, tuple)
        for step, (inner, kind) in enumerate(iterations(node, path)):
            numbers = [np.asarray(s[step]) for s in scalars if isinstance(s, tuple)]
            yield inner, self.shared.program.function(kind), numbers

    def scan(self, node: Node, function: Function, operands: Sequence[Array]) -> Values:
        """A loop over the steps. A sequence has each step's value at the step's own place."""
        axis, body = node.attrs.axis("axis"), self.shared.program.body(node)
        first, count = node.attrs.integer("stepped"), node.attrs.integer("states")
        stored = [self.shared.precision.storage(t.dtype) for t in node.types]
        made = [np.empty(t.shape(self.sizes), s) for t, s in zip(node.types, stored, strict=True)]
        rows = [
            np.moveaxis(x, t.position(axis), 0)
            for x, t in zip(made[:-count], node.types[:-count], strict=True)
        ]
        stepped = [
            np.moveaxis(x, function[i].type.position(axis), 0)
            for x, i in zip(operands[:first], node.inputs[:first], strict=True)
        ]
        states = [x.astype(s) for x, s in zip(operands[first:], stored[-count:], strict=False)]
        captured, steps = operands[first + count :], range(axis.size.evaluate(self.sizes))
        run = Interpreter(self.shared, self.sizes).at("", body)
        for step in reversed(steps) if node.attrs["reverse"] else steps:
            entering = [np.asarray(x[step]) for x in stepped]
            results = run(*entering, *states, *captured)
            for row, value in zip(rows, results, strict=False):
                row[step] = value
            states = results[len(rows) :]
        return (*made[:-count], *states)

    def chunked_scan(self, node: Node, function: Function, operands: Sequence[Array]) -> Values:
        """A loop over chunks, the body run on the operands' entries in each."""
        axis, body = node.attrs.axis("axis"), self.shared.program.body(node)
        first, count = node.attrs.integer("stepped"), node.attrs.integer("states")
        stored = [self.shared.precision.storage(t.dtype) for t in node.types]
        made = [
            np.empty(t.shape(self.sizes), s)
            for t, s in zip(node.types[:-count], stored, strict=False)
        ]
        places = [function[i].type.position(axis) for i in node.inputs[:first]]
        states = list(operands[first : first + count])
        for start, stop in self.chunks(node):
            window = slice(start, stop)
            entering = [x[along(p, window)] for x, p in zip(operands, places, strict=False)]
            inside = replace(self, sizes={**self.sizes, _symbol(node): stop - start}, observe=None)
            results = inside.run(body, [*entering, *states, *operands[first + count :]])
            for sequence, kind, value in zip(made, node.types, results, strict=False):
                sequence[along(kind.position(axis), window)] = value
            states = results[len(made) :]
        return (*made, *(x.astype(s) for x, s in zip(states, stored[-count:], strict=True)))

    def chunks(self, node: Node) -> list[tuple[int, int]]:
        """[start, stop) of each chunk in the order they run; `tile` bounds their length too."""
        total = node.attrs.axis("axis").size.evaluate(self.sizes)
        length = node.attrs.integer("length")
        length = min(length, self.shared.tile or LONGEST_CHUNK)
        found = [(start, min(start + length, total)) for start in range(0, total, length)]
        return found[::-1] if node.attrs["reverse"] else found

    def fused(self, node: Node) -> Run | None:
        """What a fused node runs on its operands; None for one whose body is run as it is."""
        from .grouped import grouped
        from .tiles import Attention

        body, precision = self.shared.program.body(node), self.shared.precision
        if node.op == "grouped":
            return partial(grouped, body, self.sizes, precision)
        if node.op == "attend":
            structure = self.shared.structure(body)
            return Attention.of(node, body, self.sizes, precision, structure, self.shared.tile)
        return None

    def table(self, node: Node) -> Array:
        """The table's function in float64, rounded once to the run's dtype."""
        key = node.attrs.string("body"), node.type.shape(self.sizes)
        if key not in self.shared.tables:
            exact = Shared(self.shared.program, Precision("f64"))
            (result,) = Interpreter(exact, self.sizes).run(self.shared.program.body(node), ())
            stored = self.shared.precision.storage(node.type.dtype)
            self.shared.tables[key] = result.astype(stored)
        return self.shared.tables[key]
