"""Labels: what an axis is called inside one body, and how names cross a call.

A body runs in a `Frame`; inside it an axis is a `Label` on a value. A formal axis is its own label
and remembers the caller's label it stands for (`outer`). Entering a call replaces caller labels by
formals, leaving replaces formals by what they stand for. Graph axes change only when two labels of
one value would share one: then the `secondary` label is given an axis of its own and a `rename` is
emitted, so the rename stands as close to its consumer as it can.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from ...dsl.dims import Dim
from ...dsl.span import Span
from ..ir.graph import Axis

Role = Literal["input", "hyper", "pack"]


@dataclass(slots=True, eq=False)
class Label:
    """An axis as one body knows it, with the graph axis it had when it was declared or bound.

    `role` is set on formals; `ambiguous` when one body declares the name with several sizes.
    """

    frame: Frame
    name: str
    axis: Axis | None = None
    outer: Label | None = None
    role: Role | None = None
    secondary: bool = False
    alternative: Axis | None = None
    declared_at: Span | None = None
    ambiguous: bool = False

    def __repr__(self) -> str:
        return f"{self.frame.name}.{self.name}"

    @property
    def owner(self) -> Label:
        """The nearest label, from this one outwards, that yields its axis to another; or this."""
        label: Label | None = self
        while label is not None and not label.secondary:
            label = label.outer
        return label or self

    def yields_to(self, other: Label) -> bool:
        """Which of two labels of one axis takes another: the one that is nearer to yielding."""
        own, its = self._distance(), other._distance()
        return own is not None and (its is None or own <= its)

    def _distance(self) -> int | None:
        """The number of calls out to the label that yields its axis, if there is one."""
        label: Label | None = self
        distance = 0
        while label is not None and not label.secondary:
            label, distance = label.outer, distance + 1
        return None if label is None else distance

    def chain(self) -> Iterator[Label]:
        """This label and those it stands for, outwards."""
        label: Label | None = self
        while label is not None:
            yield label
            label = label.outer

    def outward(self, frames: frozenset[int]) -> Label:
        """The label this one stands for in one of `frames` (ids); itself when it reaches none."""
        return next((label for label in self.chain() if id(label.frame) in frames), self)


@dataclass(slots=True, eq=False)
class Frame:
    """One activation of a body: called by `caller`, or, for a lambda, written in `lexical`.

    The axes of a pack have no names here: the names their caller gave them are not this body's.
    """

    name: str
    lexical: Frame | None = None
    caller: Frame | None = None
    labels: dict[str, Label] = field(default_factory=dict)
    formals: list[Label] = field(default_factory=list)

    def chain(self) -> Iterator[Frame]:
        """This frame and those that enclose it in the text."""
        frame: Frame | None = self
        while frame is not None:
            yield frame
            frame = frame.lexical

    def inward(self, label: Label) -> Label:
        """What a label of the model is called here, through all calls from there."""
        around = self.lexical or self.caller
        known = label if around is None else around.inward(label)
        stands = self.standing_for(known)
        return stands[0] if len(stands) == 1 else known

    def enclosing(self) -> frozenset[int]:
        return frozenset(id(f) for f in self.chain()) - {id(self)}

    def find(self, name: str) -> Label | None:
        for frame in self.chain():
            if name in frame.labels:
                return frame.labels[name]
        return None

    def label(self, name: str) -> Label:
        """The label called `name` here or in an enclosing body; otherwise a new one, made here."""
        return self.find(name) or self.declare(name)

    def declare(self, name: str, axis: Axis | None = None, span: Span | None = None) -> Label:
        """Declare `name` in this body (again, perhaps with another size: it is then ambiguous)."""
        label = self.labels.get(name)
        if label is None:
            label = self.labels[name] = Label(self, name, axis, declared_at=span)
        elif axis is not None and label.axis is not None and label.axis.size != axis.size:
            label.ambiguous = True
        elif label.axis is None:
            label.axis, label.declared_at = axis, span
        return label

    def formal(
        self, name: str, outer: Label | None, axis: Axis | None, span: Span, role: Role = "input"
    ) -> Label:
        """A formal axis of a signature, standing for the caller's `outer`.

        Of two formals that stand for one axis the one that yields (gets a graph axis of its own) is
        the one only new weights carry, a hyperparameter or a pack, else the later one.
        """
        label = Label(self, name, axis, outer, role, declared_at=span)
        for rival in self.formals if outer is not None else ():
            if rival.outer is outer:
                (label if rival.role == "input" else rival).secondary = True
        self.formals.append(label)
        if role != "pack":
            self.labels[name] = label
        return label

    def formal_named(self, name: str) -> Label | None:
        label = self.labels.get(name)
        return label if label is not None and label.role is not None else None

    def standing_for(
        self, label: Label, roles: tuple[Role, ...] = ("input", "hyper")
    ) -> list[Label]:
        """The formals of this frame, of these roles, that stand at any distance for `label`."""
        target = frozenset({id(label.frame)})
        return [f for f in self.formals if f.role in roles and f.outward(target) is label]

    @contextmanager
    def local(self) -> Iterator[None]:
        """Labels first declared inside are forgotten afterwards: those of one iteration."""
        before = dict(self.labels)
        try:
            yield
        finally:
            self.labels = before


@dataclass(frozen=True, slots=True)
class AxisSize:
    """A compile-time size that is also an axis of the caller: what a bare name passes.

    `ambiguous` when it is the size of an axis that has several.
    """

    size: Dim
    label: Label
    ambiguous: bool = False
