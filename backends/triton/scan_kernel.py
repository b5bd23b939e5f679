"""One kernel for a whole scan: a loop over its steps, or chunks of them, with states in registers.

    h = h0;  for step in 0..n:  y[step] = f(x[step], h),  h = g(x[step], h)

Each program runs all steps for a tile of the states' elements, so what a step reads of a state must
lie in that tile: elements at the same place, and sums over axes that the tile covers. Layouts are
tried in turn (`layouts`); the evaluator refuses one in which a state is read elsewhere. A value
that lacks an axis of the grid is computed by every program along it and stored by the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ...compiler.ir.graph import Axis, DType, Node
from ...compiler.passes.properties import reduced_axes
from ...dsl.dims import Dim, product
from ...dsl.errors import NoLowering
from .evaluate import TRITON_TYPES, Evaluator, Value, refuse
from .indexing import COLS, ROWS, Indices, Tiles, Var, identifier, join
from .kernel import BLOCKS, LETTERS, Kernel, Pointer
from .mapping import REDUCTIONS, STEP, Operand
from .reduce import Limits, Reducer
from .scopes import ROOT, Scope
from .steps import COUNT, Scan
from .tiles import Facts, Kind

LONGEST = 256  # of an axis that a program covers: its elements of a state are in registers
MATRICES = 16384  # elements of what a step multiplies with: shared memory holds them
# Steps of a chunk times what its products sum over, in registers; a float32 operand takes three, and a
# triangular system is in registers whole.
ROWS_BY_WIDTH, SOLVED_ROWS_BY_WIDTH, WIDE_ROWS_BY_WIDTH = 4096, 2048, 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """Axes of the states and of what a step gives, along rows, columns and programs.

    Rows or columns are `whole` in one program where a step sums over them.
    """

    rows: tuple[Axis, ...]
    cols: tuple[Axis, ...]
    batch: tuple[Axis, ...] = ()
    whole_rows: bool = False
    whole_cols: bool = True


def build_scan(scan: Scan, name: str) -> Kernel:
    """Raises NoLowering with what keeps the steps out of one kernel."""
    refused: NoLowering | None = None
    for layout in layouts(scan):
        try:
            return _Builder(scan, layout).build(name)
        except NoLowering as reason:
            refused = refused or reason
    raise refused or NoLowering(op="a state without axes", backend="triton")


# ---------------------------------------------------------------------------------------- layouts


def layouts(scan: Scan) -> Iterator[Layout]:
    """Ways to lay out a scan, the best first."""
    region = scan.region
    own = [a for i in (*scan.carried, *scan.roots) for a in region.nodes[i].axes]
    axes = tuple(a for a in dict.fromkeys(own) if a != scan.chunk)
    summed = list(dict.fromkeys(_summed(scan, axes)))
    if scan.chunk is not None:
        yield from _in_chunks(scan, axes, summed)
        return
    for inner in summed:
        yield Layout(tuple(a for a in axes if a not in inner), inner)
    if not summed:
        yield Layout(axes[:-1], axes[-1:], whole_cols=False)


def _in_chunks(
    scan: Scan, axes: Sequence[Axis], summed: list[tuple[Axis, ...]]
) -> Iterator[Layout]:
    """Of a chunk rows are steps or what readouts sum over, columns an axis that neither has."""
    (first, *_) = [*summed, ()]
    free = [a for a in axes if a not in first and _only_in_states(scan, a)]
    for cols in (*free[::-1], None):
        outer = tuple(a for a in axes if a not in first and a != cols)
        yield Layout(first, () if cols is None else (cols,), outer, True, False)


def _only_in_states(scan: Scan, axis: Axis) -> bool:
    return any(axis in scan.region.nodes[i].axes for i in scan.carried)


def _summed(scan: Scan, axes: Sequence[Axis]) -> Iterator[tuple[Axis, ...]]:
    """The axes over which something of a state is summed, in the states' names."""
    region, stated = scan.region, set(scan.carried)
    old: dict[Axis, Axis] = {}
    for node in region.nodes.values():
        if stated.isdisjoint(node.inputs):
            continue
        stated.add(node.id)
        if node.op == "rename":
            old |= {new: old.get(a, a) for a, new in node.attrs.pairs("pairs") if new not in axes}
        if node.op in REDUCTIONS or node.op == "cumsum":
            yield tuple(old.get(a, a) for a in reduced_axes(node))


# ---------------------------------------------------------------------------------------- kernels


@dataclass(slots=True)
class _Builder:
    scan: Scan
    layout: Layout
    indices: Indices = field(default_factory=Indices)
    body: Scope = field(default_factory=lambda: Scope(ROOT))
    loop: Scope = field(init=False)
    evaluator: Evaluator = field(init=False)
    reducer: Reducer = field(init=False)
    places: dict[Axis, Dim] = field(default_factory=dict)
    states: list[Value] = field(default_factory=list)

    def __post_init__(self) -> None:
        region = self.scan.region
        self.loop = Scope(self.body)
        self.evaluator = Evaluator(region, self.indices, self.body)
        self.evaluator.letters = LETTERS
        self.reducer = Reducer(self.evaluator, Limits(LONGEST, loops=False, precision="PRECISION"))
        self.evaluator.reducer = self.reducer
        self.evaluator.names.update((STEP, COUNT))

    def build(self, name: str) -> Kernel:
        self._grid()
        count = self._steps()
        self._start()
        nodes = self.scan.region.nodes
        stored = [
            self._store(self.loop, self._value(root), self._at_step(root), result, nodes[root])
            for result, root in self.scan.sequences.items()
        ]
        self._next()
        self.loop.close(self._header(count))
        for result, state in self.scan.last.items():
            node = nodes[self.scan.carried[state]]
            at = {a: self.places[a] for a in node.axes}
            stored.append(self._store(self.body, self.states[state], at, result, node))
        return self._kernel(name, stored)

    # -------------------------------------------------------------------------------- iteration

    def _grid(self) -> None:
        layout, reducer = self.layout, self.reducer
        rows, cols = self._extent(layout.rows), self._extent(layout.cols)
        if layout.whole_rows and layout.rows:
            self._bind(layout.rows, self._whole(ROWS, rows))
        elif not layout.whole_rows:
            start = "tl.program_id(0) * BLOCK_M"
            reducer.blocks.add("BLOCK_M")
            var = reducer.index_var("rows", ROWS, rows, "BLOCK_M", self.body, start)
            self._bind(layout.rows, var)
        if layout.cols and layout.whole_cols:
            self._bind(layout.cols, self._whole(COLS, cols))
        elif layout.cols:
            start = "tl.program_id(1) * BLOCK_N"
            reducer.blocks.add("BLOCK_N")
            var = reducer.index_var("cols", COLS, cols, "BLOCK_N", self.body, start)
            self._bind(layout.cols, var)
        if layout.batch:
            made = self.evaluator.assign("tl.program_id(2)", "int", frozenset(), self.body, "batch")
            var = Var(made.text, self._extent(layout.batch), scope=self.body)
            self.indices.add(var)
            self._bind(layout.batch, var)

    def _whole(self, slot: int, extent: Dim) -> Var:
        if extent.constant is None or not 0 < extent.constant <= LONGEST:
            node = self.scan.region.node
            raise refuse(node, f"a sum over {extent} elements of a state, more than {LONGEST},")
        return self.reducer.whole_var(slot, extent)

    def _bind(self, axes: tuple[Axis, ...], var: Var) -> None:
        found = self.indices.flatten([(a.name, self.scan.region.size(a)) for a in axes], var)
        self.places.update(zip(axes, found, strict=True))

    def _extent(self, axes: tuple[Axis, ...]) -> Dim:
        return product([self.scan.region.size(a) for a in axes])

    def _steps(self) -> str:
        """The variables of the loop; the number of steps as text."""
        total = self.scan.region.size(self.scan.axis)
        self.indices.add(Var(STEP, total, scope=self.loop))
        text = self.evaluator.integer(total).text
        if self.scan.chunk is not None:
            widest = max((self.reducer.longest(e) or 1 for _, e in self.reducer.full), default=1)
            most = self._rows_by_width() // length_of(widest)
            length = min(self.scan.length, max(16, min(32, most)))
            self.scan.length = length  # a chunk of fewer steps means the same
            self.loop.add(f"{COUNT} = tl.minimum({length}, {text} - {STEP})")
            self.indices.add(Var(COUNT, Dim.of(length + 1), scope=self.loop))
            var = self.reducer.whole_var(ROWS, Dim.symbol(f"%{COUNT}"))
            self.places[self.scan.chunk] = Dim.symbol(var.symbol)
        return text

    def _rows_by_width(self) -> int:
        nodes = self.scan.region.nodes
        factors = (nodes[i] for i in self.evaluator.multiplied)
        if any(n.op == "leaf" and n.type.dtype == "f32" for n in factors):
            return WIDE_ROWS_BY_WIDTH
        solved = any(n.op == "substitute" for n in nodes.values())
        return SOLVED_ROWS_BY_WIDTH if solved else ROWS_BY_WIDTH

    def _header(self, count: str) -> str:
        step = self.scan.length if self.scan.chunk is not None else 1
        if not self.scan.reverse:
            return f"for {STEP} in range(0, {count}, {step}):"
        last = f"{count} - 1" if step == 1 else f"({count} - 1) // {step} * {step}"
        return f"for {STEP} in range({last}, -1, -{step}):"

    # ----------------------------------------------------------------------------------- states

    def _start(self) -> None:
        """What the states are before the first step."""
        nodes = self.scan.region.nodes
        for carried, initial in zip(self.scan.carried, self.scan.initial, strict=True):
            node = nodes[carried]
            at = {a: self.places[a] for a in node.axes}
            places = (self.indices.expand(c) for c in at.values())
            tiles: Tiles = frozenset().union(*map(self.indices.tiles, places))
            text = self._tile(self.evaluator.value(initial, at), node.type.dtype, tiles)
            base = identifier(node.hint or "state")
            made = self.evaluator.assign(text, node.type.dtype, tiles, self.body, base)
            self.states.append(replace(made, scope=self.loop))
            self.evaluator.carried[carried] = (at, self.states[-1])

    def _next(self) -> None:
        """All new states first: one may be made of the others."""
        fresh = []
        for state, update in zip(self.states, self.scan.updates, strict=True):
            name = self.evaluator.fresh("next", state.tiles)
            text = self._tile(self._value(update), state.dtype, state.tiles)
            self.loop.add(f"{name} = {text}")
            fresh.append(name)
        for state, name in zip(self.states, fresh, strict=True):
            self.loop.add(f"{state.text} = {name}")

    def _tile(self, value: Value, dtype: DType, tiles: Tiles) -> str:
        """The value in the shape and kind that the loop carries."""
        value, shape = self.evaluator.convert(value, dtype), self.evaluator.shape(tiles)
        if value.number is not None:
            return f"tl.full({shape}, {value.text}, {TRITON_TYPES[dtype]})"
        if not tiles:
            return f"{value.text} + tl.zeros({shape}, {TRITON_TYPES[dtype]})"
        return self.evaluator.spread(value, tiles).text

    def _value(self, root: int) -> Value:
        axes = self.scan.region.nodes[root].axes
        return self.evaluator.value(root, {a: self.places[a] for a in axes})

    # ----------------------------------------------------------------------------------- results

    def _at_step(self, root: int) -> Operand:
        """The coordinates of a sequence, the step's place among them."""
        scan = self.scan
        at = {a: self.places[a] for a in scan.region.nodes[root].axes if a != scan.chunk}
        place = Dim.symbol(f"%{STEP}")
        if scan.chunk is not None:
            place = place + self.places[scan.chunk]
        return {**at, scan.axis: place}

    def _store(self, scope: Scope, value: Value, at: Operand, result: int, node: Node) -> Pointer:
        region, indices, evaluator = self.scan.region, self.indices, self.evaluator
        kind, pointer = region.node.types[result], evaluator.fresh("out_ptr")
        address = join([at[a] for a in kind.axes], [region.size(a) for a in kind.axes])
        address = indices.expand(address)
        first = [self._first(a) for a in self.grid if a not in node.axes]
        masks = indices.masks(address) | {m for m in first if m}
        tiles = indices.tiles(address)
        where = f"{pointer} + {indices.text(address)}"
        lanes = tiles.union(*(evaluator.conditions[m].tiles for m in masks))
        if lanes != tiles or not tiles:
            where += f" + tl.zeros({evaluator.shape(lanes)}, tl.int32)"
        mask = f", mask={' & '.join(sorted(masks))}" if masks else ""
        scope.add(f"tl.store({where}, {value.text}{mask})")
        return Pointer(pointer, kind.dtype, result, is_result=True)

    @property
    def grid(self) -> tuple[Axis, ...]:
        """The axes along which programs lie."""
        layout = self.layout
        rows = () if layout.whole_rows else layout.rows
        return (*rows, *(() if layout.whole_cols else layout.cols), *layout.batch)

    def _first(self, axis: Axis) -> str:
        """The mask of the first element along an axis."""
        place = self.evaluator.integer(self.places[axis])
        if place.number == 0:
            return ""

        def make() -> Value:
            return self.evaluator.condition(f"{place.text} == 0", place.tiles, self.body, "first")

        return self.evaluator.once(("first", axis), make).text

    def _kernel(self, name: str, results: list[Pointer]) -> Kernel:
        region, layout = self.scan.region, self.layout
        leaves = [
            Pointer(pointer, region.nodes[leaf].type.dtype, region.leaves[leaf])
            for leaf, pointer in sorted(self.evaluator.pointers.items())
        ]
        rows = Dim.of(1) if layout.whole_rows else self._extent(layout.rows)
        cols = Dim.of(1) if layout.whole_cols else self._extent(layout.cols)
        return Kernel(
            name,
            (*leaves, *sorted(results, key=lambda p: p.value)),
            tuple(sorted(self.indices.size_names.items())),
            tuple(b for b in BLOCKS if b in self.reducer.blocks),
            tuple(self.body.lines),
            (rows, cols, self._extent(layout.batch)),
            self._facts(),
        )

    def _facts(self) -> Facts:
        """Raises NoLowering where a program does not hold the matrices of a step."""
        products = sum("dot(" in line for line in self.body.lines)
        widths = [length_of(extent) for (slot, _), extent in self._covered() if slot == COLS]
        kind: Kind = "steps" if self.scan.chunk is None else "chunks"
        width = max(widths, default=1)
        if kind == "steps" and products * width * width > MATRICES:
            what = f"{products} matrices of {width} by {width} beside the states"
            raise refuse(self.scan.region.node, what)
        return Facts(kind, width, products)

    def _covered(self) -> Iterator[tuple[tuple[int, Dim], int]]:
        for key in self.reducer.full:
            yield key, self.reducer.longest(key[1]) or 1


def length_of(longest: int) -> int:
    """The block that covers an axis."""
    return max(16, 1 << max(0, longest - 1).bit_length())
