"""Which axes of a region's results run along rows, along columns and along the grid.

The iteration space is found by walking from the result down to its reductions with one symbol per
axis. A product decides by itself: symbols that reach only its row operand are rows, those that
reach only its column operand are columns, the others a batch. A row reduction leaves as columns
what its rows lack. Merged axes of a result are taken apart where a product needs their parts, and
a joined axis runs along one of its pieces: a program computes and stores the others beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ...compiler.ir.graph import Node
from ...compiler.passes.properties import reduced_axes
from ...dsl.dims import Dim, product
from .indexing import Indices, Var, join
from .mapping import REDUCTIONS, Operand, reached, restrict
from .regions import Region

MOST_PIECES = 4  # of a result that a pointwise kernel stores one by one
WIDE = 128  # columns of a pointwise kernel, if the trailing axes have that many


@dataclass(frozen=True, slots=True)
class Step:
    """One axis of the iteration space."""

    symbol: str
    name: str
    size: Dim


@dataclass(slots=True)
class Space:
    """Row, column and batch axes, and each output with its coordinates over their symbols.

    An output that is stored in pieces is there once for each.
    """

    rows: list[Step]
    cols: list[Step]
    batch: list[Step]
    outputs: list[tuple[int, Operand]]
    product: Node | None = None
    reductions: list[Node] = field(default_factory=list)
    columns_shared: bool = False  # all columns read the same reductions


def plan_space(region: Region) -> Space:
    """The iteration space of a region, whose first output has all axes of the others."""
    walk = _Walk(region)
    tops = walk.tops()
    main = next(((n, at) for n, at in tops if _is_matrix_product(region, n)), None)
    if main is not None:
        walk.take_apart()
        walk.run_along_pieces()
        tops = walk.tops()
        main = next((n, at) for n, at in tops if n.id == main[0].id)
        rows, cols = _by_operand(region, *main)
    else:
        rows, cols = _by_reductions(region, walk, tops)
        if not tops:
            rows, cols = _in_pieces(walk, rows, cols)
    batch = [] if main is None else [s for s in walk.steps if s.symbol not in rows ^ cols]
    return Space(
        [s for s in walk.steps if s.symbol in rows - cols or (main is None and s.symbol in rows)],
        [s for s in walk.steps if s.symbol in cols - rows],
        batch,
        walk.outputs,
        None if main is None else main[0],
        [node for node, _ in tops],
        main is None and bool(tops) and not cols & _kept_symbols(tops),
    )


def _in_pieces(walk: _Walk, rows: set[str], cols: set[str]) -> tuple[set[str], set[str]]:
    """Rows and columns where a joined axis runs along a few pieces: no lane then computes what another
    piece has, and drops it."""
    before = [step.symbol for step in walk.steps]
    walk.run_along_pieces(MOST_PIECES)
    now = dict(zip(before, (step.symbol for step in walk.steps), strict=True))
    return {now[symbol] for symbol in rows}, {now[symbol] for symbol in cols}


@dataclass(slots=True)
class _Walk:
    """One symbol for each axis of the first output."""

    region: Region
    indices: Indices = field(default_factory=Indices)
    steps: list[Step] = field(default_factory=list)
    outputs: list[tuple[int, Operand]] = field(default_factory=list)

    def __post_init__(self) -> None:
        first, *rest = (self.region.nodes[i] for i in self.region.outputs)
        self.steps = [self.step(axis.name, self.region.size(axis)) for axis in first.axes]
        at = {a: Dim.symbol(s.symbol) for a, s in zip(first.axes, self.steps, strict=True)}
        values = [at, *(restrict(at, node.axes) for node in rest)]
        self.outputs = list(zip(self.region.outputs, values, strict=True))

    def step(self, name: str, size: Dim) -> Step:
        var = Var(f"{name}.{len(self.indices.table)}", size)
        self.indices.add(var)
        return Step(var.symbol, name, size)

    def reached(self) -> list[tuple[Node, Operand]]:
        return reached(self.indices, self.region, self.outputs)

    def tops(self) -> list[tuple[Node, Operand]]:
        return [(n, at) for n, at in self.reached() if n.op in REDUCTIONS]

    def take_apart(self) -> None:
        """Replaces the symbol of a merged axis by symbols of its parts, until none is left."""
        while True:
            found = next(self._merged(), None)
            if found is None:
                return
            step, node = found
            parts = [self.step(a.name, self.region.size(a)) for a in node.attrs.axes("axes")]
            place = self.steps.index(step)
            self.steps[place : place + 1] = parts
            whole = join([Dim.symbol(p.symbol) for p in parts], [p.size for p in parts])
            self._substitute(step, [whole])

    def run_along_pieces(self, most: int | None = None) -> None:
        """Replaces the symbol of a joined axis by one along pieces of which all its parts consist."""
        while True:
            found = next(self._joined(most), None)
            if found is None:
                return
            step, length = found
            piece = self.step(step.name, Dim.of(length))
            self.steps[self.steps.index(step)] = piece
            count, inside = (step.size.constant or 0) // length, Dim.symbol(piece.symbol)
            self._substitute(step, [inside + i * length for i in range(count)])

    def _substitute(self, step: Step, values: list[Dim]) -> None:
        """Each output at each of these values of a symbol."""
        self.outputs = [
            (output, {a: c.substitute({step.symbol: value}) for a, c in at.items()})
            for output, at in self.outputs
            for value in values
        ]

    def _joined(self, most: int | None) -> Iterator[tuple[Step, int]]:
        symbols = {Dim.symbol(s.symbol): s for s in self.steps}
        for node, at in self.reached():
            if node.op == "concat":
                step = symbols.get(at[node.attrs.axis("axis")])
                length = math.gcd(
                    *(self.region.size(a).constant or 0 for a in node.attrs.axes("parts"))
                )
                whole = 0 if step is None else step.size.constant or 0
                few = most is None or whole <= most * length
                if step is not None and length and whole > length and few:
                    yield step, length

    def _merged(self) -> Iterator[tuple[Step, Node]]:
        symbols = {Dim.symbol(s.symbol): s for s in self.steps}
        for node, at in self.reached():
            if node.op == "merge":
                step = symbols.get(at[node.attrs.axis("into")])
                if step is not None and len(node.attrs.axes("axes")) > 1:
                    yield step, node


def symbols_of(coordinates: Iterable[Dim]) -> set[str]:
    return {s for c in coordinates for s in c.symbols() if s.startswith("%")}


def _is_matrix_product(region: Region, node: Node) -> bool:
    """A product with axes of its own on both sides, which `tl.dot` may compute."""
    if node.op != "dot" or node.type.dtype in ("int", "bool"):
        return False
    a, b = (set(o.axes) for o in region.operands(node))
    return bool(a - b) and bool(b - a) and bool(a & b)


def rows_first(region: Region, node: Node) -> bool:
    """Whether the first operand of a product lies along rows: weights lie along columns, and so
    do the values that a softmax weighs."""
    a, b = node.inputs
    if region.attend is not None and node.id in region.attend.softmaxes:
        return leads_to(region, a, region.attend.softmaxes[node.id])
    if region.attend is not None and node.id in region.attend.sums:
        return _has_product(region, a) or not _has_product(region, b)
    return not (_only_parameters(region, a) and not _only_parameters(region, b))


def _has_product(region: Region, start: int) -> bool:
    node = region.nodes[start]
    return node.op == "dot" or any(_has_product(region, i) for i in node.inputs)


def leads_to(region: Region, start: int, wanted: int) -> bool:
    return start == wanted or any(leads_to(region, i, wanted) for i in region.nodes[start].inputs)


def _only_parameters(region: Region, start: int) -> bool:
    node = region.nodes[start]
    if node.op == "leaf":
        return start in region.parameters
    return all(_only_parameters(region, i) for i in node.inputs)


def _by_operand(region: Region, node: Node, at: Operand) -> tuple[set[str], set[str]]:
    """Symbols that only the row operand, or only the column operand, of a product uses."""
    a, b = region.operands(node)
    summed, shared = set(node.attrs.axes("axes")), set(a.axes) & set(b.axes)
    own = [symbols_of(at[x] for x in o.axes if x not in summed | shared) for o in (a, b)]
    common = symbols_of(at[x] for x in shared - summed)
    first, second = (symbols - common for symbols in own)
    return (first, second) if rows_first(region, node) else (second, first)


def _kept_symbols(tops: Sequence[tuple[Node, Operand]]) -> set[str]:
    kept: set[str] = set()
    for node, at in tops:
        reduced = {node.attrs["axis"]} if node.op == "softmax" else set()
        kept |= symbols_of(c for axis, c in at.items() if axis not in reduced)
    return kept


def _by_reductions(
    region: Region, walk: _Walk, tops: Sequence[tuple[Node, Operand]]
) -> tuple[set[str], set[str]]:
    everything = {s.symbol for s in walk.steps}
    if not tops:
        cols = _trailing(walk.steps)
    else:
        cols = everything - _kept_symbols(tops) or _outer(region, walk, tops[0][0])
    return everything - cols, cols


def _trailing(steps: Sequence[Step]) -> set[str]:
    """The last axes of the layout, until they are wide enough for a tile."""
    chosen: list[Step] = []
    for step in reversed(steps):
        if chosen and (step.size.constant is None or _width(chosen) >= WIDE):
            break
        chosen.append(step)
    return {s.symbol for s in chosen}


def _width(steps: Sequence[Step]) -> int:
    size = product([s.size for s in steps]).constant
    return WIDE if size is None else size


def _outer(region: Region, walk: _Walk, node: Node) -> set[str]:
    """The last axis, where a reduction runs over another one: lanes stay contiguous."""
    last = region.operands(node)[0].axes[-1:]
    reduced = set(reduced_axes(node))
    if not walk.steps or not last or last[0] in reduced:
        return set()
    return {walk.steps[-1].symbol}


def only(region: Region, outputs: Sequence[int]) -> Region:
    """The region with some of its outputs."""
    return replace(region, outputs=tuple(outputs))


def alike(region: Region) -> list[list[int]]:
    """Outputs by kernel: those over the same axes, and row values beside the rows they come from.

    Any other output gets a kernel of its own: no two programs may write one element. So does each
    result of a product, which computes with columns of its own.
    """
    if region.node.op == "linear":
        return [[output] for output in region.outputs]
    groups: dict[frozenset[str], list[int]] = {}
    for output in region.outputs:
        axes = frozenset(a.name for a in region.nodes[output].axes)
        groups.setdefault(axes, []).append(output)
    largest = max(groups, key=len)
    space = plan_space(only(region, groups[largest]))
    rows = largest - {step.name for step in space.cols}
    shared = space.columns_shared or region.attend is not None
    if shared and rows != largest:
        groups[largest] += groups.pop(rows, [])
    return list(groups.values())
