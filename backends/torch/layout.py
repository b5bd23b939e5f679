"""How a value lies in a tensor, and the views that bring it to another layout.

A layout is one group of axes per tensor dimension, each group row-major: a query of shape
[b, s, heads * e] has the layout ((b,), (s,), (g, r, e)). An axis of a value's type that its layout
lacks is broadcast: the value is the same all along it. So a split or merge is a view or nothing, a
broadcast is nothing, and operands are aligned by the shortest chain of unflatten, permute, flatten
and `None`.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ...compiler.ir.graph import Axis, DType
from ...compiler.ops.quantise import Format
from .source import expression, number

Group = tuple[Axis, ...]
Layout = tuple[Group, ...]
Size = Callable[[Axis], ast.expr]
Entry = ast.expr | None  # of a subscript; None is `:`


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor expression, or a Python number (`literal`), which takes its operands' dtype.

    `weight` marks parameters, which `F.linear` wants as they are stored, and `packed` those that
    only `packed_linear` reads; a value that is not `finite` may have infinities that were written
    into it. `known` is a fact: `("slot", axis)` counts along the axis from 0, `("causal", s, t)` is
    slot(t) <= slot(s). `quantised` has the format and the stored arrays of a weight in few bits, of
    which `expr` is the whole.
    """

    expr: ast.expr
    dtype: DType
    layout: Layout = ()
    literal: bool = False
    weight: bool = False
    packed: bool = False
    finite: bool = True
    known: tuple[str | Axis, ...] = ()
    quantised: tuple[Format, tuple[Value, ...]] | None = None

    @property
    def axes(self) -> Group:
        return flat(self.layout)

    def dim(self, axis: Axis) -> int:
        """The dimension that is exactly `axis`, counted from the end when it is the last."""
        return signed(self.layout.index((axis,)), len(self.layout))


def flat(layout: Iterable[Group]) -> Group:
    return tuple(axis for group in layout for axis in group)


def single(axes: Iterable[Axis]) -> Layout:
    return tuple((axis,) for axis in axes)


def signed(dim: int, rank: int) -> int:
    return -1 if dim == rank - 1 else dim


def subscript(value: ast.expr, entries: Sequence[Entry]) -> ast.expr:
    """`value[entries]`, in the shorter of the forms `x[:, i]` and `x[..., i]`."""
    if all(entry is None for entry in entries):
        return value
    touched = [i for i, entry in enumerate(entries) if entry is not None]
    front, back = entries[: touched[-1] + 1], entries[touched[0] :]
    chosen = [e or ast.Slice() for e in (front if len(front) <= len(back) + 1 else back)]
    if len(front) > len(back) + 1:
        chosen.insert(0, ast.Constant(...))
    index = chosen[0] if len(chosen) == 1 else ast.Tuple(chosen)
    return ast.Subscript(value, index)


def along(value: Value, axis: Axis, entry: ast.expr) -> ast.expr:
    """`value` with `entry` as the subscript of the dimension that is exactly `axis`."""
    dim = value.layout.index((axis,))
    return subscript(value.expr, [entry if i == dim else None for i in range(len(value.layout))])


def arranged(value: Value, layout: Layout, size: Size) -> Value:
    """The same value in exactly `layout`, broadcast axes of it filled in."""
    present = set(value.axes)
    if present == set(flat(layout)):
        return replace(value, expr=_views(value, layout, size), layout=layout)
    full = single(flat(layout))
    spread = _views(value, _only(full, present), size)
    spread = subscript(spread, _new_dims(full, present))
    lengths = [number(-1) if axis in present else size(axis) for axis in flat(full)]
    if any(_is_spread(axis) for axis in set(flat(full)) - present):
        spread = expression("{0}.expand()", spread)
        assert isinstance(spread, ast.Call)
        spread.args = lengths
    return arranged(replace(value, expr=spread, layout=full), layout, size)


def aligned(value: Value, layout: Layout, size: Size, *, leading: bool = False) -> ast.expr:
    """An expression that broadcasts against a tensor in `layout`.

    Every group of `layout` must be wholly in the value or not at all, or the value is filled in.
    With `leading`, missing dimensions in front are written too.
    """
    present = set(value.axes)
    partial = [group for group in layout if 0 < len(present & set(group)) < len(group)]
    if partial:
        filled = [group for group in layout if present & set(group)]
        return aligned(arranged(value, tuple(filled), size), layout, size, leading=leading)
    views = _views(value, _only(layout, present), size)
    entries = _new_dims(layout, present)
    if not leading:
        while entries and entries[0] is not None:
            entries.pop(0)
    return subscript(views, entries)


def ungrouped(value: Value, axes: Iterable[Axis], size: Size) -> Value:
    """The value with each of `axes` in a dimension of its own."""
    wanted = set(axes)
    layout = flat_groups(
        single(group) if wanted & set(group) else (group,) for group in value.layout
    )
    return arranged(value, layout, size)


def flat_groups(parts: Iterable[Layout]) -> Layout:
    return tuple(group for part in parts for group in part)


def joint(layouts: Sequence[Layout], preferred: Sequence[Axis]) -> Layout:
    """A layout to which all of `layouts` broadcast, without a permutation if there is one.

    Groups that all operands share stay. The order is that of `preferred` where it permutes nothing,
    else that of the operand with most axes, the others' axes put before what follows them there.
    """
    layouts = _compatible(layouts)
    groups = dict.fromkeys(group for layout in layouts for group in layout)
    rank = {axis: i for i, axis in enumerate(preferred)}
    order = sorted(groups, key=lambda group: rank.get(group[0], len(rank)))
    if all(_in_order(layout, order) for layout in layouts):
        return tuple(order)
    widest = max(layouts, key=len)
    base = list(widest)
    for layout in layouts:
        for i, group in enumerate(layout):
            if group not in base:
                base.insert(_place(layout[:i], layout[i + 1 :], base), group)
    return tuple(base)


def _compatible(layouts: Sequence[Layout]) -> list[Layout]:
    """The layouts with every group split that another of them has otherwise."""
    groups = {group for layout in layouts for group in layout}
    split = {
        g for g in groups if len(g) > 1 and any(h != g and set(h) & set(g) for h in groups)
    }  # fmt: skip
    if not split:
        return list(layouts)
    return _compatible(
        [flat_groups(single(g) if g in split else (g,) for g in layout) for layout in layouts]
    )


def _in_order(layout: Layout, order: Sequence[Group]) -> bool:
    places = [order.index(group) for group in layout]
    return places == sorted(places)


def _place(before: Layout, after: Layout, base: list[Group]) -> int:
    """Where a new dimension goes: behind what precedes it, if anything in its operand follows."""
    if not any(group in base for group in after):
        return len(base)
    return max((base.index(group) + 1 for group in before if group in base), default=0)


def _only(layout: Layout, axes: set[Axis]) -> Layout:
    return tuple(group for group in layout if set(group) <= axes)


def _new_dims(layout: Layout, present: set[Axis]) -> list[Entry]:
    return [None if set(group) <= present else ast.Constant(None) for group in layout]


def _is_spread(axis: Axis) -> bool:
    return axis.size.constant != 1


def _views(value: Value, layout: Layout, size: Size) -> ast.expr:
    """flatten, unflatten, permute, flatten: from the value's layout to one with the same axes."""
    joined = _joined(value.layout, layout)
    expr = _flatten(value.expr, joined, list(value.layout))
    pieces = _pieces(joined, layout)
    expr = _unflatten(expr, joined, pieces, size)
    now = [piece for group in pieces for piece in group]
    wanted = [piece for group in layout for piece in sorted(_parts(group, now), key=_by(group))]
    expr = permuted(expr, [now.index(piece) for piece in wanted])
    return _flatten(expr, layout, wanted)


def _by(group: Group) -> Callable[[Group], int]:
    return lambda piece: group.index(piece[0])


def _parts(group: Group, pieces: Iterable[Group]) -> list[Group]:
    return [piece for piece in pieces if set(piece) <= set(group)]


def _following(layout: Layout) -> dict[Axis, Axis]:
    """For each axis the one after it in its group."""
    return {a: b for group in layout for a, b in pairwise(group)}


def _joined(layout: Layout, to: Layout) -> Layout:
    """Dimensions that follow one another in a group of `to` as one: better now than permuted."""
    follows = _following(to)
    runs: list[Group] = []
    for group in layout:
        if runs and follows.get(runs[-1][-1]) == group[0] and _stays(runs[-1] + group, follows):
            runs[-1] += group
        else:
            runs.append(group)
    return tuple(runs)


def _stays(run: Group, follows: dict[Axis, Axis]) -> bool:
    return all(follows.get(a) == b for a, b in pairwise(run))


def _pieces(layout: Layout, to: Layout) -> list[list[Group]]:
    """Each group cut into the longest runs that stay together in `to`."""
    follows = {a: b for group in to for a, b in itertools.pairwise(group)}
    cut: list[list[Group]] = []
    for group in layout:
        runs = [[group[0]]]
        for before, axis in itertools.pairwise(group):
            if follows.get(before) == axis:
                runs[-1].append(axis)
            else:
                runs.append([axis])
        cut.append([tuple(run) for run in runs])
    return cut


def _unflatten(expr: ast.expr, layout: Layout, pieces: list[list[Group]], size: Size) -> ast.expr:
    rank = len(layout)
    for dim in reversed(range(rank)):
        if len(pieces[dim]) > 1:
            lengths = ast.Tuple([_product(piece, size) for piece in pieces[dim]])
            expr = expression("{0}.unflatten({1}, {2})", expr, number(signed(dim, rank)), lengths)
            rank += len(pieces[dim]) - 1
    return expr


def _product(axes: Group, size: Size) -> ast.expr:
    total = size(axes[0])
    for axis in axes[1:]:
        total = ast.BinOp(total, ast.Mult(), size(axis))
    return total


def permuted(expr: ast.expr, order: Sequence[int]) -> ast.expr:
    moved = [i for i, source in enumerate(order) if i != source]
    if not moved:
        return expr
    rank = len(order)
    if len(moved) == 2:
        if moved[0] == rank - 2:
            return expression("{0}.T" if rank == 2 else "{0}.mT", expr)
        return expression(
            "{0}.transpose({1}, {2})", expr, number(moved[0]), number(signed(moved[1], rank))
        )
    call = expression("{0}.permute()", expr)
    assert isinstance(call, ast.Call)
    call.args = [number(i) for i in order]
    return call


def _flatten(expr: ast.expr, layout: Layout, pieces: list[Group]) -> ast.expr:
    rank = len(pieces)
    for dim, group in reversed(list(enumerate(layout))):
        parts = len(_parts(group, pieces))
        start = sum(len(_parts(g, pieces)) for g in layout[:dim])
        if parts > 1:
            end = number(signed(start + parts - 1, rank))
            first = number(start - rank) if start + parts == rank else number(start)
            expr = expression("{0}.flatten({1}, {2})", expr, first, end)
            if start + parts == rank:  # flatten(-2) runs to the last dimension
                assert isinstance(expr, ast.Call)
                expr.args.pop()
            rank -= parts - 1
    return expr
