"""Where a candidate first goes wrong: which node, and which part of it when a pass fused it.

A node is at fault when, given exact operands, its result breaks the rule. All suspects at one call
path run in one extracted program. A fused node is opened: first its parts run one by one; when each
is right on its own, the fault lies in how they are fused, and the search is for the shortest prefix
of parts whose exact values, forced into the fused node, make its result right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.base import Array, Backend, Executable, ValueKey
from ..compiler.extract import Extract, islands, opened, regrouped
from ..compiler.ir.graph import Function, Node, Program
from ..compiler.ops import FORMATS, FUSED, ModelDType, Precision
from ..dsl.diagnostics import ArchError, Diagnostics
from ..equality import RULES, Comparison, compare
from .conventions import Alternative, Hint, Setting, hints
from .reference import Reference, Truth
from .regions import UNPLACED
from .values import Values

# How a backend is loaded to be compared: with tiles that even a short sequence has several of.
OPTIONS: dict[str, dict[str, Any]] = {"numpy": {"tile": 4}}
STORED: dict[np.dtype[Any], ModelDType] = {FORMATS[dtype]: dtype for dtype in RULES}


class CandidateFailed(Exception):
    """A candidate raised what no user's mistake explains: it diverges by not running."""


@contextmanager
def failing() -> Iterator[None]:
    """Around what a candidate runs. Raises CandidateFailed for any error that is not the user's."""
    try:
        yield
    except (ArchError, Diagnostics):
        raise
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        raise CandidateFailed(f"{type(error).__name__}: {text}") from error


@dataclass(frozen=True, slots=True)
class Bench:
    """Runs extracted programs on a candidate backend and judges what comes out."""

    backend: Backend
    weights: Mapping[str, Array]
    dtype: ModelDType

    def load(self, program: Program) -> Executable:
        options = OPTIONS.get(self.backend.name, {})
        return self.backend.load(program, self.weights, dtype=self.dtype, **options)

    def truth(self, extract: Extract, exact: Mapping[int, Array]) -> Truth:
        """The reference runs, with the inputs forced to `exact` values of the original nodes."""
        return Reference(extract.program, self.weights, self.dtype).truth(_fed(extract, exact))

    def judge(self, extract: Extract, exact: Mapping[int, Array]) -> dict[int, Comparison]:
        """How the candidate computes each result, by id of the node. Raises CandidateFailed."""
        reference = Reference(extract.program, self.weights, self.dtype)
        inputs = reference.rounded(_fed(extract, exact))
        truth = reference.truth(inputs)
        main = extract.program.main
        with failing():
            got = self.load(extract.program).run(inputs)
        rules = {name: self._dtype(main, i) for name, i in main.outputs}
        gold, base = truth.gold.outputs, truth.base.outputs
        return {
            node_id: compare(got[name], gold[name], base[name], rules[name])
            for name, node_id in extract.results.items()
        }

    def _dtype(self, main: Function, node_id: int) -> ModelDType:
        """The dtype that rounds a value computed from exact operands.

        It is the one that stores the value, or the model's when other values come between.
        """
        node = main[node_id]
        if node.op == "result" or "body" in node.attrs:
            return self.dtype
        return STORED.get(Precision(self.dtype).storage(node.type.dtype), self.dtype)


def _fed(extract: Extract, exact: Mapping[int, Array]) -> dict[str, Array]:
    return {name: exact[node_id] for name, node_id in extract.feeds.items()}


@dataclass(frozen=True, slots=True)
class Fault:
    """A node that breaks the rule. `fused` is the node of the compared program that contains it.

    `introduced` is false when the node is right on exact operands and wrong in the whole run.
    """

    key: ValueKey
    node: Node
    fused: Node | None
    comparison: Comparison
    introduced: bool


@dataclass(frozen=True, slots=True)
class Localiser:
    """The search in one run of one candidate. `exact` has the gold value of every node."""

    program: Program
    values: Values
    exact: Mapping[ValueKey, Array]
    sizes: Mapping[str, int]
    bench: Bench

    def introduced(self, keys: Collection[ValueKey]) -> dict[ValueKey, Comparison]:
        """The error that each of these nodes introduces, and each parameter they read, in order."""
        read = {o for key in keys for o in self.values.operands(key)}
        parameters = {o for o in read if self.values.node(o).op in ("weight", "derived")}
        suspects = [key for key in self.values.order if key in parameters.union(keys)]
        found: dict[ValueKey, Comparison] = {}
        for path in dict.fromkeys(path for path, _ in suspects):
            chosen = [node_id for where, node_id in suspects if where == path]
            found |= {(path, i): c for i, c in self._alone(path, chosen).items()}
        return {key: found[key] for key in suspects}

    def _alone(self, path: str, chosen: Sequence[int]) -> dict[int, Comparison]:
        """Nodes of one call path, in one program; in two where that one does not run."""
        function, exact = self.values.functions[path], self.at(path)
        extract = islands(self.program, function, path, chosen, self.sizes)
        try:
            return self.bench.judge(extract, exact)
        except CandidateFailed as failure:
            if len(chosen) == 1:
                return {chosen[0]: Comparison(False, float("inf"), mismatch=str(failure))}
        middle = len(chosen) // 2
        return self._alone(path, chosen[:middle]) | self._alone(path, chosen[middle:])

    def at(self, path: str) -> dict[int, Array]:
        return {i: value for (where, i), value in self.exact.items() if where == path}

    def fault(
        self, traced: Mapping[ValueKey, Comparison], alone: Mapping[ValueKey, Comparison]
    ) -> Fault | None:
        """The first node that is wrong on exact operands, else the first wrong one fed rightly."""
        for key, comparison in alone.items():
            if not comparison.passed:
                return self._narrowed(key, comparison)
        for key in self.values.order:
            if key in traced and not traced[key].passed:
                sources = (traced.get(source) for source in self.values.operands(key))
                if all(s is None or s.passed for s in sources):
                    return Fault(key, self.values.node(key), None, traced[key], introduced=False)
        return None

    def hints(self, fault: Fault) -> tuple[Hint, ...]:
        """Which conventions would make the exact run of a node agree with what the candidate makes."""
        path, node_id = fault.key
        function, node = self.values.functions[path], self.values.node(fault.key)
        given = islands(self.program, function, path, [node_id], self.sizes)
        name = f"v{node_id}"
        reference = Reference(given.program, self.bench.weights, self.bench.dtype)
        inputs = reference.rounded(_fed(given, self.at(path)))
        try:
            with failing():
                got = self.bench.load(given.program).run(inputs)[name]
        except CandidateFailed:
            return ()
        tried, output = given.program, name
        whole = function[node.inputs[0]] if node.op == "result" else node
        if whole.op in FUSED:
            index = node.attrs.integer("index") if node.op == "result" else 0
            tried = opened(self.program, function, path, whole, self.sizes).program
            output, _ = tried.main.outputs[index]

        def agrees(alternative: Alternative) -> bool:
            truth = Reference(alternative.program, alternative.weights, self.bench.dtype).truth(
                inputs
            )
            gold, base = (run.outputs[output] for run in (truth.gold, truth.base))
            return compare(got, gold, base, self.bench.dtype).passed

        parameters = {p.path: p for p in self.program.parameters}
        return hints(Setting(tried, self.bench.weights, parameters), agrees)

    def _narrowed(self, key: ValueKey, comparison: Comparison) -> Fault:
        path, function = key[0], self.values.functions[key[0]]
        node = self.values.node(key)
        if node.op == "result":
            node = function[node.inputs[0]]
        if node.op not in FUSED:
            return Fault(key, node, None, comparison, introduced=True)
        inside = _Fused.of(self, function, path, node)
        part, why = inside.faulty_part()
        return Fault(key, part or node, node, why or comparison, introduced=True)


@dataclass(frozen=True, slots=True)
class _Fused:
    """A fused node taken apart. Ids are those of main in `extract.program`."""

    node: Node
    opened: Localiser

    @classmethod
    def of(cls, where: Localiser, function: Function, path: str, node: Node) -> _Fused:
        extract = opened(where.program, function, path, node, where.sizes)
        exact = where.bench.truth(extract, where.at(path)).gold.values
        values = Values(extract.program)
        return cls(node, Localiser(extract.program, values, exact, where.sizes, where.bench))

    @property
    def main(self) -> Function:
        return self.opened.program.main

    def parts(self) -> list[Node]:
        """What the body computes, and the weights it reads."""
        found = (self.main[i] for _, i in self.opened.exact if i not in self.main.inputs)
        return [node for node in found if node.op not in ("derived", "table")]

    def faulty_part(self) -> tuple[Node | None, Comparison | None]:
        """The part at fault and how it compares; (None, None) when the search finds none."""
        keys = [("", node.id) for node in self.parts()]
        for (_, node_id), comparison in self.opened.introduced(keys).items():
            if not comparison.passed:
                return self.main[node_id], comparison
        return self._fused_wrongly(), None

    def _fused_wrongly(self) -> Node | None:
        """The last part of the shortest prefix that, forced, cures the fused node; by bisection."""
        parts = [n for n in self.parts() if n.op not in UNPLACED | {"weight"}]
        sick, cured = 0, len(parts)
        while cured - sick > 1:
            middle = (sick + cured) // 2
            if self._cured_by(parts[:middle]):
                cured = middle
            else:
                sick = middle
        return parts[cured - 1] if parts else None

    def _cured_by(self, known: Sequence[Node]) -> bool:
        """Whether the node is right once these parts are given. Nothing left to fuse is a cure."""
        ids, sizes = {n.id for n in known}, self.opened.sizes
        extract = regrouped(self.opened.program, self.node, ids, sizes)
        if extract is None:
            return True
        try:
            judged = self.opened.bench.judge(extract, self.opened.at(""))
        except (ArchError, CandidateFailed):  # the backend fuses no such remainder
            return True
        return all(comparison.passed for comparison in judged.values())
