"""The proof behind `decode s`: what it accepts is causal by experiment, what looks ahead is refused."""

from __future__ import annotations

import numpy as np
import pytest

from archc.backends.numpy import NumpyBackend
from archc.compiler.causality import elaborate_proved, prove_causal
from archc.compiler.elaborate import Request, elaborate, module_of, the_model
from archc.compiler.ir.graph import Program
from archc.compiler.weights import random_weights
from archc.dsl import Source, parse
from archc.dsl.errors import LooksAhead

LENGTH = 9
HEAD = """use std
model M {
  d = 8; heads = 2; n = 2
  input x: float[b, s, d]
  input ids: ids[b, s] < 5
  input keep: bool[b, s]
  input m: float[b, t, d]
  decode s
"""
SCORES = "a[b, s, u] = dot(x, x[s -> u], d)\n"

CAUSAL = {
    "a difference of two attentions": """a[b, s, u] = dot(x, x[s -> u], d)
      p = softmax(where(causal(s, u), a, -inf), u)
      r = softmax(where(sliding(2)(s, u), 2 * a, -inf), u)
      y[b, s, d] = dot(p - 0.5 * r, x[s -> u], u)""",
    "pointwise": "y = silu(x) + x",
    "causal attention": "y = x |> attention(heads, mask = causal)",
    "rotary": "y = x |> attention(heads, mask = causal, rotate = rope)",
    "a window": "y = x |> attention(heads, mask = sliding(3))",
    "a lagged mask": ("y = x |> attention(heads, mask = (s, t) -> position(t) + 2 <= position(s))"),
    "a strict bound": "y = x |> attention(heads, mask = (s, t) -> position(t) < position(s) + 1)",
    "more conditions": (
        "y = x |> attention(heads, mask = (s, t) -> causal(s, t) and ids == ids[s -> t])"
    ),
    "biased scores": (
        "y = x |> attention(heads, mask = causal, score = (a[...], s, t) -> a + position(t))"
    ),
    "cross attention": "y = x |> attention(heads, memory = m)",
    "in a repeat": (
        "y = x\nrepeat layers[i: n] { y += y |> rmsnorm |> attention(heads, mask = causal) as a }"
    ),
    "a running sum": "y = cumsum(x, s)",
    "a masked product without softmax": (
        SCORES + "y[b, s, d] = dot(where(causal(s, u), a, 0), x[s -> u], u)"
    ),
    "padding": (
        "time s: valid = keep\ny = x |> attention(heads, mask = causal)\ny = where(keep, y, 0)"
    ),
    "a table by slot": "y = x |> learned_positions(16)",
    "every row of the batch for itself": "y = x + sum(m, t)",
    "left padding with counted positions": (
        "time s: valid = keep, position = cumsum(keep, s) - 1\n"
        "y = x |> attention(heads, mask = sliding(4), rotate = rope)\ny = where(keep, y, 0)"
    ),
    "documents": "time s: segment = ids\ny = x |> attention(heads, mask = causal)",
    "ALiBi": (
        "slope = alibi_slopes(heads)\nbend = (a[...], s, t) -> a + slope * (slot(t) - slot(s))\n"
        "y = x |> attention(heads, mask = causal, score = bend)"
    ),
    "a shift by slot": "y = x[s: max(slot(s) - 2, 0)]",
    "a convolution": "time s: valid = keep\ny = where(keep, x |> causal_conv(3) as conv, 0)",
    "a kernel as long as the sequence": (
        "weight w[d]\nkernel[s, d] = exp(-slot(s)) * w\ny = x |> long_convolution(kernel)"
    ),
    "an index less an index": (
        "weight w[k: 3, d]\ny[b, s, d] = dot(x[s: max(slot(s) - index(k), 0)], w, k)"
    ),
    "half the pace": "y = x[s: slot(s) // 2]",
    "an earlier one or data's": "y = x[s: min(slot(s), ids)]",
    "a maximum over what is visible": (
        SCORES + "m2[b, s] = amax(where(causal(s, u), a, -inf), u)\ny = x + m2"
    ),
    "values that pass through a repeat": (
        "h = x\ny = x\nrepeat layers[i: 3] { y = h; h = y |> attention(heads, mask = causal) as a }"
    ),
    "a scan": "y = x |> lstm(d) as cell",
    "a scan with padding, documents and resets": (
        "time s: valid = keep, segment = ids\n"
        "scan s (reset = ids > 3) with h[b, d] = 0 { h = 0.9 * h + x }\ny = where(keep, h, 0)"
    ),
    "states that read each other": (
        "scan s with p[..., d] = 0, q = 1, r = 2 { p = 0.5 * q + x; q = r; r = prev(p) }\ny = q + r"
    ),
    "a scan of causal attention": (
        "z = x |> attention(heads, mask = causal)\nscan s with h = 0 { h += z }\ny = h"
    ),
    "a scan in a repeat": (
        "y = x\nrepeat layers[i: n] { y += y |> lstm(d) as cell |> attention(heads, mask = causal) }"
    ),
    "another sequence, from its end": (
        "scan t (reverse = true) with h[b, d] = 0 { h = 0.9 * h + m }\ny = x + last(h)"
    ),
    "a memory that is read in a repeat": (
        "y = x\nrepeat layers[i: 2] { y += y |> attention(heads, memory = m) as a }"
    ),
}
LOOKS_AHEAD = {
    "a difference of which one part looks ahead": """a[b, s, u] = dot(x, x[s -> u], d)
      p = softmax(where(causal(s, u), a, -inf), u)
      r = softmax(a, u)
      y[b, s, d] = dot(p - 0.5 * r, x[s -> u], u)""",
    "full attention": "y = x |> attention(heads)",
    "one too far": "y = x |> attention(heads, mask = (s, t) -> position(t) <= position(s) + 1)",
    "or": "y = x |> attention(heads, mask = (s, t) -> causal(s, t) or keep[s -> t])",
    "turned around": "y = x |> attention(heads, mask = (s, t) -> position(s) <= position(t))",
    "a finite fill": (
        SCORES + "p = softmax(where(causal(s, u), a, -1e9), u)\ny[b, s, d] = dot(p, x[s -> u], u)"
    ),
    "a mask after the softmax": (
        SCORES + "p = where(causal(s, u), softmax(a, u), 0)\ny[b, s, d] = dot(p, x[s -> u], u)"
    ),
    "a sum": "y = x - sum(x, s)",
    "a mean": "y = x / mean(abs(x), s)",
    "a maximum": "y = x - amax(x, s)",
    "a softmax over time": "y = softmax(x, s)",
    "the length": "y = x / size(s)",
    "the length as an index": "weight w[rows: 16, d]\ny = x + w[rows: s - 1]",
    "a convolution that ends too late": (
        "weight w[d, tap: 3]\nplace[s, tap] = slot(s) + index(tap) - 1\n"
        "y = dot(x[s: max(place, 0)], w, tap)"
    ),
    "an index plus one": "weight w[tap: 2, d]\ny = sum(x[s: slot(s) + index(tap)] * w, tap)",
    "a kernel of a sum": (
        "kernel[s, d] = exp(-slot(s)) * sum(x, b, s)\ny = x |> long_convolution(kernel)"
    ),
    "a product with a kernel above the diagonal": (
        "k[s, d] = exp(-slot(s)) * sum(m, t, b)\npast = x[s -> u]\n"
        "y[b, s, d] = dot(k[s: max(slot(u) - slot(s), 0)], past, u)"
    ),
    "the last entry": "y = x + x[s: -1]",
    "the next entry": "y = x[s: min(index(s) + 1, 8)]",
    "an index from data": "y = x[s: ids]",
    "in a repeat": "y = x\nrepeat layers[i: n] { y += y |> attention(heads) as a }",
    "a shared statistic of one layer": (
        "y = x\nrepeat layers[i: n] { y = y - mean(x, s) * (i + 1) }"
    ),
    "what reaches the output after three layers": (
        "p = x\nq = x\ny = x\nrepeat layers[i: 4] { y = q; q = p; p = p |> attention(heads) as a }"
    ),
    "a window that grows with the length": (
        "y = x |> attention(heads, mask = (s, t) -> slot(t) <= slot(s) + size(s))"
    ),
    "positions that data give": (
        "time s: position = ids\n"
        "y = x |> attention(heads, mask = (s, t) -> position(t) <= position(s))"
    ),
    "a scan in reverse": "y = x |> lstm(d, reverse = true) as cell",
    "the last state of a scan": "scan s with h[b, d] = 0 { h = 0.9 * h + x }\ny = x + last(h)",
    "a scan of what looks ahead": (
        "z = x |> attention(heads)\nscan s with h = 0 { h += z }\ny = h"
    ),
    "a state that starts from the mean": (
        "first = mean(x, s)\nscan s with h = first { h = 0.9 * h + x }\ny = h"
    ),
    "steps that read the whole sequence": (
        "seen = x[s -> u]\nscan s with h[b, d] = 0 { h = 0.9 * h + sum(seen, u) }\ny = h"
    ),
    "what reaches a state after two steps": (
        "z = x |> attention(heads)\n"
        "scan s with p[b, d] = 0, q[b, d] = 0 { q = prev(p); p = z }\ny = q"
    ),
    "a scan along the keys": (SCORES + "scan u with h[b, s] = 0 { h += a }\ny = x + last(h)"),
    "the largest of all times": "v, i = topk(x, s, k: 2)\ny = x + sum(v, k)",
    "the largest of what a finite fill hides": (
        SCORES + "v, i = topk(where(causal(s, u), a, 0), u, k: 2)\ny = x + sum(v, k)"
    ),
    "a reversed sequence": "y = x[s: size(s) - 1 - index(s)]",
    "how many entries are valid": "time s: valid = keep\ny = x / (count(s) + 1)",
    "a cross product over time": "g[b, d, c] = dot(x, x[d -> c], s)\ny[b, s, d] = dot(g, x[d -> c], c)",
}


def program_of(body: str) -> Program:
    text = HEAD + body + "\noutput y[b, s, d] = y\n}"
    module = module_of(parse(Source("model.arch", text)))
    return elaborate(module, the_model(module))


@pytest.mark.parametrize("body", CAUSAL.values(), ids=CAUSAL)
def test_what_is_accepted_reads_nothing_later(body: str) -> None:
    """Change everything from some position on: nothing before it may move."""
    program = program_of(body)
    prove_causal(program)
    model = NumpyBackend().load(program, random_weights(program), dtype="f64")
    first, second = inputs(0), inputs(1)
    for at in (1, 4, LENGTH - 1):
        mixed = {
            name: array if name == "m" else np.concatenate([array[:, :at], second[name][:, at:]], 1)
            for name, array in first.items()
        }
        before, after = model.run(first)["y"], model.run(mixed)["y"]
        np.testing.assert_allclose(before[:, :at], after[:, :at], rtol=0, atol=1e-12)


@pytest.mark.parametrize("body", LOOKS_AHEAD.values(), ids=LOOKS_AHEAD)
def test_what_looks_ahead_is_refused(body: str) -> None:
    with pytest.raises(LooksAhead) as caught:
        prove_causal(program_of(body))
    assert caught.value.span is not None
    assert (caught.value.axis, caught.value.output) == ("s", "y")


def test_without_decode_nothing_is_proved() -> None:
    text = HEAD.replace("decode s\n", "") + "output y[b, d] = sum(x, s)\n}"
    module = module_of(parse(Source("model.arch", text)))
    prove_causal(elaborate(module, the_model(module)))


def test_every_output_but_the_loss_is_proved() -> None:
    text = HEAD + "output y = x\noutput pooled[b, d] = mean(x, s)\n}"
    module = module_of(parse(Source("model.arch", text)))
    with pytest.raises(LooksAhead, match="pooled"):
        prove_causal(elaborate(module, the_model(module)))
    text = HEAD + "output y = x\nloss = sum(x, b, s, d)\n}"
    module = module_of(parse(Source("model.arch", text)))
    prove_causal(elaborate(module, the_model(module), Request(loss=True)))


def test_the_refusal_shows_the_line_of_the_model() -> None:
    with pytest.raises(LooksAhead) as caught:
        prove_causal(program_of("z = x\ny = z |> attention(heads) as mix"))
    assert "y = z |> attention(heads) as mix" in str(caught.value)


FACT = "input length: int[] = size(s)\n"
TURNED = """turn = rope(10.0, scaling = longrope([1, 1, 1], [2, 3, 4], 5, 2.0), dims = 6)
y = x |> attention(1, mask = causal, rotate = (q[..., e], t) -> turn(q, t, length)) as mix"""


def proved(body: str, given: tuple[str, ...] | None = None) -> Program:
    module = module_of(parse(Source("model.arch", f"{HEAD}{body}\noutput y[b, s, d] = y\n}}")))
    return elaborate_proved(module, the_model(module), Request(given=given))


def test_a_computed_default_is_a_fact_of_the_call() -> None:
    """A prefix that is given the whole length gives the prefix of the whole."""
    alone = proved(FACT + TURNED)
    told = proved(FACT + TURNED, ("x", "ids", "keep", "m", "length"))
    weights, whole = random_weights(alone), inputs(0)
    prefix = {k: v if k == "m" else v[:, :4] for k, v in whole.items()}
    expected = NumpyBackend().load(alone, weights, dtype="f64").run(whole)["y"][:, :4]
    model = NumpyBackend().load(told, weights, dtype="f64")
    found = model.run({**prefix, "length": np.array(LENGTH)})["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    short = model.run({**prefix, "length": np.array(4)})["y"]
    assert np.abs(short - expected).max() > 1e-3


@pytest.mark.parametrize(
    "body",
    [
        TURNED.replace("length", "size(s)"),
        FACT + "a[b, s, u] = dot(x, x[s -> u], d) * length\ny = dot(a, x[s -> u], u)",
        "input z: float[b, s, d] = x - x[s: -1]\ny = z",
        "input z: float[b, s, d] = x |> attention(heads)\ny = z",
    ],
)
def test_only_facts_of_the_call_are_beyond_the_proof(body: str) -> None:
    with pytest.raises(LooksAhead):
        proved(body)


def test_a_computed_default_along_the_decoded_axis() -> None:
    """Proved as computed where it is left out; where it is given, an input like any other."""
    body = "input z: float[b, s, d] = x |> attention(heads, mask = causal)\ny = z"
    program, whole = proved(body), inputs(0)
    run = NumpyBackend().load(program, random_weights(program), dtype="f64").run
    prefix = {k: v if k == "m" else v[:, :4] for k, v in whole.items()}
    np.testing.assert_allclose(run(whole)["y"][:, :4], run(prefix)["y"], rtol=0, atol=1e-12)
    given = proved("input z: float[b, s, d] = x |> attention(heads)\ny = z", ("z",))
    z = np.ones_like(whole["x"])
    found = NumpyBackend().load(given, random_weights(given), dtype="f64").run({**whole, "z": z})
    np.testing.assert_array_equal(found["y"], z)


def inputs(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "x": random.standard_normal((2, LENGTH, 8)),
        "ids": random.integers(0, 5, (2, LENGTH)),
        "keep": random.random((2, LENGTH)) < 0.7,
        "m": random.standard_normal((2, 4, 8)),
    }


GATHERED = """total = 0.0
repeat layers[i: n] {
  x += x |> attention(heads, mask = causal)
  total += sum(x * x, b, s, d)
}
"""


def test_what_a_repeat_carries_is_proved_apart() -> None:
    """A number that reads the whole sequence, gathered beside the values that do not."""
    prove_causal(program_of(GATHERED + "loss = total\ny = x"))
    with pytest.raises(LooksAhead):
        prove_causal(program_of(GATHERED + "y = x + total"))
