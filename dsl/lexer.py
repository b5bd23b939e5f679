"""From characters to the tokens of the grammar.

`scan` cuts the text into lexemes, blanks left out, comments and newlines kept (the formatter wants
them). `match_brackets` pairs the brackets. `mark` finds those whose meaning lies further ahead than
one token, a lambda's `(` and a table's `{`, and `arrange` ends the statements.
Mistakes are collected, and something plausible stands in for what was wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from .diagnostics import ArchError
from .errors import (
    ForeignOperator,
    NameTooLong,
    NestedTooDeep,
    SingleQuotes,
    SourceUnreadable,
    StrayCharacter,
    UnclosedBracket,
    UnclosedString,
    UnopenedBracket,
)
from .grammar import (
    DOC,
    END,
    LAMBDA,
    NAME,
    NUMBER,
    OPERATOR,
    RELATION,
    STOP,
    STRING,
    TABLE,
    TABLE_END,
)
from .span import Source, Span
from .words import WORDS

COMMENT: Final = "a comment"
NEWLINE: Final = "a newline"

LARGEST_FILE = 250_000  # characters; the library has 75,000, an example 12,000
LONGEST_NAME = 200  # characters
MOST_ERRORS = 20  # after so many the rest of the text is not looked at
DEEPEST_NESTING = 200  # brackets within brackets, or levels of the syntax tree

# Words that are never names. Any other keyword is a name wherever the grammar wants a name.
RESERVED = frozenset("if else for as and or not return true false none new".split())
DEFINING = WORDS["definition"]

# Operators of other languages: what to write here, and the kind of token that stands in.
FOREIGN_OPERATORS = {
    "&&": ("`and`", "and"),
    "||": ("`or`", "or"),
    "!": ("`not`", "not"),
    "^": ("`**`", OPERATOR),
    "@": ("`dot(a, b, axis)`", OPERATOR),
    "===": ("`==`", RELATION),
    "=>": ("`->`", "->"),
    ":=": ("`=`", "="),
    "::": ("`:`", ":"),
} | {f"{op}=": (f"`x = x {op} ..`", "=") for op in "- * / // % **".split()}

_LONG = '"""'
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_OPENING = {close: opening for opening, close in _CLOSING.items()}

_LEXEME = re.compile(
    r"""
    (?P<blank>[ \t\r\f\ufeff]+)
  | (?P<newline>\n)
  | (?P<comment>\#[^\n]*)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<doc>\"\"\"(?s:.*?)\"\"\")
  | (?P<string>""(?!")|"[^"\n]+")
  | (?P<number>(?:[0-9]+(?:\.(?!\.)[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
  | (?P<foreign>&&|\|\||(?://|\*\*|[-*/%:])=|===|=>|::|!(?!=)|\^|@)
  | (?P<symbol>\|>|->|\.\.\.|\.\.|\?\?|\+=|[=!<>]=|\*\*|//|[-+*/%<>=()\[\]{},:;.|?])
  | (?P<unclosed>\"\"\"(?s:.*)|"[^\n]*)
  | (?P<quoted>'[^'\n]*')
  | (?P<stray>.)
    """,
    re.VERBOSE,
)

_KINDS = {"newline": NEWLINE, "comment": COMMENT, "doc": DOC, "string": STRING, "number": NUMBER}
_SYMBOLS = dict.fromkeys("+ * / // % **".split(), OPERATOR) | dict.fromkeys(
    "== != <= > >=".split(), RELATION
)
# A line that starts with one of these goes on with the line before.
_CONTINUES = frozenset(("|>", "->", "else", "{"))
_OPENING_KINDS = frozenset(("(", "[", "{", LAMBDA, TABLE))
_CLOSING_KINDS = frozenset((")", "]", "}", TABLE_END))
_ENDS_OPERAND = frozenset((NAME, NUMBER, STRING, ")", "]", "}"))


class Lexeme(NamedTuple):
    """A piece of text and its kind. The kind of fixed text is that text."""

    kind: str
    text: str
    start: int
    end: int


def tokens(source: Source, errors: list[ArchError]) -> list[Lexeme]:
    """What the parser reads: nothing, when it is unclear where strings or brackets end."""
    lexemes = [lexeme for lexeme in scan(source, errors) if lexeme.kind != COMMENT]
    endless = any(isinstance(error, UnclosedString) and error.quotes == _LONG for error in errors)
    if endless or len(errors) >= MOST_ERRORS:
        return []
    before = len(errors)
    partner = match_brackets(lexemes, source, errors)
    return arrange(mark(lexemes, partner)) if len(errors) == before else []


def scan(source: Source, errors: list[ArchError]) -> list[Lexeme]:
    """Cut the text into lexemes, with comments and newlines, without blanks."""
    if len(source.text) > LARGEST_FILE:
        reason = f"it has {len(source.text)} characters, more than {LARGEST_FILE}"
        raise SourceUnreadable(path=source.name, reason=reason)
    lexemes: list[Lexeme] = []
    for match in _LEXEME.finditer(source.text):
        if len(errors) >= MOST_ERRORS:
            break
        group, text = match.lastgroup or "", match.group()
        if group == "blank":
            continue
        if group == "name":
            kind = text if text in RESERVED else NAME
            if len(text) > LONGEST_NAME:
                span = Span(source, *match.span())
                errors.append(NameTooLong(length=len(text), limit=LONGEST_NAME, span=span))
        elif group == "symbol":
            kind = _SYMBOLS.get(text, text)
        elif group in _KINDS:
            kind = _KINDS[group]
        else:
            lexemes += _mend(group, Span(source, *match.span()), errors)
            continue
        lexemes.append(Lexeme(kind, text, *match.span()))
    return lexemes


def _mend(group: str, span: Span, errors: list[ArchError]) -> Iterator[Lexeme]:
    """Report text that is no token, and give what may stand in its place."""
    if group == "unclosed":
        first_line = span.text.split("\n")[0]
        opening = Span(span.source, span.start, span.start + len(first_line))
        quotes = _LONG if span.text.startswith(_LONG) else '"'
        errors.append(UnclosedString(span=opening, quotes=quotes))
        yield Lexeme(STRING, '""', span.start, span.end)
    elif group == "quoted":
        errors.append(SingleQuotes(span=span, content=span.text[1:-1]))
        yield Lexeme(STRING, f'"{span.text[1:-1]}"', span.start, span.end)
    elif group == "foreign":
        instead, kind = FOREIGN_OPERATORS[span.text]
        errors.append(ForeignOperator(span=span, written=span.text, instead=instead))
        yield Lexeme(kind, {OPERATOR: "*", RELATION: "=="}.get(kind, kind), span.start, span.end)
    else:
        errors.append(StrayCharacter(span=span, character=span.text))


# ------------------------------------------------------------------ brackets


def match_brackets(
    lexemes: list[Lexeme], source: Source, errors: list[ArchError]
) -> dict[int, int]:
    """The index of the other bracket, for each index of an opening or closing one."""
    partner: dict[int, int] = {}
    opened: list[int] = []
    suspect: list[int] = []  # `{` whose `}` stands further left: the missing `}` is likely theirs
    for i, lexeme in enumerate(lexemes):
        if len(errors) >= MOST_ERRORS:
            return partner
        if lexeme.kind in _CLOSING:
            opened.append(i)
            if len(opened) > DEEPEST_NESTING:
                raise NestedTooDeep(span=_span(source, lexeme), limit=DEEPEST_NESTING)
        elif lexeme.kind in _OPENING:
            _close(lexemes, i, opened, source, errors)
            if opened and lexemes[opened[-1]].kind == _OPENING[lexeme.kind]:
                start = opened.pop()
                partner[i], partner[start] = start, i
                if _indent(source, lexeme) < _indent(source, lexemes[start]):
                    suspect.append(start)
        elif lexeme.text in DEFINING and opened and _starts_definition(lexemes, i, source):
            errors.append(_unclosed(lexemes, (suspect or opened)[-1], lexeme, source))
            opened.clear()
            suspect.clear()
    if opened:
        errors.append(_unclosed(lexemes, (suspect or opened)[-1], None, source))
    return partner


def _close(
    lexemes: list[Lexeme], i: int, opened: list[int], source: Source, errors: list[ArchError]
) -> None:
    """Report what the closing bracket at `i` shows to be wrong; leave its own opening on top."""
    wanted = _OPENING[lexemes[i].kind]
    if all(lexemes[j].kind != wanted for j in opened):
        errors.append(UnopenedBracket(span=_span(source, lexemes[i]), bracket=lexemes[i].text))
    elif lexemes[opened[-1]].kind != wanted:
        errors.append(_unclosed(lexemes, opened[-1], lexemes[i], source))
        while lexemes[opened[-1]].kind != wanted:
            opened.pop()


def _starts_definition(lexemes: list[Lexeme], i: int, source: Source) -> bool:
    """A definition at the left margin: no statement or expression can look like it."""
    lexeme = lexemes[i]
    at_margin = source.text[lexeme.start - 1 : lexeme.start] in ("", "\n")
    follows = lexemes[i + 1].kind if i + 1 < len(lexemes) else ""
    return at_margin and follows == NAME


def _unclosed(
    lexemes: list[Lexeme], opening: int, found: Lexeme | None, source: Source
) -> UnclosedBracket:
    return UnclosedBracket(
        span=_span(source, lexemes[opening]),
        bracket=lexemes[opening].text,
        closing=_CLOSING[lexemes[opening].kind],
        found=found.text if found else "",
        found_at=_span(source, found) if found else None,
    )


def _indent(source: Source, lexeme: Lexeme) -> int:
    """Blanks before the line that `lexeme` stands on, as far as they are worth comparing."""
    line, _ = source.position(lexeme.start)
    start = source.start_of(line)
    head = source.text[start : min(lexeme.end, start + DEEPEST_NESTING)]
    return len(head) - len(head.lstrip())


def _span(source: Source, lexeme: Lexeme) -> Span:
    return Span(source, lexeme.start, lexeme.end)


# ------------------------------------------------------------------ layout


def mark(lexemes: list[Lexeme], partner: dict[int, int]) -> list[Lexeme]:
    """Give the `(` of a lambda or a merge and the `{` of a table their own kinds."""
    marked = list(lexemes)
    for i, lexeme in enumerate(lexemes):
        if lexeme.kind == "(" and _is_lambda(lexemes, i, partner):
            marked[i] = lexeme._replace(kind=LAMBDA)
        elif lexeme.kind == "{" and _beside(lexemes, i, 1, 2) == [STRING, ":"]:
            marked[i] = lexeme._replace(kind=TABLE)
            marked[partner[i]] = lexemes[partner[i]]._replace(kind=TABLE_END)
    return marked


def _is_lambda(lexemes: list[Lexeme], i: int, partner: dict[int, int]) -> bool:
    applies = set(_beside(lexemes, i, -1, 1)) & _ENDS_OPERAND
    return not applies and _beside(lexemes, partner[i], 1, 1) == ["->"]


def _beside(lexemes: list[Lexeme], i: int, step: int, count: int) -> list[str]:
    """The kinds of the next `count` lexemes in one direction; newlines and comments passed over."""
    kinds: list[str] = []
    while len(kinds) < count and 0 <= (i := i + step) < len(lexemes):
        if lexemes[i].kind not in (NEWLINE, COMMENT):
            kinds.append(lexemes[i].kind)
    return kinds


def arrange(lexemes: list[Lexeme]) -> list[Lexeme]:
    """End every statement and definition with an END, and leave no newline or separator."""
    out: list[Lexeme] = []
    around: list[str] = []  # the opening brackets around this place
    gap = ""  # what separates this lexeme from the one before: nothing, a newline or `;`
    for lexeme in lexemes:
        kind = lexeme.kind
        if kind == NEWLINE or (kind == ";" and around[-1:] in ([], ["{"])):
            gap = kind if gap != ";" and around[-1:] in ([], ["{"]) else gap
            continue
        if out and _ends_statement(out[-1], lexeme, gap, outside=not around):
            out.append(_end_after(out[-1]))
        if kind in _CLOSING_KINDS:
            around.pop()
        elif kind in _OPENING_KINDS:
            around.append(kind)
        out.append(lexeme)
        gap = ""
    if out and out[-1].kind != END:
        out.append(_end_after(out[-1]))
    end = out[-1].end if out else 0
    return [*out, Lexeme(STOP, "", end, end)]


def _ends_statement(previous: Lexeme, lexeme: Lexeme, gap: str, *, outside: bool) -> bool:
    if previous.kind == "{":
        return False
    if lexeme.kind == "}" or gap == ";":
        return True
    if lexeme.kind in _CONTINUES or (previous.kind == "}" and lexeme.text == "until"):
        return False
    # the second list of a definition's signature may start a line
    if outside and previous.kind == ")" and lexeme.kind == "(":
        return False
    return previous.kind == "}" or gap == NEWLINE


def _end_after(lexeme: Lexeme) -> Lexeme:
    return Lexeme(END, "", lexeme.end, lexeme.end)
