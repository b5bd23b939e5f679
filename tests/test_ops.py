"""Every op of the table, swept over its samples in every model dtype."""

from __future__ import annotations

import math

import numpy as np
import pytest
from archc.compiler.ir.graph import Attrs
from archc.compiler.ops import OPS, Call, Precision, Sample, evaluate, infer
from archc.compiler.ops.registry import SAMPLE_SIZES

MODELS = ("f64", "f32", "bf16", "f16")
CASES = [
    pytest.param(name, sample, id=f"{name}-{i}")
    for name, op in OPS.items()
    if op.evaluate is not None
    for i, sample in enumerate(op.samples)
]


def operands(sample: Sample, precision: Precision, seed: int = 0) -> list[np.ndarray]:
    """Random arrays of the sample's types within its domain."""
    rng = np.random.default_rng(seed)
    low, high = sample.domain
    arrays = []
    for t in sample.inputs:
        shape = t.shape(SAMPLE_SIZES)
        values = rng.uniform(low, high, shape)
        if t.dtype == "int":
            values = rng.integers(math.ceil(low), math.floor(high), shape, endpoint=True)
        if t.dtype == "bool":
            values = values > (low + high) / 2
        arrays.append(np.asarray(values).astype(precision.storage(t.dtype)))
    return arrays


def call_of(name: str, sample: Sample, precision: Precision) -> Call:
    attrs = Attrs(sample.attrs)
    return Call(attrs, sample.inputs, infer(name, attrs, sample.inputs), SAMPLE_SIZES, precision)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "sample"), CASES)
def test_result_has_the_inferred_type(name, sample, model):
    precision = Precision(model)
    call = call_of(name, sample, precision)
    results = evaluate(name, call, operands(sample, precision))
    assert len(results) == len(call.outputs)
    for result, type_ in zip(results, call.outputs, strict=True):
        assert result.shape == type_.shape(SAMPLE_SIZES)
        if OPS[name].time != "S":
            assert result.dtype == precision.storage(type_.dtype)
