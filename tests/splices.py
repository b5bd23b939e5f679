"""Files made from the examples by grafting: a piece of one text in the place of a like piece of another.

A piece is the text of a node of the syntax tree, so that most of what is made parses, and the mistakes
lie deeper. `examine` holds for any text whatever: it is compiled, or refused by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

from archc.compiler.causality import elaborate_proved
from archc.compiler.elaborate import Request, module_of, the_model
from archc.dsl import Source, format_file, parse, syntax
from archc.dsl.diagnostics import ArchError, Diagnostics

EXAMPLES = Path(__file__).parent.parent / "examples"
WORDS = (
    "x y s d b 0 1 -1 2 0.5 1e308 9223372036854775807 inf none true false pi ... .. |> -> ?? += ** // %"
    ' ( ) [ ] { } , : ; . = < "text" if else for in as new repeat scan until time decode input output'
    " weight const bank shared return causal size index slot sum concat split where 10**9 [d] [s: 4]"
    " [d -> e] [...] |"
).split()
PLAIN = "model block fn preset checkpoint use weight buffer const input".split()
Choose = Callable[[int], int]  # a number below the given one


@cache
def texts() -> tuple[str, ...]:
    """The smaller examples: a check of each takes a moment."""
    files = sorted(EXAMPLES.glob("*.arch"), key=lambda path: path.stat().st_size)
    return tuple(path.read_text(encoding="utf-8") for path in files[:24])


@cache
def pieces(text: str) -> tuple[tuple[type, int, int], ...]:
    """(kind, start, end) of the nodes of a text, expressions as one kind."""
    return tuple(
        (syntax.Expr if isinstance(node, syntax.Expr) else type(node), node.span.start, node.span.end)
        for node in syntax.walk(parse(Source("example.arch", text)))
        if node.span.text
    )  # fmt: skip


@cache
def grafts() -> dict[type, tuple[str, ...]]:
    found: dict[type, dict[str, None]] = defaultdict(dict)
    for text in texts():
        for kind, start, end in pieces(text):
            if end - start < 200:
                found[kind][text[start:end]] = None
    return {kind: tuple(written) for kind, written in found.items()}


def grafted(choose: Choose) -> str:
    """An example with up to three of its pieces exchanged, left out, doubled or made a word."""
    text = texts()[choose(len(texts()))]
    places = pieces(text)
    cuts: list[tuple[int, int, str]] = []
    for _ in range(1 + choose(3)):
        kind, start, end = places[choose(len(places))]
        known = grafts().get(kind, ("",))
        piece = (
            known[choose(len(known))],
            "",
            f"{text[start:end]} {text[start:end]}",
            WORDS[choose(len(WORDS))],
            known[choose(len(known))],
        )[choose(5)]
        if all(end <= first or last <= start for first, last, _ in cuts):
            cuts.append((start, end, piece))
    for start, end, piece in sorted(cuts, reverse=True):
        text = text[:start] + piece + text[end:]
    return text


def soup(choose: Choose) -> str:
    """Words in any order, some of them within a model that is right so far."""
    words = " ".join((WORDS + PLAIN)[choose(len(WORDS + PLAIN))] for _ in range(choose(30)))
    if choose(3) == 0:
        return words
    return f"use std\nmodel M {{\nd = 8\ninput x: float[b, s, d]\n{words}\noutput y = x\n}}"


def examine(text: str) -> None:
    """Check and format a file. Raises what no text may raise."""
    try:
        file = parse(Source("made.arch", text))
        format_file(file)
        module = module_of(file)
        for name in module.models:
            elaborate_proved(module, the_model(module, name), Request())
    except (ArchError, Diagnostics) as mistake:
        if not str(mistake):
            raise
