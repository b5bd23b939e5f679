"""`shared` instances and banks: their weights as values, and their entries."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from ...dsl import errors
from ...dsl.dims import Dim
from ...dsl.span import Span
from . import binding, brackets, numbers
from .body import Body, MadeWeight
from .labels import Label
from .values import Bank, Instance, Selection, Tensor, WeightPlace


def weight(body: Body, instance: Instance, path: str, span: Span) -> Tensor:
    """`embed.w` as a value, under the reader's labels."""
    if instance.place.chosen:
        what = "a weight of a bank indexed by a tensor, as a value,"
        raise errors.Unsupported(what=what, span=span)
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
    """`f[3]`, one instance of a bank; `f[i]`, for each number in `i` the instance it picks."""
    key = body.settled(key)
    by_tensor = isinstance(key, Tensor) and key.dtype == "int"
    if not by_tensor and not isinstance(key, Dim):
        raise errors.BadIndex(what=f"bank `{bank.label}`", got=brackets.kind_of(key), span=span)
    first = body.session.banks.setdefault((bank.place.scope, bank.place.path), (by_tensor, span))
    if first[0] != by_tensor:
        raise errors.BankTwoWays(name=bank.label, span=span, first=first[1])
    place = _picked(bank, key) if by_tensor else _numbered(body, bank, key, span)
    label = bank.label + place.path.removeprefix(bank.place.path)
    return Instance(bank.template, label, place, bank.declared_at)


def _numbered(body: Body, bank: Bank, key: Dim, span: Span) -> WeightPlace:
    """Each entry that is named has weights of its own."""
    position = numbers.whole(key, body.bindings, span)
    _, axis = bank.entries
    size = numbers.whole(axis.size, body.bindings, span)
    if not 0 <= position < size:
        raise errors.ListIndex(index=position, length=size, span=span)
    return replace(bank.place, path=f"{bank.place.path}[{position}]")


def _picked(bank: Bank, index: Tensor) -> WeightPlace:
    """All entries are one weight, of which the body reads what `index` picks."""
    chosen = (*bank.place.chosen, Selection(bank.entries, index))
    return replace(bank.place, chosen=chosen)


def enter(callee: Body, span: Span) -> None:
    """The selections of the place a body runs at, under its labels.

    A block applies to each choice by itself, so it cannot run along an axis of the index.
    """
    chosen = []
    for selection in callee.place.chosen:
        index = binding.enter_open(callee, selection.index, span)
        own = [k.name for k in index.labels if k.frame is callee.frame]
        if own and callee.kind == "block":
            raise errors.BankAxis(axis=own[0], name=callee.frame.name, span=span)
        chosen.append(replace(selection, index=index))
    if chosen:
        callee.place = replace(callee.place, chosen=tuple(chosen))


def chosen_of(body: Body, stacked: Tensor, span: Span) -> Tensor:
    """What a body reads of a weight with an entry for each of a bank's."""
    for selection in body.place.chosen:
        index = body.emitter.at_step(selection.index)
        stacked = brackets.take(body, stacked, selection.entries[0], index, span)
    return stacked
