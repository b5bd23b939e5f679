"""Values that depend on weights alone, computed once when a program is loaded.

They are the `weight` and `derived` nodes, keyed by call path and node. Each weight is read once;
one that only derived parameters use is dropped as soon as they are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from ...compiler.ir.graph import Function, Node, Parameter, Program
from ...compiler.ir.walk import calls, join
from ...compiler.ops import Array
from ...dsl.diagnostics import InternalError
from ...dsl.errors import MissingWeight, WeightShape
from ..base import ValueKey
from .interpreter import Interpreter, Shared

Constant = Array | tuple[Array, ...]  # of a derived value with several results


def load_constants(shared: Shared, weights: Mapping[str, Array]) -> dict[ValueKey, Constant]:
    """Every weight and derived value that a run reads. Raises MissingWeight, WeightShape."""
    program = shared.program
    reader = _Reader(shared, weights, Counter(path for path, _ in weight_uses(program)))
    interpreter = Interpreter(shared, program.sizes)
    constants: dict[ValueKey, Constant] = {}
    for path, function in calls(program):
        values: dict[int, Array] = {}
        for node in _static(function):
            if node.op == "weight":
                values[node.id] = reader.read(join(path, node.attrs.string("path")), node)
            else:
                made = interpreter.ready(program.body(node)).one
                values[node.id] = made(*(values[i] for i in node.inputs))
        for node_id in _read_at_run_time(function) & set(values):
            constants[path, node_id] = values[node_id]
    return constants


def weight_uses(program: Program) -> Iterator[tuple[str, Node]]:
    """(complete path, node) of every weight node at every call path."""
    for path, function in calls(program):
        for node in function.nodes:
            if node.op == "weight":
                yield join(path, node.attrs.string("path")), node


def _static(function: Function) -> list[Node]:
    return [node for node in function.nodes if node.op in ("weight", "derived")]


def _read_at_run_time(function: Function) -> set[int]:
    read = {i for node in function.nodes if node.op != "derived" for i in node.inputs}
    return read | set(function.output_ids)


@dataclass(slots=True)
class _Reader:
    """Reads each weight once; `left` counts how many nodes still want it."""

    shared: Shared
    weights: Mapping[str, Array]
    left: Counter[str]
    held: dict[str, Array] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters = {p.path: p for p in self.shared.program.parameters}

    def read(self, path: str, node: Node) -> Array:
        if path not in self.held:
            self.held[path] = self.checked(path, node)
        self.left[path] -= 1
        return self.held[path] if self.left[path] else self.held.pop(path)

    def checked(self, path: str, node: Node) -> Array:
        parameter = self.parameters.get(path)
        if parameter is None:
            raise InternalError(f"weight node %{node.id} reads {path}, which is no parameter")
        if path not in self.weights:
            raise MissingWeight(path=path, known=tuple(self.weights), span=parameter.span)
        array = np.asarray(self.weights[path])
        expected = node.type.shape(self.shared.program.sizes)
        if array.shape != expected:
            words = [", ".join(map(str, shape)) for shape in (array.shape, expected)]
            raise WeightShape(path=path, got=words[0], expected=words[1], span=parameter.span)
        return array.astype(self.shared.precision.storage(node.type.dtype), copy=False)
