"""Each claim of SECURITY.md names a test that is there, and its limits are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from archc import template
from archc.compiler.elaborate import body, calls, emit, numbers, repeats
from archc.dsl import lexer

ROOT = Path(__file__).parent.parent


def test_the_tests_that_hold_a_claim_are_there() -> None:
    rows = (
        (ROOT / "SECURITY.md")
        .read_text(encoding="utf-8")
        .split("| claim | test |")[1]
        .split("##")[0]
    )
    claims = [row for row in rows.split("\n")[2:] if row.startswith("|")]
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py"))
    for claim in claims:
        named = re.findall(r"`(test_\w+|tests/[\w/]+\.py)`", claim)
        assert named, claim
        for name in named:
            there = (ROOT / name).is_file() if "/" in name else f"def {name}(" in tests
            assert there, name
    assert len(claims) >= 10


LIMITS = (
    lexer.LARGEST_FILE, lexer.LONGEST_NAME, lexer.DEEPEST_NESTING, calls.MAX_DEPTH, body.MOST_STEPS,
    repeats.MOST_ITERATIONS, repeats.MOST_WEIGHTS, emit.MOST_AXES, numbers.LARGEST, lexer.MOST_ERRORS,
    template.STEPS,
)  # fmt: skip


def test_the_limits_are_those_of_the_code() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = page.split("| of | at most |")[1].split("##")[0].split("\n")[2:]
    written = [row.split("|")[2].strip() for row in rows if row.startswith("|")]
    assert written == [f"{limit:,}" for limit in LIMITS]
