"""group-experts: products with what an index picks that are no products of experts."""

from __future__ import annotations

from graphs import SIZES, Model, Value, b, d, hidden, s, t, vocab

from archc.compiler.ir.graph import Axis
from archc.compiler.ops.grouped import GroupedPlan, plan_grouped
from archc.compiler.passes import Optimised

from .base import count, main_nodes, of


def plans(done: Optimised) -> list[GroupedPlan]:
    return [plan_grouped(done.program.body(n)) for n in main_nodes(done, "grouped")]


def sorts_less_than_it_picks(done: Optimised) -> str:
    """A grouped product moves its rows, so the matrices picked for them must be larger."""
    small = [p for p in plans(done) if count(p.take.type) <= count(p.x.type)]
    return "rows are sorted that are no smaller than what they pick" if small else ""


def counts_matrices_before_a_call(done: Optimised) -> str:
    late = [p for p in plans(done) if not p.entries.size.symbols() <= SIZES.keys()]
    return "matrices are counted at run time" if late else ""


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


GROUP = {
    "exact-index": of(lambda m, x: x.dot(picked(m, (b,), hidden, d, fill=0.0), d), "index-range"),
    "indexed-rows": of(lambda m, x: x.dot(picked(m, (), hidden, d), d), "rows are sorted",
                       sorts_less_than_it_picks),
    "matrices": of(lambda m, x: x.dot(picked(m, (b, s), d), d), "rows are sorted",
                   sorts_less_than_it_picks),
    "bank": of(of_a_sequence, "counted at run time", counts_matrices_before_a_call),
    "whole-matrices": of(lambda m, x: x.dot(picked(m, (b, s), hidden, d), d, s), "does not run"),
    "free-rows": of(lambda m, x: wide(m).dot(picked(m, (b,), hidden, d), d), "does not run"),
}  # fmt: skip
