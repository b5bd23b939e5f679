"""Graph functions under construction, nested as the text nests: `main`, layer kinds, tables.

A value of an outer function that an inner one reads is captured: it becomes an input there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from ...dsl.diagnostics import InternalError
from ...dsl.dims import Dim
from ..ir.graph import Axis, Builder, DType, Parameter, TensorType
from .labels import Label


@dataclass(slots=True)
class AxisTable:
    """Graph axes by name: equal hint, size and timeline share one, else the name is numbered."""

    axes: dict[str, Axis] = field(default_factory=dict)

    def get(
        self, hint: str, size: Dim, time: str | None = None, besides: Collection[Axis] = ()
    ) -> Axis:
        """The first axis called `hint`, `hint.1`, .. of this size and time that is not `besides`."""
        number = 0
        while True:
            wanted = Axis(f"{hint}.{number}" if number else hint, size, time)
            known = self.axes.setdefault(wanted.name, wanted)
            if known == wanted and known not in besides:
                return known
            number += 1


@dataclass(slots=True, eq=False)
class Stepping:
    """What makes a function one step of a scan: values along `label` enter it read at the step.

    `inputs` are those values: by input node, the node of the enclosing function.
    """

    label: Label
    axis: Axis
    inputs: dict[int, int] = field(default_factory=dict)

    def runs_along(self, label: Label) -> bool:
        """Whether `label` is the scanned axis, under this body's name, a caller's or a callee's."""
        return label in self.label.chain() or self.label in label.chain()


@dataclass(slots=True, eq=False)
class GraphScope:
    """A function being built. `parameters` have paths relative to it.

    `scalars` are the numbers that differ per iteration: dtype and values, by input node. `scan` is
    set where the function is one step of a scan.
    """

    builder: Builder
    parent: GraphScope | None = None
    scan: Stepping | None = None
    depth: int = field(init=False)
    captured: dict[int, tuple[GraphScope, int]] = field(default_factory=dict)
    parameters: list[Parameter] = field(default_factory=list)
    scalars: dict[int, tuple[DType, tuple[float, ...]]] = field(default_factory=dict)
    renames: dict[tuple[int, tuple[tuple[Axis, Axis], ...]], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.depth = 0 if self.parent is None else self.parent.depth + 1

    def import_node(self, owner: GraphScope, node: int) -> int:
        """The id under which this function sees a node of `owner` (itself or an enclosing scope)."""
        if owner is self:
            return node
        if self.parent is None:
            raise InternalError("a value escaped its function")
        outer = self.parent.import_node(owner, node)
        for inner, source in self.captured.items():
            if source == (self.parent, outer):
                return inner
        source_node = self.parent.builder[outer]
        inner = self.builder.add(
            "input",
            (),
            {"name": f"captured.{len(self.captured)}"},
            source_node.types,
            source_node.origins,
            source_node.hint,
        )
        self.captured[inner] = (self.parent, outer)
        return inner

    def chain(self) -> Iterator[GraphScope]:
        """This scope and those around it, outwards."""
        scope: GraphScope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def encloses(self, other: GraphScope) -> bool:
        """Whether `other` is this scope or inside it."""
        return any(scope is self for scope in other.chain())

    def scans(self) -> list[tuple[GraphScope, Stepping]]:
        """The scans whose step this function is or is in, innermost first."""
        return [(scope, scope.scan) for scope in self.chain() if scope.scan is not None]

    def at_step(self, outer: int, stepping: Stepping) -> int:
        """The input that is node `outer` of the enclosing function, read at the step of this one."""
        for inner, source in stepping.inputs.items():
            if source == outer:
                return inner
        assert self.parent is not None
        node = self.parent.builder[outer]
        axes = tuple(a for a in node.axes if a != stepping.axis)
        kind = TensorType(node.type.dtype, axes)
        attrs = {"name": f"step.{len(stepping.inputs)}"}
        named = str(node.attrs["name"]) if node.op == "input" and "kind" in node.attrs else ""
        hint = node.hint or named
        inner = self.builder.add("input", (), attrs, (kind,), node.origins, hint)
        stepping.inputs[inner] = outer
        return inner

    def scalar(self, values: tuple[float, ...], dtype: DType) -> int:
        """A 0-d input that takes one value per iteration."""
        for node, known in self.scalars.items():
            if known == (dtype, values):
                return node
        return self._add_scalar(values, dtype)

    def _add_scalar(self, values: tuple[float, ...], dtype: DType) -> int:
        name = f"scalar.{len(self.scalars)}"
        node = self.builder.add("input", (), {"name": name}, (TensorType(dtype),))
        self.scalars[node] = (dtype, values)
        return node

    def scalar_columns(self, wanted: Sequence[DType]) -> list[int]:
        """One scalar input for each dtype in `wanted`, unused ones where there are too few."""
        found: list[int] = []
        for dtype in wanted:
            free = (n for n, (d, _) in self.scalars.items() if d == dtype and n not in found)
            node = next(free, None)
            found.append(node if node is not None else self._add_scalar((), dtype))
        return found
