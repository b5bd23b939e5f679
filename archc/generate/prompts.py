"""Between texts and token ids: how a prompt becomes tokens, however it is given, and tokens a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any

from ..dsl.diagnostics import ArchError
from ..dsl.errors import EmptyPrompt, GenerationSetting, MissingPackage, NoTokenizer
from .chat import chat as chat_text
from .rows import Cut, Writer

if TYPE_CHECKING:
    from ..api import Model
    from ..tokenizer import Tokenizer

Ids = tuple[int, ...]
Prompt = str | Sequence[int]
Prompts = Prompt | Sequence[Prompt]
CONTEXT = 8  # tokens of a prompt after which the first new ones are decoded


@dataclass(frozen=True, slots=True)
class Language:
    """The tokenizer of a model, or why there is none: then prompts are ids, and no text is written.

    `path` is what the model's weights are called in messages.
    """

    path: str
    tokenizer: Tokenizer | None
    missing: ArchError | None = None

    @property
    def start(self) -> Ids:
        """What a decoder beside an encoder begins with."""
        return () if self.tokenizer is None else self.tokenizer.decoder_start

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a text."""
        return frozenset() if self.tokenizer is None else self.tokenizer.ends

    def prompts(
        self, given: Prompts | None, *, chat: bool = False, system: str | None = None
    ) -> list[Ids]:
        """Token ids of prompts to continue or, with `chat`, of messages to answer.

        Raises `NoTokenizer` for texts without one, and what a chat template raises.
        """
        encode = (lambda text: self._message(text, system)) if chat else self._prompt
        return [_ids(p, encode) for p in listed(given)]

    def sources(self, given: Prompts | None) -> list[Ids]:
        """Token ids of texts for an encoder. Raises `NoTokenizer`."""
        return [_ids(p, lambda text: self._tokenizer().encode(text)) for p in listed(given)]

    def _prompt(self, text: str) -> list[int]:
        tokenizer = self._tokenizer()
        return [*self.start, *tokenizer.encode(text, special=not self.start)]

    def _message(self, text: str, system: str | None) -> list[int]:
        tokenizer = self._tokenizer()
        return tokenizer.encode(chat_text(tokenizer, text, self.path, system=system), special=False)

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
        if self.tokenizer is not None:
            return self.tokenizer
        raise self.missing or NoTokenizer(path=self.path, reason="there is no checkpoint")


def language_of(model: Model, tokenizer: Tokenizer | None = None) -> Language:
    """`tokenizer`, or the one that came with the model's weights."""
    from ..tokenizer import open_tokenizer

    if model.checkpoint is None:
        return Language(model.definition.name, tokenizer)
    path = str(model.checkpoint.path)
    if tokenizer is not None:
        return Language(path, tokenizer)
    try:
        return Language(path, open_tokenizer(model.checkpoint))
    except (NoTokenizer, MissingPackage) as missing:  # it may not be needed
        return Language(path, None, missing)


def listed(prompts: Prompts | None) -> list[Prompt]:
    """One prompt or several, as a list; none gives none."""
    if prompts is None:
        return []
    if isinstance(prompts, str):
        return [prompts]
    items: list[Any] = list(prompts)
    alone = bool(items) and not hasattr(items[0], "__len__")
    return [items] if alone else items


def _ids(prompt: Prompt, encode: Callable[[str], Sequence[int]]) -> Ids:
    """Token ids of a text; those that are ids stay as they are."""
    return tuple(map(index, encode(prompt) if isinstance(prompt, str) else prompt))


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
