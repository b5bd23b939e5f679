"""fft-convolution: sums with gathered entries that are no causal convolutions."""

from __future__ import annotations

from graphs import Model, Value, b, d, heads, s, t

from archc.compiler.ir.graph import Axis
from archc.compiler.passes import Optimised
from archc.dsl.dims import Dim

from .base import Caught, Promise, main_nodes, nothing

lag = Axis("lag", Dim.symbol("s"))


def back(m: Model) -> Value:
    return m.index(s) - m.index(t)


def entries(m: Model, *axes: Axis, dtype: str = "float") -> Value:
    """kernel[s - t], whatever it is where t > s."""
    axes = axes or (lag, d)
    index = back(m).op("max", 0)
    return m.input("k", *axes, dtype=dtype).op("take", index, axis=axes[0], fill=None)


def causal(m: Model, taken: Value) -> Value:
    return m.where(m.value(0) <= back(m), taken, 0.0)


def past(m: Model) -> Value:
    return m.input("x", b, s, d).rename((s, t))


def case(build: object, notice: str = "changed `y`", promise: Promise = nothing) -> Caught:
    m = Model()
    return Caught(m.program(y=build(m)), notice, promise)


def read_twice(m: Model) -> Value:
    matrix = causal(m, entries(m))
    return matrix.dot(past(m), t) + matrix.sum(t)


def stores_no_matrix(done: Optimised) -> str:
    """Where a convolution is, its matrix with an entry for each pair is not made."""
    pairs = [n for n in main_nodes(done) if {s, t} <= set(n.axes) and n.op == "take"]
    return "the matrix is made as well" if pairs and main_nodes(done, "convolve") else ""


def integers(m: Model) -> Value:
    k = m.where(m.value(0) <= back(m), entries(m, dtype="int"), m.value(0))
    return k.dot(m.input("x", b, s, d, dtype="int").rename((s, t)), t)


CONVOLVE = {
    "real": case(integers, ""),
    "causal": case(lambda m: m.where(m.input("seen", t, dtype="bool"), entries(m), 0.0)
                   .dot(past(m), t)),
    "mask-of-keys": case(lambda m: m.where(m.value(1) <= back(m), causal(m, entries(m)), 0.0)
                         .dot(past(m), t), "has the axis already"),
    "one-length": case(lambda m: causal(m, entries(m, heads, d)).dot(past(m), t), ""),
    "own-operand": case(lambda m: causal(m, entries(m)).dot(m.input("x", b, s, t, d), t), ""),
    "private": case(read_twice, "made as well", stores_no_matrix),
}  # fmt: skip
