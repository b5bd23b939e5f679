"""A small program on which a guard matters, what is promised of it, and what notices a breach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphs import SIZES, Model, Value, b, d, s

from archc.compiler.ir.graph import Function, Node, Program, TensorType, elements
from archc.compiler.passes import Optimised
from archc.compiler.passes.properties import SOURCES, VIEWS

CALL = {**SIZES, "b": 3, "s": 7}
Promise = Callable[[Optimised], str]


def nothing(done: Optimised) -> str:
    return ""


@dataclass(frozen=True)
class Caught:
    """`notice` is part of what is said once the guard is gone: a number that changed, a graph that
    is none, or what `promise` finds broken in the optimised program.

    The passes are those that tidy up, the guard's own and `also`. A program that reads states is not `run`.
    """

    program: Program
    notice: str = "changed `y`"
    promise: Promise = nothing
    also: tuple[str, ...] = ()
    run: bool = True


def of(
    build: Callable[[Model, Value], Value],
    notice: str = "changed `y`",
    promise: Promise = nothing,
    *also: str,
) -> Caught:
    """A program of x[b, s, d] with output y."""
    m = Model()
    program = m.program(y=build(m, m.input("x", b, s, d)))
    return Caught(program, notice, promise, also)


def named(path: str, cases: dict[str, Caught]) -> dict[str, Caught]:
    return {f"{path}/{name}": case for name, case in cases.items()}


# ------------------------------------------------------------------------------- promises


def count(kind: TensorType) -> int:
    return elements(kind.axes).evaluate(CALL)


def main_nodes(done: Optimised, *ops: str) -> list[Node]:
    return [n for n in done.program.main.nodes if not ops or n.op in ops]


def computes_no_more(done: Optimised) -> str:
    before, after = (_arithmetic(p) for p in (done.value_map.before, done.program))
    return "more is computed" if after > before else ""


def _arithmetic(program: Program) -> int:
    fixed = of_weights(program.main)
    return sum(n.op not in VIEWS | SOURCES and n.id not in fixed for n in program.main.nodes)


def of_weights(function: Function) -> set[int]:
    """Values that depend on weights alone: they are computed once."""
    fixed: set[int] = set()
    for node in function.nodes:
        if node.op in ("weight", "derived", "const") or (node.inputs and fixed >= {*node.inputs}):
            fixed.add(node.id)
    return fixed


def relabels_no_more(done: Optimised) -> str:
    before, after = (
        sum(n.op in VIEWS for n in p.main.nodes) for p in (done.value_map.before, done.program)
    )
    return "more is relabelled" if after > before else ""


def stores_once(done: Optimised) -> str:
    """No matrix is kept as it was and in a derived parameter as well."""
    for weight in (n for n in main_nodes(done, "weight") if len(n.axes) > 1):
        readers = {n.op == "derived" for n in done.program.main.nodes if weight.id in n.inputs}
        if len(readers) > 1:
            return f"`{weight.attrs['path']}` is stored twice"
    return ""


def keeps_no_more(done: Optimised) -> str:
    """Derived parameters are not much larger than what they are made of."""
    for node in main_nodes(done, "derived"):
        made = sum(count(kind) for kind in node.types)
        if made > 2 * sum(count(done.program.main[i].type) for i in node.inputs):
            return "a parameter has grown"
    return ""


def leaves_nothing_of_weights(done: Optimised) -> str:
    """What depends on weights alone is not computed at every call."""
    fixed = of_weights(done.program.main)
    for node in main_nodes(done):
        if node.id in fixed and node.op not in VIEWS | SOURCES | {"derived", "result"}:
            return f"`{node.op}` of weights is left to the run"
    return ""
