"""Attention in one sweep over the keys: online softmax.

    m' = max(m, max_j s),  p = exp(s - m'),  a = exp(m - m'),  l' = a l + sum_j p,  o' = a o + p v

and o / l at the end. The scores s are any expression, evaluated per tile. Tiles are visited from the
first key to the last that a row of the tile sees, by what is proved of the mask and by what was found
in the data (`visible_keys.py`); a row that sees no key gives zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from ...compiler.ir.graph import Axis, Node
from ...dsl.dims import Dim
from .evaluate import Value, literal
from .indexing import COLS, ROWS, Coordinates
from .mapping import Operand, reached, restrict
from .reduce import Accumulator, Group, Product, Reducer, Span
from .scopes import Scope, deepest


def online_loop(reducer: Reducer, group: Group) -> list[Value]:
    """The results of contractions that one softmax weighs."""
    evaluator, (first, at) = reducer.evaluator, group[0]
    scopes = [evaluator.indices.scope(c) for _, where in group for c in where.values()]
    parent = evaluator.scope(deepest(scopes))
    loop = Scope(parent)
    start = evaluator.fresh("n0")
    parts = [reducer.accumulator(*member) for member in group]
    spans = [reducer.loop_span(first, loop, start, False, part) for part in parts]
    reducer.add_slot(spans[0], first, loop, start, COLS)
    softmax, scored = _softmax(reducer, first, {**at, **spans[0].by_slot[COLS]})
    low, high_key = bounds(reducer, first, scored, parent)
    high, total = (evaluator.fresh(name) for name in ("high", "total"))
    rows = evaluator.shape(frozenset(t for p in parts for t in _rows(p)))
    parent.add(f'{high} = tl.full({rows}, float("-inf"), tl.float32)')
    parent.add(f"{total} = tl.zeros({rows}, tl.float32)")
    for part, span in zip(parts, spans, strict=True):
        part.start(parent, span)
    decay = _weights(reducer, softmax, scored, spans[0], loop, high, total)
    for part, span in zip(parts, spans, strict=True):
        if isinstance(part, Product) and part.is_bare(softmax):
            span.masks[COLS] = frozenset()  # the weights vanish there already
        part.step(loop, span, decay)
    loop.add(f"{high} = {high}_new")
    loop.close(f"for {start} in {reducer.steps(low, high_key, reducer.limits.block, parent)}:")
    totals = [n for n in evaluator.region.nodes.values() if _is_total(n, softmax)]
    if reducer.part is not None or totals:
        log_total = _log_total(reducer, parts[0], parent, high, total)
        if reducer.part is not None:
            reducer.part.log_total = log_total
        for node in totals:
            evaluator.known[(node.id, *(scored[axis] for axis in node.axes))] = log_total
    parent.add(f"{total} = tl.where({total} == 0, 1.0, {total})")
    return [_normalised(reducer, part, parent, total) for part in parts]


def _is_total(node: Node, softmax: Node) -> bool:
    return node.op == "logsumexp" and node.inputs == softmax.inputs


def _rows(part: Accumulator | Product) -> list[tuple[int, str]]:
    kept = part.kept[0] if isinstance(part, Product) else part.kept
    return [tile for tile in kept if tile[0] == ROWS]


def _softmax(reducer: Reducer, contraction: Node, at: Coordinates) -> tuple[Node, Operand]:
    """The softmax that weighs the contraction and the coordinates at which it is read."""
    region, indices = reducer.evaluator.region, reducer.evaluator.indices
    assert region.attend is not None
    wanted = region.attend.softmaxes[contraction.id]
    roots = [(o.id, restrict(at, o.axes)) for o in region.operands(contraction)]
    return next((n, where) for n, where in reached(indices, region, roots) if n.id == wanted)


def _weights(
    reducer: Reducer,
    softmax: Node,
    at: Operand,
    span: Span,
    loop: Scope,
    high: str,
    total: str,
) -> str:
    """Writes p and the running maximum and sum; returns the factor of what was summed before."""
    evaluator = reducer.evaluator
    (x,) = evaluator.region.operands(softmax)
    score = evaluator.convert(evaluator.value(x.id, restrict(at, x.axes)), "float")
    score = evaluator.spread(score, score.tiles | span.tiles[COLS])
    score = evaluator.masked(score, span.masks[COLS], literal(float("-inf")))
    score = evaluator.assign(score.text, "float", score.tiles, loop, "s")
    weight, decay, shift = (evaluator.fresh(name) for name in ("p", "decay", "shift"))
    loop.add(f"{high}_new = tl.maximum({high}, tl.max({score.text}, axis=1, keep_dims=True))")
    loop.add(f'{shift} = tl.where({high}_new == float("-inf"), 0.0, {high}_new)')
    loop.add(f"{weight} = tl.exp({score.text} - {shift})")
    loop.add(f"{decay} = tl.exp({high} - {shift})")
    loop.add(f"{total} = {total} * {decay} + tl.sum({weight}, axis=1, keep_dims=True)")
    found = Value(weight, "float", score.tiles, loop)
    evaluator.known[(softmax.id, *(at[axis] for axis in softmax.axes))] = found
    return decay


def _log_total(
    reducer: Reducer, part: Accumulator | Product, parent: Scope, high: str, total: str
) -> Value:
    """log sum_j exp(s), -inf where no key is seen."""
    text = f'tl.where({total} == 0, float("-inf"), {high} + tl.log({total}))'
    return reducer.evaluator.assign(text, "f32", frozenset(_rows(part)), parent, "log_total")


def _normalised(reducer: Reducer, part: Accumulator | Product, parent: Scope, total: str) -> Value:
    value = part.finish(parent)
    text = f"{value.text} / {total}"
    return reducer.evaluator.assign(text, "float", value.tiles, parent, "out")


def bounds(reducer: Reducer, contraction: Node, at: Coordinates, parent: Scope) -> tuple[str, str]:
    """First and last + 1 key that some row of the tile may see.

    Where the sum runs over other axes too, these are the inner ones of its index.
    """
    evaluator, attend = reducer.evaluator, reducer.evaluator.region.attend
    assert attend is not None
    region = evaluator.region
    length, inner = evaluator.integer(reducer.extent(contraction)).text, Dim.of(1)
    for axis in contraction.attrs.axes("axes"):
        inner = inner if axis == attend.keys else inner * region.size(axis)
    query, lowest, highest = _query(attend.query, at), list[str](), [length]
    if query is not None and attend.upper is not None:
        last = (query + _number(reducer, attend.upper) + 1) * inner
        highest.append(_extreme(evaluator.integer(last), "tl.max"))
    if attend.stop is not None:
        highest.append(_extreme(_given(reducer, attend.stop, at, inner, "0"), "tl.max"))
    if query is not None and attend.lower is not None:
        first = (query - _number(reducer, attend.lower)) * inner
        lowest.append(_extreme(evaluator.integer(first), "tl.min"))
    if attend.first is not None:
        lowest.append(_extreme(_given(reducer, attend.first, at, inner, length), "tl.min"))
    return _first(reducer, lowest, parent), _stop(reducer, highest, parent)


def _given(reducer: Reducer, leaf: int, at: Coordinates, inner: Dim, neutral: str) -> Value:
    """A bound that each row of the tile has of its own; `neutral` where there is no row."""
    evaluator = reducer.evaluator
    where = restrict(at, evaluator.region.nodes[leaf].axes)
    value = evaluator.value(leaf, where)
    if inner != Dim.of(1):
        value = replace(value, text=f"{value.text} * {evaluator.integer(inner).text}")
    masks = frozenset().union(*map(evaluator.indices.masks, where.values()))
    return evaluator.masked(value, masks, Value(neutral, "int"))


def _first(reducer: Reducer, lowest: Sequence[str], parent: Scope) -> str:
    """The beginning of the block with the first key."""
    if not lowest:
        return "0"
    low, block = reducer.evaluator.fresh("first"), reducer.limits.block
    parent.add(f"{low} = {_folded('tl.maximum', [*lowest, '0'])} // {block} * {block}")
    return low


def _stop(reducer: Reducer, highest: Sequence[str], parent: Scope) -> str:
    if len(highest) == 1:
        return highest[0]
    high = reducer.evaluator.fresh("stop")
    parent.add(f"{high} = {_folded('tl.minimum', [*highest[1:], highest[0]])}")
    return high


def _folded(function: str, texts: Sequence[str]) -> str:
    return reduce(lambda a, b: f"{function}({a}, {b})", texts)


def _query(query: Axis | None, at: Coordinates) -> Dim | None:
    return None if query is None else at.get(query)


def _number(reducer: Reducer, bound: Dim) -> Dim:
    return bound.substitute(reducer.evaluator.region.sizes)


def _extreme(value: Value, function: str) -> str:
    return f"{function}({value.text})" if value.tiles else value.text
