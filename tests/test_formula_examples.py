"""Examples without a public class, against small PyTorch models written here from their formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundled import example
from references import EPSILON, batch, distance
from torch.nn import functional as F

import archc
from archc.compiler.cost import cost
from archc.dsl.diagnostics import ArchError

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


def gpt4(w: Weights, ids: torch.Tensor, kept: torch.Tensor, used: int) -> torch.Tensor:
    """Learned positions; h = x + attention(norm(x)), then h + experts(norm(h)); a tied head."""
    x = w["tokens.w"][ids] + w["positions.w"][: ids.shape[1]]
    for i in range(2):
        at = f"layers[{i}]."
        n = norm(x, w[f"{at}norm1.gain"])
        q, k, v = (split(linear(n, w[f"{at}attention.{part}.w"]), HEADS) for part in "qkv")
        x = x + linear(mixed(q, k, v, kept), w[f"{at}attention.o.w"])
        n = norm(x, w[f"{at}norm2.gain"]).flatten(0, 1)
        parts = (w[f"{at}mixture.{part}"] for part in ("router", "up", "down"))
        x = x + torch.stack(list(routed(n, *parts, used))).view_as(x)
    return norm(x, w["final_norm.gain"]) @ w["tokens.w"].T


def routed(
    tokens: torch.Tensor, router: torch.Tensor, up: torch.Tensor, down: torch.Tensor, used: int
) -> Iterator[torch.Tensor]:
    """Token by token, the best experts and no others, their probabilities made to sum to one."""
    for token in tokens:
        probability, chosen = (router @ token).softmax(0).topk(used)
        outputs = torch.stack([down[e] @ F.gelu(up[e] @ token) for e in chosen])
        yield probability / probability.sum() @ outputs


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
    "gpt4": Case("gpt4_speculated", lambda *given: gpt4(*given, 2)),
    "gpt4-three-of-five": Case(
        "gpt4_speculated", lambda *given: gpt4(*given, 3), {"experts": 5, "used": 3}
    ),
    "gpt4-one-of-four": Case("gpt4_speculated", lambda *given: gpt4(*given, 1), {"used": 1}),
}


def loaded(case: Case) -> archc.api.Model:
    path = EXAMPLES / f"{case.example}.arch"
    return archc.load(path, preset="tiny", eps=EPSILON, **case.settings).with_random_weights(5)


RUNS = [
    ("numpy", "f64", 0, 1e-12),
    ("numpy", "f64", 1, 1e-12),
    ("numpy", "f32", 1, 1e-5),
    ("torch", "f32", 1, 1e-5),
    ("triton", "f32", 1, 1e-5),
]
COMPARED = [
    (name, *run)
    for name, case in CASES.items()
    for run in RUNS
    if (case.example, run[0]) != ("gpt4_speculated", "triton")  # refused, see below
]


@pytest.mark.parametrize(("name", "backend", "dtype", "level", "bound"), COMPARED)
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


def test_triton_refuses_the_choice_of_experts() -> None:
    with pytest.raises(ArchError) as caught:
        loaded(CASES["gpt4"]).compile("triton")
    assert caught.value.id == "no-lowering"
    assert "the triton backend cannot express `topk`" in str(caught.value)
    assert "gpt4_speculated.arch:" in str(caught.value)


SKETCH = {"attention": 72_477_573_120, "experts": 2_319_282_339_840, "router": 23_592_960}
PARTS = {
    "attention": ("q.w", "k.w", "v.w", "o.w"),
    "experts": ("up", "down"),
    "router": ("router",),
}
ON_TOP = ("tokens.w", "positions.w", "norm1.gain", "norm2.gain", "final_norm.gain")


def test_the_matrices_of_the_gpt4_sketch_add_up() -> None:
    """Every weight is in one part of the sketch's formula, or is one that the formula leaves out."""
    report = cost(example("gpt4_speculated", "gpt4_speculated"))
    totals = {row.path: row.total for row in report.weights}
    on_top = sum(size for path, size in totals.items() if path.endswith(ON_TOP))
    counted = {
        part: sum(size for path, size in totals.items() if path.endswith(ends))
        for part, ends in PARTS.items()
    }
    assert counted == SKETCH
    assert sum(counted.values()) == report.parameters - on_top == 2_391_783_505_920
    assert on_top == 100_277 * 12_288 + 32_768 * 12_288 + 241 * 12_288
    served = counted["attention"] + counted["experts"] * 2 // 16 + counted["router"]
    assert served == 362_411_458_560
