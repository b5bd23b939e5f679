"""Tokenizers out of checkpoints: round trips, special tokens, streamed text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shipped import smollm2
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from archc.compiler.checkpoint import Checkpoint, open_checkpoint
from archc.dsl.diagnostics import ArchError
from archc.tokenizer import PRE_TOKENIZERS, Stream, open_tokenizer

TEXTS = [
    "The capital of France is",
    "x = 3.14159  # naïve café",
    "🎉 漢字 \n\n\ttabs and   spaces ",
    "I'll, you're, 12345",
    "",
]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
METADATA = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*BYTES, "th", "the", "<s>", "</s>"],
    "tokenizer.ggml.token_type": [*[1] * (len(BYTES) + 2), 3, 3],
    "tokenizer.ggml.merges": ["t h", "th e"],
    "tokenizer.ggml.bos_token_id": len(BYTES) + 2,
    "tokenizer.ggml.eos_token_id": len(BYTES) + 3,
    "tokenizer.chat_template": "{{ messages }}",
}
START, END = len(BYTES) + 2, len(BYTES) + 3


def gguf(**changes: object):
    changed = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    metadata = {k: v for k, v in {**METADATA, **changed}.items() if v is not None}
    return open_tokenizer(Checkpoint(Path("x.gguf"), "gguf", "llama", {}, None, metadata))


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_gguf_round_trips(pre, text):
    tokenizer = gguf(pre=pre)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_gguf_merges_and_special_tokens():
    tokenizer = gguf()
    assert tokenizer.encode("the</s>") == [len(BYTES) + 1, END]
    assert tokenizer.decode([len(BYTES) + 1, END]) == "the"
    assert tokenizer.ends == {END}
    assert tokenizer.chat_template == "{{ messages }}"


def test_the_first_token_is_the_files_choice():
    assert gguf(add_bos_token=True).encode("")[:1] == [START]
    assert gguf(add_bos_token=False, pre="llama-bpe").encode("") == []
    assert gguf(pre="llama-bpe").encode("") == [START]


@pytest.mark.parametrize("pattern", ["llama-bpe", "qwen2", "smollm"])
def test_digits_are_cut_as_the_model_learned_them(pattern):
    sizes = {"llama-bpe": ["123", "45"], "qwen2": list("12345"), "smollm": list("12345")}
    cut = gguf(pre=pattern).model.pre_tokenizer.pre_tokenize_str("12345")
    assert [text for text, _ in cut] == sizes[pattern]


@pytest.mark.parametrize("change", [{"model": "llama"}, {"pre": "unheard-of"}, {"merges": None}])
def test_what_cannot_be_rebuilt_is_refused(change):
    with pytest.raises(ArchError) as caught:
        gguf(**change)
    assert caught.value.id == "no-tokenizer"


# ---------------------------------------------------------------------------- directories


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    model = Library(models.BPE({token: i for i, token in enumerate(BYTES)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(["<end>"])
    model.enable_padding(length=64)
    model.save(str(tmp_path / "tokenizer.json"))
    settings = {"eos_token": {"content": "<end>"}, "chat_template": "chat"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def load(path: Path):
    return open_tokenizer(Checkpoint(path, "huggingface", "M", {}, None))


def test_a_directory(directory):
    tokenizer = load(directory)
    assert tokenizer.decode(tokenizer.encode("naïve")) == "naïve"
    assert len(tokenizer.encode("abc")) == 3
    assert tokenizer.ends == {len(BYTES)}
    assert tokenizer.chat_template == "chat"


def test_generation_settings_name_the_ends(directory):
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    (directory / "chat_template.jinja").write_text("other")
    assert load(directory).ends == {1, 2}
    assert load(directory).chat_template == "other"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_files(directory, name):
    (directory / name).write_text("{")
    with pytest.raises(ArchError) as caught:
        load(directory)
    assert caught.value.id == "no-tokenizer"


def test_no_tokenizer(tmp_path):
    with pytest.raises(ArchError) as caught:
        load(tmp_path)
    assert caught.value.id == "no-tokenizer"


# ---------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_pieces_make_the_text(text):
    tokenizer = gguf()
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.finish() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_appears_when_it_is_complete():
    tokenizer = gguf()
    stream = tokenizer.stream()
    assert [stream.push(token) for token in tokenizer.encode("é!")] == ["", "é", "!"]


def test_an_unfinished_character_is_shown_at_the_end():
    tokenizer = gguf()
    stream = tokenizer.stream()
    assert [stream.push(token) for token in tokenizer.encode("aé")[:-1]] == ["a", ""]
    assert stream.finish() == "\ufffd"


def test_words_that_depend_on_their_left_neighbour():
    """SentencePiece-like decoders drop the first blank: pieces must not."""
    stream = Stream(lambda ids: " ".join(f"w{i}" for i in ids))
    assert [stream.push(i) for i in (1, 2, 3)] == ["w1", " w2", " w3"]


def test_smollm2():
    tokenizer = open_tokenizer(open_checkpoint(smollm2()))
    assert tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert tokenizer.ends == {2}
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
