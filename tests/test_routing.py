"""The routes of the standard library, each against its formula in NumPy, with equal scores among them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_models import inputs, model, program, run
from transformers.models.switch_transformers.modeling_switch_transformers import (
    load_balancing_loss_func,
    router_z_loss_func,
)

from archc.backends.numpy import NumpyBackend
from archc.compiler.weights import random_weights

B, S, N, D, K = 2, 7, 8, 8, 3  # D = N on purpose
Picked = tuple[np.ndarray, np.ndarray]


def scores(ties: bool) -> np.ndarray:
    """[b, s, n]; with ties, of the numbers -1, 0 and 1 alone."""
    made = np.random.default_rng(3).standard_normal((B, S, N))
    return made.round().clip(-1, 1) if ties else made


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def largest(x: np.ndarray, k: int = K) -> np.ndarray:
    """The numbers of the k largest; of equal ones the first."""
    return np.argsort(-x, axis=-1, kind="stable")[..., :k]


def picked(p: np.ndarray, by: np.ndarray, renormalise: bool = False, scale: float = 1.0) -> Picked:
    chosen = largest(by)
    left = np.take_along_axis(by, chosen, -1) > -np.inf
    share = np.where(left, np.take_along_axis(p, chosen, -1), 0)
    return scale * (share / share.sum(-1, keepdims=True) if renormalise else share), chosen


def in_groups(x: np.ndarray, groups: int, kept: int, members: int) -> np.ndarray:
    """-inf outside the groups whose `members` largest have the largest sum."""
    split = x.reshape(*x.shape[:-1], groups, -1)
    best = largest(np.sort(split, -1)[..., -members:].sum(-1), kept)
    seen = (best[..., None, :] == np.arange(groups)[:, None]).any(-1)
    return np.where(seen[..., None], split, -np.inf).reshape(x.shape)


BIAS = np.array([0.5, -0.3, 0.0, 0.9, -0.6, 0.2, 0.4, -0.1])
ROUTES: dict[str, tuple[str, Callable[[np.ndarray], Picked]]] = {
    "softmax, then top": ("softmax_top(3)", lambda a: picked(softmax(a), a)),
    "top, then softmax": (
        "top_softmax(3)",
        lambda a: (softmax(np.take_along_axis(a, largest(a), -1)), largest(a)),
    ),
    "made to sum to one": (
        "softmax_top(3, renormalise = true)",
        lambda a: picked(softmax(a), a, renormalise=True),
    ),
    "scaled": (
        "softmax_top(3, true, scale = 2.5)",
        lambda a: picked(softmax(a), a, renormalise=True, scale=2.5),
    ),
    "groups by their largest": (
        "softmax_top(3, scale = 16.0, within = best_groups(4, 2))",
        lambda a: picked(softmax(a), in_groups(softmax(a), 4, 2, 1), scale=16.0),
    ),
    "groups too small for the choice": (
        "softmax_top(3, true, within = best_groups(8, 2))",
        lambda a: picked(softmax(a), in_groups(softmax(a), 8, 2, 1), renormalise=True),
    ),
    "a sigmoid and a bias": (
        "sigmoid_top(3)",
        lambda a: picked(sigmoid(a), sigmoid(a) + BIAS, renormalise=True),
    ),
    "groups by their largest two": (
        'sigmoid_top(3, scale = 2.5, within = best_groups(2, 1, by = "two"))',
        lambda a: picked(sigmoid(a), in_groups(sigmoid(a) + BIAS, 2, 1, 2), True, 2.5),
    ),
}


def results(body: str, a: np.ndarray, seen: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The outputs of a text on scores, with `BIAS` for every buffer."""
    found = program(f"""use std
    model M {{
      n = {N}
      input score: float[b, s, n]
      input keep: bool[b, s] = true
      time s: valid = keep
      {body}
    }}""")
    made = {
        p.path: BIAS if not p.trained else random_weights(found)[p.path] for p in found.parameters
    }
    keep = np.ones(a.shape[:2], bool) if seen is None else seen
    given = {"score": a, "keep": keep}
    names = {node.attrs["name"] for node in found.main.nodes if node.op == "input"}
    loaded = NumpyBackend().load(found, made, dtype="f64")
    return loaded.run({name: value for name, value in given.items() if name in names})


def routed(route: str, a: np.ndarray, seen: np.ndarray | None = None) -> Picked:
    made = results(
        f"""share, chosen = score |> {route} as route
        output shares[b, s, k] = share
        output numbers[b, s, k] = chosen
        output kept[b, s] = keep""",
        a,
        seen,
    )
    return made["shares"], made["numbers"]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", ROUTES)
def test_a_route(name: str, ties: bool) -> None:
    text, formula = ROUTES[name]
    shares, numbers = routed(text, scores(ties))
    expected, chosen = formula(scores(ties))
    assert np.array_equal(numbers, chosen)
    assert np.allclose(shares, expected, rtol=1e-12, atol=1e-14)


def test_the_two_orders_of_softmax_and_choice_are_one() -> None:
    before, after = (routed(r, scores(False)) for r in ("softmax_top(3, true)", "top_softmax(3)"))
    assert np.array_equal(before[1], after[1])
    assert np.allclose(before[0], after[0], rtol=1e-12)


def admitted(chosen: np.ndarray, seen: np.ndarray, limit: int, choices: bool) -> np.ndarray:
    """Token by token, or choice by choice: who still finds room."""
    kept = np.zeros(chosen.shape, bool)
    for b in range(B):
        room = np.full(N, limit)
        pairs = [(t, c) for t in range(S) for c in range(chosen.shape[-1]) if seen[b, t]]
        for t, c in sorted(pairs, key=lambda pair: pair[::-1] if choices else pair):
            kept[b, t, c] = room[chosen[b, t, c]] > 0
            room[chosen[b, t, c]] -= 1
    return kept


@pytest.mark.parametrize("padding", ["none", "left", "inner"])
@pytest.mark.parametrize("order", ["tokens", "choices"])
@pytest.mark.parametrize("limit", [0, 1, 2, S])
def test_capacity_drops_in_order_and_padding_takes_no_place(
    limit: int, order: str, padding: str
) -> None:
    seen = np.ones((B, S), bool)
    if padding != "none":
        seen[1, [0, 1] if padding == "left" else [1, 3]] = False
    a = scores(True)
    a[..., 0] += 1  # so that one expert is asked for by most
    shares, numbers = routed(f'capped(softmax_top(2), {limit}, order = "{order}")', a, seen)
    expected, chosen = picked(softmax(a), a)
    expected, chosen = expected[..., :2], chosen[..., :2]
    expected = np.where(admitted(chosen, seen, limit, order == "choices"), expected, 0)
    assert np.array_equal(numbers[seen], chosen[seen])
    assert np.allclose(shares[seen], expected[seen], rtol=1e-12, atol=1e-14)


def test_experts_within_their_capacity_drop_nothing_whatever_the_order() -> None:
    """And with no room at all every share is zero: neither limit is a special case."""
    a = scores(False)
    full = routed("softmax_top(2)", a)[0]
    for order in ("tokens", "choices"):
        assert np.array_equal(routed(f'capped(softmax_top(2), {S}, order = "{order}")', a)[0], full)
        assert not routed(f'capped(softmax_top(2), 0, order = "{order}")', a)[0].any()


LOSSES = """share, chosen = score |> softmax_top({used})
  p = softmax(score, n)
  output balance[b] = load_balance(p, chosen)
  output z[b] = router_z(score)
  output squared[b] = p |> squared_load(chosen = chosen)
  output kept[b, s] = keep"""


def test_the_losses_of_switch() -> None:
    a = scores(False)
    found = results(LOSSES.format(used=1), a)
    theirs = torch.from_numpy(a)
    balance = load_balancing_loss_func(theirs.softmax(-1), theirs.argmax(-1))
    assert np.isclose(found["balance"].mean(), balance, rtol=1e-6)  # counts in float32 there
    assert np.isclose(found["z"].mean(), router_z_loss_func(theirs), rtol=1e-12)


def test_a_squared_load_counts_tokens_and_sums_probabilities() -> None:
    a = scores(False)
    found = results(LOSSES.format(used=1), a)["squared"]
    for row, value in zip(a, found, strict=True):
        load = np.bincount(row.argmax(-1), minlength=N)
        sums = softmax(row).sum(0)
        expected = 0.01 * ((load - S / N) ** 2).sum() + 0.001 * (sums**2).sum()
        assert np.isclose(value, expected, rtol=1e-12)


def test_losses_pass_over_padding() -> None:
    a, seen = scores(False), np.ones((B, S), bool)
    seen[:, -2:] = False
    padded, short = (
        results(LOSSES.format(used=2), a, seen),
        results(LOSSES.format(used=2), a[:, :-2]),
    )
    for name in ("balance", "z", "squared"):
        assert np.allclose(padded[name], short[name], rtol=1e-12)


def test_an_even_load_costs_one() -> None:
    even = np.eye(N)[None] * 9
    assert np.isclose(results(LOSSES.format(used=1), even)["balance"][0], 1.0, rtol=1e-12)


@pytest.mark.parametrize("gated", [False, True])
def test_every_token_goes_through_the_shared_expert(gated: bool) -> None:
    text = model(
        f"""output y = x |> mixture(4, ffn(6), softmax_top(2), beside = gated_ffn(6),
          beside_gated = {"true" if gated else "false"}) as moe"""
    )
    found, w = run(text)
    x = inputs()["x"]
    p = softmax(x @ w["moe.router.w"].T)
    expected = np.zeros_like(x)
    for b, s in np.ndindex(x.shape[:2]):
        for e in largest(p[b, s], 2):
            hidden = np.maximum(w["moe.f.in.w"][e] @ x[b, s], 0)
            expected[b, s] += p[b, s, e] * (w["moe.f.out.w"][e] @ hidden)
    gate = x @ w["moe.beside.gate.w"].T
    beside = (gate * sigmoid(gate) * (x @ w["moe.beside.up.w"].T)) @ w["moe.beside.down.w"].T
    if gated:
        beside = beside * sigmoid(x @ w["moe.beside_gate.w"].reshape(-1, 1))
    assert np.allclose(found["y"], expected + beside, rtol=1e-12, atol=1e-12)
