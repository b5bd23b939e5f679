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
from ...compiler.ops import FUSED, SCANS, Array, Precision
from ...compiler.ops.structure import along
from ..base import ValueKey
from .prepared import Ready, Run, Structure, make_ready, ready_primitive, symbols

Values = tuple[Array, ...]
Observer = Callable[[ValueKey, Array], None]
Constants = Mapping[ValueKey, Array | Values]
LONGEST_CHUNK = 64
CALLING = frozenset({"weight", "derived", "state", "repeat", *SCANS})  # they need the call path


@dataclass(slots=True)
class Shared:
    """What outlives a run: the program, its constants, and functions made ready for the last sizes.

    `tile` is how many keys `attend` visits at a time, None for what suits the machine.
    """

    program: Program
    precision: Precision
    constants: Constants = field(default_factory=dict)
    tile: int | None = None
    tables: dict[tuple[str, tuple[int, ...]], Array] = field(default_factory=dict)
    structures: dict[str, Structure] = field(default_factory=dict)
    symbols: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ready: dict[tuple[str, bool], tuple[tuple[int, ...], Ready]] = field(default_factory=dict)

    def structure(self, function: Function) -> Structure:
        name = function.name
        if name not in self.structures:
            self.symbols[name] = tuple(sorted(symbols(self.program, function)))
            self.structures[name] = Structure(function)
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

        def call(node: Node, operands: Sequence[Array]) -> Any:
            return self.call(node, function, operands, path)

        def see(place: int, value: Array | None) -> None:
            if self.observe is not None and place >= 0 and value is not None:
                self.observe((path, place), value)

        ready = self.ready(function)
        return ready.run(arguments, call, None if self.observe is None else see)

    def ready(self, function: Function) -> Ready:
        """The function made ready for the sizes of this run."""
        shared, key = self.shared, (function.name, self.observe is None)
        structure = shared.structure(function)
        sizes = tuple(self.sizes.get(s, -1) for s in shared.symbols[function.name])
        found = shared.ready.get(key)
        if found is None or found[0] != sizes:
            overwrite = self.observe is None
            run_of = partial(self.run_of, function)
            made = make_ready(function, structure, run_of, self.sizes, overwrite)
            found = shared.ready[key] = sizes, made
        return found[1]

    def run_of(self, function: Function, node: Node, reuse: int | None) -> Run | None:
        """What a node runs; None for one that needs the call path."""
        if node.op in CALLING:
            return None
        if node.op == "table":
            value = self.table(node)
            return lambda: value
        if node.op in FUSED:
            return self.fused(node)
        return ready_primitive(function, node, self.sizes, self.shared.precision, reuse)

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
        for step in reversed(steps) if node.attrs["reverse"] else steps:
            entering = [np.asarray(x[step]) for x in stepped]
            results = Interpreter(self.shared, self.sizes).run(
                body, [*entering, *states, *captured]
            )
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

    def fused(self, node: Node) -> Run:
        """What a fused node runs on its operands."""
        from .grouped import grouped
        from .tiles import Attention

        body, precision = self.shared.program.body(node), self.shared.precision
        if node.op == "grouped":
            return partial(grouped, body, self.sizes, precision)
        whole = Interpreter(self.shared, self.sizes).ready(body).one
        if node.op != "attend":
            return whole
        return Attention.of(node, body, self.sizes, precision, self.shared.tile) or whole

    def table(self, node: Node) -> Array:
        """The table's function in float64, rounded once to the run's dtype."""
        key = node.attrs.string("body"), node.type.shape(self.sizes)
        if key not in self.shared.tables:
            exact = Shared(self.shared.program, Precision("f64"))
            (result,) = Interpreter(exact, self.sizes).run(self.shared.program.body(node), ())
            stored = self.shared.precision.storage(node.type.dtype)
            self.shared.tables[key] = result.astype(stored)
        return self.shared.tables[key]
