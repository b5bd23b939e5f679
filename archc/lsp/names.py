"""Which words of a file mean the same thing.

A name belongs to the definition it stands in: what is assigned, declared or taken there, in every role
(a hyperparameter that is also an axis is one name). The parameters of a lambda and the variable of a
comprehension are names of their own. Any other word is a definition of the file or of the library. An
argument's keyword is a name of the definition that is called, and a preset's one of its model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeGuard

from ..compiler.elaborate.module import standard_library
from ..dsl import syntax
from ..dsl.grammar import NAME
from ..dsl.lexer import Lexeme

Owner = syntax.CallableDef | syntax.ModelDef | syntax.Lambda | syntax.ListExpr


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """What `start` to `end` of the text may name. `binders` are the places of the words that bind."""

    owner: Owner
    parent: Scope | None
    binders: dict[str, list[int]]

    def holds(self, start: int) -> bool:
        return self.owner.span.start <= start < self.owner.span.end


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name in one scope; or a definition, whose scope is none."""

    name: str
    scope: Scope | None = None
    library: bool = False


class Names:
    """The names of a file that parses."""

    def __init__(self, file: syntax.File, lexemes: Sequence[Lexeme]) -> None:
        self.file = file
        self.words = [x for x in lexemes if x.kind == NAME]
        self.before = {b.start: a for a, b in pairwise(lexemes)}
        self.definitions = {
            item.name: item
            for item in file.items
            if isinstance(item, syntax.CallableDef | syntax.ModelDef | syntax.PresetDef)
        }

    @cached_property
    def scopes(self) -> dict[int, Scope]:
        """By the start of the text that owns it, outer ones first."""
        found: dict[int, Scope] = {}
        for item in self.definitions.values():
            if not isinstance(item, syntax.PresetDef):
                outer = Scope(item, None, self._bound(item))
                found[item.span.start] = outer
                for node in syntax.walk(item):
                    if isinstance(node, syntax.Lambda) or _is_comprehension(node):
                        around = _innermost(found.values(), node.span.start)
                        found[node.span.start] = Scope(node, around, self._bound(node))
        return found

    @cached_property
    def symbols(self) -> dict[int, Symbol]:
        """The meaning of each word that has one, by its place."""
        keywords = dict(self._keywords())
        found = {}
        for word in self.words:
            given = word.start in keywords
            symbol = keywords[word.start] if given else self._meaning(word)
            if symbol is not None:
                found[word.start] = symbol
        return found

    def occurrences(self, symbol: Symbol) -> list[Lexeme]:
        """All words that mean it, in the order of the text."""
        return [word for word in self.words if self.symbols.get(word.start) == symbol]

    def binding(self, symbol: Symbol, start: int) -> Lexeme | None:
        """The word that gives the name its value where it stands at `start`: the last one before it."""
        if symbol.scope is None:
            item = self.definitions.get(symbol.name)
            places = [] if item is None else [self._word_in(item, symbol.name)]
        else:
            places = symbol.scope.binders[symbol.name]
        at = max((p for p in places if p < start), default=min(places, default=None))
        return next((word for word in self.words if word.start == at), None)

    def visible(self, offset: int) -> set[str]:
        """The names that a place may use, besides definitions."""
        scope, found = _innermost(self.scopes.values(), offset), set[str]()
        while scope is not None:
            found |= scope.binders.keys()
            scope = scope.parent
        return found

    # ---- how words get their meaning

    def _meaning(self, word: Lexeme) -> Symbol | None:
        before = self.before.get(word.start)
        if before is not None and before.text in (".", "as"):
            return None  # a weight's path
        scope = _innermost(self.scopes.values(), word.start)
        while scope is not None and word.text not in scope.binders:
            scope = scope.parent
        return Symbol(word.text, scope) if scope is not None else self._definition(word.text)

    def _definition(self, name: str) -> Symbol | None:
        if name in self.definitions:
            return Symbol(name)
        return Symbol(name, library=True) if name in standard_library() else None

    def _keywords(self) -> Iterator[tuple[int, Symbol | None]]:
        """The keywords of arguments, and the hyperparameters that a checkpoint's lines set."""
        for node in syntax.walk(self.file):
            if isinstance(node, syntax.Stage | syntax.Call):
                call = node.call if isinstance(node, syntax.Stage) else node
                if isinstance(call, syntax.Call) and isinstance(call.function, syntax.Name):
                    for argument in call.arguments:
                        if argument.name is not None and not argument.axis:
                            symbol = self._inside(call.function.name, argument.name)
                            yield argument.span.start, symbol
            elif isinstance(node, syntax.CheckpointDef):
                for line in node.lines:
                    if isinstance(line, syntax.ConfigLine):
                        yield line.span.start, self._inside(node.model, line.name)

    def _inside(self, definition: str, name: str) -> Symbol | None:
        """A name of another definition of this file."""
        item = self.definitions.get(definition)
        scope = self.scopes.get(item.span.start) if item is not None else None
        return Symbol(name, scope) if scope is not None and name in scope.binders else None

    def _bound(self, owner: syntax.Node) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for node in _own(owner):
            for name in _names_bound_by(node, owner):
                found.setdefault(name, []).append(self._word_in(node, name))
        return found

    def _word_in(self, node: syntax.Node, name: str) -> int:
        """Where the text of a node first says a name, behind its keyword."""
        span = node.span
        starts = (w.start for w in self.words if span.start <= w.start and w.text == name)
        return next((start for start in starts if start < span.end), span.start)


def _innermost(scopes: Iterable[Scope], start: int) -> Scope | None:
    holding = [s for s in scopes if s.holds(start)]
    return max(holding, key=lambda s: s.owner.span.start, default=None)


def _is_comprehension(node: syntax.Node) -> TypeGuard[syntax.ListExpr]:
    return isinstance(node, syntax.ListExpr) and node.variable is not None


def _own(owner: syntax.Node) -> Iterator[syntax.Node]:
    """The nodes of a scope that are in no scope inside it."""
    inner_end = -1
    for node in syntax.walk(owner):
        if node is owner or node.span.start >= inner_end:
            yield node
            if node is not owner and (isinstance(node, syntax.Lambda) or _is_comprehension(node)):
                inner_end = node.span.end


def _names_bound_by(node: syntax.Node, owner: syntax.Node) -> tuple[str, ...]:
    match node:
        case syntax.HyperParam() | syntax.InputParam() | syntax.Target() | syntax.AxisDecl():
            return (node.name,) if node.name else ()
        case syntax.WeightStmt() | syntax.ConstStmt() | syntax.BankStmt() | syntax.SharedStmt():
            return (node.name,)
        case syntax.InputStmt() | syntax.OutputStmt():
            return (node.name,)
        case syntax.RepeatStmt():
            return (node.index,)
        case syntax.AxisGroup():
            return node.names
        case syntax.Argument() if node.axis and node.name is not None:
            return (node.name,)
        case syntax.ListExpr() if node is owner and node.variable is not None:
            return (node.variable,)
    return ()
