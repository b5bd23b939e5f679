"""Each convention is told where it is the difference of two models, and where it is not, nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import archc
from archc.api import Model
from archc.backends.numpy import exact
from archc.compiler.weights import random_weights
from archc.diff.conventions import Setting, hints

NORM = "y[b, d] = x * rsqrt(sum(x * x, d) / d + 1e-3)"
SCORES = "y[b, s] = softmax(dot(x, x[b -> s], d){}, s)"
PAIRS = {
    "an epsilon": (NORM, NORM.replace("1e-3", "1e-5"), "1e-05 in place of 0.001"),
    "no epsilon": (NORM, NORM.replace(" + 1e-3", ""), "no 0.001 here"),
    "outside": (
        NORM,
        "y[b, d] = x * (1 / (sqrt(sum(x * x, d) / d) + 1e-3))",
        "the epsilon outside of the root",
    ),
    "quick": (
        "y[b, d] = gelu(x)",
        "y[b, d] = gelu_quick(x)",
        "gelu_quick in place of this activation",
    ),
    "exact": ("y[b, d] = gelu_tanh(x)", "y[b, d] = gelu(x)", "gelu in place of this activation"),
    "tanh": (
        "y[b, d] = gelu_quick(x)",
        "y[b, d] = gelu_tanh(x)",
        "gelu_tanh in place of this activation",
    ),
    "gain": ("y[b, d] = x * (1 + g)", "y[b, d] = x * g", "a gain without `1 +`"),
    "gain and one": ("y[b, d] = x * g", "y[b, d] = x * (1 + g)", "a gain of `1 + g`"),
    "scaled": (SCORES.format(""), SCORES.format(" * 4 ** -0.5"), "multiplied by 4 ** -0.5"),
    "not scaled": (SCORES.format(" / 2"), SCORES.format(""), "not multiplied by 4 ** -0.5"),
    "divided": (SCORES.format(""), SCORES.format(" / 4"), "scores divided by 4"),
    "embedded": ("y[b, d] = x", "y[b, d] = x * sqrt(d)", "the result multiplied by 4 ** 0.5"),
    "an eighth": ("y[b, d] = x * g", "y[b, d] = x * g / 8", "the result multiplied by 0.125"),
    "exclusive": (
        "y[b, d] = where(index(d) <= 2, x, 0)",
        "y[b, d] = where(index(d) < 2, x, 0)",
        "`<` in place of `<=`",
    ),
    "a window": (
        "y[b, d] = where(index(d) < 2, x, 0)",
        "y[b, d] = where(index(d) < 1, x, 0)",
        "a bound of one less",
    ),
    "transposed": (
        "y[b, o] = dot(x, w, d)",
        "y[b, o] = dot(x, w[o -> d, d -> o], d)",
        "transposed",
    ),
}
NOTHING = ("y[b, d] = x * g", "y[b, d] = x + g")


def model(tmp_path: Path, line: str) -> Model:
    weights = "".join(
        f"  weight {weight} = normal\n"
        for weight in ("g[d]", "w[o: 4, d]")
        if weight[0] in line.replace("gelu", "").replace("where", "").split("=", 1)[1]
    )
    path = tmp_path / "m.arch"
    path.write_text(
        f"use std\nmodel M {{\n  d = 4\n  input x: float[b, d]\n{weights}  output {line}\n}}\n"
    )
    return archc.load(path)


def told(tmp_path: Path, ours: str, theirs: str) -> list[str]:
    x = np.random.default_rng(0).standard_normal((3, 4))
    mine, other = model(tmp_path, ours).program, model(tmp_path, theirs).program
    weights = {p: w.astype(np.float64) for p, w in random_weights(mine, 0).items()}
    wanted = exact(other, {"x": x}, weights)["y"]
    parameters = {p.path: p for p in mine.parameters}
    found = hints(
        Setting(mine, weights, parameters),
        lambda tried: np.allclose(exact(tried.program, {"x": x}, tried.weights)["y"], wanted, 1e-9),
    )
    return [hint.words for hint in found]


@pytest.mark.parametrize("kind", PAIRS)
def test_a_convention_is_told(kind: str, tmp_path: Path) -> None:
    ours, theirs, words = PAIRS[kind]
    assert any(words in hint for hint in told(tmp_path, ours, theirs))


def test_no_convention_is_told_where_none_helps(tmp_path: Path) -> None:
    assert told(tmp_path, *NOTHING) == []
