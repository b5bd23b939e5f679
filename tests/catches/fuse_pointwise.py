"""fuse-pointwise: what does not belong into one kernel."""

from __future__ import annotations

from collections.abc import Callable

from graphs import Model, Value, b, d, hidden, s

from archc.compiler.passes import Optimised
from archc.compiler.passes.properties import REDUCTIONS, reduced_axes

from .base import Caught, main_nodes, of


def kernels_have_one_shape(done: Optimised) -> str:
    """A kernel has a grid for its results: they have one set of axes, but for values of rows."""
    for node in main_nodes(done, "pointwise"):
        body = done.program.body(node)
        reduced = {a for n in body.nodes if n.op in REDUCTIONS for a in reduced_axes(n)}
        if len({frozenset(body[i].axes) - reduced for i in body.output_ids}) > 1:
            return "a kernel has results of several shapes"
    return ""


def kernels_keep_to_rows(done: Optimised) -> str:
    """A program of a kernel holds whole rows: all its reductions are along them."""
    for node in main_nodes(done, "pointwise"):
        nodes = [n for n in done.program.body(node).nodes if n.op in REDUCTIONS]
        if len({frozenset(reduced_axes(n)) for n in nodes}) > 1:
            return "a kernel reduces along several axes"
    return ""


def around_a_sum(m: Model, x: Value) -> Value:
    y = x.op("exp")
    return y + y.op("cumsum", axis=s)


def two_results(build: Callable[[Model, Value], tuple[Value, Value]]) -> Caught:
    m = Model()
    y, z = build(m, m.input("x", b, s, d))
    return Caught(m.program(y=y, z=z), "of several shapes", kernels_have_one_shape)


def read_twice(m: Model, x: Value) -> tuple[Value, Value]:
    other = m.input("z", s)
    first = x.op("exp")
    sine = other.op("sin")
    return first * sine, sine


def widened(m: Model, x: Value) -> tuple[Value, Value]:
    y = x.op("exp")
    return y, y * m.input("z", hidden)


REGION = {
    "private": two_results(read_twice),
    "same-rows": of(lambda m, x: x.op("softmax", axis=d).op("softmax", axis=s),
                    "along several axes", kernels_keep_to_rows),
    "no-detour": of(around_a_sum, "cycle"),
    "one-shape": two_results(widened),
}  # fmt: skip
