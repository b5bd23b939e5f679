"""Every op that the Triton backend lowers, on the samples of its stanza, against NumPy in
float64."""

from __future__ import annotations

import numpy as np
import pytest

from archc.backends.numpy import NumpyBackend
from archc.backends.triton import TritonBackend
from archc.compiler.ir.graph import Builder, Program
from archc.compiler.ops import OPS, Sample
from archc.compiler.ops.registry import SAMPLE_SIZES
from archc.dsl.errors import NoLowering

pytest.importorskip("triton")
# Passes make `convolve` and `packed` that are not run for triton; weights are quantised at load.
REFUSED = {"convolve", "packed", "quantise"}
EPS = {"f32": 2.0**-23, "bf16": 2.0**-8, "f16": 2.0**-11}


def dtypes(sample: Sample, op: str) -> set[str]:
    made = Builder("probe")
    inputs = [made.add("input", (), {"name": str(i)}, (t,)) for i, t in enumerate(sample.inputs)]
    node = made[made.add(op, tuple(inputs), sample.attrs)] if op != "result" else None
    return {t.dtype for t in (*sample.inputs, *(node.types if node else ()))}


def cases() -> list[tuple[str, int]]:
    """Samples without float64, which no kernel computes in."""
    return [
        (op.name, i)
        for op in OPS.values()
        for i, sample in enumerate(op.samples)
        if op.name not in REFUSED | {"result"} and "f64" not in dtypes(sample, op.name)
    ]  # fmt: skip


CASES = cases()


@pytest.fixture(scope="module")
def program() -> tuple[Program, dict[str, np.ndarray]]:
    """One program with a result for each case, and its inputs."""
    made, inputs, outputs = Builder("main"), {}, []
    random = np.random.default_rng(0)
    for name, index in CASES:
        sample, operands = OPS[name].samples[index], []
        for position, kind in enumerate(sample.inputs):
            key = f"{name}_{index}_{position}"
            what = {"int": "int", "i8": "int", "bool": "bool"}.get(kind.dtype, "float")
            operands.append(made.add("input", (), {"name": key, "kind": what}, (kind,)))
            inputs[key] = drawn(random, sample, kind)
        outputs.append((f"{name} {index}", made.add(name, tuple(operands), sample.attrs)))
    return Program("Ops", (made.finish(outputs),)), inputs


def drawn(random: np.random.Generator, sample: Sample, kind: object) -> np.ndarray:
    shape, (low, high) = kind.shape(SAMPLE_SIZES), sample.domain
    if kind.dtype == "bool":
        return random.integers(0, 2, shape).astype(bool)
    if kind.dtype in ("int", "i8"):
        return random.integers(int(np.ceil(low)), int(high) + 1, shape)
    return random.uniform(low, high, shape).astype(np.float32)


@pytest.fixture(scope="module", params=["f32", "bf16"])
def results(program, request):
    graph, inputs = program
    dtype = request.param
    inputs = {k: v.astype("float32") if v.dtype.kind == "f" else v for k, v in inputs.items()}
    rounded = NumpyBackend().load(graph, {}, dtype=dtype)
    return (
        dtype,
        TritonBackend().load(graph, {}, dtype=dtype).run(inputs),
        rounded.run(inputs),
        NumpyBackend().load(graph, {}, dtype="f64").run(inputs),
    )


@pytest.mark.parametrize(("name", "index"), CASES)
def test_op_agrees_with_its_meaning(results, name, index):
    dtype, triton, base, gold = (r if isinstance(r, str) else r[f"{name} {index}"] for r in results)
    assert triton.shape == base.shape
    if base.dtype.kind in "bi":
        if dtype == "f32":
            assert np.array_equal(triton, base)
        return
    error, allowed = (np.abs(x.astype(np.float64) - gold) for x in (triton, base))
    scale = np.abs(gold).max(initial=1e-30)
    assert error.max(initial=0) <= 3 * allowed.max(initial=0) + 4 * EPS[dtype] * scale


def test_nan_comes_from_where_numpy_has_it(program) -> None:
    graph, inputs = program
    inputs = {k: v.copy() for k, v in inputs.items()}
    for array in inputs.values():
        if array.dtype.kind == "f" and array.size:
            array.flat[array.size // 2] = np.nan
    runs = [b().load(graph, {}, dtype="f32").run(inputs) for b in (TritonBackend, NumpyBackend)]
    seen, expected = ({k: np.isnan(v) for k, v in run.items()} for run in runs)
    assert [k for k in expected if not np.array_equal(seen[k], expected[k])] == []


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_op_without_lowering_is_refused_when_sources_are_made(name):
    sample, made = OPS[name].samples[0], Builder("main")
    operands = tuple(
        made.add("input", (), {"name": f"x{i}", "kind": "float"}, (kind,))
        for i, kind in enumerate(sample.inputs)
    )
    program = Program("Refused", (made.finish([("y", made.add(name, operands, sample.attrs))]),))
    with pytest.raises(NoLowering, match="triton"):
        TritonBackend().emit(program)
