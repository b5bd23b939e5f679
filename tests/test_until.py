"""`repeat .. until`: held to the same text with every layer run and stopped values kept by `where`.

What is really skipped is counted: the layers that left values in a trace, and the rows they had.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from graphs import evaluate
from small_models import ids as mistakes_of
from small_models import program

import archc
from archc.backends.base import Executable
from archc.compiler.ir.text import canonical, parse, show
from archc.compiler.ir.verify import verify
from archc.compiler.passes import optimise
from archc.compiler.weights import random_weights
from archc.dsl.diagnostics import InternalError

RUNS = [
    ("numpy", "f64", 0),
    ("numpy", "f64", 1),
    ("torch", "f64", 0),
    ("torch", "f64", 1),
    ("triton", "f32", 1),
]
TOLERANCE = {"f64": 1e-12, "f32": 1e-5}
ROWS, SLOTS, LAYERS = 7, 5, 5

HEAD = """use std
model M {
  d = 8; heads = 2; vocab = 31; n = 5; bound = 0.3
  input tokens: ids[b, s] < vocab
  input keep: bool[b, s] = true
  time s: valid = keep
  x = tokens |> embedding(vocab, d) as embed
  memory = x |> linear(d) as remembered
"""
TAIL = """
  output out[b, s, d] = x
  output depth = depth
}
"""
# Layers of two kinds with numbers that differ, a captured value and a repeat with rows, a scan.
LAYER = """
    h = x + steps[i] * (x |> rmsnorm |> attention(heads, mask = causal) as attention)
    if i % 2 == 0 { h += memory |> ffn(12) as ffn } else { h += h |> lstm(d) as lstm }
    repeat inner[j: 2] { h = tanh(h + (h |> linear(d) as mix)) }
"""
STEPS = "  steps = [0.5, 1.0, 0.25, 2.0, 1.5]\n"
LOUD = "amax(abs(h), s, d) > bound"


def stopping(condition: str) -> str:
    return f"""{HEAD}{STEPS}  depth = 0
  repeat layers[i: n] {{{LAYER}    x = h
    depth += 1
  }} until {condition}{TAIL}"""


def keeping(condition: str, axes: str) -> str:
    """Every layer runs; what was there when the condition first held stays."""
    start = "0 * tokens[s: 0]" if axes else "0"
    return f"""{HEAD}{STEPS}  depth = {start}
  done = depth > 0
  repeat layers[i: n] {{{LAYER}    x = where(done, x, h)
    depth = where(done, depth, depth + 1)
    done = done or {condition}
  }}{TAIL}"""


CONDITIONS = {"each row": (LOUD, "b"), "all rows": (f"any({LOUD}, b)", "")}


def batch() -> dict[str, np.ndarray]:
    noise = np.random.default_rng(4)
    keep = np.ones((ROWS, SLOTS), bool)
    keep[1, 3:] = keep[2, :2] = False
    return {"tokens": noise.integers(0, 31, (ROWS, SLOTS)), "keep": keep}


def bounds(kind: str) -> tuple[float, ...]:
    """Bounds by which some, all or none of the rows stop early."""
    return {"each row": (0.0, 0.93, 0.97, 2.0), "all rows": (0.0, 0.9, 0.985, 2.0)}[kind]


@cache
def load(text: str, bound: float, backend: str = "numpy", dtype: str = "f64", level: int = 0, **o):
    """What runs a text, with weights that only its paths decide: compiled once for all tests."""
    found = program(text, bound=bound)
    made = random_weights(found, 2)
    return archc.backend(backend).load(optimise(found, level=level).program, made, dtype=dtype, **o)


@cache
def kept(kind: str, bound: float) -> dict[str, np.ndarray]:
    """What every backend has to give."""
    return load(keeping(*CONDITIONS[kind]), bound).run(batch())


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize(("backend", "dtype", "level"), RUNS)
def test_stopping_is_keeping(backend: str, dtype: str, level: int, kind: str) -> None:
    condition, _ = CONDITIONS[kind]
    depths = set()
    for bound in bounds(kind):
        expected = kept(kind, bound)
        got = load(stopping(condition), bound, backend, dtype, level).run(batch())
        assert got["depth"].tolist() == expected["depth"].tolist()
        np.testing.assert_allclose(got["out"], expected["out"], 0, TOLERANCE[dtype])
        depths |= set(np.ravel(got["depth"]).tolist())
    assert {1, LAYERS} < depths


# ------------------------------------------------------------------------ skipped, not masked


def layers_run(executable: Executable) -> tuple[np.ndarray, dict[int, int]]:
    """The depth, and how many rows each layer that ran was given: those of its attention's norm."""
    outputs, values = executable.trace(batch())
    found = {}
    for (path, _), value in values.items():
        match = re.fullmatch(r"layers\[(\d+)\]", path)
        if match and value.ndim == 3 and value.shape[1:] == (SLOTS, 8):
            found[int(match[1])] = value.shape[0]
    return outputs["depth"], found


@pytest.mark.parametrize(("backend", "dtype", "level"), [("numpy", "f64", 0), *RUNS[2:]])
def test_a_layer_sees_only_the_rows_that_are_left(backend: str, dtype: str, level: int) -> None:
    condition, _ = CONDITIONS["each row"]
    for bound in bounds("each row"):
        depth, found = layers_run(load(stopping(condition), bound, backend, dtype, level))
        left = {i: int((depth > i).sum()) for i in range(LAYERS)}
        assert found == {i: rows for i, rows in left.items() if rows}


@pytest.mark.parametrize(("backend", "dtype", "level"), [("numpy", "f64", 0), *RUNS[2:]])
def test_no_layer_runs_after_the_exit(backend: str, dtype: str, level: int) -> None:
    condition, _ = CONDITIONS["all rows"]
    for bound in bounds("all rows"):
        depth, found = layers_run(load(stopping(condition), bound, backend, dtype, level))
        assert found == dict.fromkeys(range(int(depth)), ROWS)


@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_no_rows_are_no_work(backend: str) -> None:
    nobody = {name: array[:0] for name, array in batch().items()}
    run = load(stopping(CONDITIONS["each row"][0]), 0.5, backend, "f32", 1)
    got = run.run(nobody)
    assert got["out"].shape == (0, SLOTS, 8)
    assert got["depth"].shape == (0,)


@pytest.mark.parametrize("kind", CONDITIONS)
def test_gradients_pass_through_the_layers_that_ran(kind: str) -> None:
    """Those of a run that computes every layer and throws away what came too late."""
    condition, axes = CONDITIONS[kind]
    found = []
    for text in (stopping(condition), keeping(condition, axes)):
        run = load(text, bounds(kind)[2], "torch", train=True)
        given = {name: torch.from_numpy(array) for name, array in batch().items()}
        run.module(**given)["out"].square().sum().backward()
        module = sys.modules[type(run.module).__module__]
        parameters = module.weights(run.module)
        found.append({path: getattr(owner, name).grad for path, owner, name in parameters})
    early, full = found
    assert set(early) == set(full)
    reached = 0
    for path, gradient in full.items():
        got = early[path] if early[path] is not None else torch.zeros_like(gradient)
        torch.testing.assert_close(got, gradient, rtol=0, atol=1e-10)
        reached += bool(gradient.abs().sum())
    assert reached < len(full) or kind == "each row"


NESTED = """use std
model M {
  d = 4; vocab = 31; bound = 0.5
  input tokens: ids[b, s] < vocab
  x = tokens |> embedding(vocab, d) as embed
  rounds = 0 * tokens[s: 0]
  repeat groups[j: 2] {
    x = x |> rmsnorm as norm
    repeat layers[i: 3] {
      x = tanh(x |> linear(d) as map)
      rounds += 1
    } until amax(x, s, d) < bound
  }
  output out[b, s, d] = x
  output depth = rounds
}
"""


def test_a_loop_with_an_exit_is_not_compiled_and_its_layers_are() -> None:
    tokens = {"tokens": batch()["tokens"]}
    expected = load(NESTED, 0.85).run(tokens)
    got = load(NESTED, 0.85, "torch", "f32", 1, compile=True).run(tokens)
    assert got["depth"].tolist() == expected["depth"].tolist()
    assert len(set(got["depth"].tolist())) > 1
    np.testing.assert_allclose(got["out"], expected["out"], 0, 1e-5)


# ------------------------------------------------------------------------ the graph


@pytest.mark.parametrize("kind", CONDITIONS)
def test_text_of_the_graph_round_trips(kind: str) -> None:
    found = program(stopping(CONDITIONS[kind][0]))
    again = parse(show(found))
    assert show(again) == show(found)
    assert again.functions == canonical(found).functions
    assert any("exit" in node.attrs for node in again.main.nodes)


@pytest.mark.parametrize("kind", CONDITIONS)
def test_passes_keep_what_it_computes(kind: str) -> None:
    found = program(stopping(CONDITIONS[kind][0]))
    optimise(found, level=1, verify=evaluate)


def test_a_kind_must_return_its_condition() -> None:
    found = program(stopping(LOUD))
    (loop,) = (n for n in found.main.nodes if n.op == "repeat")
    kind = found.function(str(loop.attrs["kinds"][0]))
    broken = found.with_functions([replace(kind, outputs=kind.outputs[:-1])])
    with pytest.raises(InternalError, match="returns other types"):
        verify(broken)


# ------------------------------------------------------------------------ what is refused


SHORT = """use std
model M {
  d = 8; n = 3; heads = 2; vocab = 31
  input tokens: ids[b, s] < vocab
  x = tokens |> embedding(vocab, d) as embed
  %s
  output out[b, s, d] = x
}
"""


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("repeat l[i: n] { x += x |> ffn(4) } until i > 1", "fixed-exit"),
        ("repeat l[i: n] { x += x |> ffn(4) } until amax(x, d) > 0", "exit-axes"),
        ("w = amax(x, b, s); repeat l[i: n] { w += 1 } until amax(x, s, d) > 0", "shared-by-rows"),
        (
            "y = x[d -> (heads, e)]; repeat l[i: n] { y += 1 } until amax(y, b, s, e) > 0",
            "fixed-rows",
        ),
        ("repeat l[i: n] { x += mean(x, b) } until amax(x, s, d) > 0", "mixes-rows"),
        ("repeat l[i: n] { x += index(b) } until amax(x, s, d) > 0", "mixes-rows"),
        ("repeat l[i: n] { x += 1 / size(b) } until amax(x, s, d) > 0", "mixes-rows"),
        ("repeat l[i: n] { x += 1 } until amax(x, s, d)", "not-a-bool"),
        ("decode s; repeat l[i: n] { x += 1 } until amax(x, b, s, d) > 0", "exit-in-decode"),
        ("decode s; repeat l[i: n] { x += 1 } until amax(x, s, d) > 0", "exit-in-decode"),
    ],
)
def test_refused(body: str, error: str) -> None:
    assert mistakes_of(SHORT % body) == [error]
