"""Where operations stand in a model's text: definition, statement and operand of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from .compiler.elaborate.module import standard_library
from .compiler.ir.graph import Node
from .dsl import syntax
from .dsl.span import Span

if TYPE_CHECKING:
    from .api import Model


@dataclass(frozen=True, slots=True)
class Place:
    """The statement that an operation was written in."""

    text: str = ""
    at: str = ""
    calls: tuple[str, ...] = ()  # the calls that led there, from the model on
    sites: tuple[str, ...] = ()


@dataclass(slots=True)
class Texts:
    """The definitions that a model is written in, found again from the spans of its nodes."""

    model: Model
    definitions: tuple[syntax.Definition, ...] = field(init=False)
    _chains: dict[tuple[Span, ...], tuple[str, ...]] = field(default_factory=dict, init=False)
    _found: dict[Span, tuple[syntax.Node, ...]] = field(default_factory=dict, init=False)
    _nodes: dict[Span, tuple[syntax.Node, ...]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        module = self.model.module
        tables = (module.models, module.definitions, standard_library())
        self.definitions = tuple(d for table in tables for d in table.values())

    def chain(self, node: Node) -> tuple[str, ...]:
        """The blocks and functions that were called, outermost first, without the model."""
        if node.spans not in self._chains:
            names = tuple(self._name(span) for span in reversed(node.spans[:-1]))
            self._chains[node.spans] = names
        return self._chains[node.spans]

    def place(self, node: Node) -> Place:
        if not node.spans:
            return Place()
        span = node.spans[0]
        statement = self.statement(span)
        calls = tuple(reversed(node.spans[1:]))
        text = _words(statement.span if statement else span).removeprefix("return ")
        if isinstance(statement, syntax.RepeatStmt) and statement.until is not None:
            text = f"until {_words(statement.until.span)}"  # its body has statements of its own
        return Place(text, _at(span), tuple(map(_words, calls)), tuple(map(_at, calls)))

    def operand(self, node: Node, position: int) -> str:
        """How the text writes an operand; empty where it is a plain number or nothing of its own."""
        if not node.spans:
            return ""
        for found in reversed(self._around(node.spans[0])):
            if isinstance(found, syntax.Binary):
                side = (found.left, found.right)[position] if position < 2 else found
                literal = not any(isinstance(n, syntax.Name) for n in syntax.walk(side))
                return "" if literal else _words(side.span)
        return ""

    def statement(self, span: Span) -> syntax.Node | None:
        """The smallest statement or lambda around a span."""
        around = [n for n in self._around(span) if isinstance(n, syntax.Stmt | syntax.Lambda)]
        return around[-1] if around else None

    def like(self, text: str, least: float) -> Place | None:
        """The model's statement that a text is most like, if it is that much alike."""
        best, most = None, least
        for statement in syntax.walk(self.model.definition):
            if isinstance(statement, syntax.Assign | syntax.OutputStmt):
                shown = _words(statement.span)
                alike = SequenceMatcher(None, text, shown)
                if alike.real_quick_ratio() <= most or alike.quick_ratio() <= most:
                    continue  # these are never below the ratio
                if alike.ratio() > most:
                    best, most = Place(shown, _at(statement.span)), alike.ratio()
        return best

    def _name(self, span: Span) -> str:
        around = self._around(span)
        first = around[0] if around else None
        return first.name if isinstance(first, syntax.CallableDef) else "(lambda)"

    def _around(self, span: Span) -> tuple[syntax.Node, ...]:
        """The definition around a span and the nodes in it, from the outside in."""
        if span not in self._found:
            self._found[span] = tuple(self._look(span))
        return self._found[span]

    def _look(self, span: Span) -> Iterator[syntax.Node]:
        for definition in self.definitions:
            if _contains(definition.span, span):
                inside = [n for n in self._nodes_of(definition) if _contains(n.span, span)]
                yield from sorted(inside, key=lambda n: n.span.start - n.span.end)
                return

    def _nodes_of(self, definition: syntax.Definition) -> tuple[syntax.Node, ...]:
        if definition.span not in self._nodes:
            self._nodes[definition.span] = tuple(syntax.walk(definition))
        return self._nodes[definition.span]


def _contains(outer: Span, inner: Span) -> bool:
    same = outer.source.name == inner.source.name
    return same and outer.start <= inner.start and inner.end <= outer.end


def _words(span: Span) -> str:
    return " ".join(span.text.split())


def _at(span: Span) -> str:
    return f"{span.source.name}:{span.line}"
