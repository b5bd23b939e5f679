"""Examples without a public class, against small PyTorch models written here from their formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from references import EPSILON, batch, distance
from torch.nn import functional as F

import archc

EXAMPLES = Path(__file__).parent.parent / "examples"
HEADS = 4
Weights = Mapping[str, torch.Tensor]


def norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, gain.shape, gain, eps=EPSILON)


def linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The rows of a weight are all its axes but the last, which is that of x."""
    return x @ w.flatten(0, -2).T


def split(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[b, s, heads * e] as [b, heads, s, e]."""
    return rows.unflatten(-1, (heads, -1)).transpose(1, 2)


def rotated(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Each pair (j, j + n/2) of a head, as a complex number, turned by position * theta^(-2j/n)."""
    length, n = x.shape[-2:]
    steps = torch.arange(0, n, 2, dtype=x.dtype) / n
    angles = torch.arange(length, dtype=x.dtype)[:, None] * theta**-steps
    z = torch.complex(x[..., : n // 2], x[..., n // 2 :]) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.cat((z.real, z.imag), dim=-1)


def mixed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Causal attention over keys that are no padding, heads joined."""
    length = q.shape[-2]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & kept[:, None, None, :]
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def palm(w: Weights, ids: torch.Tensor, kept: torch.Tensor, theta: float) -> torch.Tensor:
    """x + attention(n) + W2(silu(W n) * V n) with n = norm(x), one key-value head, a tied head."""
    x = w["embed.w"][ids]
    for i in range(3):
        at = f"layers[{i}]."
        n = norm(x, w[f"{at}norm.gain"])
        q = rotated(split(linear(n, w[f"{at}attention.q.w"]), HEADS), theta)
        k = rotated(split(linear(n, w[f"{at}attention.k.w"]), 1), theta)
        v = split(linear(n, w[f"{at}attention.v.w"]), 1)
        hidden = F.silu(linear(n, w[f"{at}ffn.gate.w"])) * (linear(n, w[f"{at}ffn.up.w"]))
        x = (
            x
            + linear(mixed(q, k, v, kept), w[f"{at}attention.o.w"])
            + linear(hidden, w[f"{at}ffn.down.w"])
        )
    return norm(x, w["final_norm.gain"]) @ w["embed.w"].T


@dataclass(frozen=True)
class Case:
    example: str
    formula: Callable[[Weights, torch.Tensor, torch.Tensor], torch.Tensor]
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    "palm": Case("palm", lambda *given: palm(*given, 1e4) / 8),
    "palm-unscaled": Case(
        "palm", lambda *given: palm(*given, 50.0), {"logit_scale": 1.0, "theta": 50.0}
    ),
}


def loaded(case: Case) -> archc.api.Model:
    path = EXAMPLES / f"{case.example}.arch"
    return archc.load(path, preset="tiny", eps=EPSILON, **case.settings).with_random_weights(5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("backend", "dtype", "level", "bound"),
    [
        ("numpy", "f64", 0, 1e-12),
        ("numpy", "f64", 1, 1e-12),
        ("numpy", "f32", 1, 1e-5),
        ("torch", "f32", 1, 1e-5),
        ("triton", "f32", 1, 1e-5),
    ],
)
def test_agrees_with_the_formula(
    name: str, backend: str, dtype: str, level: int, bound: float
) -> None:
    case, inputs = CASES[name], batch(CASES[name].example)
    model = loaded(case)
    seen = inputs["attention_mask"].astype(bool)
    weights = {path: matrix(value) for path, value in model.weights.items()}
    expected = case.formula(weights, torch.from_numpy(inputs["input_ids"]), torch.from_numpy(seen))
    found = model.compile(backend, dtype=dtype, level=level)(**inputs)["logits"]
    assert distance(found[seen], expected.numpy()[seen]) <= bound


def matrix(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(value, np.float64))
