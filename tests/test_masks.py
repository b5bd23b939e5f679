"""The masks of std and attention under them, against truth tables and formulas in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from patterns import PRIME, hashed
from references import distance
from small_models import ids, opened

from archc.api import Model
from archc.compiler.passes import optimise
from archc.dsl.dims import Dim

Arrays = Mapping[str, np.ndarray]
B, S, D, HEADS, KV_HEADS = 2, 9, 8, 4, 2
ROW, COLUMN = np.arange(S)[:, None], np.arange(S)[None]
SEED = 7

LENGTH = np.array([4, 0])
DOC = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2], [5, 5, 4, 4, 4, 4, 4, 5, 5]])


def chance(keys: int, of: int) -> np.ndarray:
    return np.array([[hashed(SEED, i, j) % of < keys for j in range(S)] for i in range(S)])


# mask -> [s, t] or [b, s, t], what a query sees
MASKS: dict[str, np.ndarray] = {
    "full": np.ones((S, S), bool),
    "causal": COLUMN <= ROW,
    "sliding(3)": (COLUMN <= ROW) & (COLUMN > ROW - 3),
    "window(2, 1)": (COLUMN >= ROW - 2) & (COLUMN <= ROW + 1),
    "window(3, 3)": abs(ROW - COLUMN) <= 3,
    "local(4)": ROW // 4 == COLUMN // 4,
    "(s, t) -> local(4)(s, t) and causal(s, t)": (ROW // 4 == COLUMN // 4) & (COLUMN <= ROW),
    f"random({SEED}, 2, of = 5)": chance(2, 5),
    f"(s, t) -> random({SEED}, 1, of = 3)(s, t) and causal(s, t)": chance(1, 3) & (COLUMN <= ROW),
    "(s, t) -> prefix(s, t, length)": (COLUMN <= ROW) | (LENGTH[:, None, None] > COLUMN),
    "(s, t) -> doc == doc[s -> t]": DOC[:, :, None] == DOC[:, None, :],
    "(s, t) -> slot(t) + 2 < slot(s)": COLUMN + 2 < ROW,  # three rows see nothing
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


def text_of(*lines: str) -> str:
    return HEAD + "\n".join(lines) + "\n}\n"


def model(*lines: str) -> Model:
    return opened(text_of(*lines))


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


def softmax_attention(weights: Arrays, name: str, x: np.ndarray, seen: np.ndarray) -> np.ndarray:
    q, k, v = projected(weights, name, x)
    a = q @ k.swapaxes(2, 3) * (D // HEADS) ** -0.5
    p = np.exp(a - a.max(-1, keepdims=True)) * seen[:, None]
    total = p.sum(-1, keepdims=True)
    return joined(weights, name, p / np.where(total == 0, 1, total) @ v)


def linear_attention(weights: Arrays, name: str, x: np.ndarray, seen: np.ndarray) -> np.ndarray:
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


BOUNDS = {  # mask -> lower, upper of -lower <= t - s <= upper, where something is proved
    "causal": (None, 0),
    "sliding(3)": (2, 0),
    "window(2, 1)": (2, 1),
    "window(3, 3)": (3, 3),
    "local(4)": (3, 3),
    "(s, t) -> local(4)(s, t) and causal(s, t)": (3, 0),
    f"(s, t) -> random({SEED}, 1, of = 3)(s, t) and causal(s, t)": (None, 0),
    "(s, t) -> slot(t) + 2 < slot(s)": (None, -3),
}


@pytest.mark.parametrize("mask", MASKS)
def test_attention_under_every_mask_is_tiled(mask: str) -> None:
    """With the tiles that can be seen, and none of a whole score."""
    made = model(*outputs(BLOCKS["attention"][0], {mask: MASKS[mask]}))
    done = optimise(made.program)
    (node,) = [n for f in done.program.functions for n in f.nodes if n.op == "attend"]
    bounds = (node.attrs["lower"], node.attrs["upper"])
    expected = BOUNDS.get(mask, (None, None))
    assert bounds == tuple(b if b is None else Dim.of(b) for b in expected)


def test_masked_linear_attention_is_no_softmax_to_tile() -> None:
    done = optimise(model(*outputs(BLOCKS["linear_attention"][0], MASKS)).program)
    assert not [s for s in done.sites if s.pass_name == "tile-attention" and s.fired]


# ------------------------------------------------------------------------ causality

CAUSAL = ["causal", "sliding(3)", "(s, t) -> local(4)(s, t) and causal(s, t)",
          f"(s, t) -> random({SEED}, 1, of = 3)(s, t) and causal(s, t)",
          "(s, t) -> slot(t) + 2 < slot(s)"]  # fmt: skip


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("block", BLOCKS)
def test_decode_is_proved_or_refused(block: str, mask: str) -> None:
    """`prefix` looks ahead within the prefix, so `decode s` cannot hold from the first slot on."""
    lines = ["decode s", *outputs(BLOCKS[block][0], {mask: MASKS[mask]})]
    assert ids(text_of(*lines)) == ([] if mask in CAUSAL else ["looks-ahead"])


def test_linear_attention_without_a_mask_looks_ahead() -> None:
    assert ids(text_of("decode s", "output y[b, s, d] = x |> linear_attention(heads) as y")) == [
        "looks-ahead"
    ]


@pytest.mark.parametrize("mask", ["none", "full"])
@pytest.mark.parametrize(("backend", "dtype", "level"), RUNS)
def test_linear_attention_over_a_memory(backend: str, dtype: str, level: int, mask: str) -> None:
    """Keys and values of another sequence, of another width; the second row's has no valid entry."""
    block = f"linear_attention(heads, {KV_HEADS}, memory = m, mask = {mask}, bias = true) as y"
    lines = ["time t: valid = far", f"output y[b, s, d] = x |> {block}"]
    text = text_of("input m: float[b, t, w: 6]", "input far: bool[b, t]", *lines)
    made, noise = opened(text), np.random.default_rng(4)
    weights = {k: noise.standard_normal(v.shape).astype("f") for k, v in made.weights.items()}
    given = {"x": inputs("none")["x"], "m": noise.standard_normal((B, 5, 6))}
    given["far"] = np.array([[1, 0, 1, 1, 0], [0] * 5], bool)
    run = replace(made, weights=weights).compile(backend, dtype=dtype, level=level)

    def heads(part: str, x: np.ndarray, count: int) -> np.ndarray:
        w = weights[f"y.{part}.w"].reshape(-1, x.shape[-1]).astype(np.float64)
        y = (x @ w.T + weights[f"y.{part}.b"].reshape(-1)).reshape(B, x.shape[1], count, -1)
        return np.repeat(y, HEADS // count, 2)

    def feature(x: np.ndarray) -> np.ndarray:
        return np.where(x > 0, x + 1, np.exp(x))

    q, k, v = (heads(p, given["m" if p != "q" else "x"], HEADS if p == "q" else KV_HEADS)
               for p in "qkv")  # fmt: skip
    q, k = feature(q), feature(k) * given["far"][:, :, None, None]
    total = np.einsum("bshe,bhe->bsh", q, k.sum(1))[..., None]
    mixed = np.einsum("bshe,bthe,bthf->bshf", q, k, v) / np.where(total == 0, 1, total)
    w, b = (weights[f"y.o.{n}"].astype(np.float64) for n in "wb")
    assert distance(run(**given)["y"], mixed.reshape(B, S, D) @ w.T + b) <= TOLERANCE[dtype]


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


@pytest.mark.parametrize(("backend", "dtype", "level"), RUNS)
def test_windows_count_positions_and_blocks_count_slots(
    backend: str, dtype: str, level: int
) -> None:
    masks = ("window(2, 1)", "local(4)")
    lines = [f"output y{n}[b, s, d] = x |> attention(heads, 2, mask = {m}) as y{n}"
             for n, m in enumerate(masks)]  # fmt: skip
    made, given = model("time s: position = doc", *lines), inputs("none")
    got = made.compile(backend, dtype=dtype, level=level)(**given)
    gap = DOC[:, None, :] - DOC[:, :, None]
    for n, seen in enumerate([(gap >= -2) & (gap <= 1), MASKS["local(4)"][None]]):
        expected = softmax_attention(made.weights, f"y{n}", given["x"], seen)
        assert distance(got[f"y{n}"], expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize(("backend", "dtype", "level"), RUNS)
def test_a_query_that_sees_nothing_may_see_everything(
    backend: str, dtype: str, level: int, padding: str
) -> None:
    mask = "(s, t) -> slot(t) + 2 < slot(s) or not any(slot(t) + 2 < slot(s), t)"
    made = model("time s: valid = keep", *outputs("attention(heads, 2, mask = MASK)", {mask: ROW}))
    given = inputs(padding)
    got, keep = made.compile(backend, dtype=dtype, level=level)(**given)["y0"], given["keep"]
    seen = (COLUMN + 2 < ROW) & keep[:, None, :]
    seen = (seen | ~seen.any(-1, keepdims=True)) & keep[:, None, :]
    expected = softmax_attention(made.weights, "y0", given["x"], seen)
    assert distance(got[keep], expected[keep]) <= TOLERANCE[dtype]


# ------------------------------------------------------------------------ random


PATTERNS = [(7, 2, 5), (10**9 + 7, 3, 64), (-3, 1, 4)]  # seed, keys, of


def patterns(queries: int, keys: int, backend: str, dtype: str = "f32") -> list[np.ndarray]:
    lines = [
        f"output r{n}[s, t] = where(random({seed}, {keys}, of = {of})(s, t), x + 1, y)"
        for n, (seed, keys, of) in enumerate(PATTERNS)
    ]
    text = (
        "use std\nmodel M {\n  input x: float[s]\n  input y: float[t]\n" + "\n".join(lines) + "\n}"
    )
    run = opened(text).compile(backend, dtype=dtype)
    got = run(x=np.zeros(queries, np.float32), y=np.zeros(keys, np.float32))
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
    for (seed, keys, of), got in zip(PATTERNS, patterns(40, 40, backend, dtype), strict=True):
        expected = [[hashed(seed, i, j) % of < keys for j in range(40)] for i in range(40)]
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("backend", "long"), [("numpy", 0), ("numpy", 1), ("torch", 0), ("torch", 1), ("triton", 1)]
)
def test_a_random_pattern_goes_on_past_the_prime(backend: str, long: int) -> None:
    sizes = [2, 2]
    sizes[long] = PRIME + 400
    for (seed, keys, of), got in zip(PATTERNS, patterns(*sizes, backend), strict=True):
        late = got.swapaxes(0, long)[PRIME:]
        at = [(i, j) if long == 0 else (j, i) for i in range(PRIME, sizes[long]) for j in range(2)]
        expected = [hashed(seed, i, j) % of < keys for i, j in at]
        np.testing.assert_array_equal(late.reshape(-1), expected)
        assert (late != got.swapaxes(0, long)[:400]).any()  # and does not begin again


def test_a_random_pattern_looks_random() -> None:
    """Its density is keys/of, also of each row and column; no row repeats another, shifted or not."""
    size = 600
    for (_, keys, of), got in zip(PATTERNS, patterns(size, size, "numpy"), strict=True):
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


def test_another_seed_is_another_pattern() -> None:
    """Also when the seeds are neighbours: not the same rows, one further down."""
    size = 300
    patterns_of = {
        seed: np.array([[hashed(seed, i, j) % 4 < 1 for j in range(size)] for i in range(size)])
        for seed in (0, 1, PRIME, PRIME + 1)
    }
    for a, first in patterns_of.items():
        for b, second in patterns_of.items():
            for shift in (-1, 0, 1):
                if a != b:
                    both = first[2:-2] & np.roll(second, shift, 0)[2:-2]
                    assert abs(both.mean() - 1 / 16) < 0.004, (a, b, shift)
