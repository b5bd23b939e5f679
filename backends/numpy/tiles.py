"""`attend` as a machine runs it: one pass over tiles of keys with an online softmax.

For each tile the scores are evaluated on the tile; the running sum l and the accumulators are
multiplied by exp(m_old - m_new) and added to. A tile whose mask holds nowhere is skipped. Rows that
see no key give zeros. `compiler/ops/attend.py` has the equation and says which bodies qualify; any
other body runs as it is, which is the same value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...compiler.ir.graph import Axis, Function, Node, TensorType, operand_types
from ...compiler.ops import OPS, Array, Call, align
from ...compiler.ops.attend import MOVES, AttendPlan, NotTileable, consumed_axes, plan_attend
from ...compiler.ops.reduce import divide_rows, finite
from .interpreter import Interpreter

Window = tuple[int, int]


def attend(
    interpreter: Interpreter, node: Node, body: Function, operands: Sequence[Array]
) -> list[Array]:
    """The outputs of an attend node's body."""
    keys = node.attrs.get("keys")
    try:
        plan = plan_attend(body, keys if isinstance(keys, Axis) else None)
    except NotTileable:
        return interpreter.run(body, operands)
    whole = dict(zip(body.inputs, operands, strict=True))
    return TiledRun(interpreter, body, plan, whole).run()


@dataclass(slots=True)
class TiledRun:
    """`whole` holds values that need no tiling, computed on demand; the rest is running state."""

    interpreter: Interpreter
    body: Function
    plan: AttendPlan
    whole: dict[int, Array]
    maxima: dict[int, Array] = field(default_factory=dict)
    sums: dict[int, Array] = field(default_factory=dict)
    accumulators: dict[int, Array] = field(default_factory=dict)

    def run(self) -> list[Array]:
        for window in self.windows():
            tile = Tile(self, window)
            if not tile.hidden():
                self.visit(tile)
        for contraction, softmax in self.plan.contractions.items():
            self.whole[contraction] = self.finished(contraction, softmax)
        return [self.value(i) for i in self.body.output_ids]

    def windows(self) -> Iterator[Window]:
        size = self.plan.keys.size.evaluate(self.interpreter.sizes)
        tile = self.interpreter.shared.tile
        return ((start, min(start + tile, size)) for start in range(0, size, tile))

    def visit(self, tile: Tile) -> None:
        factors = {s: self.enter_scores(s, tile) for s in self.plan.softmaxes}
        for contraction, softmax in self.plan.contractions.items():
            part = tile.contraction(self.body[contraction])
            if contraction not in self.accumulators:
                self.accumulators[contraction] = part
                continue
            held = self.accumulators[contraction]
            if softmax is not None:
                held = held * self.rows_of(contraction, softmax, factors[softmax])
            self.accumulators[contraction] = held + part

    def enter_scores(self, softmax: int, tile: Tile) -> Array:
        """Adds a tile of scores to m and l. Returns exp(m_old - m_new)."""
        node = self.body[softmax]
        along = node.type.position(self.plan.keys)
        scores = tile.value(node.inputs[0])
        scores = scores.astype(self.interpreter.shared.precision.compute(node.type.dtype))
        scores = align(scores, self.body[node.inputs[0]].axes, node.axes)
        old = self.maxima.get(softmax, np.asarray(-np.inf, scores.dtype))
        new = np.maximum(old, scores.max(axis=along))
        factor = np.exp(old - finite(new))
        weights = np.exp(scores - np.expand_dims(finite(new), along))
        tile.values[softmax] = weights
        self.maxima[softmax] = new
        self.sums[softmax] = self.sums.get(softmax, 0) * factor + weights.sum(axis=along)
        return np.asarray(factor)

    def finished(self, contraction: int, softmax: int | None) -> Array:
        """The accumulator, divided by l, rounded to how its type is stored."""
        node = self.body[contraction]
        stored = self.interpreter.shared.precision.storage(node.type.dtype)
        if contraction not in self.accumulators:
            return np.zeros(node.type.shape(self.interpreter.sizes), stored)
        total = self.accumulators[contraction]
        if softmax is not None:
            total = divide_rows(total, self.rows_of(contraction, softmax, self.sums[softmax]))
        return total.astype(stored)

    def rows_of(self, contraction: int, softmax: int, statistic: Array) -> Array:
        """A row statistic, moved as the weights are and aligned with the contraction's result."""
        node, rows = self.body[contraction], self.plan.rows
        if statistic.ndim == 0:
            return statistic
        moved = {softmax: statistic}
        for weight in self.plan.weights:
            (source,) = (i for i in self.body[weight].inputs if i in rows)
            if source in moved:
                moved[weight] = self.moved(self.body[weight], rows[source], moved[source])
        (source,) = (i for i in node.inputs if i in moved)
        return align(moved[source], rows[source], node.axes)

    def moved(self, node: Node, rows: tuple[Axis, ...], statistic: Array) -> Array:
        if node.op not in MOVES or consumed_axes(node).isdisjoint(rows):
            return statistic
        types = (TensorType("f64", rows),), (TensorType("f64", self.plan.rows[node.id]),)
        return evaluate_raw(node, Call(node.attrs, *types, self.interpreter.sizes), statistic)

    def value(self, node_id: int) -> Array:
        """A value computed whole: it needs no tile, or comes after all of them."""
        if node_id not in self.whole:
            node = self.body[node_id]
            operands = [self.value(i) for i in node.inputs]
            self.whole[node_id] = self.interpreter.primitive(node, self.body, operands)[0]
        return self.whole[node_id]


@dataclass(slots=True)
class Tile:
    """The values of one window of keys."""

    run: TiledRun
    window: Window
    values: dict[int, Array] = field(default_factory=dict)

    @property
    def windows(self) -> Mapping[Axis, Window]:
        return {self.run.plan.keys: self.window}

    def hidden(self) -> bool:
        """Whether some mask of every softmax holds nowhere in this window."""
        plan = self.run.plan
        return bool(plan.softmaxes) and all(
            any(not self.value(mask).any() for mask in plan.masks[softmax])
            for softmax in plan.softmaxes
        )

    def value(self, node_id: int) -> Array:
        if node_id not in self.values:
            self.values[node_id] = self.compute(self.run.body[node_id])
        return self.values[node_id]

    def compute(self, node: Node) -> Array:
        keys = self.run.plan.keys
        if keys not in node.axes:
            return self.run.value(node.id)
        if node.id not in self.run.plan.tiled:
            place = node.type.position(keys)
            return self.run.value(node.id)[(slice(None),) * place + (slice(*self.window),)]
        operands = [self.value(i) for i in node.inputs]
        body, interpreter = self.run.body, self.run.interpreter
        return interpreter.primitive(node, body, operands, self.windows)[0]

    def contraction(self, node: Node) -> Array:
        """A contraction over this window, in the dtype of computation."""
        interpreter, body = self.run.interpreter, self.run.body
        types = operand_types(node.op, [body[i] for i in node.inputs])
        precision = interpreter.shared.precision
        call = Call(node.attrs, types, node.types, interpreter.sizes, precision, self.windows)
        return evaluate_raw(node, call, *(self.value(i) for i in node.inputs))


def evaluate_raw(node: Node, call: Call, *operands: Array) -> Array:
    """The meaning of a node, not rounded to storage."""
    meaning = OPS[node.op].evaluate
    assert meaning is not None
    result = meaning(call, *operands)
    assert not isinstance(result, tuple)
    return result
