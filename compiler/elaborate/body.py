"""One body being elaborated: its labels, its names, where its weights go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ...dsl import errors
from ...dsl.diagnostics import ArchError
from ...dsl.dims import Dim
from ...dsl.span import Span
from ...dsl.syntax import Stmt
from ..ir.graph import Axis, Function
from .emit import Emitter, Place
from .labels import AxisSize, Frame, Label
from .module import Module
from .values import Environment, PerLayer, Poison, Skip, SplitIterations, Tensor, WeightPlace


@dataclass(slots=True, eq=False)
class Timeline:
    """What `time s: ...` declared of an input axis. `label` is the axis where it was declared."""

    label: Label
    facts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class MadeWeight:
    """A weight that exists: its value under the labels of the body that declared it."""

    value: Tensor
    labels: tuple[Label, ...]
    span: Span


@dataclass(slots=True)
class Session:
    """What all bodies of one elaboration share."""

    module: Module
    emitter: Emitter
    timelines: dict[str, Timeline] = field(default_factory=dict)
    weights: dict[tuple[int, str], MadeWeight] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    errors: list[ArchError] = field(default_factory=list)
    model_effects: Mapping[type[Stmt], Callable[[Body, Any], None]] = field(default_factory=dict)
    depth: int = 0

    def function_name(self, hint: str) -> str:
        number, name = 0, hint
        while name in self.functions:
            number += 1
            name = f"{hint}.{number}"
        return name


@dataclass(slots=True)
class Naming:
    """What decides the label of an unnamed application in the present statement."""

    new_variable: str | None = None
    applications: int = 0


@dataclass(slots=True, eq=False)
class Body:
    """An activation of a model, block, fn or lambda."""

    session: Session
    frame: Frame
    environment: Environment
    place: WeightPlace
    open_order: tuple[Label, ...] = ()
    packs: dict[str, tuple[Label, ...]] = field(default_factory=dict)
    naming: Naming = field(default_factory=Naming)
    is_model: bool = False

    @property
    def emitter(self) -> Emitter:
        return self.session.emitter

    @property
    def bindings(self) -> dict[str, int]:
        return self.session.emitter.bindings

    def nested(self) -> Body:
        """The body of a `repeat`: the same labels, new names on top of the old ones."""
        return replace(self, environment=Environment(self.environment), naming=Naming())

    def lookup(self, name: str, span: Span) -> Any:
        """A variable, an axis' size, a definition: in this order. Poison stops the statement."""
        home = self.environment.find(name)
        if home is not None:
            value = home.values[name]
            if isinstance(value, Poison):
                raise Skip
            return value
        label = self.frame.find(name)
        if label is not None and label.axis is not None:
            return AxisSize(self.size_of(label, span), label)
        found = self.session.module.lookup(name)
        if found is None:
            known = (*self.environment.names(), *self.session.module.names())
            raise errors.UnknownName(name=name, known=known, span=span)
        return found

    def size_of(self, label: Label, span: Span) -> Dim:
        """The size of an axis as declared in this body."""
        if label.ambiguous:
            raise errors.AmbiguousAxis(axis=label.name, span=span, declared_at=label.declared_at)
        assert label.axis is not None
        return label.axis.size

    def axis_label(self, name: str) -> Label:
        return self.frame.label(name)

    def declare_axis(self, name: str, size: Dim, span: Span) -> Label:
        """An axis declared with its size in this body: `g: kv_heads`."""
        known = self.frame.find(name)
        if known is not None and known.axis is not None and known.axis.size == size:
            return known
        axis = self.emitter.axes.get(name, size)
        return self.frame.declare(name, axis, span)

    def resolved_axis(self, size: AxisSize) -> Axis:
        """The graph axis of a size passed by name, made on first use."""
        label = size.label
        if label.axis is None:
            outer = label.outer
            label.axis = (
                self.resolved_axis(AxisSize(size.size, outer))
                if outer is not None
                else self.emitter.axes.get(label.name, size.size)
            )
        return label.axis

    def settled(self, value: Any) -> Any:
        """A value that structure depends on: one that differs per layer splits the repeat."""
        if isinstance(value, PerLayer):
            raise SplitIterations(value)
        return value

    @contextmanager
    def at(self, span: Span) -> Iterator[None]:
        """Nodes emitted inside come from `span`."""
        emitter, old = self.emitter, self.emitter.place
        emitter.place = Place((span, *old.spans[1:]), old.region)
        try:
            yield
        finally:
            emitter.place = old

    @contextmanager
    def inside(self, span: Span, region: str) -> Iterator[None]:
        """A call: spans of the callee go on top of the present one."""
        emitter, old = self.emitter, self.emitter.place
        emitter.place = Place((span, *old.spans), region)
        try:
            yield
        finally:
            emitter.place = old
