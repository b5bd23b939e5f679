"""The snippets of a Markdown page: found, completed, elaborated, run.

A fenced `arch` block is a complete file; `arch body` is the middle of the page's `arch template`;
an `arch piece` is part of another block.
`error=ID` says that it is wrong and how; a `text` block right behind it shows message and help.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from archc.backends.numpy import NumpyBackend
from archc.compiler.causality import elaborate_proved
from archc.compiler.elaborate import (
    Module,
    Request,
    module_of,
    preset_overrides,
)
from archc.compiler.elaborate.values import Tensor
from archc.compiler.ir.graph import Program
from archc.compiler.weights import random_weights
from archc.diff.inputs import random_cases
from archc.dsl import Source, parse
from archc.dsl.diagnostics import ArchError, Diagnostics
from archc.dsl.dims import Dim
from archc.dsl.syntax import Node, Target

FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
PLACE = "  # the snippet stands here\n"
REMARK = re.compile(
    r"# ([\[{][^#]*[\]}]|= [^#]+)(?:, [a-z ]+)?$"
)  # what the reader is told of a line's value
MAKES = re.compile(r"# makes ([\w.\[\], ]+)$", re.MULTILINE)
TINY, LARGEST = "tiny", 10**6  # the preset to run, and what is too large to run
SIZES = {"b": 2, "s": 5, "t": 3}


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced block: its kind, the words behind the kind, its text, and where it stands."""

    page: Path
    kind: str
    words: tuple[str, ...]
    text: str
    line: int
    number: int  # the how manyth of its page

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True, slots=True)
class Snippet:
    """A block of `arch`, with the blocks of `json` before it and of `text` behind it."""

    fence: Fence
    template: str
    config: str = ""
    shown: Fence | None = None

    @property
    def error(self) -> str:
        """The id of the error it must give; empty for none."""
        return next((w.removeprefix("error=") for w in self.fence.words if "error=" in w), "")

    @property
    def source(self) -> Source:
        text = self.fence.text
        whole = self.template.replace(PLACE, text) if "body" in self.fence.words else text
        return Source("model.arch", whole)

    def __str__(self) -> str:
        return str(self.fence)


def fences(page: Path) -> Iterator[Fence]:
    text = page.read_text(encoding="utf-8")
    for number, match in enumerate(FENCE.finditer(text)):
        line = text.count("\n", 0, match.start()) + 1
        yield Fence(page, match[1], tuple(match[2].split()), match[3], line, number)


def rewrite(fence: Fence, text: str) -> None:
    """Put `text` into a block of its page as the page is now."""
    page = fence.page.read_text(encoding="utf-8")
    start, end = list(FENCE.finditer(page))[fence.number].span(3)
    fence.page.write_text(page[:start] + text + page[end:], encoding="utf-8")


def snippets(page: Path) -> list[Snippet]:
    found = list(fences(page))
    template = next((f.text for f in found if "template" in f.words), "")
    around = zip([None, *found], found, [*found[1:], None], strict=False)
    return [
        Snippet(
            fence,
            template,
            before.text if before is not None and before.kind == "json" else "",
            after if after is not None and after.kind == "text" else None,
        )
        for before, fence, after in around
        if fence.kind == "arch" and not {"template", "piece"} & {*fence.words}
    ]


@dataclass(slots=True)
class Run:
    """What became of a snippet: its definitions, programs by model, and every value it named."""

    module: Module
    programs: dict[str, Program] = field(default_factory=dict)
    named: list[tuple[int, Any, Program]] = field(default_factory=list)  # line, value, program


def run(source: Source) -> Run:
    """Elaborate every model of a file and keep what its assignments bind.

    At its defaults, or at the preset `tiny` of a model whose defaults are a published size.
    """
    result, seen = Run(module_of(parse(source))), list[tuple[int, Any]]()

    def watch(text: Node, value: Any) -> None:
        if isinstance(text, Target) and text.span.source is source:
            seen.append((text.span.line, value))

    tiny = preset_overrides(result.module, TINY) if TINY in result.module.presets else ("", {})
    for name, model in result.module.models.items():
        seen.clear()
        request = Request(tiny[1] if tiny[0] == name else {}, watch=watch)
        program = elaborate_proved(result.module, model, request)
        result.programs[name] = program
        result.named += [(line, value, program) for line, value in seen]
    return result


def execute(program: Program) -> Mapping[Any, np.ndarray]:
    """Run a program in float64 with random weights and inputs; every value by its key."""
    assert sum(p.size(program.sizes) for p in program.parameters) < LARGEST
    case = next(iter(random_cases(program, 0, SIZES)))
    loaded = NumpyBackend().load(program, random_weights(program), dtype="f64")
    return loaded.trace(case.inputs)[1]


def remarks(source: Source) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(source.text.split("\n"), 1):
        if match := REMARK.search(line):
            yield number, match[1].strip()


def described(value: Any, program: Program, values: Mapping[Any, np.ndarray], like: str) -> str:
    """A value as a remark of the form `like` would put it."""
    if like.startswith("= "):
        return f"= {plain(value, program, values)}"
    if not isinstance(value, Tensor):
        return f"no tensor but {value!r}"
    names = [label.name for label in value.labels]
    if like.startswith("{"):
        return "{" + ", ".join(sorted(names)) + "}"
    return f"[{', '.join(names)}]" if value.ordered else f"open order {names}"


def normal(remark: str) -> str:
    if remark.startswith("{"):
        return "{" + ", ".join(sorted(remark.strip("{}").replace(" ", "").split(","))) + "}"
    return remark


def plain(value: Any, program: Program, values: Mapping[Any, np.ndarray]) -> str:
    if isinstance(value, Tensor):
        return str(np.round(values["", value.node], 6).tolist())
    if isinstance(value, Dim):
        return str(value.evaluate(program.sizes))
    if isinstance(value, list):
        return "[" + ", ".join(plain(v, program, values) for v in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def mistakes(source: Source) -> tuple[ArchError, ...]:
    """The errors a file gives, in order; empty when it is right."""
    try:
        for program in run(source).programs.values():
            execute(program)
    except Diagnostics as found:
        return found.errors
    except ArchError as error:
        return (error,)
    return ()


def brief(error: ArchError) -> str:
    """An error without the source lines: `error[id]: message`, then the help."""
    advice = error.help_text().split("\n") if error.help_text() else []
    return (
        "\n".join([f"error[{error.id}]: {error.message}", *(f"  help: {a}" for a in advice)]) + "\n"
    )
