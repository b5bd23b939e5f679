"""The words of the grammar by what they do, for whoever colours or proposes them."""

from __future__ import annotations

WORDS: dict[str, frozenset[str]] = {
    "definition": frozenset("use block fn model preset checkpoint".split()),
    "declaration": frozenset("weight buffer const bank shared input output time decode".split()),
    "control": frozenset("if else repeat scan return until with for in as after".split()),
    "operator": frozenset("and or not".split()),
    "constant": frozenset("true false none new".split()),
    "checkpoint": frozenset("at alias require ignore config prefix".split()),
}
STATEMENTS = WORDS["declaration"] | {"if", "else", "repeat", "scan", "return"}
