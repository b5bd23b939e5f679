"""What tests of passes ask of a run: equal results, a second run that changes nothing, sites."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from graphs import Model, Value, b, d, e, evaluate, g, r, s

from archc.compiler.ir.graph import Program
from archc.compiler.passes import PIPELINE, Optimised, optimise
from archc.compiler.passes.parameters import DERIVE_PARAMETERS
from archc.compiler.passes.quantise import quantise_to
from archc.compiler.passes.verify import (
    Arrays,
    Case,
    RandomWeights,
    cases,
    random_inputs,
    relative_error,
)
from archc.compiler.rewrite import Site

NAMES = [p.name for p in PIPELINE]
# The pipeline, and where they run the passes that only `quant` asks for.
_AT = PIPELINE.index(DERIVE_PARAMETERS)
EVERY_PASS = (*PIPELINE[:_AT], *quantise_to("int8"), *PIPELINE[_AT:])


def same(before: Program, after: Program, tolerance: float = 1e-12) -> None:
    """Both programs give the same outputs, at distinct and at equal sizes."""
    for case, inputs, weights, expected in outputs(before):
        got = evaluate(case.applied(after), inputs, weights)
        for name, value in expected.items():
            assert relative_error(got[name], value) <= tolerance, (name, str(case))


@lru_cache(maxsize=8)
def outputs(program: Program) -> list[tuple[Case, Arrays, RandomWeights, Arrays]]:
    """Random inputs, weights, and what the program gives, in each case."""
    found = []
    for case in cases(program):
        first = case.applied(program)
        inputs, weights = random_inputs(first, case), RandomWeights(first)
        found.append((case, inputs, weights, evaluate(first, inputs, weights)))
    return found


def ran(program: Program, **options: object) -> Optimised:
    """Optimised, with the results compared and a second run changing nothing."""
    done = optimise(program, **options)
    same(program, done.program)
    assert optimise(done.program, **options).program == done.program
    return done


def only(name: str) -> list[str]:
    return [n for n in NAMES if n not in ("canonicalize", "sink-merges", name)]


def sites(done: Optimised, name: str, rule: str | None = None) -> list[Site]:
    return [x for x in done.sites if x.pass_name == name and rule in (None, x.rule)]


def ops(program: Program) -> Counter[str]:
    return Counter(n.op for n in program.main.nodes)


def reason(done: Optimised, name: str) -> str:
    (site,) = [x for x in sites(done, name) if not x.fired]
    return re.sub(r"hand.arch:\d+", "LINE", site.reason)


def model_of(build: Callable[[Model, Value], Value]) -> Program:
    """A program with input x[b, s, d] and output y."""
    m = Model()
    return m.program(y=build(m, m.input("x", b, s, d)))


def heads_of(m: Model, x: Value) -> tuple[Value, Value, Value]:
    return (
        x.dot(m.weight("q", g, r, e, d), d),
        x.dot(m.weight("k", g, e, d), d),
        x.dot(m.weight("v", g, e, d), d),
    )
