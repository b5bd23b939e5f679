"""One body being elaborated: its labels, its names, where its weights go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ...dsl import errors
from ...dsl.diagnostics import ArchError, Diagnostics
from ...dsl.dims import Dim
from ...dsl.lexer import MOST_ERRORS
from ...dsl.span import Span
from ...dsl.syntax import Node, Stmt
from ..ir.graph import Axis, Function
from .emit import Emitter, Place, Placed
from .labels import AxisSize, Frame, Label
from .module import Module, standard_library
from .scopes import GraphScope
from .values import Environment, PerLayer, Poison, Skip, SplitIterations, Tensor, WeightPlace


@dataclass(slots=True, eq=False)
class Timeline:
    """What is known of an input axis by `time s: ...`, or of a concatenation by its parts.

    `label` is the axis where it was declared or joined.
    """

    label: Label
    facts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class MadeWeight:
    """A weight that exists: its value under the labels of the body that declared it."""

    value: Tensor
    span: Span


Watch = Callable[[Node, Any], None]  # is told of each value, and of the text it is the value of


def nobody(text: Node, value: Any) -> None:
    """Watches nothing."""


MOST_STEPS = 200_000  # some seconds; a layer kind takes a few hundred


@dataclass(slots=True)
class Session:
    """What all bodies of one elaboration share.

    `finals` leads from the sequence of a scan's state to its final value and the scanned axis.
    `banks` says of each bank whether tensors index it, and where that was seen first. `watch` is told of
    the values of expressions, of stages of pipelines, and of what statements bind and declare.
    """

    module: Module
    emitter: Emitter
    timelines: dict[str, Timeline] = field(default_factory=dict)
    weights: dict[tuple[GraphScope, str], MadeWeight] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    finals: dict[tuple[GraphScope, int], tuple[int, Axis]] = field(default_factory=dict)
    derived: dict[Axis, str] = field(default_factory=dict)  # to the timeline it was cut from
    banks: dict[tuple[GraphScope, str], tuple[bool, Span]] = field(default_factory=dict)
    errors: list[ArchError] = field(default_factory=list)
    model_effects: Mapping[type[Stmt], Callable[[Body, Any], None]] = field(default_factory=dict)
    watch: Watch = nobody
    depth: int = 0
    steps: int = 0

    def function_name(self, hint: str) -> str:
        number, name = 0, hint
        while name in self.functions:
            number += 1
            name = f"{hint}.{number}"
        return name

    def record(self, mistake: ArchError) -> None:
        """Keep a mistake and go on, unless there are enough to show. Layer kinds repeat those of their
        common text.
        """
        facts = (mistake.id, mistake.span, mistake.message)
        if all((m.id, m.span, m.message) != facts for m in self.errors):
            self.errors.append(mistake)
        if len(self.errors) >= MOST_ERRORS:
            raise Diagnostics(self.errors)

    def spend(self, steps: int, span: Span) -> None:
        """Text that expands without end is refused before it fills the memory."""
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise errors.TooLarge(limit=MOST_STEPS, span=span)


Kind = Literal["model", "block", "fn", "lambda"]


@dataclass(slots=True)
class Naming:
    """What decides the label of an unnamed application in the present statement."""

    new_variable: str | None = None
    applications: int = 0


@dataclass(slots=True, eq=False)
class Body:
    """An activation of a model, block, fn or lambda, or one iteration of a `loop` in it.

    `library` is set for text of the standard library, where the user's definitions are not seen.
    """

    session: Session
    frame: Frame
    environment: Environment
    place: WeightPlace
    open_order: tuple[Label, ...] = ()
    packs: dict[str, tuple[Label, ...]] = field(default_factory=dict)
    naming: Naming = field(default_factory=Naming)
    kind: Kind = "block"
    library: bool = False
    loop: Literal["", "repeat", "scan"] = ""

    @property
    def emitter(self) -> Emitter:
        return self.session.emitter

    @property
    def bindings(self) -> dict[str, int]:
        return self.session.emitter.bindings

    @property
    def is_model(self) -> bool:
        return self.kind == "model"

    def nested(self) -> Body:
        """A body inside this one: the same labels, new names on top of the old ones."""
        return replace(self, environment=Environment(self.environment), naming=Naming())

    def lookup(self, name: str, span: Span) -> Any:
        """A variable, an axis' size, a definition: in this order. Poison stops the statement."""
        home = self.environment.find(name)
        if home is not None:
            value = home.values[name]
            if isinstance(value, Poison):
                raise Skip
            return self.emitter.at_step(value) if isinstance(value, Tensor) else value
        label = self.frame.find(name)
        if label is not None and label.axis is not None:
            return AxisSize(label.axis.size, label, label.ambiguous)
        try:
            return self.session.module.lookup(name, self.library)
        except KeyError:
            known = (*self.environment.names(), *self.session.module.names(self.library))
            in_std = name in standard_library()
            raise errors.UnknownName(name=name, known=known, in_std=in_std, span=span) from None

    def size(self, value: AxisSize, span: Span) -> Dim:
        """The size of an axis as declared in this body, where it must have just one."""
        if value.ambiguous:
            label = value.label
            raise errors.AmbiguousAxis(axis=label.name, span=span, declared_at=label.declared_at)
        return value.size

    def stated_size(self, name: str) -> Dim | None:
        """The size that a variable or hyperparameter of this name states; none without one."""
        home = self.environment.find(name)
        value = self.settled(home.values[name]) if home is not None else None
        return value if isinstance(value, Dim) else None

    def axis_label(self, name: str) -> Label:
        return self.frame.label(name)

    def outward(self, label: Label) -> Label:
        """What a label of this body is called in the model, through all calls to here."""
        frame = self.frame
        while (around := frame.lexical or frame.caller) is not None:
            frame = around
        return label.outward(frozenset({id(frame)}))

    def new_axis(self, name: str, size: Dim, span: Span, time: str | None = None) -> Axis:
        """A graph axis for a size that the text declares."""
        value = size.substitute(self.bindings).constant
        if value is not None and value < 0:
            raise errors.NegativeSize(axis=name, size=self.emitter.show(size), span=span)
        return self.emitter.axes.get(name, size, time)

    def declare_axis(self, name: str, size: Dim, span: Span) -> Label:
        """An axis declared with its size in this body: `g: kv_heads`."""
        known = self.frame.find(name)
        if known is not None and known.axis is not None and known.axis.size == size:
            return known
        return self.frame.declare(name, self.new_axis(name, size, span), span)

    def resolved_axis(self, value: AxisSize, span: Span) -> Axis:
        """The graph axis of a size passed by name, made on first use."""
        size, label = self.size(value, span), value.label
        if label.axis is None:
            outer = label.outer
            label.axis = (
                self.resolved_axis(AxisSize(size, outer), span)
                if outer is not None
                else self.new_axis(label.name, size, span)
            )
        return label.axis if label.axis.size == size else self.new_axis(label.name, size, span)

    def settled(self, value: Any) -> Any:
        """A value that structure depends on: one that differs per layer splits the repeat."""
        if isinstance(value, PerLayer):
            raise SplitIterations(value)
        return value

    def at(self, span: Span) -> Placed:
        """Nodes emitted inside come from `span`."""
        old = self.emitter.place
        return Placed(self.emitter, Place((span, *old.spans[1:]), old.region))

    def inside(self, span: Span, region: str) -> Placed:
        """A call: spans of the callee go on top of the present one."""
        return Placed(self.emitter, Place((span, *self.emitter.place.spans), region))
