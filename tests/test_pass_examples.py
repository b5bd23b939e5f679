"""The passes on the bundled examples: what fires is pinned, results do not change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from bundled import FOLDER, example
from checks import NAMES, same
from goldens import compare, read
from graphs import evaluate

from archc.compiler.passes import optimise
from archc.compiler.passes.explain import QUIET, explain_text, totals_text
from archc.compiler.rewrite import Site

GOLDEN = Path(__file__).parent / "golden" / "passes"
COUNTS = GOLDEN / "counts.golden"
EXAMPLES = sorted(p.stem for p in FOLDER.glob("*.arch"))

KERNELS = {
    "llama": {"attend": 1, "linear": 5, "pointwise": 3},
    "gpt2": {"attend": 1, "linear": 5, "pointwise": 5},
    "bert": {"attend": 1, "linear": 6, "pointwise": 10},
    "deberta": {"attend": 1, "linear": 5, "pointwise": 5},
    "vit": {"attend": 1, "linear": 6, "pointwise": 4},
}


@pytest.mark.parametrize("name", KERNELS)
def test_examples_are_fused(name: str) -> None:
    done = optimise(example(name))
    nodes = Counter(n.op for f in done.program.functions for n in f.nodes)
    assert {op: nodes[op] for op in KERNELS[name]} == KERNELS[name]
    assert optimise(done.program).program == done.program


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_pass_changes_an_example(name: str, accept: bool) -> None:
    """What fires and what declines is pinned: a fusion that disappears shows up here."""
    done = optimise(example(name), verify=evaluate)
    compare(COUNTS, read(COUNTS), name, counts(done.sites), accept=accept)


def counts(sites: Sequence[Site]) -> str:
    """A line per rule that met something: how often it fired, how often it declined."""
    found = Counter((f"{x.pass_name}/{x.rule}", x.fired) for x in sites if x.rule not in QUIET)
    rules = dict.fromkeys(rule for rule, _ in found)
    return "".join(f"{r} {found[r, True]} fired {found[r, False]} declined\n" for r in rules)


def test_every_example_is_counted() -> None:
    assert sorted(read(COUNTS)) == EXAMPLES


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("missing", NAMES)
def test_examples_survive_without_a_pass(name: str, missing: str) -> None:
    program = example(name)
    same(program, optimise(program, disable=[missing]).program, tolerance=1e-10)


@pytest.mark.parametrize("name", KERNELS)
def test_the_report_of_an_example(name: str, accept: bool) -> None:
    """Which fusion fires where, or declines and why: one that disappears shows up here."""
    done = optimise(example(name))
    sizes = {**done.program.sizes, "b": 1, "s": 32}
    got = f"{explain_text(done.sites, sizes)}\n{totals_text(done.sites, sizes)}\n"
    golden = GOLDEN / f"{name}.golden"
    if accept:
        golden.write_text(got)
    assert got == golden.read_text()
