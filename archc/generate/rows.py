"""One text while it is written: its tokens, its chance, where it ends, and what is shown of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from .sampling import Array, Sampling

if TYPE_CHECKING:
    from ..tokenizer import Stream

Reason = Literal["end", "stop", "max_tokens", "max_length"]


@dataclass(frozen=True, slots=True)
class Result:
    """The text after a prompt.

    `ids` are all tokens chosen, `text` is without end tokens and stop strings. `reason` is why it
    ends: an `end` token, a `stop` string, `max_tokens`, or the decoder's `max_length`. Of `drafted`
    tokens `accepted` were taken.
    """

    text: str
    ids: tuple[int, ...]
    reason: Reason
    prompt_ids: tuple[int, ...]
    seed: int
    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Cut:
    """Text up to the first of some strings; what may begin one is held back until it cannot.

    Of several the one that is complete first counts, so the cut does not depend on the pieces.
    """

    stops: tuple[str, ...]
    stopped: bool = False
    _held: str = ""

    def push(self, piece: str) -> str:
        """What can be shown after `piece`."""
        if self.stopped:
            return ""
        text = self._held + piece
        ends = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        self.stopped = bool(ends)
        shown = min(ends)[1] if ends else len(text) - self._begun(text)
        self._held = "" if ends else text[shown:]
        return text[:shown]

    def finish(self) -> str:
        """What was held back and began nothing."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        return next((n for n in sizes if any(s.startswith(text[-n:]) for s in self.stops)), 0)


@dataclass(slots=True)
class Writer:
    """Turns tokens into text; `show` is called with each piece that is certain, and "" at the end."""

    stream: Stream
    cut: Cut
    show: Callable[[str], None]
    text: str = ""

    def push(self, token: int) -> bool:
        """Whether a stop string is complete."""
        self._give(self.cut.push(self.stream.push(token)))
        return self.cut.stopped

    def finish(self) -> None:
        self._give(self.cut.push(self.stream.finish()))
        self._give(self.cut.finish())
        self.show("")

    def _give(self, piece: str) -> None:
        if piece:
            self.text += piece
            self.show(piece)


@dataclass(slots=True)
class Row:
    """One prompt and the tokens chosen after it, at most `limit`; `full` is what the limit is.

    `source` is what an encoder reads. A row has its own stream of chance.
    """

    prompt: tuple[int, ...]
    source: tuple[int, ...]
    sampling: Sampling
    seed: int
    limit: int
    ends: frozenset[int]
    writer: Writer | None
    full: Reason = "max_tokens"
    ids: list[int] = field(default_factory=list)
    reason: Reason | None = None
    drafted: int = 0
    accepted: int = 0
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self._close_if_full()

    @property
    def open(self) -> bool:
        return self.reason is None

    @property
    def left(self) -> int:
        """How many tokens may still be chosen."""
        return self.limit - len(self.ids)

    @property
    def tokens(self) -> list[int]:
        """The prompt's tokens and those chosen."""
        return [*self.prompt, *self.ids]

    def fit(self, slots: int) -> None:
        """Choose no more tokens than there are slots left in a decoder."""
        if slots < self.limit:
            self.limit, self.full = slots, "max_length"
            self._close_if_full()

    def distribution(self, logits: Array, ahead: Sequence[int] = ()) -> Array:
        """float64[v] for the token after this text and the tokens `ahead`, of logits [v]."""
        return self.sampling.distribution(logits, [*self.prompt, *self.ids, *ahead])

    def choose(self, logits: Array) -> int:
        """The token after this text, of logits [v]."""
        return self.sampling.choose(logits, self.tokens, self.random)

    def take(self, token: int) -> None:
        """Go on by `token`, which may end the text."""
        self.ids.append(token)
        if token in self.ends:
            self._close("end")
        elif self.writer is not None and self.writer.push(token):
            self._close("stop")
        else:
            self._close_if_full()

    def _close_if_full(self) -> None:
        if self.open and self.left <= 0:
            self._close(self.full)

    def _close(self, reason: Reason) -> None:
        self.reason = reason
        if self.writer is not None:
            self.writer.finish()

    def result(self) -> Result:
        """What became of it, once it is closed."""
        assert self.reason is not None
        return Result(
            text="" if self.writer is None else self.writer.text,
            ids=tuple(self.ids),
            reason=self.reason,
            prompt_ids=self.prompt,
            seed=self.seed,
            drafted=self.drafted,
            accepted=self.accepted,
        )
