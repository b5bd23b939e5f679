"""Makes the parse table of `grammar.lark` with Lark. `python -m archc.dsl.tables` stores it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from operator import itemgetter
from typing import Any
from zlib import crc32

from lark import Lark
from lark.lexer import Lexer
from lark.parsers.lalr_analysis import Shift

from .grammar import DECLARED, GRAMMAR, TABLES, Grammar, Rule


class _NoLexer(Lexer):
    """Lark wants a lexer; `lexer.py` is ours, and only the table is taken from Lark."""

    __future_interface__ = 2

    def __init__(self, _: object) -> None: ...

    def lex(self, lexer_state: object, parser_state: object) -> Any:
        raise NotImplementedError


def compile_grammar(text: str) -> Grammar:
    """Run Lark's LALR(1) construction on the text of a grammar."""
    lark = Lark(text, start="file", parser="lalr", lexer=_NoLexer)
    table = lark.parser.parser._parse_table
    kinds = DECLARED | {t.name: t.pattern.value for t in lark.terminals}
    rules = {rule: ~i for i, rule in enumerate(lark.rules)}
    states = _numbered(table.states, table.start_states["file"])
    actions: list[dict[str, int]] = []
    gotos: list[dict[str, int]] = []
    for state in states:
        row = {
            symbol: states[target] if action is Shift else rules[target]
            for symbol, (action, target) in sorted(table.states[state].items())
        }
        actions.append({kinds[symbol]: value for symbol, value in row.items() if symbol in kinds})
        gotos.append({symbol: value for symbol, value in row.items() if symbol not in kinds})
    return Grammar(
        crc32(text.encode()),
        states[table.start_states["file"]],
        states[table.end_states["file"]],
        tuple(map(_rule, lark.rules)),
        tuple(actions),
        tuple(gotos),
    )


def _numbered(rows: dict[Any, dict[str, tuple[Any, Any]]], start: Any) -> dict[Any, int]:
    """Numbers for Lark's states in the order they are met from `start`, the same in every run."""
    numbers = {start: 0}
    for state in (order := [start]):
        for _, (_, target) in sorted(rows[state].items(), key=itemgetter(0)):
            if target in rows and target not in numbers:
                numbers[target] = len(order)
                order.append(target)
    return numbers


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


def store() -> int:
    """Write the table of the grammar as it is now. Returns its number of states."""
    table = asdict(compile_grammar(GRAMMAR.read_text(encoding="utf-8")))
    table["rules"] = [list(rule.values()) for rule in table["rules"]]
    TABLES.write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")
    return len(table["actions"])


if __name__ == "__main__":
    sys.stdout.write(f"{TABLES.name}: {store()} states\n")
