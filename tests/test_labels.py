"""Names of axes: private to a body, bound by written order, crossed by identity."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import ids, inputs, mistakes, model, paths, run, value

EXACT = {"rtol": 0, "atol": 1e-12}


def attended(x: np.ndarray, w: dict[str, np.ndarray], seen: np.ndarray, at: str) -> np.ndarray:
    """Plain attention: x[b, s, d], weights of `std` at path `at`, seen[b, heads, s, t]."""
    q, k, v = (np.einsum("bsd,...d->bs...", x, w[f"{at}.{n}.w"]) for n in "qkv")
    b, s, g, r, e = q.shape
    scores = np.einsum("bsgre,btge->bgrst", q, k) * e**-0.5
    scores = scores.reshape(b, g * r, s, s)
    scores = np.where(seen if seen.dtype == bool else True, scores, -np.inf)
    scores = scores + (0 if seen.dtype == bool else seen)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True)).reshape(b, g, r, s, s)
    out = np.einsum("bgrst,btge->bsgre", p, v).reshape(b, s, g * r * e)
    return np.einsum("bsh,dh->bsd", out, w[f"{at}.o.w"])


# ---------------------------------------------------------------------------- hygiene

# axes whose names are also names inside std
CALLER_NAMES = ["in", "e", "t", "g", "r", "h", "w", "out", "rows", "gain", "q", "s2"]


@pytest.mark.parametrize("name", CALLER_NAMES)
def test_a_callers_axis_may_be_called_like_a_private_name_of_std(name: str) -> None:
    body = f"z = x[d -> {name}] |> rmsnorm as n |> linear({name}) as p\noutput y[b, s, {name}] = z"
    found, w = run(model(body))
    x = inputs()["x"]
    normed = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w["n.gain"]
    assert np.allclose(found["y"], normed @ w["p.w"].T, **EXACT)


@pytest.mark.parametrize("name", CALLER_NAMES)
def test_attention_over_a_caller_axis_of_any_name(name: str) -> None:
    text = model(f"output y[b, {name}, d] = x[s -> {name}] |> attention(heads) as a")
    found, w = run(text)
    assert np.allclose(found["y"], attended(inputs()["x"], w, np.ones((), bool), "a"), **EXACT)


def test_a_square_map_is_a_matrix_not_a_diagonal() -> None:
    found, w = run(model("output y = x |> linear(d) as p"))
    assert w["p.w"].shape == (8, 8)
    assert np.allclose(found["y"], inputs()["x"] @ w["p.w"].T, **EXACT)


APPLY = """block apply(f)(x[..., d]) -> [..., d] { y[..., d] = x |> f as f; return 2 * y }
block first(f)(x[..., d]) -> [..., d] { bank g[n: 2] = f; y[..., d] = g[0](x); return 2 * y }
"""


@pytest.mark.parametrize("block", ["apply", "first"])
@pytest.mark.parametrize("name", ["d", "e"])
def test_what_a_block_is_given_maps_to_the_axis_that_its_caller_named(
    block: str, name: str
) -> None:
    """`linear(d)` is written where `d` is the model's; in the block that is its own `d`."""
    body = f"z = x[d -> {name}] |> {block}(linear({name})) as a\noutput y[b, s, {name}] = z"
    found, w = run(model(body, APPLY))
    (weight,) = w.values()
    weight = weight[0] if weight.ndim == 3 else weight
    assert np.allclose(found["y"], 2 * inputs()["x"] @ weight.T, **EXACT)


def test_sizes_that_collide_do_not_join_axes() -> None:
    values = inputs(x=np.random.default_rng(3).standard_normal((4, 4, 16)))
    values |= {"ids": np.zeros((4, 4), int), "keep": np.ones((4, 4), bool)}
    text = model("output y = x |> attention(heads, mask = causal) as a")
    found, w = run(text.replace("d = 8; heads = 2", "d = 16; heads = 4"), values)
    seen = np.tril(np.ones((4, 4), bool))
    assert np.allclose(found["y"], attended(values["x"], w, seen, "a"), **EXACT)


def test_a_files_own_linear_does_not_reach_into_std() -> None:
    above = "block linear(out...)(x[..., in]) -> [..., in] { return 0 * x }"
    own = run(model("output y = x |> attention(heads) as a", above))[0]["y"]
    assert np.array_equal(own, run(model("output y = x |> attention(heads) as a"))[0]["y"])
    assert not value("output y = x |> linear(d)", above).any()


def test_one_name_at_several_sizes() -> None:
    body = """q = x |> linear(e: 4) as q
      k = x |> linear(e: 6) as k
      output y[b, s, e] = concat(q, k, e)
      output z[b, s] = dot(q, q, e)"""
    found, w = run(model(body))
    x = inputs()["x"]
    parts = [x @ w["q.w"].T, x @ w["k.w"].T]
    assert np.allclose(found["y"], np.concatenate(parts, -1), **EXACT)
    assert np.allclose(found["z"], (parts[0] ** 2).sum(-1), **EXACT)
    assert ids(model(f"{body}\nwide = e * 2\noutput v = x * wide")) == ["ambiguous-axis"]


def test_pack_axes_keep_the_order_of_the_text() -> None:
    found, w = run(model("output y = x |> linear(g: 3, d) as p"))
    assert w["p.w"].shape == (3, 8, 8)
    assert found["y"].shape == (2, 5, 3, 8)
    expected = np.einsum("bsi,gdi->bsgd", inputs()["x"], w["p.w"])
    assert np.allclose(found["y"], expected, **EXACT)


def test_two_labels_of_one_renamed_axis() -> None:
    body = "u = x[s -> u]\noutput y[b, u, d] = u |> attention(heads, mask = causal) as a"
    found, w = run(model(body))
    seen = np.tril(np.ones((5, 5), bool))
    assert np.allclose(found["y"], attended(inputs()["x"], w, seen, "a"), **EXACT)


# ------------------------------------------------------------------- binding and order

BINDING = {
    "unordered operand": (
        "a = dot(x, x[s -> t], d)\noutput y = a |> rmsnorm",
        ["write-the-axes"],
    ),
    "order restated": ("a = dot(x, x[s -> t], d)\noutput y[b, s, t] = a[b, s, t] |> rmsnorm", []),
    "annotated": ("a[b, s, t] = dot(x, x[s -> t], d)\noutput y = a |> rmsnorm", []),
    "two orders meet": (
        "p[b, s, d] = x\nq[s, b, d] = x\nz = p + q\noutput y = z |> attention(heads)",
        ["write-the-axes"],
    ),
    "two orders agree on the last": (
        "p[b, s, d] = x\nq[s, b, d] = x\nz = (p + q) |> rmsnorm\noutput y[b, s, d] = z",
        [],
    ),
    "an output without an order": ("output y = dot(x, x[s -> t], d)", ["output-order"]),
    "too few axes": ("output y = sum(x, s, d) |> attention(heads)", ["axis-count"]),
    "exact axes": ("output y = f(x)", ["axis-count"]),
    "axis not there": ("y[b, t] = x\noutput z = x", ["no-such-axis"]),
    "axis too many": ("y[b, s] = x\noutput z = x", ["extra-axes"]),
    "axis twice": ("y[b, s, s] = x\noutput z = x", ["axis-twice"]),
    "two times called s": ("a[b, s, t] = dot(x, x, d)\noutput y = a", ["no-such-axis"]),
    "outer product": ("z = x + x[s -> t]\noutput y = z", ["outer-product"]),
    "outer product annotated": ("z[..., t, d] = x + x[s -> t]\noutput y[b, s, t, d] = z", []),
    "outer product, scores": ("z = x[d: 0] * x[d: 1][s -> t]\noutput y = z", ["outer-product"]),
    "outer product reduced": ("z = sum(x * x[s -> t], t)\noutput y[b, s, d] = z", []),
    "adding an axis": ("z = x[d: 0]\nz += x\noutput y = z", ["adds-axes"]),
    "pack of a size": ("output y = x |> linear(4 * d)", ["unnamed-axis"]),
    "one axis under two names": ("output y = x |> g(x[s -> u])", ["axis-clash"]),
    "open axis already there": (
        "output y = x |> linear(c: 3, d) as a |> linear(c: 4)",
        ["axis-twice"],
    ),
}
ABOVE = """fn f(x[s, d]) = x
fn g(x[..., s, d], y[..., s, d]) = x + y"""


@pytest.mark.parametrize("case", BINDING)
def test_binding(case: str) -> None:
    body, expected = BINDING[case]
    assert ids(model(body, ABOVE)) == expected


def test_an_ordered_operand_wins_over_an_unordered_one() -> None:
    body = "a = dot(x, x[s -> t], d)[..., t]\nz = dot(a, x[s -> t], t) * x\noutput y = z |> rmsnorm"
    assert value(body).shape == (2, 5, 8)


def test_open_axes_keep_the_order_of_the_first_input() -> None:
    above = """block f()(x[..., s, d]) -> [..., s, d] {
      y[..., s, k: 3] = x |> linear(k: 3)
      return y |> linear(d) as back
    }"""
    assert value("output y = x |> f() |> attention(heads)", above).shape == (2, 5, 8)


def test_axes_before_and_behind_the_dots() -> None:
    above = "fn flip(x[first, ..., last]) -> [last, ..., first] = x"
    found = value("output y = flip(x)", above)
    assert np.array_equal(found, inputs()["x"].transpose(2, 1, 0))


def test_results_leave_under_the_callers_names() -> None:
    above = "fn pair(x[..., d]) -> ([..., k], [..., k]) { a, c = topk(x, d, k: 2)\nreturn a, c }"
    x = inputs()["x"]
    found = run(model("v, i = pair(x)\noutput y = v\noutput z = i", above))[0]
    assert np.array_equal(found["y"], -np.sort(-x, -1)[..., :2])
    assert np.array_equal(found["z"], np.argsort(-x, -1, kind="stable")[..., :2])


def test_a_private_axis_cannot_leave_unnamed() -> None:
    assert ids(model("output y = f(x)", "fn f(x[..., a]) = x[a -> c]")) == ["private-axis"]
    assert ids(model("f = (u[..., a]) -> u[a -> c]\noutput y = f(x)")) == ["private-axis"]


def test_names_of_a_repeat_body_end_with_the_iteration() -> None:
    body = """sizes = [4, 6]
      repeat layers[i: 2] { hidden = sizes[i]; x += x |> ffn(hidden) as ffn }
      output y = x |> linear(hidden: 3)"""
    found, w = run(model(body))
    assert found["y"].shape == (2, 5, 3)
    assert [w[f"layers[{i}].ffn.in.w"].shape for i in (0, 1)] == [(4, 8), (6, 8)]


# ------------------------------------------------------------------------------ closures


def slopes(heads: int) -> np.ndarray:
    """Press et al., 2022: a geometric sequence; for other counts, every other one of twice."""
    n = 2 ** int(np.floor(np.log2(heads)))
    first = [2.0 ** (-8 * (i + 1) / n) for i in range(n)]
    rest = [2.0 ** (-4 * (i + 1) / n) for i in range(0, 2 * n, 2)]
    return np.array((first + rest)[:heads])


@pytest.mark.parametrize("heads", [6, 8])
def test_alibi_captures_slopes_by_the_callers_heads(heads: int) -> None:
    body = f"""nh = {heads}
      slope[nh] = alibi_slopes(nh)
      biased = (a[...], s, t) -> a + slope * (position(t) - position(s))
      output y = x |> attention(nh, mask = causal, score = biased) as a
      output slopes = slope"""
    values = inputs()
    values["x"] = np.random.default_rng(1).standard_normal((2, 5, 24))
    found, w = run(model(body).replace("d = 8;", "d = 24;"), values)
    assert np.allclose(found["slopes"], slopes(heads), rtol=1e-7)
    gap = np.arange(5)[None, :] - np.arange(5)[:, None]
    bias = np.where(gap <= 0, slopes(heads)[:, None, None] * gap, -np.inf)
    assert np.allclose(found["y"], attended(values["x"], w, bias, "a"), atol=1e-7)


T5 = """block relative_bias(heads, buckets = 8, far = 16)(s, t) -> [..., heads, s, t] {
  weight table[bucket: buckets, heads]
  r[..., s, t] = position(t) - position(s)
  return table[bucket: min(max(r, 0 - 4) + 4, buckets - 1)]
}"""


def test_a_shared_table_called_in_a_lambda() -> None:
    body = """shared near = relative_bias(heads)
      repeat layers[i: 2] {
        x = x |> attention(heads, score = (a[...], s, t) -> a + near(s, t)) as a
      }
      output y = x"""
    found, w = run(model(body, T5))
    assert w["near.table"].shape == (8, 2)
    gap = np.arange(5)[None, :] - np.arange(5)[:, None]
    bias = w["near.table"][np.minimum(np.maximum(gap, -4) + 4, 7)].transpose(2, 0, 1)
    once = attended(inputs()["x"], w, bias, "layers[0].a")
    assert np.allclose(found["y"], attended(once, w, bias, "layers[1].a"), **EXACT)


DOCUMENTS = [
    "(s, t) -> ids == ids[s -> t]",
    "(i, j) -> ids[s -> i] == ids[s -> j]",
    "(i, j) -> ids[s -> j] == ids[s -> i]",
    "(s, t) -> segment(s) == segment(t)",
]


@pytest.mark.parametrize("mask", DOCUMENTS)
@pytest.mark.parametrize("axis", ["s", "u"])
def test_a_captured_document_mask(mask: str, axis: str) -> None:
    body = f"""time s: segment = ids
      output y[b, s, d] = x |> attention(heads, mask = {mask}) as a"""
    text = model(body)
    if axis != "s":  # nothing depends on what the caller calls its time
        text = text.replace("[b, s", f"[b, {axis}").replace("time s", f"time {axis}")
        text = text.replace("ids[s", f"ids[{axis}").replace("(s, t) -> ids ==", "(u, t) -> ids ==")
    found, w = run(text)
    doc = inputs()["ids"]
    seen = (doc[:, :, None] == doc[:, None, :])[:, None]
    assert np.allclose(found["y"], attended(inputs()["x"], w, seen, "a"), **EXACT)


def test_a_captured_axis_for_two_formals_is_ambiguous() -> None:
    (error,) = mistakes(model("output y = x |> attention(heads, mask = (i, j) -> ids == ids)"))
    assert error.id == "bound-twice"
    assert "`i` and `j`" in error.message
    assert error.span is not None
    assert error.span.text == "(i, j) -> ids == ids"


def test_a_closure_sees_the_names_where_it_is_written() -> None:
    above = """block twice(f)(x[..., d]) -> [..., d] {
      limit = 100
      gain = 7
      return f(f(x))
    }"""
    body = (
        "limit = 0.5\nbounded = (a[...]) -> limit * tanh(a / limit)\noutput y = x |> twice(bounded)"
    )
    squash = lambda a: 0.5 * np.tanh(a / 0.5)  # noqa: E731
    assert np.allclose(value(body, above), squash(squash(inputs()["x"])), **EXACT)


def test_a_closure_over_a_tensor_inside_a_repeat() -> None:
    body = """gate = x[d: 0]
      repeat layers[i: 2] { x = x |> linear(d, bias = true) as p |> f }
      output y = x"""
    body = f"f = (u[...]) -> u * gate\n{body}"
    text = model(body.replace("gate = x[d: 0]\n", "").replace("f = ", "gate = x[d: 0]\nf = "))
    found, w = run(text)
    x = inputs()["x"]
    expected, gate = x, x[..., :1]
    for i in range(2):
        expected = (expected @ w[f"layers[{i}].p.w"].T + w[f"layers[{i}].p.b"]) * gate
    assert np.allclose(found["y"], expected, **EXACT)


def test_a_score_keeps_apart_what_is_one_axis_outside() -> None:
    """Inside attention a score has s and t, which are both the caller's s."""
    above = (
        "block f(act)(x[..., s, d]) -> [..., s, d] { return x |> attention(2, norm = act) as a }"
    )
    body = "shift = x[d: 0, s: 0]\nact = (u[...]) -> u + shift\noutput y = x |> f(act)"
    assert value(body, above).shape == (2, 5, 8)


# ------------------------------------------------------------------------ instances


def test_an_instances_weight_has_the_callers_axes() -> None:
    above = """block table(rows, out...)(i[...]) -> [..., out...] {
      weight w[rows, (out...)]
      return w[rows: i]
    }"""
    body = "shared embed = table(d, width: 6)\nh = embed(ids)\noutput y = h |> unembed(embed.w)"
    found, w = run(model(body, above))
    table = w["embed.w"]
    assert np.allclose(found["y"], table[inputs()["ids"]] @ table.T, **EXACT)


def test_a_square_instance_has_its_declared_axes() -> None:
    body = "shared p = linear(d)\nh = p(x)\noutput y[b, s, in] = dot(h, p.w, d)"
    found, w = run(model(body))
    x = inputs()["x"]
    assert np.allclose(found["y"], (x @ w["p.w"].T) @ w["p.w"], **EXACT)


def test_a_shared_weight_used_in_a_loop_and_outside() -> None:
    body = """shared mix = ffn(6, bias = true)
      x = mix(x)
      repeat layers[i: 3] { x += mix(x) }
      output y = x"""
    assert paths(model(body)) == ["mix.in.w", "mix.in.b", "mix.out.w", "mix.out.b"]
    found, w = run(model(body))

    def mix(x: np.ndarray) -> np.ndarray:
        return (
            np.maximum(x @ w["mix.in.w"].T + w["mix.in.b"], 0) @ w["mix.out.w"].T + w["mix.out.b"]
        )

    expected = mix(inputs()["x"])
    for _ in range(3):
        expected = expected + mix(expected)
    assert np.allclose(found["y"], expected, **EXACT)


def test_a_shared_block_first_applied_in_a_loop() -> None:
    body = """shared gain = rmsnorm
      repeat layers[i: 2] { x += x |> gain }
      output y = x * gain.gain"""
    assert paths(model(body)) == ["gain.gain"]
    assert value(body).shape == (2, 5, 8)


def test_one_instance_has_one_size() -> None:
    (error,) = mistakes(model("shared p = linear(d)\nh = p(x)\nz = p(h[d: 0..4])\noutput y = h"))
    assert error.id == "shared-sizes"
    assert "drop `shared`" in error.help_text()


def test_weights_of_an_instance_exist_after_its_first_application() -> None:
    assert ids(model("shared p = linear(d)\nz = dot(x, p.w, d)\noutput y = p(x)")) == ["no-weight"]
    assert ids(model("shared p = linear(d)\nh = p(x)\nz = p.v\noutput y = h")) == ["no-weight"]


def test_a_bank_by_number_makes_what_is_used() -> None:
    body = """bank f[n: 3] = linear(d)
      repeat layers[i: 2] { x += x |> f[i + 1] }
      output y = (x |> f[0]) + f[2](x)"""
    assert sorted(paths(model(body))) == ["f[0].w", "f[1].w", "f[2].w"]
    found, w = run(model(body))
    x = inputs()["x"]
    for i in (1, 2):
        x = x + x @ w[f"f[{i}].w"].T
    assert np.allclose(found["y"], x @ w["f[0].w"].T + x @ w["f[2].w"].T, **EXACT)
    assert ids(model("bank f[n: 3] = linear(d)\noutput y = x |> f[3]")) == ["list-index"]


def test_a_template_makes_weights_at_each_application() -> None:
    body = "output y = x |> attention(heads, norm = rmsnorm(1e-3)) as a"
    assert paths(model(body)) == [
        "a.q.w", "a.k.w", "a.v.w", "a.q_norm.gain", "a.k_norm.gain", "a.o.w",
    ]  # fmt: skip
    body = "shared n = rmsnorm(1e-3)\noutput y = x |> attention(heads, norm = n) as a"
    assert paths(model(body)) == ["a.q.w", "a.k.w", "a.v.w", "n.gain", "a.o.w"]


# ------------------------------------------------------------------------ weight paths

PATHS = {
    "as": ("output y = x |> linear(d) as p", ["p.w"]),
    "new variable": ("q = x |> linear(d)\noutput y = q", ["q.w"]),
    "old variable": ("x = x |> linear(d)\noutput y = x", ["linear.w"]),
    "adding": ("x += x |> linear(d)\noutput y = x", ["linear.w"]),
    "an output": ("output y = x |> linear(d)", ["y.w"]),
    "two applications": (
        "q = x |> rmsnorm |> linear(d)\noutput y = q",
        ["rmsnorm.gain", "linear.w"],
    ),
    "fn called by name": ("q = x |> silu |> linear(d)\noutput y = q", ["q.w"]),
    "fn passed": ("act = silu\nq = x |> act |> linear(d)\noutput y = q", ["linear.w"]),
    "builtin": ("q = exp(x) |> linear(d)\noutput y = q", ["q.w"]),
    "configured elsewhere": (
        "p = linear(d)\nq = x |> p as a\nz = q |> p as c\noutput y = z",
        ["a.w", "c.w"],
    ),
    "a lambda's are elsewhere": (
        "shared g = rmsnorm\nbend = (a[...], s, t) -> a + g(a[..., t])\n"
        "q = x |> attention(heads, score = (a[...], s, t) -> bend(a, s, t))\noutput y = q",
        ["q.q.w", "q.k.w", "q.v.w", "g.gain", "q.o.w"],
    ),
    "configured inside": ("q = x |> ffn(4, act = silu)\noutput y = q", ["q.in.w", "q.out.w"]),
    "several targets": ("v, i = topk(x |> linear(d), d, k: 2)\noutput y = v", ["linear.w"]),
    "conditional": ("q = (x |> linear(d)) if d > 4 else x\noutput y = q", ["q.w"]),
    "exclusive branches": (
        "if d > 4 { x = x |> linear(d) as p } else { x = x |> rmsnorm as p }\noutput y = x",
        ["p.w"],
    ),
    "weights of a model": ("weight g[d] = ones\noutput y = x * g", ["g"]),
    "a block in a block": ("output y = x |> twice as t", ["t.h.w", "t.second.w"]),
}
TWICE = """block twice(x[..., d]) -> [..., d] {
  h = x |> linear(d)
  return h |> linear(d) as second
}"""


@pytest.mark.parametrize("case", PATHS)
def test_paths(case: str) -> None:
    body, expected = PATHS[case]
    assert paths(model(body, TWICE)) == expected


TAKEN = {
    "two stages": "x += x |> rmsnorm |> linear(d) as a\nx += x |> rmsnorm |> linear(d) as c",
    "as twice": "x += x |> linear(d) as a\nx += x |> linear(d) as a",
    "shared and applied": "shared a = linear(d)\nx = a(x)\nx += x |> linear(d) as a",
    "repeat and applied": "repeat a[i: 2] { x += 1 }\nx += x |> linear(d) as a",
    "bank and applied": "bank a[n: 2] = linear(d)\nx += x |> linear(d) as a",
    "two repeats": "repeat a[i: 2] { x += 1 }\nrepeat a[i: 2] { x += 1 }",
}


@pytest.mark.parametrize("case", TAKEN)
def test_a_label_is_given_once(case: str) -> None:
    assert ids(model(f"{TAKEN[case]}\noutput y = x")) == ["label-twice"]


def test_a_weight_is_declared_once() -> None:
    assert ids(model("weight g[d]\nweight g[d]\noutput y = x * g")) == ["defined-twice"]
