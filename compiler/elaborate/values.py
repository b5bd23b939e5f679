"""What a name can hold while a model is elaborated.

Compile-time values: `Dim` (every integer), `float`, `bool`, `str`, `None`, lists, tables,
templates, instances, closures, `PerLayer`. The only run-time value is a `Tensor`, a node of the
graph under labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...dsl.dims import Dim
from ...dsl.span import Span
from ...dsl.syntax import CallableDef, Lambda
from ..ir.graph import Axis, DType
from .labels import AxisSize, Frame, Label

if TYPE_CHECKING:
    from .scopes import GraphScope

Labelled = tuple[tuple[Label, Axis], ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A run-time value.

    `axes` are in written order, of which the last `known` are really known (an order nobody wrote
    is open). `cover` is the number of axes of the widest leaf it was computed from: a value wider
    than that is an outer product and needs an annotation. `quiet` names the labels along which
    invalid positions hold zeros. `clock` is set on positions: the timeline they count.
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
    """A compile-time value that differs between the iterations of the `repeat` building `scope`."""

    values: tuple[Any, ...]
    scope: GraphScope = field(repr=False)

    @staticmethod
    def of(values: tuple[Any, ...], scope: GraphScope) -> Any:
        """One value when all are alike."""
        return values[0] if all(alike(v, values[0]) for v in values) else PerLayer(values, scope)


def each_layer(function: Callable[..., Any], *operands: Any) -> Any:
    """`function` of the operands, at each iteration where one of them is a `PerLayer`.

    Inside two repeats the outer one's values must settle: they split it.
    """
    layered = [o for o in operands if isinstance(o, PerLayer)]
    if not layered:
        return function(*operands)
    scope = max((o.scope for o in layered), key=lambda s: s.depth)
    found = []
    for i in range(max(len(o.values) for o in layered if o.scope is scope)):
        value = function(*(_at(o, i, scope) for o in operands))
        found.append(_at(value, i, scope))
    return PerLayer.of(tuple(found), scope)


def _at(value: Any, iteration: int, scope: GraphScope) -> Any:
    if not isinstance(value, PerLayer):
        return value
    if value.scope is not scope:
        raise SplitIterations(value)
    return value.values[iteration]


def alike(a: Any, b: Any) -> bool:
    """Equality that tells 1, 1.0 and true apart."""
    return a is b or (type(a) is type(b) and bool(a == b))


class SplitIterations(Exception):
    """Raised where structure depends on a `PerLayer`: its repeat starts again on each group."""

    def __init__(self, value: PerLayer) -> None:
        super().__init__()
        self.scope = value.scope
        groups: dict[Any, list[int]] = {}
        seen: list[Any] = []  # values that are no plain ones
        for position, item in enumerate(value.values):
            groups.setdefault(_key(item, seen), []).append(position)
        self.groups = tuple(map(tuple, groups.values()))


def _key(item: Any, seen: list[Any]) -> Any:
    """What is equal for values that are `alike`."""
    if item is None or isinstance(item, Dim | float | bool | str):
        return type(item), item
    place = next((i for i, other in enumerate(seen) if alike(other, item)), len(seen))
    if place == len(seen):
        seen.append(item)
    return list, place


@dataclass(frozen=True, slots=True)
class Template:
    """A block or fn with some hyperparameters set. Each application in the text makes weights."""

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
    library: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """A `shared` block: one set of weights, made by its first application."""

    template: Template
    label: str
    place: WeightPlace
    declared_at: Span


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """`n` instances of one template, picked by a number or by a tensor of numbers.

    `entries` is the axis along which a tensor picks.
    """

    template: Template
    label: str
    entries: tuple[Label, Axis]
    place: WeightPlace
    declared_at: Span


@dataclass(frozen=True, slots=True)
class Selection:
    """The entries of a bank that a tensor picks: `index` counts along the axis `entries`."""

    entries: tuple[Label, Axis]
    index: Tensor

    def relabelled(self, to: Callable[[Label], Label]) -> Selection:
        return replace(self, index=self.index.relabelled(to))


@dataclass(frozen=True, slots=True)
class Builtin:
    """A function of the language itself."""

    name: str


@dataclass(slots=True, eq=False)
class WeightPlace:
    """Where weights are made: a path in a graph scope, and the labels already given there.

    `shared_at` is where the instance is declared whose weights stand here, if they may exist.
    In a bank indexed by tensors a weight has an entry for each of the bank's, of which the body
    reads those `chosen`, outermost bank first; their labels are the body's.
    """

    scope: GraphScope
    path: str
    taken: dict[str, Span] = field(default_factory=dict)
    shared_at: Span | None = None
    chosen: tuple[Selection, ...] = ()

    def child(self, label: str) -> WeightPlace:
        path = f"{self.path}.{label}" if self.path else label
        return WeightPlace(self.scope, path, shared_at=self.shared_at, chosen=self.chosen)

    def relabelled(self, to: Callable[[Label], Label]) -> WeightPlace:
        """The same place, as a body sees it that calls the axes of the selections otherwise."""
        if not self.chosen:
            return self
        return replace(self, chosen=tuple(s.relabelled(to) for s in self.chosen))


@dataclass(slots=True, eq=False)
class Environment:
    """Names to values, one per body; a loop body's parent is the body around it.

    `states` are those of the scan whose step the body is, as they enter the step.
    """

    parent: Environment | None = None
    values: dict[str, Any] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)

    def find(self, name: str) -> Environment | None:
        environment: Environment | None = self
        while environment is not None:
            if name in environment.values:
                return environment
            environment = environment.parent
        return None

    def all_states(self) -> dict[str, Tensor]:
        """The states of the scans that this body is in; of equal names the innermost."""
        outer = self.parent.all_states() if self.parent is not None else {}
        return {**outer, **self.states}

    def names(self) -> tuple[str, ...]:
        own = tuple(self.values)
        return own if self.parent is None else own + self.parent.names()


class Poison:
    """The value of a name whose definition failed: using it says nothing more."""


class Skip(Exception):
    """A use of a poisoned name: the mistake was reported where it was made."""
