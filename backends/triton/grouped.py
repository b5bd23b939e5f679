"""`grouped` in the ops that kernels have: a batched product over tiles of rows that share a matrix.

The host sorts the rows by index into tiles, so that all rows of a tile pick one matrix (`group_rows`
in the generated file). A kernel multiplies each tile with the matrix of its entry, or with several
and computes what an elementwise function makes of the products, such as act(gate) * up; another
reads the results back from where the rows went. N rows that pick among E entries fill at most
N // TILE + min(N, E) tiles, so no launch waits for the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...compiler.ir.graph import Attrs, Axis, Builder, Function, Node, Program, TensorType, elements
from ...compiler.ops import OPS
from ...compiler.ops.grouped import GroupedPlan, plan_grouped
from ...dsl.dims import Dim, minimum

TILE = 64  # rows of a tile, the least that keeps every target's products busy


def in_tiles(program: Program, *, traced: bool = False) -> Program:
    """The program without `grouped` nodes; what they computed has the ids it had.

    Where it is `traced` each product is a value.
    """
    made: list[Function] = []
    for function in program.functions:
        if any(node.op == "grouped" for node in function.nodes):
            lowered = _Lowered(program, function, traced)
            made += [lowered.function(), *lowered.bodies]
    return program.with_functions(made) if made else program


class _Lowered:
    """One function, rewritten. Rows of one index are sorted once for all products."""

    def __init__(self, program: Program, function: Function, traced: bool) -> None:
        self.program, self.source, self.traced = program, function, traced
        self.builder = Builder(function.name, 1 + max(n.id for n in function.nodes))
        self.bodies: list[Function] = []
        self.sorted: dict[tuple[int, tuple[Axis, ...]], tuple[int, int, int]] = {}

    def function(self) -> Function:
        gated = {} if self.traced else dict(self._gated())
        inside = {i for node in gated.values() for i in node.inputs}
        for node in self.source.nodes:
            if node.id in gated:
                self.products(node, [self.source[i] for i in node.inputs])
            elif node.op == "grouped" and node.id not in inside:
                self.products(node, [node])
            elif node.id not in inside:
                self.builder.append(node)
        return replace(self.source, nodes=self.builder.nodes)

    def _gated(self) -> Iterator[tuple[int, Node]]:
        """Elementwise functions of nothing but products of the same rows, which nothing else reads."""
        users, kept = self.source.users(), set(self.source.output_ids)
        for node in self.source.nodes:
            parts = [self.source[i] for i in node.inputs]
            if node.op != "pointwise" or len(parts) < 2 or len(node.types) > 1:
                continue
            alone = all(users[p.id] == [node.id] and p.id not in kept for p in parts)
            if not alone or any(p.op != "grouped" for p in parts):
                continue
            read = [self._operands(p) for p in parts]
            plans = [plan_grouped(self.program.body(p)) for p in parts]
            same = all(
                (x, i, p.rows, p.outer) == (read[0][0], read[0][2], plans[0].rows, plans[0].outer)
                for (x, _, i), p in zip(read, plans, strict=True)
            )
            inner = self.program.body(node).nodes
            if same and all(n.op in ("input", "const") or OPS[n.op].pointwise for n in inner):
                yield node.id, node

    def _operands(self, node: Node) -> tuple[int, int, int]:
        """The rows, the matrices and the index of a product."""
        body = self.program.body(node)
        plan = plan_grouped(body)
        x, matrices, index = (
            node.inputs[body.inputs.index(n.id)] for n in (plan.x, plan.matrices, plan.index)
        )
        return x, matrices, index

    def products(self, node: Node, parts: Sequence[Node]) -> None:
        """What `node` makes of the products `parts`: itself, or an elementwise function of them."""
        plan = plan_grouped(self.program.body(parts[0]))
        (x, _, index), *_ = read = [self._operands(p) for p in parts]
        key = index, plan.rows
        if key not in self.sorted:
            self.sorted[key] = self.sort(node, plan, index)
        picked, rows, slots = self.sorted[key]
        matrices = [m for _, m, _ in read]
        tiles = self.product(node, parts, (x, picked, rows, *matrices))
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

    def product(self, node: Node, parts: Sequence[Node], operands: tuple[int, ...]) -> int:
        """x[rows] times W[picked], tile by tile, and what `node` makes of them: one kernel, in which
        nothing is gathered first."""
        plans = [plan_grouped(self.program.body(part)) for part in parts]
        row, tile, slot = _axes(plans[0])
        body = Builder(f"{node.attrs.string('body')}.tiles")
        names = ("x", "picked", "rows", *(f"w{i}" for i in range(len(parts))))
        x, picked, rows, *matrices = (
            body.add("input", (), {"name": name}, self.builder[i].types[:1])
            for name, i in zip(names, operands, strict=True)
        )
        flat = _merged(body, x, plans[0].rows, row)
        left = body.add("take", (flat, rows), {"axis": row, "fill": None})
        made = []
        for part, plan, w in zip(parts, plans, matrices, strict=True):
            right = body.add("take", (w, picked), {"axis": plan.entries, "fill": None})
            made.append(body.add("dot", (left, right), {"axes": plan.inner}, None, part.origins))
        result = made[0] if parts[0] is node else self._applied(body, node, made)
        axes = (tile, slot, *plans[0].outer)
        if body[result].axes != axes:
            result = body.add("transpose", (result,), {"order": axes})
        self.bodies.append(body.finish([("y", result)]))
        kind = TensorType(node.type.dtype, axes)
        attrs = {"body": body.name, "strategy": "plain"}
        origins = tuple(o for part in parts for o in part.origins)
        return self.builder.add("linear", operands, attrs, (kind,), origins, node.hint)

    def _applied(self, builder: Builder, node: Node, operands: Sequence[int]) -> int:
        """The elementwise function `node`, of values under other axes."""
        function = self.program.body(node)
        values = dict(zip(function.inputs, operands, strict=True))
        for inner in function.nodes:
            if inner.op != "input":
                inputs = tuple(values[i] for i in inner.inputs)
                types = inner.types if inner.op == "const" else None
                values[inner.id] = builder.add(
                    inner.op, inputs, inner.attrs, types, inner.origins, inner.hint
                )
        return values[function.output_ids[0]]

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
    rows = elements(plan.rows)
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
