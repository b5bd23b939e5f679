"""pack-projections and fuse-norm-linear: products that are better left as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphs import Model, Value, b, d, e, hidden, r, rmsnorm, s, vocab

from archc.compiler.passes import Optimised

from .base import Caught, computes_no_more, leaves_nothing_of_weights, main_nodes, of


def normalised(m: Model, x: Value) -> Value:
    return rmsnorm(x, m.weight("gain", d))


def read_too(m: Model, x: Value) -> Value:
    n = normalised(m, x)
    return n.dot(m.weight("w", hidden, d), d).sum(hidden) + n.op("exp").sum(d)


def with_output() -> Caught:
    m = Model()
    n = normalised(m, m.input("x", b, s, d))
    program = m.program(y=n.dot(m.weight("w", hidden, d), d), n=n)
    return Caught(program, "more is computed", computes_no_more)


def looked_up(m: Model) -> tuple[Value, Value]:
    """Rows of a table, and the table."""
    ids, table = m.input("ids", b, s, dtype="int", below=vocab.size), m.weight("table", vocab, d)
    return table.op("take", ids, axis=vocab, fill=None), table


def tied_norm(m: Model, x: Value) -> Value:
    rows, table = looked_up(m)
    return normalised(m, x + rows).dot(table, d)


def one_tied(m: Model, x: Value) -> Value:
    rows, table = looked_up(m)
    y = x + rows
    return y.dot(table, d).sum(vocab) + y.dot(m.weight("w", hidden, d), d).sum(hidden)


def two_tied(m: Model, x: Value) -> Value:
    rows, table = looked_up(m)
    other = m.weight("other", vocab, d)
    y = x + rows + other.sum(vocab)
    return y.dot(table, d) + y.dot(other, d)


def declines_once(done: Optimised) -> str:
    said = [(x.rule, x.reason) for x in done.sites if not x.fired]
    return "one group declines twice" if len(set(said)) < len(said) else ""


def projected(m: Model, x: Value) -> Value:
    return x.dot(m.weight("w", hidden, d), d)


def scaled(build: Callable[[Model, Value, Value], Value], *found: Any) -> Caught:
    """A product with a value that `build` makes of x and a statistic of its rows."""

    def product(m: Model, x: Value) -> Value:
        value = build(m, x, (x * x).sum(d).op("rsqrt"))
        return value.dot(m.weight("w", hidden, d), d)

    return of(product, *found)


def multiplies_matrices(done: Optimised) -> str:
    """A fused product is one of matrices, and has more to do than multiply."""
    for body in map(done.program.body, main_nodes(done, "linear")):
        (product,) = (n for n in body.nodes if n.op == "dot")
        a, b = (set(body[i].axes) for i in product.inputs)
        if a & b != set(product.attrs.axes("axes")):
            return "a kernel of matrices runs over batches"
        if all(n.op in ("dot", "input") for n in body.nodes):
            return "a kernel is a plain product"
    return ""


def per_group(m: Model, x: Value) -> Value:
    return x.split(d, (r, e)).dot(m.weight("w", r, hidden, e), e).op("tanh")


LINEAR = {
    "matrix": of(per_group, "runs over batches", multiplies_matrices),
    "finished": of(projected, "is a plain product", multiplies_matrices),
}
PACK = {
    "several": of(projected, "come to rest"),
    "first": of(two_tied, "declines twice", declines_once),
    "untied": of(one_tied, "come to rest"),
}
FOLD = {
    "statistic": of(projected, "come to rest"),
    "products-only": of(read_too, "more is computed", computes_no_more),
    "no-output": with_output(),
    "untied": of(tied_norm, "of weights is left to the run", leaves_nothing_of_weights,
                 "derive-parameters"),
    "one-side": scaled(lambda m, x, r: x * r * m.input("z", b, s, d), "replaces"),
    "constant-shift": scaled(lambda m, x, r: x * r + m.input("z", b, s, d), "more is computed",
                             computes_no_more),
    "outermost-shift": scaled(lambda m, x, r: (x + m.weight("shift", d)) * r),
}  # fmt: skip
