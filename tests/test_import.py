"""`archc import`: an account of every config field and tensor, and what a config alone is enough for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bundled import FOLDER
from click.testing import CliRunner
from references import REFERENCES
from safetensors.numpy import load_file, save_file

import archc
from archc.cli import main
from archc.compiler.checkpoint import open_checkpoint
from archc.compiler.checkpoint.config import leaves
from archc.importer import examples, read_directory


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    archc.load(FOLDER / "gpt2.arch", preset="tiny").with_random_weights(0).export(tmp_path / "m")
    return tmp_path / "m"


def change(directory: Path, **fields: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def run(*arguments: str | Path):
    return CliRunner().invoke(main, ["import", *map(str, arguments)])


@pytest.mark.parametrize("name", ["llama3-tied", "gemma3", "falcon-40b", "t5-gated", "bert-pooled"])
def test_every_field_and_every_tensor_has_a_row(name: str, tmp_path: Path) -> None:
    REFERENCES[name].build(tmp_path)
    opened, found = open_checkpoint(tmp_path), read_directory(tmp_path)
    assert not found.errors
    fields = {".".join(path) for path, _ in leaves(opened.config)}
    rows = {row.name: row for row in found.config}
    assert fields <= rows.keys()
    present = {".".join(path) for path, value in leaves(opened.config) if value is not None}
    assert {rows[field].fate for field in present} <= {"used", "ignored"}
    assert len(rows) == len(found.config)
    assert {rows[field].fate for field in rows.keys() - fields} <= {"defaulted"}
    assert all(row.to if row.fate in ("used", "defaulted") else row.reason for row in found.config)
    assert sum(row.count for row in found.tensors) == len(opened.tensors.names)
    assert all(row.to for row in found.tensors if row.fate == "used")


def test_what_rows_say(gpt2: Path) -> None:
    change(gpt2, n_inner=None, n_ctx=40, use_cache=True)
    path = gpt2 / "model.safetensors"
    save_file(load_file(path) | {"transformer.h.0.attn.bias": np.ones(1, np.float32)}, path)
    found = read_directory(gpt2)
    config = {row.name: (row.holds, row.fate, row.reason) for row in found.config}
    assert config["n_embd"] == ("64", "used", "")
    assert config["n_ctx"] == ("40", "ignored", "repeats n_positions")
    assert config["use_cache"][2] == "how the same values are computed"
    (d,) = [row.to for row in found.config if row.name == "n_head"]
    assert [to.split(" ")[0] for to in d] == ["heads"]
    tensors = {row.name: row for row in found.tensors}
    fused = tensors["transformer.h.*.attn.c_attn.weight"]
    assert (fused.count, fused.to) == (3, tuple(f"layers[*].attention.{x}.w" for x in "qkv"))
    assert tensors["transformer.h.0.attn.bias"].fate == "ignored"


def test_a_default_is_shown_with_its_value(gpt2: Path) -> None:
    change(gpt2, layer_norm_epsilon=None)
    (row,) = [r for r in read_directory(gpt2).config if r.fate == "defaulted"]
    assert (row.name, row.holds) == ("layer_norm_epsilon", "1e-05")
    assert row.to[0].startswith("eps ")


def test_the_table_and_the_text(gpt2: Path, tmp_path: Path) -> None:
    result = run(gpt2)
    assert result.exit_code == 0
    assert result.stdout == read_directory(gpt2).text
    assert "n_embd" in result.stderr
    assert "GPT2LMHeadModel by gpt2.arch, GPT2: 161,024 parameters" in result.stderr
    written = run(gpt2, "-o", tmp_path / "m.arch")
    assert (tmp_path / "m.arch").read_text() == result.stdout
    assert "n_embd" in written.stdout
    assert json.loads(run(gpt2, "--json").stdout) == read_directory(gpt2).to_json()


def test_a_refusal_is_a_row_and_an_error(gpt2: Path) -> None:
    change(gpt2, scale_attn_weights=False, surprise=3, n_head=None)
    result = run(gpt2)
    assert result.exit_code == 1
    assert result.stdout == ""
    errors = ("config-refused", "missing-config", "unread-config")
    assert all(f"error[{name}]" in result.stderr for name in errors)
    rows = {row.name: row for row in read_directory(gpt2).config if row.fate == "refused"}
    assert rows.keys() == {"scale_attn_weights", "surprise", "n_head"}
    assert rows["surprise"].reason == "no line reads it"
    data = json.loads(run(gpt2, "--json").stdout)
    assert {error["id"] for error in data["errors"]} == set(errors)


def test_a_tensor_that_no_line_reads_is_refused(gpt2: Path) -> None:
    path = gpt2 / "model.safetensors"
    save_file(load_file(path) | {"extra": np.ones(2, np.float32)}, path)
    result = run(gpt2)
    assert result.exit_code == 1
    assert "error[unused-tensor]" in result.stderr
    (row,) = [row for row in read_directory(gpt2).tensors if row.fate == "refused"]
    assert row.name == "extra"


def test_a_config_alone_is_enough(gpt2: Path) -> None:
    with_weights = read_directory(gpt2)
    (gpt2 / "model.safetensors").unlink()
    found = read_directory(gpt2)
    assert (found.text, found.parameters) == (with_weights.text, with_weights.parameters)
    assert found.tensors == ()
    model = archc.load(FOLDER / "gpt2.arch", weights=gpt2)
    assert model.parameter_count() == found.parameters
    with pytest.raises(archc.dsl.diagnostics.ArchError, match="no weights"):
        model.compile()


def test_a_config_of_no_class_is_read_by_the_class_that_is_given(
    gpt2: Path, tmp_path: Path
) -> None:
    named = read_directory(gpt2)
    change(gpt2, architectures=None)
    assert "error[unnamed-class]" in run(gpt2).stderr
    result = run(gpt2, "--class", "GPT2LMHeadModel", "-o", tmp_path / "m.arch")
    assert result.exit_code == 0
    assert (tmp_path / "m.arch").read_text() == named.text
    loaded = archc.load(tmp_path / "m.arch", weights=gpt2)  # the file has one block to read it by
    assert loaded.parameter_count() == named.parameters


def test_examples_are_found() -> None:
    assert {file.span.source.name for file in examples()} == {p.name for p in FOLDER.glob("*.arch")}
