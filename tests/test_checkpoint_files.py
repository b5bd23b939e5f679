"""Checkpoint files: what is read from them, and that every damage has a name and no traceback."""

from __future__ import annotations

import json
import mmap
import pickle
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from archc.compiler.checkpoint import open_checkpoint
from archc.compiler.checkpoint.reader import is_mapped, let_go
from archc.dsl.diagnostics import ArchError

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}
CONFIG = {"architectures": ["TinyForCausalLM"], "hidden_size": 3}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    weight_map = {name: f"{name}.safetensors" for name in TENSORS}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_is_let_go_of_takes_no_memory_and_can_be_read_again(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    written = np.arange(4 << 20, dtype=np.float32).reshape(2048, 2048)
    save_file({"a": TENSORS["a"], "w": written}, tmp_path / "model.safetensors")
    store = open_checkpoint(tmp_path).weights_file()
    w = store.read("w")
    assert (w == written).all()
    before = resident_of_files()
    let_go(w.T[3:])
    assert before - resident_of_files() > 0.9 * written.nbytes
    assert (w == written).all()


def test_only_arrays_of_a_file_are_let_go_of(directory: Path) -> None:
    a = open_checkpoint(directory).weights_file().read("a")
    assert is_mapped(a[:, 1:].T)
    for other in (a.copy(), np.frombuffer(bytearray(8)), np.frombuffer(mmap.mmap(-1, 8))):
        assert not is_mapped(other)
        let_go(other)
    let_go(a[:0])
    assert (a == TENSORS["a"]).all()


def resident_of_files() -> int:
    """Bytes of mapped files that are in this process's memory."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.split("\n") if line.startswith("RssFile:"))
    return int(line.split()[1]) * 1024


def refusal(path: Path) -> str:
    with pytest.raises(ArchError) as caught:
        open_checkpoint(path).weights_file()
    assert str(caught.value)
    return caught.value.id


# ------------------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize("kind", ["directory", "sharded"])
def test_a_directory(kind, request):
    checkpoint = open_checkpoint(request.getfixturevalue(kind))
    assert (checkpoint.format, checkpoint.class_name) == ("huggingface", "TinyForCausalLM")
    assert checkpoint.config == CONFIG
    assert set(checkpoint.tensors.names) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert checkpoint.tensors.shape(name) == tensor.shape
        assert np.array_equal(checkpoint.tensors.read(name), tensor)


def test_one_file_of_a_directory(directory):
    save_file({"c": TENSORS["a"]}, directory / "other.safetensors")
    assert set(open_checkpoint(directory / "other.safetensors").tensors.names) == {"c"}


def test_tensors_stay_in_the_file(directory):
    save_file({"big": np.zeros((1024, 1024), np.float32)}, directory / "model.safetensors")
    tracemalloc.start()
    total = open_checkpoint(directory).tensors.read("big").sum()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 0
    assert peak < 1 << 20


def _truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _index(path: Path, content: object) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps(content))


DAMAGES = {
    "absent": (lambda p: p / "nothing", "not-a-checkpoint"),
    "no config": (lambda p: (p / "config.json").unlink(), "not-a-checkpoint"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "not-a-checkpoint"),
    "a text file": (lambda p: _written(p / "x.txt"), "not-a-checkpoint"),
    "config no JSON": (lambda p: (p / "config.json").write_text("{"), "damaged-checkpoint"),
    "config too deep": (
        lambda p: (p / "config.json").write_text("[" * 100000),
        "damaged-checkpoint",
    ),
    "config with a number": (
        lambda p: (p / "config.json").write_text('{"architectures": 3}'),
        "not-a-checkpoint",
    ),
    "config a list": (lambda p: (p / "config.json").write_text("[]"), "damaged-checkpoint"),
    "config binary": (lambda p: (p / "config.json").write_bytes(b"\xff"), "damaged-checkpoint"),
    "empty": (lambda p: _truncate(p / "model.safetensors", 0), "damaged-checkpoint"),
    "cut in size": (lambda p: _truncate(p / "model.safetensors", 4), "damaged-checkpoint"),
    "cut in header": (lambda p: _truncate(p / "model.safetensors", 30), "damaged-checkpoint"),
    "cut in data": (lambda p: _truncate(p / "model.safetensors", -3), "damaged-checkpoint"),
    "noise": (
        lambda p: (p / "model.safetensors").write_bytes(bytes(range(256))),
        "damaged-checkpoint",
    ),
}


def _written(path: Path) -> Path:
    path.write_text("text")
    return path


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_has_a_name(directory, damage):
    harm, expected = DAMAGES[damage]
    changed = harm(directory)
    assert refusal(changed if isinstance(changed, Path) else directory) == expected


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        ({"a": "../a.safetensors"}, "unsafe-shard"),
        ({"a": "/etc/passwd"}, "unsafe-shard"),
        ({"a": "..\\a.safetensors"}, "unsafe-shard"),
        ({"a": ".."}, "unsafe-shard"),
        ({"a": "c.safetensors"}, "missing-shard"),
        ({"a": "b.safetensors"}, "damaged-checkpoint"),
        ({"a": 3}, "damaged-checkpoint"),
        (None, "damaged-checkpoint"),
    ],
)
def test_a_bad_index(sharded, weight_map, expected):
    _index(sharded, {"weight_map": weight_map})
    assert refusal(sharded) == expected


class _Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_pickles_are_refused_unread(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap()))
    assert refusal(tmp_path) == "pickled-checkpoint"
    assert refusal(tmp_path / "pytorch_model.bin") == "pickled-checkpoint"


# ---------------------------------------------------------------------------------- GGUF

MATRIX = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)
FORMATS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "bé"])
    writer.add_array("llama.sizes", [1, 2, 3])
    writer.add_array("llama.scales", [0.1, 0.2])
    for name in FORMATS:
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quantize(MATRIX, kind), raw_dtype=kind)
    writer.add_tensor("three", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_metadata_is_a_config(gguf_file):
    checkpoint = open_checkpoint(gguf_file)
    assert (checkpoint.format, checkpoint.class_name) == ("gguf", "llama")
    assert checkpoint.config == {
        "block_count": 2,
        "attention": {"head_count": 4, "layer_norm_rms_epsilon": 1e-5},
        "sizes": [1, 2, 3],
        "scales": [0.1, 0.2],
    }
    assert checkpoint.metadata["tokenizer.ggml.tokens"] == ["a", "bé"]
    assert open_checkpoint(gguf_file.parent).class_name == "llama"


def test_gguf_tensors_equal_the_package_reading(gguf_file):
    tensors = open_checkpoint(gguf_file).tensors
    for theirs in gguf.GGUFReader(gguf_file).tensors:
        ours = tensors.read(theirs.name)
        expected = gguf.dequantize(theirs.data, theirs.tensor_type).reshape(theirs.shape[::-1])
        assert tensors.shape(theirs.name) == expected.shape
        assert np.array_equal(ours, expected)
    assert np.abs(tensors.read("Q8_0") - MATRIX).max() < 0.05


def test_gguf_blocks_are_unpacked_piece_by_piece(gguf_file, monkeypatch):
    expected = open_checkpoint(gguf_file).tensors.read("Q4_1")
    monkeypatch.setattr("archc.compiler.checkpoint.gguf_file.UNPACKED_AT_ONCE", 256)
    assert np.array_equal(open_checkpoint(gguf_file).tensors.read("Q4_1"), expected)


def test_every_cut_of_a_gguf_is_noticed(gguf_file):
    data = gguf_file.read_bytes()
    for size in [*range(0, 1200, 7), len(data) - 4000, len(data) - 1]:
        gguf_file.write_bytes(data[:size])
        assert refusal(gguf_file) in ("damaged-checkpoint", "not-a-checkpoint")


def test_a_changed_gguf_header_never_ends_in_a_traceback(gguf_file):
    data = bytearray(gguf_file.read_bytes())
    random = np.random.default_rng(1)
    for _ in range(300):
        changed = bytearray(data)
        changed[random.integers(0, 1000)] = random.integers(0, 256)
        gguf_file.write_bytes(changed)
        try:
            checkpoint = open_checkpoint(gguf_file)
        except ArchError:
            continue
        assert checkpoint.format == "gguf"


def test_two_ggufs_in_a_directory(gguf_file):
    (gguf_file.parent / "other.gguf").write_bytes(gguf_file.read_bytes())
    assert refusal(gguf_file.parent) == "not-a-checkpoint"
