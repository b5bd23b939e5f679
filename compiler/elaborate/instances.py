"""`shared` instances and banks: their weights as values, and their entries."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ...dsl import errors
from ...dsl.dims import Dim
from ...dsl.span import Span
from . import binding, brackets, numbers
from .body import Body, MadeWeight
from .labels import Label
from .values import Bank, Instance, Tensor, WeightPlace


def weight(body: Body, instance: Instance, path: str, span: Span) -> Tensor:
    """`embed.w` as a value, under the reader's labels."""
    scope, prefix = instance.place.scope, f"{instance.place.path}."
    weights = body.session.weights
    made = weights.get((scope, prefix + path))
    if made is None:
        known = tuple(
            p.removeprefix(prefix) for s, p in weights if s is scope and p.startswith(prefix)
        )
        raise errors.NoWeight(
            instance=instance.label,
            path=path,
            known=known,
            span=span,
            declared_at=instance.declared_at,
        )
    return binding.captured(body, _read(body, made))


def _read(body: Body, made: MadeWeight) -> Tensor:
    """The outermost names that the reader knows; the declared ones where two coincide."""
    home = frozenset(id(f) for f in body.frame.chain())
    seen = {label: label.outward(home) for label in made.value.labels}
    times = Counter(seen.values())

    def reader(label: Label) -> Label:
        known = seen[label]
        if id(known.frame) in home and times[known] == 1:
            return known
        return body.frame.find(label.name) or body.frame.declare(label.name, label.axis)

    return made.value.relabelled(reader)


def entry(body: Body, bank: Bank, key: Any, span: Span) -> Instance:
    """`f[3]`: one instance of a bank."""
    key = body.settled(key)
    if isinstance(key, Tensor):
        raise errors.Unsupported(what="a bank indexed by a tensor", span=span)
    if not isinstance(key, Dim):
        raise errors.BadIndex(axis=bank.label, got=brackets.kind_of(key), span=span)
    position = numbers.whole(key, body.bindings, span)
    size = numbers.whole(bank.size, body.bindings, span)
    if not 0 <= position < size:
        raise errors.ListIndex(index=position, length=size, span=span)
    label = f"{bank.label}[{position}]"
    place = WeightPlace(bank.place.scope, f"{bank.place.path}[{position}]")
    return Instance(bank.template, label, place, bank.declared_at)
