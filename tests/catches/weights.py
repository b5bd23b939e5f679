"""Passes that keep weights otherwise: where the copy would be larger, or of no use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from graphs import Model, Value, b, d, e, hidden, r, s, vocab
from small_models import program

from archc.compiler.incremental import derive
from archc.compiler.ir.graph import Program, elements
from archc.compiler.ops.quantise import Format
from archc.compiler.passes import Optimised, pack_weights, quantise

from .base import (
    Caught,
    keeps_no_more,
    leaves_nothing_of_weights,
    main_nodes,
    nothing,
    of,
    stores_once,
)

LARGE = {"vocab": 512, "d": 512, "hidden": 512, "r": 2, "e": 256}


def large(case: Caught, **sizes: int) -> Caught:
    """At sizes for which a copy in another order, or in few bits, pays."""
    bound = {**case.program.sizes, **LARGE, **sizes}
    return replace(case, program=replace(case.program, bindings=tuple(bound.items())))


def tied(m: Model, x: Value) -> Value:
    ids = m.input("ids", b, s, dtype="int", below=vocab.size)
    table = m.weight("table", vocab, d)
    return (x + table.op("take", ids, axis=vocab, fill=None)).dot(table, d)


def outer(m: Model, x: Value) -> Value:
    return x.dot(m.weight("a", d) * m.weight("c", hidden), d)


# --------------------------------------------------------------------------- pack-weights


def packs_matrices(done: Optimised) -> str:
    """What is packed is multiplied as a matrix: with rows that have no axis of its columns."""
    main = done.program.main
    for node in main_nodes(done, "dot"):
        x, weight = (main[i] for i in node.inputs)
        alike = set(x.axes) & set(weight.axes)
        if weight.op == "packed" and (
            alike != set(node.attrs.axes("axes")) or alike == set(weight.axes)
        ):
            return "no matrix is packed"
    return ""


def packs_what_pays(done: Optimised) -> str:
    small = [
        n
        for n in main_nodes(done, "packed")
        if elements(n.axes).evaluate(done.program.sizes) < pack_weights.LEAST
    ]
    return "packed though read before a product begins" if small else ""


def packs_at_load(done: Optimised) -> str:
    """A product with an expression of weights is given it in another order only if it is kept."""
    left = main_nodes(done, "packed")
    return "`packed` of weights is left to the run" if left else ""


def packs_no_decoding(done: Optimised) -> str:
    packed = [n for f in done.program.functions for n in f.nodes if n.op == "packed"]
    return "a step reads another order" if packed else ""


def decoded() -> Program:
    """A chunk of a model with a running sum, whose product is large."""
    text = (
        "use std\nmodel M {\n  d = 512\n  input x: float[b, s, d]\n  decode s\n"
        "  output y[b, s, d] = cumsum(x, s) |> linear(d)\n}"
    )
    return derive(program(text)).chunk


PACK = {
    "matrix": large(of(lambda m, x: x.split(d, (r, e)).dot(m.weight("w", r, hidden, e), e),
                       "no matrix is packed", packs_matrices)),
    "no-decoding": Caught(decoded(), "a step reads another order", packs_no_decoding, run=False),
    "plain": large(of(lambda m, x: x.dot(m.weight("w", hidden, d), d), "come to rest")),
    "large": of(lambda m, x: x.dot(m.weight("w", hidden, d), d), "before a product begins",
                packs_what_pays),
    "untied": large(of(tied, "left to the run", leaves_nothing_of_weights, "derive-parameters")),
    "no-copy": large(of(outer, "`packed` of weights is left", packs_at_load, "derive-parameters")),
}  # fmt: skip

# ---------------------------------------------------------------------- derive-parameters


def doubled(m: Model, x: Value) -> Value:
    table = m.weight("table", vocab, d)
    return x.dot(table * 2.0, d) + x.dot(table, d)


DERIVE = {
    "largest": of(lambda m, x: x * (m.weight("w", d).op("exp") + 1.0), "is left to the run",
                  leaves_nothing_of_weights),
    "untied": of(doubled, "`table` is stored twice", stores_once),
    "no-growth": of(outer, "has grown", keeps_no_more),
}  # fmt: skip

# ------------------------------------------------------------------- quantise, read-codes


def keeps_whole_groups(done: Optimised) -> str:
    """Codes are counted in whole groups, and there are enough of them to pay for a call."""
    for node in (n for f in done.program.functions for n in f.nodes if n.op == "quantise"):
        form = Format.of(node.attrs)
        if form.axis.size.evaluate(done.program.sizes) % form.group:
            return "a group is ragged"
        source = next(f[node.inputs[0]] for f in done.program.functions if node.id in f)
        if elements(source.axes).evaluate(done.program.sizes) < quantise.FEWEST:
            return "few elements are kept in few bits"
    return ""


def product(m: Model, x: Value) -> Value:
    return x.dot(m.weight("w", hidden, d), d)


QUANTISE = {
    "large": large(of(product, "few elements", keeps_whole_groups), hidden=4, d=32),
    "whole-groups": large(of(product, "ragged", keeps_whole_groups), d=500),
}


def read_twice(pick: Callable[[Model, Value], Value], *found: object) -> Caught:
    """A table that a product reads, and something that `pick` takes of it."""

    def build(m: Model, x: Value) -> Value:
        table = m.weight("table", vocab, d)
        return x.dot(table, d).sum(b, s, vocab) + pick(m, table)

    return large(of(build, *found, "quantise", "derive-parameters"))


READ_CODES = {
    "beside-groups": read_twice(
        lambda m, w: w.op("slice", axis=d, into=hidden, start=d.size - 64, step=1).sum(vocab, hidden),
        "malformed", nothing),
    "index-apart": read_twice(
        lambda m, w: w.op("take", m.index(d).op("min", 3), axis=vocab, fill=None).sum(d),
        "does not run", nothing),
}  # fmt: skip
