"""The passes on the bundled examples: what fires is pinned, results do not change."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from bundled import FOLDER, example
from checks import NAMES, same
from graphs import evaluate

from archc.compiler.passes import optimise
from archc.compiler.passes.explain import explain_text

GOLDEN = Path(__file__).parent / "golden" / "passes"

KERNELS = {
    "llama": {"attend": 1, "linear": 5, "pointwise": 5},
    "gpt2": {"attend": 1, "linear": 5, "pointwise": 4},
    "bert": {"attend": 1, "linear": 6, "pointwise": 9},
    "deberta": {"attend": 1, "linear": 3, "pointwise": 7},
    "vit": {"attend": 1, "linear": 6, "pointwise": 4},
}


@pytest.mark.parametrize("name", KERNELS)
def test_examples_are_fused(name: str) -> None:
    done = optimise(example(name))
    nodes = Counter(n.op for f in done.program.functions for n in f.nodes)
    assert {op: nodes[op] for op in KERNELS[name]} == KERNELS[name]
    assert optimise(done.program).program == done.program


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.arch")))
def test_no_pass_changes_an_example(name: str) -> None:
    optimise(example(name), verify=evaluate)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("missing", NAMES)
def test_examples_survive_without_a_pass(name: str, missing: str) -> None:
    program = example(name)
    same(program, optimise(program, disable=[missing]).program, tolerance=1e-10)


@pytest.mark.parametrize("name", KERNELS)
def test_the_report_of_an_example(name: str, accept: bool) -> None:
    """Which fusion fires where, or declines and why: one that disappears shows up here."""
    done = optimise(example(name))
    got = explain_text(done.sites, {**done.program.sizes, "b": 1, "s": 32}) + "\n"
    golden = GOLDEN / f"{name}.golden"
    if accept:
        golden.write_text(got)
    assert got == golden.read_text()
