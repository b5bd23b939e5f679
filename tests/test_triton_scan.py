"""Whole scans in one kernel: steps, and chunks of steps, against NumPy in float64 as written."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
from small_models import model, program, weights

from archc.backends.numpy import NumpyBackend
from archc.backends.triton import TritonBackend, TritonExecutable, aot
from archc.backends.triton.host import Plan
from archc.backends.triton.source import sources
from archc.compiler.ir.graph import Program
from archc.compiler.passes import optimise

pytest.importorskip("triton")

PADDED = "time s: valid = keep\n"
OUTPUT = "output y[b, s, d] = y"
# What a step does, by how the states are laid out in a program.
STEPS = {
    "a factor for each element, padded": PADDED
    + f"""
  read = x |> linear(n: 3) as read
  scan s with h[..., d, n] = sum(x, s) {{ h = sigmoid(x) * h + x * read ; y = dot(h, read, n) }}
  {OUTPUT}
  output last_h[b, d, n] = last(h)
""",
    "a stabiliser, from the end": f"""
  scan s (reverse = true) with num[..., d] = 0, m[..., d] = -30 {{
    before = m
    m = max(m - 0.1, x)
    num = exp(before - 0.1 - m) * num + exp(x - m)
    y = num
  }}
  {OUTPUT}
  output last_m[b, d] = last(m)
""",
    "states that change places, reset": f"""
  scan s (reset = ids == 3) with a[..., d] = 1, c[..., d] = 0 {{
    before = a ; a = c ; c = before * 0.5 + x ; y = a - c
  }}
  {OUTPUT}
  output last_a[b, d] = last(a)
""",
    "a matrix times the state, padded": PADDED + "output y[b, s, d] = x |> lstm(d) as rnn",
    "a state that lacks an axis of another, padded": PADDED
    + f"""
  k = sigmoid(x |> linear(n: 3) as k)
  gate = sigmoid(x |> linear(n) as gate)
  scan s with h[b, d, n] = 0, total[b, n] = 0 {{
    h = gate * h + x * k
    total = gate * total + k
    y = dot(h, k, n) / (1 + dot(total, k, n))
  }}
  {OUTPUT}
  output last_total[b, n] = last(total)
""",
}
CHUNKS = {
    "linear attention, padded": PADDED
    + f"""
  k = sigmoid(x |> linear(n: 3) as k)
  gate = sigmoid(x |> linear(one: 1) as gate)[one: 0]
  scan s with h[b, d, n] = sum(x * k, s), total[b, n] = 0 {{
    h = gate * h + x * k
    total = gate * total + k
    y = dot(h, k, n) / (1 + dot(total, k, n))
  }}
  {OUTPUT}
  output last_h[b, d, n] = last(h)
  output last_total[b, n] = last(total)
""",
    "retention by heads, from the end, reset": """
  k = x |> linear(g: 2, n: 3) as k
  v = x |> linear(g: 2, e: 5) as v
  const decay[g: 2] = [0.5, 0.9]
  scan s (reverse = true, reset = ids == 3) with h[..., g, e, n] = 0 {
    h = decay * h + k * v / 3
    y = dot(h - k * v, k, n) * dot(prev(h), k, n)
  }
  output y[b, s, g, e] = y
  output last_h[b, g, e, n] = last(h)
""",
    "the delta rule, padded": PADDED
    + """
  k = x |> linear(n: 4) as k
  scan s with h[b, n, d] = 0 {
    h = h - k * dot(0.3 * k, h, n) + k * x
    y = dot(h, k, n)
  }
  output y[b, s, d] = y
""",
    "a gated delta rule, from the end, reset": """
  k = x |> linear(g: 2, n: 3) as k
  v = x |> linear(g: 2, e: 5) as v
  gate = sigmoid(x |> linear(g: 2) as gate)
  share = sigmoid(x |> linear(g: 2) as share)
  scan s (reverse = true, reset = ids == 3) with h[..., g, n, e] = 0 {
    h = gate * h
    h = h + k * (share * (v - dot(h, k, n))) / 3
    y = dot(h, k, n)
  }
  output y[b, s, g, e] = y
  output last_h[b, g, n, e] = last(h)
""",
}
TEXTS = STEPS | CHUNKS
LENGTHS = (1, 17, 127)
LONG = {*CHUNKS, "a stabiliser, from the end"}  # the last of the lengths too: steps are slow here


def lowered(before: Program) -> Program:
    return optimise(before, disable=TritonBackend().unwanted_passes("f32")).program


@cache
def planned(name: str) -> tuple[dict[str, str], Plan]:
    return sources(lowered(program(model(TEXTS[name]))))


@cache
def loaded(name: str) -> tuple[Program, TritonExecutable]:
    before = program(model(TEXTS[name]))
    return before, TritonBackend().load(lowered(before), weights(before), dtype="f32")


def given(before: Program, length: int) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(length)
    keep = np.ones((2, length), bool)
    keep[0, length // 2 :], keep[1, : length // 3] = False, False
    values = {
        "x": noise.standard_normal((2, length, 8)),
        "ids": noise.integers(0, 8, (2, length)),
        "keep": keep,
    }
    wanted = {n.attrs["name"] for n in before.main.nodes if n.op == "input"}
    return {k: v for k, v in values.items() if k in wanted}


@pytest.mark.parametrize("name", TEXTS)
def test_one_kernel_gives_what_the_steps_give(name: str) -> None:
    before, executable = loaded(name)
    gold = NumpyBackend().load(before, weights(before), dtype="f64")
    for length in LENGTHS if name in LONG else LENGTHS[:-1]:
        inputs = given(before, length)
        got = executable.run(inputs)
        for output, value in gold.run(inputs).items():
            wrong = np.linalg.norm(got[output] - value) / max(np.linalg.norm(value), 1e-30)
            assert wrong <= 1e-5, (output, length)


@pytest.mark.parametrize("name", TEXTS)
def test_all_steps_are_in_one_kernel(name: str) -> None:
    files, made = planned(name)
    kinds = [kernel.facts.kind for kernel in made.kernels.values()]
    assert kinds.count("chunks" if name in CHUNKS else "steps") == 1
    assert "for step in" not in files["model.py"]


@pytest.mark.parametrize(
    "name", ["a state that lacks an axis of another, padded", "linear attention, padded"]
)
def test_a_state_of_several_programs_is_stored_by_the_first(name: str) -> None:
    """All programs along d compute `total`, which has no d."""
    kernels = planned(name)[1].kernels.values()
    (kernel,) = (k for k in kernels if k.facts.kind in ("steps", "chunks"))
    stores = [line.strip() for line in kernel.body if line.strip().startswith("tl.store(")]
    (total,) = (line for line in stores if re.search(r", total_\w+, mask=", line))
    assert re.search(r"mask=.*\bfirst_", total)
    assert not any("first_" in line for line in stores if line != total)


def test_what_no_kernel_holds_is_a_loop_that_says_why() -> None:
    """A sum over more elements of a state than registers hold."""
    text = """
  w = x |> linear(n: 300) as w
  scan s with h[b, n] = 0 { h = 0.5 * h + w ; y = h - sum(h, n) / 300 }
  output y[b, s, n] = y
"""
    before = program(model(text))
    after = lowered(before)
    files, _ = sources(after)
    assert (
        "# a loop of kernels: no kernel has a sum over 300 elements of a state"
        in (files["model.py"])
    )
    inputs = given(before, 3)
    expected = NumpyBackend().load(before, weights(before), dtype="f64").run(inputs)["y"]
    got = TritonBackend().load(after, weights(before), dtype="f32").run(inputs)["y"]
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)


# ------------------------------------------------------------------------------ compiled ahead

WIDE = {
    "steps": """
  delta = x |> linear(c: 512) as delta
  read = x |> linear(n: 16) as read
  scan s with h[b, c, n] = 0 { h = exp(delta) * h + delta * read ; y = dot(h, read, n) }
  output y[b, s, c] = y
""",
    "chunks": """
  k = x |> linear(n: 64) as k
  v = x |> linear(g: 4, e: 64) as v
  gate = f32(sigmoid(x |> linear(g) as gate))
  scan s with h[b, g, e, n] = 0 { h = gate * h + v * k ; y = dot(h, k, n) }
  output y[b, s, g, e] = y
""",
    "a delta rule": """
  k = x |> linear(g: 4, n: 64) as k
  v = x |> linear(g: 4, e: 64) as v
  gate = sigmoid(x |> linear(g) as gate)
  scan s with h[b, g, e, n] = 0 {
    h = gate * h
    h = h + k * (v - dot(h, k, n))
    y = dot(h, k, n)
  }
  output y[b, s, g, e] = y
""",
}


@pytest.mark.parametrize(
    ("name", "target"),
    [("steps", "sm_90"), *((n, t) for n in ("chunks", "a delta rule") for t in aot.TARGETS)],
)
def test_states_stay_in_registers(name: str, target: str, tmp_path) -> None:
    files, made = sources(lowered(program(model(WIDE[name]))))
    kind = "steps" if name == "steps" else "chunks"
    (kernel,) = (k for k in made.kernels.values() if k.facts.kind == kind)
    (tmp_path / "kernels.py").write_text(files["kernels.py"])
    (result,) = aot.compile_jobs([aot.job(str(tmp_path), kernel, target, "bf16")], processes=1)
    assert result.failures == ()
    assert result.has_dot == (kind == "chunks")


def test_a_product_of_a_state_is_in_the_type_of_the_other_side() -> None:
    """No value of the run's type is loaded before the first product: its step begins with one."""
    before = program(model("output y[b, s, d] = x |> lstm(d) as rnn"))
    inputs, held = given(before, 5), weights(before)
    half, gold = (
        backend.load(before, held, dtype=dtype).run(inputs)["y"].astype(np.float64)
        for backend, dtype in ((TritonBackend(), "bf16"), (NumpyBackend(), "f64"))
    )
    np.testing.assert_allclose(half, gold, atol=0.05)
