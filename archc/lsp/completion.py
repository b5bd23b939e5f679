"""What may be written at a place. The words before it decide; the text need not parse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from ..compiler.elaborate import builtins
from ..compiler.elaborate.model import INPUT_DTYPES
from ..compiler.elaborate.module import CONSTANTS, standard_library
from ..dsl.describe import signature, summary
from ..dsl.grammar import NAME
from ..dsl.lexer import DEFINING, NEWLINE, Lexeme
from ..dsl.syntax import CallableDef
from ..dsl.words import STATEMENTS, WORDS
from .analysis import Analysis
from .names import Names

Kind = Literal["definition", "function", "variable", "keyword", "argument", "type", "module"]
CLOSING = {")": "(", "]": "["}


@dataclass(frozen=True, slots=True)
class Proposal:
    """A word, what it is, and a line about it."""

    label: str
    kind: Kind
    detail: str = ""
    doc: str = ""


def complete(analysis: Analysis, names: Names | None, offset: int) -> list[Proposal]:
    """What may stand at a place. `names` are those of the last text that parsed."""
    before = [x for x in analysis.lexemes if x.end <= offset]
    if before and before[-1].kind == NAME and before[-1].end == offset:
        before.pop()  # what is being written
    last = before[-1] if before else None
    known = _callables(names)
    for fits, propose in _PLACES:
        if fits(before, last):
            return list(propose(analysis, known, before, offset))
    raise AssertionError("the last place fits always")


def _callables(names: Names | None) -> dict[str, CallableDef]:
    own = names.definitions.values() if names is not None else ()
    return standard_library() | {d.name: d for d in own if isinstance(d, CallableDef)}


Known = dict[str, CallableDef]
Before = Sequence[Lexeme]


def _functions(_: Analysis, known: Known, __: Before, ___: int) -> Iterator[Proposal]:
    for name, definition in known.items():
        yield Proposal(name, "definition", signature(definition), summary(definition))
    yield from (Proposal(name, "function") for name in sorted(builtins.NAMES))


def _values(analysis: Analysis, known: Known, before: Before, offset: int) -> Iterator[Proposal]:
    """What an expression may begin with; in a call also the keywords that it still lacks."""
    yield from _keywords(known, before)
    yield from (Proposal(name, "variable") for name in _written(analysis.lexemes, offset, known))
    yield from _functions(analysis, known, before, offset)
    yield from (Proposal(name, "keyword") for name in CONSTANTS)


def _statements(analysis: Analysis, known: Known, before: Before, at: int) -> Iterator[Proposal]:
    if _depth(before, "{", "}"):
        yield from (Proposal(word, "keyword") for word in sorted(STATEMENTS))
        yield from (Proposal(name, "variable") for name in _written(analysis.lexemes, at, known))
    else:
        yield from (Proposal(word, "keyword") for word in sorted(DEFINING))


def _types(_: Analysis, __: Known, ___: Before, ____: int) -> Iterator[Proposal]:
    yield from (Proposal(name, "type") for name in INPUT_DTYPES)


def _modules(_: Analysis, __: Known, ___: Before, ____: int) -> Iterator[Proposal]:
    yield Proposal("std", "module", "the standard library")


def _nothing(_: Analysis, __: Known, ___: Before, ____: int) -> Iterator[Proposal]:
    yield from ()


Fits = Callable[[Before, Lexeme | None], bool]
_PLACES: tuple[tuple[Fits, Callable[..., Iterator[Proposal]]], ...] = (
    (lambda before, last: last is not None and last.text in (".", "as"), _nothing),
    (lambda before, last: last is not None and last.text == "use", _modules),
    (lambda before, last: last is not None and last.text == "|>", _functions),
    (lambda before, last: [x.text for x in before[-3:-2]] == ["input"] and _is(last, ":"), _types),
    (lambda before, last: last is None or last.kind == NEWLINE or last.text in "{};", _statements),
    (lambda before, last: True, _values),
)


def _is(lexeme: Lexeme | None, text: str) -> bool:
    return lexeme is not None and lexeme.text == text


def _depth(before: Before, opening: str, closing: str) -> int:
    return sum((x.text == opening) - (x.text == closing) for x in before)


def _keywords(known: Known, before: Before) -> Iterator[Proposal]:
    """The hyperparameters of the call that the place is an argument of."""
    if not before or before[-1].text not in "(,":
        return
    depth, given = 0, set[str]()
    for at in range(len(before) - 1, 0, -1):
        text = before[at].text
        if depth == 0 and text == "(":
            callee = known.get(before[at - 1].text)
            for parameter in callee.hypers or () if callee is not None else ():
                if parameter.name not in given and not parameter.pack:
                    detail = parameter.default.span.text if parameter.default else ""
                    yield Proposal(f"{parameter.name} = ", "argument", detail)
            return
        depth += (text in CLOSING) - (text in CLOSING.values())
        if depth == 0 and text == "=":
            given.add(before[at - 1].text)


def _written(lexemes: Sequence[Lexeme], offset: int, known: Known) -> list[str]:
    """The names in the definition around a place, but for those it only calls."""
    starts = [i for i, x in enumerate(lexemes) if x.text in DEFINING and _at_margin(lexemes, i)]
    first = max((i for i in starts if lexemes[i].start < offset), default=0)
    end = min((i for i in starts if i > first), default=len(lexemes))
    words = (x for x in lexemes[first + 2 : end] if x.kind == NAME)
    ours = (x.text for x in words if not x.start <= offset <= x.end)
    taken = {*known, *builtins.NAMES, *CONSTANTS, *chain(*WORDS.values())}
    return sorted({*ours} - taken)


def _at_margin(lexemes: Sequence[Lexeme], at: int) -> bool:
    return at == 0 or lexemes[at - 1].kind == NEWLINE
