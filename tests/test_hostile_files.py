"""Checkpoints and tokenizers made or damaged by others: refused by name, whatever their bytes say."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

import archc
from archc.compiler.checkpoint import open_checkpoint
from archc.dsl.diagnostics import ArchError, Diagnostics
from archc.tokenizer import open_tokenizer

FLIPS = 250
EXAMPLES = Path(archc.__file__).parent.parent / "examples"
TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
SETTINGS = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(TENSORS, tmp_path / "model.safetensors")
    model = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    model.add_special_tokens(["<s>", "</s>"])
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [4]}))
    return tmp_path


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", "<s>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(3)
    for name, kind in (("q", gguf.GGMLQuantizationType.Q8_0), ("f", gguf.GGMLQuantizationType.F32)):
        matrix = np.arange(64, dtype=np.float32).reshape(2, 32)
        writer.add_tensor(name, gguf.quantize(matrix, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_all(path: Path) -> None:
    """Everything that a checkpoint says. An `ArchError` is the only thing that may be wrong."""
    with suppress(ArchError), np.errstate(all="ignore"):
        checkpoint = open_checkpoint(path)
        with suppress(ArchError):
            tokenizer = open_tokenizer(checkpoint)
            tokenizer.decode(tokenizer.encode("ab a"))
        store = checkpoint.weights_file()
        for name in store.names:
            with suppress(ArchError):
                assert store.read(name).shape == store.shape(name)


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """Some bytes changed, cut off, left out or doubled; early ones more often."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 4)):
        at = int(len(changed) * random.random() ** 2)
        way = random.integers(0, 5)
        if way < 2:
            changed[at : at + 1] = bytes([random.integers(0, 256)])
        elif way == 2:
            changed[at : at + 1] = (
                bytes([changed[at] ^ (1 << random.integers(0, 8))]) if changed else b""
            )
        elif way == 3:
            del changed[at : at + int(random.integers(1, 9))]
        else:
            changed[at:at] = changed[at : at + int(random.integers(1, 9))]
        if not changed:
            break
    return bytes(
        changed[: random.integers(0, len(changed) + 1)] if random.random() < 0.1 else changed
    )


FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("name", [*FILES, "generation_config.json"])
def test_a_damaged_file_of_a_directory(directory: Path, name: str) -> None:
    data, random = (directory / name).read_bytes(), np.random.default_rng(len(name))
    for _ in range(FLIPS):
        (directory / name).write_bytes(damaged(data, random))
        read_all(directory)


def test_a_damaged_gguf(gguf_file: Path) -> None:
    data, random = gguf_file.read_bytes(), np.random.default_rng(2)
    for _ in range(2 * FLIPS):
        gguf_file.write_bytes(damaged(data, random))
        read_all(gguf_file)


# --------------------------------------------------------------------- made, not damaged


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[int], first: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}


SAFETENSORS = {
    "a huge header": safetensors(b"{}", length=2**63),
    "a header past the end": safetensors(b"{}", length=3),
    "overlapping": safetensors({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)),
    "a gap": safetensors({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, bytes(12)),
    "past the end": safetensors({"a": entry("F32", [4], 0, 16)}, bytes(8)),
    "backwards": safetensors({"a": entry("F32", [1], 4, 0)}, bytes(4)),
    "another size": safetensors({"a": entry("F64", [1], 0, 4)}, bytes(4)),
    "no dtype": safetensors({"a": entry("F31", [1], 0, 4)}, bytes(4)),
    "a size below nothing": safetensors({"a": entry("F32", [-1], 0, 4)}, bytes(4)),
    "a product that wraps": safetensors({"a": entry("F32", [2**62, 4], 0, 4)}, bytes(4)),
    "nested": safetensors(b"[" * 100_000),
    "a long number": safetensors(b'{"a": ' + b"9" * 10_000 + b"}"),
    "no tensors": safetensors({"__metadata__": 3}),
}  # fmt: skip


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_safetensors_file_that_lies(directory: Path, case: str) -> None:
    (directory / "model.safetensors").write_bytes(SAFETENSORS[case])
    with pytest.raises(ArchError) as caught:
        open_checkpoint(directory)
    assert caught.value.id == "damaged-checkpoint"


def test_a_tensor_of_nothing_with_a_size_that_no_array_has(directory: Path) -> None:
    header = {"a": entry("F32", [0, 2**63 - 1, 4], 0, 0)}
    (directory / "model.safetensors").write_bytes(safetensors(header))
    read_all(directory)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def made_gguf(
    tensors: list[tuple[str, tuple[int, ...], int, int]], *fields: bytes, data: int = 0
) -> bytes:
    """`tensors` as (name, shape, kind, offset)."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + b"".join(fields)
    for name, shape, kind, offset in tensors:
        header += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return header + bytes(-len(header) % 32) + bytes(data)


GGUFS = {
    "overlapping": made_gguf([("a", (8,), 0, 0), ("b", (8,), 0, 16)], data=64),
    "past the end": made_gguf([("a", (8,), 0, 64)], data=64),
    "a product that wraps": made_gguf([("a", (2**32, 2**32), 0, 0)], data=64),
    "a size that no array has": made_gguf([("a", (0, 2**63), 0, 0)], data=64),
    "an offset that wraps": made_gguf([("a", (8,), 0, 2**64 - 8)], data=64),
    "many dimensions": made_gguf([("a", (1,) * 9, 0, 0)], data=64),
    "one name twice": made_gguf([("a", (1,), 0, 0), ("a", (1,), 0, 32)], data=64),
    "an unknown kind": made_gguf([("a", (8,), 999, 0)], data=64),
    "half a block": made_gguf([("a", (31,), 8, 0)], data=64),
    "many tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0),
    "a long string": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62),
    "a long array": made_gguf([], text("k") + struct.pack("<IIQ", 9, 10, 2**61)),
    "an array of arrays": made_gguf([], text("k") + struct.pack("<IIQ", 9, 9, 1)),
    "an alignment of nothing": made_gguf([], text("general.alignment") + struct.pack("<II", 4, 0)),
}  # fmt: skip


@pytest.mark.parametrize("case", GGUFS)
def test_a_gguf_that_lies(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.gguf").write_bytes(GGUFS[case])
    with pytest.raises(ArchError) as caught:
        open_checkpoint(tmp_path / "a.gguf")
    assert caught.value.id == "damaged-checkpoint"


# ------------------------------------------------------------------------------- configs

VALUES: list[Any] = [
    float("nan"), float("inf"), -float("inf"), 1e308, 10**30, 2**63 - 1, -1, 0, True, "", "x" * 10**5,
    [], [[]], {}, {"a": {"a": 1}}, None, "{}", "../../etc/passwd", "__import__('os')",
]  # fmt: skip


def test_any_value_in_any_field_of_a_config(directory: Path) -> None:
    random = np.random.default_rng(4)
    cases = [(field, value) for field in CONFIG for value in VALUES]
    for case in random.permutation(len(cases))[:30]:
        field, value = cases[case]
        (directory / "config.json").write_text(json.dumps(CONFIG | {field: value}))
        with suppress(ArchError, Diagnostics):
            archc.load(EXAMPLES / "llama.arch", weights=directory)


NO_CONFIGS = [
    "[]",
    "3",
    "null",
    '"x"',
    "{",
    "NaN",
    "[" * 10**5,
    '{"a": ' * 10**5,
    '{"a": ' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_what_is_no_object(directory: Path, name: str) -> None:
    for content in NO_CONFIGS:
        (directory / name).write_text(content)
        read_all(directory)


SETTINGS_OF_OTHERS: list[Callable[[Path], object]] = [
    lambda p: (p / "tokenizer_config.json").write_text('{"eos_token": {"id": 3}, "bos_token": {}}'),
    lambda p: (p / "generation_config.json").write_text('{"eos_token_id": [[1], {}, "a", null]}'),
    lambda p: (p / "generation_config.json").write_text('{"eos_token_id": "4"}'),
    lambda p: (p / "chat_template.jinja").write_bytes(b"\xff\xfe"),
    lambda p: (p / "special_tokens_map.json").write_bytes(b"\xff\xfe"),
    lambda p: (p / "tokenizer.json").write_text("[" * 10**5),
]


@pytest.mark.parametrize("harm", range(len(SETTINGS_OF_OTHERS)))
def test_settings_of_a_tokenizer_that_are_no_settings(directory: Path, harm: int) -> None:
    SETTINGS_OF_OTHERS[harm](directory)
    read_all(directory)


FIELDS: dict[str, list[Any]] = {
    "model": [3, ["gpt2"]],
    "pre": [3, ["gpt-2"], "gpt-9"],
    "tokens": [3, "ab", [1, 2], []],
    "merges": [3, ["ab"], [1], ["x y"]],
    "token_type": [3, ["a"], [9] * 9],
    "bos_token_id": [-1, 99, "a", [1], 1.5],
    "eos_token_id": [[1], "a", -3],
    "chat_template": [3, [1]],
}


def test_fields_of_a_gguf_tokenizer_that_are_none(gguf_file: Path) -> None:
    whole = open_checkpoint(gguf_file)
    for field, values in FIELDS.items():
        prefix = "tokenizer." if field == "chat_template" else "tokenizer.ggml."
        for value in values:
            changed = archc.tokenizer.Checkpoint(
                whole.path, "gguf", "llama", {}, None, {**whole.metadata, prefix + field: value}
            )
            with suppress(ArchError):
                tokenizer = open_tokenizer(changed)
                tokenizer.decode(tokenizer.encode("ab a"))
