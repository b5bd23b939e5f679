"""Banks indexed by tensors: one weight with an entry for each instance, read where it is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import ids, inputs, mistakes, model, paths, program, run, value

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def entry(w, path: str, index: np.ndarray) -> np.ndarray:
    """The weight of the instance that each entry of `index` picks, with its stored rows merged."""
    return w[path][index]


def rows(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x W^T for each row of x with a matrix of its own."""
    return np.einsum("...i,...oi->...o", x, w)


def test_each_row_goes_through_the_instance_it_picks() -> None:
    body = "bank f[n: 3] = ffn(12, bias = true)\noutput y = f[ids % 3](x)"
    assert paths(model(body)) == ["f.in.w", "f.in.b", "f.out.w", "f.out.b"]
    found, w = run(model(body))
    at = inputs()["ids"] % 3
    h = np.maximum(rows(inputs()["x"], w["f.in.w"][at]) + w["f.in.b"][at], 0)
    assert np.allclose(found["y"], rows(h, w["f.out.w"][at]) + w["f.out.b"][at], **EXACT)


def test_axes_that_only_the_index_has_stand_before_those_of_the_block() -> None:
    body = """bank f[n: 3] = linear(6)
      v, i = topk(x[d: 0..3], d, k: 2)
      y = f[i](x)
      output z[b, s, out] = dot(y, v, k)"""
    found, w = run(model(body.replace("linear(6)", "linear(out: 6)")))
    x = inputs()["x"]
    i = np.argsort(-x[..., :3], -1, kind="stable")[..., :2]
    v = np.take_along_axis(x, i, -1)
    y = rows(np.broadcast_to(x[..., None, :], (*i.shape, 8)), w["f.w"][i])
    assert np.allclose(found["z"], np.einsum("bsko,bsk->bso", y, v), **EXACT)


PLACES = {
    "a repeat": ("repeat layers[i: 2] {{ {} }}", ["layers[0].f.w", "layers[1].f.w"]),
    "a scan": ("scan s with h = 0 {{ {}\n h = h + x }}\n x = h", ["f.w"]),
}


@pytest.mark.parametrize("case", PLACES)
def test_in_a_loop(case: str) -> None:
    around, expected = PLACES[case]
    text = around.format("bank f[n: 3] = linear(d)\nx = f[ids % 3](x)")
    body = f"{text}\noutput y[b, s, d] = x"
    assert paths(model(body)) == expected
    found, w = run(model(body))
    x, at = inputs()["x"], inputs()["ids"] % 3
    for path in expected:
        x = rows(x, w[path][at])
    assert np.allclose(found["y"], np.cumsum(x, 1) if case == "a scan" else x, **EXACT)


def test_a_bank_of_banks() -> None:
    above = """block inner(n)(x[..., d], j[...]) -> [..., d] {
      bank g[n] = linear(d)
      shared out = linear(d)
      return out(g[j](x) + out(x))
    }"""
    body = "bank f[n: 3] = inner(4)\noutput y = f[ids % 3](x, ids % 4)"
    assert paths(model(body, above)) == ["f.g.w", "f.out.w"]
    found, w = run(model(body, above))
    x, at = inputs()["x"], inputs()["ids"]
    out = w["f.out.w"][at % 3]
    expected = rows(rows(x, w["f.g.w"][at % 3, at % 4]) + rows(x, out), out)
    assert np.allclose(found["y"], expected, **EXACT)


def test_a_block_that_makes_its_weights_in_a_lambda() -> None:
    above = """block twice(n)(x[..., e], at[...]) -> [..., e] {
      bank f[n] = ffn(6, act = (z[...]) -> z * sigmoid(z))
      apply = (z[...]) -> f[at](z)
      return apply(apply(x))
    }"""
    found, w = run(model("output y = x |> twice(3, at = ids % 3) as t", above))
    x, at = inputs()["x"], inputs()["ids"] % 3
    for _ in range(2):
        h = rows(x, w["t.f.in.w"][at])
        x = rows(h / (1 + np.exp(-h)), w["t.f.out.w"][at])
    assert np.allclose(found["y"], x, **EXACT)


def test_an_instance_passed_in_is_shared_by_all_entries() -> None:
    above = """block normed(norm)(x[..., d]) -> [..., d] {
      return x |> norm |> linear(d)
    }"""
    body = "shared g = rmsnorm\nbank f[n: 3] = normed(g)\noutput y = f[ids % 3](x)"
    assert sorted(paths(model(body, above))) == ["f.linear.w", "g.gain"]


def test_the_index_may_run_along_the_bank() -> None:
    body = "bank f[n: 3] = linear(d)\ny[b, s, n, d] = f[index(n)](x)\noutput y = sum(y, n)"
    body = f"n = 3\nz = x[d: 0..n] |> linear(n)\n{body}"
    found, w = run(model(body))
    assert np.allclose(found["y"], np.einsum("bsi,noi->bso", inputs()["x"], w["f.w"]), **EXACT)


WRONG = {
    "both ways": ("bank f[n: 3] = linear(d)\ny = f[0](x) + f[ids % 3](x)", "bank-two-ways"),
    "fractions": ("bank f[n: 3] = linear(d)\ny = f[x[d: 0]](x)", "bad-index"),
    "an axis of the block": ("bank f[n: 3] = linear(d)\ny = f[int(x) % 3](x)", "bank-axis"),
    "a repeat": ("bank f[n: 3] = deep\ny = f[ids % 3](x)", "unsupported"),
    "a weight": ("bank f[n: 3] = linear(d)\ng = f[ids % 3]\nh = g(x)\ny = g.w", "unsupported"),
}
DEEP = """block deep(x[..., d]) -> [..., d] {
  repeat layers[i: 2] { x += x |> linear(d) }
  return x
}"""


@pytest.mark.parametrize("case", WRONG)
def test_what_a_bank_refuses(case: str) -> None:
    body, expected = WRONG[case]
    assert ids(model(f"{body}\noutput z = x", DEEP)) == [expected]


def test_an_index_outside_is_reported() -> None:
    with pytest.raises(Exception, match="index"):
        value("bank f[n: 3] = linear(d)\noutput y = f[ids](x)")
    assert mistakes(model("bank f[n: 8] = linear(d)\noutput y = f[ids](x)")) == []
    assert program(model("bank f[n: 8] = linear(d)\noutput y = f[ids](x)")).parameter_count == 512
