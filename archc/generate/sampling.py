"""From the logits of the next token to the token.

The distribution is softmax(penalised logits / temperature), cut by top-k, then top-p, then min-p, each
applied to what the one before left, renormalised: the order of transformers. At temperature 0 all of
it lies on the likeliest token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dsl.errors import GenerationSetting, LogitsNotNumbers

Array = NDArray[Any]
Filter = Callable[[Array], Array]  # probabilities -> which of them stay


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

        Ties go to the smaller id. Raises `LogitsNotNumbers`.
        """
        scores = penalised(logits.astype(np.float64), seen, self.repetition_penalty)
        best = scores.max()
        if not np.isfinite(best):
            raise LogitsNotNumbers(tokens=len(seen))
        if self.temperature == 0:
            return one_hot(int(scores.argmax()), len(scores))
        with np.errstate(over="ignore"):  # a cold enough sample is -inf everywhere else
            found = normalised(np.exp((scores - best) / self.temperature))
        for stays in self._filters():
            found = normalised(np.where(stays(found), found, 0.0))
        return found

    def _filters(self) -> list[Filter]:
        found: list[Filter] = []
        if (k := self.top_k) is not None:
            found.append(lambda p: largest(p, k))
        if (mass := self.top_p) is not None and mass < 1:
            found.append(lambda p: nucleus(p, mass))
        if (share := self.min_p) is not None:
            found.append(lambda p: p >= share * p.max())  # Nguyen et al., 2024, arXiv:2407.01082
        return found


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


def largest(p: Array, k: int) -> Array:
    """bool[v]: the `k` largest entries of p[v], of equal ones the first."""
    if k >= len(p):
        return np.ones(len(p), np.bool_)
    least = np.partition(p, -k)[-k]
    stays: Array = p > least
    stays[np.flatnonzero(p == least)[: k - np.count_nonzero(stays)]] = True
    return stays


def nucleus(p: Array, mass: float) -> Array:
    """bool[v]: the fewest largest entries of p[v] that sum to `mass`.

    Holtzman et al., 2020, arXiv:1904.09751.
    """
    reached = np.cumsum(np.sort(p)[::-1])
    return largest(p, int(np.searchsorted(reached, mass)) + 1)


def draw(p: Array, random: np.random.Generator) -> int:
    """A token by its weight in p[v], which need not sum to 1."""
    reached = np.cumsum(p)
    return int(np.searchsorted(reached, random.random() * reached[-1], "right"))


def normalised(weights: Array) -> Array:
    found: Array = weights / weights.sum()
    return found


def one_hot(token: int, size: int) -> Array:
    found = np.zeros(size)
    found[token] = 1.0
    return found
