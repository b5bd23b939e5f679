"""Running sums and products along an axis, which a kernel reads at any coordinate and in any order.

A sum is one over what stands at or before the coordinate. A product is a scan of a tile where the
axis fits in one: elsewhere than at the tile's own index it is what the tile has there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...compiler.ir.graph import Axis, Node
from ...dsl.dims import Dim
from .evaluate import Value, literal
from .indexing import Coordinates, Var
from .mapping import restrict
from .reduce import SUM, Fold, Reducer
from .scopes import deepest

PRODUCT = Fold({"float": 1.0}, "{0} * {1}", "product")  # a function of the generated file


def running_sum(reducer: Reducer, node: Node, at: Coordinates) -> Value:
    """The sum of what stands at or before the coordinate: any coordinate, any order."""
    return _running(reducer, node, at, SUM, literal(0 if node.type.dtype == "int" else 0.0))


def _running(reducer: Reducer, node: Node, at: Coordinates, fold: Fold, neutral: Value) -> Value:
    evaluator, (x,) = reducer.evaluator, reducer.evaluator.region.operands(node)
    axis, before = node.attrs.axis("axis"), ">=" if node.attrs.get("reverse") else "<="
    last = evaluator.integer(at[axis])

    def operand(reduced: Mapping[Axis, Dim]) -> Value:
        here = evaluator.integer(reduced[axis])
        value = evaluator.value(x.id, restrict({**at, **reduced}, x.axes))
        value = evaluator.convert(value, node.type.dtype)
        tiles, scope = value.tiles | last.tiles, deepest((value.scope, last.scope))
        chosen = evaluator.masked(value, [f"({here.text} {before} {last.text})"], neutral)
        return replace(chosen, tiles=tiles | here.tiles, scope=scope)

    part = reducer.folding(fold, node.type.dtype, node, at, x)
    part.operand = operand
    return reducer.run(node, at, part)


def running_product(reducer: Reducer, node: Node, at: Coordinates) -> Value:
    """One tile along the axis where that fits: at any other coordinate, what the tile has there."""
    evaluator, axis = reducer.evaluator, node.attrs.axis("axis")
    extent, others = evaluator.region.size(axis), {a: at[a] for a in node.axes if a != axis}
    longest = reducer.longest(extent)
    if longest is None or not 0 < longest <= reducer.limits.whole:
        return _running(reducer, node, at, PRODUCT, literal(1.0))
    own = {Dim.symbol(v.symbol): slot for (slot, e), v in reducer.full.items() if e == extent}
    slot = own.get(at[axis])
    if slot is None or slot in {used for used, _ in reducer.tiles(others)}:
        slot = reducer.place(at)[0]
    if slot is None:
        return _running(reducer, node, at, PRODUCT, literal(1.0))
    along, var = slot, reducer.whole_var(slot, extent)
    inside = {**others, axis: Dim.symbol(var.symbol)}
    key = (node.id, "running", *(inside[a] for a in node.axes))
    tile = evaluator.once(key, lambda: _tile(reducer, node, inside, var, along))
    if inside[axis] == at[axis]:
        return tile
    here = evaluator.integer(at[axis])
    chosen = evaluator.masked(tile, [f"({var.name} == {here.text})"], literal(0.0))
    text = f"tl.sum({chosen.text}, axis={slot}, keep_dims=True)"
    tiles = frozenset(t for t in tile.tiles | here.tiles if t[0] != slot)
    scope = deepest((tile.scope, here.scope))
    return evaluator.assign(text, node.type.dtype, tiles, scope, reducer.base(node))


def _tile(reducer: Reducer, node: Node, at: Coordinates, var: Var, slot: int) -> Value:
    evaluator, (x,) = reducer.evaluator, reducer.evaluator.region.operands(node)
    value = evaluator.convert(evaluator.value(x.id, at), node.type.dtype)
    value = evaluator.masked(value, var.masks, literal(1.0))
    value = evaluator.spread(value, value.tiles | var.tiles)
    reverse = ", reverse=True" if node.attrs["reverse"] else ""
    text = f"tl.cumprod({value.text}, axis={slot}{reverse})"
    return evaluator.assign(text, node.type.dtype, value.tiles, value.scope, reducer.base(node))
