"""`decode s after p`: what is accepted reads nothing later but the prefix, what reads more is refused."""

from __future__ import annotations

import numpy as np
import pytest
from bundled import example

from archc.backends.base import bind_inputs, check_prefix
from archc.backends.numpy import NumpyBackend
from archc.compiler.causality import elaborate_proved, prove_causal
from archc.compiler.elaborate import Request, module_of, the_model
from archc.compiler.ir.graph import Program
from archc.compiler.ir.text import parse as parse_text
from archc.compiler.ir.text import show
from archc.compiler.ir.verify import verify
from archc.compiler.ops import Precision
from archc.compiler.state import state_of
from archc.compiler.weights import random_weights
from archc.dsl import Source, parse
from archc.dsl.diagnostics import InternalError
from archc.dsl.errors import LooksAhead, ShortPrefix

LENGTH, PREFIX = 9, (3, 5)
HEAD = """use std
model M {
  d = 8; heads = 2; n = 2
  input x: float[b, s, d]
  input ids: ids[b, s] < 5
  input keep: bool[b, s]
  input m: float[b, t, d]
  input p: int[b] = 0
  input q: int[b] = 0
  decode s after p
"""
SCORES = "a[b, s, u] = dot(x, x[s -> u], d)\n"


def attending(condition: str) -> str:
    return f"y = x |> attention(heads, mask = (s, t) -> {condition})"


PROVED = {
    "prefix": attending("prefix(s, t, p)"),
    "nothing ahead at all": attending("causal(s, t)"),
    "the prefix and no more": attending("slot(t) < p"),
    "all of the prefix but its last slot": attending("causal(s, t) or slot(t) < p - 1"),
    "at most the last slot": attending("slot(t) <= p - 1 or causal(s, t)"),
    "a difference": attending("slot(t) - p < 0 or causal(s, t)"),
    "what is not behind": attending("not (slot(t) >= p and slot(t) > slot(s))"),
    "within the prefix both ways": attending("causal(s, t) or slot(s) < p and slot(t) < p"),
    "a window behind it": attending("sliding(2)(s, t) or slot(t) < p"),
    "more conditions": attending("prefix(s, t, p) and ids == ids[s -> t]"),
    "rotary": "y = x |> attention(heads, mask = (s, t) -> prefix(s, t, p), rotate = rope())",
    "padding": "time s: valid = keep\n" + attending("prefix(s, t, p)") + "\ny = where(keep, y, 0)",
    "no softmax": "y = x |> linear_attention(heads, mask = (s, t) -> prefix(s, t, p))",
    "in a repeat": (
        "y = x\nrepeat layers[i: n] {"
        " y += y |> rmsnorm |> attention(heads, mask = (s, t) -> prefix(s, t, p)) as a }"
    ),
    "beside causal layers": (
        "before = (s, t) -> prefix(s, t, p)\ny = x\n"
        "repeat layers[i: 3] { seen = causal if i == 1 else before\n"
        "y += y |> attention(heads, mask = seen) as a }"
    ),
    "then back in time": attending("prefix(s, t, p)") + "\ny = y[s: max(slot(s) - 2, 0)]",
    "then a scan": attending("prefix(s, t, p)") + "\nscan s with h = 0 { h = 0.5 * h + y }\ny = h",
    "behind a scan": "scan s with h = 0 { h = 0.5 * h + x }\nx[b, s, d] = h\n"
    + attending("prefix(s, t, p)"),
    "a table by slot": "x = x |> learned_positions(16)\n" + attending("prefix(s, t, p)"),
    "in the steps of a scan": (
        "scan t with h[b, s, d] = 0 { a[b, s, u] = dot(h + x, x[s -> u], d)\n"
        "h = m + dot(softmax(where(prefix(s, u, p), a, -inf), u), x[s -> u], u) }\ny = last(h)"
    ),
}
REFUSED = {
    "one slot more": attending("prefix(s, t, p + 1)"),
    "up to the first one behind": attending("causal(s, t) or slot(t) <= p"),
    "another number": attending("prefix(s, t, q)"),
    "the larger of two numbers": attending("prefix(s, t, max(p, q))"),
    "another row's prefix": attending("prefix(s, t, p[b: 0])"),
    "half of the slots": attending("causal(s, t) or slot(t) // 2 < p"),
    "positions that data give": "time s: position = ids\n" + attending("position(t) < p"),
    "no causal part": attending("slot(t) < p or slot(s) >= p"),
    "queries of the prefix see all": attending("causal(s, t) or slot(s) < p"),
    "behind the prefix both ways": attending("not (slot(t) < p)"),
    "everything": "y = x |> attention(heads)",
    "a finite fill": (
        SCORES + "y[b, s, d] = dot(softmax(where(prefix(s, u, p), a, -1e9), u), x[s -> u], u)"
    ),
    "a mean": "y = x - mean(x, s)",
    "a norm over time": attending("prefix(s, t, p)") + "\ny = y / (1 + sum(y * y, s))",
    "the mean of the prefix at each position alone": "y = x - sum(where(slot(s) < p, x, 0), s)",
    "a scan in reverse": "y = x |> lstm(d, reverse = true) as cell",
    "an entry that data choose": "y = x + x[s: p]",
    "the prefix of what looks one ahead": "x = x[s: min(slot(s) + 1, 8)]\n"
    + attending("slot(t) < p"),
    "then one ahead": attending("prefix(s, t, p)") + "\ny = y[s: min(slot(s) + 1, 8)]",
    "a prefix that grows with the layers": (
        "y = x\nfar = p\nrepeat layers[i: n] {"
        " y += y |> attention(heads, mask = (s, t) -> prefix(s, t, far)) as a; far = far + 1 }"
    ),
    "one layer that sees all": (
        "before = (s, t) -> prefix(s, t, p)\ny = x\n"
        "repeat layers[i: n] { seen = full if i == 1 else before\n"
        "y += y |> attention(heads, mask = seen) as a }"
    ),
}


def elaborated(body: str, given: tuple[str, ...] | None = None, head: str = HEAD) -> Program:
    module = module_of(parse(Source("model.arch", f"{head}{body}\noutput y[b, s, d] = y\n}}")))
    return verify(elaborate_proved(module, the_model(module), Request(given=given)))


def inputs(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "x": random.standard_normal((2, LENGTH, 8)),
        "ids": random.integers(0, 5, (2, LENGTH)),
        "keep": random.random((2, LENGTH)) < 0.7,
        "m": np.random.default_rng(7).standard_normal((2, 4, 8)),
        "p": np.array(PREFIX),
        "q": np.array((8, 7)),
    }


def moved(program: Program, at: int) -> np.ndarray:
    """By how much each row's outputs before `at` change when everything from `at` on does."""
    run = NumpyBackend().load(program, random_weights(program), dtype="f64").run
    first, second = inputs(0), inputs(1)
    mixed = {
        name: np.concatenate([array[:, :at], second[name][:, at:]], 1)
        if name in ("x", "ids", "keep")
        else array
        for name, array in first.items()
    }
    return np.abs(run(first)["y"] - run(mixed)["y"])[:, :at].max(axis=(1, 2))


@pytest.mark.parametrize("body", PROVED.values(), ids=PROVED)
def test_what_is_accepted_reads_nothing_behind_its_row_and_the_prefix(body: str) -> None:
    program = elaborated(body)
    assert (program.decode, program.after) == ("s", "p")
    for at in range(min(PREFIX), LENGTH):
        whole = np.array(PREFIX) <= at
        assert moved(program, at)[whole].max() < 1e-12


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_what_reads_more_is_refused(body: str) -> None:
    with pytest.raises(LooksAhead) as caught:
        elaborated(body)
    assert (caught.value.axis, caught.value.after, caught.value.output) == ("s", "p", "y")
    assert caught.value.span is not None


def test_slots_of_the_prefix_do_see_one_another() -> None:
    """Two layers: what is behind a split within the prefix moves what is before it."""
    program = elaborated(PROVED["in a repeat"])
    assert (moved(program, min(PREFIX) - 1) > 1e-3).all()


def test_without_after_a_prefix_is_refused() -> None:
    with pytest.raises(LooksAhead) as caught:
        elaborated(PROVED["prefix"], head=HEAD.replace(" after p", ""))
    assert not caught.value.after


def test_a_prefix_of_one_number_for_all_rows() -> None:
    head = HEAD.replace("p: int[b] = 0", "p: int[]")
    assert elaborated(PROVED["in a repeat"], head=head).after == "p"


# -------------------------------------------------------------------------- as an input

LEFT_OUT = ("x", "ids", "keep", "m", "q")


@pytest.mark.parametrize("length", [0, 4])
def test_a_default_is_a_prefix_even_when_it_is_left_out(length: int) -> None:
    head = HEAD.replace("p: int[b] = 0", f"p: int[b] = {length}")
    program = elaborated(PROVED["in a repeat"], LEFT_OUT, head)
    assert program.after == "p"
    run = NumpyBackend().load(program, random_weights(program), dtype="f64").run
    given = {name: array for name, array in inputs(0).items() if name != "p"}
    np.testing.assert_array_equal(
        run(given)["y"], run({**given, "p": np.array([length, length])})["y"]
    )


def test_the_text_of_a_graph_says_it() -> None:
    program = elaborated(PROVED["prefix"])
    assert "\ndecode s after p\n" in show(program)
    assert parse_text(show(program)) == program


@pytest.mark.parametrize("other", ["x", "keep", "y"])
def test_a_graph_after_what_is_no_number_is_not_verified(other: str) -> None:
    text = show(elaborated(PROVED["prefix"])).replace("after p", f"after {other}")
    with pytest.raises(InternalError, match=f"decode after {other}"):
        verify(parse_text(text))


def test_the_first_call_has_the_whole_prefix() -> None:
    program = elaborated(PROVED["prefix"])
    for length in (max(PREFIX), max(PREFIX) - 1):
        given = {n: a[:, :length] if n in ("x", "ids", "keep") else a for n, a in inputs(0).items()}
        bound = bind_inputs(program, given, Precision("f64"))
        if length == max(PREFIX):
            check_prefix(program, bound)
            continue
        with pytest.raises(ShortPrefix) as caught:
            check_prefix(program, bound)
        assert (caught.value.needed, caught.value.rows) == (5, 4)


def test_nothing_is_asked_of_a_plain_decoder() -> None:
    program = elaborated(PROVED["nothing ahead at all"], head=HEAD.replace(" after p", ""))
    given = {n: a[:, :1] if n in ("x", "ids", "keep") else a for n, a in inputs(0).items()}
    check_prefix(program, bind_inputs(program, given, Precision("f64")))


# ------------------------------------------------------------------------------- state


def test_the_prefix_is_kept_like_the_rest() -> None:
    """A window alone would be a ring; who sees the whole prefix keeps everything."""
    kinds = {
        name: {state.kind for state in state_of(elaborated(PROVED[name]))}
        for name in ("prefix", "a window behind it")
    }
    assert kinds == {"prefix": {"append"}, "a window behind it": {"append"}}
    assert {s.kind for s in state_of(elaborated(attending("sliding(2)(s, t)")))} == {"ring"}


def test_the_example_keeps_keys_and_values_of_each_layer() -> None:
    program = example("prefix_lm")
    prove_causal(program)
    assert [(s.kind, s.count.constant) for s in state_of(program)] == [("append", 3)] * 2
