"""A loop over the steps of a chunk, under construction: a `scan` along the chunk's axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..ir.graph import AttrValue, Builder, Function, Origin, TensorType
from .affine import Lift


@dataclass(slots=True)
class Loop:
    """`seen` makes values of the chunk inputs of a step; states and updates have numbers."""

    lift: Lift
    name: str
    reverse: bool
    origins: tuple[Origin, ...] = ()
    builder: Builder = field(init=False)
    stepped: dict[int, int] = field(default_factory=dict)  # value of the chunk: input of the step
    captured: dict[int, int] = field(default_factory=dict)
    initial: dict[int, int] = field(default_factory=dict)  # number of a state: value of the chunk
    states: dict[int, int] = field(default_factory=dict)  # number of a state: input of the step
    updates: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.builder = Builder(self.name)

    def state(self, number: int, initial: int, kind: TensorType, hint: str) -> int:
        attrs = {"name": hint or "state"}
        self.initial[number] = initial
        self.states[number] = self.builder.add("input", (), attrs, (kind,), self.origins, hint)
        return self.states[number]

    def seen(self, value: int) -> int:
        """A value of the chunk as the step sees it."""
        node, chunk = self.lift.builder[value], self.lift.chunk
        if node.op == "const":
            return self.builder.add("const", (), node.attrs, node.types)
        inputs = self.stepped if chunk in node.axes else self.captured
        if value not in inputs:
            kind = TensorType(node.type.dtype, tuple(a for a in node.axes if a != chunk))
            attrs = {"name": node.hint or "x"}
            inputs[value] = self.builder.add("input", (), attrs, (kind,), node.origins, node.hint)
        return inputs[value]

    def update(self, number: int, value: int) -> None:
        kind = self.builder[self.states[number]].type
        self.updates[number] = laid_out(self.builder, value, kind)

    def close(
        self, sequences: Sequence[tuple[str, int]]
    ) -> tuple[Function, list[int], dict[int, int]]:
        """The step, and in the chunk the named sequences and the last states."""
        lasts = [f"last.{self.builder[i].hint or 'state'}" for i in self.states.values()]
        outputs = [*sequences, *zip(lasts, self.updates.values(), strict=True)]
        inputs = (*self.stepped.values(), *self.states.values(), *self.captured.values())
        function = replace(self.builder.finish(_unique(outputs)), inputs=inputs)
        types = [self._sequence(function[i].type) for _, i in sequences]
        types += [function[i].type for i in self.states.values()]
        attrs: dict[str, AttrValue] = {
            "axis": self.lift.chunk,
            "body": function.name,
            "reverse": self.reverse,
            "states": len(self.states),
            "stepped": len(self.stepped),
        }
        operands = (*self.stepped, *self.initial.values(), *self.captured)
        add = self.lift.builder.add
        scan = add("scan", operands, attrs, tuple(types), self.origins)
        results = [
            add("result", (scan,), {"index": i}, (t,), self.origins) for i, t in enumerate(types)
        ]
        count = len(sequences)
        return function, results[:count], dict(zip(self.states, results[count:], strict=True))

    def _sequence(self, kind: TensorType) -> TensorType:
        """Laid out as the factors are, so that a step of either is one block of memory."""
        chunk = self.lift.chunk
        for value in self.stepped:
            axes = self.lift.builder[value].axes
            if tuple(a for a in axes if a != chunk) == kind.axes:
                return TensorType(kind.dtype, axes)
        return TensorType(kind.dtype, (chunk, *kind.axes))


def _unique(outputs: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    taken: set[str] = set()
    for name, node_id in outputs:
        while name in taken:
            name += "_"
        taken.add(name)
        yield name, node_id


def laid_out(builder: Builder, node_id: int, kind: TensorType) -> int:
    """A value in a type: broadcast along the axes it lacks, cast and transposed."""
    missing = tuple(a for a in kind.axes if a not in builder[node_id].axes)
    if missing:
        node_id = builder.add("broadcast", (node_id,), {"axes": missing})
    if builder[node_id].type.dtype != kind.dtype:
        node_id = builder.add("cast", (node_id,), {"dtype": kind.dtype})
    if builder[node_id].axes != kind.axes:
        node_id = builder.add("transpose", (node_id,), {"order": kind.axes})
    return node_id
