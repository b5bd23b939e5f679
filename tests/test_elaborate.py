"""What models mean, against plain NumPy in float64; and that nothing crashes the elaborator."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from clock import in_time
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import ids, inputs, model, paths, program, run, value

from archc.backends.numpy import NumpyBackend
from archc.compiler.elaborate import (
    Request,
    elaborate,
    hyperparameters,
    module_of,
    preset_overrides,
    the_model,
)
from archc.compiler.ir.graph import Builder, Node
from archc.dsl import Source, parse, parse_file
from archc.dsl.diagnostics import ArchError, Diagnostics

EXACT = {"rtol": 0, "atol": 1e-12}
SINGLE = {"rtol": 0, "atol": 2e-6}  # tables are rounded to float32
EXAMPLES = Path(__file__).parent.parent / "examples"


def softmax(a: np.ndarray) -> np.ndarray:
    """Over the last axis; a row of -inf gives zeros."""
    top = a.max(-1, keepdims=True)
    p = np.exp(a - np.where(np.isinf(top), 0, top))
    return p / np.maximum(p.sum(-1, keepdims=True), 1e-300)


# ------------------------------------------------------------------------ compile time

NUMBERS = {
    "7 // 2": 3,
    "7 / 2": 3.5,
    "-7 // 2": -4,
    "-7 % 3": 2,
    "2 ** 3 ** 2": 512,
    "-2 ** 2": -4,
    "2 ** -1": 0.5,
    "ceil(7 / 2) + floor(7 / 2) + round(2.5) + int(-2.9)": 7,
    "sum2([1, 2, 3])": None,
    "log2(8) + exp(0) + sqrt(16) + rsqrt(0.25)": 10,
    "sigmoid(-1000) + tanh(0) + erf(0)": 0,
    "float(3) / 2": 1.5,
    "max(d, 3) - min(d, 3)": 5,
    "none ?? 4": 4,
    "0 ?? 4": 0,
    "(1 if heads == 2 else 0) + (1 if none == none else 0)": 2,
    '{"a": 1, "b": 2}["b"]': 2,
    "[1, 2, 3][-1] + [i * i for i in 4][3]": 12,
    "[k + 1 for k in [5, 6]][1]": 7,
    "([1] + [2, 3])[2]": 3,
    "1 if true and not false or false else 0": 1,
    "1 if x != none else 0": 1,
    "d": 8,
}


@pytest.mark.parametrize("text", [t for t in NUMBERS if NUMBERS[t] is not None])
def test_compile_time_arithmetic(text: str) -> None:
    assert np.isclose(value(f"n = {text}\noutput y = 0 * x[b: 0, s: 0, d: 0] + n"), NUMBERS[text])


REFUSED = {
    "1 // 0": "division-by-zero",
    "d % (heads - 2)": "division-by-zero",
    "0 ** -1": "division-by-zero",
    "log(0)": "number-out-of-range",
    "exp(1000)": "number-out-of-range",
    "(-2) ** 0.5": "number-out-of-range",
    "2 ** 100": "number-out-of-range",
    "9 ** 9 ** 9": "number-out-of-range",
    "int(inf)": "number-out-of-range",
    "2 * true": "not-a-number",
    '"a" + 1': "not-a-number",
    "not 3": "not-a-condition",
    "1 if 3 else 2": "not-a-condition",
    "1 if keep else 2": "run-time-condition",
    "[1, 2][2]": "list-index",
    "[1, 2][0.5]": "not-indexable",
    '{"a": 1}["c"]': "no-entry",
    "[i for i in 2.5]": "not-whole",
    '[i for i in "ab"]': "not-a-list",
    "[[i for i in 10000] for j in 10000]": "too-large",
    "ceil(x)": "number-only",
    "size(q)": "unknown-name",
    "exp(none)": "none-used",
    "exp(1, 2)": "argument-count",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused_at_compile_time(text: str) -> None:
    started = time.monotonic()
    assert ids(model(f"n = {text}\noutput y = x")) == [REFUSED[text]]
    assert in_time(time.monotonic() - started, 10)


GROWTH = {
    "a number": ("a = 3\n" + "a = a * a\n" * 60, ["number-out-of-range"]),
    "a polynomial": ("a = d + heads + 1\n" + "a = a * a\n" * 60, ["number-out-of-range"]),
    "quotients": ("a = d\n" + "a = a // 2 + a // 3\n" * 60, ["number-out-of-range"]),
    "a list": ("a = [1]\n" + "a = a + a\n" * 60, ["too-large"]),
    "a repeat": ("repeat l[i: 10 ** 9] { x += 1 }\n", ["repeat-count"]),
    "less than nothing": ("repeat l[i: heads - 3] { x += 1 }\n", ["repeat-count"]),
}


@pytest.mark.parametrize("case", GROWTH)
def test_nothing_grows_without_end(case: str) -> None:
    body, expected = GROWTH[case]
    assert ids(model(f"{body}output y = x")) == expected


def test_blocks_that_double_are_refused_before_they_fill_the_memory() -> None:
    blocks = [
        f"block a{i}(x[..., d]) -> [..., d] {{ return (x |> a{i + 1} as p) + (x |> a{i + 1} as q) }}"
        for i in range(30)
    ]
    above = "\n".join([*blocks, "block a30(x[..., d]) -> [..., d] { return x }"])
    started = time.monotonic()
    assert ids(model("output y = x |> a0", above)) == ["too-large"]
    assert in_time(time.monotonic() - started, 60)


@pytest.mark.parametrize(
    ("above", "body"),
    [
        ("block f(x[..., d]) -> [..., d] { return x |> f }", "output y = x |> f"),
        ("fn f(x[...]) = g(x)\nfn g(x[...]) = f(x)", "output y = f(x)"),
        ("", "f = (u[...]) -> f(u)\noutput y = f(x)"),
        (f"fn f(x[...]) = {'(' * 60}f(x){' + x)' * 60}", "output y = f(x)"),
    ],
)
def test_recursion_is_an_error(above: str, body: str) -> None:
    assert ids(model(body, above)) == ["too-deep"]


# ------------------------------------------------------------------- hyperparameters, inputs

SIZED = """use std
model Sized {
  d = 8; wide = 4 * d; eps = 1e-5; kind = "half"; act = silu; stages = [1, 2]
  input x: float[b, d]
  output y[b, wide] = x |> rmsnorm(eps) |> linear(wide) as p
}
preset small = Sized(d = 4)
preset odd = Sized(wide = 3 * d + 1, kind = "interleaved")
"""


def sizes_of(preset: str | None = None, **overrides: object) -> dict[str, int]:
    module = module_of(parse(Source("model.arch", SIZED)))
    values = preset_overrides(module, preset)[1] if preset is not None else {}
    return elaborate(module, the_model(module), Request({**values, **overrides})).sizes


def test_defaults_follow_what_was_set_above_them() -> None:
    assert sizes_of() == {"d": 8, "wide": 32}
    assert sizes_of("small") == {"d": 4, "wide": 16}
    assert sizes_of("odd") == {"d": 8, "wide": 25}
    assert sizes_of("odd", d=2) == {"d": 2, "wide": 7}
    assert sizes_of(d=np.int64(6), eps=1, stages=[3]) == {"d": 6, "wide": 24}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"d": "big"}, "hyperparameter-kind"),
        ({"d": 4.5}, "hyperparameter-kind"),
        ({"depth": 3}, "unknown-hyperparameter"),
        ({"d": -4}, "negative-size"),
        ({"act": 3}, None),
    ],
)
def test_overrides_are_checked(overrides: dict[str, object], expected: str | None) -> None:
    assert ids(SIZED, **overrides) == ([expected] if expected else [])


def test_inputs_that_are_left_out_have_their_default_everywhere() -> None:
    text = model(
        """time s: valid = keep
        first[b] = any(keep[b, s], s)
        output y[b, s, d] = x |> attention(heads, mask = (s, t) -> keep == keep[s -> t]) as a
        output z[b, s] = where(keep, 1.0, 0.0)
        output v = first
        output u = mean(x, s)"""
    )
    given_all = run(text, inputs())[0]
    left_out = run(text, inputs(), given=["x", "ids"])[0]
    for name in "yzvu":
        assert np.allclose(given_all[name], left_out[name], **EXACT)
    nodes = program(text, given=["x", "ids"]).main.nodes
    assert [n.attrs["name"] for n in nodes if n.op == "input"] == ["x", "ids"]


def test_a_loss_is_an_output_only_where_it_is_asked_for() -> None:
    text = model("output y = x\nif heads == 2 { loss = sum(x, b, s, d) }")
    assert list(run(text)[0]) == ["y"]
    assert np.isclose(run(text, loss=True)[0]["loss"], inputs()["x"].sum())


# ----------------------------------------------------------------------------- time

PADDING = {
    "left": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]],
    "inner": [[1, 0, 1, 0, 1], [0, 1, 1, 1, 0]],
    "none at all": [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]],
}


def masked_attention(
    x: np.ndarray, w: dict[str, np.ndarray], seen: np.ndarray, at: str = "a"
) -> np.ndarray:
    q, k, v = (np.einsum("bsd,...d->bs...", x, w[f"{at}.{n}.w"]) for n in "qkv")
    scores = np.einsum("bsgre,btge->bgrst", q, k) * q.shape[-1] ** -0.5
    p = softmax(np.where(seen[:, None, None], scores, -np.inf))
    out = np.einsum("bgrst,btge->bsgre", p, v)
    return np.einsum("bsh,dh->bsd", out.reshape(*out.shape[:2], -1), w[f"{at}.o.w"])


@pytest.mark.parametrize("side", PADDING)
@pytest.mark.parametrize("mask", ["full", "causal", "sliding(2)"])
def test_padding_is_never_seen(side: str, mask: str) -> None:
    keep = np.array(PADDING[side], bool)
    text = model(
        f"""time s: valid = keep
        output y[b, s, d] = x |> attention(heads, mask = {mask}) as a
        output mean[b, d] = mean(x, s)
        output most[b, d] = amax(x, s)
        output ever[b] = any(x[d: 0] > 1, s)
        output running[b, s, d] = cumsum(x, s)
        output count[b] = count(s)
        output gram[b, d, c] = dot(x, x[d -> c], s)"""
    )
    values = inputs(keep=keep)
    values["x"][~keep] = 1e3  # what stands in padding must not matter
    found, w = run(text, values)
    x, i = values["x"], np.arange(5)
    gap = i[:, None] - i[None, :]
    visible = {"full": gap > -9, "causal": gap >= 0, "sliding(2)": (gap >= 0) & (gap < 2)}[mask]
    expected = masked_attention(x, w, visible & keep[:, None, :])
    assert np.allclose(found["y"][keep], expected[keep], **EXACT)
    clean = np.where(keep[..., None], x, 0)
    some = keep.any(1)
    with np.errstate(all="ignore"):
        assert np.allclose(
            found["mean"][some], (clean.sum(1) / keep.sum(1)[:, None])[some], **EXACT
        )
    assert np.array_equal(found["most"], np.where(keep[..., None], x, -np.inf).max(1))
    assert np.array_equal(found["ever"], ((x[..., 0] > 1) & keep).any(1))
    assert np.allclose(found["running"], clean.cumsum(1), **EXACT)
    assert np.array_equal(found["count"], keep.sum(1))
    assert np.allclose(found["gram"], np.einsum("bsd,bsc->bdc", clean, clean), **EXACT)


def test_integers_and_conditions_skip_padding_too() -> None:
    keep = np.array(PADDING["inner"], bool)
    text = model(
        """time s: valid = keep
        n = ids - 100
        output y = amax(n, s)
        output z = sum(n, s)
        output v = sum(ids > 3, s)"""
    )
    values = inputs(keep=keep)
    found, n = run(text, values)[0], values["ids"] - 100
    assert np.array_equal(found["y"], np.where(keep, n, -1000).max(1))
    assert np.array_equal(found["z"], np.where(keep, n, 0).sum(1))
    assert np.array_equal(found["v"], ((n > -97) & keep).sum(1))


def test_a_row_that_sees_no_key_gives_zeros() -> None:
    body = (
        "output y = x |> attention(heads, mask = (s, t) -> position(s) > 2 and causal(s, t)) as a"
    )
    found = value(body)
    assert not found[:, :3].any()
    assert found[:, 3:].any()


def test_declared_positions_move_rotary_angles_not_masks() -> None:
    """Left padding with positions that count valid entries gives what the text alone would."""
    body = """time s: valid = keep, position = cumsum(keep, s) - 1
      decode s
      output y[b, s, d] = x |> attention(heads, mask = sliding(3), rotate = rope) as a"""
    keep = np.array([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]], bool)
    values = inputs(keep=keep)
    padded = run(model(body), values)[0]["y"]
    alone = {"x": values["x"][:, 2:], "ids": values["ids"][:, 2:], "keep": keep[:, 2:]}
    assert np.allclose(padded[:, 2:], run(model(body), alone)[0]["y"], **EXACT)


def test_segments_hide_each_others_keys() -> None:
    body = """time s: segment = ids
      decode s
      output y[b, s, d] = x |> attention(heads, mask = causal) as a"""
    values = inputs(ids=np.array([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]]))
    found, w = run(model(body), values)
    same = values["ids"][:, :, None] == values["ids"][:, None, :]
    expected = masked_attention(values["x"], w, same & np.tril(np.ones((5, 5), bool)))
    assert np.allclose(found["y"], expected, **EXACT)


def test_padding_is_known_inside_blocks_that_name_every_axis() -> None:
    above = """block inner(u[n, q, w]) -> [n, q, w] {
      same = (a[...], i, j) -> a
      return u |> attention(2, mask = causal, score = same) as a
    }
    block outer(x[b, t, d]) -> [b, t, d] { return x |> inner as i }"""
    keep = np.array(PADDING["inner"], bool)
    found, w = run(
        model("time s: valid = keep\noutput y = x |> outer as o", above), inputs(keep=keep)
    )
    seen = np.tril(np.ones((5, 5), bool)) & keep[:, None, :]
    expected = masked_attention(inputs()["x"], w, seen, "o.i.a")
    assert np.allclose(found["y"][keep], expected[keep], **EXACT)


TIME_MISTAKES = {
    "time s: valid = x": "time-fact-value",
    "time s: valid = keep[s: 0]": "time-fact-value",
    "time s: valid = 3": "time-fact-value",
    "time s: position = keep": "time-fact-value",
    "time s: volid = keep": "time-fact",
    "time d: valid = keep": "time-axis",
    "time s: valid = keep\nz = sum(x[s: 1..], s)": "unsupported",
    "decode q": "time-axis",
    "decode s\ndecode b": "decode-twice",
}


@pytest.mark.parametrize("text", TIME_MISTAKES)
def test_mistakes_of_time(text: str) -> None:
    assert ids(model(f"{text}\noutput y = x")) == [TIME_MISTAKES[text]]


def test_a_concatenation_is_valid_where_its_parts_are() -> None:
    keep = np.array(PADDING["inner"], bool)
    text = model(
        """input front: float[b, i: 3, d]
        weight start[d] = normal
        time s: valid = keep
        h = concat(start[s: new], front[i -> s], x, s)
        output y[b, s, d] = h |> attention(heads, mask = causal) as a
        output mean[b, d] = mean(h, s)
        again = concat(h, front[i -> s], s)
        output again[b, d] = sum(again, s)"""
    )
    values = inputs(keep=keep, front=np.random.default_rng(1).standard_normal((2, 3, 8)))
    values["x"][~keep] = 1e3
    found, w = run(text, values)
    start = np.broadcast_to(w["start"], (2, 1, 8))
    joined = np.concatenate([start, values["front"], values["x"]], 1)
    seen = np.concatenate([np.ones((2, 4), bool), keep], 1)
    expected = masked_attention(joined, w, np.tril(np.ones((9, 9), bool)) & seen[:, None, :])
    total = np.where(seen[..., None], joined, 0).sum(1)
    assert np.allclose(found["y"][seen], expected[seen], **EXACT)
    assert np.allclose(found["mean"], total / seen.sum(1)[:, None], **EXACT)
    assert np.allclose(found["again"], total + values["front"].sum(1), **EXACT)


MERGES = """use std
model M {
  d = 4
  input x: float[b, p, t, d]
  input keep: bool[b, p, t] = true
  input here: bool[b, p] = true
  time t: valid = keep
  FACTS
  output y[b, d] = mean(x[ORDER -> u], u)
}
"""


@pytest.mark.parametrize("order", ["(p, t)", "(t, p)"])
@pytest.mark.parametrize("both", [False, True])
def test_merged_axes_are_valid_where_each_is(order: str, both: bool) -> None:
    """Nothing but valid entries is read, whatever stands at the others."""
    text = MERGES.replace("ORDER", order).replace("FACTS", "time p: valid = here" if both else "")
    generator = np.random.default_rng(3)
    x, keep = generator.standard_normal((2, 3, 4, 4)), generator.random((2, 3, 4)) < 0.6
    here = np.array([[1, 0, 1], [1, 1, 0]], bool)
    seen = keep & here[..., None] if both else keep
    given = {"x": np.where(seen[..., None], x, 1e3), "keep": keep} | (
        {"here": here} if both else {}
    )
    expected = (x * seen[..., None]).sum((1, 2)) / seen.sum((1, 2))[:, None]
    assert np.allclose(run(text, given)[0]["y"], expected, **EXACT)


@pytest.mark.parametrize("order", ["(p, t)", "(t, p)"])
def test_merged_axes_with_positions_have_no_common_meaning(order: str) -> None:
    text = MERGES.replace("ORDER", order).replace(
        "FACTS", "time t: position = cumsum(int(keep), t)"
    )
    assert ids(text) == ["unsupported"]


def test_axes_that_a_layer_merges_are_valid_where_each_is() -> None:
    """A layer may be the first to merge them; what it learns of the mask is the model's."""
    body = """time s: valid = keep
      repeat layers[i: 2] { x += mean(x[(b, s) -> n], n) }
      output y = x"""
    keep = np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1]], bool)
    x = inputs()["x"]
    expected = x + x[keep].mean(0)
    expected += expected[keep].mean(0)
    assert np.allclose(value(body, values=inputs(keep=keep)), expected, **EXACT)


def test_a_merge_of_a_renamed_axis_is_valid_along_the_one_it_was() -> None:
    text = MERGES.replace("FACTS", "").replace(
        "y[b, d] = mean(x[ORDER", "y[b, p, d] = mean(x[p -> q][(q, t)"
    )
    generator = np.random.default_rng(3)
    x, keep = generator.standard_normal((2, 3, 4, 4)), generator.random((2, 3, 4)) < 0.6
    keep[..., 0] = True
    expected = np.einsum("bqtd,bpt->bpd", x, keep) / (3 * keep.sum(2))[..., None]
    assert np.allclose(run(text, {"x": x, "keep": keep})[0]["y"], expected, **EXACT)


def test_a_list_of_conditions_is_one() -> None:
    text = model(
        """repeat layers[i: 4] { if any([l == i for l in [0, 2]]) { x = 2 * x } else { x = x + 1 } }
        output y = x
        output z = x if any([false, heads == 3]) else -x"""
    )
    found = run(text, inputs())[0]
    assert np.allclose(found["y"], 2 * (2 * inputs()["x"] + 1) + 1, **EXACT)
    assert np.allclose(found["z"], -found["y"], **EXACT)
    assert ids(model("output y = any(keep)")) == ["argument-count"]


def test_a_concatenation_in_a_layer_is_valid_where_its_parts_are() -> None:
    """Joined in each of three layers, with padding in either part and in both."""
    text = model(
        """input memory: float[layer: 3, b, m, d]
        input known: bool[b, m]
        time s: valid = keep
        time m: valid = known
        repeat layers[i: 3] { x += mean(concat(memory[layer: i], x[s -> m], m), m) }
        output y[b, s, d] = x"""
    )
    noise = np.random.default_rng(1)
    keep, known = np.array(PADDING["inner"], bool), np.array([[1, 0, 1], [0, 0, 0]], bool)
    values = inputs(keep=keep, known=known, memory=noise.standard_normal((3, 2, 3, 8)))
    seen, x = np.concatenate([known, keep], 1)[..., None], values["x"]
    for memory in values["memory"]:
        joined = np.concatenate([memory, x], 1)
        x = x + (np.where(seen, joined, 0).sum(1) / seen.sum(1))[:, None]
    found, _ = run(text, values)
    assert np.allclose(found["y"][keep], x[keep], **EXACT)
    assert len(program(text).functions) == 2  # one kind of layer


def test_an_axis_that_only_inputs_left_out_have_is_empty() -> None:
    text = model(
        """input memory: float[b, m, d] = 0
        input known: bool[b, m] = true
        time m: valid = known
        output y[b, d] = sum(concat(memory, x[s -> m], m), m)
        output c[b] = any(known, m)"""
    )
    total = inputs()["x"].sum(1)
    left_out = run(text)[0]  # in the call
    assert np.allclose(left_out["y"], total, **EXACT)
    assert not left_out["c"].any()
    found = program(text, given=["x"])  # and in the program
    bare = NumpyBackend().load(found, {}, dtype="f64").run({"x": inputs()["x"]})
    assert np.allclose(bare["y"], total, **EXACT)
    assert not bare["c"].any()
    assert not any(n.attrs["name"] == "memory" for n in found.main.nodes if n.op == "input")
    one = run(text, inputs(memory=np.ones((2, 3, 8))))[0]
    assert np.allclose(one["y"], total + 3, **EXACT)
    assert one["c"].all()


@pytest.mark.parametrize("fact", ["position", "segment"])
def test_positions_of_a_concatenation_have_no_common_meaning(fact: str) -> None:
    body = f"""time s: valid = keep, {fact} = ids
      output y[b, d] = sum(concat(x, x, s), s)"""
    assert ids(model(body)) == ["unsupported"]


def test_a_part_is_repeated_along_the_axes_it_lacks() -> None:
    body = """weight start[d] = normal
      output y[b, s, d] = concat(start[s: new], x, start[s: new], s)"""
    found, w = run(model(body))
    start = np.broadcast_to(w["start"], (2, 1, 8))
    assert np.array_equal(found["y"], np.concatenate([start, inputs()["x"], start], 1))
    outer = "weight start[n: 2, d] = normal\ny = concat(start, x, d)\noutput z = y"
    assert ids(model(outer)) == ["outer-product"]


def test_an_input_in_an_if_ends_the_hyperparameters() -> None:
    text = """use std
    model M {
      wide = true; d = 8
      if wide { input x: float[b, d] } else { input x: float[b, s, d] }
      twice = 2
      output y = twice * x
    }"""
    assert list(hyperparameters(the_model(module_of(parse(Source("m.arch", text)))))) == [
        "wide",
        "d",
    ]
    x = np.ones((2, 3, 8))
    assert np.array_equal(run(text, {"x": x[:, 0]})[0]["y"], 2 * x[:, 0])
    assert np.array_equal(run(text, {"x": x}, wide=False)[0]["y"], 2 * x)


@pytest.mark.parametrize(("part", "kept"), [("x[d: 2..5]", slice(2, 5)), ("x", slice(0, 8))])
def test_an_axis_given_by_name_is_the_one_its_value_has(part: str, kept: slice) -> None:
    """A slice and a concatenation keep the name of an axis, and a mean counts what is there."""
    found = value(f"h = concat({part}, {part}, d)\noutput y[b, s] = mean({part}, d) + mean(h, d)")
    assert np.allclose(found, 2 * inputs()["x"][..., kept].mean(-1), **EXACT)


def test_an_axis_given_by_name_of_values_that_differ() -> None:
    above = "fn both(u[...], v[...], a) = mean(u, a) + mean(v, a)"
    assert ids(model("output y[b, s] = both(x, x[d: 2..], d)", above)) == ["ambiguous-axis"]


def test_masks_of_two_timelines_are_refused() -> None:
    body = "input m: float[b, t, d]\noutput y = x |> attention(heads, memory = m, mask = causal)"
    assert ids(model(body)) == ["unrelated-timelines"]


# ---------------------------------------------------------------------------- positions


def rotated(
    x: np.ndarray, theta: float, pairing: str, n: int, scale: np.ndarray | None = None
) -> np.ndarray:
    """Su et al., 2021, by the plain formula, over the first n of the last axis of x[.., s, e]."""
    frequency = theta ** (-2 * np.arange(n // 2) / n) * (1 if scale is None else scale)
    angle = np.arange(x.shape[-2])[:, None] * frequency
    y = x.copy()
    for i in range(n // 2):
        a, b = (i, i + n // 2) if pairing == "half" else (2 * i, 2 * i + 1)
        c, s = np.cos(angle[:, i]), np.sin(angle[:, i])
        y[..., a], y[..., b] = x[..., a] * c - x[..., b] * s, x[..., b] * c + x[..., a] * s
    return y


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("dims", [8, 4])
def test_rope(pairing: str, dims: int) -> None:
    dims_text = "none" if dims == 8 else dims
    turn = f'rope(100.0, pairing = "{pairing}", dims = {dims_text})'
    found = value(f"turn = {turn}\noutput y = turn(x, s)")
    assert np.allclose(found, rotated(inputs()["x"], 100.0, pairing, dims), **SINGLE)


def llama3(f: np.ndarray, factor: float, low: float, high: float, original: float) -> np.ndarray:
    """Grattafiori et al., 2024: by wavelength, kept, divided, or blended."""
    out = []
    for v in f:
        length = 2 * math.pi / v
        if length < original / high:
            out.append(v)
        elif length > original / low:
            out.append(v / factor)
        else:
            smooth = (original / length - low) / (high - low)
            out.append((1 - smooth) * v / factor + smooth * v)
    return np.array(out)


def yarn(f: np.ndarray, first: float, last: float) -> np.ndarray:
    """Peng et al., 2023: from pair `first` to pair `last`, from kept to divided by 4."""
    ramp = np.clip((np.arange(len(f)) - first) / (last - first), 0, 1)
    return f * (1 - ramp) + f / 4 * ramp


def pair_of(turns: float) -> float:
    """Which of 4 pairs turns so often in 300 positions, for theta 100."""
    return 4 * math.log(300 / (2 * math.pi * turns)) / math.log(100)


LISTS = "[1.0, 2.0, 3.5, 5], [7, 8, 9, 10]"
SCALINGS = {  # theta is 100, the length 5
    "linear_scaling(4.0)": lambda f: f / 4,
    "llama3(8.0, original = 16)": lambda f: llama3(f, 8, 1, 4, 16),
    "llama3(8.0, 1.0, 8.0, 64)": lambda f: llama3(f, 8, 1, 8, 64),
    "dynamic(3.0, 5)": lambda f: f,
    "dynamic(3.0, 2)": lambda f: (100 * (3 * 5 / 2 - 2) ** (8 / 6)) ** (-2 * np.arange(4) / 8),
    "yarn(4.0, 300, 100.0, attention_factor = 1)": lambda f: yarn(f, 0, 4),
    "yarn(4.0, 300, 100.0, 9.0, 3.0, false, attention_factor = 1)": lambda f: yarn(
        f, pair_of(9), pair_of(3)
    ),
    f"longrope({LISTS}, 5)": lambda f: f / np.array([1, 2, 3.5, 5]),
    f"longrope({LISTS}, 4)": lambda f: f / np.array([7, 8, 9, 10]),
}


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rope_scaling(scaling: str) -> None:
    found = value(f"turn = rope(100.0, scaling = {scaling})\noutput y = turn(x, s)")
    f = 100.0 ** (-2 * np.arange(4) / 8)
    expected = rotated(inputs()["x"], 100.0, "half", 8, SCALINGS[scaling](f) / f)
    assert np.allclose(found, expected, **SINGLE)


GAINS = {  # a scaling that keeps the frequencies -> the factor of cos and sin
    "yarn(1.0, 300)": 1.0,
    "yarn(1.0, 300, attention_factor = 1.5)": 1.5,
    "longrope([1, 1, 1, 1], [2, 2, 2, 2], 9, 4.0)": math.sqrt(1 + math.log(4) / math.log(9)),
    "longrope([1, 1, 1, 1], [2, 2, 2, 2], 9, 4.0, 0.5)": 0.5,
}


@pytest.mark.parametrize("scaling", GAINS)
def test_a_scaling_multiplies_cos_and_sin(scaling: str) -> None:
    found = value(f"turn = rope(100.0, scaling = {scaling})\noutput y = turn(x, s)")
    expected = GAINS[scaling] * rotated(inputs()["x"], 100.0, "half", 8)
    assert np.allclose(found, expected, **SINGLE)


YARN_GAINS = {
    "": 0.1 * math.log(8) + 1,
    ", mscale = 0.7": 0.1 * math.log(8) + 1,
    ", mscale = 0.7, mscale_all_dim = 0.3": (0.07 * math.log(8) + 1) / (0.03 * math.log(8) + 1),
}


@pytest.mark.parametrize("given", YARN_GAINS)
def test_the_attention_factor_of_yarn(given: str) -> None:
    """Position 0 is not turned, only scaled."""
    scaling = f"yarn(8.0, 300{given})"
    found = value(f"turn = rope(100.0, scaling = {scaling})\noutput y = turn(x, s)")
    assert np.allclose(found[:, 0], YARN_GAINS[given] * inputs()["x"][:, 0], **SINGLE)


def test_learned_positions() -> None:
    found, w = run(model("output y = x |> learned_positions(9, offset = 2) as p"))
    assert np.allclose(found["y"], inputs()["x"] + w["p.w"][2:7], **EXACT)


SINUSOIDS = {  # what configures it -> the exponents of 1 / base, whether sines and cosines alternate
    "sinusoidal": (10000.0, np.arange(0, 8, 2) / 8, True),
    'sinusoidal(order = "blocks")': (10000.0, np.arange(0, 8, 2) / 8, False),
    'sinusoidal(50.0, "blocks", d // 2 - 1)': (50.0, np.arange(4) / 3, False),
}


@pytest.mark.parametrize("text", SINUSOIDS)
def test_sinusoidal_positions(text: str) -> None:
    """Along slots, along a timeline's positions, and at positions that are given."""
    lines = f"place = {text}\noutput y = place(x)"
    slots = run(model(lines))[0]["y"]
    timed = run(model(f"time s: position = 3 * ids\n{lines}"))[0]["y"]
    given = run(model(f"place = {text}\noutput y = place(x, ids * ids)"))[0]["y"]
    base, exponents, alternate = SINUSOIDS[text]
    x, ids = inputs()["x"], inputs()["ids"]
    for found, position in ((slots, np.arange(5)), (timed, 3 * ids), (given, ids * ids)):
        angle = position[..., None] * base**-exponents
        waves = np.stack([np.sin(angle), np.cos(angle)], -1 if alternate else -2)
        assert np.allclose(found, x + waves.reshape(*angle.shape[:-1], 8), **SINGLE)


# --------------------------------------------------------------------------- library

erf = np.vectorize(math.erf)
FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_quick": lambda x: x / (1 + np.exp(-1.702 * x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "elu_plus_one": lambda x: np.where(x > 0, x + 1, np.exp(x)),
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "softcap(2.0)": lambda x: 2 * np.tanh(x / 2),
    "l2_normalise": lambda x: x / np.sqrt((x * x).sum(-1, keepdims=True)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_std(name: str) -> None:
    assert np.allclose(value(f"output y = x |> {name}"), FUNCTIONS[name](inputs()["x"]), atol=1e-9)


def test_norms() -> None:
    found, w = run(model("output y = x |> rmsnorm(0.1) as r\noutput z = x |> layernorm(0.1) as l"))
    x = inputs()["x"]
    rms = x / np.sqrt((x * x).mean(-1, keepdims=True) + 0.1) * w["r.gain"]
    centred = x - x.mean(-1, keepdims=True)
    layer = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.1) * w["l.gain"] + w["l.b"]
    assert np.allclose(found["y"], rms, **EXACT)
    assert np.allclose(found["z"], layer, **EXACT)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_heads(kv_heads: int) -> None:
    found, w = run(model(f"output y = x |> attention(4, {kv_heads}, mask = causal) as a"))
    assert w["a.k.w"].shape == (kv_heads, 2, 8)
    expected = masked_attention(inputs()["x"], w, np.tril(np.ones((2, 5, 5), bool)))
    assert np.allclose(found["y"], expected, **EXACT)
    assert ids(model("output y = x |> attention(4, 3)")) == ["not-divisible"]


def test_attention_over_a_memory_of_another_length_and_width() -> None:
    text = model("input m: float[b, t, c: 3]\noutput y = x |> attention(heads, memory = m) as a")
    memory = np.random.default_rng(2).standard_normal((2, 7, 3))
    found, w = run(text, inputs(m=memory))
    q = np.einsum("bsd,gred->bsgre", inputs()["x"], w["a.q.w"])
    k, v = (np.einsum("btm,gem->btge", memory, w[f"a.{n}.w"]) for n in "kv")
    p = softmax(np.einsum("bsgre,btge->bgrst", q, k) * 4**-0.5)
    out = np.einsum("bgrst,btge->bsgre", p, v).reshape(2, 5, 8)
    assert np.allclose(found["y"], np.einsum("bsh,dh->bsd", out, w["a.o.w"]), **EXACT)


def test_sliding_counts_the_querys_own_key() -> None:
    found, w = run(model("output y = x |> attention(heads, mask = sliding(1)) as a"))
    expected = masked_attention(inputs()["x"], w, np.eye(5, dtype=bool)[None])
    assert np.allclose(found["y"], expected, **EXACT)


# ---------------------------------------------------------------------------- repeats


def kinds(text: str) -> tuple[str, ...]:
    """The kinds of the first repeat, one for each iteration."""
    node = next(n for n in program(text).main.nodes if n.op == "repeat")
    return node.attrs["kinds"]


def test_fractions_that_differ_are_arguments_of_one_kind() -> None:
    body = """decay = [0.5, 0.25, 2.0]
      repeat layers[i: 3] { x += decay[i] * tanh(x) + x / (i + 1.5) }
      output y = x"""
    assert len(set(kinds(model(body)))) == 1
    x = inputs()["x"]
    for i, decay in enumerate([0.5, 0.25, 2.0]):
        x = x + decay * np.tanh(x) + x / (i + 1.5)
    assert np.allclose(value(body), x, **EXACT)


def test_kinds_by_structure() -> None:
    body = """kinds = ["wide", "narrow", "wide", "none"]
      repeat layers[i: 4] {
        if kinds[i] == "wide" { x += x |> ffn(12) as mix }
        else if kinds[i] == "narrow" { x += x |> ffn(4) as mix }
        if i % 2 == 1 { x = 2.0 * x }
      }
      output y = x"""
    found = kinds(model(body))
    assert len(set(found)) == 3
    assert found[0] == found[2]
    made = [f"layers[{i}].mix.{n}.w" for i in (0, 1, 2) for n in ("in", "out")]
    assert paths(model(body)) == made
    text, w = run(model(body))
    x = inputs()["x"]
    for i in range(4):
        if i < 3:
            x = x + np.maximum(x @ w[f"layers[{i}].mix.in.w"].T, 0) @ w[f"layers[{i}].mix.out.w"].T
        x = 2 * x if i % 2 else x
    assert np.allclose(text["y"], x, **EXACT)


PER_LAYER = {
    "a block": "x += x |> [rmsnorm, layernorm][i] as n",
    "a rotary base": "x = turn(x, s)",
    "a window": "x += x |> attention(heads, mask = sliding([1, 3][i])) as a",
    "a table entry": "weight table[rows: 2, d] = ones\nx += table[rows: i]",
    "a maybe": "x += ([none, 2.0][i] ?? 1.0) * x",
    "a maybe, tested": "if [none, 2.0][i] != none { x += x * [none, 2.0][i] }",
    "a list of lists": "x += [[1.0, 2.0], [3.0, 4.0]][i][1] * x",
    "a condition": "x = where([true, false][i], x, 2 * x)",
    "a whole number": "x = x * (i + 1) + (ids * i)",
    "a nested repeat": "repeat inner[j: 2] { x += x * (i + j + 0.5) + x / (i + 1.0) }",
    "a nested kind": "repeat inner[j: 2] { if i == j { x += x |> linear(d) as p } }",
    "a slice": "x += x[d: 0..4 * (i + 1)] if i == 1 else 0 * x",
}


@pytest.mark.parametrize("case", PER_LAYER)
def test_whatever_differs_by_layer_is_what_the_unrolled_text_gives(case: str) -> None:
    line = PER_LAYER[case]
    if case == "a rotary base":
        line = "turn = rope([10.0, 100.0][i])\n" + line
    above = (
        f"block layer(i)(x[..., s, d], ids[...]) -> [..., s, d] {{ heads = 2\n{line}\nreturn x }}"
    )
    repeated, w = run(model(f"repeat layers[i: 2] {{ {line} }}\noutput y = x"))
    text = model(
        "h = x |> layer(0, ids = ids) as l0\noutput y = h |> layer(1, ids = ids) as l1", above
    )
    flat = program(text)
    same = {p.path: w[re.sub(r"^l(\d)", r"layers[\1]", p.path)] for p in flat.parameters}
    unrolled = NumpyBackend().load(flat, same, dtype="f64").run(inputs() | {})["y"]
    assert np.allclose(repeated["y"], unrolled, **SINGLE)


def test_nested_repeats() -> None:
    body = """repeat outer[i: 2] { repeat inner[j: 3] { x += x |> linear(d) as p } }
      output y = x"""
    assert paths(model(body)) == [f"outer[{i}].inner[{j}].p.w" for i in (0, 1) for j in (0, 1, 2)]
    found, w = run(model(body))
    x = inputs()["x"]
    for path in paths(model(body)):
        x = x + x @ w[path].T
    assert np.allclose(found["y"], x, **EXACT)


def test_numbers_are_carried_and_become_fractions() -> None:
    body = """aux = 0; steps = 0
      repeat layers[i: 3] { aux += sum(x, b, s, d); steps += 1; x = 0.5 * x }
      output y = x
      output aux = aux
      output steps = steps"""
    found = run(model(body))[0]
    assert np.isclose(found["aux"], inputs()["x"].sum() * 1.75)
    assert found["steps"] == 3


def test_a_carried_value_keeps_its_precision() -> None:
    text = model("h = x\nrepeat layers[i: 2] { h = f32(h) + 1 }\noutput y = h")
    node = next(n for n in program(text).main.nodes if n.op == "repeat")
    assert node.type.dtype == "f32"


def test_no_iterations_leave_everything_as_it_was() -> None:
    body = "n = 0\nrepeat layers[i: n] { x = nonsense }\noutput y = x"
    assert np.array_equal(value(body), inputs()["x"])


def test_weights_and_values_of_the_model_in_a_repeat() -> None:
    body = """weight g[d] = ones
      shift = x[s: 0]
      repeat layers[i: 2] { x = x * g + shift }
      output y = x"""
    found, w = run(model(body))
    x, g = inputs()["x"], w["g"]
    assert np.allclose(found["y"], (x * g + x[:, :1]) * g + x[:, :1], **EXACT)


def test_a_shared_block_with_a_repeat_in_it() -> None:
    above = """block stack2()(x[..., d]) -> [..., d] {
      repeat layers[i: 2] { x += x |> linear(d) as p }
      return x
    }"""
    body = "shared e = stack2()\noutput y = e(e(x))"
    assert paths(model(body, above)) == ["e.layers[0].p.w", "e.layers[1].p.w"]
    found, w = run(model(body, above))
    x = inputs()["x"]
    for i in (0, 1, 0, 1):
        x = x + x @ w[f"e.layers[{i}].p.w"].T
    assert np.allclose(found["y"], x, **EXACT)
    looped = "shared e = stack2()\nrepeat l[i: 2] { x = e(x) }\noutput y = x"
    assert ids(model(looped, above)) == ["unsupported"]


REPEAT_MISTAKES = {
    "x = x |> linear(heads)": ["carried-axes"],
    "ids = x[d: 0]": ["carried-dtype"],
    "act = silu": ["carried-value"],
    "return x": ["misplaced-return"],
    "output z = x": ["only-in-model"],
    "x = nope": ["unknown-name"],
    "x = nope\nx = x + nope2": ["unknown-name"],
    "if i == 0 { x = nope } else { x = nop }": ["unknown-name", "unknown-name"],
    "x = x * nope; u = nop": ["unknown-name", "unknown-name"],
}


@pytest.mark.parametrize("text", REPEAT_MISTAKES)
def test_mistakes_in_a_repeat_are_shown_once(text: str) -> None:
    body = f"act = relu\nrepeat layers[i: 4] {{ x = x; {text} }}\noutput y = x"
    assert ids(model(body)) == REPEAT_MISTAKES[text]


def test_eighty_layers_of_one_kind_are_elaborated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many nodes are made as for two layers, those that are dropped again included."""
    module = module_of(parse_file(EXAMPLES / "llama.arch"))
    name, overrides = preset_overrides(module, "llama2_70b")
    made, append = Counter[int](), Builder.append
    for layers in (2, 80):

        def counted(builder: Builder, node: Node, layers: int = layers) -> int:
            made[layers] += 1
            return append(builder, node)

        monkeypatch.setattr(Builder, "append", counted)
        request = Request({**overrides, "layers": layers})
        found = elaborate(module, the_model(module, name), request)
        assert len(found.functions) <= 3
    assert made[2] == made[80] > 0


# ------------------------------------------------------------------------- no crashes

ODD = """ids keep d s b heads none true 3 0 -1 0.5 q silu rmsnorm linear(d) attention(heads) embed f[0]
rope [1,2] "a" (u[...])->u (s,t)->true size(s) d//heads topk(x,d,k:2) i""".split()
SHAPED = """x x 2*x x[d:ids] embed(ids) f[0](x) f[i](x) x*embed.w[rows:0] f32(x) where(keep,x,0) g(x) -x
position(s)*x valid(s) x[s->t] x[d:0] x[d:0..4] x[(s,d)->h] x[d->(g:2,e)] ids[s->t] x[p:new]
concat(x,x,d)[d:0..d] stack(x,x,pair) sum(x,d) amax(x,s) cumsum(x,s) softmax(x,s) dot(x,x,d)
dot(x,x[s->t],d) dot(softmax(dot(x,x[s->t],d),t),x[s->t],t) causal(s,s) x==x keep slope
1.5*i [2.0,0.5][i] [none,2][i]??3 {"a":x}["a"]""".split()
STAGES = """rmsnorm layernorm linear(d) linear(e:4) silu softmax(d) g f[i] f[1] h ffn(4) ffn(3*d+i)
attention(heads) attention(heads,mask=causal) attention(heads,rotate=rope) sinusoidal
attention(heads,mask=(s,t)->ids==ids[s->t]) attention(heads,score=(a[...],s,t)->a+slope)""".split()
RELABELS = "[s->t] [d:1..3] [d:i] [i] [...,d] [b,s,d] [d->(g:2,e)] [g:new] .w (x) (x,s)".split()


def combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from("+ - * / // % ** == < and or ??".split())
    calls = st.sampled_from(["exp", "sum", "dot", "g", "max", "size", "min"])
    return st.one_of(
        st.tuples(inner, operators, inner).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})"),
        st.tuples(inner, st.sampled_from(STAGES)).map(lambda t: f"(({t[0]}) |> {t[1]})"),
        st.tuples(inner, st.sampled_from(RELABELS)).map(lambda t: f"({t[0]}){t[1]}"),
        st.tuples(inner, inner).map(lambda t: f"({t[0]}) if i == 1 else ({t[1]})"),
        st.tuples(calls, inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
    )


leaves = st.one_of(*[st.sampled_from(SHAPED)] * 4, st.sampled_from(ODD))
expressions = st.recursive(leaves, combined, max_leaves=4)
TEMPLATES = [
    "x = {}", "x += {}", "x += {}", "z[b, s, d] = {}", "v = {}", "const c[j: 4] = {}", "w = {}\nx += w",
    "if ({}) == i {{ x = 2 * x }}", "h = (u[..., s, d]) -> {}\nx = h(x)", "weight w[d] = {}\nx = x * w",
    "shared c = {}\nx = c(x)", "bank c[n: 2] = {}\nx = x |> c[1]", "time s: position = int({})",
    "repeat deep[k: 2] {{ x += {} }}", "if i == 0 {{ x += {} }} else {{ x = x |> rmsnorm }}",
]  # fmt: skip
FIXED = ["decode s", "time s: valid = keep, segment = ids", "weight w[(s, d)]", "return x", "w = d"]
statements = st.one_of(
    *[expressions.map(template.format) for template in TEMPLATES], st.sampled_from(FIXED)
)


def only_reports_mistakes(text: str) -> None:
    """Elaborate: every failure must be a mistake of the text, reported as one."""
    with suppress(ArchError, Diagnostics):
        program(text)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(statements, min_size=1, max_size=3), st.lists(statements, max_size=2), expressions)
def test_any_text_elaborates_or_is_refused(inner: list[str], outer: list[str], last: str) -> None:
    above = "fn g(x[..., s, d], o[...] = 2) = o * tanh(x)"
    lines = ["i = 1", "shared embed = embedding(d, d)", "bank f[n: 2] = linear(d)"]
    lines += ["x += embed(ids)", "slope = alibi_slopes(heads)", *outer]
    loop = ["repeat layers[i: 2] {", *inner, "x = x / 2", "}"]
    body = "\n".join([*lines, *loop, f"output y = {last}"])
    only_reports_mistakes(model(body, above))


TOKENS = re.compile(r'"[^"\n]*"|\w+|\|>|->|\.\.\.|\.\.|[-+*/=<>!?]+|\S|\n')
WHOLE = [p.read_text().split("\ncheckpoint")[0] for p in sorted(EXAMPLES.glob("*.arch"))]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(WHOLE[:3]), st.data())
def test_an_example_with_tokens_exchanged_elaborates_or_is_refused(
    text: str, data: st.DataObject
) -> None:
    tokens = TOKENS.findall(text)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(tokens) - 1))
        tokens[at] = data.draw(st.sampled_from(["", tokens[at] + " " + tokens[at], *tokens[:200]]))
    only_reports_mistakes(" ".join(tokens).replace("\n ", "\n"))
