"""Every kernel on every target: it launches, spills nothing, uses tensor cores and wide loads, and
takes about the registers that it took before.

A run compiles one kernel of each kind. `--all-kernels` compiles those of all examples, which takes
half an hour of two cores; `--all-kernels -k llama` those of one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_gates import (
    COVER,
    Baseline,
    decoding,
    distinct,
    examples,
    first_of_each_kind,
    hardest,
    kind_of,
    training,
)

from archc.backends.triton import aot
from archc.backends.triton.aot import TARGETS, Compiled
from archc.backends.triton.metrics import Usage

triton = pytest.importorskip("triton")


def gate(
    results: list[Compiled],
    accept: bool,
    gone: frozenset[str] = frozenset(),
    *,
    all_known: bool = True,
) -> None:
    """Fails with every gate that a kernel does not pass; the baseline follows with `--accept`.

    Registers are compared where the baseline has them: of the kernels of each run it has `all`.
    """
    failed = [f"{r.kernel} for {r.target}: {'; '.join(r.failures)}" for r in results if r.failures]
    baseline = Baseline.read(triton.__version__)
    if accept:
        baseline.accepting(results, gone).write()
    else:
        failed += [*baseline.excess(results), *(baseline.unknown(results) if all_known else ())]
    assert not failed, "\n" + "\n".join(failed)


@pytest.mark.parametrize("target", TARGETS)
def test_a_kernel_of_each_kind(target: str, accept: bool) -> None:
    kernels = [k for found in distinct(COVER).values() for k in found]
    chosen = first_of_each_kind(kernels)
    gate(aot.compile_kernels(chosen, [target], processes=1), accept)


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_that_decode(target: str, accept: bool) -> None:
    kernels = decoding("llama")
    parts = {k.facts.kind for k in kernels if k.name.endswith("_part")}
    assert parts == {"attend", "product"}
    gate(aot.compile_kernels(kernels, [target], few=True, processes=1), accept)


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_that_train(target: str, accept: bool, tmp_path: Path) -> None:
    kernels = hardest(training(tmp_path))
    assert [k.facts.scores for k in kernels] == [
        2,
        1,
        1,
    ]  # only the keys' needs the scores' gradient
    gate(aot.compile_kernels(kernels, [target], processes=1), accept)


@pytest.mark.all_kernels
def test_every_kernel_that_trains(accept: bool, tmp_path: Path) -> None:
    gate(aot.compile_kernels(training(tmp_path), [*TARGETS]), accept, all_known=False)


@pytest.mark.all_kernels
@pytest.mark.parametrize("example", examples())
def test_every_kernel(example: str, accept: bool) -> None:
    names = examples()
    kernels = distinct(names[: names.index(example) + 1])[example]
    baseline = Baseline.read(triton.__version__)
    stored = {k for k in baseline.table if k.startswith(f"{example}__")}
    gone = {k for k in stored if "__few_" not in k} - {k.name for k in kernels}
    results = aot.compile_kernels(kernels, [*TARGETS])
    gate(results, accept, frozenset(gone), all_known=False)


@pytest.mark.all_kernels
def test_the_cover_has_every_kind_of_kernel() -> None:
    every = {kind_of(k): k.name for found in distinct(examples()).values() for k in found}
    covered = {kind_of(k) for found in distinct(COVER).values() for k in found}
    missing = {kind: name for kind, name in every.items() if kind not in covered}
    assert not missing


def compiled(registers: int) -> Compiled:
    usage = Usage(registers, 0, 0, 0, 1, 1)
    return Compiled("llama__k", "sm_90", 0.1, False, usage=usage)


@pytest.mark.parametrize(
    ("registers", "words"), [(110, []), (111, ["llama__k for sm_90: 111 registers, were 100"])]
)
def test_registers_may_grow_by_a_tenth(registers: int, words: list[str]) -> None:
    baseline = Baseline("0", {"llama__k": {"sm_90": 100}})
    assert [*baseline.excess([compiled(registers)])] == words


def test_a_kernel_without_a_baseline_is_no_pass() -> None:
    with pytest.raises(AssertionError, match="no baseline"):
        gate([compiled(1)], accept=False)
    after = Baseline("0", {}).accepting([compiled(7)])
    assert after.table == {"llama__k": {"sm_90": 7}}
    assert Baseline("0", {}).unknown([compiled(7)])
    assert not after.unknown([compiled(7)])
