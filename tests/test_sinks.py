"""Attention sinks: a class of transformers, the formula by hand, one tiled kernel, decoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import continued, opened
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

from archc.api import Model
from archc.compiler.passes import optimise

STD = """use std
model M {
  d = 32; heads = 4; kv_heads = 2
  input x: float[b, s, d]
  input keep: bool[b, s] = true
  time s: valid = keep
  decode s
  output y[b, s, d] = x |> attention(heads, kv_heads, mask = sliding(6), sinks = true, bias = true) as a
}
"""
# The same with the sink as one more key, whose weight is cut off.
BY_HAND = """use std
block sunk(heads, kv_heads, e = divide(d, heads))(x[..., s, d]) -> [..., s, d] {
  weight sink[heads] = normal
  q = x |> linear(g: kv_heads, r: divide(heads, kv_heads), e, bias = true)
  k = (x |> linear(g: kv_heads, e, bias = true))[s -> t]
  v = (x |> linear(g: kv_heads, e, bias = true))[s -> t]
  score[..., heads, s, t] = where(sliding(6)(s, t), f32(dot(q, k, e)[(g, r) -> heads]) * e ** -0.5, -inf)
  joined = concat(score[t -> all], f32(sink)[all: new], all)
  p = softmax(joined, all)[all: 0..s][all -> t]
  y[..., s, g, r, e] = dot(float(p)[heads -> (g: kv_heads, r)], v, t)
  return y[(g, r, e) -> h] |> linear(d, bias = true) as o
}
model M {
  d = 32; heads = 4; kv_heads = 2
  input x: float[b, s, d]
  input keep: bool[b, s] = true
  time s: valid = keep
  output y[b, s, d] = x |> sunk(heads, kv_heads) as a
}
"""


D, LENGTH = 32, 9
PARTS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}


def given(length: int = LENGTH) -> dict[str, np.ndarray]:
    x = np.random.default_rng(length).standard_normal((2, length, D)).astype(np.float32)
    keep = np.ones((2, length), bool)
    keep[1, : length // 3] = False
    return {"x": x, "keep": keep}


@pytest.fixture(scope="module")
def std() -> Model:
    return opened(STD, seed=3)


@pytest.fixture(scope="module")
def reference(std: Model) -> GptOssAttention:
    """The class with these weights, in float64."""
    config = GptOssConfig(
        hidden_size=D, num_attention_heads=4, num_key_value_heads=2, head_dim=D // 4,
        layer_types=["full_attention"], num_hidden_layers=1, attn_implementation="eager",
    )  # fmt: skip
    theirs, held = GptOssAttention(config, 0).double(), std.weights
    with torch.no_grad():
        for name, part in PARTS.items():
            linear = getattr(theirs, part)
            for at, parameter in (("w", linear.weight), ("b", linear.bias)):
                array = torch.from_numpy(np.asarray(held[f"a.{name}.{at}"], np.float64))
                parameter.copy_(array.reshape(parameter.shape))
        theirs.sinks.copy_(torch.from_numpy(np.asarray(held["a.sink"], np.float64)))
    return theirs


def attended(theirs: GptOssAttention, inputs: dict[str, np.ndarray]) -> torch.Tensor:
    """What it gives, unrotated, with a window and without hidden keys."""
    gap = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    seen = (gap >= 0) & (gap < 6) & inputs["keep"][:, None, None]
    hidden = torch.where(torch.from_numpy(seen), 0.0, -torch.inf).double()
    angles = torch.ones(2, LENGTH, D // 8).double(), torch.zeros(2, LENGTH, D // 8).double()
    return theirs(torch.from_numpy(inputs["x"]).double(), angles, hidden)[0]


@pytest.fixture(scope="module")
def expected(reference: GptOssAttention) -> np.ndarray:
    with torch.no_grad():
        return attended(reference, given()).numpy()


@pytest.mark.parametrize("text", [STD, BY_HAND], ids=["std", "by hand"])
@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_sinks_are_those_of_gpt_oss(
    text: str, backend: str, std: Model, expected: np.ndarray
) -> None:
    model, inputs = opened(text), given()
    model = model.with_weights({path: std.weights[path] for path in model.weights})
    y = model.compile(backend)(**inputs)["y"]
    seen = inputs["keep"]
    np.testing.assert_allclose(y[seen], expected[seen], atol=2e-6)


@pytest.mark.parametrize("text", [STD, BY_HAND], ids=["std", "by hand"])
def test_an_attention_with_sinks_is_tiled(text: str) -> None:
    program = optimise(opened(text).program).program
    ops = [node.op for node in program.main.nodes]
    assert ops.count("attend") == 1
    assert not {"softmax", "logsumexp"} & {*ops}


def test_a_sink_is_in_every_step(std: Model, expected: np.ndarray) -> None:
    inputs = given()
    y, seen = continued(std.decoder("torch"), inputs, (1,) * LENGTH), inputs["keep"]
    np.testing.assert_allclose(y[seen], expected[seen], atol=2e-6)


@pytest.mark.parametrize(
    ("backend", "dtype"), [("numpy", "f64"), ("torch", "f64"), ("triton", "f32")]
)
def test_gradients_are_those_of_autograd(
    backend: str, dtype: str, std: Model, reference: GptOssAttention
) -> None:
    inputs = given() | {"keep": np.ones((2, LENGTH), bool)}
    text = STD.rstrip("}\n") + "\n  loss = sum(y * y, b, s, d)\n}\n"
    model = opened(text, loss=True).with_weights(std.weights)
    _, found = model.gradient(backend, dtype=dtype)(**inputs)
    reference.zero_grad()
    attended(reference, inputs).square().sum().backward()
    wanted = {f"a.{n}.w": getattr(reference, part).weight.grad for n, part in PARTS.items()}
    for path, gradient in {**wanted, "a.sink": reference.sinks.grad}.items():
        scale = float(gradient.abs().max())
        ours = found[path].reshape(gradient.shape)
        np.testing.assert_allclose(ours, gradient, atol=scale * (1e-5 if dtype == "f32" else 1e-11))
