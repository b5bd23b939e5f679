"""The colours of `.arch` in Pygments: `arch` names this lexer wherever archc is installed."""

from __future__ import annotations

from typing import ClassVar

from pygments.lexer import RegexLexer, bygroups, words
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Whitespace

from .dsl.words import WORDS


def _some(group: str) -> words:
    return words(sorted(WORDS[group]), prefix=r"\b", suffix=r"\b")


class ArchLexer(RegexLexer):  # type: ignore[misc]  # Pygments has no types
    """Words of the grammar are keywords wherever they stand, also where they are names."""

    name = "arch"
    aliases: ClassVar[list[str]] = ["arch"]
    filenames: ClassVar[list[str]] = ["*.arch"]
    tokens: ClassVar[dict[str, list[object]]] = {
        "root": [
            (r"\s+", Whitespace),
            (r"#.*$", Comment.Single),
            (r'"""(?s:.*?)"""', String.Doc),
            (r'"[^"\n]*"', String.Double),
            (
                r"\b(block|fn|model|preset)(\s+)(\w+)",
                bygroups(Keyword.Declaration, Whitespace, Name.Class),
            ),
            (_some("definition"), Keyword.Namespace),
            (_some("declaration"), Keyword.Declaration),
            (_some("control"), Keyword),
            (_some("operator"), Operator.Word),
            (_some("constant"), Keyword.Constant),
            (_some("checkpoint"), Keyword),
            (r"(as)(\s+)(\w+)", bygroups(Keyword, Whitespace, Name.Label)),
            (r"[A-Za-z_]\w*(?=\s*\()", Name.Function),
            (r"[A-Za-z_]\w*", Name),
            (r"(\d+(\.(?!\.)\d*)?|\.\d+)([eE][+-]?\d+)?", Number),
            (r"\|>|->|\?\?|\.\.\.?|\*\*|//|[-+*/%<>=!]=?", Operator),
            (r"[()\[\]{},:;.|?]", Punctuation),
        ]
    }
