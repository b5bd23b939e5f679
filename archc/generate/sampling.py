"""From the logits of the next token to the token.

The distribution is softmax(penalised logits / temperature), cut by top-k, then top-p, then min-p, each
applied to what the one before left, renormalised: the order of transformers. At temperature 0 all of
it lies on the likeliest token.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dsl.errors import GenerationSetting, LogitsNotNumbers

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. `None` leaves a filter out. Raises `GenerationSetting`."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "more than 0"),
        )
        for name, holds, expected in checks:
            if not holds:
                raise GenerationSetting(name=name, got=str(getattr(self, name)), expected=expected)

    def distribution(self, logits: Array, seen: Collection[int]) -> Array:
        """float64[v], the probability of each token after those in `seen`, of logits [v].

        Raises `LogitsNotNumbers`.
        """
        tokens, chances = self.candidates(logits, seen)
        found = np.zeros(len(logits))
        found[tokens] = chances
        return found

    def choose(self, logits: Array, seen: Collection[int], random: np.random.Generator) -> int:
        """A token after those in `seen`, of logits [v]. Raises `LogitsNotNumbers`."""
        tokens, chances = self.candidates(logits, seen)
        return int(tokens[draw(chances, random)])

    def candidates(self, logits: Array, seen: Collection[int]) -> tuple[Array, Array]:
        """The tokens that may follow `seen`, in order, and their probabilities: int and float64 [n].

        Of equal tokens the one of the smaller id stays. Raises `LogitsNotNumbers`.
        """
        scores = penalised(logits.astype(np.float64), seen, self.repetition_penalty)
        best = scores.max()
        if not np.isfinite(best):
            raise LogitsNotNumbers(tokens=len(seen))
        if self.temperature == 0:
            return np.array([scores.argmax()]), np.ones(1)
        tokens = np.arange(len(scores)) if self.top_k is None else largest(scores, self.top_k)
        with np.errstate(over="ignore"):  # a cold enough sample is -inf but at the best
            chances = normalised(np.exp((scores[tokens] - best) / self.temperature))
        if self.top_p is not None and self.top_p < 1:
            tokens, chances = _only(nucleus(chances, self.top_p), tokens, chances)
        if self.min_p is not None:  # Nguyen et al., 2024, arXiv:2407.01082
            likely = np.flatnonzero(chances >= self.min_p * chances.max())
            tokens, chances = _only(likely, tokens, chances)
        return tokens, chances


def _only(places: Array, tokens: Array, chances: Array) -> tuple[Array, Array]:
    return tokens[places], normalised(chances[places])


def penalised(scores: Array, seen: Collection[int], penalty: float) -> Array:
    """Scores of tokens in `seen` divided by `penalty`, or multiplied where they are negative.

    CTRL (Keskar et al., 2019, arXiv:1909.05858) divides; that would raise a negative score, so
    these are multiplied, as transformers does. The prompt counts as seen.
    """
    if penalty == 1 or not seen:
        return scores
    tokens = np.unique(np.fromiter(seen, np.int64, len(seen)))
    tokens = tokens[tokens < len(scores)]
    before = scores[tokens]
    changed = scores.copy()
    changed[tokens] = np.where(before < 0, before * penalty, before / penalty)
    return changed


def largest(values: Array, k: int) -> Array:
    """The places of the `k` largest of values[n], of equal ones the first, in order."""
    if k >= len(values):
        return np.arange(len(values))
    least = np.partition(values, -k)[-k]
    above, equal = np.flatnonzero(values > least), np.flatnonzero(values == least)
    return np.sort(np.concatenate((above, equal[: k - len(above)])))


def nucleus(p: Array, mass: float) -> Array:
    """The places of the fewest largest of p[n] that sum to `mass`, in order.

    Holtzman et al., 2020, arXiv:1904.09751. Entries below (1 - mass) / n are less than 1 - mass
    together, so the others suffice, which are few where p is peaked.
    """
    high = np.flatnonzero(p >= (1 - mass) / len(p))
    reached = np.cumsum(np.sort(p[high])[::-1])
    return high[largest(p[high], int(np.searchsorted(reached, mass)) + 1)]


def draw(p: Array, random: np.random.Generator) -> int:
    """A place by its weight in p[n], which need not sum to 1."""
    reached = np.cumsum(p)
    return int(np.searchsorted(reached, random.random() * reached[-1], "right"))


def normalised(weights: Array) -> Array:
    found: Array = weights / weights.sum()
    return found
