"""Between texts and token ids: how a prompt becomes tokens, however it is given, and tokens a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..dsl.errors import EmptyPrompt, GenerationSetting, NoTokenizer
from .chat import chat
from .rows import Cut, Writer

if TYPE_CHECKING:
    from ..api import Model
    from ..tokenizer import Tokenizer

Ids = tuple[int, ...]
Prompt = str | Sequence[int]
Prompts = Prompt | Sequence[Prompt]
Encode = Callable[[str], Sequence[int]]
CONTEXT = 8  # tokens of a prompt after which the first new ones are decoded


@dataclass(frozen=True, slots=True)
class Language:
    """The tokenizer of a model, or none: then prompts are ids, and no text is written.

    `path` is what the model's weights are called in messages.
    """

    tokenizer: Tokenizer | None
    path: str

    @property
    def start(self) -> Ids:
        """What a decoder beside an encoder begins with."""
        return () if self.tokenizer is None else self.tokenizer.decoder_start

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a text."""
        return frozenset() if self.tokenizer is None else self.tokenizer.ends

    def prompt(self, text: str) -> list[int]:
        """Tokens of a text to continue. Raises `NoTokenizer`."""
        tokenizer = self._tokenizer()
        start = [*tokenizer.decoder_start]
        return [*start, *tokenizer.encode(text, special=not start)]

    def message(self, text: str, system: str | None) -> list[int]:
        """Tokens of a message to answer. Raises `NoTokenizer`, and what `chat` raises."""
        tokenizer = self._tokenizer()
        return tokenizer.encode(chat(tokenizer, text, self.path, system=system), special=False)

    def source(self, text: str) -> list[int]:
        """Tokens of a text for an encoder. Raises `NoTokenizer`."""
        return self._tokenizer().encode(text)

    def stops(self, stop: str | Sequence[str]) -> tuple[str, ...]:
        """The strings that end a text. Raises `GenerationSetting`, `NoTokenizer`."""
        found = (stop,) if isinstance(stop, str) else tuple(stop)
        if found:
            self._tokenizer()
        if not all(found):
            raise GenerationSetting(
                name="stop", got="an empty text", expected="texts of a letter or more"
            )
        return found

    def writer(
        self, after: Ids, stops: tuple[str, ...], show: Callable[[str], None]
    ) -> Writer | None:
        """What writes the text that goes on from `after`, and shows it piece by piece."""
        if self.tokenizer is None:
            return None
        return Writer(self.tokenizer.stream(after[-CONTEXT:]), Cut(stops), show)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise NoTokenizer(
                path=self.path, reason="prompts can only be token ids, and stops none"
            )
        return self.tokenizer


def language_of(model: Model, tokenizer: Tokenizer | None = None) -> Language:
    """`tokenizer`, or the one that came with the model's weights. Raises `MissingPackage`."""
    if model.checkpoint is None:
        return Language(tokenizer, model.definition.name)
    path = str(model.checkpoint.path)
    return Language(_opened(model) if tokenizer is None else tokenizer, path)


def _opened(model: Model) -> Tokenizer | None:
    from ..tokenizer import open_tokenizer

    assert model.checkpoint is not None
    try:
        return open_tokenizer(model.checkpoint)
    except NoTokenizer:
        return None


def listed(prompts: Prompts | None) -> list[Prompt]:
    """One prompt or several, as a list; none gives none."""
    if prompts is None:
        return []
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    alone = bool(items) and not isinstance(items[0], str) and not hasattr(items[0], "__len__")
    return [items] if alone else items  # type: ignore[list-item]


def tokens_of(prompts: Sequence[Prompt], encode: Encode) -> list[Ids]:
    """Token ids of each prompt. Those that are ids stay as they are."""
    return [tuple(map(int, encode(p) if isinstance(p, str) else p)) for p in prompts]


def paired(prompts: list[Ids], sources: list[Ids], start: Ids) -> list[tuple[Ids, Ids]]:
    """A (prompt, source) for each row. Without prompts each is `start`; one serves all sources.

    Raises `GenerationSetting` and `EmptyPrompt`.
    """
    if len(prompts) <= 1 and sources:
        prompts = (prompts or [start]) * len(sources)
    if sources and len(sources) != len(prompts):
        expected = f"one for each prompt, {len(prompts)}"
        raise GenerationSetting(name="source", got=f"{len(sources)} texts", expected=expected)
    if not all(prompts) or not all(sources):
        raise EmptyPrompt()
    return list(zip(prompts, sources or [()] * len(prompts), strict=True))
