"""For each guard of a rule a small program on which it matters, and what notices its absence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphs import SIZES, Model, Value, b, d, hidden, s, t, vocab

from archc.compiler.ir.graph import Axis, Program, TensorType
from archc.compiler.ops.grouped import plan_grouped
from archc.compiler.passes import Optimised
from archc.compiler.passes.properties import elements

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

CAUGHT: dict[str, Caught] = {
    **{f"group-experts/group/{name}": case for name, case in GROUP_EXPERTS.items()},
}
