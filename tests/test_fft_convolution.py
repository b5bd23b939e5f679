"""fft-convolution: which products become transforms, what it declines and why, and its results."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from checks import ops, ran, reason
from graphs import Model, Value, b, d, e, heads, s, t

import archc
from archc.compiler.ir.graph import Axis, Program
from archc.compiler.passes import optimise
from archc.dsl.dims import Dim

NAME = "fft-convolution"
lag = Axis("lag", Dim.symbol("s"))
Build = Callable[[Model], Value]


def back(m: Model) -> Value:
    return m.index(s) - m.index(t)


def kernel(m: Model, *axes: Axis) -> Value:
    return m.input("k", *(axes or (lag, d)))


def matrix(m: Model, k: Value, axis: Axis = lag) -> Value:
    taken = k.op("take", back(m).op("max", 0), axis=axis, fill=None)
    return m.where(m.value(0) <= back(m), taken, 0.0)


def past(m: Model, *axes: Axis) -> Value:
    return m.input("x", *(axes or (b, s, d))).rename((s, t))


def product(build: Build, *axes: Axis) -> Program:
    """The product of a matrix with x, which is y."""
    m = Model()
    return m.program(y=build(m).dot(past(m, *axes), t))


def hidden_when(m: Model, *axes: Axis) -> Value:
    return m.where(m.input("seen", *axes, dtype="bool"), matrix(m, kernel(m)), 0.0)


FIRES = {
    "as the library writes it": (lambda m: matrix(m, kernel(m)), ()),
    "a mask in slots": (
        lambda m: m.where(m.index(t) <= m.index(s), matrix(m, kernel(m)), 0.0),
        (),
    ),
    "strictly before the next": (
        lambda m: m.where(
            m.index(t) < m.index(s) + 1,
            kernel(m).op("take", back(m).op("max", 0), axis=lag, fill=None),
            0.0,
        ),
        (),
    ),
    "a kernel along the sequence itself": (lambda m: matrix(m, kernel(m, s, d), s), ()),
    "padding": (lambda m: hidden_when(m, b, t), ()),
    "one kernel for all channels": (lambda m: matrix(m, kernel(m, lag)), ()),
    "channels of the kernel alone": (lambda m: matrix(m, kernel(m, lag, e)), ()),
    "a sequence without a batch": (lambda m: matrix(m, kernel(m)), (s,)),
}


@pytest.mark.parametrize("case", FIRES)
def test_a_causal_product_becomes_transforms(case: str) -> None:
    done = ran(product(FIRES[case][0], *FIRES[case][1]))
    found = ops(done.program)
    assert (found["convolve"], found["dot"], found["take"]) == (1, 0, 0)
    (site,) = [x for x in done.sites if x.pass_name == NAME]
    assert site.fired
    assert site.before is not None
    assert site.after is not None
    small, large = ({"b": 1, "s": n, "d": 8, "e": 8} for n in (64, 4096))
    assert site.before.evaluate(large) / site.before.evaluate(small) > 1000
    assert site.after.evaluate(large) / site.after.evaluate(small) == 64


def test_an_operand_on_either_side() -> None:
    m = Model()
    done = ran(m.program(y=past(m).dot(matrix(m, kernel(m)), t)))
    assert ops(done.program)["convolve"] == 1


DECLINES: dict[str, tuple[Build, str]] = {
    "later entries": (
        lambda m: m.where(
            m.input("seen", t, dtype="bool"),
            kernel(m).op("take", back(m).op("max", 0), axis=lag, fill=None),
            0.0,
        ),
        "later entries are not hidden",
    ),
    "a window": (
        lambda m: m.where(back(m) <= 3, matrix(m, kernel(m)), 0.0),
        "a mask of pairs",
    ),
    "one step late": (
        lambda m: m.where(m.value(1) <= back(m), matrix(m, kernel(m)), 0.0),
        "a mask of pairs",
    ),
    "rows and columns": (lambda m: hidden_when(m, s, t), "a mask of pairs"),
    "a kernel of another length": (
        lambda m: matrix(m, kernel(m, heads, d), heads),
        "the kernel is not as long as the sequence",
    ),
}


@pytest.mark.parametrize("case", DECLINES)
def test_what_stays_a_product(case: str) -> None:
    build, expected = DECLINES[case]
    done = optimise(product(build))
    assert reason(done, NAME) == expected
    assert ops(done.program)["convolve"] == 0


def test_a_matrix_that_is_read_elsewhere_stays() -> None:
    m = Model()
    rows = matrix(m, kernel(m))
    done = optimise(m.program(y=rows.dot(past(m), t), rows=rows))
    assert reason(done, NAME) == "the matrix is read elsewhere"


@pytest.mark.parametrize("index", ["twice", "one less", "clamped above zero"])
def test_another_index_is_no_site(index: str) -> None:
    at = {
        "twice": lambda m: (back(m) * 2).op("max", 0).op("min", 0),
        "one less": lambda m: (back(m) - 1).op("max", 0),
        "clamped above zero": lambda m: back(m).op("max", 1).op("min", 0),
    }[index]
    m = Model()
    taken = kernel(m).op("take", at(m), axis=lag, fill=None)
    rows = m.where(m.value(0) <= back(m), taken, 0.0)
    done = ran(m.program(y=rows.dot(past(m), t)))
    assert not [x for x in done.sites if x.pass_name == NAME]


# ------------------------------------------------------------------------------ the results

TEXT = """use std
model M {
  input x: float[b, s, d: 3]
  weight rate[d] = normal
  kernel[s, d] = cos(slot(s) * rate) * exp(-0.1 * slot(s))
  output y[b, s, d] = x |> long_convolution(kernel)
}"""


@pytest.fixture
def model(tmp_path) -> archc.api.Model:
    (tmp_path / "m.arch").write_text(TEXT)
    return archc.load(tmp_path / "m.arch").with_random_weights(0)


def direct(x: np.ndarray, rate: np.ndarray) -> np.ndarray:
    n = np.arange(x.shape[1])[:, None]
    k = np.cos(n * rate) * np.exp(-0.1 * n)
    rows = [sum(k[i - j] * x[:, j] for j in range(i + 1)) for i in range(len(n))]
    return np.stack(rows, 1)


@pytest.mark.parametrize("length", [1, 2, 5, 16, 31, 257])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_transforms_equal_the_sum_in_float64(
    backend: str, length: int, model: archc.api.Model
) -> None:
    x = np.random.default_rng(0).standard_normal((2, length, 3))
    expected = direct(x, np.array(model.weights["rate"], np.float64))
    got = model.compile(backend, dtype="f64")(x=x)["y"]
    assert np.abs(got - expected).max() <= 1e-12


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_an_empty_sequence(backend: str, model: archc.api.Model) -> None:
    x = np.zeros((2, 0, 3), np.float32)
    assert model.compile(backend)(x=x)["y"].shape == (2, 0, 3)


def test_torch_keeps_gradients(model: archc.api.Model) -> None:
    """Of the kernel's weight, against those of the product."""
    x = np.random.default_rng(0).standard_normal((2, 7, 3))
    gradients = []
    for level in (0, 1):
        module = model.compile("torch", dtype="f64", level=level, train=True).executable.module
        (module(x=torch.from_numpy(x))["y"] ** 2).sum().backward()
        (parameter,) = module.parameters()
        gradients.append(parameter.grad)
    assert gradients[0].abs().min() > 1e-3
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_triton_runs_the_product(model: archc.api.Model) -> None:
    compiled = model.compile("triton")
    assert ops(compiled.optimised.program)["convolve"] == 0
    x = np.random.default_rng(0).standard_normal((1, 6, 3)).astype(np.float32)
    expected = direct(x, np.array(model.weights["rate"], np.float64))
    assert np.abs(compiled(x=x)["y"] - expected).max() <= 1e-5
