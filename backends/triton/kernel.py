"""From a region to the source of one `@triton.jit` function.

The iteration space (`space.py`) gives a tile of rows and columns per program; the evaluator
computes each result there and the kernel stores it. A kernel knows run-time sizes as arguments, the
model's own sizes as numbers, and its block lengths as compile-time arguments.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ...compiler.ir.graph import Axis, DType, TensorType
from ...dsl.dims import Dim, product
from .begun import Begun
from .descriptors import DESCRIPTORS
from .evaluate import Evaluator, Value
from .indexing import COLS, ROWS, Indices, Var, join
from .mapping import Operand
from .reduce import MAX, SUM, Limits, Part, Reducer, Span, shared_loops
from .regions import Region
from .scopes import ROOT, Scope
from .space import Space, Step, plan_space
from .split import PARTS, Split
from .tiles import Facts, Kind

LONGEST_ROW = 16384  # elements that a program holds at once
BLOCKS = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "PRECISION", DESCRIPTORS)
WORDS = (
    "tl|for|in|range|float|True|False|mask|other|axis|keep_dims|input_precision|BLOCK_."
    "|PRECISION|DESCRIPTORS"
)
LOCAL_NAME = re.compile(rf"(?<![.\w\"])(?!(?:{WORDS}|n_\w+)\b)[A-Za-z_]\w*")
LETTERS = {block: block[-1] for block in BLOCKS[:3]}


@dataclass(frozen=True, slots=True)
class Pointer:
    """A pointer argument: its element kind, and the value that it reads or the result it writes."""

    name: str
    dtype: DType
    value: int  # id of the function's value, or position of the result
    is_result: bool = False


@dataclass(frozen=True, slots=True)
class Kernel:
    """`body` is the source below the signature; `extents` are rows, columns and batch.

    `wide` are the tile shapes of loads whose lanes are contiguous and aligned to 16 bytes.
    `parts` are functions that the body calls, `{name}_1` and so on; a part has `leading` arguments
    before its pointers. `described` are operands of products with what keeps their tiles from being
    read through descriptors, if anything does.
    """

    name: str
    pointers: tuple[Pointer, ...]
    sizes: tuple[tuple[str, str], ...]  # (symbol, argument)
    blocks: tuple[str, ...]
    body: tuple[str, ...]
    extents: tuple[Dim, Dim, Dim]
    facts: Facts
    header: tuple[str, ...] = ()
    wide: tuple[tuple[str, ...], ...] = ()
    parts: tuple[Kernel, ...] = ()
    leading: tuple[str, ...] = ()
    described: tuple[tuple[str, str], ...] = ()

    @property
    def arguments(self) -> list[str]:
        return [*self.leading, *(p.name for p in self.pointers), *(name for _, name in self.sizes)]

    @property
    def has_dot(self) -> bool:
        return any("dot(" in line for k in (self, *self.parts) for line in k.body)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for kernels that differ in the names of values only."""
        seen: dict[str, str] = {}

        def canonical(name: re.Match[str]) -> str:
            return seen.setdefault(name[0], f"v{len(seen)}")

        text = "\n".join([", ".join(self.arguments), *self.body])
        dtypes = tuple(p.dtype for p in self.pointers)
        parts = tuple(part.identity for part in self.parts)
        return LOCAL_NAME.sub(canonical, text), dtypes, self.blocks, self.facts, parts

    @property
    def functions(self) -> list[str]:
        """The names that its source defines."""
        return [*(p.name for p in self._named_parts()), self.name]

    def _named_parts(self) -> list[Kernel]:
        return [replace(p, name=f"{self.name}_{i}") for i, p in enumerate(self.parts, 1)]

    def source(self) -> str:
        functions = "".join(f"{part.source()}\n\n" for part in self._named_parts())
        constants = [f"{block}: tl.constexpr" for block in self.blocks]
        parameters = ",\n    ".join([*self.arguments, *constants])
        header = "\n".join(f"# {line}" for line in self.header)
        body = "\n".join(f"    {line}" for line in self.body).replace("{name}", self.name)
        return (
            f"{functions}{header}\n@triton.jit\ndef {self.name}(\n    {parameters},\n):\n{body}\n"
        )


def build(region: Region, name: str, header: tuple[str, ...] = ()) -> Kernel:
    """The kernel that computes all outputs of a region. Raises NoLowering."""
    return _Builder(region, plan_space(region)).build(name, header)


def build_part(cut: Split, name: str) -> Kernel:
    """The kernel that computes the contraction of `cut` part by part, as float32[parts, ..]."""
    return _Builder(cut.part, plan_space(cut.part), cut).build(name, ())


def build_begun(begun: Begun, name: str) -> Kernel:
    """The kernel of a product that also leaves the reduction of each of its blocks of columns, as
    float32[.., blocks]."""
    return _Builder(begun.region, plan_space(begun.region), begun=begun).build(name, ())


@dataclass(slots=True)
class _Builder:
    region: Region
    space: Space
    cut: Split | None = None
    begun: Begun | None = None
    indices: Indices = field(default_factory=Indices)
    body: Scope = field(default_factory=lambda: Scope(ROOT))
    evaluator: Evaluator = field(init=False)
    columns: Scope = field(init=False)
    row: Dim = field(default_factory=Dim)
    header: str = ""

    def __post_init__(self) -> None:
        self.evaluator = Evaluator(self.region, self.indices, self.body)
        self.evaluator.letters = LETTERS
        self.evaluator.described = {} if self.kind in ("product", "attend") else None
        self.evaluator.reducer = Reducer(self.evaluator, self._limits())
        self.columns = self.body

    @property
    def kind(self) -> Kind:
        if self.region.attend is not None:
            return "attend"
        if self.space.product is not None:
            return "product"
        return "row" if self.space.reductions else "flat"

    def _limits(self) -> Limits:
        whole = {"attend": 256, "product": 0}.get(self.kind, LONGEST_ROW)
        return Limits(whole, "BLOCK_N" if self.kind == "attend" else "BLOCK_K")

    def build(self, name: str, header: tuple[str, ...]) -> Kernel:
        if self.cut is not None:
            self._part()
        rows = self._rows()
        places = self._batch() | rows | self._columns()
        roots = [
            (output, {axis: c.substitute(places) for axis, c in at.items()})
            for output, at in self.space.outputs
        ]
        if self.space.product is not None:
            self.evaluator.reducer.together = shared_loops(self.indices, self.region, roots)
        results = self._stores(roots)
        if self.header:
            self.columns.close(self.header)
        return self._kernel(name, header, results)

    # -------------------------------------------------------------------------------- iteration

    def _bind(self, steps: list[Step], var: Var) -> dict[str, int | Dim]:
        found = self.indices.flatten([(s.name, s.size) for s in steps], var)
        return dict(zip((s.symbol for s in steps), found, strict=True))

    def _rows(self) -> dict[str, int | Dim]:
        """Always present, so that every tile has two dimensions."""
        var = self.evaluator.reducer.index_var(
            "rows", ROWS, _extent(self.space.rows), "BLOCK_M", self.body,
            "tl.program_id(0) * BLOCK_M",
        )  # fmt: skip
        self.evaluator.reducer.blocks.add("BLOCK_M")
        self.row = Dim.symbol(var.symbol)
        return self._bind(self.space.rows, var) if self.space.rows else {}

    def _part(self) -> None:
        """Parts and batch share an axis of the grid."""
        count = self.evaluator.integer(PARTS.size).text
        text = f"tl.program_id(2) % {count}"
        made = self.evaluator.assign(text, "int", frozenset(), self.body, "part")
        self.indices.add(Var(made.text, PARTS.size, scope=self.body))
        self.evaluator.reducer.part = Part(made.text, count)

    def _batch(self) -> dict[str, int | Dim]:
        if not self.space.batch:
            return {}
        part = self.evaluator.reducer.part
        text = "tl.program_id(2)" + (f" // {part.count}" if part is not None else "")
        made = self.evaluator.assign(text, "int", frozenset(), self.body, "batch")
        var = Var(made.text, _extent(self.space.batch), scope=self.body)
        self.indices.add(var)
        return self._bind(self.space.batch, var)

    @property
    def column_mode(self) -> str:
        """none, whole (one tile), loop (tiles in one program) or grid (a program each)."""
        if not self.space.cols:
            return "none"
        length, shared = _extent(self.space.cols).constant, self.space.columns_shared
        if self.kind == "attend" or (shared and length is not None and length <= LONGEST_ROW):
            return "whole"
        return "loop" if shared else "grid"

    def _columns(self) -> dict[str, int | Dim]:
        mode, reducer, extent = self.column_mode, self.evaluator.reducer, _extent(self.space.cols)
        if mode == "none":
            return {}
        if mode == "whole":
            return self._bind(self.space.cols, reducer.whole_var(COLS, extent))
        reducer.blocks.add("BLOCK_N")
        start = "tl.program_id(1) * BLOCK_N"
        if mode == "loop":
            self.columns, start = Scope(self.body), self.evaluator.fresh("n0")
            self.header = (
                f"for {start} in range(0, {self.evaluator.integer(extent).text}, BLOCK_N):"
            )
        full = self.kind in ("flat", "row") and _is_power_of_two(extent)
        var = reducer.index_var("cols", COLS, extent, "BLOCK_N", self.columns, start, full=full)
        return self._bind(self.space.cols, var)

    # ----------------------------------------------------------------------------------- results

    def _stores(self, roots: list[tuple[int, Operand]]) -> list[Pointer]:
        """Row results first: they stand before a loop over columns. An attention's sums are known
        when its product is."""
        results: dict[int, Pointer] = {}
        attends = self.region.attend is not None
        for output, at in sorted(roots, key=lambda root: len(root[1]), reverse=attends):
            node = self.region.nodes[output]
            if output not in results:
                position = self.region.outputs.index(output)
                results[output] = self._result(position, node.type)
            self._store(results[output], self.evaluator.value(output, at), node.axes, at)
        if self.cut is not None and self.cut.totals is not None:
            total = self._result(1, TensorType("f32", self.cut.totals))
            self._store(total, self._log_total(), self.cut.totals, roots[0][1])
            return [*results.values(), total]
        if self.begun is not None:
            return [*results.values(), self._begin(self.begun, roots[0][1])]
        return sorted(results.values(), key=lambda p: p.value)

    def _result(self, position: int, kind: TensorType) -> Pointer:
        dtype = kind.dtype if self.cut is None else "f32"
        return Pointer(self.evaluator.fresh("out_ptr"), dtype, position, is_result=True)

    def _begin(self, begun: Begun, at: Operand) -> Pointer:
        """Reduces the program's columns of the result, and stores that by block."""
        evaluator, node = self.evaluator, begun.reduction
        (axis,) = node.attrs.axes("axes")
        (symbol,) = at[axis].symbols()
        var, kept = self.indices.table[symbol], {a: at[a] for a in node.axes}
        (x,) = self.region.operands(node)
        fold = evaluator.reducer.folding(
            MAX if node.op == "amax" else SUM, node.type.dtype, node, kept, x
        )
        span = Span({COLS: {axis: at[axis]}}, {COLS: var.masks}, {COLS: var.tiles})
        block = evaluator.assign("tl.program_id(1)", "int", frozenset(), self.body, "block")
        self.indices.add(Var(block.text, PARTS.size, scope=self.body))
        to = Pointer(evaluator.fresh("begun_ptr"), "f32", 1, is_result=True)
        places = {**kept, PARTS: Dim.symbol(f"%{block.text}")}
        self._store(to, fold.whole(span), begun.axes, places)
        return to

    def _log_total(self) -> Value:
        part = self.evaluator.reducer.part
        assert part is not None
        assert part.log_total is not None
        return part.log_total

    def _store(self, to: Pointer, value: Value, axes: Sequence[Axis], at: Operand) -> None:
        if any(self.region.size(a) == Dim() for a in axes):
            return  # there is no element
        part = self.evaluator.reducer.part
        places = [at[a] for a in axes]
        if part is not None:
            axes, places = (PARTS, *axes), [Dim.symbol(f"%{part.index}"), *places]
        address = join(places, [self.region.size(a) for a in axes])
        address = self.indices.expand(address)
        if not self.indices.tiles(address):
            address = address + self.row  # of length 1 then
        masks = sorted(self.indices.masks(address))
        mask = f", mask={' & '.join(masks)}" if masks else ""
        scope = self.columns if COLS in {s for s, _ in self.indices.tiles(address)} else self.body
        scope.add(f"tl.store({to.name} + {self.indices.text(address)}, {value.text}{mask})")

    def _kernel(self, name: str, header: tuple[str, ...], results: list[Pointer]) -> Kernel:
        region, reducer = self.region, self.evaluator.reducer
        leaves = [
            Pointer(pointer, region.nodes[leaf].type.dtype, region.leaves[leaf])
            for leaf, pointer in sorted(self.evaluator.pointers.items())
        ]
        blocks = tuple(b for b in BLOCKS if b in reducer.blocks)
        cols = _extent(self.space.cols) if self.column_mode == "grid" else Dim.of(1)
        batch = _extent(self.space.batch) * (Dim.of(1) if self.cut is None else PARTS.size)
        extents = _extent(self.space.rows), cols, batch
        sizes = tuple(sorted(self.indices.size_names.items()))
        return Kernel(
            name, (*leaves, *results), sizes, blocks, tuple(self.body.lines), extents,
            self._facts(), header, tuple(sorted(self.evaluator.wide)),
            described=tuple((self.evaluator.described or {}).items()),
        )  # fmt: skip

    def _facts(self) -> Facts:
        reducer, region = self.evaluator.reducer, self.region
        width = max((_block(e) for _, e in reducer.full), default=1)
        products = sum(n.op == "dot" for n in self.space.reductions)
        cols = _extent(self.space.cols).constant if self.space.cols else 1
        angles = any("tl.sin(" in line or "tl.cos(" in line for line in self.body.lines)
        meets = self.kind == "flat" or (self.kind == "row" and self.column_mode == "grid")
        running = meets and "BLOCK_K" in reducer.blocks
        pieces = max(Counter(output for output, _ in self.space.outputs).values())
        return Facts(
            self.kind, width, products, cols, angles, reducer.exact, pieces, self._scores(), running,
            len(region.outputs),
        )  # fmt: skip

    def _scores(self) -> int:
        """Products of each tile of an attention's gradient."""
        region = self.region
        if region.attend is None or not region.attend.sums:
            return 1
        dots = {n.id for n in region.nodes.values() if n.op == "dot"}
        return len(dots - region.attend.sums)


def _extent(steps: list[Step]) -> Dim:
    return product([s.size for s in steps])


def _is_power_of_two(extent: Dim) -> bool:
    """Then every block of columns of `tiles.py` divides it."""
    length = extent.constant
    return length is not None and length & (length - 1) == 0 < length


def _block(extent: Dim) -> int:
    length = extent.constant or 1
    return max(16, 1 << max(0, length - 1).bit_length())
