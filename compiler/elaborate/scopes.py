"""Graph functions under construction, nested as the text nests: `main`, layer kinds, tables.

A value of an outer function that an inner one reads is captured: it becomes an input of the inner one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...dsl.dims import Dim
from ..ir.graph import Axis, Builder, Parameter, TensorType


@dataclass(slots=True)
class AxisTable:
    """Graph axes by name: equal hint, size and timeline share one axis, else the name is numbered."""

    axes: dict[str, Axis] = field(default_factory=dict)

    def get(self, hint: str, size: Dim, time: str | None = None, fresh: bool = False) -> Axis:
        number = 0
        while True:
            name = hint if number == 0 else f"{hint}.{number}"
            wanted = Axis(name, size, time)
            if name not in self.axes:
                self.axes[name] = wanted
                return wanted
            if self.axes[name] == wanted and not fresh:
                return wanted
            number += 1


@dataclass(slots=True, eq=False)
class GraphScope:
    """A function being built. `parameters` have paths relative to it."""

    builder: Builder
    parent: GraphScope | None = None
    captured: dict[int, tuple[GraphScope, int]] = field(default_factory=dict)
    parameters: list[Parameter] = field(default_factory=list)
    scalars: list[tuple[float, ...]] = field(default_factory=list)
    scalar_inputs: list[int] = field(default_factory=list)
    weight_nodes: dict[str, int] = field(default_factory=dict)
    renames: dict[tuple[int, tuple[tuple[Axis, Axis], ...]], int] = field(default_factory=dict)

    def import_node(self, owner: GraphScope, node: int) -> int:
        """The id under which this function sees a node of `owner` (itself or an enclosing scope)."""
        if owner is self:
            return node
        assert self.parent is not None, "a value escaped its function"
        outer = self.parent.import_node(owner, node)
        for inner, source in self.captured.items():
            if source == (self.parent, outer):
                return inner
        kind = self.parent.builder[outer]
        inner = self.builder.add(
            "input",
            (),
            {"name": f"captured.{len(self.captured)}"},
            kind.types,
            kind.origins,
            kind.hint,
        )
        self.captured[inner] = (self.parent, outer)
        return inner

    def scalar(self, values: tuple[float, ...]) -> int:
        """A 0-d input that takes one value per iteration."""
        for node, known in zip(self.scalar_inputs, self.scalars, strict=True):
            if known == values:
                return node
        node = self.builder.add(
            "input", (), {"name": f"scalar.{len(self.scalars)}"}, (TensorType("float"),)
        )
        self.scalars.append(values)
        self.scalar_inputs.append(node)
        return node

    def pad_scalars(self, count: int) -> None:
        """Unused scalar inputs, so that every kind of a repeat takes the same arguments."""
        while len(self.scalar_inputs) < count:
            name = f"scalar.{len(self.scalar_inputs)}"
            self.scalar_inputs.append(
                self.builder.add("input", (), {"name": name}, (TensorType("float"),))
            )
