"""The walkthrough of a port, walked through (`consoles.py`). An `arch piece` is part of its file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import consoles
import numpy as np
import pytest
from click.testing import CliRunner
from references import EPSILON, VOCAB, Reference, batch, distance
from safetensors.numpy import load_file
from snippets import Fence, fences

import archc
from archc.cli import main

PAGE = Path(archc.__file__).parent.parent / "docs" / "porting.md"
FENCES = list(fences(PAGE))
CONSOLES = [fence for fence in FENCES if fence.kind == "console"]
FILE = "gpt_neox.arch"


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.strip("\n").split("\n")]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folder that the page leaves, and what each command printed."""
    folder = tmp_path_factory.mktemp("porting")
    (whole,) = (fence for fence in FENCES if fence.words == (FILE,))
    results = consoles.walk(FENCES, folder)
    return SimpleNamespace(folder=folder, results=results, text=whole.text)


@pytest.mark.parametrize("console", CONSOLES, ids=str)
def test_a_command_prints_what_the_page_shows(console: Fence, walked: SimpleNamespace) -> None:
    consoles.check(console, walked.results[console.number])


@pytest.mark.parametrize("piece", [f for f in FENCES if "piece" in f.words], ids=str)
def test_a_piece_is_part_of_the_file(piece: Fence, walked: SimpleNamespace) -> None:
    part, whole = lines_of(piece.text), lines_of(walked.text)
    assert any(whole[at : at + len(part)] == part for at in range(len(whole)))


def test_the_file_is_formatted(walked: SimpleNamespace) -> None:
    result = CliRunner().invoke(main, ["fmt", "--check", str(walked.folder / FILE)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("backend", "dtype", "level"),
    [("numpy", "f64", 0), ("numpy", "f32", 1), ("torch", "f32", 1), ("triton", "f32", 1)],
)
def test_the_port_agrees_with_transformers(
    backend: str, dtype: str, level: int, walked: SimpleNamespace
) -> None:
    inputs = load_file(walked.folder / "inputs.safetensors")
    expected = load_file(walked.folder / "expected.safetensors")["logits"]
    seen = inputs["attention_mask"] == 1
    assert not seen.all()
    model = archc.load(walked.folder / FILE, weights=walked.folder / "reference")
    got = model.compile(backend, dtype=dtype, level=level)(**inputs)["logits"]
    assert distance(got[seen], np.asarray(expected)[seen]) <= 1e-5


OTHERS = {
    "one by one": {"use_parallel_residual": False},
    "half a head, other angles, another activation": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 500.0,
            "partial_rotary_factor": 0.5,
        },
        "hidden_act": "gelu_new",
    },
}


@pytest.mark.parametrize("change", OTHERS)
def test_the_switches_of_the_config(change: str, walked: SimpleNamespace, tmp_path: Path) -> None:
    config = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "layer_norm_eps": EPSILON,
    }
    reference = Reference("", "GPTNeoXForCausalLM", config | OTHERS[change])
    made, inputs = reference.build(tmp_path), batch("gpt2")
    expected, seen = reference.run(made, inputs), inputs["attention_mask"] == 1
    model = archc.load(walked.folder / FILE, weights=tmp_path)
    got = model.compile("torch")(**inputs)["logits"]
    assert distance(got[seen], expected[seen]) <= 1e-5


def test_the_published_sizes_have_the_published_counts(walked: SimpleNamespace) -> None:
    counts = {"neox_20b": 20_554_567_680, "pythia_160m": 162_322_944}
    for preset, count in counts.items():
        assert archc.load(walked.folder / FILE, preset=preset).parameter_count() == count
