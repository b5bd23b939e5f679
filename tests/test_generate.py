"""Generation: which token follows, when it stops, what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import archc
from archc import generate
from archc.cli import main
from archc.compiler.checkpoint import save
from archc.dsl.errors import ChatTemplateFails, EmptyPrompt, NoChatTemplate, NotGenerative
from archc.tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers")

EXAMPLES = Path(__file__).parent.parent / "examples"
LLAMA = EXAMPLES / "llama.arch"


def letters(ends: frozenset[int] = frozenset(), template: str | None = None) -> Tokenizer:
    """A tokenizer of one id per letter."""
    vocabulary = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz?")}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    model.decoder = tokenizers.decoders.Fuse()
    return Tokenizer(model, (), ends, template)


class Alphabet(generate.Decoder):
    """The next letter is the likeliest, the one after it half as likely."""

    def __init__(self) -> None:
        pass

    def next_logits(self, ids: object) -> np.ndarray:
        after = list(ids)[-1] + 1  # type: ignore[call-overload]
        logits = np.full(27, -np.inf)
        logits[[after, after + 1]] = 0.0, -np.log(2)
        return logits


def continued(prompt: str, ends: str = "", **options: float) -> str:
    made = letters(frozenset("abcdefghijklmnopqrstuvwxyz".index(c) for c in ends))
    return "".join(generate.generate(Alphabet(), made, prompt, **options))


def test_greedy_takes_the_likeliest_until_it_has_enough() -> None:
    assert continued("a", max_tokens=5) == "bcdef"
    assert continued("a", max_tokens=0) == ""


def test_an_end_token_ends_the_text_and_is_not_shown() -> None:
    assert continued("a", ends="d", max_tokens=5) == "bc"


def test_text_comes_in_pieces() -> None:
    pieces = generate.generate(Alphabet(), letters(), "a", max_tokens=3)
    assert next(pieces) == "b"


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(EmptyPrompt):
        continued("")


def test_a_seed_fixes_what_is_sampled() -> None:
    texts = {continued("a", max_tokens=6, temperature=1.0, seed=s) for s in range(8)}
    assert len(texts) > 1
    assert len({continued("a", max_tokens=6, temperature=1.0, seed=3) for _ in range(3)}) == 1


def test_samples_follow_the_distribution() -> None:
    logits = np.log(
        np.array([0.1, 0.0, 0.6, 0.3]), where=[True, False, True, True], out=np.full(4, -np.inf)
    )
    for temperature in (1.0, 0.5):
        choose = generate.sampler(temperature, seed=0)
        drawn = np.bincount([choose(logits) for _ in range(4000)], minlength=4) / 4000
        expected = np.exp(logits / temperature)
        np.testing.assert_allclose(drawn, expected / expected.sum(), atol=0.03)


def test_a_cold_sample_is_greedy() -> None:
    assert continued("a", max_tokens=5, temperature=0.01) == "bcdef"


# ---------------------------------------------------------------------------------- models


def test_the_next_token_is_that_of_the_whole_sequence() -> None:
    model = archc.load(LLAMA, preset="tiny").with_random_weights(0)
    ids = [3, 1, 4, 1, 5]
    decoder = generate.decoder(model, "numpy")
    assert (decoder.input, decoder.output) == ("input_ids", "logits")
    whole = model.compile("numpy", inputs=["input_ids"])(input_ids=[ids])["logits"]
    np.testing.assert_array_equal(decoder.next_logits(ids), whole[0, -1].astype(np.float64))


def test_an_encoder_generates_nothing() -> None:
    model = archc.load(EXAMPLES / "bert.arch", preset="tiny").with_random_weights(0)
    with pytest.raises(NotGenerative, match="no line `decode`"):
        generate.decoder(model, "numpy")


# ------------------------------------------------------------------------------------ chat

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_message_goes_through_the_checkpoints_template() -> None:
    pytest.importorskip("jinja2")
    made = generate.chat(letters(template=TEMPLATE), "hello", "here")
    assert made == "<user>hello<assistant>"


def test_templates_that_fail_are_named() -> None:
    pytest.importorskip("jinja2")
    with pytest.raises(NoChatTemplate):
        generate.chat(letters(), "hello", "here")
    for template in ("{% for %}", "{{ messages.__class__.__mro__[1].__subclasses__() }}"):
        with pytest.raises(ChatTemplateFails):
            generate.chat(letters(template=template), "hello", "here")


# ------------------------------------------------------------------------------ the command


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny Llama with random weights and a tokenizer of 131 words."""
    model = archc.load(LLAMA, preset="tiny").with_random_weights(0)
    config = {
        "architectures": ["LlamaForCausalLM"], "vocab_size": 131, "hidden_size": 64,
        "num_hidden_layers": 3, "intermediate_size": 112, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
    }  # fmt: skip
    block = next(c for c in model.module.checkpoints if "LlamaForCausalLM" in c.class_names)
    save(model.program, model.weights, block, tmp_path / "model", config)
    words = {f"w{i}": i for i in range(131)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path / "model"


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_the_command_prints_the_prompt_and_goes_on(checkpoint: Path, backend: str) -> None:
    args = ["--weights", checkpoint, "--prompt", "w3 w1 w4", "--max-tokens", "3"]
    result = CliRunner().invoke(
        main, ["generate", str(LLAMA), *map(str, args), "--backend", backend]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("w3 w1 w4")
    assert result.stdout.count("w") == 6


def test_a_checkpoint_without_a_tokenizer_is_refused(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    args = ["generate", str(LLAMA), "--weights", str(checkpoint), "--prompt", "w1"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 1
    assert result.stderr.startswith("error[no-tokenizer]")


def test_an_imported_file_runs_what_it_was_imported_from(checkpoint: Path, tmp_path: Path) -> None:
    written = tmp_path / "imported.arch"
    result = CliRunner().invoke(main, ["import", str(checkpoint), "-o", str(written)])
    assert result.exit_code == 0, result.output
    cost = CliRunner().invoke(main, ["cost", str(written), "--preset", "imported", "--json"])
    tiny = archc.load(LLAMA, preset="tiny")
    assert json.loads(cost.stdout)["parameters"] == tiny.parameter_count()
