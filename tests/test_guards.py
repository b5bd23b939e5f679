"""Every guard of every rule is needed: without it, some small program comes out wrong or worse.

`CAUGHT` names that program for each guard, and what notices: the numeric check before and after
the pass, the verifier, or a property that the pass promises. A guard without a program fails.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from catches import CAUGHT, Caught
from checks import EVERY_PASS
from graphs import evaluate

from archc.compiler.ir.verify import verify
from archc.compiler.passes import optimise
from archc.compiler.rewrite import Pass
from archc.dsl.diagnostics import InternalError

TIDY = ("canonicalize", "sink-merges")
ALL = {made.name: made for made in EVERY_PASS}
GUARDS = [
    f"{made.name}/{rule.name}/{guard.name}"
    for made in ALL.values()
    for rule in made.rules
    for guard in rule.conditions
]


def mutated(path: str) -> Pass:
    """The pass without one guard of one rule."""
    name, rule, guard = path.split("/")
    made = ALL[name]
    rules = tuple(r.without(guard) if r.name == rule else r for r in made.rules)
    assert rules != made.rules
    return replace(made, rules=rules)


def failure(case: Caught, made: Pass, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is wrong after the passes of `case`, of which `made` is one; empty if nothing is."""
    names = (*TIDY, made.name, *case.also)
    passes = tuple(made if p.name == made.name else p for p in ALL.values() if p.name in names)
    monkeypatch.setattr("archc.compiler.passes.PIPELINE", passes)
    try:
        done = optimise(case.program, verify=evaluate if case.run else None)
        verify(done.program)
    except InternalError as error:
        return str(error)
    return case.promise(done)


@pytest.mark.parametrize("path", GUARDS)
def test_a_forgotten_guard_is_noticed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CAUGHT[path]
    name = path.partition("/")[0]
    intact = failure(case, ALL[name], monkeypatch)
    assert intact == ""
    said = failure(case, mutated(path), monkeypatch)
    assert said, "nothing notices"
    assert case.notice in said


def test_every_program_is_for_a_guard_that_exists() -> None:
    assert set(CAUGHT) == set(GUARDS)
