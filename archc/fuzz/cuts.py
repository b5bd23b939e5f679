"""Smaller texts of a program: each cut is a part of the syntax tree with less text in its place.

A text is never printed from a tree. A node knows where it stands, so a cut is a replacement of
characters, and the next tree is read from what is left. Large cuts come first: definitions and runs of
statements, then a statement by what it holds, an expression by a part of it, a number by a smaller one.
Nothing here knows which cuts make sense: most do not, and checking the text finds that out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..dsl import Source, parse
from ..dsl import syntax as syn
from ..dsl.span import Span

SMALL = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True)
class Cut:
    """Characters `start` to `end` are replaced by `text`."""

    start: int
    end: int
    text: str = ""

    def of(self, whole: str) -> str:
        return whole[: self.start] + self.text + whole[self.end :]


def cuts(text: str) -> Iterator[str]:
    """Every smaller text, the most promising first."""
    file = parse(Source("cut.arch", text))
    seen = {text}
    for cut in _all(file, text):
        smaller = cut.of(text)
        if smaller not in seen:
            seen.add(smaller)
            yield smaller


def _all(file: syn.File, text: str) -> Iterator[Cut]:
    yield from _runs(file.items)
    bodies = list(_bodies(file))
    for body in bodies:
        yield from _runs(body)
    for node in syn.walk(file):
        yield from _held(node, text)
    for node in syn.walk(file):
        yield from _lists(node)
    for node in syn.walk(file):
        if isinstance(node, syn.Expr):
            yield from _parts(node)
    yield from _inlined(bodies)
    for node in syn.walk(file):
        if isinstance(node, syn.Number):
            yield from _smaller(node)


# ----------------------------------------------------------------------------------- statements


def _bodies(file: syn.File) -> Iterator[tuple[syn.Stmt, ...]]:
    for node in syn.walk(file):
        for name in ("body", "then", "otherwise"):
            body = getattr(node, name, None)
            if isinstance(body, tuple) and len(body) > 0:
                yield body


def _runs(nodes: tuple[syn.Node, ...]) -> Iterator[Cut]:
    """Halves of a list, quarters, and so on to single nodes; the last ones first: nothing reads them."""
    size = len(nodes)
    while size > 0:
        for end in range(len(nodes), 0, -size):
            run = nodes[max(0, end - size) : end]
            yield Cut(run[0].span.start, run[-1].span.end)
        size //= 2


def _held(node: syn.Node, text: str) -> Iterator[Cut]:
    """A statement that holds others, by these; its options left out."""
    span = node.span
    if isinstance(node, syn.RepeatStmt):
        inner = _text(node.body, text)
        yield Cut(span.start, span.end, f"{node.index} = 0\n{inner}")
        yield Cut(span.start, span.end, inner)
    elif isinstance(node, syn.IfStmt):
        yield Cut(span.start, span.end, _text(node.then, text))
        yield Cut(span.start, span.end, _text(node.otherwise, text))
    elif isinstance(node, syn.ScanStmt) and node.options:
        start, end = node.options[0].span.start, node.options[-1].span.end
        yield Cut(text.rindex("(", 0, start), text.index(")", end) + 1)
    elif isinstance(node, syn.InputStmt) and node.default is not None:
        yield Cut(text.rindex("=", 0, node.default.span.start), node.default.span.end)
    elif isinstance(node, syn.Assign) and node.op == "+=":
        yield Cut(text.index("+=", span.start), text.index("+=", span.start) + 2, "=")


def _text(body: tuple[syn.Stmt, ...], text: str) -> str:
    return text[body[0].span.start : body[-1].span.end] if body else ""


# ----------------------------------------------------------------------------------- expressions


def _lists(node: syn.Node) -> Iterator[Cut]:
    """Members left out: arguments, stages of a pipeline, facts of time, states, entries."""
    if isinstance(node, syn.Pipeline):
        behind = [node.value.span.end, *(stage.span.end for stage in node.stages)]
        for i in range(len(node.stages), 0, -1):
            yield Cut(behind[i - 1], behind[i])
    members: tuple[Span, ...] = ()
    if isinstance(node, syn.Call):
        members = tuple(a.span for a in node.arguments)
    elif isinstance(node, syn.ListExpr | syn.Index):
        members = tuple(i.span for i in node.items)
    elif isinstance(node, syn.ScanStmt):
        members = tuple(t.span.to(e.span) for t, e in node.states)
    for i, member in enumerate(members):
        if len(members) == 1:
            yield Cut(member.start, member.end)
        elif i > 0:
            yield Cut(members[i - 1].end, member.end)
        else:
            yield Cut(member.start, members[1].start)


def _parts(node: syn.Expr) -> Iterator[Cut]:
    """An expression by one of those it is made of, the nearest first."""
    span = node.span
    if isinstance(node, syn.Name | syn.Number | syn.String):
        return
    for part in list(syn.walk(node))[1:]:
        if isinstance(part, syn.Expr) and part.span.text != span.text:
            for words in (part.span.text, f"({part.span.text})"):
                yield Cut(span.start, span.end, words)


def _inlined(bodies: list[tuple[syn.Stmt, ...]]) -> Iterator[Cut]:
    """A name by what it was given, and a value by one that was given before it."""
    for body in bodies:
        given: list[str] = []
        for statement in body:
            names = [n for n in syn.walk(statement) if isinstance(n, syn.Name)]
            for name in names if given else ():
                if name.name in given:
                    at = given.index(name.name)
                    for other in given[:at]:
                        yield Cut(name.span.start, name.span.end, other)
            if isinstance(statement, syn.Assign | syn.OutputStmt):
                yield from _brackets(statement)
            given += _given(statement)


def _given(statement: syn.Stmt) -> list[str]:
    if isinstance(statement, syn.Assign):
        return [target.name for target in statement.targets]
    return [statement.name] if isinstance(statement, syn.InputStmt) else []


def _brackets(statement: syn.Assign | syn.OutputStmt) -> Iterator[Cut]:
    """The axes on the left."""
    if isinstance(statement, syn.OutputStmt):
        return
    for target in statement.targets:
        if target.brackets:
            yield Cut(target.span.start, target.span.end, target.name)


def _smaller(node: syn.Number) -> Iterator[Cut]:
    if isinstance(node.value, float):
        choices = [text for text in ("1.0", "0.5") if float(text) != node.value]
        choices = [] if node.text in ("1.0", "0.5") else choices
    else:
        choices = [str(n) for n in SMALL if n < node.value]
    for text in choices:
        yield Cut(node.span.start, node.span.end, text)
