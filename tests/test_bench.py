"""`archc bench`: what is measured and what is said of it; no figure is compared with another."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

import archc
from archc.bench import TASKS, Figures, Found, Way, Work, measure
from archc.cli import main
from archc.commands.bench import table
from archc.dsl.errors import NoWeights

TEXT = """model Next {
  vocab = 27
  input ids: ids[b, s] < vocab
  weight table[v: vocab, w: vocab] = normal
  decode s
  output logits[b, s, w] = table[v: ids]
}
"""
SMALL = Work(prompt=3, context=2, tokens=2, rounds=2, threads=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "next.arch"
    path.write_text(TEXT)
    return path


def random_model(file: Path) -> archc.Model:
    return archc.load(file).with_random_weights(0)


def test_each_way_is_measured_and_one_that_fails_leaves_the_others(file: Path) -> None:
    ways = [Way("numpy", "f64"), Way("numpy", "f63")]  # type: ignore[arg-type]
    found = measure(partial(random_model, file), ways, SMALL)
    (figures,) = found.figures
    assert figures.way == ways[0]
    assert {task: len(times) for task, times in figures.rounds.items()} == dict.fromkeys(TASKS, 2)
    assert min(figures.load, *figures.first.values(), *figures.rounds["decode"]) > 0
    assert figures.peak > 2**20
    assert list(found.failed) == [ways[1]]
    assert "f63" in found.failed[ways[1]]


def test_the_command_prints_what_it_measured_as_json(file: Path) -> None:
    options = ["--random", "0", "--backend", "numpy", "--dtype", "f32", "--json"]
    sizes = ["--prompt", "3", "--context", "2", "--tokens", "2", "--rounds", "1"]
    result = CliRunner().invoke(main, ["bench", str(file), *options, *sizes])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (way,) = found["ways"]
    assert found["shown"] == [way["name"]] == ["numpy f32"]
    assert way["decode_tokens_per_second"] == pytest.approx(2 / way["seconds"]["decode"][0])
    assert found["failed"] == {}


def test_without_weights_nothing_is_started(file: Path) -> None:
    result = CliRunner().invoke(main, ["bench", str(file), "--backend", "numpy"])
    assert result.exit_code == 1
    assert NoWeights.id in result.stderr


def timed(way: Way, prefill: float, decode: float) -> Figures:
    rounds = {"prefill": [9.0, prefill, 0.0], "decode": [decode]}
    return Figures(way, load=0.5, peak=10**6, first={"prefill": 3.0, "decode": 1.0}, rounds=rounds)


@pytest.mark.parametrize(("decode", "shown"), [(1.0, "compiled"), (4.0, "eager")])
def test_compiled_is_shown_where_it_pays(decode: float, shown: str) -> None:
    eager, compiled = Way(), Way(compiled=True)
    figures = (timed(eager, 1.0, 2.0), timed(compiled, 1.0, decode))
    found = Found(Work(prompt=10, tokens=8), figures, {Way("triton"): "no GPU"})
    ((best, gain),) = found.shown()
    assert best.way == (compiled if shown == "compiled" else eager)
    assert gain == pytest.approx(3 / (1 + decode))
    head, row, words, failed = table(found)
    assert head.split()[0] == "prefill"
    assert row.startswith(f"{best.way} ")
    assert row.split()[-5:] == ["10.0", f"{8 / best.seconds('decode'):.1f}", "0.50", "4.00", "1"]
    assert ("does not pay" in words) == (shown == "eager")
    assert failed == "triton f32: failed, no GPU"
