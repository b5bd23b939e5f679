"""Do a candidate's routers choose the experts that the class's do? As sets, ties excused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..backends.base import Array, ValueKey
from ..equality import Comparison, compare, flips_allowed
from .experts import Choice, largest, ranked, stated_by
from .matching import Region
from .port import EXACT
from .report import listed
from .session import TIE, margin_of

if TYPE_CHECKING:
    from .trial import Trial


@dataclass
class Chosen:
    """The choices of one candidate on one case."""

    trial: Trial

    @cached_property
    def compared(self) -> list[tuple[Choice, Comparison]]:
        """How the experts that each router chooses compare."""
        found = ((choice, self.of(choice)) for choice in self.trial.port.choices)
        return [(choice, compared) for choice, compared in found if compared is not None]

    def by(self, region: Region) -> Comparison | None:
        """How what one router chooses compares, at worst; None of a region that is no router.

        What follows a tie elsewhere says nothing.
        """
        own = ((c, compared) for c, compared in self.compared if c.router is region)
        told = (compared for c, compared in own if not self.after_tie(c.ids))
        return min(told, key=lambda compared: compared.passed, default=None)

    def of(self, choice: Choice) -> Comparison | None:
        """Whether the class chose the same, as sets; None where it does not say what it chose."""
        if choice.ids not in self.trial.ran[1]:
            return None
        ours, gold = self.by_token(choice.ids, self.trial.ran[1]), self.gold_ids(choice)
        if gold is None:
            return None
        seen = self.trial.seen(choice.ids, ours.shape) & (gold >= 0).all(-1)
        wrong = (np.sort(ours, -1) != np.sort(gold, -1)).any(-1) & seen
        if not wrong.any():
            return Comparison(True)
        if self._may_differ(choice, ours, gold, seen, wrong):
            return Comparison(True, mismatch=TIE)
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        us, them = (listed([str(i) for i in sorted(x[place])]) for x in (ours, gold))
        words = (
            f"{us} instead of {them} at {list(place)}, {wrong.sum()} of {seen.sum()} choices differ"
        )
        return Comparison(False, float("inf"), mismatch=words)

    def _may_differ(
        self, choice: Choice, ours: Array, gold: Array, seen: Array, wrong: Array
    ) -> bool:
        """Whether no more than rounding makes the choices of some tokens differ.

        The text itself has to choose among scores that are closer than the class may have them wrong.
        Another candidate has to choose what the scores that it has itself say, and to have right ones
        where it chooses as the class; then rounding moved a token over an edge of the text's own.
        """
        truth = self.trial.port.session.stage(0, self.trial.dtype).truth(self.trial.runs.case)
        runs = truth.gold.values, truth.base.values, self.trial.ran[1]
        scores, base, got = (self.by_token(choice.scores, values) for values in runs)
        if self.trial.candidate == EXACT:
            margin = margin_of(scores[seen], self._judged(got, scores, base, seen))
            us, them = (ranked(ids[wrong], scores[wrong]) for ids in (ours, gold))
            return flips_allowed(us, them, scores[wrong], margin)
        text, right = self.trial.runs.exact.chosen.of(choice), seen & ~wrong
        own = ours[wrong], largest(got[wrong], ours.shape[-1])
        here, best = (np.sort(np.take_along_axis(got[wrong], ids, -1), -1) for ids in own)
        consistent = np.array_equal(here, best) and self._judged(got, scores, base, right).passed
        return consistent and text is not None and text.passed

    def _judged(self, got: Array, gold: Array, base: Array, tokens: Array) -> Comparison:
        ours, exact, theirs = (x[tokens].astype(np.float64) for x in (got, gold, base))
        return compare(ours, exact, theirs, self.trial.dtype)

    def gold_ids(self, choice: Choice) -> Array | None:
        """What the class chose, or has to choose by its scores where the text does so by its own."""
        exact = self.trial.runs.exact.ran[1]
        ids, own = (self.by_token(key, exact) for key in (choice.ids, choice.exit))
        run, module = self.trial.runs["f64"], choice.router.module
        said = stated_by(run, module, ids.shape, own.shape[-1])
        scores = self.trial.part(choice.router, choice.exit, run.returned(module))
        if said is not None or scores is None or scores.size != own.size:
            return said
        plain = np.sort(largest(own, ids.shape[-1]), -1) == np.sort(ids, -1)
        seen = self.trial.seen(choice.ids, ids.shape)
        return largest(scores.reshape(own.shape), ids.shape[-1]) if plain[seen].all() else None

    def by_token(self, key: ValueKey, values: Mapping[ValueKey, Array]) -> Array:
        return self.trial.runs.layout.by_token(values[key], self.trial.values.node(key))

    @cached_property
    def tied(self) -> int | None:
        """Where in the order of values a choice first differs that may: what follows is not judged."""
        order = self.trial.values.order
        ties = (c.ids for c, compared in self.compared if compared.passed and compared.mismatch)
        return min(map(order.index, ties), default=None)

    def after_tie(self, key: ValueKey) -> bool:
        return self.tied is not None and self.trial.values.order.index(key) > self.tied
