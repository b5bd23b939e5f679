"""Unit triangular systems in one tile: the rows of the system are those of the tile.

    for each i:   x[i'] += t[i', i] x[i]   for the rows i' behind it

Row i is complete when its turn comes. `t` counts strictly below the diagonal only, so no row behind is
changed twice and none before. The order is turned round for a system from its end.
"""

from __future__ import annotations

from ...compiler.ir.graph import Node
from ...dsl.dims import Dim
from .evaluate import Value, literal, refuse
from .indexing import COLS, ROWS, Coordinates, Var
from .mapping import restrict
from .reduce import Reducer
from .scopes import Scope, deepest


def substituted(reducer: Reducer, node: Node, at: Coordinates) -> Value:
    """What the tile of the whole system has at these coordinates. Raises NoLowering."""
    evaluator, axis = reducer.evaluator, node.attrs.axis("axis")
    extent, others = evaluator.region.size(axis), {a: at[a] for a in node.axes if a != axis}
    longest = reducer.longest(extent)
    if longest is None or not 0 < longest <= reducer.limits.whole:
        raise refuse(node, f"{node.op} over {extent} rows, not in one tile,")
    if ROWS in {slot for slot, _ in reducer.tiles(others)}:
        raise refuse(node, f"{node.op} beside other rows")
    rows, columns = (reducer.whole_var(slot, extent) for slot in (ROWS, COLS))
    inside = {**others, axis: Dim.symbol(rows.symbol)}
    key = (node.id, "system", *(inside[a] for a in node.axes))
    tile = evaluator.once(key, lambda: _system(reducer, node, inside, rows, columns))
    if inside[axis] == at[axis]:
        return tile
    raise refuse(node, f"{node.op} read in another order")


def _system(reducer: Reducer, node: Node, at: Coordinates, rows: Var, columns: Var) -> Value:
    evaluator, reverse = reducer.evaluator, bool(node.attrs["reverse"])
    t, y = evaluator.region.operands(node)
    over = {**at, node.attrs.axis("column"): Dim.symbol(columns.symbol)}
    before = f"({columns.name} {'>' if reverse else '<'} {rows.name})"
    factors = evaluator.convert(evaluator.value(t.id, restrict(over, t.axes)), "float")
    factors = evaluator.masked(factors, (before, *rows.masks, *columns.masks), literal(0.0))
    factors = evaluator.named(evaluator.spread(factors, rows.tiles | columns.tiles), "t")
    right = evaluator.convert(evaluator.value(y.id, restrict(at, y.axes)), "float")
    right = evaluator.masked(right, rows.masks, literal(0.0))
    right = evaluator.spread(right, right.tiles | rows.tiles)
    scope = evaluator.scope(deepest((factors.scope, right.scope)))
    name, step = evaluator.fresh(reducer.base(node), right.tiles), evaluator.fresh("turn")
    scope.add(f"{name} = {right.text}")
    loop = Scope(scope)
    row = f"tl.sum(tl.where({rows.name} == {step}, {name}, 0.0), axis={ROWS}, keep_dims=True)"
    factor = f"tl.sum(tl.where({columns.name} == {step}, {factors.text}, 0.0), axis={COLS}, keep_dims=True)"
    loop.add(f"{name} += {factor} * {row}")
    block = next(length for slot, length in rows.tiles if slot == ROWS)
    turns = f"range({block} - 1, -1, -1)" if reverse else f"range(0, {block})"
    loop.close(f"for {step} in {turns}:")
    return Value(name, "float", right.tiles, scope)
