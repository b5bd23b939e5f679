"""Generation: which token follows, when it stops, what is shown, what shares a batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import LETTERS, alphabet, bigrams, letters

import archc
from archc.decoder import Decoder
from archc.dsl.errors import (
    CacheFull,
    ChatTemplateFails,
    EmptyPrompt,
    GenerationSetting,
    NoChatTemplate,
    NotGenerative,
    NoTokenizer,
    UnknownInput,
)
from archc.generate import chat, conversation, decoder_of, face_of
from archc.generate.batches import sharing_of
from archc.generate.rows import Cut
from archc.tokenizer import Stream

EXAMPLES = Path(__file__).parent.parent / "examples"
F64: dict[str, Any] = {"backend": "numpy", "dtype": "f64"}


def continued(folder: Path, prompt: str, ends: str = "", **options: Any) -> str:
    tokenizer = letters(ends)
    (result,) = alphabet(folder).generate(prompt, tokenizer=tokenizer, backend="numpy", **options)
    return result.text


def tiny(name: str) -> archc.Model:
    return archc.load(EXAMPLES / f"{name}.arch", preset="tiny").with_random_weights(0)


# -------------------------------------------------------------------------------- endings


def test_greedy_takes_the_likeliest_until_it_has_enough(tmp_path: Path) -> None:
    assert continued(tmp_path, "a", max_tokens=5) == "bcdef"
    assert continued(tmp_path, "a", max_tokens=0) == ""
    assert continued(tmp_path, "a", max_tokens=1) == "b"


def test_why_a_text_ends(tmp_path: Path) -> None:
    model, options = alphabet(tmp_path), {"tokenizer": letters("k"), "backend": "numpy"}
    for more, text, ids, reason in (
        ({"max_tokens": 3}, "fgh", 3, "max_tokens"),
        ({"max_tokens": 5}, "fghij", 5, "max_tokens"),
        ({}, "fghij", 6, "end"),
        ({"stop": "hi"}, "fg", 4, "stop"),
        ({"stop": ["x", "j", "hijk"]}, "fghi", 5, "stop"),
        ({"ends": [LETTERS.index("h")]}, "fg", 3, "end"),
        ({"ends": (), "max_length": 8}, "fghijkl", 7, "max_length"),
    ):
        (found,) = model.generate("e", **(options | more))
        assert (found.text, len(found.ids), found.reason) == (text, ids, reason), more
        assert found.prompt_ids == (4,)


def test_a_prompt_of_the_greatest_length_gets_no_text(tmp_path: Path) -> None:
    model, options = alphabet(tmp_path), {"tokenizer": letters(), "backend": "numpy"}
    (found,) = model.generate("abc", max_length=3, **options)
    assert (found.ids, found.reason) == ((), "max_length")
    with pytest.raises(CacheFull):
        model.generate("abc", max_length=2, **options)


@pytest.mark.parametrize("prompt", ["", [[]], [[1], []]], ids=repr)
def test_a_prompt_without_tokens_is_refused(tmp_path: Path, prompt: Any) -> None:
    with pytest.raises(EmptyPrompt):
        continued(tmp_path, prompt)


def test_no_prompts_have_no_texts(tmp_path: Path) -> None:
    assert alphabet(tmp_path).generate([], backend="numpy") == []


@pytest.mark.parametrize(
    "options", [{"max_tokens": -1}, {"seed": -1}, {"stop": ""}, {"temperature": -1.0}], ids=str
)
def test_settings_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(GenerationSetting):
        continued(tmp_path, "a", **options)


def test_an_option_that_is_no_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownInput, match="top_kk"):
        continued(tmp_path, "a", top_kk=3)


# ----------------------------------------------------------------------------- stop strings


@pytest.mark.parametrize(
    ("stops", "text", "shown"),
    [
        (["END"], "one END two", "one "),
        (["END"], "one EN two", "one EN two"),
        (["END"], "one EEND", "one E"),
        (["abcd", "bc"], "xabcd", "xa"),
        (["aab"], "aaab", "a"),
        (["b", "ab"], "aab", "a"),
        ([], "text", "text"),
    ],
)
def test_a_cut_does_not_depend_on_the_pieces(stops: list[str], text: str, shown: str) -> None:
    for size in range(1, len(text) + 1):
        cut = Cut(tuple(stops))
        pieces = [cut.push(text[i : i + size]) for i in range(0, len(text), size)]
        rest = cut.finish()
        assert "".join(pieces) + rest == shown, size
        assert cut.stopped == (shown != text)


def test_what_may_begin_a_stop_is_held_back_until_it_cannot() -> None:
    cut = Cut(("ghi",))
    assert [cut.push(c) for c in "fghx"] == ["f", "", "", "ghx"]
    assert [cut.push(c) for c in "gh"] == ["", ""]
    assert cut.finish() == "gh"


def test_held_text_is_shown_when_the_tokens_run_out(tmp_path: Path) -> None:
    assert continued(tmp_path, "e", stop="ghz", max_tokens=3) == "fgh"


# --------------------------------------------------------------------------------- streams


def test_pieces_come_as_they_are_made_and_an_empty_one_last(tmp_path: Path) -> None:
    seen: list[tuple[int, str]] = []
    model = alphabet(tmp_path)
    results = model.generate(
        ["a", "x"], max_tokens=4, stop="f", tokenizer=letters("z"), backend="numpy",
        stream=lambda row, piece: seen.append((row, piece)),
    )  # fmt: skip
    assert seen[:4] == [(0, "b"), (1, "y"), (0, "c"), (1, "")]
    assert [r.text for r in results] == ["bcde", "y"]
    for row, result in enumerate(results):
        assert "".join(piece for i, piece in seen if i == row) == result.text
    assert Counter(seen)[0, ""] == Counter(seen)[1, ""] == 1


def test_a_text_goes_on_from_its_prompt() -> None:
    """A decoder that puts a space between words puts one after the prompt."""

    def decode(ids: Any) -> str:
        return " ".join(f"w{i}" for i in ids)

    assert Stream(decode).push(3) == "w3"
    stream = Stream(decode, [1, 2], 2)
    assert [stream.push(3), stream.push(4)] == [" w3", " w4"]


# --------------------------------------------------------------------------------- chance


def test_a_seed_fixes_what_is_sampled(tmp_path: Path) -> None:
    texts = [continued(tmp_path, "a", temperature=1.0, max_tokens=6, seed=s) for s in range(6)]
    assert len(set(texts)) > 1
    assert texts[3] == continued(tmp_path, "a", temperature=1.0, max_tokens=6, seed=3)


def test_a_sampled_text_does_not_depend_on_its_batch() -> None:
    model, prompts = tiny("llama"), [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
    options = {"temperature": 1.5, "top_k": 40, "max_tokens": 8, **F64}
    whole = model.generate(prompts, seed=10, **options)
    for i, prompt in enumerate(prompts):
        (alone,) = model.generate([prompt], seed=10 + i, **options)
        assert alone == whole[i]


# --------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(
    ("name", "sharing"),
    [
        ("llama", "padded"),  # rotary
        ("mamba", "padded"),  # a recurrence, a convolution
        ("gpt2", "equal"),  # a table of positions
        ("nllb", "equal"),  # positions counted by ids
        ("t5", "padded"),  # relative, with an encoder
        ("rag", "alone"),  # rows of the batch are merged with others
    ],
)
def test_which_rows_share_a_batch_is_found_out(name: str, sharing: str) -> None:
    model = tiny(name)
    face = face_of(model)
    assert sharing_of(model.program_for(face.names(True, _needed(model))), face) == sharing


def _needed(model: archc.Model) -> list[str]:
    nodes = [model.program.main[i] for i in model.program.main.inputs]
    return [n.attrs.string("name") for n in nodes if not n.attrs.get("optional")]


def test_a_model_that_reads_the_length_is_not_padded(tmp_path: Path) -> None:
    """Frequencies that grow with the call would grow with the longest row."""
    text = (EXAMPLES / "llama.arch").read_text()
    path = tmp_path / "dynamic.arch"
    path.write_text(f"{text}\npreset grown = Llama(vocab = 31, d = 16, layers = 1, hidden = 8,"
                    " heads = 2, scaling = dynamic(2.0, 4096))")  # fmt: skip
    model = archc.load(path, preset="grown").with_random_weights(0)
    face = face_of(model)
    assert sharing_of(model.program_for(face.names(True, ())), face) == "equal"


MIXING = """model Mixing {
  vocab = 9
  input ids: ids[b, s] < vocab
  weight table[v: vocab, w: vocab] = normal
  decode s
  x[b, s, w] = table[v: ids]
  output logits[b, s, w] = x + sum(x, b)
}
"""


def test_rows_that_read_one_another_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "mixing.arch"
    path.write_text(MIXING)
    model = archc.load(path).with_random_weights(0)
    prompts = [[1], [2]]
    whole = model.generate(prompts, max_tokens=4, **F64)
    assert [r.ids for r in whole] == [
        model.generate([p], max_tokens=4, **F64)[0].ids for p in prompts
    ]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the ids of each call of a decoder."""
    shapes = []
    call = Decoder.__call__

    def counted(self: Decoder, state: Any, **inputs: Any) -> Any:
        shapes.append(next(iter(inputs.values())).shape)
        return call(self, state, **inputs)

    monkeypatch.setattr(Decoder, "__call__", counted)
    return shapes


@pytest.mark.parametrize(
    ("name", "calls"),
    [("llama", 5), ("mamba", 5), ("gpt2", 10)],
)
def test_each_row_says_what_it_says_alone(
    name: str, calls: int, batches: list[tuple[int, ...]]
) -> None:
    """Lengths that differ and that are equal; one row ends before the others."""
    model, prompts = tiny(name), [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8]]
    alone = [model.generate([p], max_tokens=5, **F64)[0] for p in prompts]
    assert len({r.ids for r in alone}) == 3
    batches.clear()
    whole = model.generate(prompts, max_tokens=5, **F64)
    assert [r.ids for r in whole] == [r.ids for r in alone]
    assert len(batches) == calls
    ended = model.generate(prompts, max_tokens=5, ends=[alone[1].ids[1]], **F64)
    cut = [_until(r.ids, alone[1].ids[1]) for r in alone]
    assert [r.ids for r in ended] == cut
    assert ended[1].reason == "end"


def _until(ids: tuple[int, ...], end: int) -> tuple[int, ...]:
    return ids[: ids.index(end) + 1] if end in ids else ids


def test_one_decoder_serves_many_calls() -> None:
    model, prompts = tiny("llama"), [[3, 1, 4], [9]]
    once = decoder_of(model, **F64)
    expected = model.generate(prompts, max_tokens=4, **F64)
    for _ in range(2):
        assert model.generate(prompts, max_tokens=4, decoder=once) == expected
    assert model.generate(prompts[1], max_tokens=4, decoder=once)[0].ids == expected[1].ids
    unpadded = decoder_of(model, padded=False, **F64)
    assert model.generate(prompts, max_tokens=4, decoder=unpadded) == expected


# ---------------------------------------------------------------------------------- models


def test_greedy_text_follows_from_the_whole_sequence() -> None:
    model, ids = tiny("llama"), [3, 1, 4, 1, 5]
    (result,) = model.generate(ids, max_tokens=6, **F64)
    run = model.compile("numpy", dtype="f64", inputs=["input_ids"])
    for token in result.ids:
        assert token == run(input_ids=[ids])["logits"][0, -1].argmax()
        ids.append(token)
    assert result.prompt_ids == (3, 1, 4, 1, 5)
    assert result.text == ""  # no tokenizer


def test_an_encoder_reads_a_source() -> None:
    """As ids, as the arrays of the model's inputs, and several of different lengths at once."""
    model, sources = tiny("t5"), [[7, 8, 9, 10], [11, 12]]
    run = model.compile("numpy", dtype="f64", inputs=["input_ids", "decoder_input_ids"])
    alone = []
    for source in sources:
        ids = [0]
        for _ in range(4):
            logits = run(input_ids=[source], decoder_input_ids=[ids])["logits"]
            ids.append(int(logits[0, -1].argmax()))
        alone.append(tuple(ids[1:]))
    assert alone[0] != alone[1]
    together = model.generate([[0]], source=sources, max_tokens=4, **F64)
    assert [r.ids for r in together] == alone
    padded = np.array([[7, 8, 9, 10], [11, 12, 0, 0]])
    given = {"input_ids": padded, "attention_mask": padded > 0}
    assert [r.ids for r in model.generate([[0], [0]], max_tokens=4, **given, **F64)] == alone
    with pytest.raises(GenerationSetting, match="input_ids"):
        model.generate([[0]], input_ids=padded, **F64)
    with pytest.raises(GenerationSetting, match="source"):
        model.generate([[0], [0], [0]], source=sources, **F64)


@pytest.mark.parametrize("name", ["bert", "vit", "hyena", "multimodal_gpt4"])
def test_what_is_no_language_model_is_refused(name: str) -> None:
    with pytest.raises(NotGenerative):
        tiny(name).generate([[1]], backend="numpy")


def test_an_output_that_is_not_over_ids_is_no_logits(tmp_path: Path) -> None:
    path = tmp_path / "hidden.arch"
    path.write_text(
        "model H {\n  input ids: ids[b, s] < 5\n  weight w[v: 5, d: 4] = normal\n  decode s\n"
        "  output hidden[b, s, d] = w[v: ids]\n}\n"
    )
    with pytest.raises(NotGenerative, match="no output has a number for each id"):
        archc.load(path).with_random_weights(0).generate([[1]], backend="numpy")


def test_texts_need_a_tokenizer(tmp_path: Path) -> None:
    model = bigrams(tmp_path, np.zeros((3, 3)))
    for options in ({"prompts": "a"}, {"prompts": [[1]], "stop": "x"}):
        with pytest.raises(NoTokenizer):
            model.generate(backend="numpy", **options)


# ------------------------------------------------------------------------------------ chat

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DEMANDING = (
    "{{ bos_token }}{% if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n"
    "{% for m in messages %}{% if m.content == 'skip' %}{% continue %}{% endif %}"
    "[{{ m.role }}]{{ m | tojson }}{{ eos_token }}{% endfor %}"
    "{{ strftime_now('%Y') | length }}{% if add_generation_prompt %}[assistant]{% endif %}"
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_message_goes_through_the_checkpoints_template() -> None:
    tokenizer = letters(chat_template=TEMPLATE)
    assert chat(tokenizer, "hello", "here") == "<user>hello<assistant>"
    made = chat(tokenizer, "hello", "here", system="be brief")
    assert made == "<system>be brief<user>hello<assistant>"


def test_templates_have_what_transformers_gives_them() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [
        {"role": "system", "content": "a <b> & 'c' é"},
        {"role": "user", "content": "skip"},
        {"role": "user", "content": "hello"},
    ]
    (expected,), _ = render_jinja_template(
        conversations=[turns], chat_template=DEMANDING, add_generation_prompt=True, **SPECIAL
    )
    tokenizer = letters(chat_template=DEMANDING, special=SPECIAL)
    assert conversation(tokenizer, turns, "here") == expected
    assert "</s>" in expected
    with pytest.raises(ChatTemplateFails, match="no tools"):
        conversation(tokenizer, [{"role": "tool", "content": ""}], "here")


def test_templates_that_fail_are_named() -> None:
    with pytest.raises(NoChatTemplate):
        chat(letters(), "hello", "here")
    for template in ("{% for %}", "{{ messages.__class__.__mro__[1].__subclasses__() }}"):
        with pytest.raises(ChatTemplateFails):
            chat(letters(chat_template=template), "hello", "here")
