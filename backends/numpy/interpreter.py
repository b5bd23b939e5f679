"""Runs functions of a program in NumPy: ops that refer to functions here, the others by `evaluate`.

A fused node runs its body; `attend` runs it tile by tile (`tiles.py`). Values are dropped after
their last use. Weights, derived parameters and tables are computed once and shared by all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...compiler.ir.graph import STATE, Axis, Function, Node, Program, TensorType, operand_types
from ...compiler.ir.walk import iterations, join
from ...compiler.ops import FUSED, Array, Call, Precision, evaluate
from ...compiler.ops.structure import along
from ...dsl.diagnostics import ArchError
from ..base import ValueKey, span_of

Values = tuple[Array, ...]
Observer = Callable[[ValueKey, Array], None]
Constants = Mapping[ValueKey, Values]
DEFAULT_TILE = 64


@dataclass(slots=True)
class Shared:
    """What outlives a run: the program, its constants and, per function, when each value dies."""

    program: Program
    precision: Precision
    constants: Constants = field(default_factory=dict)
    tile: int = DEFAULT_TILE
    tables: dict[tuple[str, tuple[int, ...]], Values] = field(default_factory=dict)
    deaths: dict[str, dict[int, list[int]]] = field(default_factory=dict)

    def dying(self, function: Function) -> dict[int, list[int]]:
        """For each node, the values that no later node reads."""
        if function.name not in self.deaths:
            self.deaths[function.name] = _last_uses(function)
        return self.deaths[function.name]


def _symbol(node: Node) -> str:
    """What stands for the length of a chunk in the sizes of its function."""
    (symbol,) = node.attrs.axis("chunk").size.symbols()
    return symbol


def _last_uses(function: Function) -> dict[int, list[int]]:
    last = {source: node.id for node in function.nodes for source in node.inputs}
    kept = set(function.output_ids)
    dying: dict[int, list[int]] = {}
    for source, user in last.items():
        if source not in kept:
            dying.setdefault(user, []).append(source)
    return dying


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
        values: dict[int, Values] = {
            i: (a,) for i, a in zip(function.inputs, arguments, strict=True)
        }
        dying = self.shared.dying(function)
        for node in function.nodes:
            if node.op == "weight" and (path, node.id) not in self.shared.constants:
                continue  # only derived parameters read it, and they are made
            if node.id not in values:
                values[node.id] = self.value(node, function, values, path)
            if self.observe is not None:
                self.observe((path, node.id), values[node.id][0])
            for dead in dying.get(node.id, ()):
                values.pop(dead, None)
        return [values[i][0] for i in function.output_ids]

    def value(
        self, node: Node, function: Function, values: Mapping[int, Values], path: str
    ) -> Values:
        """All results of a node whose operands are in `values`."""
        if node.op in ("weight", "derived"):
            return self.shared.constants[path, node.id]
        if node.op == "state":
            return (self.states[join(path, node.attrs.string("path"))],)
        if node.op == "result":
            return (values[node.inputs[0]][node.attrs.integer("index")],)
        operands = [values[i][0] for i in node.inputs]
        if node.op == "table":
            return self.table(node)
        if node.op == "repeat":
            return self.repeat(node, function, operands, path)
        if node.op == "scan":
            return self.scan(node, function, operands)
        if node.op == "chunked_scan":
            return self.chunked_scan(node, function, operands)
        if node.op in FUSED:
            return self.fused(node, operands)
        return self.primitive(node, function, operands)

    def primitive(
        self,
        node: Node,
        function: Function,
        operands: Sequence[Array],
        windows: Mapping[Axis, tuple[int, int]] | None = None,
    ) -> Values:
        """An op with a meaning of its own. `windows`: see `Call`."""
        types = operand_types(node.op, [function[i] for i in node.inputs])
        precision = self.shared.precision
        call = Call(node.attrs, types, node.types, self.sizes, precision, windows or {})
        try:
            return evaluate(node.op, call, operands)
        except ArchError as error:
            if error.span is None:
                error.span, error.calls = span_of(node), node.spans[1:]
            raise

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
        length = min(node.attrs.integer("length"), self.shared.tile)
        found = [(start, min(start + length, total)) for start in range(0, total, length)]
        return found[::-1] if node.attrs["reverse"] else found

    def fused(self, node: Node, operands: Sequence[Array]) -> Values:
        from .grouped import grouped
        from .tiles import attend

        body = self.shared.program.body(node)
        inside = Interpreter(self.shared, self.sizes)
        if node.op == "attend":
            return tuple(attend(inside, node, body, operands))
        if node.op == "grouped":
            return (grouped(inside, body, operands),)
        return tuple(inside.run(body, operands))

    def table(self, node: Node) -> Values:
        """The table's function in float64, rounded once to the run's dtype."""
        key = node.attrs.string("body"), node.type.shape(self.sizes)
        if key not in self.shared.tables:
            exact = Shared(self.shared.program, Precision("f64"))
            (result,) = Interpreter(exact, self.sizes).run(self.shared.program.body(node), ())
            stored = self.shared.precision.storage(node.type.dtype)
            self.shared.tables[key] = (result.astype(stored),)
        return self.shared.tables[key]
