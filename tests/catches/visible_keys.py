"""visible-keys: masks whose range of keys is not worth finding."""

from __future__ import annotations

from graphs import Model, Value, causal, d, s, t
from small_models import program

from archc.compiler.incremental import derive
from archc.compiler.passes import Optimised

from .base import Caught, of


def finds_no_range(done: Optimised) -> str:
    """A step does not look through all slots for those that its few rows see."""
    ranged = any(n.attrs.get("ranged") for f in done.program.functions for n in f.nodes)
    return "a step looks for a range" if ranged else ""


def multiplies_no_more(done: Optimised) -> str:
    before, after = (
        sum(n.op == "dot" for f in p.functions for n in f.nodes)
        for p in (done.value_map.before, done.program)
    )
    return "a product is computed twice" if after > before else ""


def learned(m: Model, x: Value) -> Value:
    """Which keys are seen is decided by a product, as are the scores."""
    k = x.rename((s, t))
    close = causal(m) & ((x * m.weight("near", d)).dot(k, d) < 1.0)
    a = m.where(close, x.dot(k, d), float("-inf"))
    return a.op("softmax", axis=t).dot(k, t)


CHUNK = """use std
model M {
  d = 8
  input x: float[b, s, d]
  input keep: bool[b, s] = true
  time s: valid = keep
  decode s
  output y[b, s, d] = x |> attention(2, mask = causal) as a
}"""

VISIBLE = {
    "whole-sequence": Caught(derive(program(CHUNK)).chunk, "a step looks for a range",
                             finds_no_range, ("tile-attention",), run=False),
    "cheap": of(learned, "a product is computed twice", multiplies_no_more, "tile-attention"),
}  # fmt: skip
