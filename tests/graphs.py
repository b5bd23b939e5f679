"""Small programs built by hand, for tests of passes: a value knows its builder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from archc.backends.numpy import NumpyBackend
from archc.compiler.ir.graph import (
    Axis,
    Builder,
    Constraint,
    Origin,
    Parameter,
    Program,
    TensorType,
)
from archc.dsl.dims import Dim
from archc.dsl.span import Source, Span

SIZES = {"vocab": 11, "d": 12, "g": 2, "r": 3, "e": 4, "hidden": 10}
b, s = Axis("b", Dim.symbol("b")), Axis("s", Dim.symbol("s"))
t = Axis("t", Dim.symbol("s"), time="s")
vocab, d, g, r, e, hidden = (Axis(name, Dim.symbol(name)) for name in SIZES)
heads = Axis("heads", g.size * r.size)
RELATIONS = (Constraint(d.size, "==", r.size * e.size),)
h = Axis("h", g.size * r.size * e.size)


@dataclass(frozen=True)
class Value:
    model: Model
    id: int

    def op(self, name: str, *others: Value | float, **attrs: object) -> Value:
        inputs = (self.id, *(self.model.value(o).id for o in others))
        return self.model.add(name, inputs, **attrs)

    def __add__(self, other: Value | float) -> Value:
        return self.op("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self.op("sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self.op("mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self.op("div", other)

    def __and__(self, other: Value) -> Value:
        return self.op("min", other)

    def __or__(self, other: Value) -> Value:
        return self.op("max", other)

    def __le__(self, other: Value | float) -> Value:
        return self.op("le", other)

    def __lt__(self, other: Value | float) -> Value:
        return self.op("lt", other)

    def dot(self, other: Value, *axes: Axis) -> Value:
        return self.op("dot", other, axes=axes)

    def sum(self, *axes: Axis) -> Value:
        return self.op("sum", axes=axes)

    def rename(self, *pairs: tuple[Axis, Axis]) -> Value:
        return self.op("rename", pairs=pairs)

    def merge(self, axes: tuple[Axis, ...], into: Axis) -> Value:
        return self.op("merge", axes=axes, into=into)

    def split(self, axis: Axis, into: tuple[Axis, ...]) -> Value:
        return self.op("split", axis=axis, into=into)

    def cast(self, dtype: str) -> Value:
        return self.op("cast", dtype=dtype)


class Model:
    """Grows `main`. Every node's origin is a line of a made-up text, one line per node."""

    def __init__(self, name: str = "main") -> None:
        self.builder = Builder(name)
        self.parameters: dict[str, Parameter] = {}
        self.text = Source("hand.arch", "\n" * 400)
        self.region = ""
        self.last: list[Value] = []

    def add(self, op: str, inputs: tuple[int, ...] = (), **attrs: object) -> Value:
        types = attrs.pop("types", None)
        at = len(self.builder.nodes)
        origin = Origin((Span(self.text, at, at),), self.region)
        return Value(self, self.builder.add(op, inputs, attrs, types, (origin,)))

    def value(self, x: Value | float) -> Value:
        return x if isinstance(x, Value) else self.add("const", value=x)

    def input(self, name: str, *axes: Axis, dtype: str = "float", **attrs: object) -> Value:
        types = (TensorType(dtype, axes),)
        return self.add("input", types=types, **{"name": name, "kind": dtype, **attrs})

    def weight(self, path: str, *axes: Axis) -> Value:
        self.parameters[path] = Parameter(path, axes, tuple((a,) for a in axes))
        return self.add("weight", path=path, types=(TensorType("float", axes),))

    def index(self, axis: Axis) -> Value:
        return self.add("index", axis=axis)

    def where(self, condition: Value, yes: Value | float, no: Value | float) -> Value:
        return condition.op("where", self.value(yes), self.value(no))

    def program(self, **outputs: Value) -> Program:
        main = self.builder.finish((name, v.id) for name, v in outputs.items())
        bindings = tuple(SIZES.items())
        return Program("Hand", (main,), bindings, tuple(self.parameters.values()), RELATIONS)


def rmsnorm(x: Value, gain: Value, axis: Axis = d, eps: float = 1e-5) -> Value:
    wide = x.cast("f32")
    size = x.model.add("size", axis=axis)
    mean = (wide * wide).sum(axis) / size
    return (wide * (mean + eps).op("rsqrt")).cast("float") * gain


def layernorm(x: Value, gain: Value, bias: Value, axis: Axis = d, eps: float = 1e-5) -> Value:
    wide = x.cast("f32")
    size = x.model.add("size", axis=axis)
    centred = wide - wide.sum(axis) / size
    variance = (centred * centred).sum(axis) / size
    return (centred / (variance + eps).op("sqrt")).cast("float") * gain + bias


def causal(m: Model) -> Value:
    return m.index(t) <= m.index(s)


def scores(q: Value, k: Value) -> Value:
    """[b, heads, s, t] from q[b, s, g, r, e] and k[b, s, g, e]."""
    return q.dot(k.rename((s, t)), e).merge((g, r), heads) * 0.5


def attention(q: Value, k: Value, v: Value, a: Value, mask: Value | None) -> Value:
    """The weights of scores `a` times v[b, s, g, e], as [b, s, h]."""
    shown = a.model.where(mask, a, float("-inf")) if mask is not None else a
    p = shown.op("softmax", axis=t)
    return p.split(heads, (g, r)).dot(v.rename((s, t)), t).merge((g, r, e), h)


def layer(m: Model, x: Value) -> Value:
    """A pre-norm transformer layer with grouped heads and a gated feed-forward."""
    n = rmsnorm(x, m.weight("norm1", d))
    q, k, v = (
        n.dot(m.weight("q", g, r, e, d), d),
        n.dot(m.weight("k", g, e, d), d),
        n.dot(m.weight("v", g, e, d), d),
    )
    x = x + attention(q, k, v, scores(q, k), causal(m)).dot(m.weight("o", d, h), h)
    n = rmsnorm(x, m.weight("norm2", d))
    gate, up = n.dot(m.weight("gate", hidden, d), d), n.dot(m.weight("up", hidden, d), d)
    return x + (gate * gate.op("sigmoid") * up).dot(m.weight("down", d, hidden), hidden)


def evaluate(
    program: Program, inputs: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    return NumpyBackend().load(program, weights, dtype="f64", tile=4).run(inputs)
