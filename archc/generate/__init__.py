"""Text from a model, token by token.

results = model.generate("The capital of France is", max_tokens=20)
results = model.generate([ids, more_ids], temperature=0.8, top_p=0.9)

`prompts` makes tokens of what is given, `face` finds what of the model they go into, `sampling` chooses
one, `rows` is a text as it is written, `batches` runs several together, `speculative` one with a draft.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dsl.errors import GenerationSetting
from .chat import chat, conversation
from .face import Face, face_of
from .job import Job
from .prompts import Ids, Prompts, language_of, paired
from .rows import Reason, Result, Row
from .sampling import Sampling

if TYPE_CHECKING:
    from ..api import Model
    from ..compiler.ops import ModelDType
    from ..decoder import Decoder, Rows
    from ..tokenizer import Tokenizer

Show = Callable[[int, str], None]  # the number of a prompt, and more of its text

__all__ = [
    "Face",
    "Reason",
    "Result",
    "Sampling",
    "chat",
    "conversation",
    "decoder_of",
    "face_of",
    "generate",
    "language_of",
]


def generate(
    model: Model,
    prompts: Prompts | None = None,
    *,
    source: Prompts | None = None,
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    ends: Collection[int] | None = None,
    messages: bool = False,
    system: str | None = None,
    stream: Show | None = None,
    draft: Model | Decoder | None = None,
    draft_tokens: int = 4,
    decoder: Decoder | None = None,
    tokenizer: Tokenizer | None = None,
    backend: str = "torch",
    dtype: ModelDType = "f32",
    cache_dtype: ModelDType | None = None,
    max_length: int | None = None,
    options: Mapping[str, Any] | None = None,
    **inputs: Any,
) -> list[Result]:
    """Continue each of `prompts`, texts or token ids; a single one need not be in a list.

    Row i draws from a stream of chance of its own, seeded by `seed + i`; at temperature 0 nothing
    is left to chance. A text ends before the first of the strings `stop`, at one of the tokens
    `ends` (default: the checkpoint's), or after `max_tokens`. With `messages` prompts are answered, not
    continued: texts go through the chat template, after an instruction `system`. `stream` is called
    with a prompt's number and each new piece of its text, at last with an empty one.

    `source` is what an encoder reads; `inputs` are other arrays by the names of the model's inputs, with a
    row for each prompt where they have the batch axis. `draft` is a smaller model of the same vocabulary
    that proposes up to `draft_tokens` at a time.

    `backend` to `options` load the model (see `Model.decoder`). `decoder` is one already loaded, to serve
    many calls: `decoder_of` makes it. Raises `NotGenerative`, `GenerationSetting`, `EmptyPrompt`,
    `NoTokenizer`, `OtherVocabulary`, `CacheFull`, `LogitsNotNumbers`, and what loading and running raise.
    """
    _at_least(0, max_tokens=max_tokens, seed=seed)
    _at_least(1, draft_tokens=draft_tokens)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    face, language = face_of(model), language_of(model, tokenizer)
    asked = language.prompts(prompts, chat=messages, system=system)
    pairs = paired(asked, language.sources(source), language.start)
    stops = language.stops(stop)
    last = language.ends if ends is None else frozenset(ends)

    def row(i: int, prompt: Ids, read: Ids) -> Row:
        writer = language.writer(() if messages else prompt, stops, _shown(stream, i))
        return Row(prompt, read, sampling, seed + i, max_tokens, last, writer)

    rows = [row(i, *pair) for i, pair in enumerate(pairs)]
    given = {name: np.asarray(array) for name, array in inputs.items()}
    load = {
        "backend": backend,
        "dtype": dtype,
        "cache_dtype": cache_dtype,
        "max_length": max_length,
    }
    job = Job(model, face, language, rows, given, load | dict(options or {}))
    if draft is None:
        job.run(decoder)
    else:
        job.run_with(draft, draft_tokens, decoder)
    return [row.result() for row in rows]


def _at_least(least: int, **settings: int) -> None:
    for name, value in settings.items():
        if value < least:
            raise GenerationSetting(name=name, got=str(value), expected=f"{least} or more")


def _shown(stream: Show | None, row: int) -> Callable[[str], None]:
    def show(text: str) -> None:
        if stream is not None:
            stream(row, text)

    return show


def decoder_of(
    model: Model,
    *,
    padded: bool = True,
    rows: Rows = "last",
    inputs: Collection[str] = (),
    **loading: Any,
) -> Decoder:
    """`model` loaded for many calls of `generate`; `inputs` are others that they will supply.

    Without `padded`, prompts of different lengths do not share a batch. With a draft take
    `rows="all"`. `loading` goes to `Model.decoder`. Raises `NotGenerative`, and what that raises.
    """
    names = face_of(model).names(padded, inputs)
    return model.decoder(inputs=names, rows=rows, **loading)
