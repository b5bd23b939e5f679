"""tile-attention: sums of weighted values that cannot, or need not, be made tile by tile."""

from __future__ import annotations

from collections.abc import Callable

from checks import heads_of
from graphs import Model, Value, b, causal, d, g, heads, r, s, scores, t

from archc.compiler.ir.graph import Axis, Node
from archc.compiler.ops.attend import NotTileable, plan_attend
from archc.compiler.passes import Optimised

from .base import Caught, Promise, main_nodes


def stores_no_scores(done: Optimised) -> str:
    """Every attend runs tile by tile, and so does all in it that has keys and rows."""
    for node in main_nodes(done, "attend"):
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
    bodies = [done.program.body(n) for n in main_nodes(done, "attend")]
    nodes = [n for f in (done.program.main, *bodies) for n in f.nodes]
    twice = [n for n in nodes if n.op == "dot" and sum(_same(n, o) for o in nodes) > 1]
    return "a product is computed twice" if twice else ""


def _same(a: Node, b: Node) -> bool:
    return (a.op, a.origins) == (b.op, b.origins)


def attending(
    change: Callable[[Model, Value], Value],
    notice: str,
    promise: Promise = stores_no_scores,
    **others: Callable[[Value], Value],
) -> Caught:
    """Attention with weights that are `change` of the scores [b, heads, s, t], and other outputs of
    these weights."""
    m = Model()
    q, k, v = heads_of(m, m.input("x", b, s, d))
    p = change(m, scores(q, k))
    y = p.split(heads, (g, r)).dot(v.rename((s, t)), t)
    program = m.program(y=y, **{name: made(p) for name, made in others.items()})
    return Caught(program, notice, promise)


def softmax(a: Value) -> Value:
    return a.op("softmax", axis=t)


mixed = Axis("mixed", heads.size)

ATTEND = {
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
