"""The parameter table from published configs alone: a directory with a config.json and no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundled import FOLDER, example
from click.testing import CliRunner
from published_configs import CONFIGS, MARIAN, UNPUBLISHED
from test_cost import PUBLISHED, WITH_BUFFERS

import archc
from archc.cli import main
from archc.compiler.cost import cost
from archc.importer import read_directory

ROWS = [(row, row) for row in CONFIGS]  # a directory, and what it is compared with
FIRST = [*{row[0]: (row, row) for row in reversed(CONFIGS)}.values()]  # one of each example


def test_every_row_has_a_config() -> None:
    assert PUBLISHED.keys() == CONFIGS.keys() | UNPUBLISHED.keys()


@pytest.fixture
def directory(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[request.param]))
    return tmp_path


def output(*arguments: str | Path) -> dict:
    result = CliRunner().invoke(main, [str(a) for a in (*arguments, "--json")])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(("directory", "row"), FIRST, indirect=["directory"])
def test_the_commands_count_a_config(directory: Path, row: tuple[str, str]) -> None:
    name, _ = row
    parameters, non_embedding = PUBLISHED[row]
    found = output("cost", FOLDER / f"{name}.arch", "--weights", directory)
    assert (found["parameters"], found["non_embedding_parameters"]) == (parameters, non_embedding)
    imported = output("import", directory)
    assert (imported["example"], imported["parameters"]) == (f"{name}.arch", parameters)


@pytest.mark.parametrize("preset", WITH_BUFFERS)
def test_the_count_of_a_config_with_stored_positions(preset: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MARIAN[preset]))
    found = output("cost", FOLDER / "transformer.arch", "--weights", tmp_path)
    bias = MARIAN[preset]["vocab_size"]  # of the logits: a buffer as well, which is counted nowhere
    assert found["parameters"] + found["buffers"] - bias == WITH_BUFFERS[preset][0]


@pytest.mark.parametrize(("directory", "row"), ROWS, indirect=["directory"])
def test_a_config_makes_the_program_of_the_preset(directory: Path, row: tuple[str, str]) -> None:
    """But for epsilons, of which a preset may serve several releases."""
    name, preset = row
    counted = read_directory(directory)
    assert (counted.example, counted.parameters) == (f"{name}.arch", PUBLISHED[row][0])
    loaded = archc.load(FOLDER / f"{name}.arch", weights=directory).program
    expected = example(name, preset)
    assert cost(loaded).non_embedding == PUBLISHED[row][1]
    assert loaded.parameters == expected.parameters
    assert loaded.sizes.items() >= expected.sizes.items()
