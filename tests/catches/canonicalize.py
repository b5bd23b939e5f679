"""canonicalize and sink-merges: what looks like an identity and is none."""

from __future__ import annotations

from graphs import Model, Value, d, e, hidden, r, s, t

from archc.compiler.ir.graph import Axis
from archc.dsl.dims import Dim

from .base import computes_no_more, of, relabels_no_more

other = Axis("other", d.size)


def renamed_twice(m: Model, x: Value) -> Value:
    z = x.op("exp")
    return z * z.rename((s, t))


def merged(x: Value) -> Value:
    return x.split(d, (r, e)).op("exp").merge((r, e), d)


CANONICALIZE = {
    "drop-neutral/same-kind": of(lambda m, x: x * m.add("const", value=1.0, dtype="f32"), "replaces"),
    "constants-right/one-constant": of(
        lambda m, x: m.where(m.value(d.size).op("eq", m.value(hidden.size)), x, 0.0), "come to rest"),
    "decide-where/same-kind": of(lambda m, x: m.where(m.value(True), m.value(2.0), x), "replaces"),
    "rename-sources/of-indices": of(renamed_twice, "more is computed", computes_no_more),
    "whole-slice/forward": of(
        lambda m, x: x.op("slice", axis=d, into=d, start=d.size - 1, step=-1)),
    "whole-slice/whole": of(lambda m, x: x.op("slice", axis=d, into=e, start=Dim(), step=1)),
}  # fmt: skip

CANCEL = {
    "same-axis": of(
        lambda m, x: m.input("z", r, e, other).merge((r, e), d).split(other, (r, e)), "replaces"),
    "same-parts": of(lambda m, x: m.input("z", r, e).merge((r, e), d).split(d, (e, r))),
}  # fmt: skip

SINK = {
    "alongside": of(lambda m, x: merged(x).op("cumsum", axis=d).split(d, (r, e)), "malformed"),
    "undone-below": of(lambda m, x: merged(x) * m.weight("w", d), "relabelled", relabels_no_more),
}  # fmt: skip
