"""Each rule alone: the graph before and after it, and no result changed.

The programs run in float64 at distinct sizes and at sizes that collide. The graphs are goldens,
`tests/golden/rules/RULE.golden`: a rule that writes another graph shows up in a diff.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from catches.fires import FIRES
from checks import EVERY_PASS
from goldens import compare, read
from graphs import evaluate

from archc.compiler.ir.text import show
from archc.compiler.ir.verify import verify
from archc.compiler.passes.verify import Verifier
from archc.compiler.rewrite import Pass, Session, run_pass

GOLDEN = Path(__file__).parent / "golden" / "rules"
# A rule that several passes have is shown in the first.
RULES = {rule.name: replace(p, rules=(rule,)) for p in reversed(EVERY_PASS) for rule in p.rules}


def named(name: str) -> Pass:
    return next(p for p in EVERY_PASS if p.name == name)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_keeps_results_and_writes_this_graph(rule: str, accept: bool) -> None:
    case, made, session = FIRES[rule], RULES[rule], Session()
    before = case.program
    for name in case.after:
        before, _ = run_pass(named(name), before, session)
    after, _ = run_pass(made, before, session)
    assert [x for x in session.sites if (x.pass_name, x.rule, x.fired) == (made.name, rule, True)]
    verify(after)
    if made.exact:
        Verifier(evaluate).check(made.name, before, after)
    path = GOLDEN / f"{rule}.golden"
    for section, program in (("before", before), ("after", after)):
        sections = read(path) if path.exists() else {}
        compare(path, sections, section, show(program), accept=accept)


def test_every_rule_is_shown() -> None:
    assert set(FIRES) == set(RULES)
    assert {path.stem for path in GOLDEN.glob("*.golden")} == set(RULES)
