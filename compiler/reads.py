"""How much of each weight a call reads: all of it, or the entries that an index picks.

A weight that every reader takes entries of along some axes is read by entries: an embedding by
its ids, a bank by the numbers of its instances. For each element of the index one entry is picked.
What of the index a model fixes (the k experts of a token) is counted; what a call decides (the
tokens) is a form. How many of the picked entries differ depends on data: `Picks` has the most, and what is
expected where all are picked alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

from ..dsl.dims import Dim, minimum
from .ir.graph import Function, Node, Parameter, Program, elements
from .ir.walk import calls, join
from .passes.properties import VIEWS

ZERO, ONE = Dim(), Dim.of(1)
PASSED_ON = VIEWS | {"cast"}


@dataclass(frozen=True, slots=True)
class Picks:
    """`entries` of `of` are picked for each of `tokens`. Instances are those of the bank at `bank`."""

    entries: int
    of: int
    tokens: Dim
    bank: str = ""

    @property
    def most(self) -> Dim:
        """As many different entries as there can be in a call."""
        return minimum(self.of, self.tokens * self.entries)

    def expected(self, tokens: int) -> float:
        """Different entries in a call when each token picks its own without preference."""
        return float(self.of * (1 - (1 - min(self.entries / self.of, 1)) ** tokens))


def reads(program: Program) -> dict[str, Picks | None]:
    """For each parameter read, by its path, what is picked of it; None where all of it is read."""
    known = {p.path: p for p in program.parameters}
    traced: dict[str, list[tuple[str, list[_Read]]]] = {}
    found: dict[str, list[_Read]] = {}
    for path, function in calls(program):
        if function.name not in traced:
            traced[function.name] = list(_traced(program, path, function, known))
        for relative, made in traced[function.name]:
            found.setdefault(join(path, relative), []).extend(made)
    banks = _banks(known, found)
    return {
        path: _together(program, known[path], made, banks.get(path, ""))
        for path, made in found.items()
    }


def bank_reads(program: Program) -> frozenset[tuple[str, int]]:
    """The takes, by function and node, that pick instances of a bank: weights, no activations."""
    banks = {p.path for p in program.parameters if p.banks}
    found: set[tuple[str, int]] = set()
    for path, function in calls(program):
        for node in function.nodes:
            if node.op == "weight":
                picked = join(path, node.attrs.string("path")) in banks
            else:
                first = (function.name, node.inputs[0]) if node.inputs else ("", 0)
                picked = node.op in PASSED_ON | {"take"} and first in found
            found |= {(function.name, node.id)} if picked else set()
    return frozenset(found)


def pattern(path: str) -> str:
    """A path as the text has it: `layers[].ffn` for `layers[3].ffn`."""
    return re.sub(r"\[\d+\]", "[]", path)


def _banks(known: Mapping[str, Parameter], found: Mapping[str, list[_Read]]) -> dict[str, str]:
    """Where the bank of each weight stands: what the weights picked by one index have in common."""
    alike: dict[object, list[str]] = {}
    for path, made in found.items():
        if known[path].banks:
            key = (path.rpartition("]")[0], *((r.function, r.index) for r in made))
            alike.setdefault(key, []).append(path)
    return {path: _common(paths) for paths in alike.values() for path in paths}


def _common(paths: list[str]) -> str:
    parts = [path.split(".")[:-1] for path in paths]
    shared = takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return pattern(".".join(column[0] for column in shared))


def _traced(
    program: Program, path: str, function: Function, known: Mapping[str, Parameter]
) -> Iterator[tuple[str, list[_Read]]]:
    """The weights of a function, which runs at `path` among others, with how each is read."""
    for node in function.nodes:
        if node.op == "weight":
            relative = node.attrs.string("path")
            tracer = _Tracer(program, max(known[join(path, relative)].banks, 1))
            yield relative, list(tracer.below(function, node))


@dataclass(frozen=True, slots=True)
class _Read:
    """One way of reading a weight, in `times` calls: what takes give, or None for all of it."""

    picked: Node | None
    function: str = ""
    index: tuple[int, ...] = ()
    times: int = 1


@dataclass(frozen=True, slots=True)
class _Tracer:
    """Follows a weight through views and repeats to the last of `takes` takes, or to who reads all."""

    program: Program
    takes: int

    def below(
        self, function: Function, node: Node, index: tuple[int, ...] = (), times: int = 1
    ) -> Iterator[_Read]:
        if node.id in function.output_ids:
            yield _Read(None)
        for user in (n for n in function.nodes if node.id in n.inputs):
            if user.op in PASSED_ON:
                yield from self.below(function, user, index, times)
            elif user.op == "take" and user.inputs.index(node.id) == 0:
                picks = (*index, user.inputs[1])
                if len(picks) == self.takes:
                    yield _Read(user, function.name, picks, times)
                else:
                    yield from self.below(function, user, picks, times)
            elif user.op == "repeat":
                yield from self.inside(user, user.inputs.index(node.id), index, times)
            else:
                yield _Read(None)

    def inside(
        self, loop: Node, position: int, index: tuple[int, ...], times: int
    ) -> Iterator[_Read]:
        """The reads of a weight that the iterations of a repeat have in common."""
        kinds = loop.attrs["kinds"]
        assert isinstance(kinds, tuple)
        if position < loop.attrs.integer("carried"):
            yield _Read(None)
        for kind in dict.fromkeys(k for k in kinds if isinstance(k, str)):
            body = self.program.function(kind)
            given = body[body.inputs[position]]
            yield from self.below(body, given, index, times * kinds.count(kind))


def _together(program: Program, parameter: Parameter, made: list[_Read], bank: str) -> Picks | None:
    """What several reads pick: those by one index pick the same."""
    distinct = {(r.function, r.index): r for r in made}
    entries: dict[Dim, int] = {}
    rows = ONE
    for read in distinct.values():
        if read.picked is None:
            return None
        fixed = [a for a in read.picked.axes if a.size.symbols() <= program.sizes.keys()]
        tokens = elements(a for a in read.picked.axes if a not in fixed)
        rows = _rows(parameter, read.picked)
        held = elements(parameter.axes) // rows
        count = _number(program, elements(fixed)) // _number(program, held)
        entries[tokens] = entries.get(tokens, 0) + count * read.times
    tokens = sum(entries, ZERO).substitute(program.sizes)
    of = _number(program, rows)
    return Picks(min(max(entries.values()), of), of, tokens, bank)


def _rows(parameter: Parameter, picked: Node) -> Dim:
    """How many entries a weight has along the axes that are picked from."""
    if parameter.banks:
        return elements(parameter.axes[: parameter.banks])
    return picked.attrs.axis("axis").size


def _number(program: Program, size: Dim) -> int:
    return size.evaluate(program.sizes)
