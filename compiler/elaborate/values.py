"""What a name can hold while a model is elaborated.

Compile-time values: `Dim` (every integer), `float`, `bool`, `str`, `None`, lists, tables, templates,
instances, closures, `PerLayer`. The only run-time value is a `Tensor`, a node of the graph under labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Union

from ...dsl.dims import Dim
from ...dsl.span import Span
from ...dsl.syntax import Argument, CallableDef, Lambda
from ..ir.graph import Axis, DType
from .labels import AxisSize, Frame, Label

if TYPE_CHECKING:
    from .scopes import GraphScope

Labelled = tuple[tuple[Label, Axis], ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A run-time value.

    `axes` are in written order, of which the last `known` are really known (an order nobody wrote is
    open). `cover` is the number of axes of the widest leaf it was computed from: a value wider than
    that is an outer product and needs an annotation. `quiet` names the labels along which invalid
    positions hold zeros. `clock` is set on positions: the timeline they count.
    """

    node: int
    scope: GraphScope = field(repr=False)
    axes: Labelled
    dtype: DType
    known: int = 0
    cover: int = 0
    quiet: frozenset[Label] = frozenset()
    clock: str | None = None

    @property
    def labels(self) -> tuple[Label, ...]:
        return tuple(label for label, _ in self.axes)

    @property
    def names(self) -> str:
        return "[" + ", ".join(label.name for label in self.labels) + "]"

    def axis(self, label: Label) -> Axis:
        return next(axis for known, axis in self.axes if known is label)

    def carries(self, label: Label) -> bool:
        return any(known is label for known, _ in self.axes)

    @property
    def ordered(self) -> bool:
        return self.known == len(self.axes) or len(self.axes) <= 1

    def relabelled(self, to: Callable[[Label], Label]) -> Tensor:
        """The same value under other labels."""
        axes = tuple((to(label), axis) for label, axis in self.axes)
        return replace(self, axes=axes, quiet=frozenset(to(label) for label in self.quiet))


@dataclass(frozen=True, slots=True)
class PerLayer:
    """A compile-time value that differs between the iterations of a `repeat` under elaboration."""

    values: tuple[Any, ...]

    @staticmethod
    def of(values: tuple[Any, ...]) -> Any:
        """One value when all are equal."""
        return values[0] if all(v == values[0] for v in values[1:]) else PerLayer(values)


class SplitIterations(Exception):
    """Raised where structure depends on a `PerLayer`: the repeat starts again on each group."""

    def __init__(self, value: PerLayer) -> None:
        super().__init__()
        groups: dict[int, list[int]] = {}
        distinct: list[Any] = []
        for position, item in enumerate(value.values):
            if item not in distinct:
                distinct.append(item)
            groups.setdefault(distinct.index(item), []).append(position)
        self.groups = tuple(tuple(g) for g in groups.values())


@dataclass(frozen=True, slots=True)
class Template:
    """A block or fn with some hyperparameters set. Applying it makes weights where that is written."""

    definition: CallableDef
    hypers: tuple[tuple[str, Any], ...] = ()
    pack: tuple[AxisSize, ...] = ()

    @property
    def name(self) -> str:
        return self.definition.name


@dataclass(frozen=True, slots=True)
class Closure:
    """A lambda with the body it was written in."""

    syntax: Lambda
    frame: Frame
    environment: Environment


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """A `shared` block: one set of weights, made by its first application."""

    template: Template
    label: str
    place: WeightPlace
    declared_at: Span


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """`n` instances of one template, picked by a number."""

    template: Template
    label: str
    size: AxisSize
    place: WeightPlace
    declared_at: Span


@dataclass(frozen=True, slots=True)
class Builtin:
    """A function of the language itself."""

    name: str


@dataclass(slots=True, eq=False)
class WeightPlace:
    """Where weights are made: a path in a graph scope, and the labels already given there."""

    scope: GraphScope
    path: str
    taken: dict[str, Span] = field(default_factory=dict)

    def child(self, label: str) -> WeightPlace:
        return WeightPlace(self.scope, f"{self.path}.{label}" if self.path else label)


@dataclass(slots=True, eq=False)
class Environment:
    """Names to values, one per body; a repeat body's parent is the body around it."""

    parent: Environment | None = None
    values: dict[str, Any] = field(default_factory=dict)

    def find(self, name: str) -> Environment | None:
        environment: Environment | None = self
        while environment is not None:
            if name in environment.values:
                return environment
            environment = environment.parent
        return None

    def names(self) -> tuple[str, ...]:
        own = tuple(self.values)
        return own if self.parent is None else own + self.parent.names()


class Poison:
    """The value of a name whose definition failed: using it says nothing more."""


class Skip(Exception):
    """A use of a poisoned name: the mistake was reported where it was made."""


Value = Union[
    Tensor, Dim, float, bool, str, None, Template, Closure, Instance, Bank, Builtin, PerLayer, Any
]
Arguments = tuple[Argument, ...]
