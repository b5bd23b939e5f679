"""Attentions that see differently far back have key axes of their own; others share theirs."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import continued, inputs, opened, program
from small_models import model as small

from archc.compiler.incremental import derive
from archc.compiler.ir.verify import verify
from archc.compiler.key_axes import with_key_axes
from archc.compiler.passes.canonicalize import CANONICALIZE
from archc.compiler.rewrite import Session, run_pass

ATTENTIONS = "; ".join(
    f"{name} = x |> attention(1, mask = {mask}) as {name}"
    for name, mask in [("far", "causal"), ("near", "sliding(2)"), ("mid", "sliding(3)")]
)
SHARED = """k = x |> linear(e: 4) as k
  a = {score}
  p = softmax(where(causal(s, t), a, -inf), t)
  {other}
  r = softmax(where(sliding(2)(s, t), c, -inf), t)
  output y[b, s, e] = dot(p, k[s -> t], t) + dot(r, k[s -> t], t)"""
SCORE = "dot(x |> linear(e: 4) as {q}, k[s -> t], e)"

# The key axes of each, and how much is kept of what.
CASES = {
    "three windows": (
        f"{ATTENTIONS}; output y[b, s, d] = far + near + mid",
        3,
        {"far.k": None, "far.v": None, "near.k": 1, "near.v": 1, "mid.k": 2, "mid.v": 2},
    ),
    "facts of positions": (
        f"time s: valid = keep\n  {ATTENTIONS}; output y[b, s, d] = far + near + mid",
        3,
        {"far.k": None, "far.v": None, "near.k": 1, "near.v": 1, "mid.k": 2, "mid.v": 2}
        | {"keep": None},
    ),
    "equal windows": (
        "near = x |> attention(1, mask = sliding(2)) as near;"
        " other = x |> attention(1, mask = sliding(2)) as other; output y[b, s, d] = near + other",
        1,
        {"near.k": 1, "near.v": 1, "other.k": 1, "other.v": 1},
    ),
    "a window that is a size": (
        "w = 2; near = x |> attention(1, mask = sliding(w)) as near; output y[b, s, d] = near",
        1,
        {"near.k": 1, "near.v": 1},
    ),
    "windows that are sizes": (
        "w = 2; v = 4; near = x |> attention(1, mask = sliding(w)) as near;"
        " mid = x |> attention(1, mask = sliding(v)) as mid; output y[b, s, d] = near + mid",
        2,
        {"near.k": 1, "near.v": 1, "mid.k": 3, "mid.v": 3},
    ),
    "keys in common": (
        SHARED.format(score=SCORE.format(q="q"), other=f"c = {SCORE.format(q='u')}"),
        2,
        {"k": None},
    ),
    "scores in common": (
        SHARED.format(score=SCORE.format(q="q"), other="c = 2.0 * a"),
        1,
        {"k": None},
    ),
    "a bias in common": (
        SHARED.format(
            score=f"{SCORE.format(q='q')} + 0.1 * float(t - s)",
            other=f"c = {SCORE.format(q='u')} + 0.1 * float(t - s)",
        ),
        2,
        {"k": None},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_key_axes_and_what_is_kept(name: str) -> None:
    body, count, kept = CASES[name]
    found = program(small(f"decode s; {body}"))
    canonical, _ = run_pass(CANONICALIZE, found, Session())
    separated = with_key_axes(canonical)
    verify(separated)
    keys = {a.name for n in separated.main.nodes for a in n.axes if a.time == "s"} - {"s"}
    assert len(keys) == count, keys
    assert count > 1 or separated == canonical
    slots = {slot.path: slot.capacity for slot in derive(found).slots}
    assert {path: n and n.evaluate(found.sizes) for path, n in slots.items()} == kept


@pytest.mark.parametrize("name", CASES)
def test_row_by_row(name: str) -> None:
    text = small(f"decode s; {CASES[name][0]}")
    model = opened(text)
    decoder = model.decoder("numpy", dtype="f64", level=0)
    keep = np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 1]], bool)
    given = {k: v for k, v in inputs(keep=keep).items() if k in model.inputs}
    y = continued(decoder, given, (1, 1, 1, 2))
    whole = model.compile("numpy", dtype="f64", level=0)(**given)["y"]
    np.testing.assert_allclose(y, whole, rtol=1e-12, atol=1e-12)
