"""What happens to a model on its way: the graph before and after each pass, and a backend's source."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any

from ..compiler.ir.graph import Function, Program
from ..compiler.ir.text import show_node
from ..compiler.passes import chosen, steps
from ..compiler.passes.explain import QUIET, entry
from ..compiler.rewrite import Session, Site

PLACE = re.compile(r"([^\s()\"']+\.arch):(\d+)(?: \(([^()]*)\))?")


@dataclass(frozen=True, slots=True)
class Stage:
    """A pass: its equation, its sites, and how it changed functions, as diffs by name."""

    name: str
    equation: str
    sites: tuple[dict[str, Any], ...]
    quiet: tuple[tuple[str, int], ...]
    diffs: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def fired(self) -> int:
        return sum(site["fired"] for site in self.sites)


@dataclass(frozen=True, slots=True)
class Piece:
    """A top-level definition of a generated file with the comment above it; `places` are the lines of
    the model that it names, each with regions."""

    file: str
    name: str
    text: str
    places: tuple[tuple[str, int, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Stages:
    passes: tuple[Stage, ...]
    backend: str = ""
    pieces: tuple[Piece, ...] = ()


def stages_of(program: Program, backend: str | None, at: Mapping[str, int] | None = None) -> Stages:
    """The passes as they run for a backend, or all of them, and the source that it makes.

    Bytes that a rule moves are numbers where `at` has all run-time sizes.

    Only with a backend is one imported. Raises NoLowering, MissingPackage.
    """
    sizes = {**program.sizes, **(at or {})}
    if backend is None:
        return Stages(_stages(program, (), sizes)[0])
    from ..api import backend as backend_called
    from ..backends.triton import require_packages

    if backend == "triton":
        require_packages("generating kernels")
    runner = backend_called(backend)
    passes, after = _stages(program, runner.unwanted_passes("f32"), sizes)
    texts = {} if backend == "numpy" else runner.emit(after)
    pieces = tuple(piece for name, text in texts.items() for piece in pieces_of(name, text))
    return Stages(passes, backend, pieces)


def _stages(
    program: Program, unwanted: Collection[str], sizes: Mapping[str, int]
) -> tuple[tuple[Stage, ...], Program]:
    session, found = Session(), list[Stage]()
    for made, before, after, _ in steps(program, chosen(unwanted), session):
        sites = [s for s in session.sites if s.pass_name == made.name]
        told = tuple(entry(s, sizes) for s in sites if s.rule not in QUIET)
        diffs = tuple(_diffs(before, after))
        found.append(Stage(made.name, made.equation, told, _quiet(sites), diffs))
        program = after
    return tuple(found), program


def _quiet(sites: Collection[Site]) -> tuple[tuple[str, int], ...]:
    counts = Counter(s.rule for s in sites if s.rule in QUIET and s.fired)
    return tuple(sorted(counts.items()))


def _diffs(before: Program, after: Program) -> Iterator[tuple[str, tuple[str, ...]]]:
    """How the functions changed; a value keeps its number from one pass to the next."""
    old, new = ({f.name: f for f in p.functions} for p in (before, after))
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            texts = (_text(old.get(name)), _text(new.get(name)))
            lines = [*unified_diff(*texts, n=2, lineterm="")][2:]
            if lines:
                yield name, tuple(lines)


def _text(function: Function | None) -> list[str]:
    if function is None:
        return []
    arguments = ", ".join(f"%{i}" for i in function.inputs)
    results = ", ".join(f"{name} = %{i}" for name, i in function.outputs)
    nodes = [f"  {show_node(node)}" for node in function.nodes]
    return [f"function {function.name}({arguments}) {{", *nodes, f"  return {results}", "}"]


def pieces_of(file: str, text: str) -> Iterator[Piece]:
    """The definitions of a file of Python, and what stands before the first of them."""
    lines = text.splitlines()
    starts = [_start(lines, node) for node in ast.parse(text).body if _defines(node)]
    names = [node.name for node in ast.parse(text).body if _defines(node)]  # type: ignore[attr-defined]
    for name, start, end in zip(
        ["(head)", *names], [0, *starts], [*starts, len(lines)], strict=True
    ):
        own = "\n".join(lines[start:end]).strip("\n")
        if own:
            yield Piece(file, name, own, tuple(_places(own)))


def _defines(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef)


def _start(lines: list[str], node: ast.stmt) -> int:
    """The first line of a definition, with decorators and the comment above it."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    start = min([node.lineno, *(d.lineno for d in decorators)]) - 1
    while start and lines[start - 1].startswith("#"):
        start -= 1
    return start


def _places(text: str) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    comments = "\n".join(line for line in text.splitlines() if "#" in line)
    for name, line, regions in dict.fromkeys(PLACE.findall(comments)):
        yield name, int(line), tuple(filter(None, regions.split(", ")))
