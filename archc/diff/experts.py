"""Which experts does a router choose, and which did the class? The text's `topk` and the class's ids.

A `topk` chooses by what one region, the router, gave for each entry of the axis that it looks along.
The class says what it chose where the router's module, or one around it, returns whole numbers: ids
for each token, or a one for each expert that takes it. Where none does, the choice is the largest of
the class's scores, provided that the text makes no other of its own. What order the chosen ones are
in is nobody's business: a mixture is their sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..backends.base import Array, ValueKey
from ..compiler.ir.graph import Axis
from .matching import Region
from .peer import PeerRun
from .session import is_choice, topk_of
from .values import Values


@dataclass(frozen=True, slots=True)
class Choice:
    """The ids that a `topk` chooses by `scores`, and the router whose `exit` these are made of."""

    router: Region
    exit: ValueKey
    scores: ValueKey
    ids: ValueKey


def choices(values: Values, regions: Sequence[Region]) -> Iterator[Choice]:
    """The choices among what one region returns, in the order they are made."""
    exits: dict[ValueKey, Region] = {}
    for region in regions:  # inner before outer
        exits |= {key: region for key in region.exits if key not in exits}
    for key in values.order:
        if is_choice(values, key):
            (scores,) = values.operands(key)
            known = values.program.sizes
            size = _size(topk_of(values, key).attrs.axis("axis"), known)
            ends = {s: values.node(s).axes[-1:] for s in _sources(values, scores, exits)}
            found = [s for s, axes in ends.items() if axes and _size(axes[0], known) == size]
            if size is not None and len(found) == 1:
                yield Choice(exits[found[0]], found[0], scores, key)


def _size(axis: Axis, known: Mapping[str, int]) -> int | None:
    """That of an axis which is no run-time size."""
    return axis.size.evaluate(known) if axis.size.symbols() <= known.keys() else None


def _sources(values: Values, key: ValueKey, exits: Mapping[ValueKey, Region]) -> Iterator[ValueKey]:
    """The nearest values returned by regions that a value is made of."""
    todo, done = [key], {key}
    while todo:
        here = todo.pop()
        if here in exits:
            yield here
            continue
        new = set(values.operands(here)) - done
        done |= new
        todo += new


def stated_by(run: PeerRun, module: str, shape: tuple[int, ...], count: int) -> Array | None:
    """The ids, of `shape`, that a class chose of `count` for each token; -1 where it does not say."""
    while module:
        for numbers in run.counted(module):
            if numbers.size == np.prod(shape) and numbers.shape[-1] == shape[-1]:
                return numbers.reshape(shape)
            if numbers.shape[-1:] == (count,) and numbers.size == np.prod(shape[:-1]) * count:
                return _marked(numbers.reshape(*shape[:-1], count), shape[-1])
        module = module.rpartition(".")[0]
    return None


def _marked(marks: Array, chosen: int) -> Array | None:
    """Ids of those that are marked by a one; -1 where not all that are chosen are marked."""
    if not np.isin(marks, (0, 1)).all():
        return None
    ids = largest(marks, chosen)
    return np.where(marks.sum(-1, keepdims=True) == chosen, ids, -1)


def largest(scores: Array, chosen: int) -> Array:
    """The ids of the largest, the first of equals first."""
    return np.argsort(-scores.astype(np.float64), axis=-1, kind="stable")[..., :chosen]


def ranked(ids: Array, scores: Array) -> Array:
    """The ids of each token by their scores, best first."""
    ids = np.sort(ids, axis=-1)
    order = np.argsort(-np.take_along_axis(scores, ids, -1), axis=-1, kind="stable")
    return np.take_along_axis(ids, order, -1)
