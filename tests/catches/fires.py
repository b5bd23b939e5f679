"""For each rule a small program that it rewrites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from checks import model_of
from graphs import Model, Value, b, d, e, hidden, r, rmsnorm, s, t, vocab
from small_models import program

from archc.compiler.ir.graph import Axis, Program
from archc.dsl.dims import Dim

from .fft_convolution import causal, entries
from .fuse_loss import LONG, picked, unlikely
from .split_sink import sunk
from .weights import LARGE

Build = Callable[[Model, Value], Value]
u = Axis("u", s.size)


@dataclass(frozen=True)
class Fires:
    """A program, and the passes that run before the rule's own."""

    program: Program
    after: tuple[str, ...] = ()


def of(build: Build, *after: str) -> Fires:
    return Fires(model_of(build), after)


def large(build: Build, *after: str) -> Fires:
    found = model_of(build)
    return Fires(replace(found, bindings=tuple({**found.sizes, **LARGE}.items())), after)


def long(build: Build, *after: str) -> Fires:
    found = model_of(build)
    return Fires(replace(found, bindings=tuple({**found.sizes, **LONG}.items())), after)


def scan(body: str, *after: str) -> Fires:
    head = "use std\nmodel M {\n  d = 4; n = 3\n  input x: float[b, s, d]\n  "
    return Fires(program(f"{head}{body}\n}}"), after)


def gated(m: Model, x: Value) -> Value:
    """Groups of a merged axis are scaled, each entry by a weight, and looked at one by one."""
    merged = x.split(d, (r, e)).merge((r, e), d)
    return (merged * m.weight("w", d)).split(d, (r, e)).sum(e)


def attended(m: Model, x: Value, keep: Value | None = None) -> Value:
    k, v = (x.dot(m.weight(name, e, d), d).rename((s, t)) for name in ("k", "v"))
    seen = m.index(t) <= m.index(s)
    seen = seen if keep is None else seen & keep
    a = m.where(seen, x.dot(m.weight("q", e, d), d).dot(k, e), float("-inf"))
    return a.op("softmax", axis=t).dot(v, t)


def experts(m: Model, x: Value) -> Value:
    ids = m.input("ids", b, s, dtype="int", below=vocab.size)
    return x.dot(m.weight("w", vocab, hidden, d).op("take", ids, axis=vocab, fill=None), d)


def looked_up(m: Model, x: Value) -> Value:
    table, ids = m.weight("table", vocab, d), m.input("ids", b, s, dtype="int", below=vocab.size)
    return (x + table.op("take", ids, axis=vocab, fill=None)).dot(table, d)


def projected(m: Model, x: Value) -> Value:
    return x.dot(m.weight("w", hidden, d), d)


def two(m: Model, x: Value) -> Value:
    return projected(m, x) * x.dot(m.weight("v", hidden, d), d).op("sigmoid")


FIRES: dict[str, Fires] = {
    "fold-constants": of(lambda m, x: x * (m.value(2.0) + 3.0)),
    "drop-neutral": of(lambda m, x: x + 0.0),
    "constants-right": of(lambda m, x: m.value(2.0) * x),
    "decide-where": of(lambda m, x: m.where(m.value(True), x, x.op("exp"))),
    "double-not": of(lambda m, x: m.where((x <= 0.0).op("not").op("not"), x, 0.0)),
    "shorten-rename": of(lambda m, x: x.rename((s, t)).rename((t, u))),
    "rename-sources": of(lambda m, x: x * (m.index(s) * 2).rename((s, t))),
    "whole-slice": of(lambda m, x: x.op("slice", axis=s, into=t, start=Dim(), step=1)),
    "cancel-relabel": of(lambda m, x: x.split(d, (r, e)).merge((r, e), d)),
    "one-part": of(lambda m, x: x.op("concat", axis=t, parts=(s,))),
    "empty-broadcast": of(lambda m, x: x.op("broadcast", axes=())),
    "shorten-cast": of(lambda m, x: x.cast("f32").cast("float")),
    "shorten-transpose": of(
        lambda m, x: x.op("transpose", order=(d, s, b)).op("transpose", order=(s, b, d))),
    "share-equal": of(lambda m, x: x.op("exp") + x.op("exp")),
    "sink-merge": of(gated),
    "chunk-products": scan("k = x |> linear(n) as k\n"
                           "  scan s with h[b, d, n] = 0 { h = h / 2 + x * k; y = dot(h, k, n) }\n"
                           "  output z[b, s, d] = y", "canonicalize"),
    "chunk-scan": scan("scan s with h[b, d] = 0 { h = sigmoid(x) * h + x }\n"
                       "  output y[b, s, d] = h"),
    "group": of(experts),
    "convolve": of(lambda m, x: causal(m, entries(m)).dot(x.rename((s, t)), t)),
    "split": of(sunk()),
    "attend": of(attended),
    "visible": of(lambda m, x: attended(m, x, m.input("keep", b, t, dtype="bool")), "tile-attention"),
    "pack": of(two),
    "fold-norm": of(lambda m, x: projected(m, rmsnorm(x, m.weight("gain", d)))),
    "pick-first": of(picked),
    "loss": long(unlikely),
    "pack-weight": large(projected),
    "quantise": large(projected),
    "read-codes": large(looked_up, "quantise"),
    "derive": of(lambda m, x: x * (m.weight("w", d).op("exp") + 1.0)),
    "linear": of(lambda m, x: (projected(m, x) + m.weight("bias", hidden)).op("tanh")),
    "region": of(lambda m, x: x.op("exp") * m.input("z", b, s, d) + 1.0),
}  # fmt: skip
