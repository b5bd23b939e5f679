"""Random graphs: whatever the shape of a program, passes keep its results and come to rest."""

from __future__ import annotations

from checks import same
from graphs import Model, Value, b, d, e, hidden, r, s, vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from archc.compiler.passes import optimise
from archc.dsl.dims import Dim


def halves(x: Value) -> Value:
    """Two slices of the features, exchanged and joined."""
    return x.split(d, (r, e)).op("pick", axis=r, at=Dim.of(1)).op("tanh").op(
        "broadcast", axes=(r,)
    ).merge((r, e), d)  # fmt: skip


def feed_forward(m: Model, x: Value) -> Value:
    return x.dot(m.weight("up", hidden, d), d).op("tanh").dot(m.weight("down", hidden, d), hidden)


def experts(m: Model, x: Value) -> Value:
    """Each slot goes through matrices of its own."""
    up, down = m.weight("ups", vocab, hidden, d), m.weight("downs", vocab, d, hidden)
    at = m.index(s)
    h = x.dot(up.op("take", at, axis=vocab, fill=None), d).op("tanh")
    return h.dot(down.op("take", at, axis=vocab, fill=None), hidden)


UNARY = (
    lambda m, x: x.op("tanh"),
    lambda m, x: x * 0.5,
    lambda m, x: x.cast("f32"),
    lambda m, x: x.cast("f32").cast("float"),
    lambda m, x: x.op("softmax", axis=d),
    lambda m, x: x - x.op("amax", axes=(d,)),
    lambda m, x: x / ((x * x).sum(d) + 1.0).op("sqrt"),
    lambda m, x: x - x.sum(s) * 0.01,
    lambda m, x: x.op("cumsum", axis=s) * 0.1,
    lambda m, x: x * m.weight("gain", d),
    lambda m, x: feed_forward(m, x),
    lambda m, x: experts(m, x),
    lambda m, x: x.split(d, (r, e)).op("exp").op("tanh").merge((r, e), d),
    lambda m, x: x.op("take", (m.index(s) - 1).op("max", 0), axis=s, fill=None),
    lambda m, x: m.where(m.index(s) <= 3, x, 0.0),
    lambda m, x: halves(x),
    lambda m, x: x.op("transpose", order=(s, d, b)),
)  # fmt: skip

BINARY = (
    lambda m, x, y: x + y,
    lambda m, x, y: x * y.op("tanh"),
    lambda m, x, y: x - y,
    lambda m, x, y: x * y.sum(d) * 0.1,
)

STEP = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))


def build(steps: list[tuple[int, int, int]]) -> Model:
    m = Model()
    values = [m.input("x", b, s, d)]
    for kind, first, second in steps:
        x, y = values[first % len(values)], values[second % len(values)]
        if kind < 2 * len(UNARY):
            values.append(UNARY[kind % len(UNARY)](m, x))
        else:
            values.append(BINARY[kind % len(BINARY)](m, x, y))
    m.last = values[-3:]
    return m


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, min_size=3, max_size=14))
def test_random_graphs_mean_the_same(steps: list[tuple[int, int, int]]) -> None:
    m = build(steps)
    program = m.program(**{f"y{i}": value for i, value in enumerate(m.last)})
    done = optimise(program)
    same(program, done.program, tolerance=1e-9)
    assert optimise(done.program).program == done.program
