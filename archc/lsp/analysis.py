"""One version of one text: its tokens, its tree, its mistakes, and the values that its expressions took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..checking import check
from ..compiler.elaborate import Module, module_of
from ..compiler.ir.graph import Program
from ..dsl import Source, parse
from ..dsl.diagnostics import ArchError, Diagnostics
from ..dsl.lexer import COMMENT, NEWLINE, Lexeme, scan
from ..dsl.syntax import File, Node
from .names import Names

Extent = tuple[int, int]


@dataclass(frozen=True)
class Analysis:
    """A text with what is known of it. `file` is none where it does not parse, `module` where a
    definition is given twice. `values` has each value that the text between two offsets took, at the
    defaults of its models: several of a block that is applied twice, or of layers of several kinds.
    """

    source: Source
    lexemes: tuple[Lexeme, ...]
    file: File | None = None
    module: Module | None = None
    programs: Mapping[str, Program] = field(default_factory=dict)
    values: Mapping[Extent, list[Any]] = field(default_factory=dict)
    errors: tuple[ArchError, ...] = ()

    @cached_property
    def names(self) -> Names | None:
        return Names(self.file, self.lexemes) if self.file is not None else None

    def word(self, offset: int) -> Lexeme | None:
        """The token that a place is in or behind."""
        at = (x for x in self.lexemes if x.start <= offset <= x.end and x.kind != NEWLINE)
        return max(at, key=lambda x: (x.text.isidentifier(), x.start), default=None)


def analyse(source: Source, presets: bool = True) -> Analysis:
    """Reads a text. Every mistake is in `errors`, those of presets if they are wanted; none is raised."""
    try:
        lexemes = tuple(x for x in scan(source, []) if x.kind != COMMENT)
    except ArchError as error:
        return Analysis(source, (), errors=(error,))
    try:
        file = parse(source)
    except Diagnostics as found:
        return Analysis(source, lexemes, errors=found.errors)
    values: dict[Extent, list[Any]] = {}

    def watch(text: Node, value: Any) -> None:
        if text.span.source is source:
            values.setdefault((text.span.start, text.span.end), []).append(value)

    try:
        module = module_of(file)
        checked = check(module, watch=watch, presets=presets)
    except Diagnostics as found:
        return Analysis(source, lexemes, file, errors=found.errors)
    except ArchError as error:
        return Analysis(source, lexemes, file, errors=(error,))
    return Analysis(source, lexemes, file, module, checked.programs, values, checked.errors)
