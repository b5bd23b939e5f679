"""tile-attention: which bodies become `attend`, the bounds it proves, what it declines and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from checks import heads_of, model_of, only, ops, ran, reason, same
from graphs import (
    Model,
    Value,
    attention,
    b,
    causal,
    d,
    e,
    g,
    heads,
    hidden,
    r,
    s,
    scores,
    t,
    vocab,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from archc.compiler.ir.graph import Axis, Program
from archc.compiler.passes import optimise
from archc.dsl.dims import Dim

INF = float("inf")


def with_mask(mask: Callable[[Model], Value | None]) -> Program:
    def build(m: Model, x: Value) -> Value:
        q, k, v = heads_of(m, x)
        return attention(q, k, v, scores(q, k), mask(m))

    return model_of(build)


def i(m: Model) -> Value:
    return m.index(s)


def j(m: Model) -> Value:
    return m.index(t)


# name -> mask, and the proved bounds -lower <= j - i <= upper
MASKS: dict[str, tuple[Callable[[Model], Value | None], tuple[object, object]]] = {
    "none": (lambda m: None, (None, None)),
    "causal": (causal, (None, 0)),
    "strictly causal": (lambda m: j(m) < i(m), (None, -1)),
    "negated": (lambda m: (i(m) < j(m)).op("not"), (None, 0)),
    "window": (lambda m: causal(m) & (i(m) - j(m) < 3), (2, 0)),
    "symbolic window": (lambda m: causal(m) & (i(m) - j(m) < m.value(hidden.size)),
                        (hidden.size - 1, 0)),
    "both sides": (lambda m: (j(m) - i(m) <= 2) & (i(m) - j(m) <= 4), (4, 2)),
    "union": (lambda m: causal(m) | (j(m) - i(m) <= 5), (None, 5)),
    "blocks": (lambda m: i(m).op("floordiv", 4).op("eq", j(m).op("floordiv", 4)), (3, 3)),
    "offset": (lambda m: j(m) + 2 <= i(m) + 5, (None, 3)),
    "anti-causal": (lambda m: i(m) <= j(m), (0, None)),
    "data": (lambda m: m.input("seen", b, t, dtype="bool"), (None, None)),
    "causal and data": (lambda m: causal(m) & m.input("seen", b, t, dtype="bool"), (None, 0)),
    "causal or data": (lambda m: causal(m) | m.input("seen", b, t, dtype="bool"), (None, None)),
    "twice the key": (lambda m: j(m) * 2 <= i(m), (None, None)),
}  # fmt: skip


@pytest.mark.parametrize("case", MASKS)
def test_proved_bounds_of_masks(case: str) -> None:
    mask, (lower, upper) = MASKS[case]
    done = ran(with_mask(mask), disable=only("tile-attention"))
    (node,) = [n for n in done.program.main.nodes if n.op == "attend"]
    assert (node.attrs["keys"], set(node.attrs["rows"])) == (t, {r, s})

    def as_dim(bound: object) -> object:
        return bound if bound is None else Dim.of(bound)  # type: ignore[arg-type]

    assert (node.attrs["lower"], node.attrs["upper"]) == (as_dim(lower), as_dim(upper))


def test_keys_of_another_timeline_have_no_bounds() -> None:
    memory = Axis("u", Dim.symbol("u"))
    other = Axis("j", Dim.symbol("u"), time="u")
    m = Model()
    x, z = m.input("x", b, s, g, r, e), m.input("z", b, memory, g, e)
    k = z.rename((memory, other))
    a = m.where(m.index(other) <= m.index(s), x.dot(k, e), -INF)
    done = ran(m.program(y=a.op("softmax", axis=other).dot(k, other)))
    (node,) = [n for n in done.program.main.nodes if n.op == "attend"]
    assert (node.attrs["query"], node.attrs["upper"]) == (None, None)


def alibi(m: Model, a: Value) -> Value:
    return a + (j(m) - i(m)).op("to_float") * m.weight("slopes", heads)


def softcap(m: Model, a: Value) -> Value:
    return (a / 5.0).op("tanh") * 5.0


def buckets(m: Model, a: Value) -> Value:
    gap = (i(m) - j(m)).op("max", 0).op("min", m.value(vocab.size - 1))
    return a + m.weight("table", vocab, heads).op("take", gap, axis=vocab, fill=None)


def additive(m: Model, a: Value) -> Value:
    return a + m.where(causal(m), 0.0, -INF)


def own_content(m: Model, a: Value) -> Value:
    """A second tile product: a position term."""
    p = m.input("p", s, heads, hidden).dot(m.weight("z", t, hidden), hidden)
    return a + p


@pytest.mark.parametrize("term", [alibi, softcap, buckets, additive])
def test_any_score_term_is_fused(term: Callable[[Model, Value], Value]) -> None:
    def build(m: Model, x: Value) -> Value:
        q, k, v = heads_of(m, x)
        return attention(q, k, v, term(m, scores(q, k)), causal(m))

    assert ops(ran(model_of(build)).program)["attend"] == 1


def test_weights_may_be_masked_after_the_softmax() -> None:
    def build(m: Model, x: Value) -> Value:
        q, k, v = heads_of(m, x)
        p = scores(q, k).op("softmax", axis=t)
        p = m.where(causal(m), p, 0.0) * m.weight("scale", heads)
        return p.split(heads, (g, r)).dot(v.rename((s, t)), t)

    assert ops(ran(model_of(build)).program)["attend"] == 1


def test_a_shared_mask_is_copied_into_each_attention() -> None:
    def build(m: Model, x: Value) -> Value:
        q, k, v = heads_of(m, x)
        mask = causal(m)
        first = attention(q, k, v, scores(q, k), mask)
        return first + attention(q, k, v, scores(q, v), mask)

    assert ops(ran(model_of(build)).program)["attend"] == 2


def declining(change: Callable[[Model, Value], Value]) -> Program:
    """Attention with `change` applied to its weights [b, heads, s, t]."""

    def build(m: Model, x: Value) -> Value:
        q, k, v = heads_of(m, x)
        p = change(m, m.where(causal(m), scores(q, k), -INF))
        return p.split(heads, (g, r)).dot(v.rename((s, t)), t)

    return model_of(build)


mixed = Axis("mixed", heads.size)

DECLINED: dict[str, tuple[Callable[[Model, Value], Value], str]] = {
    "nonlinear": (lambda m, a: a.op("softmax", axis=t).op("exp"),
                  "`exp` at LINE is not linear in the weights"),
    "renormalised": (lambda m, a: a.op("softmax", axis=t) / a.op("softmax", axis=t).sum(t),
                     "`div` at LINE is not linear in the weights"),
    "filled": (lambda m, a: m.where(causal(m), a.op("softmax", axis=t), 1.0),
               "weights become another number at LINE"),
    "talking heads": (lambda m, a: a.dot(m.weight("talk", heads, mixed), heads)
                      .rename((mixed, heads)).op("softmax", axis=t),
                      "scores are contracted at LINE"),
    "centred": (lambda m, a: (a - a.op("amax", axes=(heads,))).op("softmax", axis=t),
                "`amax` of scores at LINE"),
    "rounded": (lambda m, a: a.op("round_to", format="bf16").op("softmax", axis=t),
                "`round_to` of scores at LINE"),
    "running": (lambda m, a: a.op("cumsum", axis=t).op("softmax", axis=t),
                "`cumsum` of scores at LINE"),
}  # fmt: skip


@pytest.mark.parametrize("case", DECLINED)
def test_attention_declines(case: str) -> None:
    change, expected = DECLINED[case]
    done = optimise(declining(change), disable=only("tile-attention"))
    assert reason(done, "tile-attention") == expected
    assert ops(done.program)["attend"] == 0


def test_a_sink_is_declined() -> None:
    """A learned logit takes a share of the weights that no value gets."""
    sink, shown = Axis("sink", Dim.of(1)), Axis("shown", Dim.symbol("s") + 1)

    def sunk(m: Model, a: Value) -> Value:
        logit = m.input("logit", b, heads, s, sink)
        joined = a.op("concat", logit, axis=shown, parts=(t, sink)).op("softmax", axis=shown)
        return joined.op("slice", axis=shown, into=t, start=Dim.of(0), step=1)

    done = optimise(declining(sunk), disable=only("tile-attention"))
    assert reason(done, "tile-attention") == "`slice` at LINE moves keys"
    assert ops(done.program)["attend"] == 0


def test_weights_that_are_an_output_stay() -> None:
    m = Model()
    q, k, v = heads_of(m, m.input("x", b, s, d))
    p = scores(q, k).op("softmax", axis=t)
    program = m.program(y=p.split(heads, (g, r)).dot(v.rename((s, t)), t), weights=p)
    assert reason(optimise(program), "tile-attention") == ("the scores' weights are read at LINE")


STEPS: tuple[Callable[[Model, Value], Value], ...] = (
    alibi,
    softcap,
    buckets,
    additive,
    lambda m, a: a * 0.5,
    lambda m, a: a.op("sigmoid"),
    lambda m, a: a + m.weight("row", heads),
    lambda m, a: a * m.input("scale", b, s),
    lambda m, a: a - m.input("bias", b, t),
    lambda m, a: m.where(m.input("seen", b, t, dtype="bool"), a, -INF),
    lambda m, a: m.where(causal(m) & (i(m) - j(m) < 3), a, -INF),
    lambda m, a: a.op("max", m.where(j(m) <= i(m), 0.1, -0.1)),
    lambda m, a: a.cast("f32"),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(range(len(STEPS))), max_size=5, unique=True))
def test_random_score_bodies_are_fused_and_mean_the_same(chosen: list[int]) -> None:
    def build(m: Model, x: Value) -> Value:
        q, k, v = heads_of(m, x)
        a = scores(q, k)
        for step in chosen:
            a = STEPS[step](m, a)
        return attention(q, k, v, a, None)

    program = model_of(build)
    done = optimise(program)
    assert ops(done.program)["attend"] == 1
    same(program, done.program)
