"""A small model drafts tokens, the model itself checks them all in one run.

Leviathan, Kalman and Matias, 2023 (arXiv:2211.17192), Algorithm 1. A token drafted with probability q(x)
is accepted with probability min(1, p(x) / q(x)); in place of the first one that is not, a token is
drawn from max(p - q, 0), normalised. So tokens are distributed by p, whatever q is. At temperature 0
both lie on one token, and the text is the one without a draft. p and q are what `Sampling` makes of the
logits, filters and penalty included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..dsl.errors import OtherVocabulary
from .batches import encoded, fit
from .face import Face
from .rows import Row
from .sampling import Array, draw

if TYPE_CHECKING:
    from ..decoder import Decoder, State
    from .prompts import Language


@dataclass(slots=True)
class Follower:
    """A decoder that reads one growing text and can go back to a shorter one.

    It goes back to a state that it had, and reads again what lies between that and the text.
    """

    decoder: Decoder
    face: Face
    first: dict[str, Array]  # what only the first call supplies
    states: list[tuple[int, State | None]] = field(default_factory=lambda: [(0, None)])

    @property
    def behind(self) -> int:
        """How many tokens it has read and still stands behind."""
        return self.states[-1][0]

    def read(self, tokens: Sequence[int], rows: int = 1) -> Array:
        """Logits [rows, v] after each of the last `rows` tokens, of which it has read none."""
        done, state = self.states[-1]
        lane = self.face.text
        new = {lane.ids: np.array([tokens[done:]])}
        if lane.valid in self.decoder.inputs:
            new[str(lane.valid)] = np.ones((1, len(tokens) - done), np.bool_)
        outputs, state = self.decoder(state, **new, **({} if done else self.first))
        self.states.append((len(tokens), state))
        found: Array = outputs[self.face.logits][0, -rows:]
        return found

    def settle(self, length: int) -> None:
        """Forget what was read after the first `length` tokens, and older states."""
        self.states = [next(s for s in reversed(self.states) if s[0] <= length)]


def speculate(target: Follower, draft: Follower, row: Row, ahead: int) -> None:
    """Continue `row` until it is closed, with up to `ahead` drafted tokens for a run of `target`.

    The target's decoder gives all rows; the draft's may give only the last.
    """
    prompt = row.tokens
    fit([row], len(prompt), target.decoder.max_length)
    fit([row], len(prompt), draft.decoder.max_length)
    if row.open:
        row.take(row.choose(target.read(prompt)[-1]))
    while row.open:
        text = row.tokens
        drafted, chances = _drafted(draft, row, text, min(ahead, row.left - 1))
        if len(text) - target.behind > ahead + 1:  # to read so many again costs more than a run
            target.read(text[:-1])
        logits = target.read(text + drafted, len(drafted) + 1)
        _check(row, logits, drafted, chances)
        settled = len(row.tokens) - 1  # the last token is of the target alone
        target.settle(settled)
        draft.settle(settled)


def _drafted(
    draft: Follower, row: Row, text: list[int], count: int
) -> tuple[list[int], list[Array]]:
    """Tokens after `text`, and the distribution [v] that each was drawn from."""
    tokens: list[int] = []
    chances: list[Array] = []
    for _ in range(count):
        chance = row.distribution(draft.read(text + tokens)[-1], tokens)
        tokens.append(draw(chance, row.random))
        chances.append(chance)
    row.drafted += len(tokens)
    return tokens, chances


def _check(row: Row, logits: Array, drafted: list[int], chances: list[Array]) -> None:
    """Take drafted tokens until one is refused, then one more. `logits` has a row for each."""
    for token, q, after in zip(drafted, chances, logits, strict=False):
        p = row.distribution(after)
        if row.random.random() * q[token] >= p[token]:
            row.take(draw(remainder(p, q), row.random))
            return
        row.accepted += 1
        row.take(token)
        if not row.open:
            return
    row.take(row.choose(logits[len(drafted)]))


def remainder(p: Array, q: Array) -> Array:
    """max(p - q, 0), which is p where the two are equal but for rounding; not normalised."""
    left = np.maximum(p - q, 0.0)
    return left if left.any() else p


def follower(decoder: Decoder, face: Face, row: Row, given: Mapping[str, Array]) -> Follower:
    """A decoder at the beginning of a row, with what it needs of the other inputs."""
    wanted = {name: array for name, array in given.items() if name in decoder.inputs}
    return Follower(decoder, face, {**encoded(face, [row], decoder.inputs), **wanted})


def check_vocabulary(languages: tuple[Language, Language], faces: tuple[Face, Face]) -> None:
    """Raises `OtherVocabulary` where an id means one token to a model and another to its draft."""
    reason = ""
    (size, other), (first, second) = (f.vocabulary for f in faces), (x.tokenizer for x in languages)
    if size != other:
        reason = f"it has {other} tokens, not {size}"
    elif first is not None and second is not None:
        ids = second.model.get_vocab()
        differ = {i: token for token, i in first.model.get_vocab().items() if ids.get(token) != i}
        reason = f"{differ[min(differ)]!r} has another id in it" if differ else ""
    if reason:
        model, draft = languages
        raise OtherVocabulary(model=model.path, draft=draft.path, reason=reason)
