"""The fuzzer: what it writes, that it finds what is wrong and nothing else, how small it makes a find."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
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
from archc.fuzz.judge import Trial, judge
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


# What no small program has: `quantise` and `dequantise` come of --quant, `packed` of large matrices.
ELSEWHERE = {"quantise", "dequantise", "packed"}


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
        specs = ["numpy", "torch"] if seed % 2 else ["torch@O0"]
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
