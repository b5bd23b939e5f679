"""Labels: what an axis is called inside one body, and how names cross a call.

A body runs in a `Frame`; inside it an axis is a `Label` on a value. A formal axis is its own label and
remembers the caller's label it stands for (`outer`). Entering a call replaces caller labels by formals,
leaving replaces formals by what they stand for. Graph axes change only when two labels of one value
would share one: then the `secondary` label is given an axis of its own and a `rename` is emitted, so
the rename stands as close to its consumer as it can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ...dsl.dims import Dim
from ...dsl.span import Span
from ..ir.graph import Axis


@dataclass(slots=True, eq=False)
class Label:
    """An axis as one body knows it. `axis` is the graph axis it had when it was declared or bound."""

    frame: Frame
    name: str
    axis: Axis | None = None
    outer: Label | None = None
    secondary: bool = False
    hyper: bool = False
    alternative: Axis | None = None
    declared_at: Span | None = None
    ambiguous: bool = False

    def __repr__(self) -> str:
        return f"{self.frame.name}.{self.name}"

    @property
    def splits(self) -> Label:
        """The label that owns the alternative axis: the outermost one that is still secondary."""
        label = self
        while not label.owns_split and label.outer is not None:
            label = label.outer
        return label if label.owns_split else self

    @property
    def owns_split(self) -> bool:
        return self.secondary and not (self.outer is not None and self.outer.is_secondary)

    @property
    def is_secondary(self) -> bool:
        return self.secondary or (self.outer is not None and self.outer.is_secondary)

    def outward(self, frames: frozenset[int]) -> Label:
        """The label this one stands for in one of `frames` (ids), or itself when it reaches none."""
        label: Label | None = self
        while label is not None:
            if id(label.frame) in frames:
                return label
            label = label.outer
        return self


@dataclass(slots=True, eq=False)
class Frame:
    """One activation of a body. `lexical` is the enclosing body of a lambda, none for a definition."""

    name: str
    lexical: Frame | None = None
    labels: dict[str, Label] = field(default_factory=dict)
    formals: dict[str, Label] = field(default_factory=dict)

    def chain(self) -> Iterator[Frame]:
        """This frame and those that enclose it in the text."""
        frame: Frame | None = self
        while frame is not None:
            yield frame
            frame = frame.lexical

    def enclosing(self) -> frozenset[int]:
        return frozenset(id(f) for f in self.chain()) - {id(self)}

    def find(self, name: str) -> Label | None:
        for frame in self.chain():
            if name in frame.labels:
                return frame.labels[name]
        return None

    def label(self, name: str) -> Label:
        """The label called `name` here or in an enclosing body; a new one of this body otherwise."""
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
        self, name: str, outer: Label | None, axis: Axis | None, span: Span, hyper: bool = False
    ) -> Label:
        """A formal axis of a signature, standing for the caller's `outer`.

        Of two formals that stand for one axis the one that yields (gets a graph axis of its own) is
        the hyperparameter, which only new weights carry, else the later one.
        """
        label = Label(self, name, axis, outer, hyper=hyper, declared_at=span)
        for rival in self.formals.values() if outer is not None else ():
            if rival.outer is outer:
                (rival if rival.hyper else label).secondary = True
        self.labels[name] = self.formals[name] = label
        return label

    def standing_for(self, label: Label) -> list[Label]:
        """The formals of this frame that stand, at any distance, for `label`."""
        target = frozenset({id(label.frame)})
        return [f for f in self.formals.values() if f.outward(target) is label]


@dataclass(frozen=True, slots=True)
class AxisSize:
    """A compile-time size that is also an axis of the caller: what a bare name passes."""

    size: Dim
    label: Label
