"""`archc generate` as a person types it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from click.testing import CliRunner, Result

import archc
from archc.cli import main
from archc.commands.generate import command
from archc.compiler.checkpoint import open_checkpoint
from archc.decoder import Decoder
from archc.tokenizer import open_tokenizer

EXAMPLES = Path(__file__).parent.parent / "examples"
LLAMA, T5 = EXAMPLES / "llama.arch", EXAMPLES / "t5.arch"
TEMPLATE = "{% for m in messages %}w9 {{ m.content }} {% endfor %}w8"


def export(example: Path, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """A tiny model with random weights and a tokenizer of 131 words."""
    archc.load(example, preset="tiny").with_random_weights(seed).export(folder)
    words = {f"w{i}": i for i in range(131)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(LLAMA, tmp_path_factory.mktemp("llama") / "model")


def invoke(*args: str | Path, text: str | None = None) -> Result:
    return CliRunner().invoke(main, ["generate", *map(str, args)], input=text)


def generated(checkpoint: Path, *args: str | Path, text: str | None = None) -> str:
    fixed = ("--weights", checkpoint, "--backend", "numpy", "--dtype", "f64")
    result = invoke(LLAMA, *fixed, *args, text=text)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_it_prints_the_prompt_and_goes_on(checkpoint: Path, backend: str) -> None:
    fixed = ("--weights", checkpoint, "--prompt", "w3 w1 w4", "--max-tokens", "3")
    result = invoke(LLAMA, *fixed, "--backend", backend)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("w3 w1 w4 w")
    assert len(result.stdout.split()) == 6
    assert result.stdout.endswith("\n")


def test_prompts_are_printed_in_order(checkpoint: Path, tmp_path: Path) -> None:
    """Whichever ends first: a line of the file, and options, each as it is alone."""
    lines = tmp_path / "prompts.txt"
    lines.write_text("w1 w5 w9 w2\n\n  \nw7\n")
    alone = [generated(checkpoint, "--prompt", p, "--max-tokens", "4") for p in PROMPTS]
    options = ("--prompt", PROMPTS[0], "--prompts", lines, "--max-tokens", "4")
    assert generated(checkpoint, *options) == "\n".join(alone)
    options = ("--prompt", PROMPTS[0], "--prompts", "-", "--max-tokens", "4")
    assert generated(checkpoint, *options, text=lines.read_text()) == "\n".join(alone)


PROMPTS = ("w3 w1 w4", "w1 w5 w9 w2", "w7")


def test_json_has_an_object_for_each_prompt(checkpoint: Path) -> None:
    options = ("--prompt", PROMPTS[0], "--prompt", PROMPTS[2], "--max-tokens", "4", "--json")
    first, second = map(json.loads, generated(checkpoint, *options, "--seed", "5").splitlines())
    assert (first["prompt"], first["prompt_ids"], first["seed"]) == ("w3 w1 w4", [3, 1, 4], 5)
    assert (second["reason"], len(second["ids"]), second["seed"]) == ("max_tokens", 4, 6)
    text = generated(checkpoint, "--prompt", PROMPTS[2], "--max-tokens", "4")
    assert text == f"w7{second['text']}\n"
    stopped = second["text"].split()[2]
    options = (*options[2:], "--stop", stopped)
    (cut,) = map(json.loads, generated(checkpoint, *options).splitlines())
    assert (cut["reason"], cut["text"]) == ("stop", second["text"].split(stopped)[0])


def test_a_model_drafts_for_itself(checkpoint: Path) -> None:
    options = ("--prompt", PROMPTS[0], "--max-tokens", "7")
    draft = ("--draft", LLAMA, "--draft-weights", checkpoint, "--draft-tokens", "2")
    assert generated(checkpoint, *options, *draft) == generated(checkpoint, *options)
    found = json.loads(generated(checkpoint, *options, *draft, "--json"))
    assert found["drafted"] == found["accepted"] > 0


def test_messages_are_answered(checkpoint: Path) -> None:
    options = ("--prompt", "w5", "--max-tokens", "2", "--json")
    found = json.loads(generated(checkpoint, *options, "--chat"))
    assert found["prompt_ids"] == [9, 5, 8]
    found = json.loads(generated(checkpoint, *options, "--system", "w4"))
    assert found["prompt_ids"] == [9, 4, 9, 5, 8]
    assert generated(checkpoint, *options[:-1], "--chat").startswith("w5\nw")


def test_sampling_options_are_used(checkpoint: Path) -> None:
    plain = ("--prompt", PROMPTS[0], "--max-tokens", "6")
    greedy = generated(checkpoint, *plain)
    hot = (*plain, "--temperature", "3")
    texts = {generated(checkpoint, *hot, "--seed", str(seed)) for seed in range(2)}
    assert len(texts) == 2
    for filters in (("--top-k", "1"), ("--top-p", "1e-9"), ("--min-p", "1")):
        assert generated(checkpoint, *hot, *filters) == greedy
    varied = generated(checkpoint, *plain, "--repetition-penalty", "1e9").split()
    assert len(set(varied)) == len(varied)


def test_options_of_the_decoder_reach_it(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    begin = Decoder.__init__

    def noted(self: Decoder, model: archc.Model, backend: str, **options: Any) -> None:
        made.append((backend, options))
        begin(self, model, backend, **(options | {"compile": False}))

    monkeypatch.setattr(Decoder, "__init__", noted)
    options = ("--prompt", "w1", "--max-tokens", "1", "--dtype", "bf16", "--compile")
    limits = ("--cache-dtype", "f16", "--max-length", "9")
    result = invoke(LLAMA, "--weights", checkpoint, *options, *limits)
    assert result.exit_code == 0, result.output
    ((backend, options),) = made
    assert backend == "torch"
    assert (options["dtype"], options["cache_dtype"]) == ("bf16", "f16")
    assert (options["max_length"], options["compile"]) == (9, True)


def test_an_encoder_decoder_reads_its_source(tmp_path: Path) -> None:
    """The decoder begins as the checkpoint says; a prompt follows that."""
    weights = export(T5, tmp_path / "t5", decoder_start_token_id=0, eos_token_id=[])
    fixed = ("--weights", weights, "--backend", "numpy", "--max-tokens", "3", "--json")
    sources = ("--source", "w7 w8 w9", "--source", "w11")
    result = invoke(T5, *fixed, *sources)
    assert result.exit_code == 0, result.output
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["prompt_ids"] == second["prompt_ids"] == [0]
    assert first["ids"] != second["ids"]
    prompted = invoke(T5, *fixed, *sources[2:], "--prompt", "w5 w6")
    assert json.loads(prompted.stdout)["prompt_ids"] == [0, 5, 6]
    without = invoke(T5, *fixed, "--prompt", "w5")
    assert without.exit_code == 1
    assert without.stderr.startswith("error[missing-input]")


def test_what_a_checkpoint_says_of_its_tokens(tmp_path: Path) -> None:
    folder = export(T5, tmp_path / "t5", decoder_start_token_id=2, forced_bos_token_id=7)
    settings = {"eos_token": {"content": "w1"}, "bos_token": None, "pad_token": "w0", "x": "y"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    found = open_tokenizer(open_checkpoint(folder))
    assert found.decoder_start == (2, 7)
    assert found.special == {"eos_token": "w1", "pad_token": "w0"}


def test_the_page_runs_and_names_every_option(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (EXAMPLES.parent / "docs" / "generate.md").read_text()
    named = set(re.findall(r"--[a-z][a-z-]*", page))
    options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    assert named == {o for o in options if o.startswith("--")}
    (tmp_path / "examples").symlink_to(EXAMPLES)
    (tmp_path / "SmolLM2-135M").symlink_to(checkpoint)
    export(T5, tmp_path / "flan-t5-small")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    exec("\n".join(blocks), {})


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--prompts", "no-such-file"),
        ("--prompt", "x", "--draft", LLAMA),
        ("--prompt", "x", "--draft-weights", "w"),
        ("--prompt", "x", "--top-p", "0"),
        ("--prompt", "x", "--repetition-penalty", "0"),
        ("--prompt", "x", "--backend", "numpy", "--compile"),
        ("--prompt", "x", "--max-length", "0"),
        ("--prompt", "x", "--cache-dtype", "int8"),
    ],
    ids=str,
)
def test_wrong_usage_exits_with_2(args: tuple[str, ...]) -> None:
    result = invoke(LLAMA, "--weights", "w", *args)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    checkpoint = export(LLAMA, tmp_path / "model")
    (checkpoint / "tokenizer.json").unlink()
    result = invoke(LLAMA, "--weights", checkpoint, "--prompt", "w1")
    assert result.exit_code == 1
    assert result.stderr.startswith("error[no-tokenizer]")


def test_an_imported_file_runs_what_it_was_imported_from(checkpoint: Path, tmp_path: Path) -> None:
    written = tmp_path / "imported.arch"
    result = CliRunner().invoke(main, ["import", str(checkpoint), "-o", str(written)])
    assert result.exit_code == 0, result.output
    cost = CliRunner().invoke(main, ["cost", str(written), "--preset", "imported", "--json"])
    tiny = archc.load(LLAMA, preset="tiny")
    assert json.loads(cost.stdout)["parameters"] == tiny.parameter_count()
