"""The examples against `transformers`, with the same weights, on every backend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from references import REFERENCES, Reference, batch, distance, seen
from transformers.models.deberta_v2 import modeling_deberta_v2
from transformers.models.llama import modeling_llama

import archc

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="session", params=REFERENCES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A reference model, its inputs and outputs, and the same checkpoint loaded by archc."""
    reference: Reference = REFERENCES[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    model = reference.build(directory)
    inputs = reference.inputs()
    return SimpleNamespace(
        reference=reference,
        inputs=inputs,
        f32=reference.run(model, inputs),
        f64=reference.run(model.double(), inputs),
        seen=seen(inputs),
        model=archc.load(EXAMPLES / f"{reference.example}.arch", weights=directory),
    )


def output_of(case: SimpleNamespace, backend: str, **options: object) -> np.ndarray:
    compiled = case.model.compile(backend, inputs=case.inputs, **options)
    return compiled(**case.inputs)[case.reference.output]


def apart(case: SimpleNamespace, value: np.ndarray, reference: np.ndarray) -> float:
    """The distance over what is not padding; a pooled output and an image have none."""
    if case.seen is None or value.ndim == 2:
        return distance(value, reference)
    return distance(value[case.seen], reference[case.seen])


@pytest.mark.parametrize("level", [0, 1])
def test_numpy_float64_agrees_with_the_float64_reference(case, level):
    """To 1e-6: the reference keeps float32 islands in norms, rotary angles and softmax."""
    value = output_of(case, "numpy", dtype="f64", level=level)
    assert apart(case, value, case.f64) <= 1e-6


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_float32_agrees_with_the_float32_reference(case, backend, level):
    value = output_of(case, backend, dtype="f32", level=level)
    assert value.dtype == np.float32
    assert apart(case, value, case.f32) <= 1e-5


def test_triton_float32_agrees_with_the_float32_reference(case):
    value = output_of(case, "triton", dtype="f32")
    assert apart(case, value, case.f32) <= 1e-5


@contextlib.contextmanager
def without_float32_islands(theta: float, head_dim: int) -> Iterator[None]:
    """Llama's norm and rotary angles in the dtype of the model instead of float32."""

    def norm(self, hidden):
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden * torch.rsqrt(variance + self.variance_epsilon))

    def rotary(self, x, position_ids):
        steps = torch.arange(0, head_dim, 2, dtype=x.dtype) / head_dim
        angles = position_ids[..., None].to(x.dtype) * theta**-steps
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    with (
        mock.patch.object(modeling_llama.LlamaRMSNorm, "forward", norm),
        mock.patch.object(modeling_llama.LlamaRotaryEmbedding, "forward", rotary),
    ):
        yield


def test_rmsnorm_and_rotary_agree_to_rounding_without_islands(tmp_path):
    reference = REFERENCES["llama-grouped"]
    model, inputs = reference.build(tmp_path).double(), batch("llama")
    with without_float32_islands(10000.0, 16):
        expected = reference.run(model, inputs)
    compiled = archc.load(EXAMPLES / "llama.arch", weights=tmp_path).compile(dtype="f64", level=0)
    seen = inputs["attention_mask"].astype(bool)
    assert distance(compiled(**inputs)["logits"][seen], expected[seen]) <= 1e-12


@pytest.mark.parametrize("name", ["gpt2", "bert-mlm"])
def test_layernorm_agrees_to_rounding(name, tmp_path):
    """These classes have no float32 islands."""
    reference = REFERENCES[name]
    model, inputs = reference.build(tmp_path).double(), reference.inputs()
    expected = reference.run(model, inputs)
    loaded = archc.load(EXAMPLES / f"{reference.example}.arch", weights=tmp_path)
    value = loaded.compile(dtype="f64", level=0)(**inputs)["logits"]
    seen = inputs["attention_mask"].astype(bool)
    assert distance(value[seen], expected[seen]) <= 1e-12


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize(("span", "far"), [(256, 512), (32, 128), (8, 40), (7, 11)])
def test_log_buckets_at_every_distance(backend, span, far, tmp_path):
    """DeBERTa's rows, past the farthest distance, against the reference's own function."""
    text = (EXAMPLES / "deberta.arch").read_text()
    definition = text[text.index("fn relative_row") : text.index("block disentangled")]
    model = tmp_path / "rows.arch"
    model.write_text(
        f"""use std
        {definition}
        model Rows {{
          input x: float[b, s]
          z = x[s -> t]
          row = relative_row({span}, {far}, true)
          output y[s, t] = row(s, t)
        }}"""
    )
    length = far + far // 2
    steps = torch.arange(length)
    distances = steps[:, None] - steps[None, :]
    bucket = modeling_deberta_v2.make_log_bucket_position(distances, span, far)
    expected = (bucket.long() + span).clamp(0, 2 * span - 1).numpy()
    found = archc.load(model, weights={}).compile(backend)(x=np.zeros((1, length)))["y"]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", ["gpt2", "deberta", "deberta-v2-conv"])
@pytest.mark.parametrize("padding_side", ["left", "inner"])
def test_padding_anywhere(padding_side, name, tmp_path):
    """Positions count slots in these classes, so padding only hides keys."""
    reference = REFERENCES[name]
    model, inputs = (
        reference.build(tmp_path).double(),
        batch(reference.example, tokens=4, padding=0),
    )
    inputs["attention_mask"][1, :2] = [0, 1] if padding_side == "left" else [1, 0]
    positions = np.arange(4)[None].repeat(2, 0)
    expected = reference.run(model, inputs | {"position_ids": positions})
    loaded = archc.load(EXAMPLES / f"{reference.example}.arch", weights=tmp_path)
    value = loaded.compile(dtype="f64")(**inputs)["logits"]
    seen = inputs["attention_mask"].astype(bool)
    assert distance(value[seen], expected[seen]) <= 1e-6
