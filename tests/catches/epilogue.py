"""fuse-linear: what does not finish a product in its own kernel."""

from __future__ import annotations

import math

from graphs import SIZES, Model, Value, b, d, e, g, hidden, r, s

from archc.compiler.ir.graph import Axis, Function, Node
from archc.compiler.passes import Optimised
from archc.dsl.dims import Dim

from .base import count, main_nodes, of

MOST_PARTS = 4
one, nine = Axis("one", Dim.of(1)), Axis("nine", hidden.size - 1)
whole, rest = Axis("whole", hidden.size), Axis("rest", e.size - 1)
pair, two = Axis("pair", hidden.size * 2), Axis("two", Dim.of(2))
both = Axis("both", hidden.size * 2)


def cut(x: Value, axis: Axis, into: Axis, start: Dim) -> Value:
    return x.op("slice", axis=axis, into=into, start=start, step=1)


def joined(first: Value, second: Value, axis: Axis, *parts: Axis) -> Value:
    return first.model.add("concat", (first.id, second.id), axis=axis, parts=parts)


# ------------------------------------------------------------------------------- promises


def bodies(done: Optimised) -> list[Function]:
    return [done.program.body(n) for n in main_nodes(done, "linear")]


def views(body: Function, node: Node) -> set[tuple[int, ...]]:
    """The ways, by views, from the product to a value: each is a product that a lane computes."""
    if node.op == "dot":
        return {()}
    above = {way for i in node.inputs for way in views(body, body[i])}
    return {(*way, node.id) for way in above} if node.op in ("slice", "pick") else above


def computes_each_product_once(done: Optimised) -> str:
    for body in bodies(done):
        (product,) = (n for n in body.nodes if n.op == "dot")
        ends = [body[i] for i in body.output_ids]
        computed = sum(len(views(body, end)) * count(end.type) for end in ends)
        if not any(n.op == "concat" for n in body.nodes) and computed > count(product.type):
            return "a product is computed for several results"
    return ""


def joins_few_parts_of_its_own(done: Optimised) -> str:
    for body in bodies(done):
        for join in (n for n in body.nodes if n.op == "concat"):
            if not all(views(body, body[i]) for i in join.inputs):
                return "a part of a join is no product"
            parts = [axis.size.evaluate(SIZES) for axis in join.attrs.axes("parts")]
            if sum(parts) // math.gcd(*parts) > MOST_PARTS:
                return "a lane computes many parts"
    return ""


# ------------------------------------------------------------------------------- programs


def heads(m: Model, x: Value) -> Value:
    return x.dot(m.weight("w", g, e, d), d)


def uneven(m: Model, x: Value) -> Value:
    y = x.dot(m.weight("w", g, hidden, d), d)
    first, others = cut(y, hidden, one, Dim()).op("exp"), cut(y, hidden, nine, Dim.of(1))
    return joined(first, others, whole, one, nine)


def with_another(m: Model, x: Value) -> Value:
    y = x.dot(m.weight("w", hidden, d), d).op("exp")
    return joined(y, m.input("z", b, s, hidden), both, hidden, hidden)


def widened(m: Model, x: Value) -> Value:
    y = heads(m, x)
    return y.op("pick", axis=e, at=Dim()) * cut(y, e, rest, Dim.of(1))


def repeated(m: Model, x: Value) -> Value:
    return heads(m, x).op("broadcast", axes=(two,)) * m.weight("v", two).op("exp")


def waiting(m: Model, x: Value) -> Value:
    """The second half is scaled by what a kernel between computes from the first."""
    y = x.dot(m.weight("w", r, pair, d), d)
    first, second = (cut(y, pair, hidden, hidden.size * i) for i in (0, 1))
    scaled = second.op("exp") * first.op("softmax", axis=r)
    return scaled.dot(m.weight("v", g, r, hidden), r, hidden) + first.sum(r, hidden)


EPILOGUE = {
    "own-parts": of(with_another, "no product", joins_few_parts_of_its_own),
    "few-parts": of(uneven, "many parts", joins_few_parts_of_its_own),
    "no-repeat": of(repeated, "for several results", computes_each_product_once),
    "one-shape": of(widened, "for several results", computes_each_product_once),
    "no-detour": of(waiting, "cycle"),
}
