"""The fuzzer: what it writes, that it finds what is wrong and nothing else, how small it makes a find."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from faults import NUMPY, TORCH, Faulty, meaning, template

import archc.api
from archc.api import Model
from archc.cli import main
from archc.commands.diff import candidate
from archc.compiler.elaborate import module_of, the_model
from archc.compiler.incremental import derive
from archc.compiler.ops import OPS
from archc.compiler.passes import optimise
from archc.dsl import Source, format_file, parse
from archc.dsl.errors import NeedsWholeSequence, NoDecode
from archc.fuzz.cuts import cuts
from archc.fuzz.draft import compose
from archc.fuzz.hunt import Find
from archc.fuzz.judge import Failure, Trial, judge
from archc.fuzz.productions import PRODUCTIONS
from archc.fuzz.reduce import reduced
from archc.fuzz.workers import Worker, spread

PROGRAMS = 100
EVERY = 9  # of them, also on triton, whose interpreter is slow
SLOWEST = 5  # a size that it is still given here


# ------------------------------------------------------------------------------ what is written


def test_each_production_is_reached() -> None:
    made = Counter(name for seed in range(1000) for name in compose(seed).productions)
    assert {p.name for p in PRODUCTIONS} == made.keys()


# What no small program has: `quantise` and `dequantise` come of --quant, `packed` of large matrices,
# `logsumexp` of gradients.
ELSEWHERE = {"quantise", "dequantise", "packed", "logsumexp"}


def test_each_op_is_in_some_program() -> None:
    """As written, optimised, or in what a decoding goes on with."""
    seen: set[str] = set()
    for seed in range(400):
        module = module_of(parse(Source("fuzz.arch", compose(seed).text)))
        program = Model(module, the_model(module), {}).program
        made = [program] if seed >= 60 else [program, optimise(program).program]
        with suppress(NoDecode, NeedsWholeSequence):
            made.append(derive(program).chunk)
        seen |= {node.op for p in made for function in p.functions for node in function.nodes}
        if OPS.keys() - seen == ELSEWHERE:
            break
    assert OPS.keys() - seen == ELSEWHERE


def test_a_seed_is_a_program() -> None:
    for seed in range(40):
        text = compose(seed).text
        assert compose(seed).text == text
        assert format_file(parse(Source("fuzz.arch", text))) == text
    assert len({compose(seed).text for seed in range(40)}) == 40


def test_sizes_collide() -> None:
    samples = [compose(seed) for seed in range(100)]
    assert sum(s.sizes["s"] == s.sizes["b"] for s in samples) > 10
    assert sum(f"heads = {s.sizes['s']};" in s.text for s in samples) > 10
    assert sum(s.sizes["s"] > 8 for s in samples) > 0


# --------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize("first", range(0, PROGRAMS, 10))
def test_programs_agree_on_every_backend(first: int) -> None:
    """No find: neither a bug of archc nor an alarm about none."""
    for seed in range(first, first + 10):
        sample = compose(seed)
        specs = ["numpy", "torch"] if seed % 2 else ["torch@O0", "torch"]
        if seed % EVERY == 0 and max(sample.sizes.values()) <= SLOWEST and sample.dtype != "f64":
            specs.append("triton")
        candidates = [candidate(spec, sample.dtype) for spec in specs]
        assert judge(Trial(sample.text, sample.sizes, seed), candidates) is None, sample.text


# -------------------------------------------------------------------------------- what is planted


def crossed_where_sizes_collide(right, call, x):
    """Merges the last two axes in the wrong order, which a shape tells unless they are equal."""
    square = x.ndim > 1 and x.shape[-1] == x.shape[-2]
    return right(call, x.swapaxes(-1, -2) if square else x)


MASK_DROPPED = "torch.where({0} | True, {1}, {2})"
PLANTED = {  # backend, fault, and the lines that it is made small to; none where it is only found
    "a wrong sign": ("torch", TORCH["difference swapped"], 8),
    "a mask dropped": ("torch", template("torch", "where", MASK_DROPPED), 12),
    "an axis taken for another": ("numpy", meaning("merge", crossed_where_sizes_collide), 16),
    "a window one short": ("numpy", NUMPY["mask bound"], None),
}
WITHIN = 40  # programs


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found_and_made_small(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, fault, lines = PLANTED[name]
    real = archc.api.backend
    given = {backend: Faulty(real(backend), fault)}
    monkeypatch.setattr(archc.api, "backend", lambda called: given.get(called) or real(called))
    one = [candidate(backend, "f32")]
    for seed in range(WITHIN):
        sample = compose(seed)
        trial = Trial(sample.text.replace("  decode s\n", ""), sample.sizes, seed)
        found = judge(trial, one)
        if found is not None:
            break
    assert found is not None, f"not within {WITHIN} programs"

    if lines is None:
        return

    def fails(smaller: Trial) -> bool:
        again = judge(smaller, one)
        return again is not None and again.signature == found.signature

    small = reduced(trial, fails, limit=80)
    assert fails(small)
    assert len(small.text.splitlines()) <= lines, small.text


# ------------------------------------------------------------------------------ made small

LAYERED = """use std
model M {
  d = 4; n = 2
  input x: float[b, s, d]
  input z: float[b, s, d]
  y = x
  repeat layers[i: n] {
    if i % 2 == 0 { y += y |> rmsnorm as norm |> linear(d, bias = true) as f } else { y = 2 * y }
  }
  w[b, s] = sum(y, d) + 3.25 * exp(amax(z, d))
  output o[b, s] = w
}
"""


def test_every_cut_is_another_text_and_some_cuts_are_small() -> None:
    made = list(cuts(LAYERED))
    assert len(made) == len({*made, LAYERED}) - 1
    assert min(map(len, made)) < len(LAYERED) // 3


def test_what_is_asked_for_is_kept() -> None:
    small = reduced(Trial(LAYERED, {"s": 5}), lambda t: "exp" in t.text and "input z" in t.text)
    assert small.text == "model M {\n  input z: float[b, s, d]\n  w = exp\n}\n"
    assert small.sizes == {"s": 1}


def test_a_limit_is_kept() -> None:
    asked = []
    reduced(Trial(LAYERED, {}), lambda t: bool(asked.append(t.text)), limit=7)
    assert len(asked) == 7


def test_the_command_reduces_what_a_command_finds(tmp_path: Path) -> None:
    (tmp_path / "a model.arch").write_text(LAYERED)
    words = ["reduce", str(tmp_path / "a model.arch"), "--check", "grep -q rmsnorm"]
    done = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "small.arch")])
    assert done.exit_code == 0, done.output
    assert len((tmp_path / "small.arch").read_text().splitlines()) <= 3
    assert "lines to" in done.stderr


def test_a_command_runs_programs_and_says_so(tmp_path: Path) -> None:
    words = ["fuzz", "--count", "2", "--backends", "numpy", "-o", str(tmp_path / "finds"), "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"seed": 0, "programs": 2, "finds": []}
    assert not (tmp_path / "finds").exists()
    shown = CliRunner().invoke(main, ["fuzz", "--seed", "3", "--count", "1", "--print"])
    assert shown.stdout == f"# seed 3\n{compose(3).text}"


# ------------------------------------------------------------------------------ processes


def test_a_process_that_hangs_or_ends_is_a_find() -> None:
    sample = compose(0)
    question = Trial(sample.text, sample.sizes), (candidate("numpy", "f32"),)
    slow = Worker(timeout=0.01)
    found = slow.judged(question)
    assert found is not None
    assert found.kind == "times out"
    ended = Worker()
    ended.ask(question)
    assert ended.process is not None
    ended.process.kill()
    found = ended.answer()
    assert found is not None
    assert found.kind == "dies"


def test_a_mistake_of_the_judges_is_not_lost() -> None:
    def ask(worker: Worker, question: int) -> int:
        return 1 // question

    with pytest.raises(ZeroDivisionError):
        list(spread([2, 1, 0], ask, jobs=2))
    assert sorted(spread([1, 2], ask, jobs=1)) == [(1, 1), (2, 0)]


def test_a_find_says_how_to_see_it(tmp_path: Path) -> None:
    sample = compose(4)
    trial = Trial("model M {\n}\n", {"b": 1, "s": 2}, 4)
    find = Find(sample, Failure("differs", "torch@O0", "at the first line"), trial)
    folder = find.write(tmp_path)
    small = (folder / "reduced.arch").read_text()
    assert small.startswith("# differs on torch@O0: at the first line\n# archc fuzz --seed 4")
    assert f"--backends torch@O0 --dtype {sample.dtype} --random 4 --size b=1 --size s=2" in small
    assert (folder / "original.arch").read_text() == sample.text
    assert json.loads((folder / "find.json").read_text())["program"] == trial.text


def test_a_text_that_is_refused_is_a_failure() -> None:
    found = judge(Trial("model M {\n  output y = x\n}\n", {}), [candidate("numpy", "f32")])
    assert found is not None
    assert found.signature == ("refused: unknown-name", "")
