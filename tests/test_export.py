"""`archc export`: what was read is written back byte for byte; what is made, `transformers` reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from bundled import FOLDER
from click.testing import CliRunner
from references import REFERENCES, Reference, distance, seen
from safetensors import safe_open

import archc
from archc.cli import main
from archc.compiler.checkpoint import open_checkpoint
from archc.compiler.checkpoint.export import _shards, _Tensor
from archc.dsl.diagnostics import ArchError

SHARD = 100_000


def raw(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a directory: dtype, shape, bytes."""
    store = open_checkpoint(directory).weights_file()
    return {n: (store.table[n].dtype, store.shape(n), bytes(store.raw(n))) for n in store.names}


@pytest.mark.parametrize("name", REFERENCES)
def test_an_export_is_what_was_imported(name: str, tmp_path: Path) -> None:
    reference: Reference = REFERENCES[name]
    model = reference.build(tmp_path / "read")
    loaded = archc.load(FOLDER / f"{reference.example}.arch", weights=tmp_path / "read")
    files = loaded.export(tmp_path / "written", shard_bytes=SHARD)
    assert {p.name for p in (tmp_path / "written").iterdir()} == set(files)
    assert raw(tmp_path / "written") == raw(tmp_path / "read")
    config = json.loads((tmp_path / "written" / "config.json").read_text())
    assert config == json.loads((tmp_path / "read" / "config.json").read_text())
    again = type(model).from_pretrained(tmp_path / "written", experts_implementation="eager").eval()
    inputs = reference.inputs()
    # The files are equal byte for byte; sums of float32 depend on where in memory weights lie.
    assert distance(reference.run(again, inputs), reference.run(model, inputs)) <= 1e-6


# example, what makes its preset `tiny` a model of the class, the output
MADE = [
    ("llama", {}, "logits"),
    ("llama", {"tied": True, "head_dim": 24, "bias": True}, "logits"),
    ("gpt1", {}, "logits"),
    ("gpt2", {}, "logits"),
    ("gpt2", {"tied": False, "hidden": 96}, "logits"),
    ("gpt3", {"scale": 1.0, "qkv_bias": False}, "logits"),
    ("bert", {}, "logits"),
    ("bert", {"mlm": False, "pooler": True}, "hidden"),
    ("roberta", {}, "logits"),
    ("mistral", {}, "logits"),
    ("mistral", {"window": None}, "logits"),
    ("mixtral", {}, "logits"),
    ("switch", {}, "logits"),
    ("deepseek_v2", {}, "logits"),
    ("deepseek_v2", {"q_rank": None, "grouped": False}, "logits"),
    ("hybrid", {}, "logits"),
    ("qwen2", {"tied": False}, "logits"),
    ("phi3", {"window": None, "vocab": 32064}, "logits"),  # its pad_token_id is 32000 by default
    ("gemma", {}, "logits"),
    ("falcon", {}, "logits"),
    ("falcon", {"parallel": False, "norms": 2, "alibi": True, "bias": True}, "logits"),
    ("t5", {}, "logits"),
    ("t5", {"tied": False}, "logits"),
]


@pytest.mark.parametrize(("example", "sizes", "output"), MADE)
def test_transformers_reads_what_is_made(example, sizes, output, tmp_path: Path) -> None:
    path = FOLDER / f"{example}.arch"
    model = archc.load(path, preset="tiny", overrides=sizes).with_random_weights(3)
    model.export(tmp_path / "made", shard_bytes=SHARD)
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    reference = Reference(example, config["architectures"][0], config, output)
    theirs = getattr(transformers, reference.class_name).from_pretrained(tmp_path / "made").eval()
    inputs = reference.inputs()
    value, expected = model.compile("torch")(**inputs)[output], reference.run(theirs, inputs)
    if value.ndim > 2:
        value, expected = value[seen(inputs)], expected[seen(inputs)]
    assert distance(value, expected) <= 1e-5
    again = archc.load(path, weights=tmp_path / "made")
    assert all(np.array_equal(again.weights[p], model.weights[p]) for p in model.weights)


def refusal(model: archc.Model, directory: Path) -> str:
    with pytest.raises(ArchError) as caught:
        model.export(directory)
    assert str(caught.value)
    assert not directory.exists() or not list(directory.glob("*.safetensors"))
    return caught.value.id


def test_a_config_is_never_wrong(tmp_path: Path) -> None:
    """GPT-3 is no GPT-Neo; a size set after the config was read is not what the config says."""
    gpt3 = archc.load(FOLDER / "gpt3.arch", preset="tiny").with_random_weights(0)
    assert refusal(gpt3, tmp_path / "out") == "unsaid-model"
    small = archc.load(FOLDER / "mistral.arch", preset="tiny").with_random_weights(0)
    small.export(tmp_path / "small")
    changed = archc.load(FOLDER / "mistral.arch", weights=tmp_path / "small", window=3)
    changed.export(tmp_path / "changed")
    assert json.loads((tmp_path / "changed" / "config.json").read_text())["sliding_window"] == 3


def test_a_directory_with_files_stays_as_it_is(tmp_path: Path) -> None:
    model = archc.load(FOLDER / "gpt2.arch", preset="tiny").with_random_weights(0)
    (tmp_path / "out").mkdir()
    model.export(tmp_path / "out")
    before = raw(tmp_path / "out")
    with pytest.raises(ArchError, match="not an empty directory"):
        model.with_random_weights(1).export(tmp_path / "out")
    assert raw(tmp_path / "out") == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # nothing half written beside it


def test_tensors_that_no_line_reads_are_kept(tmp_path: Path) -> None:
    """Such as buffers, of whole numbers or booleans too."""
    from safetensors.numpy import load_file, save_file

    archc.load(FOLDER / "gpt2.arch", preset="tiny").with_random_weights(0).export(tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    save_file(load_file(path) | {"transformer.h.0.attn.bias": np.tri(4, dtype=bool)}, path)
    archc.load(FOLDER / "gpt2.arch", weights=tmp_path / "a").export(tmp_path / "b")
    assert raw(tmp_path / "b") == raw(tmp_path / "a")


def test_shards_are_filled_in_order() -> None:
    sizes = (3, 3, 9, 1, 2, 4)
    tensors = [_Tensor(str(k), "F32", (), size, bytes) for k, size in enumerate(sizes)]
    assert [[t.size for t in shard] for shard in _shards(tensors, 6)] == [[3, 3], [9], [1, 2], [4]]


def test_the_command(tmp_path: Path) -> None:
    arguments = ["export", str(FOLDER / "llama.arch"), "--preset", "tiny", "--random", "0"]
    made = CliRunner().invoke(
        main, [*arguments, "-o", str(tmp_path / "a"), "--shard-size", "300KB"]
    )
    assert made.exit_code == 0, made.output
    assert "model-00001-of-00002.safetensors" in made.output
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(t[2]) for t in raw(tmp_path / "a").values())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "a" / file, "numpy") as shard:
            assert name in shard.keys()  # noqa: SIM118 (a file is no mapping)
    wrong = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "b"), "--shard-size", "big"])
    assert wrong.exit_code == 2
    assert "no size such as 5GB" in wrong.output
