"""The masks of std and attention under them, against truth tables and formulas in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import pytest
from checks import only, sites
from references import distance

from archc.api import Model
from archc.compiler.elaborate import module_of, the_model
from archc.compiler.passes import optimise
from archc.dsl import Source, parse
from archc.dsl.diagnostics import ArchError, Diagnostics

Arrays = Mapping[str, np.ndarray]
B, S, D, HEADS, KV_HEADS = 2, 9, 8, 4, 2
I, J = np.arange(S)[:, None], np.arange(S)[None]
PRIME, SEED = 46337, 7

LENGTH = np.array([4, 0])
DOC = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2], [5, 5, 4, 4, 4, 4, 4, 5, 5]])


def hashed(seed: int, i: int, j: int) -> int:
    """The hash of `random` in Python's unbounded integers; every step fits 32 bits."""

    def cubed(x: int) -> int:
        assert 0 <= x < PRIME and x * x < 2**31 and x * x % PRIME * x < 2**31
        return x**3 % PRIME

    start = cubed((i + seed) % PRIME)
    turn = cubed((start + i // PRIME + (seed + seed // PRIME)) % PRIME)
    first = cubed((start + j) % PRIME)
    return cubed((first + j // PRIME + turn) % PRIME)


def chance(keys: int, of: int) -> np.ndarray:
    return np.array([[hashed(SEED, i, j) % of < keys for j in range(S)] for i in range(S)])


# mask -> [s, t] or [b, s, t], what a query sees
MASKS: dict[str, np.ndarray] = {
    "full": J >= 0 * I,
    "causal": J <= I,
    "sliding(3)": (J <= I) & (J > I - 3),
    "window(2, 1)": (J >= I - 2) & (J <= I + 1),
    "window(3, 3)": abs(I - J) <= 3,
    "local(4)": I // 4 == J // 4,
    "(s, t) -> local(4)(s, t) and causal(s, t)": (I // 4 == J // 4) & (J <= I),
    f"random({SEED}, 2, of = 5)": chance(2, 5),
    f"(s, t) -> random({SEED}, 1, of = 3)(s, t) and causal(s, t)": chance(1, 3) & (J <= I),
    "(s, t) -> prefix(s, t, length)": (J <= I) | (J < LENGTH[:, None, None]),
    "(s, t) -> doc == doc[s -> t]": DOC[:, :, None] == DOC[:, None, :],
    "(s, t) -> slot(t) + 2 < slot(s)": J + 2 < I,  # three rows see nothing
}
PADDING: dict[str, np.ndarray] = {
    "none": np.ones(S, bool),
    "left": np.arange(S) >= 3,
    "right": np.arange(S) < 6,
    "inner": ~np.isin(np.arange(S), (2, 3, 6)),
}
HEAD = f"""use std
model M {{
  d = {D}; heads = {HEADS}
  input x: float[b, s, d]
  input length: int[b]
  input doc: int[b, s]
  input keep: bool[b, s]
"""
RUNS = [("numpy", "f64", 0), ("numpy", "f64", 1), ("torch", "f32", 1), ("triton", "f32", 1)]
TOLERANCE = {"f64": 1e-12, "f32": 1e-5}


def model(*lines: str) -> Model:
    text = HEAD + "\n".join(lines) + "\n}\n"
    module = module_of(parse(Source("model.arch", text)))
    return Model(module, the_model(module), {}).with_random_weights(0)


def outputs(block: str, masks: dict[str, np.ndarray]) -> list[str]:
    """One output for each mask; all blocks have the same weights' names but their own weights."""
    return [
        f"output y{n}[b, s, d] = x |> {block.replace('MASK', mask)} as y{n}"
        for n, mask in enumerate(masks)
    ]


def inputs(padding: str) -> dict[str, np.ndarray]:
    """The first row is whole, the second padded."""
    x = np.random.default_rng(3).standard_normal((B, S, D))
    keep = np.stack([PADDING["none"], PADDING[padding]])
    return {"x": x, "length": LENGTH, "doc": DOC, "keep": keep}


# ------------------------------------------------------------------ formulas, in float64


def projected(weights: Arrays, name: str, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """q, k, v as [b, heads, s, e]; a key-value head serves neighbouring query heads."""
    e = D // HEADS

    def split(part: str, heads: int) -> np.ndarray:
        w = weights[f"{name}.{part}.w"].astype(np.float64).reshape(heads * e, D)
        return (x @ w.T).reshape(B, S, heads, e).transpose(0, 2, 1, 3)

    k, v = (np.repeat(split(part, KV_HEADS), HEADS // KV_HEADS, 1) for part in "kv")
    return split("q", HEADS), k, v


def joined(weights: Arrays, name: str, y: np.ndarray) -> np.ndarray:
    return y.transpose(0, 2, 1, 3).reshape(B, S, D) @ weights[f"{name}.o.w"].astype(np.float64).T


def softmax_attention(
    weights: Arrays, name: str, x: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    q, k, v = projected(weights, name, x)
    a = q @ k.swapaxes(2, 3) * (D // HEADS) ** -0.5
    p = np.exp(a - a.max(-1, keepdims=True)) * seen[:, None]
    total = p.sum(-1, keepdims=True)
    return joined(weights, name, p / np.where(total == 0, 1, total) @ v)


def linear_attention(
    weights: Arrays, name: str, x: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    """One query at a time, as sums over the keys it sees."""
    q, k, v = projected(weights, name, x)
    q, k = (np.where(z > 0, z + 1, np.exp(z)) for z in (q, k))
    y = np.zeros_like(v)
    for at in np.argwhere(seen.any(-1)):
        row, i = at
        shown = seen[row, i]
        for h in range(HEADS):
            state = sum(np.outer(k[row, h, j], v[row, h, j]) for j in np.flatnonzero(shown))
            y[row, h, i] = q[row, h, i] @ state / (q[row, h, i] @ k[row, h, shown].sum(0))
    return joined(weights, name, y)


Formula = Callable[[Arrays, str, np.ndarray, np.ndarray], np.ndarray]
BLOCKS: dict[str, tuple[str, Formula]] = {
    "attention": (f"attention(heads, {KV_HEADS}, mask = MASK)", softmax_attention),
    "linear_attention": (f"linear_attention(heads, {KV_HEADS}, mask = MASK)", linear_attention),
}


@cache
def compiled(block: str, backend: str, dtype: str, level: int):
    masks = ({"none": MASKS["full"]} if block == "linear_attention" else {}) | MASKS
    made = model("time s: valid = keep", *outputs(BLOCKS[block][0], masks))
    return made.weights, masks, made.compile(backend, dtype=dtype, level=level)


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize(("backend", "dtype", "level"), RUNS)
@pytest.mark.parametrize("block", BLOCKS)
def test_attention_under_every_mask(
    block: str, backend: str, dtype: str, level: int, padding: str
) -> None:
    weights, masks, run = compiled(block, backend, dtype, level)
    given = inputs(padding)
    got, keep = run(**given), given["keep"]
    for n, seen in enumerate(masks.values()):
        visible = np.broadcast_to(seen, (B, S, S)) & keep[:, None, :]
        expected = BLOCKS[block][1](weights, f"y{n}", given["x"], visible)
        value = got[f"y{n}"]
        assert distance(value[keep], expected[keep]) <= TOLERANCE[dtype], list(masks)[n]
        blind = keep & ~visible.any(-1)
        assert not value[blind].any()
    assert blind.any()  # the last mask has such rows


@pytest.mark.parametrize(("backend", "dtype", "level"), RUNS)
def test_documents(backend: str, dtype: str, level: int) -> None:
    """Hidden by the timeline alone in a softmax and under a mask; by `documents` where asked for."""
    lines = [
        "time s: segment = doc, valid = keep",
        "output y0[b, s, d] = x |> attention(heads, 2) as y0",
        "output y1[b, s, d] = x |> attention(heads, 2, mask = documents) as y1",
        "output y2[b, s, d] = x |> linear_attention(heads, 2, mask = full) as y2",
        "output y3[b, s, d] = x |> linear_attention(heads, 2, mask = documents) as y3",
    ]
    made, given = model(*lines), inputs("inner")
    got = made.compile(backend, dtype=dtype, level=level)(**given)
    seen = (DOC[:, :, None] == DOC[:, None, :]) & given["keep"][:, None, :]
    for n, formula in enumerate([softmax_attention] * 2 + [linear_attention] * 2):
        expected = formula(made.weights, f"y{n}", given["x"], seen)
        keep = given["keep"]
        assert distance(got[f"y{n}"][keep], expected[keep]) <= TOLERANCE[dtype], lines[n + 1]


# ------------------------------------------------------------------------ random


PATTERNS = {(7, 2, 5): None, (10**9 + 7, 3, 64): None}  # seed, keys, of


def patterns(size: int, backend: str, dtype: str) -> list[np.ndarray]:
    lines = [
        f"output r{n}[s, t] = where(random({seed}, {keys}, of = {of})(s, t) and x == x, 1, 0)"
        for n, (seed, keys, of) in enumerate(PATTERNS)
    ]
    text = "use std\nmodel M {\n  input x: float[s]\n  z = x[s -> t]\n" + "\n".join(lines) + "\n}"
    module = module_of(parse(Source("model.arch", text)))
    made = Model(module, the_model(module), {}).with_random_weights(0)
    got = made.compile(backend, dtype=dtype)(x=np.zeros(size, np.float32))
    return [got[f"r{n}"] for n in range(len(PATTERNS))]


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *[("numpy", d) for d in ("f64", "f32", "bf16", "f16")],
        *[("torch", d) for d in ("f64", "f32", "bf16", "f16")],
        *[("triton", d) for d in ("f32", "bf16", "f16")],
    ],
)
def test_a_random_pattern_is_the_same_everywhere(backend: str, dtype: str) -> None:
    for (seed, keys, of), got in zip(PATTERNS, patterns(40, backend, dtype), strict=True):
        expected = [[hashed(seed, i, j) % of < keys for j in range(40)] for i in range(40)]
        np.testing.assert_array_equal(got, expected)


def test_a_random_pattern_looks_random() -> None:
    """Its density is keys/of, also of each row and column; no row repeats another, shifted or not."""
    size = 600
    for (_, keys, of), got in zip(PATTERNS, patterns(size, "numpy", "f32"), strict=True):
        p, seen = keys / of, got.astype(float)
        deviation = (p * (1 - p) / size) ** 0.5
        assert abs(seen.mean() - p) < 4 * deviation / size**0.5
        for axis in (0, 1):
            spread = (seen.mean(axis) - p) / deviation
            assert abs(spread).max() < 5
            assert 0.85 < spread.std() < 1.15
        spectrum = np.fft.rfft(seen - p, 2 * size, axis=1)
        shifted = np.fft.irfft(spectrum[:-1] * spectrum[1:].conj(), axis=1)
        assert abs(shifted).max() < 7 * (p * (1 - p)) * size**0.5
    first, second = patterns(size, "numpy", "f32")
    assert (first != second).any()
