"""The parse table of `grammar.lark`: Lark computes it, `tables.json` keeps it.

So parsing starts in milliseconds and needs no Lark. A stored table made from another text of the
grammar is never used; the table is then computed afresh. `python -m archc.dsl.tables` stores it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final
from zlib import crc32

# Kinds of token that are no fixed text; the names are what a message calls them.
NAME: Final = "a name"
NUMBER: Final = "a number"
STRING: Final = "a string"
DOC: Final = "a docstring"
OPERATOR: Final = "an operator"
RELATION: Final = "a comparison"
END: Final = "the end of the line"
LAMBDA: Final = "the inputs of a lambda"
TABLE: Final = "a table"
TABLE_END: Final = "the end of a table"
STOP: Final = "the end of the file"

DECLARED = {
    "NAME": NAME, "NUMBER": NUMBER, "STRING": STRING, "DOC": DOC, "OPERATOR": OPERATOR,
    "RELATION": RELATION, "_END": END, "_LAMBDA": LAMBDA, "_TABLE": TABLE,
    "_TABLE_END": TABLE_END, "$END": STOP,
}  # fmt: skip

GRAMMAR = Path(__file__).with_name("grammar.lark")
TABLES = Path(__file__).with_name("tables.json")


@dataclass(frozen=True)
class Rule:
    """A production to reduce by: take `size` values, hand on those that `children` names.

    An entry `i` of `children` keeps value i - 1, `-i` splices the list that value i - 1 is, 0 is an
    optional part that was not written. A rule is `inline` when its result is that list itself, and
    `transparent` when a single child stands for it.
    """

    name: str
    size: int
    children: tuple[int, ...]
    inline: bool
    transparent: bool

    @cached_property
    def renames(self) -> bool:
        """Whether reducing gives the one value another name and nothing else."""
        return self.transparent and self.size == 1 and self.children == (1,)

    def select(self, values: list[Any]) -> list[Any]:
        """The children, out of the values of all symbols.

        A row that grows by one is the same list, not a copy: nothing else holds it.
        """
        grows = self.inline and bool(self.children) and self.children[0] < 0
        children: list[Any] = values[-self.children[0] - 1] if grows else []
        for child in self.children[grows:]:
            if child > 0:
                children.append(values[child - 1])
            elif child < 0:
                children += values[-child - 1]
            else:
                children.append(None)
        return children


@dataclass(frozen=True, slots=True)
class Grammar:
    """LALR(1) tables. `actions[state][kind]`: a state to shift to, or `~rule` to reduce by."""

    checksum: int
    start: int
    accept: int
    rules: tuple[Rule, ...]
    actions: tuple[dict[str, int], ...]
    gotos: tuple[dict[str, int], ...]


@cache
def grammar() -> Grammar:
    """The table of the installed `grammar.lark`."""
    text = GRAMMAR.read_text(encoding="utf-8")
    stored = _stored()
    if stored is not None and stored.checksum == crc32(text.encode()):
        return stored
    from .tables import compile_grammar

    return compile_grammar(text)


def _stored() -> Grammar | None:
    if not TABLES.exists():
        return None
    data = json.loads(TABLES.read_text(encoding="utf-8"))
    rules = (
        Rule(name, size, tuple(children), inline, transparent)
        for name, size, children, inline, transparent in data["rules"]
    )
    return Grammar(
        checksum=data["checksum"],
        start=data["start"],
        accept=data["accept"],
        rules=tuple(rules),
        actions=tuple(data["actions"]),
        gotos=tuple(data["gotos"]),
    )
