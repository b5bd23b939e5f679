"""Each claim of SECURITY.md names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_tests_that_hold_a_claim_are_there() -> None:
    rows = (ROOT / "SECURITY.md").read_text(encoding="utf-8").split("| claim | test |")[1]
    claims = [row for row in rows.split("\n")[2:] if row.startswith("|")]
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py"))
    for claim in claims:
        named = re.findall(r"`(test_\w+|tests/[\w/]+\.py)`", claim)
        assert named, claim
        for name in named:
            there = (ROOT / name).is_file() if "/" in name else f"def {name}(" in tests
            assert there, name
    assert len(claims) >= 10
