"""A function of the program made ready for given sizes: what can be decided before a run is.

A node becomes a step: a Python function of arrays, the places of its operands, and which values
die. Values that depend on sizes alone (masks, angles) are computed here, once for all layers. A
pointwise op may overwrite an operand that nothing else reads.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...compiler.ir.graph import Axis, Function, Node, Program, operand_types
from ...compiler.ops import OPS, Array, Call, Precision, prepared, same
from ...dsl.diagnostics import ArchError
from ...dsl.dims import Dim
from ..base import span_of

Run = Callable[..., Any]  # arrays -> array, or a tuple of them from a node with several results
Windows = Mapping[Axis, tuple[int, int]]
KEPT = 1 << 20  # elements of a value that is computed once for all layers, at most
# Results that may be the operand itself: pointwise ones; the others are views.
OVERLAYS = frozenset({"cast", "stop_gradient", "to_float", "round_to"})
FRESH = frozenset({"dot", "sum", "amax", "concat", "softmax"})  # and pointwise: arrays of their own


@dataclass(frozen=True, slots=True)
class Step:
    """One node. Without `run` it is the caller's to compute: it needs weights or the call path."""

    node: Node
    run: Run | None
    sources: tuple[int, ...]
    dying: tuple[int, ...] = ()


@dataclass(slots=True)
class Ready:
    """A function's steps in order and the values known without them, by place (see `Structure`)."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...] = ()
    steps: list[Step] = field(default_factory=list)
    known: dict[int, Any] = field(default_factory=dict)

    def run(
        self,
        arguments: Sequence[Array],
        call: Callable[[Node, Sequence[Array]], Any] | None = None,
        see: Callable[[int, Array], None] | None = None,
    ) -> list[Array]:
        """The outputs. `call` computes what has no `run`; `see` is shown every value."""
        values = {**self.known, **dict(zip(self.inputs, arguments, strict=True))}
        if see is not None:
            for place, value in values.items():
                see(place, value)
        for step in self.steps:
            node, operands = step.node, [values[i] for i in step.sources]
            if step.run is not None:
                result = step.run(*operands)
            else:
                assert call is not None
                result = call(node, operands)
            if type(result) is tuple:
                values |= results(node, result)
            else:
                values[node.id] = result
            if see is not None:
                see(node.id, values[node.id])
            for dead in step.dying:
                values.pop(dead, None)
        return [values[i] for i in self.outputs]

    def drop_after_last_use(self) -> None:
        """Each step is told which values are read by none after it."""
        last: dict[int, int] = {}
        for number, step in enumerate(self.steps):
            last |= dict.fromkeys((*step.sources, step.node.id, -1 - step.node.id), number)
        for place in (*self.known, *self.outputs):
            last.pop(place, None)
        single = {-1 - s.node.id for s in self.steps if s.run and len(s.node.types) == 1}
        dying: dict[int, list[int]] = {}
        for place, number in last.items():
            if place not in single:
                dying.setdefault(number, []).append(place)
        self.steps = [replace(s, dying=tuple(dying.get(n, ()))) for n, s in enumerate(self.steps)]

    def one(self, *arguments: Array) -> Any:
        """As a step: the only output as it is."""
        made = self.run(arguments)
        return tuple(made) if len(made) > 1 else made[0]


class Structure:
    """What holds for a function at all sizes.

    The place of a value is its node's id; `-1 - id` is that of all results of a node with several.
    `reuse` says which operand a node may overwrite.
    """

    def __init__(self, function: Function) -> None:
        self.sources = {
            n.id: tuple(_place(function, n, i) for i in n.inputs) for n in function.nodes
        }
        readers = Counter(i for n in function.nodes for i in n.inputs)
        readers.update(function.output_ids)
        self.reuse = {
            n.id: next((k for k, i in enumerate(n.inputs) if _is_fresh(function, readers, i)), None)
            for n in function.nodes
            if OPS[n.op].pointwise
        }


def _place(function: Function, reader: Node, source: int) -> int:
    several = reader.op == "result" and len(function[source].types) > 1
    return -1 - source if several else source


def symbols(program: Program, function: Function) -> set[str]:
    """The run-time sizes that a function and what it runs depend on."""
    found: set[str] = set()
    for name in function.called:
        found |= symbols(program, program.function(name))
    axes = {axis for node in function.nodes for kind in node.types for axis in kind.axes}
    todo: list[object] = [value for node in function.nodes for value in node.attrs.values()]
    while todo:
        value = todo.pop()
        if isinstance(value, tuple):
            todo += value
        elif isinstance(value, Axis):
            axes.add(value)
        elif isinstance(value, Dim):
            found |= value.symbols()
    return found.union(*(axis.size.symbols() for axis in axes)) - program.sizes.keys()


def _is_fresh(function: Function, readers: Counter[int], value: int) -> bool:
    """Whether the one reader of `value` alone can see its array."""
    while readers[value] == 1:
        node = function[value]
        if node.op not in OVERLAYS:
            return node.op in FRESH or OPS[node.op].pointwise
        (value,) = node.inputs
    return False


def make_ready(
    function: Function,
    structure: Structure,
    run_of: Callable[[Node, int | None], Run | None],
    sizes: Mapping[str, int],
    overwrite: bool,
) -> Ready:
    """`run_of(node, reuse)` gives what a node runs, None for one that the interpreter does."""
    ready = Ready(function.inputs)
    alias: dict[int, int] = {}  # the place of a value that another node leaves as it is
    for node in function.nodes:
        if node.op == "input":
            continue
        reuse = structure.reuse.get(node.id) if overwrite else None
        sources = tuple(alias.get(i, i) for i in structure.sources[node.id])
        if reuse is not None and sources[reuse] in ready.known:
            reuse = None
        run = run_of(node, reuse)
        if run is same and overwrite:
            alias[node.id] = sources[0]
        elif run is not None and all(i in ready.known for i in sources) and _is_small(node, sizes):
            ready.known |= results(node, run(*(ready.known[i] for i in sources)))
        else:
            ready.steps.append(Step(node, run, sources))
    ready.outputs = tuple(alias.get(i, i) for i in function.output_ids)
    ready.drop_after_last_use()
    return ready


def _is_small(node: Node, sizes: Mapping[str, int]) -> bool:
    return all(math.prod(t.shape(sizes)) <= KEPT for t in node.types)


def results(node: Node, result: Any) -> dict[int, Any]:
    """What a node gave, by place."""
    if isinstance(result, tuple):
        return {node.id: result[0], -1 - node.id: result}
    return {node.id: result}


def ready_primitive(
    function: Function,
    node: Node,
    sizes: Mapping[str, int],
    precision: Precision,
    reuse: int | None = None,
    windows: Windows | None = None,
) -> Run:
    """An op with a meaning of its own. Its errors know the node's place in the text."""
    types = operand_types(node.op, [function[i] for i in node.inputs])
    if node.op == "result":
        index = node.attrs.integer("index")
        return (lambda several: several[index]) if len(types) > 1 else lambda only: only
    run = prepared(
        node.op, Call(node.attrs, types, node.types, sizes, precision, windows or {}, reuse)
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
