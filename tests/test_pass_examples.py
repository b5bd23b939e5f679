"""The passes on the bundled examples: what fires is pinned, results do not change."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from archc.compiler.elaborate import Request, elaborate, module_of, preset_overrides, the_model
from archc.compiler.ir.graph import Program
from archc.compiler.passes import optimise
from archc.dsl.parse import parse_file
from checks import NAMES, same
from graphs import evaluate

ROOT = Path(__file__).parent.parent

KERNELS = {
    "llama": {"attend": 1, "linear": 5, "pointwise": 5},
    "gpt2": {"attend": 1, "linear": 5, "pointwise": 4},
    "bert": {"attend": 1, "linear": 6, "pointwise": 7},
}


def example(name: str) -> Program:
    module = module_of(parse_file(ROOT / "examples" / f"{name}.arch"))
    model, overrides = preset_overrides(module, "tiny")
    return elaborate(module, the_model(module, model), Request(overrides))


@pytest.mark.parametrize("name", KERNELS)
def test_examples_are_fused_and_verified(name: str) -> None:
    program = example(name)
    done = optimise(program, verify=evaluate)
    nodes = Counter(n.op for f in done.program.functions for n in f.nodes)
    assert {op: nodes[op] for op in KERNELS[name]} == KERNELS[name]
    assert optimise(done.program).program == done.program


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("missing", NAMES)
def test_examples_survive_without_a_pass(name: str, missing: str) -> None:
    program = example(name)
    same(program, optimise(program, disable=[missing]).program, tolerance=1e-10)
