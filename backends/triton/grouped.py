"""`grouped` in the ops that kernels have: a batched product over tiles of rows that share a matrix.

The host sorts the rows by index into tiles, so that all rows of a tile pick one matrix (`group_rows`
in the generated file). A kernel multiplies each tile with the matrix of its entry, and another reads
the results back from where the rows went. N rows that pick among E entries fill at most
N // TILE + min(N, E) tiles, so no launch waits for the data.
"""

from __future__ import annotations

from dataclasses import replace

from ...compiler.ir.graph import Attrs, Axis, Builder, Function, Node, Program, TensorType
from ...compiler.ops.grouped import GroupedPlan, plan_grouped
from ...dsl.dims import Dim, minimum, product

TILE = 64  # rows of a tile, the least that keeps every target's products busy


def in_tiles(program: Program) -> Program:
    """The program without `grouped` nodes; what they computed has the ids it had."""
    made: list[Function] = []
    for function in program.functions:
        if any(node.op == "grouped" for node in function.nodes):
            lowered = _Lowered(program, function)
            made += [lowered.function(), *lowered.bodies]
    return program.with_functions(made) if made else program


class _Lowered:
    """One function, rewritten. Rows of one index are sorted once for all products."""

    def __init__(self, program: Program, function: Function) -> None:
        self.program, self.source = program, function
        self.builder = Builder(function.name, 1 + max(n.id for n in function.nodes))
        self.bodies: list[Function] = []
        self.sorted: dict[tuple[int, tuple[Axis, ...]], tuple[int, int, int]] = {}

    def function(self) -> Function:
        for node in self.source.nodes:
            if node.op == "grouped":
                self.grouped(node)
            else:
                self.builder.append(node)
        return replace(self.source, nodes=self.builder.nodes)

    def grouped(self, node: Node) -> None:
        body = self.program.body(node)
        plan = plan_grouped(body)
        x, matrices, index = (
            node.inputs[body.inputs.index(n.id)] for n in (plan.x, plan.matrices, plan.index)
        )
        key = index, plan.rows
        if key not in self.sorted:
            self.sorted[key] = self.sort(node, plan, index)
        picked, rows, slots = self.sorted[key]
        tiles = self.product(node, plan, (x, matrices, picked, rows))
        self.back(node, plan, tiles, slots)

    def sort(self, node: Node, plan: GroupedPlan, index: int) -> tuple[int, int, int]:
        """The host's results: the entry of each tile, the row of each slot, the slot of each row."""
        row, tile, slot = _axes(plan)
        flat = _merged(self.builder, index, plan.rows, row)
        kinds = tuple(TensorType("int", axes) for axes in ((tile,), (tile, slot), (row,)))
        attrs = {"entries": plan.entries}
        made = self.builder.add("group_rows", (flat,), attrs, kinds, node.origins)
        picked, rows, slots = (
            self.builder.add("result", (made,), {"index": i}, (kind,), node.origins, hint)
            for i, (kind, hint) in enumerate(zip(kinds, ("picked", "rows", "slots"), strict=True))
        )
        return picked, rows, slots

    def product(self, node: Node, plan: GroupedPlan, operands: tuple[int, ...]) -> int:
        """x[rows] times W[picked], tile by tile: one kernel, in which nothing is gathered first."""
        row, tile, slot = _axes(plan)
        body = Builder(f"{node.attrs.string('body')}.tiles")
        x, matrices, picked, rows = (
            body.add("input", (), {"name": name}, self.builder[i].types[:1])
            for name, i in zip(("x", "w", "picked", "rows"), operands, strict=True)
        )
        flat = _merged(body, x, plan.rows, row)
        left = body.add("take", (flat, rows), {"axis": row, "fill": None})
        right = body.add("take", (matrices, picked), {"axis": plan.entries, "fill": None})
        result = body.add("dot", (left, right), {"axes": plan.inner}, None, node.origins)
        self.bodies.append(body.finish([("y", result)]))
        kind = TensorType(node.type.dtype, (tile, slot, *plan.outer))
        attrs = {"body": body.name, "strategy": "plain"}
        return self.builder.add("linear", operands, attrs, (kind,), node.origins, node.hint)

    def back(self, node: Node, plan: GroupedPlan, tiles: int, slots: int) -> None:
        """The results where the rows were, under the id of the node."""
        row, tile, slot = _axes(plan)
        place = Axis("place", tile.size * slot.size)
        body = Builder(f"{node.attrs.string('body')}.back")
        y, at = (
            body.add("input", (), {"name": name}, self.builder[i].types)
            for name, i in (("y", tiles), ("slots", slots))
        )
        flat = body.add("merge", (y,), {"axes": (tile, slot), "into": place})
        taken = body.add("take", (flat, at), {"axis": place, "fill": None})
        apart = body.add("split", (taken,), {"axis": row, "into": plan.rows})
        result = body.add("transpose", (apart,), {"order": node.axes})
        self.bodies.append(body.finish([("y", result)]))
        attrs = Attrs({"body": body.name})
        self.builder.append(replace(node, op="pointwise", inputs=(tiles, slots), attrs=attrs))


def _axes(plan: GroupedPlan) -> tuple[Axis, Axis, Axis]:
    """All rows as one axis; tiles; the slots of a tile."""
    rows = product([axis.size for axis in plan.rows])
    tiles = rows // TILE + minimum(rows, plan.entries.size)
    return Axis("row", rows), Axis("tile", tiles), Axis("slot", Dim.of(TILE))


def _merged(builder: Builder, value: int, rows: tuple[Axis, ...], into: Axis) -> int:
    """The value with `rows` as one axis in front, the same along those that it lacks."""
    axes = builder[value].axes
    missing = tuple(axis for axis in rows if axis not in axes)
    if missing:
        value = builder.add("broadcast", (value,), {"axes": missing})
    order = (*rows, *(axis for axis in axes if axis not in rows))
    value = builder.add("transpose", (value,), {"order": order})
    return builder.add("merge", (value,), {"axes": rows, "into": into})
