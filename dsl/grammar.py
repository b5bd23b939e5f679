"""The parse table of `grammar.lark`: Lark computes it, `tables.json` keeps it.

So parsing starts in milliseconds and needs no Lark. A stored table made from another text of the
grammar is never used; the table is then computed afresh. `python -m archc.dsl.grammar` stores it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
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

_DECLARED = {
    "NAME": NAME, "NUMBER": NUMBER, "STRING": STRING, "DOC": DOC, "OPERATOR": OPERATOR,
    "RELATION": RELATION, "_END": END, "_LAMBDA": LAMBDA, "_TABLE": TABLE,
    "_TABLE_END": TABLE_END, "$END": STOP,
}  # fmt: skip

_GRAMMAR = Path(__file__).with_name("grammar.lark")
_TABLES = Path(__file__).with_name("tables.json")


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
    text = _GRAMMAR.read_text(encoding="utf-8")
    stored = _read(_TABLES)
    return stored if stored and stored.checksum == crc32(text.encode()) else compile_grammar(text)


def _read(path: Path) -> Grammar | None:
    if not path.exists():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    rules = tuple(Rule(n, s, tuple(c), i, t) for n, s, c, i, t in data.pop("rules"))
    return Grammar(rules=rules, **data)


def compile_grammar(text: str) -> Grammar:
    """Run Lark's LALR(1) construction on the text of a grammar."""
    from lark import Lark
    from lark.lexer import Lexer
    from lark.parsers.lalr_analysis import Shift

    class NoLexer(Lexer):
        __future_interface__ = 2

        def __init__(self, _: object) -> None: ...

        def lex(self, lexer_state: object, parser_state: object) -> Any:
            raise NotImplementedError

    lark = Lark(text, start="file", parser="lalr", lexer=NoLexer)
    table = lark.parser.parser._parse_table
    kinds = _DECLARED | {t.name: t.pattern.value for t in lark.terminals}
    numbers = {rule: ~i for i, rule in enumerate(lark.rules)}
    order = {state: i for i, state in enumerate(table.states)}
    actions: list[dict[str, int]] = [{} for _ in order]
    gotos: list[dict[str, int]] = [{} for _ in order]
    for state, row in table.states.items():
        for symbol, (action, argument) in row.items():
            value = order[argument] if action is Shift else numbers[argument]
            if symbol in kinds:
                actions[order[state]][kinds[symbol]] = value
            else:
                gotos[order[state]][symbol] = value
    return Grammar(
        crc32(text.encode()),
        order[table.start_states["file"]],
        order[table.end_states["file"]],
        tuple(map(_rule, lark.rules)),
        tuple(actions),
        tuple(gotos),
    )


def _rule(rule: Any) -> Rule:
    """Lark's rule options as one list: which values a reduction keeps."""
    name = str(rule.origin.name)
    written = iter(enumerate(rule.expansion, start=1))
    children: list[int] = []
    for missing in rule.options.empty_indices or [False] * len(rule.expansion):
        if missing:
            children.append(0)
            continue
        index, symbol = next(written)
        if not symbol.is_term:
            children.append(-index if symbol.name.startswith("_") else index)
        elif rule.options.keep_all_tokens or not symbol.filter_out:
            children.append(index)
    return Rule(
        name, len(rule.expansion), tuple(children), name.startswith("_"), rule.options.expand1
    )


if __name__ == "__main__":
    tables = asdict(compile_grammar(_GRAMMAR.read_text(encoding="utf-8")))
    tables["rules"] = [list(rule.values()) for rule in tables["rules"]]
    _TABLES.write_text(json.dumps(tables, separators=(",", ":")) + "\n", encoding="utf-8")
    sys.stdout.write(f"{_TABLES.name}: {len(tables['actions'])} states\n")
