"""When are two results equal? As close to the exact value as careful arithmetic in that dtype is.

`gold` is the value in float64, `base` the reference computed in the run's dtype d with the declared
casts; a candidate passes when

    rms(candidate - gold) <= k rms(base - gold) + c eps rms(gold)

and the same holds for the greatest difference with 2k in place of k. A cap bounds the right side,
since a bad base must not excuse a bad candidate. What must be exact is compared first: shapes,
dtypes, integers and booleans, and where NaN and the infinities are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiler.ops import FORMATS, ModelDType

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """The constants of the inequality; `cap` is relative to gold, or to 1 where gold is smaller."""

    k: float
    c: float
    eps: float
    cap: float


# In float64 base is gold, so c alone allows for another order of summation through a whole model.
# Half formats round once per value, base and candidate alike: what c must allow is little.
RULES: dict[ModelDType, Rule] = {
    "f64": Rule(k=2, c=4096, eps=2.0**-52, cap=1e-9),
    "f32": Rule(k=2, c=6, eps=2.0**-23, cap=1e-3),
    "f16": Rule(k=3, c=0.5, eps=2.0**-10, cap=0.05),
    "bf16": Rule(k=3, c=0.5, eps=2.0**-7, cap=0.25),
}
FEW = 8.0  # the rms of n errors is itself uncertain by 1/sqrt(n): c grows by this share of it


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a candidate compares. `error` and `allowed` are rms, relative to the rms of gold.

    `mismatch` names an exact difference, `""` where there is none.
    """

    passed: bool
    error: float = 0.0
    allowed: float = 0.0
    mismatch: str = ""


def compare(candidate: Array, gold: Array, base: Array, dtype: ModelDType) -> Comparison:
    """Judges `candidate` by the rule of `dtype`, in which its errors arose.

    That is the dtype of the run, or, for a node run on its own, the one its value is stored in.
    """
    mismatch = exact_mismatch(candidate, gold, base)
    if mismatch:
        return Comparison(False, float("inf"), 0.0, mismatch)
    if not is_float(base.dtype):
        return Comparison(True)
    finite = np.isfinite(gold) & np.isfinite(base) & np.isfinite(candidate)
    exact = gold[finite].astype(np.float64)
    ours = np.abs(candidate[finite].astype(np.float64) - exact)
    theirs = np.abs(base[finite].astype(np.float64) - exact)
    return _judge(ours, theirs, np.abs(exact), RULES[dtype])


def _judge(ours: Array, theirs: Array, gold: Array, rule: Rule) -> Comparison:
    if ours.size == 0:
        return Comparison(True)
    scale, cap = rms(gold), rule.cap * max(rms(gold), 1.0)
    slack = rule.c * rule.eps * (1 + FEW / ours.size**0.5)
    allowed = min(rule.k * rms(theirs) + slack * scale, cap)
    furthest = min(2 * rule.k * theirs.max() + slack * gold.max(), cap * ours.size**0.5)
    error = rms(ours)
    passed = error <= allowed and ours.max() <= furthest
    unit = scale or 1.0
    return Comparison(bool(passed), error / unit, allowed / unit)


def rms(x: Array) -> float:
    """The root of the mean square, without overflow; zero for no elements."""
    greatest = float(np.max(np.abs(x), initial=0.0))
    if greatest == 0.0 or not np.isfinite(greatest):
        return greatest
    return greatest * float(np.sqrt(np.mean((x / greatest) ** 2)))


def exact_mismatch(candidate: Array, gold: Array, base: Array) -> str:
    """The first difference that no rounding explains, in words; empty where there is none.

    Where base overflows and gold does not, the dtype cannot hold the value: nothing is asked there.
    """
    if candidate.shape != gold.shape:
        return f"shape {list(candidate.shape)} instead of {list(gold.shape)}"
    if candidate.dtype != base.dtype:
        return f"dtype {candidate.dtype} instead of {base.dtype}"
    if not is_float(base.dtype):
        return _first(candidate, gold, candidate != gold)
    asked = np.isfinite(base) | ~np.isfinite(gold)
    same = np.where(np.isfinite(gold), np.isfinite(candidate), _equal_special(candidate, gold))
    return _first(candidate, gold, asked & ~same)


def _equal_special(candidate: Array, gold: Array) -> Array:
    nans = np.isnan(gold)
    return np.where(nans, np.isnan(candidate), candidate.astype(np.float64) == gold)


def _first(candidate: Array, gold: Array, wrong: Array) -> str:
    if not wrong.any():
        return ""
    place = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    index = ", ".join(str(int(i)) for i in place)
    return f"{candidate[place]} instead of {gold[place]} at [{index}]"


def is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype in FORMATS.values()


def flips_allowed(candidate: Array, gold: Array, scores: Array, tolerance: float) -> bool:
    """Whether chosen indices differ only where their gold scores are closer than `tolerance`.

    `candidate` and `gold` hold indices along the last axis of `scores`, best first.
    """
    if candidate.shape != gold.shape or (candidate < 0).any():
        return False
    if (candidate >= scores.shape[-1]).any() or _repeats(candidate):
        return False
    chosen, best = (np.take_along_axis(scores, i, axis=-1) for i in (candidate, gold))
    return bool((np.abs(chosen - best) <= tolerance)[candidate != gold].all())


def _repeats(indices: Array) -> bool:
    ordered = np.sort(indices, axis=-1)
    return bool((ordered[..., 1:] == ordered[..., :-1]).any())
