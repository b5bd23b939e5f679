"""`attend` as a machine runs it: tiles of queries by tiles of keys, with an online softmax.

For each tile the scores are evaluated on the tile; the running sum l and the accumulators are
multiplied by exp(m_old - m_new) and added to. Tiles beyond the mask's proved bounds are not looked
at, one whose mask holds nowhere is skipped. Rows that see no key give zeros.
`compiler/ops/attend.py` has the equation and says which bodies qualify.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ...compiler.ir.graph import Axis, Function, Node, TensorType, operand_types
from ...compiler.ir.walk import cone
from ...compiler.ops import OPS, Array, Call, Precision, align
from ...compiler.ops.attend import (
    MOVES,
    AttendPlan,
    NotTileable,
    consumed_axes,
    plan_attend,
    runs_by_rows,
)
from ...compiler.ops.reduce import divide_rows, finite
from ...compiler.ops.structure import along
from .prepared import OVERLAYS, Run, Structure, Windows, ready_primitive

Window = tuple[int, int]
# Fixed, so that a row does not depend on its batch: scores of a head fit a core's cache.
QUERIES, KEYS = 128, 512


@dataclass(slots=True)
class Attention:
    """An attend node made ready for given sizes: its operands -> its output, or all of them.

    `blocks` are runs of queries with the keys that they can see. In a tile values along the keys are
    `sliced` from whole ones, or made: those of `first` before all, since they say whether the tile is
    hidden, then `rest` up to the contractions. They read what is `outside`. `ready` holds what nodes
    run, by the lengths of a tile: nothing but an index needs its place, and `indices` has those.
    """

    node: Node
    body: Function
    plan: AttendPlan
    sizes: Mapping[str, int]
    precision: Precision
    structure: Structure
    tile: int | None
    query: Axis | None  # the row axis of the keys' timeline, if its entries need no others
    blocks: list[tuple[Windows, Window]] = field(default_factory=list)
    sliced: list[Node] = field(default_factory=list)
    first: list[Node] = field(default_factory=list)
    rest: list[Node] = field(default_factory=list)
    outside: set[int] = field(default_factory=set)
    constants: dict[int, Array] = field(default_factory=dict)
    ready: dict[tuple[int, ...], dict[int, Run]] = field(default_factory=dict)
    indices: dict[tuple[int, Window | None], Array] = field(default_factory=dict)
    moves: dict[int, list[Node]] = field(default_factory=dict)  # by contraction

    def __post_init__(self) -> None:
        self.order()
        size = self.plan.keys.size.evaluate(self.sizes)
        if self.query is None:
            self.blocks = [({}, (0, size))]
            return
        rows, step = self.query.size.evaluate(self.sizes), self.tile or QUERIES
        for start in range(0, max(rows, 1), step):
            queries = start, min(start + step, rows)
            self.blocks.append(({self.query: queries}, self.visible(queries, size)))

    def order(self) -> None:
        """Sorts the nodes that tiles have to do with."""
        plan, body = self.plan, self.body
        made = plan.tiled | {*plan.softmaxes, *plan.contractions}
        hiding = cone(body, [m for found in plan.masks.values() for m in found])
        for node in body.nodes:
            if node.id in made:
                (self.first if node.id in hiding & plan.tiled else self.rest).append(node)
        read = {i for node in (*self.first, *self.rest) for i in node.inputs} - made
        self.sliced = [body[i] for i in sorted(read) if plan.keys in body[i].axes]
        outside = read - {node.id for node in self.sliced}
        fixed = [body[i] for i in outside if body[i].op == "const"]
        self.constants = {n.id: self.made(n, {})() for n in fixed}
        self.outside = outside - self.constants.keys()
        self.moves = {
            i: self.moving(body[i]) for i, s in plan.contractions.items() if s is not None
        }

    def moving(self, contraction: Node) -> list[Node]:
        """The nodes from the softmax to a contraction that move its rows."""
        found: list[Node] = []
        here = contraction
        while True:
            (source,) = (i for i in here.inputs if i in self.plan.rows)
            if source in self.plan.softmaxes:
                return found[::-1]
            here = self.body[source]
            if here.op in MOVES and not consumed_axes(here).isdisjoint(self.before(here)):
                found.append(here)

    def before(self, weight: Node) -> tuple[Axis, ...]:
        (source,) = (i for i in weight.inputs if i in self.plan.rows)
        return self.plan.rows[source]

    @staticmethod
    def of(
        node: Node,
        body: Function,
        sizes: Mapping[str, int],
        precision: Precision,
        structure: Structure,
        tile: int | None,
    ) -> Attention | None:
        """None when the body cannot be tiled."""
        keys, query = node.attrs.get("keys"), node.attrs.get("query")
        if (keys, query) not in structure.tilings:
            structure.tilings[keys, query] = tiling(body, keys, query)
        found = structure.tilings[keys, query]
        return found and Attention(
            node, body, found[0], sizes, precision, structure, tile, found[1]
        )

    def __call__(self, *operands: Array) -> Array | tuple[Array, ...]:
        blocks = [self.block(windows, visible, operands) for windows, visible in self.blocks]
        made = [self.joined(i, parts) for i, parts in enumerate(zip(*blocks, strict=True))]
        return tuple(made) if len(made) > 1 else made[0]

    def block(self, windows: Windows, visible: Window, operands: Sequence[Array]) -> list[Array]:
        """The outputs of a run of queries."""
        whole = {
            i: window_of(x, self.body[i].axes, windows)
            for i, x in zip(self.body.inputs, operands, strict=True)
        }
        return TiledRun(self, windows, visible, whole).run()

    def visible(self, queries: Window, size: int) -> Window:
        """The keys that these queries can see by the bounds proved for the mask."""
        lower, upper = (
            None if self.node.attrs.get(end) is None else self.node.attrs.dim(end)
            for end in ("lower", "upper")
        )
        first = 0 if lower is None else queries[0] - lower.evaluate(self.sizes)
        stop = size if upper is None else queries[1] + upper.evaluate(self.sizes)
        return max(first, 0), min(stop, size)

    def joined(self, output: int, parts: Sequence[Array]) -> Array:
        if len(parts) == 1 or self.query is None:
            return parts[0]
        place = self.body[self.body.output_ids[output]].type.position(self.query)
        return np.concatenate(parts, axis=place)

    def runs(self, windows: Windows) -> dict[int, Run]:
        """What nodes run within windows of these lengths, as far as it is known."""
        return self.ready.setdefault(tuple(b - a for a, b in windows.values()), {})

    def run_of(self, node: Node, windows: Windows, ready: dict[int, Run]) -> Run:
        """What a node runs on operands within `windows`.

        It is rounded to storage, but for a contraction that is accumulated in the dtype of computation.
        """
        if node.op == "index":
            key = node.id, windows.get(node.attrs.axis("axis"))
            if key not in self.indices:
                run = ready_primitive(self.body, node, self.sizes, self.precision, None, windows)
                self.indices[key] = run()
            return partial(self.indices.__getitem__, key)
        if node.id not in ready:
            ready[node.id] = self.made(node, windows)
        return ready[node.id]

    def made(self, node: Node, windows: Windows) -> Run:
        if node.id in self.plan.contractions:
            types = operand_types(node.op, [self.body[i] for i in node.inputs])
            call = Call(node.attrs, types, node.types, self.sizes, self.precision, windows)
            return meaning(node, call)
        reuse = self.reuse(node) if self.plan.keys in windows else None
        exact = frozenset(k for k, i in enumerate(node.inputs) if i in self.plan.tiled)
        return ready_primitive(self.body, node, self.sizes, self.precision, reuse, windows, exact)

    def reuse(self, node: Node) -> int | None:
        """The operand that may be overwritten: one made for a tile, not a slice of a whole value."""
        found = self.structure.reuse.get(node.id)
        if found is None or self.body[node.inputs[found]].op in OVERLAYS:
            return None
        return found if node.inputs[found] in self.plan.tiled else None

    def selects_all(self, node: Node, values: Mapping[int, Array]) -> bool:
        """Whether a mask hides nothing here, so that the scores stay as they are."""
        if node.op != "where" or not any(node.inputs[0] in m for m in self.plan.masks.values()):
            return False
        alike = self.body[node.inputs[1]].types == node.types
        return alike and bool(values[node.inputs[0]].all())


def tiling(body: Function, keys: object, query: object) -> tuple[AttendPlan, Axis | None] | None:
    """The plan of a body, and the axis of queries if its entries need no others; None without one."""
    try:
        plan = plan_attend(body, keys if isinstance(keys, Axis) else None)
    except NotTileable:
        return None
    return plan, query if isinstance(query, Axis) and runs_by_rows(body, query) else None


def meaning(node: Node, call: Call) -> Run:
    """What a node runs, not rounded to storage."""
    prepare = OPS[node.op].prepare
    assert prepare is not None
    return prepare(call)


def window_of(x: Array, axes: Sequence[Axis], windows: Windows) -> Array:
    """The part of a value within `windows`, a view."""
    for axis, (start, stop) in windows.items():
        if axis in axes and x.shape[place := axes.index(axis)] != stop - start:
            x = x[along(place, slice(start, stop))]
    return x


@dataclass(slots=True)
class TiledRun:
    """One block of queries, which can see the keys of `visible`.

    `whole` holds values that need no tiling, computed on demand; the rest is running state.
    """

    attention: Attention
    rows: Windows
    visible: Window
    whole: dict[int, Array]
    maxima: dict[int, Array] = field(default_factory=dict)
    sums: dict[int, Array] = field(default_factory=dict)
    accumulators: dict[int, Array] = field(default_factory=dict)
    ready: dict[int, Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ready = self.attention.runs(self.rows)

    @property
    def body(self) -> Function:
        return self.attention.body

    @property
    def plan(self) -> AttendPlan:
        return self.attention.plan

    def run(self) -> list[Array]:
        attention = self.attention
        outside = attention.constants | {i: self.value(i) for i in attention.outside}
        sliced = [(n, self.value(n.id)) for n in attention.sliced]
        for window in self.windows():
            keys = {self.plan.keys: window}
            parts = {n.id: window_of(whole, n.axes, keys) for n, whole in sliced}
            values, windows = {**outside, **parts}, {**keys, **self.rows}
            ready = attention.runs(windows)
            for node in attention.first:
                operands = [values[i] for i in node.inputs]
                values[node.id] = attention.run_of(node, windows, ready)(*operands)
            if not self.is_hidden(values):
                self.visit(values, windows)
        for contraction, softmax in self.plan.contractions.items():
            self.whole[contraction] = self.finished(contraction, softmax)
        for total, softmax in self.plan.totals.items():
            self.whole[total] = self.log_total(total, softmax)
        return [self.value(i) for i in self.body.output_ids]

    def windows(self) -> Iterator[Window]:
        """Tiles of one grid for all blocks, so that a row is summed alike in each."""
        first, end = self.visible
        step = self.attention.tile or KEYS
        for start in range(first - first % step, end, step):
            yield max(start, first), min(start + step, end)

    def visit(self, values: dict[int, Array], windows: Windows) -> None:
        """Adds a tile, given what it reads, to the running state."""
        attention, plan = self.attention, self.plan
        ready, factors = attention.runs(windows), dict[int, Array | None]()
        for node in attention.rest:
            if node.id in plan.softmaxes:
                factors[node.id] = self.enter_scores(node, values)
            elif attention.selects_all(node, values):
                values[node.id] = values[node.inputs[1]]
            else:
                operands = [values[i] for i in node.inputs]
                values[node.id] = attention.run_of(node, windows, ready)(*operands)
            if node.id in plan.contractions:
                self.accumulate(node.id, values[node.id], factors)

    def is_hidden(self, values: Mapping[int, Array]) -> bool:
        """Whether some mask of every softmax holds nowhere in this tile."""
        plan = self.plan
        return bool(plan.softmaxes) and all(
            any(not values[mask].any() for mask in plan.masks[softmax])
            for softmax in plan.softmaxes
        )

    def accumulate(
        self, contraction: int, part: Array, factors: Mapping[int, Array | None]
    ) -> None:
        held, softmax = self.accumulators.get(contraction), self.plan.contractions[contraction]
        if held is not None:
            factor = None if softmax is None else factors[softmax]
            if softmax is not None and factor is not None:
                held *= self.rows_of(contraction, softmax, factor)
            part += held
        self.accumulators[contraction] = part

    def enter_scores(self, node: Node, values: dict[int, Array]) -> Array | None:
        """Adds a tile of scores to m and l. Returns exp(m_old - m_new), None for the first tile."""
        softmax, source = node.id, node.inputs[0]
        place = node.type.position(self.plan.keys)
        dtype = self.attention.precision.compute(node.type.dtype)
        scores = align(values[source].astype(dtype, copy=False), self.body[source].axes, node.axes)
        old, new = self.maxima.get(softmax), scores.max(axis=place)
        if old is not None:
            new = np.maximum(old, new)
        subtracted = finite(new)
        weights = scores - subtracted[(slice(None),) * place + (None,)]
        values[softmax] = np.exp(weights, out=weights)
        total = weights.sum(axis=place)
        factor = None if old is None else np.asarray(np.exp(old - subtracted))
        self.maxima[softmax] = new
        self.sums[softmax] = total if factor is None else self.sums[softmax] * factor + total
        return factor

    def finished(self, contraction: int, softmax: int | None) -> Array:
        """The accumulator, divided by l, rounded to how its type is stored."""
        node = self.body[contraction]
        stored = self.attention.precision.storage(node.type.dtype)
        if contraction not in self.accumulators:
            sizes = Call(node.attrs, (), node.types, self.attention.sizes, windows=self.rows)
            return np.zeros(sizes.shape, stored)
        total = self.accumulators[contraction]
        if softmax is not None:
            total = divide_rows(total, self.rows_of(contraction, softmax, self.sums[softmax]))
        return total.astype(stored, copy=False)

    def log_total(self, total: int, softmax: int) -> Array:
        """m + log l, -inf where no key was seen."""
        node, sizes = self.body[total], self.attention.sizes
        stored = self.attention.precision.storage(node.type.dtype)
        if softmax not in self.sums:
            shape = Call(node.attrs, (), node.types, sizes, windows=self.rows).shape
            return np.full(shape, -np.inf, stored)
        made = finite(self.maxima[softmax]) + np.log(self.sums[softmax])
        return align(made, self.plan.rows[softmax], node.axes).astype(stored, copy=False)

    def rows_of(self, contraction: int, softmax: int, statistic: Array) -> Array:
        """A row statistic, moved as the weights are and aligned with the contraction's result."""
        if statistic.ndim == 0:
            return statistic
        rows = self.plan.rows[softmax]
        for node in self.attention.moves[contraction]:
            types = (TensorType("f64", rows),), (TensorType("f64", self.plan.rows[node.id]),)
            call = Call(node.attrs, *types, self.attention.sizes, windows=self.rows)
            statistic, rows = np.asarray(meaning(node, call)(statistic)), self.plan.rows[node.id]
        return align(statistic, rows, self.body[contraction].axes)

    def value(self, node_id: int) -> Array:
        """A value computed whole: it needs no tile, or comes after all of them."""
        if node_id not in self.whole:
            node = self.body[node_id]
            operands = [self.value(i) for i in node.inputs]
            self.whole[node_id] = self.attention.run_of(node, self.rows, self.ready)(*operands)
        return self.whole[node_id]
