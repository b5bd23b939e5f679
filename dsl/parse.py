"""Text to syntax tree: an LALR(1) automaton over the table of `grammar.py`.

A keyword is one only where the table can take it. After a mistake the automaton goes back to where
the statement began and reads on behind it, so that one run reports the mistakes of several
statements. Deep trees are refused here, once, so that everything after may recurse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .build import RULES, token_value
from .diagnostics import ArchError, Diagnostics
from .errors import BrokenLine, NestedTooDeep, SourceUnreadable
from .grammar import END, NAME, STOP, Rule, grammar
from .lexer import DEEPEST_NESTING, MOST_ERRORS, Lexeme, tokens
from .mistakes import Scene, explain
from .span import Source, Span
from .syntax import File, Node


def parse_file(path: str | Path) -> File:
    """Read and parse a file. Raises `Diagnostics`."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Diagnostics([SourceUnreadable(path=str(path), reason=reason)]) from None
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
        raise Diagnostics([SourceUnreadable(path=str(path), reason=reason)]) from None
    return parse(Source(str(path), text))


def parse(source: Source) -> File:
    """The syntax tree of `source`. Raises `Diagnostics` with the mistakes found, in text order."""
    in_words: list[ArchError] = []
    in_grammar: list[ArchError] = []
    try:
        tree = _Automaton(source, tokens(source, in_words), in_grammar).run()
        if tree is not None and not in_words + in_grammar:
            _check_depth(tree)
            return tree
    except (SourceUnreadable, NestedTooDeep) as error:
        raise Diagnostics([error]) from None
    raise Diagnostics(_told(in_words, in_grammar))


def _told(in_words: list[ArchError], in_grammar: list[ArchError]) -> list[ArchError]:
    """All mistakes in text order, but only the first cause where a line has one of each kind."""
    lines = {error.span.line for error in in_words if error.span}
    rest = [error for error in in_grammar if error.span and error.span.line not in lines]
    return sorted([*in_words, *rest], key=lambda error: error.span.start if error.span else 0)


class _Automaton:
    """The stacks of an LALR parser, and where the statement under way began in them.

    `states` has one more entry than `values` and `extents` (the characters each value spans).
    `statements` has one entry per open body: (height of `states`, index of the first token), or
    None between statements.
    """

    def __init__(self, source: Source, lexemes: list[Lexeme], errors: list[ArchError]) -> None:
        self.source, self.lexemes, self.errors = source, lexemes, errors
        self.grammar = grammar()
        self.states = [self.grammar.start]
        self.values: list[Any] = []
        self.extents: list[tuple[int, int]] = []
        self.statements: list[tuple[int, int] | None] = [None]

    def run(self) -> File | None:
        """The tree; without meaning when a mistake was reported, none when there were too many."""
        i = 0
        while i < len(self.lexemes):
            try:
                self._feed(i)
                i += 1
            except ArchError as error:
                self.errors.append(error)
                if len(self.errors) >= MOST_ERRORS:
                    return None
                self._forget_statement()
                i = self._next_statement(i)
                if isinstance(error, BrokenLine) and error.where == "end":
                    i = self._next_statement(i)  # the next line was to be the rest of this one
        return self.values[-1] if self.values else None

    def _feed(self, i: int) -> None:
        """Reduce as far as token `i` asks for, then shift it."""
        lexeme, actions = self.lexemes[i], self.grammar.actions
        is_keyword = lexeme.kind == NAME and lexeme.text in actions[self.states[-1]]
        kind = lexeme.text if is_keyword else lexeme.kind
        rules, gotos, states = self.grammar.rules, self.grammar.gotos, self.states
        while (action := actions[states[-1]].get(kind)) is None or action < 0:
            if action is None:
                raise explain(self._scene(i))
            rule = rules[~action]
            if rule.renames:
                states[-1] = gotos[states[-2]][rule.name]
            else:
                self._reduce(rule, lexeme.start)
            if states[-1] == self.grammar.accept:
                return
        self._note_statement(kind, i)
        self.states.append(action)
        self.values.append(token_value(lexeme, self.source))
        self.extents.append((lexeme.start, lexeme.end))

    def _reduce(self, rule: Rule, here: int) -> None:
        """Replace the values of a rule by what its row makes of them."""
        cut = len(self.values) - rule.size
        start, end = (self.extents[cut][0], self.extents[-1][1]) if rule.size else (here, here)
        children = rule.select(self.values[cut:])
        del self.states[cut + 1 :], self.values[cut:], self.extents[cut:]
        if rule.inline:
            value: Any = children
        elif rule.transparent and len(children) == 1:
            value = children[0]
        else:
            value = RULES[rule.name](Span(self.source, start, end), *children)
        self.states.append(self.grammar.gotos[self.states[-1]][rule.name])
        self.values.append(value)
        self.extents.append((start, end))

    def _note_statement(self, kind: str, i: int) -> None:
        if self.statements[-1] is None:
            self.statements[-1] = (len(self.states), i)
        if kind == "{":
            self.statements.append(None)
        elif kind == "}":
            self.statements.pop()
        elif kind == END:
            self.statements[-1] = None

    def _forget_statement(self) -> None:
        if self.statements[-1] is not None:
            height, _ = self.statements[-1]
            del self.states[height:], self.values[height - 1 :], self.extents[height - 1 :]
            self.statements[-1] = None

    def _next_statement(self, i: int) -> int:
        """The index behind the end of the statement that token `i` belongs to."""
        depth = 0
        while self.lexemes[i].kind != STOP:
            kind = self.lexemes[i].kind
            if depth == 0 and kind in (END, "}"):
                return i + (kind == END)
            depth += (kind == "{") - (kind == "}")
            i += 1
        return i

    def _scene(self, i: int) -> Scene:
        under_way = self.statements[-1]
        first = under_way[1] if under_way is not None else i
        kinds = self.grammar.actions[self.states[-1]]
        accepted = frozenset(kind for kind in kinds if self._accepts(kind))
        return Scene(self.source, self.lexemes, i, first, accepted)

    def _accepts(self, kind: str) -> bool:
        """Whether a token of this kind could be shifted, after the reductions it asks for."""
        states = list(self.states)
        while (action := self.grammar.actions[states[-1]].get(kind)) is not None and action < 0:
            rule = self.grammar.rules[~action]
            del states[len(states) - rule.size :]
            states.append(self.grammar.gotos[states[-1]][rule.name])
            if states[-1] == self.grammar.accept:
                return True
        return action is not None


def _check_depth(tree: Node) -> None:
    pending: list[tuple[object, int]] = [(tree, 0)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, tuple):
            pending += [(member, depth) for member in item]
        elif isinstance(item, Node):
            if depth > DEEPEST_NESTING:
                raise NestedTooDeep(span=item.span, limit=DEEPEST_NESTING)
            pending += [(getattr(item, name), depth + 1) for name in item.__dataclass_fields__]
