"""Runs a program before and after a pass in float64, at the smallest sizes that say anything.

Hyperparameters are symbols, so a program can be run at other sizes than it was written for: the
smallest that satisfy every relation elaboration recorded, once with all sizes distinct (a
mixed-up axis fails) and once with as many equal as possible (a lookup by size fails). Repeats run
each layer kind twice, not every layer. Weights and inputs are random, from the declared domains.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...dsl.diagnostics import InternalError
from ...dsl.dims import Dim
from ..ir.graph import Attrs, Axis, Constraint, Function, Node, Parameter, Program

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Evaluate = Callable[[Program, Arrays, Arrays], Arrays]  # program, inputs, weights -> outputs

TOLERANCE = 1e-10
# Sizes tried, in this order. An axis of size 1 hides mistakes, so 1 is a last resort.
DISTINCT = (*range(2, 17), 18, 20, 24, 28, 30, 32, 36, 40, 48, 64, 1)
EQUAL = (2, 4, 6, 8, 12, 16, 1, *DISTINCT)
SEARCH_LIMIT = 20_000
RUN_TIME = (2, 7, 5, 11, 3, 13)  # sizes of run-time axes when distinct: past small windows
COLLISION = 6


@dataclass(slots=True)
class Verifier:
    """Checks the passes of one pipeline. What a program gave is kept: the next pass starts from it."""

    evaluate: Evaluate
    _last: Program | None = None
    _given: dict[Case, Arrays] = field(default_factory=dict)
    _outputs: dict[Case, Arrays] = field(default_factory=dict)

    def check(self, name: str, before: Program, after: Program) -> None:
        """Raises InternalError when the program fails afterwards, or an output differs by more than
        `TOLERANCE`."""
        given: dict[Case, Arrays] = {}
        outputs: dict[Case, Arrays] = {}
        for case in cases(before):
            first = case.applied(before)
            weights, inputs = RandomWeights(first), random_inputs(first, case)
            expected = self._known(before, case, inputs)
            if expected is None:
                expected = self.evaluate(first, inputs, weights)
            try:
                got = self.evaluate(case.applied(after), inputs, weights)
            except Exception as failed:  # a wrong graph fails in whatever way the evaluator has
                said = f"{type(failed).__name__}: {failed}"
                raise InternalError(f"after {name} {before.name} does not run: {said}") from failed
            for output, value in expected.items():
                error = relative_error(got[output], value)
                if not error <= TOLERANCE:
                    raise InternalError(
                        f"{name} changed `{output}` of {before.name} by {error:.2e} ({case})"
                    )
            given[case], outputs[case] = inputs, got
        same_weights = before.parameters == after.parameters
        self._last = after if same_weights else None
        self._given, self._outputs = given, outputs

    def _known(self, program: Program, case: Case, inputs: Arrays) -> Arrays | None:
        """The outputs, if the program just ran on the same inputs."""
        if program != self._last or case not in self._given:
            return None
        before = self._given[case]
        same = before.keys() == inputs.keys()
        same = same and all(np.array_equal(before[name], inputs[name]) for name in inputs)
        return self._outputs[case] if same else None


def relative_error(got: Array, expected: Array) -> float:
    """The largest difference over the largest magnitude; infinite where shapes or NaNs differ."""
    if got.shape != expected.shape or not (np.isfinite(got) == np.isfinite(expected)).all():
        return float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(got[~finite], expected[~finite], equal_nan=True):
        return float("inf")
    a, b = got[finite].astype(np.float64), expected[finite].astype(np.float64)
    return float(np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(b), initial=0), 1e-30))


@dataclass(frozen=True, slots=True)
class Case:
    """Sizes for one run: hyperparameters and run-time symbols."""

    sizes: tuple[tuple[str, int], ...]
    run_time: tuple[tuple[str, int], ...]

    def applied(self, program: Program) -> Program:
        """The program at these sizes, with each layer kind run at most twice."""
        short = tuple(_shortened(f) for f in program.functions)
        return replace(program, functions=short, bindings=self.sizes)

    @property
    def all_sizes(self) -> dict[str, int]:
        return dict(self.sizes) | dict(self.run_time)

    def __str__(self) -> str:
        return ", ".join(f"{name} = {size}" for name, size in self.sizes + self.run_time)


def cases(program: Program) -> Iterator[Case]:
    """One case of distinct sizes and one of equal ones; the declared sizes where none is found."""
    run_time = sorted(_run_time_symbols(program))
    distinct = tuple((s, RUN_TIME[i % len(RUN_TIME)]) for i, s in enumerate(run_time))
    yield Case(smallest(program, distinct, distinct=True), distinct)
    equal = tuple((s, COLLISION) for s in run_time)
    yield Case(smallest(program, equal, distinct=False), equal)


def smallest(
    program: Program, run_time: tuple[tuple[str, int], ...], *, distinct: bool
) -> tuple[tuple[str, int], ...]:
    """The first bindings, smallest sizes first, under which every constraint and axis holds."""
    search = _Search(program, dict(run_time), distinct)
    found = search.extend({}, search.order())
    if found is None:
        return program.bindings
    return tuple((name, found[name]) for name, _ in program.bindings)


Condition = Callable[[Mapping[str, int]], bool]


class _Search:
    """Backtracking over the symbols; a condition is tested as soon as its symbols have values."""

    def __init__(self, program: Program, run_time: dict[str, int], distinct: bool) -> None:
        self.program, self.run_time, self.distinct = program, run_time, distinct
        self.steps = 0
        self.conditions: list[tuple[frozenset[str], Condition]] = []
        nodes = [n for f in program.functions for n in f.nodes]
        unfilled = [n for n in nodes if n.op == "take" and n.attrs["fill"] is None]
        tables = {n.attrs.axis("axis").size for n in unfilled}
        slots = max(run_time.values(), default=1)
        for size in {a.size for n in nodes for a in _axes(n)}:
            least = 2 * slots if size in tables else 1  # rows for all slots, also behind an offset
            self._require(size.symbols(), _at_least(size, least))
        for node in (n for n in nodes if n.op == "quantise"):  # a second group, and not a whole one
            size, group = node.attrs.axis("axis").size, node.attrs.integer("group")
            self._require(size.symbols(), _at_least(size, group + 1))
        for relation in program.constraints:
            self._require(relation.left.symbols() | relation.right.symbols(), relation.holds)

    def _require(self, symbols: frozenset[str], condition: Condition) -> None:
        self.conditions.append((symbols - self.run_time.keys(), condition))

    def order(self) -> list[str]:
        """Symbols that a constraint gives by the others come after them, free ones last."""
        relations = [c for c in self.program.constraints if c.op == "=="]
        bound = {s for c in relations for s in c.left.symbols() | c.right.symbols()}
        given = {s for c in relations for s in _given(c)}
        names = [name for name, _ in self.program.bindings]
        return sorted(names, key=lambda n: (n not in bound, n in given))

    def extend(self, chosen: dict[str, int], left: list[str]) -> dict[str, int] | None:
        if not left:
            return chosen
        name, rest = left[0], left[1:]
        tried = DISTINCT if self.distinct else EQUAL
        for size in (*tried, self.program.sizes[name]):
            self.steps += 1
            if self.steps > SEARCH_LIMIT:
                return None
            taken = self.distinct and size in {*chosen.values(), *self.run_time.values()}
            if not taken and self._holds(chosen | {name: size}, name):
                found = self.extend(chosen | {name: size}, rest)
                if found is not None:
                    return found
        return None

    def _holds(self, chosen: dict[str, int], name: str) -> bool:
        known = self.run_time | chosen
        return all(
            condition(known)
            for symbols, condition in self.conditions
            if name in symbols and symbols <= chosen.keys()
        )


def _at_least(size: Dim, least: int) -> Condition:
    return lambda known: size.evaluate(known) >= least


def _given(relation: Constraint) -> frozenset[str]:
    """The symbol that stands alone on one side of an equation and not on the other."""
    for one, other in ((relation.left, relation.right), (relation.right, relation.left)):
        alone = one.symbols()
        if len(alone) == 1 and alone.isdisjoint(other.symbols()):
            return alone
    return frozenset()


def _axes(node: Node) -> Iterator[Axis]:
    yield from (a for t in node.types for a in t.axes)


def _run_time_symbols(program: Program) -> set[str]:
    axes = [a for i in program.main.inputs for a in _axes(program.main[i])]
    return {s for a in axes for s in a.size.symbols()} - program.sizes.keys()


def _shortened(function: Function) -> Function:
    nodes = tuple(_short_repeat(n) if n.op == "repeat" else n for n in function.nodes)
    return replace(function, nodes=nodes)


def _short_repeat(node: Node) -> Node:
    kinds = node.attrs["kinds"]
    assert isinstance(kinds, tuple)
    kept = [i for i, kind in enumerate(kinds) if kinds[:i].count(kind) < 2]

    def select(values: Any) -> tuple[Any, ...]:
        return tuple(values[i] for i in kept)

    scalars = tuple(select(s) for s in node.attrs["scalars"])  # type: ignore[union-attr]
    short = {"kinds": select(kinds), "indices": select(node.attrs["indices"]), "scalars": scalars}
    return replace(node, attrs=Attrs({**node.attrs, **short}))


class RandomWeights(Mapping[str, Array]):
    """Weights made when they are asked for, the same ones for the same path and shape."""

    def __init__(self, program: Program) -> None:
        self.sizes = program.sizes
        self.parameters: dict[str, Parameter] = {p.path: p for p in program.parameters}

    def __getitem__(self, path: str) -> Array:
        shape = [a.size.evaluate(self.sizes) for a in self.parameters[path].axes]
        return np.random.default_rng(zlib.crc32(path.encode())).normal(0.2, 0.7, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)


def random_inputs(program: Program, case: Case, seed: int = 0) -> dict[str, Array]:
    """An array for each input of main, from its declared domain."""
    random = np.random.default_rng(seed)
    inputs = {}
    for node in (program.main[i] for i in program.main.inputs):
        shape = node.type.shape(case.all_sizes)
        inputs[str(node.attrs["name"])] = _random_input(random, node, shape, case.all_sizes)
    return inputs


def _random_input(
    random: np.random.Generator, node: Node, shape: tuple[int, ...], sizes: Mapping[str, int]
) -> Array:
    if node.type.dtype == "bool":
        return random.random(shape) < 0.7
    if node.type.dtype == "int":
        below = node.attrs.dim("below").evaluate(sizes) if node.attrs.get("below") else 8
        return random.integers(0, below, shape)
    return random.normal(0.0, 1.0, shape)
