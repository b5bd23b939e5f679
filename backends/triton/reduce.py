"""Reductions inside a kernel: in one tile where the reduced axes fit, else in a loop over tiles.

A reduction at given coordinates needs a tile dimension that those coordinates leave free: the
reduced index runs along it. Without one the loop takes single steps. A product whose operands lie
along rows and along columns is a `tl.dot` with a float32 accumulator; any other product is a sum.
Reductions listed in `together` share a loop: two accumulators of a gated product, or a row
statistic beside one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...compiler.ir.graph import Axis, DType, Node
from ...compiler.passes.properties import reduced_axes
from ...dsl.dims import Dim, product
from .evaluate import Evaluator, Value, literal, refuse
from .indexing import COLS, ROWS, Coordinates, Indices, Tiles, Var, identifier
from .mapping import REDUCTIONS, VIEWS, Operand, reached, restrict, view
from .regions import Region
from .scopes import Scope, deepest
from .tiles import UNMASKED

Group = Sequence[tuple[Node, Coordinates]]  # reductions that share a loop, with coordinates
Reduced = Callable[[Mapping[Axis, Dim]], Value]  # reduced coordinates -> what is reduced


@dataclass(frozen=True, slots=True)
class Limits:
    """Longest axis that is reduced in one tile, the texts of block lengths, whether others loop."""

    whole: int
    block: str = "BLOCK_K"
    loops: bool = True
    precision: str = '"ieee"'  # of products of float32


@dataclass(slots=True)
class Span:
    """The reduced index along each tile dimension, in one tile or one step of a loop."""

    by_slot: dict[int | None, Mapping[Axis, Dim]]
    masks: dict[int | None, frozenset[str]]
    tiles: dict[int | None, Tiles]


@dataclass(frozen=True, slots=True)
class Fold:
    """How values accumulate: neutral element, update, reduction of a tile."""

    neutral: Mapping[str, float | int]
    update: str
    reduce: str


MIXED = ("stored_wide_dot", "wide_stored_dot")  # functions of the generated file, by that side
SUM = Fold({"int": 0, "float": 0.0}, "{0} + {1}", "tl.sum")
MAX = Fold({"int": -(2**31), "float": float("-inf")}, "greater({0}, {1})", "greatest")


@dataclass(slots=True)
class Accumulator:
    """One reduction at its coordinates. `start`, `step` and `finish` write its part of a loop."""

    reducer: Reducer
    fold: Fold
    dtype: DType
    operand: Reduced
    slot: int | None
    kept: Tiles
    base: str
    name: str = ""

    @property
    def neutral(self) -> Value:
        return literal(self.fold.neutral["int" if self.dtype == "int" else "float"])

    def whole(self, span: Span) -> Value:
        """The reduction of a single tile."""
        value = self._tile(span)
        text = f"{self.fold.reduce}({value.text}, axis={self.slot}, keep_dims=True)"
        evaluator = self.reducer.evaluator
        return evaluator.assign(text, self.dtype, self._kept(value), value.scope, self.base)

    def start(self, parent: Scope, span: Span) -> None:
        evaluator = self.reducer.evaluator
        tiles = self.kept | span.tiles[self.slot]
        self.name = evaluator.fresh(self.base, tiles)
        kind = "tl.int32" if self.dtype == "int" else "tl.float32"
        shape = evaluator.shape(tiles)
        parent.add(f"{self.name} = tl.full({shape}, {self.neutral.text}, {kind})")

    def step(self, loop: Scope, span: Span, factor: str = "") -> None:
        """One tile; what was accumulated before is multiplied by `factor`."""
        value = self._tile(span)
        before = f"{self.name} * {factor}" if factor else self.name
        loop.add(f"{self.name} = {self.fold.update.format(before, value.text)}")

    def finish(self, parent: Scope) -> Value:
        if self.slot is None:
            return Value(self.name, self.dtype, self.kept, parent)
        text = f"{self.fold.reduce}({self.name}, axis={self.slot}, keep_dims=True)"
        return self.reducer.evaluator.assign(text, self.dtype, self.kept, parent, self.base)

    def _tile(self, span: Span) -> Value:
        evaluator = self.reducer.evaluator
        value = evaluator.convert(self.operand(span.by_slot[self.slot]), self.dtype)
        if not span.tiles[self.slot] <= value.tiles:
            value = evaluator.spread(value, value.tiles | span.tiles[self.slot])
        return evaluator.masked(value, span.masks[self.slot], self.neutral)

    def _kept(self, value: Value) -> Tiles:
        return frozenset(t for t in value.tiles if t[0] != self.slot)


@dataclass(slots=True)
class Product:
    """A `tl.dot`: operands laid out along rows and columns, accumulated in float32."""

    reducer: Reducer
    node: Node
    sides: tuple[tuple[Node, Coordinates], tuple[Node, Coordinates]]  # rows, columns
    kept: tuple[Tiles, Tiles]
    name: str = ""
    as_stored: int | None = None  # the side that is in the format of memory, the other float32

    @property
    def tiles(self) -> Tiles:
        return self.kept[0] | self.kept[1]

    def whole(self, span: Span) -> Value:
        text, scope = self._dot(span, "")
        base = self.reducer.base(self.node)
        return self.reducer.evaluator.assign(text, "float", self.tiles, scope, base)

    def start(self, parent: Scope, span: Span) -> None:
        evaluator = self.reducer.evaluator
        self.name = evaluator.fresh("acc", self.tiles)
        parent.add(f"{self.name} = tl.zeros({evaluator.shape(self.tiles)}, tl.float32)")

    def step(self, loop: Scope, span: Span, factor: str = "") -> None:
        text, _ = self._dot(span, f"{self.name} * {factor}" if factor else self.name)
        loop.add(f"{self.name} = {text}")

    def finish(self, parent: Scope) -> Value:
        return Value(self.name, "float", self.tiles, parent)

    def is_bare(self, node: Node) -> bool:
        """Whether the row operand is that node itself, perhaps cast."""
        operand = self.sides[0][0]
        while operand.op == "cast":
            (operand,) = self.reducer.evaluator.region.operands(operand)
        return operand.id == node.id

    def _dot(self, span: Span, accumulator: str) -> tuple[str, Scope]:
        self.as_stored = None
        left = self.reducer.dot_operand(self, 0, span, COLS)
        right = self.reducer.dot_operand(self, 1, span, ROWS)
        third = f", {accumulator}" if accumulator else ""
        precision, scope = self.reducer.limits.precision, deepest((left.scope, right.scope))
        if precision.isidentifier():
            self.reducer.blocks.add(precision)
        if self.as_stored is not None and not accumulator:
            return f"{MIXED[self.as_stored]}({left.text}, {right.text}, {precision})", scope
        text = f"tl.dot({left.text}, {right.text}{third}, input_precision={precision})"
        return text, scope


@dataclass(slots=True)
class Part:
    """The part of the one loop that a program runs: number `index` of `count` (texts).

    An attention leaves the logarithm of its weights' sum in `log_total`.
    """

    index: str
    count: str
    log_total: Value | None = None

    def range(self, evaluator: Evaluator, scope: Scope, low: str, high: str, block: str) -> str:
        """Whole blocks from `low`, the same number for each part."""
        length = high if low == "0" else f"({high} - {low})"
        share, first = evaluator.fresh("share"), evaluator.fresh("from_")
        blocks = f"({length} + {block} * {self.count} - 1) // ({block} * {self.count})"
        scope.add(f"{share} = {blocks} * {block}")
        scope.add(f"{first} = {'' if low == '0' else f'{low} + '}{self.index} * {share}")
        return f"range({first}, tl.minimum({first} + {share}, {high}), {block})"


@dataclass(slots=True)
class Reducer:
    """The reductions of one kernel."""

    evaluator: Evaluator
    limits: Limits
    together: list[Group] = field(default_factory=list)
    full: dict[tuple[int, Dim], Var] = field(default_factory=dict)
    blocks: set[str] = field(default_factory=set)
    loop_vars: dict[tuple[int, int], Var] = field(default_factory=dict)
    part: Part | None = None
    exact: bool = False  # some product has float32 operands: no tensor core multiplies those

    # -------------------------------------------------------------------------------- reductions

    def amax(self, node: Node, at: Coordinates) -> Value:
        (x,) = self.evaluator.region.operands(node)
        kind: DType = "int" if x.type.dtype == "bool" else x.type.dtype
        found = self.run(node, at, self.folding(MAX, kind, node, at, x))
        if x.type.dtype != "bool":
            return found
        return replace(found, text=f"({found.text} > 0)", dtype="bool")

    def cumsum(self, node: Node, at: Coordinates) -> Value:
        from .running import running_sum

        return running_sum(self, node, at)

    def cumprod(self, node: Node, at: Coordinates) -> Value:
        from .running import running_product

        return running_product(self, node, at)

    def substitute(self, node: Node, at: Coordinates) -> Value:
        from .triangular import substituted

        return substituted(self, node, at)

    def softmax(self, node: Node, at: Coordinates) -> Value:
        """exp(x - max) / sum, where a row without a finite entry gives zeros."""
        evaluator, (x,) = self.evaluator, self.evaluator.region.operands(node)
        rows = restrict(at, [a for a in x.axes if a != node.attrs["axis"]])
        key = tuple(rows.values())
        shift = evaluator.once((node.id, "max", key), lambda: self._shift(node, rows, x))
        total = evaluator.once((node.id, "sum", key), lambda: self._total(node, rows, x, shift))
        weight = self._exponential(x, at, shift)
        tiles = weight.tiles | total.tiles
        scope = deepest((weight.scope, total.scope))
        text = f"{weight.text} / {total.text}"
        return evaluator.assign(text, node.type.dtype, tiles, scope, self.base(node))

    def logsumexp(self, node: Node, at: Coordinates) -> Value:
        """max + log(sum of exponentials); the loop of an attention has left it where it is known."""
        evaluator, (x,) = self.evaluator, self.evaluator.region.operands(node)
        shift = self._shift(node, at, x)
        fold = self.folding(SUM, "float", node, at, x)
        fold.operand = lambda reduced: self._exponential(x, {**at, **reduced}, shift)
        total = self.run(node, at, fold)
        scope = deepest((shift.scope, total.scope))
        text = f"{shift.text} + tl.log({total.text})"
        tiles = shift.tiles | total.tiles
        return evaluator.assign(text, node.type.dtype, tiles, scope, self.base(node))

    def _shift(self, node: Node, rows: Coordinates, x: Node) -> Value:
        high = self.run(node, rows, self.folding(MAX, "float", node, rows, x))
        text = f'tl.where({high.text} == float("-inf"), 0.0, {high.text})'
        return self.evaluator.assign(text, "float", high.tiles, high.scope, "shift")

    def _total(self, node: Node, rows: Coordinates, x: Node, shift: Value) -> Value:
        fold = self.folding(SUM, "float", node, rows, x)
        fold.operand = lambda reduced: self._exponential(x, {**rows, **reduced}, shift)
        total = self.run(node, rows, fold)
        text = f"tl.where({total.text} == 0, 1.0, {total.text})"
        return self.evaluator.assign(text, "float", total.tiles, total.scope, "total")

    def _exponential(self, x: Node, at: Coordinates, shift: Value) -> Value:
        evaluator = self.evaluator

        def make() -> Value:
            score = evaluator.convert(evaluator.value(x.id, restrict(at, x.axes)), "float")
            text = f"tl.exp({score.text} - {shift.text})"
            scope = deepest((score.scope, shift.scope))
            return evaluator.assign(text, "float", score.tiles | shift.tiles, scope, "weight")

        return evaluator.once((x.id, "exp", shift.text, *(at[a] for a in x.axes)), make)

    # ------------------------------------------------------------------------------------- plans

    def base(self, node: Node) -> str:
        return identifier(node.hint or node.op)

    def reduced(self, node: Node, at: Coordinates) -> Value:
        """A sum or product, together with those that share its loop."""
        group = next((g for g in self.together if any(_same(m, (node, at)) for m in g)), None)
        attend = self.evaluator.region.attend
        if attend is not None and node.id in attend.softmaxes:
            return self._weighed(node, at, group or [(node, at)])
        if group is None:
            return self.run(node, at, self.accumulator(node, at))
        parts = [self.accumulator(*member) for member in group]
        if any(isinstance(p, Accumulator) and p.slot is None for p in parts):
            return self.run(node, at, self.accumulator(node, at))
        return self._keep(node, at, group, self._loop(node, group, parts))

    def _weighed(self, node: Node, at: Coordinates, group: Group) -> Value:
        """A sum of values weighed by a softmax over the summed axis, which is never stored."""
        from .online import online_loop

        return self._keep(node, at, group, online_loop(self, group))

    def _keep(self, node: Node, at: Coordinates, group: Group, values: Sequence[Value]) -> Value:
        for (member, where), value in zip(group, values, strict=True):
            key = (member.id, *(where[axis] for axis in member.axes))
            self.evaluator.known[key] = value
        return self.evaluator.known[(node.id, *(at[axis] for axis in node.axes))]

    def accumulator(self, node: Node, at: Coordinates) -> Accumulator | Product:
        if node.op == "dot":
            return self._product(node, at) or self._sum_of_products(node, at)
        (x,) = self.evaluator.region.operands(node)
        return self.folding(SUM, node.type.dtype, node, at, x)

    def _product(self, node: Node, at: Coordinates) -> Product | None:
        """The `tl.dot`, if one operand varies along rows only and the other along columns only."""
        operands, summed = self.evaluator.region.operands(node), set(node.attrs.axes("axes"))
        if any(o.type.dtype in ("int", "bool") or not summed <= set(o.axes) for o in operands):
            return None
        if not summed:
            return None
        sides = [(o, restrict(at, [a for a in o.axes if a not in summed])) for o in operands]
        kept = [self.tiles(where) for _, where in sides]
        slots = [{slot for slot, _ in tiles} for tiles in kept]
        if slots == [{COLS}, {ROWS}]:
            sides, kept = sides[::-1], kept[::-1]
        elif slots != [{ROWS}, {COLS}]:
            return None
        return Product(self, node, (sides[0], sides[1]), (kept[0], kept[1]))

    def _sum_of_products(self, node: Node, at: Coordinates) -> Accumulator:
        evaluator, (a, b) = self.evaluator, self.evaluator.region.operands(node)
        kind = node.type.dtype

        def operand(reduced: Mapping[Axis, Dim]) -> Value:
            where = {**at, **reduced}
            left = evaluator.convert(evaluator.value(a.id, restrict(where, a.axes)), kind)
            right = evaluator.convert(evaluator.value(b.id, restrict(where, b.axes)), kind)
            scope = deepest((left.scope, right.scope))
            text = f"({left.text} * {right.text})"
            return Value(text, kind, left.tiles | right.tiles, scope)

        return Accumulator(self, SUM, kind, operand, *self.place(at), self.base(node))

    def folding(
        self, fold: Fold, dtype: DType, node: Node, at: Coordinates, x: Node
    ) -> Accumulator:
        def operand(reduced: Mapping[Axis, Dim]) -> Value:
            return self.evaluator.value(x.id, restrict({**at, **reduced}, x.axes))

        return Accumulator(self, fold, dtype, operand, *self.place(at), self.base(node))

    def place(self, at: Coordinates) -> tuple[int | None, Tiles]:
        """A tile dimension that the kept coordinates leave free, and their tiles."""
        kept = self.tiles(at)
        used = {slot for slot, _ in kept}
        return next((s for s in (COLS, ROWS) if s not in used), None), kept

    def tiles(self, at: Coordinates) -> Tiles:
        indices = self.evaluator.indices
        return frozenset().union(*(indices.tiles(indices.expand(c)) for c in at.values()))

    # ------------------------------------------------------------------------------------- loops

    def run(self, node: Node, at: Coordinates, part: Accumulator | Product) -> Value:
        extent = self.extent(node)
        slots: set[int | None] = {COLS, ROWS} if isinstance(part, Product) else {part.slot}
        # a tile of nothing would hold the constants that do not depend on where they are read
        longest = self.longest(extent)
        fits = longest is not None and 0 < longest <= self.limits.whole
        if fits and None not in slots:
            return part.whole(self.whole_span(node, slots))
        if not self.limits.loops:
            raise refuse(node, f"{node.op} over {extent} elements, not in one tile,")
        return self._loop(node, [(node, at)], [part])[0]

    def extent(self, node: Node) -> Dim:
        return product([self.evaluator.region.size(a) for a in reduced_axes(node)])

    def longest(self, extent: Dim) -> int | None:
        """The most that an extent may be, if the kernel knows."""
        high = None if extent.constant is None else extent
        if high is None and all(s.startswith("%") for s in extent.symbols()):
            high = self.evaluator.indices.highest(extent)
        return None if high is None else high.constant

    def whole_span(self, node: Node, slots: set[int | None]) -> Span:
        extent = self.extent(node)
        span = Span({}, {}, {})
        for slot in slots:
            assert slot is not None
            var = self.whole_var(slot, extent)
            self._bind(span, slot, var, node)
        return span

    def whole_var(self, slot: int, extent: Dim) -> Var:
        """The index that covers an axis in one tile."""
        if (slot, extent) not in self.full:
            length = self.longest(extent)
            assert length is not None
            block, scope = str(max(16, _power_of_two(length))), self.evaluator.indices.scope(extent)
            scope = self.evaluator.scope(scope)
            self.full[slot, extent] = self.index_var("i", slot, extent, block, scope)
        return self.full[slot, extent]

    def turned(self, place: Dim) -> Dim | None:
        """The place in a tile whose rows and columns change places, of one that varies along whole
        axes only."""
        new: dict[str, Dim] = {}
        for (slot, extent), var in self.full.items():
            if (1 - slot, extent) in self.full:
                new[var.symbol] = Dim.symbol(self.full[1 - slot, extent].symbol)
        indices = self.evaluator.indices
        if any(v.tiles and v.symbol not in new for v in indices.variables(place)):
            return None
        return place.substitute(new)

    def index_var(
        self,
        base: str,
        slot: int,
        extent: Dim,
        block: str,
        scope: Scope,
        start: str = "",
        *,
        full: bool = False,
    ) -> Var:
        """`start + arange(block)` along `slot`, masked unless every block is `full`."""
        evaluator = self.evaluator
        tiles: Tiles = frozenset({(slot, block)})
        shape = "[None, :]" if slot == COLS else "[:, None]"
        plus = f"{start} + " if start else ""
        text = f"{plus}tl.arange(0, {block}){shape}"
        made = evaluator.assign(text, "int", tiles, scope, base)
        masks: frozenset[str] = frozenset()
        if not full and not _always_full(extent, block):
            bound = evaluator.integer(extent).text
            condition = f"{made.text} < {bound}"
            mask = evaluator.condition(condition, tiles, scope, f"{base}_in")
            masks = frozenset({mask.text})
        var = Var(made.text, extent, tiles, masks, scope, first=start or "0")
        evaluator.indices.add(var)
        return var

    def _bind(self, span: Span, slot: int | None, var: Var, node: Node) -> None:
        region, axes = self.evaluator.region, reduced_axes(node)
        named = [(a.name, region.size(a)) for a in axes]
        found = self.evaluator.indices.flatten(named, var)
        span.by_slot[slot] = dict(zip(axes, found, strict=True))
        span.masks[slot], span.tiles[slot] = var.masks, var.tiles

    def _loop(
        self,
        node: Node,
        group: Group,
        parts: Sequence[Accumulator | Product],
    ) -> list[Value]:
        evaluator, extent = self.evaluator, self.extent(node)
        scopes = [evaluator.indices.scope(c) for _, at in group for c in at.values()]
        parent = evaluator.scope(deepest(scopes))
        loop = Scope(parent)
        scalar = any(isinstance(p, Accumulator) and p.slot is None for p in parts)
        start = evaluator.fresh("k" if scalar else "k0")
        spans = [
            self.loop_span(member, loop, start, scalar, part)
            for (member, _), part in zip(group, parts, strict=True)
        ]
        for part, span in zip(parts, spans, strict=True):
            part.start(parent, span)
        for part, span in zip(parts, spans, strict=True):
            part.step(loop, span)
        step = "1" if scalar else self.limits.block
        low, high = "0", evaluator.integer(extent).text
        if evaluator.region.attend is not None and node.id in evaluator.region.attend.sums:
            from .online import bounds

            low, high = bounds(self, node, group[0][1], parent)
        steps = self.steps(low, high, step, parent)
        loop.close(f"for {start} in {steps}:")
        return [part.finish(parent) for part in parts]

    def steps(self, low: str, high: str, block: str, scope: Scope) -> str:
        """The range of a loop, or of a part of it."""
        if self.part is None:
            return f"range({low}, {high}, {block})"
        return self.part.range(self.evaluator, scope, low, high, block)

    def loop_span(
        self, node: Node, loop: Scope, start: str, scalar: bool, part: Accumulator | Product
    ) -> Span:
        span, extent = Span({}, {}, {}), self.extent(node)
        if scalar:
            var = Var(start, extent, scope=loop)
            self.evaluator.indices.add(var)
            self._bind(span, None, var, node)
            return span
        for slot in (COLS, ROWS) if isinstance(part, Product) else (part.slot,):
            assert slot is not None
            self.add_slot(span, node, loop, start, slot)
        return span

    def add_slot(self, span: Span, node: Node, loop: Scope, start: str, slot: int) -> None:
        """The loop's index along one more tile dimension."""
        key, block = (id(loop), slot), self.limits.block
        self.blocks.add(block)
        if key not in self.loop_vars:
            base = block[-1].lower()
            self.loop_vars[key] = self.index_var(base, slot, self.extent(node), block, loop, start)
        self._bind(span, slot, self.loop_vars[key], node)

    # ---------------------------------------------------------------------------------- products

    def dot_operand(self, dot: Product, side: int, span: Span, slot: int) -> Value:
        """One operand of a `tl.dot`, in the format of memory unless it must be float32."""
        evaluator, slots = self.evaluator, (slot, 1 - slot) if side == 0 else (1 - slot, slot)
        peeled = [
            self.peeled(node, {**at, **span.by_slot[own]})
            for (node, at), own in zip(dot.sides, slots, strict=True)
        ]
        half = all(node.type.dtype == "float" for node, _ in peeled)
        # Both, as the one says in which type the other is multiplied.
        value = [evaluator.value(node.id, at) for node, at in peeled][side]
        tiles = dot.kept[side] | span.tiles[slot]
        if not value.stored or not span.tiles[slot] <= value.tiles:  # else its load is masked
            value = evaluator.masked(value, span.masks[slot], literal(0.0))
        value = evaluator.spread(value, tiles)
        if half and value.stored:
            return value
        mixed = self.limits.precision.isidentifier() and peeled[1 - side][0].op != "leaf"
        if value.stored and mixed:
            dot.as_stored = side
            return evaluator.named(value)
        wanted = self.model_type() if half else "tl.float32"
        self.exact |= wanted == "tl.float32"
        if wanted == "tl.float32" and not value.stored:
            return evaluator.convert(value, "f32")
        return replace(value, text=f"{evaluator.named(value).text}.to({wanted})")

    def peeled(self, node: Node, at: Coordinates) -> tuple[Node, Operand]:
        """Below casts that raise, and views of them: raising changes nothing where float32
        accumulates."""
        region, where = self.evaluator.region, restrict(at, node.axes)
        found = node, where
        while node.op in VIEWS or (node.op == "cast" and node.type.dtype != "float"):
            (source,) = region.operands(node)
            if node.op in VIEWS:
                where = view(self.evaluator.indices, region, node, where)
            node = source
            if node.type.dtype == "float" or found[0].op == "cast":
                found = node, where
        return found

    def model_type(self) -> str:
        """The element type of the run, read off a pointer to a value of that type."""
        evaluator = self.evaluator
        for leaf, pointer in evaluator.pointers.items():
            if evaluator.region.nodes[leaf].type.dtype == "float":
                return f"{pointer}.dtype.element_ty"
        return "tl.float32"


def _same(a: tuple[Node, Coordinates], b: tuple[Node, Coordinates]) -> bool:
    return a[0].id == b[0].id and dict(a[1]) == dict(b[1])


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _always_full(extent: Dim, block: str) -> bool:
    """Whether tiles of any length that the tables use end at the axis's end."""
    if extent.constant is None:
        return False
    return extent.constant % (int(block) if block.isdigit() else UNMASKED) == 0


def shared_loops(indices: Indices, region: Region, roots: list[tuple[int, Operand]]) -> list[Group]:
    """Products, and sums beside them, that run over the same axes and wait for no reduction.

    In an attention those that one softmax weighs, or none.
    """
    groups: dict[object, list[tuple[Node, Operand]]] = {}
    for node, at in reached(indices, region, roots):
        if node.op in ("dot", "sum"):
            key = _loop_key(region, node)
            if key is not None:
                groups.setdefault(key, []).append((node, at))
    return [group for group in groups.values() if len(group) > 1]


def _loop_key(region: Region, node: Node) -> object:
    """Equal for reductions that may share a loop; None for one that has a loop of its own."""
    if region.attend is not None:
        return region.attend.softmaxes.get(node.id)
    if any(_waits(region, i) for i in node.inputs):
        return None
    return product([region.size(a) for a in reduced_axes(node)])


def _waits(region: Region, node_id: int) -> bool:
    node = region.nodes[node_id]
    return node.op in REDUCTIONS or any(_waits(region, i) for i in node.inputs)
