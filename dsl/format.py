"""The canonical layout of a file: same tokens, same comments, settled blanks and line breaks.

The text is read as lines of statements, each a row of tokens and bodies. What fits in 100 columns
stands on one line if its author put it on one; a longer pipeline breaks before every `|>`, and any
other long statement keeps its author's breaks. Statements joined by `;` stay joined while they fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from .build import doc_words
from .grammar import DOC, END, LAMBDA, NAME, NUMBER, STRING, TABLE, TABLE_END
from .lexer import COMMENT, NEWLINE, Lexeme, arrange, mark, match_brackets, scan
from .span import Source
from .syntax import File

COLUMNS = 100
INDENT = "  "
_SEPARATOR = "; "


def format_file(file: File) -> str:
    """The canonical text of a parsed file. It parses to an equal tree, and formats to itself."""
    source = file.span.source
    lexemes = scan(source, [])
    lexemes = mark(lexemes, match_brackets(lexemes, source, []))
    body = _Reader(lexemes, source).body()
    return "".join(f"{line}\n" for line in _aligned(list(_statements(body.statements, ""))))


# ------------------------------------------------------------------ reading


@dataclass(slots=True)
class _Body:
    """Statements in braces (or the whole file), and a comment behind the opening brace."""

    statements: list[_Statement] = field(default_factory=list)
    comment: str = ""
    broken: bool = False  # the author put it on several lines


@dataclass(slots=True)
class _Statement:
    """`parts` are tokens, comments and newlines inside the statement, and bodies.

    A comment on a line of its own is a statement too. `comment` is one behind the statement.
    """

    parts: list[Lexeme | _Body]
    comment: str = ""
    after_blank: bool = False  # an empty line stands before
    joined: bool = False  # on one line with the statement before


class _Reader:
    def __init__(self, lexemes: list[Lexeme], source: Source) -> None:
        self.source, self.lexemes, self.at = source, lexemes, 0
        code = arrange([lexeme for lexeme in lexemes if lexeme.kind != COMMENT])
        self.starts = {b.start for a, b in pairwise(code) if a.kind in (END, "{")}

    def body(self) -> _Body:
        """Statements up to a closing brace or the end."""
        body, newlines, inside = _Body(), 0, self.at > 0
        while self.at < len(self.lexemes) and self.lexemes[self.at].kind != "}":
            lexeme = self.lexemes[self.at]
            if lexeme.kind in (NEWLINE, ";"):
                newlines += lexeme.kind == NEWLINE
                self.at += 1
                continue
            body.broken |= newlines > 0
            if lexeme.kind == COMMENT and newlines == 0 and (body.statements or inside):
                self.at += 1
                holder = body.statements[-1] if body.statements else body
                holder.comment = lexeme.text.rstrip()
                continue
            after_blank = newlines > 1 and bool(body.statements)
            joined = newlines == 0 and bool(body.statements)
            body.statements.append(_Statement(self._parts(), "", after_blank, joined))
            newlines = 0
        body.broken |= newlines > 0
        return body

    def _parts(self) -> list[Lexeme | _Body]:
        """The tokens of the statement that starts here, and the bodies among them."""
        parts: list[Lexeme | _Body] = []
        while not parts or not self._at_end():
            lexeme = self.lexemes[self.at]
            self.at += 1
            if lexeme.kind == "{":
                parts.append(self.body())
                self.at += 1  # past its closing brace
            else:
                parts.append(lexeme)
                if lexeme.kind == COMMENT and len(parts) == 1:
                    break
        return parts

    def _at_end(self) -> bool:
        """Whether the next token that is no comment or newline belongs to another statement."""
        for lexeme in self.lexemes[self.at :]:
            if lexeme.kind not in (NEWLINE, COMMENT):
                return lexeme.kind in ("}", ";") or lexeme.start in self.starts
        return True


# ------------------------------------------------------------------ one line

_OPENING = frozenset(("(", "[", LAMBDA, TABLE))
_CLOSING = frozenset((")", "]", TABLE_END))
_TIGHT_BEFORE = _CLOSING | {",", ".", ":", "..", "...", "?"}
_TIGHT_AFTER = _OPENING | {".", ".."}
_OPERAND_END = _CLOSING | {NAME, NUMBER, STRING, "true", "false", "none", "new"}
_WORDS = frozenset(("in", "until", "require"))  # before an expression, yet names to the lexer


def _flat(statement: _Statement) -> str | None:
    """The statement on one line, unless a comment, a broken body or a long docstring forbids it."""
    pieces: list[str] = []
    for tokens, body in _segments(statement.parts):
        inner = _flat_body(body)
        if inner is None or any(t.kind == COMMENT or "\n" in _shown(t) for t in _code(tokens)):
            return None
        pieces += [_row(tokens), inner]
    return " ".join(filter(None, pieces))


def _flat_body(body: _Body | None) -> str | None:
    if body is None or not (body.statements or body.comment):
        return "" if body is None else "{ }"
    inner = [_flat(statement) for statement in body.statements]
    if body.broken or body.comment or None in inner:
        return None
    return f"{{ {_SEPARATOR.join(filter(None, inner))} }}"


def _segments(parts: list[Lexeme | _Body]) -> Iterator[tuple[list[Lexeme], _Body | None]]:
    """The tokens before each body with that body, and those after the last."""
    tokens: list[Lexeme] = []
    for part in parts:
        if isinstance(part, _Body):
            yield tokens, part
            tokens = []
        else:
            tokens.append(part)
    if tokens:
        yield tokens, None


def _code(tokens: list[Lexeme]) -> list[Lexeme]:
    return [token for token in tokens if token.kind != NEWLINE]


def _row(tokens: list[Lexeme]) -> str:
    """Tokens without comments on one line; a trailing comma is not wanted there."""
    code = _code(tokens)
    spare = {i for i, (a, b) in enumerate(pairwise(code)) if a.kind == "," and b.kind in _CLOSING}
    row = [token for i, token in enumerate(code) if i not in spare]
    return "".join(" " * _spaced(row, i) + _shown(token) for i, token in enumerate(row))


def _spaced(row: list[Lexeme], i: int) -> bool:
    """Whether a blank stands before token `i` of a row."""
    if i == 0:
        return False
    before, token = row[i - 1], row[i]
    if token.kind in _TIGHT_BEFORE:
        return token.kind == "..." and before.kind == ","
    if before.kind in _TIGHT_AFTER or _is_prefix_minus(row, i - 1):
        return False
    if token.kind in ("(", "["):
        return not _ends_operand(before) or (token.kind == "(" and _is_scan(row, i))
    return True


def _is_prefix_minus(row: list[Lexeme], i: int) -> bool:
    return row[i].kind == "-" and not (i and _ends_operand(row[i - 1]))


def _ends_operand(token: Lexeme) -> bool:
    return token.kind in _OPERAND_END and token.text not in _WORDS


def _is_scan(row: list[Lexeme], i: int) -> bool:
    """`scan s (reverse = true)`: the list belongs to the statement, not to `s`."""
    return i == 2 and row[0].text == "scan"


def _shown(token: Lexeme) -> str:
    return _doc(token) if token.kind == DOC else token.text.rstrip()


def _doc(token: Lexeme) -> str:
    """A docstring from its words; its later lines are indented when they are printed."""
    words = doc_words(token.text)
    return f'"""{words}\n"""' if words.endswith('"') else f'"""{words}"""'


# ------------------------------------------------------------------ several lines


@dataclass(slots=True)
class _Line:
    code: str
    comment: str = ""


def _statements(statements: list[_Statement], indent: str) -> Iterator[_Line]:
    i = 0
    while i < len(statements):
        end = i + 1
        while end < len(statements) and statements[end].joined:
            end += 1
        if statements[i].after_blank:
            yield _Line("")
        lines = list(_group(statements[i:end], indent))
        lines[-1].comment = statements[end - 1].comment or lines[-1].comment
        yield from lines
        i = end


def _group(statements: list[_Statement], indent: str) -> Iterator[_Line]:
    """Statements that stood on one line: as many on each line as fit."""
    line = ""
    for statement in statements:
        flat = _flat(statement)
        joined = line and flat is not None and f"{line}{_SEPARATOR}{flat}"
        if joined and len(joined) <= COLUMNS:
            line = joined
            continue
        if line:
            yield _Line(line)
        line = ""
        if flat is None or len(indent + flat) > COLUMNS:
            yield from _spread(statement, indent)
        else:
            line = indent + flat
    if line:
        yield _Line(line)


def _spread(statement: _Statement, indent: str) -> Iterator[_Line]:
    """Bodies on lines of their own, and what does not fit before them broken up."""
    first = statement.parts[0]
    if isinstance(first, Lexeme) and first.kind == COMMENT:
        yield _Line(indent + first.text.rstrip())
        return
    lead = ""
    for tokens, body in _segments(statement.parts):
        tail = " {" if body is not None else ""
        *before, head = _segment(tokens, indent, lead, tail)
        yield from before
        if body is None:
            yield head
            return
        yield _Line(head.code, body.comment)
        yield from _statements(body.statements, indent + INDENT)
        lead = "} "
    yield _Line(indent + "}")


def _segment(tokens: list[Lexeme], indent: str, lead: str, tail: str) -> list[_Line]:
    if all(token.kind not in (COMMENT, DOC) for token in tokens):
        line = f"{indent}{lead}{_row(tokens)}{tail}"
        if len(line) <= COLUMNS:
            return [_Line(line)]
    lines = _broken(tokens, indent, lead)
    lines[-1].code += tail
    return lines


def _broken(tokens: list[Lexeme], indent: str, lead: str) -> list[_Line]:
    """Lines that end where the author's did, and before every `|>` outside brackets."""
    row = [token for token in tokens if token.kind not in (NEWLINE, COMMENT)]
    lines = [_Line(indent + lead.rstrip())]
    brackets: list[bool] = []  # the open ones: whether a line ends behind the opening
    at, fresh = 0, False  # fresh: the next token starts a line
    for token in tokens:
        if token.kind == NEWLINE:
            fresh = True
            if brackets and lines[-1].code[-1:] in ("(", "[", "{"):
                brackets[-1] = True
        elif token.kind == COMMENT:
            _add_comment(lines, token.text.rstrip(), indent + INDENT * max(len(brackets), 1), fresh)
            fresh = True
        else:
            if fresh or (token.kind == "|>" and not brackets):
                lines.append(_Line(indent + _continuation(token, brackets)))
            elif at or lead:
                lines[-1].code += " " * (_spaced(row, at) or at == 0)
            lines[-1].code += _indented(_shown(token), indent)
            _track(token, brackets)
            at, fresh = at + 1, False
    return lines


def _track(token: Lexeme, brackets: list[bool]) -> None:
    if token.kind in _OPENING:
        brackets.append(False)
    elif token.kind in _CLOSING:
        brackets.pop()


def _indented(text: str, indent: str) -> str:
    """The later lines of a docstring at the place of its statement."""
    return "\n".join(indent * bool(i and line) + line for i, line in enumerate(text.split("\n")))


def _add_comment(lines: list[_Line], text: str, indent: str, fresh: bool) -> None:
    if fresh or not lines[-1].code.strip():
        lines.append(_Line(indent + text))
    else:
        lines[-1].comment = text


def _continuation(token: Lexeme, brackets: list[bool]) -> str:
    """How much further a line that starts with `token` is indented than its statement."""
    depth = len(brackets) - (token.kind in _CLOSING)
    if token.kind == "else":
        return ""
    if token.kind == "|>" and not brackets:
        return INDENT
    hanging = bool(brackets) and brackets[-1]
    return INDENT * (depth if hanging else depth + 1 + (not brackets))


def _aligned(lines: list[_Line]) -> Iterator[str]:
    """The text of each line; comments behind consecutive lines start in one column."""
    for has_comment, run in groupby(lines, key=lambda line: bool(line.comment)):
        run_lines = list(run)
        width = max(len(line.code) for line in run_lines)
        for line in run_lines:
            yield f"{line.code:{width}}  {line.comment}" if has_comment else line.code
