"""Reductions of a product's result that its kernel begins, and those that it leaves alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from graphs import Model, Value, b, rmsnorm, s
from kernel_checks import check

from archc.backends.triton import TritonBackend
from archc.backends.triton.counting import count
from archc.backends.triton.source import sources
from archc.compiler.ir.graph import Axis, Program
from archc.compiler.passes import optimise
from archc.dsl.dims import Dim

pytest.importorskip("triton")
k, n = Axis("k", Dim.of(32)), Axis("n", Dim.of(200))  # columns that end inside a block


def after_product(rest: Callable[[Model, Value], dict[str, Value]]) -> Program:
    m = Model()
    y = m.input("r", b, s, n) + m.input("x", b, s, k).dot(m.weight("w", n, k), k)
    return m.program(y=y, **rest(m, y))


def mean_square(m: Model, y: Value) -> Value:
    wide = y.cast("f32")
    return (wide * wide).sum(n) / 200.0


def second_product(m: Model, y: Value) -> Value:
    o = Axis("o", Dim.of(24))
    return (y * y).dot(m.weight("v", o, n), n)


# name -> what follows the product, and whether its kernel begins that
AFTER: dict[str, tuple[Callable[[Model, Value], Value], bool]] = {
    "row statistic": (lambda m, y: (mean_square(m, y) + 1e-5).op("rsqrt"), True),
    "maximum": (lambda m, y: y.op("amax", axes=(n,)) * 2.0, True),
    "weighed": (lambda m, y: (y * m.weight("gain", n)).sum(n), False),
    "read again": (lambda m, y: y - mean_square(m, y).cast("float"), False),
    "along rows": (lambda m, y: y.sum(s), False),
    "another product": (second_product, False),
}


@pytest.mark.parametrize("case", AFTER)
def test_what_a_product_begins(case: str) -> None:
    rest, is_begun = AFTER[case]
    files, _ = sources(optimise(after_product(lambda m, y: {"z": rest(m, y)})).program)
    assert ("begun_ptr" in files["kernels.py"]) == is_begun


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_begun_reductions_mean_the_same(dtype: str) -> None:
    """Two of them, each of a product of its own."""

    def both(m: Model, y: Value) -> dict[str, Value]:
        y2 = m.input("q", b, s, k).dot(m.weight("u", n, k), k) * 3.0
        return {"z": AFTER["row statistic"][0](m, y), "top": y2.op("amax", axes=(n,)), "y2": y2}

    program = after_product(both)
    files, _ = sources(optimise(program).program)
    assert files["model.py"].count("run.column_blocks(") == 2
    check(program, levels=(1,), shapes=((1, 1), (2, 37)), dtype=dtype)


def test_a_gated_layer_with_its_norm_reads_its_input_once() -> None:
    """At a quarter of the sizes of Llama-3-8B: beside weights, input and result under one percent."""
    m, e = Model(), Axis("e", Dim.of(1024))
    d, h = Axis("d", Dim.of(1024)), Axis("h", Dim.of(3584))
    y = m.input("r", b, s, d) + m.input("x", b, s, e).dot(m.weight("o", d, e), e)
    normed = rmsnorm(y, m.weight("gain", d), d)
    gate, up = (normed.dot(m.weight(name, h, d), d) for name in ("gate", "up"))
    program = m.program(y=y, h=gate * gate.op("sigmoid") * up)
    unwanted = TritonBackend().unwanted_passes("bf16")
    launches, _ = count(optimise(program, disable=unwanted).program, {"b": 1, "s": 1024})
    first, *rest = launches
    moved = first.unique_writes["begun_ptr"] + sum(launch.unique for launch in rest)
    least = 2 * (1024 * 1024 + 2 * 1024 * 3584 + 1024 * 3584)
    assert least < moved < 1.01 * least
