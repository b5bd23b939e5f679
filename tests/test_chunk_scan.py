"""`chunk-scan`: whatever is recognised gives what the loop over steps gives, whatever the chunks."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from bundled import example
from goldens import compare, read
from graphs import evaluate
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import model, program, weights

import archc
from archc.backends.numpy import NumpyBackend
from archc.backends.torch import TorchBackend
from archc.backends.triton import TritonBackend
from archc.compiler.ir.graph import Node, Program
from archc.compiler.ir.text import canonical, parse, show
from archc.compiler.ir.verify import verify
from archc.compiler.passes import optimise
from archc.compiler.passes.explain import explain_text
from archc.compiler.rewrite import Site

EXAMPLES = Path(__file__).parent.parent / "examples"
GOLDEN = Path(__file__).parent / "golden" / "chunk_scan.golden"
LENGTH, ROWS, WIDTH = 37, 2, 8
TILES = (1, 3, 16, 64)  # a step, a ragged end, chunks that fit twice, one chunk
NOISE = np.random.default_rng(11)
GIVEN = {
    "x": NOISE.standard_normal((ROWS, LENGTH, WIDTH)),
    "ids": NOISE.integers(0, WIDTH, (ROWS, LENGTH)),
    "keep": NOISE.random((ROWS, LENGTH)) < 0.7,
}
TIME = "time s: valid = keep"
DOCUMENTS = "time s: valid = keep, segment = ids // 3"
OUTPUT = "output y[b, s, d] = "

SELECTIVE = f"""
  delta = f32(softplus(x |> linear(d) as step))
  u = x[d -> d]
  write = x |> linear(n: 3) as write
  read = x |> linear(n) as read
  weight a_log[d, n] = zeros
  scan s with h[..., d, n] = 0 {{
    h = exp(-exp(a_log) * delta) * h + delta * u * write
    y = dot(h, read, n)
  }}
  {OUTPUT}y
  output last_h[b, d, n] = last(h)
"""
OSCILLATOR = f"""
  weight angle[d] = zeros
  weight rate[d] = zeros
  c = exp(-exp(rate)) * cos(angle + 1)
  w = exp(-exp(rate)) * sin(angle + 1)
  scan s with re[..., d] = 0, im[..., d] = 0 {{
    before = re
    re = c * re - w * im + x
    im = c * im + w * before
    y = re * x - tanh(im)
  }}
  {OUTPUT}y
"""
LINEAR_ATTENTION = f"""
  k = x |> linear(n: 3) as k
  q = x |> linear(n) as q
  decay = sigmoid(x |> linear(one: 1) as gate)[one: 0]
  scan s with h[b, d, n] = 0, total[b, n] = 0 {{
    h = decay * h + x * exp(k)
    total = decay * total + exp(k)
    y = dot(h, exp(q), n) / dot(total, exp(q), n)
  }}
  {OUTPUT}y
"""
GATED = f"""
  k = x |> linear(n: 3) as k
  gate = sigmoid(x |> linear(n) as gate)
  scan s with h[b, n, d] = 0 {{ h = gate * h + k * x ; y = dot(prev(h), k, n) + dot(h, gate, n) }}
  {OUTPUT}y
"""
STABILISED = f"""
  k = x |> linear(d) as k
  weight w[d] = zeros
  scan s with num[..., d] = 0, den[..., d] = 0, m[..., d] = -30 {{
    before = m
    m = max(m - exp(w), k)
    num = exp(before - exp(w) - m) * num + exp(k - m) * x[d -> d]
    den = exp(before - exp(w) - m) * den + exp(k - m)
    y = num / den
  }}
  {OUTPUT}y
"""
STARTED = f"""
  start = sum(x, s)
  scan s with h[..., d] = start {{ h = sigmoid(x) * h + x }}
  {OUTPUT}h
  output last_h[b, d] = last(h)
"""
DRIVEN = f"""
  gate = sigmoid(x)
  scan s with slow[..., d] = 1, fast[..., d] = 0 {{
    fast = gate * fast / 2 - (slow - x) * 0.25
    slow = 0.5 * slow + gate * prev(fast)
    y = fast * slow + prev(slow)
  }}
  {OUTPUT}y
"""
RETENTION = """
  k = x |> linear(g: 2, n: 3) as k
  q = x |> linear(g: 2, n: 3) as q
  v = x |> linear(g: 2, e: 5) as v
  const decay[g: 2] = [0.5, 0.9]
  scan s with h[..., g, e, n] = 0 {
    h = decay * h + k * v / 3
    y = dot(h - k * v, q, n)
    z = dot(prev(h), q, n)
  }
  output y[b, s, g, e] = y * z
  output last_h[b, g, e, n] = last(h)
"""
UNDECAYED = f"""
  k = x |> linear(n: 3) as k
  scan s with h[b, d, n] = sum(x * k, s) {{ h += x * k ; y = dot(h, k, n) }}
  {OUTPUT}y
"""
COUNTED = f"""
  k = sigmoid(x |> linear(n: 3) as k)
  scan s with h[b, n, d] = 0, total[b, n] = 0 {{
    h += x * k
    total += k
    y = dot(h, k, n) / (1 + dot(total, k, n))
  }}
  {OUTPUT}y
"""
REPEATED = f"""
  weight u[d] = normal
  k = x |> linear(n: 3) as k
  scan s with h[b, n, d] = 0 {{ h += u * k ; y = dot(h, k, n) }}
  {OUTPUT}y
"""
DELTA = """
  k = l2_normalise(0.1)(x |> linear(g: 2, n: 3) as k)
  q = x |> linear(g: 2, n: 3) as q
  v = x |> linear(g: 2, e: 5) as v
  gate = sigmoid(x |> linear(g: 2) as gate)
  share = 2 * sigmoid(x |> linear(g: 2) as share)
  scan s with h[..., g, n, e] = 0 {
    h = gate * h
    h = h + k * share * (v - dot(h, k, n))
    y = dot(h, q, n)
    z = dot(prev(h), q, n)
  }
  output y[b, s, g, e] = y - z
  output last_h[b, g, n, e] = last(h)
"""
RESET = "scan s (reset = ids == 3)"
CONTRACTED: dict[str, str] = {
    "linear attention": LINEAR_ATTENTION,
    "linear attention, padded": TIME + LINEAR_ATTENTION,
    "linear attention, documents": DOCUMENTS + LINEAR_ATTENTION,
    "linear attention, in reverse, reset": LINEAR_ATTENTION.replace(
        "scan s", "scan s (reverse = true, reset = ids == 3)"
    ),
    "retention": RETENTION,
    "retention, padded": TIME + RETENTION,
    "no decay": UNDECAYED,
    "no decay, and a sum of the keys": COUNTED,
    "no decay, one value for all steps": REPEATED,
    "a gated delta rule": DELTA,
    "a gated delta rule, padded": TIME + DELTA,
    "a gated delta rule, documents": DOCUMENTS + DELTA,
    "a gated delta rule, in reverse, reset": DELTA.replace(
        "scan s", "scan s (reverse = true, reset = ids == 3)"
    ),
}
AFFINE: dict[str, str] = {
    **CONTRACTED,
    "selective": SELECTIVE,
    "selective, padded": TIME + SELECTIVE,
    "selective, reset": SELECTIVE.replace("scan s", RESET),
    "selective, in reverse": SELECTIVE.replace("scan s", "scan s (reverse = true)"),
    "selective, documents": DOCUMENTS + SELECTIVE,
    "two states that turn": OSCILLATOR,
    "two states that turn, padded": TIME + OSCILLATOR,
    "a decay for each key": GATED,
    "a decay for each key, padded": TIME + GATED,
    "a stabiliser": STABILISED,
    "a stabiliser, padded": TIME + STABILISED,
    "a given start": STARTED,
    "two states that drive each other": DRIVEN,
}


@cache
def chunked(name: str) -> tuple[Program, Program]:
    before = program(model(AFFINE[name]))
    after = optimise(before, verify=evaluate).program
    verify(after)
    return before, after


def nodes(found: Program, op: str) -> list[Node]:
    return [n for f in found.functions for n in f.nodes if n.op == op]


def needed(found: Program) -> dict[str, np.ndarray]:
    wanted = {n.attrs["name"] for n in found.main.nodes if n.op == "input"}
    return {k: v for k, v in GIVEN.items() if k in wanted}


def agree(before: Program, after: Program, values: dict[str, np.ndarray] | None = None) -> None:
    """At every length of a chunk, in float64."""
    inputs, made = values or needed(before), weights(before)
    expected = NumpyBackend().load(before, made, dtype="f64").run(inputs)
    for tile in TILES:
        got = NumpyBackend().load(after, made, dtype="f64", tile=tile).run(inputs)
        for output, value in expected.items():
            np.testing.assert_allclose(got[output], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", AFFINE)
def test_chunks_are_the_steps(name: str) -> None:
    before, after = chunked(name)
    (node,) = nodes(after, "chunked_scan")
    assert node.attrs["length"] == (64 if name in CONTRACTED else 16)
    agree(before, after)


@pytest.mark.parametrize("name", CONTRACTED)
def test_without_products_the_states_are_steps(name: str) -> None:
    before, _ = chunked(name)
    after = optimise(before, disable=["chunk-products"], verify=evaluate).program
    agree(before, after)


@pytest.mark.parametrize("name", AFFINE)
def test_the_pass_comes_to_rest_and_its_graph_prints(name: str) -> None:
    _, after = chunked(name)
    assert optimise(after).program == after
    assert parse(show(after)) == canonical(after)


@pytest.mark.parametrize("name", AFFINE)
def test_torch(name: str) -> None:
    before, after = chunked(name)
    inputs, made = needed(before), weights(before)
    expected = NumpyBackend().load(before, made, dtype="f64").run(inputs)
    got = TorchBackend().load(after, made, dtype="f64").run(inputs)
    for output, value in expected.items():
        np.testing.assert_allclose(got[output], value, rtol=1e-10, atol=1e-10)


def test_triton() -> None:
    before, after = chunked("selective, padded")
    inputs, made = needed(before), weights(before)
    expected = NumpyBackend().load(before, made, dtype="f64").run(inputs)
    got = TritonBackend().load(after, made, dtype="f32").run(inputs)
    np.testing.assert_allclose(got["y"], expected["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "selective",
        "linear attention, in reverse, reset",
        "a stabiliser",
        "a gated delta rule, padded",
    ],
)
def test_gradients_are_those_of_the_steps(name: str) -> None:
    before, after = chunked(name)
    made = weights(before)
    given = [torch.from_numpy(v) for v in needed(before).values()]
    found = []
    for each in (before, after):
        loaded = TorchBackend().load(each, made, dtype="f64", train=True)
        loaded.module(*given)["y"].square().sum().backward()
        found.append([p.grad for p in loaded.module.parameters()])
    for expected, got in zip(*found, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_keys_that_repeat_lose_no_digits() -> None:
    """Each step corrects the one before by all of it: powers of the triangle would grow to 1e18."""
    body = """k = x / sqrt(dot(x, x, d))
  scan s with h[b, d, e: 2] = 0 {
    h = h + k * (x[d -> f][f: 0..2][f -> e] - dot(h, k, d))
    y = dot(h, k, d)
  }
  output y[b, s, e] = y"""
    before = program(model(body))
    after = optimise(before, verify=evaluate).program
    assert nodes(after, "substitute")
    x = np.repeat(NOISE.standard_normal((1, 1, WIDTH)), 128, 1)
    x *= np.linspace(1, 3, 128)[:, None]
    for backend in (NumpyBackend(), TorchBackend()):
        y = backend.load(after, {}, dtype="f32").run({"x": x})["y"]
        np.testing.assert_allclose(y, x[..., :2], rtol=1e-4)


def test_no_step_and_one_step() -> None:
    before, after = chunked("selective")
    for length in (0, 1, 16):
        values = {"x": GIVEN["x"][:, :length]}
        agree(before, after, values)
        got = TorchBackend().load(after, weights(before), dtype="f64").run(values)
        assert got["y"].shape == (ROWS, length, WIDTH)


# ----------------------------------------------------------------------------- extreme gates

GATES = """
  input gate: float[b, s, d]
  scan s (reset = ids == 0) with h[..., d, n] = 0 {
    h = gate * h + x * w ; y = dot(h, w, n)
  }
  output y[b, s, d] = y
  output z[b, d, n] = last(h)
"""


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("where", ["", TIME])
@pytest.mark.parametrize("gate", [0.0, 1e-300, 1.0, None])
def test_extreme_gates(gate: float | None, where: str, per_row: bool) -> None:
    """Nothing is divided by a product of gates: one that is 0, or vanishes, is a gate like others."""
    text = GATES.replace("gate * h", "amax(gate, d) * h") if per_row else GATES
    text = model(f"{where}\n  weight w[n: 3] = ones\n{text}")
    before = program(text)
    after = optimise(before, verify=evaluate).program
    (node,) = nodes(after, "chunked_scan")
    assert (node.attrs["length"] == 64) == per_row
    shape = (ROWS, LENGTH, WIDTH)
    gates = NOISE.choice([0.0, 1e-300, 0.5, 1.0], shape) if gate is None else np.full(shape, gate)
    for starts in ([16], [15, 32], [0, 1, 2], []):  # on and off the borders of chunks
        ids = np.ones((ROWS, LENGTH), int)
        ids[:, starts] = 0
        values = {**needed(before), "gate": gates, "ids": ids}
        agree(before, after, values)


# ----------------------------------------------------------------------------- random bodies

STATES = ("h", "g")
LEAVES = ("x", "gate", "0.5", "2")


def affine(draw: st.DrawFn, depth: int = 3) -> str:
    """An expression that is affine in the states."""
    kind = draw(st.sampled_from(["state", "free", "add", "sub", "mul", "div", "where", "cast"]))
    if depth == 0 or kind == "state":
        return draw(st.sampled_from(STATES))
    if kind == "free":
        return free(draw, depth - 1)
    inner = affine(draw, depth - 1)
    if kind in ("add", "sub"):
        return f"({inner} {'+' if kind == 'add' else '-'} {affine(draw, depth - 1)})"
    if kind == "mul":
        factor = free(draw, depth - 1)
        return f"({factor} * {inner})" if draw(st.booleans()) else f"({inner} * {factor})"
    if kind == "div":
        return f"({inner} / (2 + sigmoid({free(draw, depth - 1)})))"
    if kind == "cast":
        return f"f32({inner})"
    return f"where({free(draw, depth - 1)} > 0, {inner}, {affine(draw, depth - 1)})"


def free(draw: st.DrawFn, depth: int) -> str:
    if depth <= 0:
        return draw(st.sampled_from(LEAVES))
    inner = free(draw, depth - 1)
    return draw(st.sampled_from([f"tanh({inner})", f"({inner} * gate)", f"({inner} - x)"]))


@st.composite
def bodies(draw: st.DrawFn) -> str:
    header = draw(st.sampled_from(["scan s", RESET, "scan s (reverse = true)"]))
    time = draw(st.sampled_from(["", TIME, DOCUMENTS]))
    updates = "\n".join(f"    {name} = 0.3 * {affine(draw)} + 0.1 * x" for name in STATES)
    return f"""
  {time}
  gate = sigmoid(x)
  {header} with h[..., d] = 0.0, g[..., d] = 1.0 {{
{updates}
    y = tanh(h) * gate + prev(g)
  }}
  {OUTPUT}y
  output z[b, d] = last(g)
"""


@settings(max_examples=40, deadline=None)
@given(bodies())
def test_affine_bodies_are_recognised(body: str) -> None:
    before = program(model(body))
    after = optimise(before).program
    verify(after)
    assert len(nodes(after, "chunked_scan")) == 1
    agree(before, after)


# ----------------------------------------------------------------------------- whole models

FORMS = {
    "retnet": "chunk-products",
    "mamba2": "chunk-products",
    "linear_transformer": "chunk-products",
    "mamba": "chunk-scan",
    "s4d": "chunk-scan",
    "rwkv4": "chunk-scan",
}


@pytest.mark.parametrize("gate", [0.0, 1e-300, 1.0, None])
def test_a_gate_for_each_key(gate: float | None) -> None:
    """Gated linear attention: its gates have the contracted axis, so that its states are steps."""
    text = model("""
  time s: valid = keep
  input gate: float[b, s, n: 3]
  k = x |> linear(n) as k
  q = x |> linear(n) as q
  scan s with h[b, n, d] = 0 { h = gate * h + k * x ; y = dot(h, q, n) }
  output y[b, s, d] = y
""")
    before = program(text)
    done = optimise(before, verify=evaluate)
    assert [s.pass_name for s in of_pass(done.sites) if s.fired] == ["chunk-scan"]
    shape = (ROWS, LENGTH, 3)
    gates = NOISE.choice([0.0, 1e-300, 0.5, 1.0], shape) if gate is None else np.full(shape, gate)
    agree(before, done.program, {**needed(before), "gate": gates})


@pytest.mark.parametrize("name", FORMS)
def test_recurrent_chunked_and_parallel(name: str) -> None:
    """One text is all three: steps, chunks of any length, and one chunk of the whole sequence."""
    loaded = archc.load(EXAMPLES / f"{name}.arch", preset="tiny").with_random_weights(3)
    taken = {n.attrs["name"]: n for n in loaded.program.main.nodes if n.op == "input"}
    inputs = {"input_ids": NOISE.integers(0, 131, (ROWS, LENGTH))}
    if "x" in taken:
        width = taken["x"].axes[-1].size.evaluate(loaded.program.sizes)
        inputs = {"x": NOISE.standard_normal((ROWS, LENGTH, width))}
    if "attention_mask" in taken:
        keep = np.ones((ROWS, LENGTH), bool)
        keep[0, -5:] = keep[1, :4] = False
        inputs["attention_mask"] = keep
    expected = loaded.compile("numpy", dtype="f64", level=0)(**inputs)
    for tile in TILES:
        chunks = loaded.compile("numpy", dtype="f64", tile=tile)
        assert any(s.fired and s.pass_name == FORMS[name] for s in chunks.optimised.sites)
        got = chunks(**inputs)
        for output, value in expected.items():
            np.testing.assert_allclose(got[output], value, rtol=1e-10, atol=1e-10)


# ----------------------------------------------------------------------------- the report

REPORTED: dict[str, str] = {
    **{name: AFFINE[name] for name in ("selective", "a stabiliser", "retention")},
    "a product of states": "scan s with h[..., d] = 0 { h = h * h + tanh(x) }",
    "a function of the state": "scan s with h[..., d] = 0 { h = tanh(0.5 * h + x) }",
    "a gate made of the state": "scan s with h[..., d] = 0 { h = sigmoid(h) * h + exp(x) }",
    "a matrix times the state": (
        "weight w[d, e: 8] = zeros\n"
        "  scan s with h[..., d] = 0 { h = dot(w, h[d -> e], e) + exp(x) }"
    ),
    "the delta rule": (
        "k = x |> linear(n: 3) as k\n  scan s with h[b, n, d] = 0 "
        "{ h = h - k * dot(k, h, n) + k * x }"
    ),
    "axes that change places": (
        "scan s with h[b, m: 3, n: 3] = 0 { h = 0.5 * h[m -> n, n -> m] + exp(sum(x, d)) }"
    ),
    "a gradient that is stopped": (
        "scan s with h[..., d] = 0 { h = stop_gradient(h) * 0.5 + tanh(x) }"
    ),
    "nothing to do at once": "scan s with h[..., d] = 0 { h = 0.5 * h + x }",
}


def text_of(name: str) -> str:
    body = REPORTED[name]
    if "output" in body:
        return model(body)
    left = "h" if "d] = 0" in body or "h[..., d]" in body else "sum(h, m) |> sum(n)"
    made = f"output y = {left}" if left != "h" else "output y = h"
    return model(f"{body}\n  {made}")


def of_pass(sites: tuple[Site, ...]) -> list[Site]:
    return [site for site in sites if site.pass_name.startswith("chunk-")]


@pytest.mark.parametrize("name", REPORTED)
def test_the_report(name: str, accept: bool) -> None:
    """What stays sequential is named, with the op that prevents it."""
    sites = of_pass(optimise(program(text_of(name))).sites)
    text = explain_text(sites, {"b": 1, "s": 32}) or "no site"
    compare(GOLDEN, read(GOLDEN) if GOLDEN.exists() else {}, name, text, accept=accept)


def test_the_lstm_is_declined() -> None:
    done = optimise(example("conditioned_llm"))
    assert not nodes(done.program, "chunked_scan")
    sites = of_pass(done.sites)
    assert len(sites) == 2
    assert not any(site.fired for site in sites)
    assert all("mixes the elements of `h`" in site.reason for site in sites)


# ----------------------------------------------------------------------------- torch.compile


@pytest.mark.parametrize("name", AFFINE)
def test_the_methods_that_are_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text for torch.compile, run as it is written."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    before = program(model(AFFINE[name]))
    unwanted = TorchBackend().unwanted_passes("f64", compile=True)
    for after in (optimise(before, disable=unwanted).program, chunked(name)[1]):
        loaded = TorchBackend().load(after, weights(before), dtype="f64", compile=True)
        expected = NumpyBackend().load(before, weights(before), dtype="f64").run(needed(before))
        got = loaded.run(needed(before))
        for output, value in expected.items():
            np.testing.assert_allclose(got[output], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["selective, padded", "linear attention, padded"])
def test_compiled_steps(name: str) -> None:
    """The loop over chunks is not unrolled: lengths differ, and an end is shorter than a chunk."""
    before = program(model(AFFINE[name]))
    unwanted = TorchBackend().unwanted_passes("f64", compile=True)
    assert "chunk-scan" in unwanted
    found = optimise(before, disable=unwanted).program
    made = weights(before)
    loaded = TorchBackend().load(found, made, dtype="f64", compile=True)
    reference = NumpyBackend().load(before, made, dtype="f64")
    for length in (32, 37):
        values = {k: v[:, :length] for k, v in needed(before).items()}
        expected, got = reference.run(values), loaded.run(values)
        for output, value in expected.items():
            np.testing.assert_allclose(got[output], value, rtol=1e-10, atol=1e-10)
