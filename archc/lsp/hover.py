"""What is said of the word under the cursor: what it calls, the value it has, what its expression costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..compiler.cost import weights_where, work_where
from ..compiler.elaborate import builtins, numbers
from ..compiler.elaborate.labels import AxisSize
from ..compiler.elaborate.module import standard_library
from ..compiler.elaborate.values import Builtin, PerLayer, Template, Tensor
from ..compiler.ir.graph import Node, Program
from ..dsl.describe import signature
from ..dsl.dims import Dim
from ..dsl.lexer import Lexeme
from ..dsl.syntax import Call, CallableDef, Expr, File, Pipeline, Stage, walk
from ..dsl.words import WORDS
from .analysis import Analysis, Extent

MOST_VALUES = 3  # of an expression that takes several


def hover(analysis: Analysis, offset: int) -> tuple[Lexeme, str] | None:
    """The word at a place and what is known of it, as Markdown; none where nothing is."""
    word = analysis.word(offset)
    if word is None or analysis.file is None:
        return None
    parts = [*_definition(analysis, word), *_value(analysis, word), *_cost(analysis, word)]
    return (word, "\n\n".join(parts)) if parts else None


def _definition(analysis: Analysis, word: Lexeme) -> Iterator[str]:
    """Signature and docstring of a definition, or that the word is the language's own."""
    symbol = analysis.names.symbols.get(word.start) if analysis.names else None
    if symbol is not None and symbol.scope is None:
        own = analysis.names.definitions if analysis.names else {}
        item = standard_library().get(symbol.name) if symbol.library else own.get(symbol.name)
        if isinstance(item, CallableDef):
            yield _code(signature(item))
        if item is not None and item.doc:
            yield item.doc
    elif symbol is None and word.text in builtins.NAMES:
        yield f"`{word.text}` is a function of the language"


def _value(analysis: Analysis, word: Lexeme) -> Iterator[str]:
    """The values of the text that the word begins, with the sizes at the defaults."""
    extent = _extent(analysis, word)
    values = analysis.values.get(extent, ()) if extent else ()
    values = [v for v in values if not isinstance(v, Template | Builtin)]
    sizes = _sizes(analysis)
    told = list(dict.fromkeys(words for value in values if (words := described(value, sizes))))
    if told:
        more = [f"# and {len(told) - MOST_VALUES} more"] if len(told) > MOST_VALUES else []
        yield _code("\n".join([*told[:MOST_VALUES], *more]))


def _extent(analysis: Analysis, word: Lexeme) -> Extent | None:
    """The text that has the values to show: the stage or call that the word begins, what it declares
    behind a keyword, else the smallest text that it begins."""
    text = _applied(analysis.file, word) if analysis.file else None
    if text is not None:
        return text.span.start, text.span.end
    names, start = analysis.names, word.start
    before = names.before.get(start) if names is not None else None
    if before is not None and before.text in WORDS["declaration"]:
        start = before.start
    starting = [e for e in analysis.values if e[0] == start and e[1] >= word.end]
    return min(starting, key=lambda e: e[1], default=None)


def _cost(analysis: Analysis, word: Lexeme) -> Iterator[str]:
    """Operations and weights of the call or the stage that the word begins."""
    text = _applied(analysis.file, word) if analysis.file else None
    program = next(iter(analysis.programs.values()), None)
    if text is None or program is None:
        return

    def inside(node: Node) -> bool:
        spans = (s for origin in node.origins for s in origin.spans)
        start, end = text.span.start, text.span.end
        return any(s.source is analysis.source and start <= s.start < s.end <= end for s in spans)

    work, weights = work_where(program, inside), weights_where(program, inside)
    facts = [
        f"{weights:,} weights" if weights else "",
        f"{work.flops} flops" if work.flops != Dim() else "",
        f"{work.elementwise} other operations" if work.elementwise != Dim() else "",
    ]
    if any(facts):
        yield f"in one call of {_named(program)}: {', '.join(filter(None, facts))}"


def _named(program: Program) -> str:
    return f"`{program.name}` at its defaults"


def _applied(file: File, word: Lexeme) -> Expr | Stage | None:
    """The stage of a pipeline, or the call, whose function the word is."""
    for node in walk(file):
        if isinstance(node, Pipeline):
            for stage in node.stages:
                if stage.call.span.start == word.start:
                    return stage
        elif isinstance(node, Call) and node.function.span.start == word.start:
            return node
    return None


def _sizes(analysis: Analysis) -> dict[str, int]:
    return next((dict(p.sizes) for p in analysis.programs.values()), {})


def described(value: Any, sizes: dict[str, int]) -> str:
    """A value in one line: `float[b, s, d = 4096]`, `32`, or what kind of thing it is."""
    if isinstance(value, Tensor):
        axes = (_axis(label.name, axis.size, sizes) for label, axis in value.axes)
        return f"{value.dtype}[{', '.join(axes)}]"
    if isinstance(value, PerLayer):
        return f"{', '.join(described(v, sizes) for v in value.values)}  # by layer"
    if isinstance(value, AxisSize):
        value = value.size
    if isinstance(value, Dim):
        known = value.substitute(sizes)
        return str(known) if str(known) == str(value) else f"{value} = {known}"
    if value is None or isinstance(value, bool | float | str):
        return numbers.describe(value).removeprefix("the number ").removeprefix("the string ")
    return f"# {numbers.describe(value)}"


def _axis(name: str, size: Dim, sizes: dict[str, int]) -> str:
    known = size.substitute(sizes)
    return name if str(known) == name else f"{name} = {known}"


def _code(text: str) -> str:
    return f"```arch\n{text}\n```"
