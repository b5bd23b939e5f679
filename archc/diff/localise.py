"""Where a candidate first goes wrong: which node, and which part of it when a pass fused it.

A node is at fault when, given exact operands, its result breaks the rule. All suspects at one call
path run in one extracted program. A fused node is opened: first its parts run one by one; when each
is right on its own, the fault lies in how they are fused, and the search is for the shortest prefix
of parts whose exact values, forced into the fused node, make its result right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.base import Array, Backend, ValueKey
from ..compiler.extract import Extract, islands, opened, regrouped
from ..compiler.ir.graph import Function, Node, Program
from ..compiler.ops import FORMATS, FUSED, ModelDType, Precision
from ..dsl.diagnostics import ArchError
from ..equality import RULES, Comparison, compare
from .reference import Reference, Truth
from .regions import UNPLACED
from .values import Values

STORED: dict[np.dtype[Any], ModelDType] = {FORMATS[dtype]: dtype for dtype in RULES}


@dataclass(frozen=True, slots=True)
class Bench:
    """Runs extracted programs on a candidate backend and judges what comes out."""

    backend: Backend
    weights: Mapping[str, Array]
    dtype: ModelDType

    def truth(self, extract: Extract, exact: Mapping[int, Array]) -> Truth:
        """The reference runs, with the inputs forced to `exact` values of the original nodes."""
        return Reference(extract.program, self.weights, self.dtype).truth(_fed(extract, exact))

    def judge(self, extract: Extract, exact: Mapping[int, Array]) -> dict[int, Comparison]:
        """How the candidate computes each result, by id of the original node."""
        reference = Reference(extract.program, self.weights, self.dtype)
        inputs = reference.rounded(_fed(extract, exact))
        truth = reference.truth(inputs)
        loaded = self.backend.load(extract.program, self.weights, dtype=self.dtype)
        got, main = loaded.run(inputs), extract.program.main
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
        """The error that each of these nodes introduces, in the order they run."""
        found: dict[ValueKey, Comparison] = {}
        for path in dict.fromkeys(key[0] for key in self.values.order if key in keys):
            function = self.values.functions[path]
            chosen = {node_id for where, node_id in keys if where == path}
            extract = islands(self.program, function, path, chosen, self.sizes)
            judged = self.bench.judge(extract, self._at(path))
            found |= {(path, node_id): c for node_id, c in judged.items()}
        return {key: found[key] for key in self.values.order if key in found}

    def _at(self, path: str) -> dict[int, Array]:
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
    extract: Extract
    exact: Mapping[int, Array]
    sizes: Mapping[str, int]
    bench: Bench

    @classmethod
    def of(cls, where: Localiser, function: Function, path: str, node: Node) -> _Fused:
        extract = opened(where.program, function, path, node, where.sizes)
        truth = where.bench.truth(extract, where._at(path))
        exact = {node_id: value for (_, node_id), value in truth.gold.values.items()}
        return cls(node, extract, exact, where.sizes, where.bench)

    @property
    def main(self) -> Function:
        return self.extract.program.main

    def parts(self) -> list[Node]:
        """What the body computes; its operands and their making are not part of it."""
        outside = {"input", "weight", "derived", "table"}
        return [n for n in self.main.nodes if n.op not in outside and n.id in self.exact]

    def faulty_part(self) -> tuple[Node | None, Comparison | None]:
        """The part at fault and how it compares; (None, None) when the search finds none."""
        for node, comparison in self._alone():
            if not comparison.passed:
                return node, comparison
        return self._fused_wrongly(), None

    def _alone(self) -> Iterator[tuple[Node, Comparison]]:
        parts = {n.id for n in self.parts()}
        made = islands(self.extract.program, self.main, "", parts, self.sizes)
        judged = self.bench.judge(made, self.exact)
        yield from ((self.main[i], comparison) for i, comparison in judged.items())

    def _fused_wrongly(self) -> Node | None:
        """The last part of the shortest prefix that, forced, cures the fused node; by bisection."""
        parts = [n for n in self.parts() if n.op not in UNPLACED]
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
        extract = regrouped(self.extract.program, self.node, {n.id for n in known}, self.sizes)
        if extract is None:
            return True
        try:
            judged = self.bench.judge(extract, self.exact)
        except ArchError:  # the backend fuses no such remainder
            return True
        return all(comparison.passed for comparison in judged.values())
