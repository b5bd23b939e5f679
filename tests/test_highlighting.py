"""Editors and Pygments colour the words that the grammar has, and every file as a whole."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path

import pytest
from pygments.lexers import get_lexer_by_name
from pygments.token import Error, Keyword, Name

from archc.dsl.lexer import RESERVED
from archc.dsl.words import WORDS
from archc.highlight import ArchLexer

ROOT = Path(__file__).parent.parent
FILES = [*(ROOT / "examples").glob("*.arch"), *(ROOT / "dsl" / "std").glob("*.arch")]
TEXTMATE = ROOT / "editors" / "vscode" / "syntaxes" / "arch.tmLanguage.json"


def test_the_words_are_those_of_the_grammar() -> None:
    grammar = re.sub(r"//.*", "", (ROOT / "dsl" / "grammar.lark").read_text(encoding="utf-8"))
    quoted = set(re.findall(r'"([a-z]+)"', grammar))
    assert set(chain(*WORDS.values())) == quoted
    assert quoted >= RESERVED


def test_textmate_has_the_same_words() -> None:
    patterns = json.loads(TEXTMATE.read_text(encoding="utf-8"))["patterns"]
    lists = (re.fullmatch(r"\\b\(([a-z|]+)\)\\b", p.get("match", "")) for p in patterns)
    found = [frozenset(m[1].split("|")) for m in lists if m]
    assert found == list(WORDS.values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_character_has_a_colour(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tokens = list(ArchLexer().get_tokens(text))
    assert "".join(word for _, word in tokens).strip() == text.strip()
    assert not [word for kind, word in tokens if kind is Error]


def test_pygments_finds_the_lexer() -> None:
    found = dict((w, k) for k, w in get_lexer_by_name("arch").get_tokens("model Small { }\n"))
    assert found["model"] is Keyword.Declaration
    assert found["Small"] is Name.Class
