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
        parts = (w[f"{at}mixture.{part}.w"] for part in ("router", "f.in", "f.out"))
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


def rms(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, gain.shape, gain, eps=EPSILON)


def causal(scores: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The softmax of [b, heads, s, t] over the keys up to each query that are no padding."""
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril() & kept[:, None, None, :]
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def grok1(w: Weights, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Norms around both sublayers, 2 tanh(0.35 q k / 2), two experts by their own probabilities."""
    x = w["embed.w"][ids] * 3.0
    for i in range(3):
        at = f"layers[{i}]."
        n = rms(x, w[f"{at}norm1.gain"])
        q, k, v = (
            split(linear(n, w[f"{at}attention.{part}.w"]), heads)
            for part, heads in zip("qkv", (HEADS, 2, 2), strict=True)
        )
        q, k = rotated(q, 1e4), rotated(k, 1e4).repeat_interleave(2, 1)
        p = causal(2.0 * torch.tanh(0.35 * q @ k.mT / 2.0), kept)
        y = (p @ v.repeat_interleave(2, 1)).transpose(1, 2).flatten(2)
        x = x + rms(linear(y, w[f"{at}attention.o.w"]), w[f"{at}attention_norm.gain"])
        n = rms(x, w[f"{at}norm2.gain"])
        gate, up, down = (w[f"{at}mixture.f.{part}.w"] for part in ("gate", "up", "down"))
        rows = []
        for token in n.flatten(0, 1):
            probability, chosen = (w[f"{at}mixture.router.w"] @ token).softmax(0).topk(2)
            hidden = F.gelu(gate[chosen] @ token, approximate="tanh") * (up[chosen] @ token)
            rows.append(torch.einsum("k,kdh,kh->d", probability, down[chosen], hidden))
        x = x + rms(torch.stack(rows).view_as(x), w[f"{at}mixture_norm.gain"])
    return rms(x, w["final_norm.gain"]) @ w["embed.w"].T * 0.5773502691896257


def glam(
    w: Weights, ids: torch.Tensor, kept: torch.Tensor, capacity: int | None = None
) -> torch.Tensor:
    """Experts in layers 0 and 2, a gated GELU in layer 1, T5's buckets of the past in each."""
    x = w["embed.w"][ids]
    steps = torch.arange(ids.shape[1])
    past = (steps[:, None] - steps).clamp(0)
    far = 4 + (torch.log(past.clamp(1) / 4) / np.log(16 / 4) * 4).long()
    bucket = torch.where(past < 4, past, far.clamp(max=7))
    for i in range(3):
        at = f"layers[{i}]."
        n = rms(x, w[f"{at}norm1.gain"])
        q, k, v = (split(linear(n, w[f"{at}attention.{part}.w"]), HEADS) for part in "qkv")
        p = causal(q @ k.mT + w[f"{at}past.table"][bucket].permute(2, 0, 1), kept)
        x = x + linear((p @ v).transpose(1, 2).flatten(2), w[f"{at}attention.o.w"])
        n = rms(x, w[f"{at}norm2.gain"])
        if i % 2 == 0:
            parts = (w[f"{at}mixture.{part}.w"] for part in ("router", "f.in", "f.out"))
            x = x + gshard(n, kept, *parts, capacity)
        else:
            gate = F.gelu(linear(n, w[f"{at}ffn.gate.w"]), approximate="tanh")
            x = x + linear(gate * linear(n, w[f"{at}ffn.up.w"]), w[f"{at}ffn.down.w"])
    return rms(x, w["final_norm.gain"]) @ w["embed.w"].T / 8


def prefix_lm(
    w: Weights, ids: torch.Tensor, kept: torch.Tensor, lengths: tuple[int, ...]
) -> torch.Tensor:
    """T5's layers and buckets on both sides; slots of a prompt see it all, later ones what is past."""
    x = w["embed.w"][ids]
    steps = torch.arange(ids.shape[1])
    gap = steps - steps[:, None]
    far = 2 + (torch.log(gap.abs().clamp(1) / 2) / np.log(16 / 2) * 2).long()
    bucket = torch.where(gap.abs() < 2, gap.abs(), far.clamp(max=3)) + 4 * (gap > 0)
    bias = w["distance.table"][bucket].permute(2, 0, 1)
    shown = (gap <= 0) | (steps < torch.tensor(lengths)[:, None, None])
    seen = (shown & kept[:, None, :])[:, None]
    for i in range(3):
        at = f"layers[{i}]."
        n = rms(x, w[f"{at}norm1.gain"])
        q, k, v = (split(linear(n, w[f"{at}attention.{part}.w"]), HEADS) for part in "qkv")
        p = (q @ k.mT + bias).masked_fill(~seen, -torch.inf).softmax(-1)
        x = x + linear((p @ v).transpose(1, 2).flatten(2), w[f"{at}attention.o.w"])
        n = rms(x, w[f"{at}norm2.gain"])
        gate = F.gelu(linear(n, w[f"{at}ffn.gate.w"]), approximate="tanh")
        x = x + linear(gate * linear(n, w[f"{at}ffn.up.w"]), w[f"{at}ffn.down.w"])
    return rms(x, w["final_norm.gain"]) @ w["embed.w"].T / 8


def gshard(
    x: torch.Tensor,
    kept: torch.Tensor,
    router: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    capacity: int | None,
) -> torch.Tensor:
    """Row by row: all first choices in the order of tokens, then all second ones, while there is room."""
    out = torch.zeros_like(x)
    for b in range(len(x)):
        best, chosen = (x[b] @ router.T).softmax(-1).topk(2)
        room = [len(x[b]) if capacity is None else capacity] * len(router)
        for choice in range(2):
            for t in torch.nonzero(kept[b])[:, 0].tolist():
                e = int(chosen[t, choice])
                room[e] -= 1
                if room[e] >= 0:
                    share = best[t, choice] / best[t].sum()
                    out[b, t] += share * (down[e] @ F.relu(up[e] @ x[b, t]))
    return out


@dataclass(frozen=True)
class Case:
    example: str
    formula: Callable[[Weights, torch.Tensor, torch.Tensor], torch.Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)  # inputs beside ids and mask


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
    "grok1": Case("grok1", grok1),
    "glam": Case("glam", glam),
    "prefix-lm": Case(
        "prefix_lm",
        lambda *given: prefix_lm(*given, (4, 7)),
        others={"prefix_length": np.array([4, 7])},
    ),
    "prefix-lm-without-one": Case("prefix_lm", lambda *given: prefix_lm(*given, (0, 0))),
    "glam-full-experts": Case("glam", lambda *given: glam(*given, 4), {"capacity": 4}),
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
COMPARED = [(name, *run) for name in CASES for run in RUNS]


@pytest.mark.parametrize(("name", "backend", "dtype", "level", "bound"), COMPARED)
def test_agrees_with_the_formula(
    name: str, backend: str, dtype: str, level: int, bound: float
) -> None:
    case, inputs = CASES[name], batch(CASES[name].example)
    model = loaded(case)
    seen = inputs["attention_mask"].astype(bool)
    weights = {path: matrix(value) for path, value in model.weights.items()}
    expected = case.formula(weights, torch.from_numpy(inputs["input_ids"]), torch.from_numpy(seen))
    found = model.compile(backend, dtype=dtype, level=level)(**inputs, **case.others)["logits"]
    assert distance(found[seen], expected.numpy()[seen]) <= bound


def matrix(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(value, np.float64))


SKETCH = {"attention": 72_477_573_120, "experts": 2_319_282_339_840, "router": 23_592_960}
PARTS = {
    "attention": ("q.w", "k.w", "v.w", "o.w"),
    "experts": ("f.in.w", "f.out.w"),
    "router": ("router.w",),
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
    assert report.active - on_top == 362_411_458_560


def test_the_matrices_of_glam_add_up() -> None:
    """Its published 1.162 trillion are its matrices; routers, gains and tables of buckets are the rest."""
    report = cost(example("glam", "glam_64b_64e"))
    small = sum(
        row.total for row in report.weights if row.path.endswith(("gain", "router.w", "table"))
    )
    assert report.parameters - small == 1_161_738_321_920
    assert report.active - small == 96_586_432_512
    assert small == 32 * 64 * 8192 + 129 * 8192 + 64 * 32 * 128


def test_a_model_that_drops_later_choices_does_not_decode() -> None:
    assert example("glam", "tiny").decode == "s"
    full = archc.load(EXAMPLES / "glam.arch", preset="tiny", capacity=4)
    assert not full.program.decode
