"""Text to token ids and back, by the tokenizer that came with a checkpoint.

A Hugging Face directory has it in tokenizer.json. A GGUF file has its vocabulary and merges in the
metadata and names its pre-tokenizer; the ones in `PRE_TOKENIZERS` can be rebuilt, another is
refused rather than approximated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compiler.checkpoint import Checkpoint
from .dsl.errors import MissingPackage, NoTokenizer

if TYPE_CHECKING:
    import tokenizers

_ID = "_token_id"
_CONTROL, _USER_DEFINED = 3, 4  # GGUF token types that never come out of merges
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to

# Regular expressions as in tokenizer.json of the models named; https://github.com/ggml-org/llama.cpp
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is cut before merging. `pattern` none is GPT-2's own, within `ByteLevel`."""

    pattern: str | None = None
    single_digits: bool = False
    whole_words_first: bool = False  # a word in the vocabulary is taken before any merge
    normalise: bool = False  # NFC
    starts: bool = False  # the beginning-of-text token leads, unless the file says otherwise


PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(),
    "gpt2": PreTokenizer(),
    "smollm": PreTokenizer(single_digits=True),
    "llama-bpe": PreTokenizer(_LLAMA3, whole_words_first=True, starts=True),
    "llama3": PreTokenizer(_LLAMA3, whole_words_first=True, starts=True),
    "qwen2": PreTokenizer(_QWEN2, normalise=True),
}


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """`ends` are the ids that end a text; `chat_template` is the Jinja source, if there is one.

    `special` are the texts of special tokens by their role (`eos_token`), as a chat template names them.
    `decoder_start` are the ids that the text of a decoder beside an encoder begins with.
    """

    model: tokenizers.Tokenizer
    first: tuple[int, ...] = ()  # ids to put in front that `model` does not put there itself
    ends: frozenset[int] = frozenset()
    chat_template: str | None = None
    special: Mapping[str, str] = field(default_factory=dict)
    decoder_start: tuple[int, ...] = ()

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of `text`, with the special tokens the model was trained to see around it.

        Without `special`, none that the text does not spell.
        """
        first = self.first if special else ()
        return [*first, *self.model.encode(text, add_special_tokens=special).ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens."""
        return self.model.decode(list(ids), skip_special_tokens=True)

    def stream(self, after: Sequence[int] = ()) -> Stream:
        """A decoder of more ids, whose text goes on from that of `after`."""
        return Stream(self.decode, list(after), len(after))


@dataclass(slots=True)
class Stream:
    """Decodes ids one by one. Text is given out when its last character is complete.

    Ids that are there at the start and shown are left context: their text is not given out.
    """

    decode: Callable[[Iterable[int]], str]
    _ids: list[int] = field(default_factory=list)
    _shown: int = 0  # of `_ids`, how many are given out; the last few stay as left context

    def push(self, token: int) -> str:
        """The text that `token` completes, maybe none."""
        self._ids.append(token)
        return self._next(finished=False)

    def finish(self) -> str:
        """What is left, with a replacement character for bytes that form no character."""
        return self._next(finished=True)

    def _next(self, finished: bool) -> str:
        before = self.decode(self._ids[: self._shown])
        now = self.decode(self._ids)
        if now.endswith(_REPLACEMENT) and not finished:
            return ""
        self._ids, self._shown = self._ids[self._shown :], len(self._ids) - self._shown
        return now[len(before) :]


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of an opened checkpoint. Raises `NoTokenizer` and `MissingPackage`."""
    try:
        import tokenizers  # noqa: F401 (an optional dependency)
    except ImportError:
        raise MissingPackage(
            package="tokenizers", purpose="turning text into tokens", extra="checkpoints"
        ) from None
    if checkpoint.format == "gguf":
        return _from_gguf(checkpoint.path, checkpoint.metadata)
    return _from_directory(checkpoint.path)


# ------------------------------------------------------------------------- Hugging Face


def _from_directory(directory: Path) -> Tokenizer:
    import tokenizers

    file = directory / "tokenizer.json"
    if not file.is_file():
        raise NoTokenizer(path=str(directory), reason="it has no tokenizer.json")
    try:
        model = tokenizers.Tokenizer.from_file(str(file))
    except Exception as problem:  # the library raises nothing narrower
        raise NoTokenizer(path=str(file), reason=str(problem)) from None
    model.no_padding()  # lengths are the caller's: some files pad or cut to the training length
    model.no_truncation()
    settings = _json(directory / "tokenizer_config.json")
    return Tokenizer(
        model,
        (),
        _end_ids(directory, model, settings),
        _template(directory, settings),
        _special(directory, settings),
        _decoder_start(directory),
    )


def _template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as problem:
            raise NoTokenizer(path=str(file), reason=str(problem)) from None
    template = settings.get("chat_template")
    return template if isinstance(template, str) else None


def _special(directory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Texts of `bos_token`, `eos_token` and the like, by the settings, else by their own file."""
    found = {**_json(directory / "special_tokens_map.json"), **settings}
    texts = {
        k: v.get("content") if isinstance(v, dict) else v for k, v in found.items() if k in ROLES
    }
    return {role: text for role, text in texts.items() if isinstance(text, str)}


def _decoder_start(directory: Path) -> tuple[int, ...]:
    """The first ids of a decoder's text, one of which may be forced upon it."""
    found = _json(directory / "config.json") | _json(directory / "generation_config.json")
    ids = (found.get(k) for k in ("decoder_start_token_id", "forced_bos_token_id"))
    start = tuple(i for i in ids if isinstance(i, int))
    return start if isinstance(found.get("decoder_start_token_id"), int) else ()


def _end_ids(directory: Path, model: Any, settings: Mapping[str, Any]) -> frozenset[int]:
    """What generation_config.json, else config.json, else the tokenizer's own settings name."""
    for name in ("generation_config.json", "config.json"):
        found = _json(directory / name).get("eos_token_id")
        if found is not None:
            ids = found if isinstance(found, list) else [found]
            return frozenset(i for i in ids if isinstance(i, int))
    token = settings.get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    found = model.token_to_id(text) if isinstance(text, str) else None
    return frozenset() if found is None else frozenset([found])


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise NoTokenizer(path=str(path), reason=f"no JSON: {problem}") from None
    return found if isinstance(found, dict) else {}


# --------------------------------------------------------------------------------- GGUF


def _from_gguf(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    field = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items()}
    if field.get("model") != "gpt2":
        reason = f"its kind `{field.get('model')}` is not byte-level BPE"
        raise NoTokenizer(path=str(path), reason=reason)
    kind = PRE_TOKENIZERS.get(str(field.get("pre", "gpt-2")))
    if kind is None:
        reason = f"its pre-tokenizer `{field['pre']}` is none of {', '.join(PRE_TOKENIZERS)}"
        raise NoTokenizer(path=str(path), reason=reason)
    if "tokens" not in field or "merges" not in field:
        raise NoTokenizer(path=str(path), reason="it has no tokens and merges")
    _check_lists(path, field)
    field = {k: v for k, v in field.items() if not k.endswith(_ID) or _is_id(v, field["tokens"])}
    try:
        model = _byte_level(kind, field)
    except Exception as problem:  # the library raises nothing narrower
        raise NoTokenizer(path=str(path), reason=str(problem)) from None
    starts = field.get("add_bos_token", kind.starts) and "bos_token_id" in field
    first = (field["bos_token_id"],) if starts else ()
    ends = frozenset(field[k] for k in ("eos_token_id", "eot_token_id") if k in field)
    found = metadata.get("tokenizer.chat_template")
    template = found if isinstance(found, str) else None
    named = {role: field.get(f"{role.replace('unk', 'unknown')}_id") for role in ROLES}
    special = {role: field["tokens"][i] for role, i in named.items() if i is not None}
    return Tokenizer(model, first, ends, template, special)


def _check_lists(path: Path, field: Mapping[str, Any]) -> None:
    for name, kind in (("tokens", str), ("merges", str), ("token_type", int)):
        found = field.get(name, [])
        if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
            reason = f"its `{name}` is no list of {'texts' if kind is str else 'numbers'}"
            raise NoTokenizer(path=str(path), reason=reason)


def _is_id(value: Any, tokens: Sequence[str]) -> bool:
    """Whether a field is a token's id: files say with another number that there is no such token."""
    return isinstance(value, int) and 0 <= value < len(tokens)


def _byte_level(kind: PreTokenizer, field: Mapping[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens: list[str] = field["tokens"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in field["merges"]]
    model = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=kind.whole_words_first))
    model.pre_tokenizer = _pre_tokenizer(kind)
    model.decoder = decoders.ByteLevel()
    if kind.normalise:
        model.normalizer = normalizers.NFC()
    types = field.get("token_type", [])
    named = [(token, t) for token, t in zip(tokens, types, strict=False) if t >= _CONTROL]
    model.add_special_tokens([AddedToken(s, normalized=False) for s, t in named if t == _CONTROL])
    plain = [AddedToken(s, normalized=False) for s, t in named if t == _USER_DEFINED]
    model.add_tokens(plain)
    return model


def _pre_tokenizer(kind: PreTokenizer) -> Any:
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    if kind.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if kind.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(kind.pattern), "isolated"))
    whole = kind.pattern is None
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=whole))
    return pre_tokenizers.Sequence(steps)
