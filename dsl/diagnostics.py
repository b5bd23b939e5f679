"""What a person sees when something is wrong: facts in a class, words in templates, one renderer.

A mistake of the user is an `ArchError` subclass of `errors/`; its class attributes are the words
(`title`, `labels`, `help`), its fields the facts. `Diagnostics` collects several in one run.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from inspect import get_annotations
from typing import Any, ClassVar, dataclass_transform
from unicodedata import category

from .span import Span

CATALOGUE: dict[str, type[ArchError]] = {}


@dataclass_transform(kw_only_default=True, field_specifiers=())
class _Facts(Exception):
    """Annotations of a subclass are keyword-only fields, as in a dataclass.

    The decorator itself, run for a hundred classes at import, takes longer than checking a file.
    """

    fact_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = (name for name, kind in get_annotations(cls).items() if "ClassVar" not in str(kind))
        cls.fact_names = (*cls.fact_names, *own)

    def __init__(self, **facts: Any) -> None:
        missing = [n for n in self.fact_names if n not in facts and not hasattr(type(self), n)]
        unknown = sorted(facts.keys() - set(self.fact_names))
        if missing or unknown:
            raise TypeError(f"{type(self).__name__}: facts {missing} missing, {unknown} unknown")
        super().__init__()
        self.__dict__.update(facts)

    @property
    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.fact_names}


class ArchError(_Facts):
    """A mistake in the user's input. Subclasses declare `id`, `title` and facts as annotations.

    `span` is where the mistake is used (none for a file or an option); any other fact that is a
    `Span` becomes a second label when `labels` has words for it. In templates `{fact}` is replaced.
    `calls` are the calls, innermost first, inside which the mistake was met.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    labels: ClassVar[dict[str, str]] = {}
    help: ClassVar[str] = ""

    span: Span | None = None
    calls: tuple[Span, ...] = ()

    def __init_subclass__(cls, *, id: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.id = id
        if id in CATALOGUE:
            raise TypeError(f"error id {id!r} is declared twice")
        CATALOGUE[id] = cls

    @property
    def message(self) -> str:
        return self.title.format(**self.facts)

    def help_text(self) -> str:
        """The advice. A subclass whose advice depends on its facts overrides this."""
        return self.help.format(**self.facts)

    def annotations(self) -> Iterator[tuple[Span, str]]:
        """(span, words) pairs, the primary one first.

        A mistake met inside the standard library is shown first where the user's text called it.
        """
        outside = [s for s in self.calls if not s.source.name.startswith("std/")]
        if self.span is not None and self.span.source.name.startswith("std/") and outside:
            yield outside[0], "in this call"
        if self.span is not None:
            yield self.span, self.labels.get("span", "").format(**self.facts)
        elif outside:
            yield outside[0], "in this call"
        for name, words in self.labels.items():
            span = self.facts.get(name)
            if name != "span" and isinstance(span, Span):
                yield span, words.format(**self.facts)

    def to_json(self) -> dict[str, Any]:
        """What `render` shows, as data; its place is that of the first label."""
        labels = [{**_place(span), "text": words} for span, words in self.annotations()]
        place = labels[0] if labels else {}
        return {
            "id": self.id,
            "message": self.message,
            "help": self.help_text(),
            "notes": list(getattr(self, "__notes__", ())),
            **{key: place.get(key) for key in ("file", "line", "column", "end")},
            "labels": labels,
        }

    def __str__(self) -> str:
        return render(self)


def _place(span: Span) -> dict[str, Any]:
    """Lines and columns from 1; the end is the place behind the last character."""
    line, column = span.source.position(span.end)
    end = {"line": line, "column": column}
    return {"file": span.source.name, "line": span.line, "column": span.column, "end": end}


class InternalError(Exception):
    """A broken invariant of archc itself: a bug of ours, exit code 70."""


class Diagnostics(Exception):
    """Several mistakes found in one run."""

    def __init__(self, errors: Iterable[ArchError]) -> None:
        self.errors = tuple(errors)
        super().__init__(*self.errors)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.errors))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` did you mean X?` for a close name, empty when nothing is close."""
    candidates = sorted(set(known))
    for candidate in candidates:
        if candidate.lower() == name.lower():
            return f"did you mean `{candidate}`?"
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else ""


LONGEST_WORD, LONGEST_MESSAGE, WIDEST_LINE = 300, 2000, 160  # characters of a file that are shown
_UNSEEN = frozenset("Cc Cf Co Cs Zl Zp".split())
_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


def printable(text: str) -> str:
    """`text` as a terminal may show it: a file's control characters would be obeyed."""
    if text.isprintable():
        return text
    return "".join("\ufffd" if c != "\n" and category(c) in _UNSEEN else c for c in text)


def _words(text: str) -> str:
    """A message that shows of what a file says no more than helps."""
    text = _LONG_WORD.sub(lambda word: f"{word[0][: LONGEST_WORD // 2]}…{word[0][-20:]}", text)
    return printable(text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…")


def _paint(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m"


def _plain(text: str, _: str) -> str:
    return text


Paint = Callable[[str, str], str]  # (text, ANSI codes)


def render(error: ArchError, *, color: bool = False) -> str:
    """The screen: id and message, source lines with carets, help, notes (`add_note`)."""
    paint = _paint if color else _plain
    out = [f"{paint(f'error[{error.id}]', '1;31')}: {paint(_words(error.message), '1')}"]
    for index, (span, words) in enumerate(error.annotations()):
        out += snippet(span, _words(words), "^" if index == 0 else "-", paint)
    advice = _words(error.help_text())
    if advice:
        out += [f"  {paint('help', '1;36')}: {line}" for line in advice.split("\n")]
    for note in getattr(error, "__notes__", ()):
        out.append(f"  {paint('note', '1;36')}: {_words(note)}")
    return "\n".join(out)


def snippet(span: Span, words: str, mark: str, paint: Paint = _plain) -> list[str]:
    """A span's place, its first line and under it `mark`s with `words`. Of a wide line a part."""
    line, column = span.line, span.column
    text, column = _part(span.source.line(line).replace("\t", " "), column)
    width = max(1, min(len(span.text.split("\n")[0]), len(text) - column + 1))
    number = str(line)
    margin = " " * len(number)
    under = " " * (column - 1) + paint(mark * width, "1;31" if mark == "^" else "1;34")
    return [
        f"{margin}{paint('-->', '1;34')} {printable(str(span))}",
        f"{margin} {paint('|', '1;34')}",
        f"{number} {paint('|', '1;34')} {text}",
        f"{margin} {paint('|', '1;34')} {under}{' ' + words if words else ''}",
    ]


def _part(text: str, column: int) -> tuple[str, int]:
    """What is shown of a line: all of it, or what lies around a column, which moves with it."""
    if len(text) > WIDEST_LINE:
        start = max(0, min(column - WIDEST_LINE // 2, len(text) - WIDEST_LINE))
        end = start + WIDEST_LINE
        head, tail = "…" if start else "", "…" if end < len(text) else ""
        text, column = f"{head}{text[start:end]}{tail}", column - start + len(head)
    return printable(text), column
