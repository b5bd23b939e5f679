"""Another name for what a word means, everywhere at once, or the reason why not.

The text with the new name is read like any other: it must have the mistakes it had, at the same
places, and elaborate to the same graphs but for names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..compiler.ir.graph import Program
from ..dsl import Source
from ..dsl.lexer import DEFINING, RESERVED, Lexeme
from .analysis import Analysis, analyse


def refused(analysis: Analysis, word: Lexeme) -> str:
    """Why a word cannot be renamed; empty where it can."""
    if analysis.names is None:
        return "the file has to parse before a name in it can be changed"
    symbol = analysis.names.symbols.get(word.start)
    if symbol is None:
        return f"`{word.text}` is a keyword, a label of weights or a function of the language"
    if symbol.library:
        return f"`{word.text}` is a definition of the standard library"
    return ""


def renamed(analysis: Analysis, word: Lexeme, name: str) -> list[Lexeme] | str:
    """The words to change, or why the name will not do."""
    names = analysis.names
    assert names is not None
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name in RESERVED | DEFINING:
        return f"`{name}` cannot be a name"
    words = names.occurrences(names.symbols[word.start])
    after = analyse(Source(analysis.source.name, changed(analysis.source.text, words, name)))
    before = analyse(analysis.source)
    new = [e.message for e in after.errors if e.id not in {e.id for e in before.errors}]
    if new:
        return f"with the name `{name}` the file would be wrong: {new[0]}"
    pairs = zip(before.programs.values(), after.programs.values(), strict=False)
    same = len(before.programs) == len(after.programs) and all(_alike(a, b) for a, b in pairs)
    return words if same else f"with the name `{name}` the file would mean something else"


def changed(text: str, words: Sequence[Lexeme], name: str) -> str:
    for word in reversed(words):
        text = text[: word.start] + name + text[word.end :]
    return text


def _alike(a: Program, b: Program) -> bool:
    """Whether two graphs have the same operations on the same operands, at the same sizes."""
    return [*a.sizes.values()] == [*b.sizes.values()] and [
        [(node.op, node.inputs) for node in function.nodes] for function in a.functions
    ] == [[(node.op, node.inputs) for node in function.nodes] for function in b.functions]
