"""How well a model expects a text: exp of the mean of -log p(token | the tokens before it).

The text is read in windows that overlap, since a model has a longest context. Each token but the
first is scored once, in the first window that holds it, so with all the context that the window has
before it: at least `window - stride` tokens, save at the beginning of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import exp
from typing import TYPE_CHECKING

import numpy as np

from .dsl.errors import TextTooShort

if TYPE_CHECKING:
    from .backends.base import Array

ROWS = 64  # logits widened at a time: a vocabulary is long
Logits = Callable[[Sequence[int]], "Array"]  # ids -> logits[position, vocabulary]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`scored` tokens of `tokens`, and the mean of their negative log-likelihoods in nats."""

    tokens: int
    scored: int
    nll: float

    @property
    def perplexity(self) -> float:
        return exp(self.nll)


def own_text() -> str:
    """A text of three thousand words that comes with archc, written for it."""
    return (files(__package__) / "data" / "river.txt").read_text(encoding="utf-8")


def perplexity(
    logits: Logits,
    ids: Sequence[int],
    *,
    window: int = 512,
    stride: int = 256,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Perplexity:
    """The perplexity of the tokens `ids`; `progress` is told of (windows done, windows).

    Raises TextTooShort, and what the model raises for a window that is longer than it can read.
    """
    if len(ids) < 2:
        raise TextTooShort(tokens=len(ids))
    total, spans = 0.0, list(windows(len(ids), window, stride))
    for done, (start, first, stop) in enumerate(spans, 1):
        rows = logits(ids[start : stop - 1])[first - start - 1 :]
        total += _surprise(rows, ids[first:stop])
        progress(done, len(spans))
    return Perplexity(len(ids), len(ids) - 1, total / (len(ids) - 1))


def windows(count: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, first token scored, stop) of each window: every token from 1 on is scored once."""
    scored = 1
    for start in range(0, count, stride):
        stop = min(start + window, count)
        yield start, scored, stop
        scored = stop
        if stop == count:
            return


def _surprise(logits: Array, ids: Sequence[int]) -> float:
    """The sum of -log softmax(logits)[id] over the rows, in float64."""
    total = 0.0
    for start in range(0, len(ids), ROWS):
        rows = logits[start : start + ROWS].astype(np.float64)
        rows -= rows.max(-1, keepdims=True)
        chosen = rows[np.arange(len(rows)), ids[start : start + ROWS]]
        total += float((np.log(np.exp(rows).sum(-1)) - chosen).sum())
    return total
