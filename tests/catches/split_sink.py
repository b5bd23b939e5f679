"""split-sink: sums of weighted values of which no softmax's share stands apart."""

from __future__ import annotations

from collections.abc import Callable

from graphs import Model, Value, b, causal, d, s, t

from archc.compiler.ir.graph import Axis
from archc.compiler.passes import Optimised
from archc.dsl.dims import Dim

from .base import main_nodes, of

sink, both, shown = Axis("sink", Dim.of(1)), Axis("both", s.size + 1), Axis("shown", s.size)


def weighs_once(done: Optimised) -> str:
    return "there are two softmaxes" if len(main_nodes(done, "softmax")) > 1 else ""


def sunk(
    change: Callable[[Value], Value] = lambda z: z,
    into: Axis = shown,
    start: int = 0,
    of_weights: Callable[[Value], Value] = lambda p: p,
) -> Callable[[Model, Value], Value]:
    """Attention whose softmax is of `change` of the scores joined with one number a head."""

    def build(m: Model, x: Value) -> Value:
        k = x.rename((s, t))
        a = m.where(causal(m), x.dot(k, d), float("-inf"))
        z = a.op("concat", m.input("z", b, s, sink), axis=both, parts=(t, sink))
        p = change(z).op("softmax", axis=both)
        cut = p.op("slice", axis=both, into=into, start=Dim.of(start), step=1)
        return of_weights(cut).dot(x.rename((s, into)), into)

    return build


def read_twice(m: Model, x: Value) -> Value:
    seen: list[Value] = []

    def kept(p: Value) -> Value:
        seen.append(p)
        return p

    y = sunk(of_weights=kept)(m, x)
    return y + seen[0].op("amax", axes=(shown,))


def shifted(z: Value) -> Value:
    """Something else is joined in the other order."""
    parts = (z.model.input("first", b, s, sink), z.model.input("rest", b, s, t))
    return z + parts[0].op("concat", parts[1], axis=both, parts=(sink, t))


SINK = {
    "one-part": of(sunk(start=1), "does not run"),
    "apart": of(sunk(shifted)),
    "private": of(read_twice, "there are two softmaxes", weighs_once),
}
