"""The rule that says two results are equal: silent on every careful computation, loud on mutants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from archc.compiler.ops import FORMATS, ModelDType
from archc.equality import RULES, compare, flips_allowed, rms

Array = np.ndarray[Any, Any]
DTYPES: tuple[ModelDType, ...] = ("f64", "f32", "bf16", "f16")
SEEDS = 500


@dataclass(frozen=True)
class Arithmetic:
    """How a run computes: values are stored in `dtype`; `tile` is how sums are cut up."""

    dtype: ModelDType
    tile: int | None = None
    islands: bool = True  # float32 where the model casts up

    def store(self, x: Array) -> Array:
        return x.astype(FORMATS[self.dtype])

    def wide(self, x: Array) -> Array:
        """In the dtype of arithmetic, which for half formats is float32."""
        return x.astype(np.float64 if self.dtype == "f64" else np.float32)

    def raised(self, x: Array) -> Array:
        """What a cast to float32 gives: nothing where islands are left out."""
        return self.wide(x) if self.islands else self.wide(self.store(x))

    def dot(self, a: Array, b: Array) -> Array:
        """a[.., n] b[n, ..], stored; tile after tile, the last one first."""
        a, b = self.wide(a), self.wide(b)
        if self.tile is None:
            return self.store(a @ b)
        starts = range(0, a.shape[-1], self.tile)
        parts = [a[..., i : i + self.tile] @ b[..., i : i + self.tile, :] for i in reversed(starts)]
        return self.store(sum(parts[1:], parts[0]))


@dataclass(frozen=True)
class Model:
    """A normalised attention layer, each of its decisions a field, to be changed by mutants."""

    scale: float = 0.25
    window: int = 5
    pairing: str = "half"
    gain_offset: float = 1.0
    softcap: float | None = 2.0
    stale: bool = False

    def __call__(self, at: Arithmetic, x: Array, gain: Array, w: Array) -> Array:
        h = at.raised(x)
        h = h / np.sqrt((h * h).mean(-1, keepdims=True) + h.dtype.type(1e-5))
        h = at.store(at.store(h) * at.wide(gain + FORMATS[at.dtype].type(self.gain_offset)))
        q, k, v = (at.dot(h, at.wide(part)) for part in w)
        q, k = self.rotated(at, q), self.rotated(at, k)
        if self.stale:
            k = np.concatenate([k[:1], k[:1], k[2:]])
        a = at.wide(at.store(at.wide(at.dot(q, k.T)) * self.scale))
        if self.softcap is not None:
            a = at.wide(at.store(self.softcap * np.tanh(a / self.softcap)))
        slot = np.arange(len(x))
        behind = slot[:, None] - slot
        a = np.where((behind >= 0) & (behind < self.window), at.raised(a), -np.inf)
        p = np.exp(a - a.max(-1, keepdims=True))
        p = at.store(at.raised(p) / at.raised(p).sum(-1, keepdims=True))
        return at.store(at.wide(x) + at.wide(at.dot(p, v)))

    def rotated(self, at: Arithmetic, x: Array) -> Array:
        n = x.shape[-1] // 2
        angle = np.arange(len(x))[:, None] * 100.0 ** (-np.arange(n) / n)
        first, second = (x[:, :n], x[:, n:]) if self.pairing == "half" else (x[:, ::2], x[:, 1::2])
        first, second = at.wide(first), at.wide(second)
        c, s = (at.wide(at.store(f(angle))) for f in (np.cos, np.sin))
        turned = [first * c - second * s, second * c + first * s]
        axis = -1 if self.pairing == "half" else 2
        joined = np.concatenate(turned, -1) if axis == -1 else np.stack(turned, 2)
        return at.store(joined.reshape(x.shape))


def given(seed: int, dtype: ModelDType) -> tuple[Array, Array, Array]:
    """Inputs that a run in `dtype` can hold."""
    random = np.random.default_rng(seed)
    rows, d = int(random.integers(1, 20)), 2 * int(random.integers(1, 24))
    x, gain = random.standard_normal((rows, d)), random.normal(0, 0.25, d)
    w = random.standard_normal((3, d, d)) / math.sqrt(d)
    return tuple(a.astype(FORMATS[dtype]) for a in (x, gain, w))  # type: ignore[return-value]


def widened(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(a.astype(np.float64) for a in arrays)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_false_alarm(dtype: ModelDType) -> None:
    """Another order of summation passes, for every seed and all of a model's sizes."""
    model = Model()
    alarms = []
    for seed in range(SEEDS):
        inputs = given(seed, dtype)
        gold = model(Arithmetic("f64"), *widened(inputs))
        base = model(Arithmetic(dtype), *inputs)
        tiled = model(Arithmetic(dtype, tile=1 + seed % 7), *inputs)
        found = compare(tiled, gold, base, dtype)
        if not found.passed:
            alarms.append((seed, found))
    assert alarms == []


MUTANTS: dict[str, Callable[[Model], Model]] = {
    "scale": lambda m: Model(scale=1.0),
    "window + 1": lambda m: Model(window=6),
    "window - 1": lambda m: Model(window=4),
    "rope pairing": lambda m: Model(pairing="interleaved"),
    "1 + w": lambda m: Model(gain_offset=0.0),
    "softcap": lambda m: Model(softcap=None),
    "stale slot": lambda m: Model(stale=True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_rejected(mutant: str, dtype: ModelDType) -> None:
    random = np.random.default_rng(1)
    model, wrong = Model(), MUTANTS[mutant](Model())
    arrays = (
        random.standard_normal((12, 16)),
        random.normal(0, 0.25, 16),
        random.normal(0, 0.25, (3, 16, 16)),
    )
    inputs = tuple(a.astype(FORMATS[dtype]) for a in arrays)
    gold, base = model(Arithmetic("f64"), *widened(inputs)), model(Arithmetic(dtype), *inputs)
    found = compare(wrong(Arithmetic(dtype), *inputs), gold, base, dtype)
    assert not found.passed
    assert found.error > found.allowed


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_a_dropped_cast_is_rejected(dtype: ModelDType) -> None:
    """A statistic over many elements, summed in the half format instead of float32."""
    x = np.random.default_rng(2).standard_normal((8, 512)).astype(FORMATS[dtype])
    gold = (x.astype(np.float64) ** 2).sum(-1)
    base = (x.astype(np.float32) ** 2).sum(-1).astype(FORMATS[dtype])
    wrong = np.zeros(8, FORMATS[dtype])
    for column in (x * x).T:
        wrong = (wrong + column).astype(FORMATS[dtype])
    assert compare(base, gold, base, dtype).passed
    assert not compare(wrong, gold, base, dtype).passed


def test_a_bad_base_does_not_excuse() -> None:
    gold = np.random.default_rng(3).standard_normal(1000)
    base = (gold * 1.5).astype(np.float32)
    assert not compare((gold * 1.1).astype(np.float32), gold, base, "f32").passed


def test_one_wrong_element_of_many() -> None:
    """The root mean square of a million elements hides one; the maximum does not."""
    gold = np.random.default_rng(4).standard_normal(1_000_000)
    base = gold.astype(np.float32)
    wrong = base.copy()
    wrong[1234] += 5e-5
    assert compare(base, gold, base, "f32").passed
    assert not compare(wrong, gold, base, "f32").passed


ONES = np.ones((2, 3), np.float32)


def with_value(value: float, dtype: Any = np.float32) -> Array:
    x = np.ones((2, 3), dtype)
    x[1, 2] = value
    return x


@pytest.mark.parametrize(
    ("candidate", "gold", "said"),
    [
        (ONES[:1], ONES, "shape [1, 3] instead of [2, 3]"),
        (ONES.astype(np.float64), ONES, "dtype float64 instead of float32"),
        (with_value(np.nan), ONES, "nan instead of 1.0 at [1, 2]"),
        (with_value(np.inf), ONES, "inf instead of 1.0 at [1, 2]"),
        (ONES, with_value(np.nan), "1.0 instead of nan at [1, 2]"),
        (with_value(np.inf), with_value(-np.inf), "inf instead of -inf at [1, 2]"),
        (ONES, with_value(-np.inf), "1.0 instead of -inf at [1, 2]"),
        (with_value(7, np.int64), np.ones((2, 3), np.int64), "7 instead of 1 at [1, 2]"),
        (with_value(0, np.bool_), np.ones((2, 3), np.bool_), "False instead of True at [1, 2]"),
    ],
)
def test_exact_differences(candidate: Array, gold: Array, said: str) -> None:
    found = compare(candidate, gold, gold, "f32")
    assert not found.passed
    assert found.mismatch == said


def test_exact_agreement() -> None:
    for x in (with_value(np.nan), with_value(-np.inf), with_value(3, np.int64), ONES[:0]):
        assert compare(x, x.astype(np.float64) if x.dtype.kind == "f" else x, x, "f32").passed


def test_what_the_dtype_cannot_hold_is_not_asked() -> None:
    gold = np.array([1.0, 1e6])
    with np.errstate(over="ignore"):
        base = gold.astype(np.float16)  # inf
    assert compare(base, gold, base, "f16").passed
    assert compare(np.array([1.0, 6e4], np.float16), gold, base, "f16").passed
    assert not compare(np.array([1.5, np.inf], np.float16), gold, base, "f16").passed


def test_rms() -> None:
    assert rms(np.array([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))
    assert rms(np.array([1e200, 1e200])) == pytest.approx(1e200)
    assert rms(np.zeros(0)) == 0.0


def test_every_dtype_has_a_rule() -> None:
    assert set(RULES) == set(DTYPES)


SCORES = np.array([[0.5, 0.2, 0.5 - 1e-7, 0.1]])


@pytest.mark.parametrize(
    ("chosen", "legal"),
    [
        ([0, 2], True),
        ([2, 0], True),  # closer than the margin
        ([0, 1], False),  # not close
        ([0, 0], False),  # one index twice
        ([0, 7], False),  # no such index
        ([-1, 2], False),
    ],
)
def test_chosen_indices_flip_within_their_margin(chosen: list[int], legal: bool) -> None:
    assert flips_allowed(np.array([chosen]), np.array([[0, 2]]), SCORES, 1e-6) is legal


def test_tie_order_is_exact_without_a_margin() -> None:
    """Equal scores: the lower index first, on every backend."""
    tied = np.array([[1.0, 1.0, 0.0]])
    assert (
        compare(np.array([[1, 0]]), np.array([[0, 1]]), np.array([[0, 1]]), "f32").passed is False
    )
    assert flips_allowed(np.array([[1, 0]]), np.array([[0, 1]]), tied, 0.0)
