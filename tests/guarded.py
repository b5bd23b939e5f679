"""For each guard of a rule a small program on which it matters, and what notices its absence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from checks import heads_of
from graphs import SIZES, Model, Value, b, causal, d, e, g, heads, hidden, r, s, scores, t, vocab

from archc.compiler.ir.graph import Axis, Node, Program, TensorType
from archc.compiler.ops.attend import NotTileable, plan_attend
from archc.compiler.ops.grouped import plan_grouped
from archc.compiler.passes import Optimised
from archc.compiler.passes.properties import SOURCES, VIEWS, elements
from archc.dsl.dims import Dim

TIDY = ("canonicalize", "sink-merges")
CALL = {**SIZES, "b": 3, "s": 7}


def nothing(done: Optimised) -> str:
    return ""


@dataclass(frozen=True)
class Caught:
    """`notice` is part of what is said once the guard is gone: a number that changed, or what
    `promise` finds broken in the optimised program."""

    program: Program
    notice: str = "changed `y`"
    passes: tuple[str, ...] = ()
    promise: Callable[[Optimised], str] = nothing


def count(kind: TensorType) -> int:
    return elements(kind).evaluate(CALL)


# -------------------------------------------------------------------------- group-experts


def sorts_less_than_it_picks(done: Optimised) -> str:
    """A grouped product moves its rows, so the matrices picked for them must be larger."""
    for node in (n for n in done.program.main.nodes if n.op == "grouped"):
        plan = plan_grouped(done.program.body(node))
        if count(plan.take.type) <= count(plan.x.type):
            return "rows are sorted that are no smaller than what they pick"
    return ""


def counts_matrices_before_a_call(done: Optimised) -> str:
    plans = [
        plan_grouped(done.program.body(n)) for n in done.program.main.nodes if n.op == "grouped"
    ]
    late = [p for p in plans if not p.entries.size.symbols() <= SIZES.keys()]
    return "matrices are counted at run time" if late else ""


def experts(
    build: Callable[[Model, Value], Value], notice: str, *promise: Callable[[Optimised], str]
) -> Caught:
    m = Model()
    y = build(m, m.input("x", b, s, d))
    return Caught(m.program(y=y), notice, (*TIDY, "group-experts"), *promise)


def picked(m: Model, index: tuple[Axis, ...], *axes: Axis, fill: float | None = None) -> Value:
    """W[i + 3] where what is outside is `fill`, else W[i]."""
    ids = m.input("ids", *index, dtype="int", below=vocab.size)
    ids = ids if fill is None else ids + 3
    return m.weight("w", vocab, *axes).op("take", ids, axis=vocab, fill=fill)


def of_a_sequence(m: Model, x: Value) -> Value:
    ids = m.input("ids", b, dtype="int", below=t.size)
    return x.dot(m.input("w", t, hidden, d).op("take", ids, axis=t, fill=None), d)


def wide(m: Model) -> Value:
    return m.input("wide", b, s, d, hidden)


GROUP_EXPERTS = {
    "exact-index": experts(lambda m, x: x.dot(picked(m, (b,), hidden, d, fill=0.0), d),
                           "index-range"),
    "indexed-rows": experts(lambda m, x: x.dot(picked(m, (), hidden, d), d),
                            "rows are sorted", sorts_less_than_it_picks),
    "matrices": experts(lambda m, x: x.dot(picked(m, (b, s), d), d),
                        "rows are sorted", sorts_less_than_it_picks),
    "bank": experts(of_a_sequence, "counted at run time", counts_matrices_before_a_call),
    "whole-matrices": experts(lambda m, x: x.dot(picked(m, (b, s), hidden, d), d, s),
                              "does not run"),
    "free-rows": experts(lambda m, x: wide(m).dot(picked(m, (b,), hidden, d), d), "does not run"),
}  # fmt: skip


# ------------------------------------------------------------------------- tile-attention


def stores_no_scores(done: Optimised) -> str:
    """Every attend runs tile by tile, and so does all in it that has keys and rows."""
    for node in (n for n in done.program.main.nodes if n.op == "attend"):
        body = done.program.body(node)
        try:
            plan = plan_attend(body, node.attrs.axis("keys"))
        except NotTileable as reason:
            return f"not tiled: {reason}"
        tiled = {*plan.tiled, *plan.source, *body.inputs}
        rows = {a for axes in plan.rows.values() for a in axes}
        pairs = [n for n in body.nodes if plan.keys in n.axes and rows & set(n.axes)]
        if any(n.id not in tiled for n in pairs):
            return "scores are stored"
        summed = [n for n in pairs if n.op == "dot" and rows & set(n.attrs.axes("axes"))]
        if any(plan.keys in body[i].axes for n in summed for i in n.inputs):
            return "a tile needs the scores of other rows"
        if not any(n.op == "dot" for n in pairs):
            return "there is nothing to tile"
    return ""


def computes_products_once(done: Optimised) -> str:
    bodies = [done.program.body(n) for n in done.program.main.nodes if n.op == "attend"]
    nodes = [n for f in (done.program.main, *bodies) for n in f.nodes]
    twice = [n for n in nodes if n.op == "dot" and sum(_same(n, o) for o in nodes) > 1]
    return "a product is computed twice" if twice else ""


def _same(a: Node, b: Node) -> bool:
    return (a.op, a.origins) == (b.op, b.origins)


def attending(
    change: Callable[[Model, Value], Value],
    notice: str,
    promise: Callable[[Optimised], str] = stores_no_scores,
    **others: Callable[[Value], Value],
) -> Caught:
    """Attention with weights that are `change` of the scores [b, heads, s, t], and other outputs of
    these weights."""
    m = Model()
    q, k, v = heads_of(m, m.input("x", b, s, d))
    p = change(m, scores(q, k))
    y = p.split(heads, (g, r)).dot(v.rename((s, t)), t)
    program = m.program(y=y, **{name: made(p) for name, made in others.items()})
    return Caught(program, notice, (*TIDY, "tile-attention"), promise)


def softmax(a: Value) -> Value:
    return a.op("softmax", axis=t)


mixed = Axis("mixed", heads.size)

TILE_ATTENTION = {
    "linear": attending(lambda m, a: softmax(a).op("exp"), "`exp` stands between"),
    "masked-to-zero": attending(lambda m, a: m.where(causal(m), softmax(a), 1.0),
                                "`where` stands between"),
    "keys-in-place": attending(
        lambda m, a: softmax(a.op("slice", axis=t, into=t, start=t.size - 1, step=-1)),
        "scores are stored"),
    "not-contracted": attending(lambda m, a: softmax(
        a.dot(m.weight("talk", heads, mixed), heads).rename((mixed, heads))), "of other rows"),
    "not-gathered": attending(lambda m, a: softmax(
        a.op("take", m.index(t).op("min", 1), axis=t, fill=None)), "scores are stored"),
    "beside-keys": attending(lambda m, a: softmax(a.op("cumsum", axis=t)), "scores are stored"),
    "product": attending(lambda m, a: softmax(m.input("a", b, heads, s, t) * 2.0), "nothing to tile"),
    "private": attending(lambda m, a: softmax(a), "computed twice", computes_products_once, w=lambda p: p),
}  # fmt: skip


# -------------------------------------------------------------- canonicalize, sink-merges


def computes_no_more(done: Optimised) -> str:
    before, after = (_arithmetic(p) for p in (done.value_map.before, done.program))
    return "more is computed" if after > before else ""


def _arithmetic(program: Program) -> int:
    return sum(n.op not in VIEWS | SOURCES for n in program.main.nodes)


def moves_no_more(done: Optimised) -> str:
    views = [
        sum(n.op in VIEWS for n in p.main.nodes) for p in (done.value_map.before, done.program)
    ]
    return "more is relabelled" if views[1] > views[0] else ""


def rewritten(
    build: Callable[[Model, Value], Value],
    notice: str = "replaces",
    promise: Callable[[Optimised], str] = nothing,
) -> Caught:
    m = Model()
    return Caught(m.program(y=build(m, m.input("x", b, s, d))), notice, TIDY, promise)


other = Axis("other", d.size)


def renamed_twice(m: Model, x: Value) -> Value:
    z = x.op("exp")
    return z * z.rename((s, t))


def merged(x: Value) -> Value:
    return x.split(d, (r, e)).op("exp").merge((r, e), d)


CANONICALIZE = {
    "drop-neutral/same-kind": rewritten(lambda m, x: x * m.add("const", value=1.0, dtype="f32")),
    "constants-right/one-constant": rewritten(
        lambda m, x: m.where(m.value(d.size).op("eq", m.value(hidden.size)), x, 0.0), "come to rest"),
    "decide-where/same-kind": rewritten(lambda m, x: m.where(m.value(True), m.value(2.0), x)),
    "rename-sources/of-indices": rewritten(renamed_twice, "more is computed", computes_no_more),
    "whole-slice/forward": rewritten(
        lambda m, x: x.op("slice", axis=d, into=d, start=d.size - 1, step=-1), "changed `y`"),
    "whole-slice/whole": rewritten(
        lambda m, x: x.op("slice", axis=d, into=e, start=Dim(), step=1), ""),
    "cancel-relabel/same-axis": rewritten(
        lambda m, x: m.input("z", r, e, other).merge((r, e), d).split(other, (r, e))),
    "cancel-relabel/same-parts": rewritten(
        lambda m, x: m.input("z", r, e).merge((r, e), d).split(d, (e, r)), "changed `y`"),
}  # fmt: skip

SINK_MERGES = {
    "alongside": rewritten(lambda m, x: merged(x).op("cumsum", axis=d).split(d, (r, e)), ""),
    "undone-below": rewritten(lambda m, x: merged(x) * m.weight("w", d), "more is relabelled",
                              moves_no_more),
}  # fmt: skip


CAUGHT: dict[str, Caught] = {
    **{f"canonicalize/{name}": case for name, case in CANONICALIZE.items()},
    **{f"sink-merges/sink-merge/{name}": case for name, case in SINK_MERGES.items()},
    **{f"sink-merges/{name}": case for name, case in CANONICALIZE.items() if "cancel" in name},
    **{f"group-experts/group/{name}": case for name, case in GROUP_EXPERTS.items()},
    **{f"tile-attention/attend/{name}": case for name, case in TILE_ATTENTION.items()},
}
