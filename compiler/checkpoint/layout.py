"""The right side of a tensor line: an expression over weights becomes an `Arrangement`.

Every value is an arrangement whose axes have names. An axis of a weight is called by its name in
the program or by the one its block declares it under. A side also remembers which stored dimension
of the weight it belongs to, so that a line may leave its left axes out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

from ...dsl import syntax as syn
from ...dsl.errors import CheckpointAxis, ConfigValue, NotAPermutation
from ...dsl.span import Span
from ..ir.graph import Parameter, Program
from .arrangement import Arrangement, Joined, Reshaped, Shape, Sliced, Transposed, Weight
from .fold import Fold, Value, show

JOINS = ("concat", "stack")
_BRACKET = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Side:
    """An axis: what it may be called (best first), and which stored dimension it is part of."""

    names: tuple[str, ...]
    group: int

    def __str__(self) -> str:
        return self.names[0]


@dataclass(frozen=True, slots=True)
class Named:
    """An arrangement with named axes."""

    tree: Arrangement
    sides: tuple[Side, ...]

    @property
    def shape(self) -> Shape:
        return self.tree.shape

    @property
    def sizes(self) -> dict[str, Value]:
        return {
            n: size for side, size in zip(self.sides, self.shape, strict=True) for n in side.names
        }

    def position(self, name: str, span: Span) -> int:
        """Where the axis `name` is: an axis called so first, then one declared under that name."""
        for matches in (
            [k for k, side in enumerate(self.sides) if side.names[0] == name],
            [k for k, side in enumerate(self.sides) if name in side.names],
        ):
            if len(matches) == 1:
                return matches[0]
        known = tuple(map(str, self.sides))
        raise CheckpointAxis(span=span, axis=name, reason="no such axis here", known=known)

    def ordered(self, order: tuple[int, ...]) -> Named:
        if order == tuple(range(len(order))):
            return self
        return Named(Transposed(self.tree, order), tuple(self.sides[k] for k in order))

    def reshaped(self, shape: Shape, sides: tuple[Side, ...]) -> Named:
        return Named(self.tree if shape == self.shape else Reshaped(self.tree, shape), sides)

    def replaced(self, at: int, count: int, names: tuple[str, ...], sizes: Shape) -> Named:
        """`count` neighbouring axes from `at` on become axes `names` of `sizes`."""
        group = self.sides[at].group if count else self.fresh_group()
        new = tuple(Side((name,), group) for name in names)
        shape = (*self.shape[:at], *sizes, *self.shape[at + count :])
        return self.reshaped(shape, (*self.sides[:at], *new, *self.sides[at + count :]))

    def fresh_group(self) -> int:
        return 1 + max((side.group for side in self.sides), default=0)


class WeightTable:
    """The weights of a program by path; a bank's stacked weight is also found entry by entry."""

    def __init__(self, program: Program) -> None:
        self.parameters = {p.path: p for p in program.parameters}
        self.sizes = program.sizes

    def shape(self, path: str) -> Shape:
        return tuple(axis.size.evaluate(self.sizes) for axis in self.parameters[path].axes)

    def find(self, path: str) -> Named | None:
        """The weight at `path`; `f[2].w` is also entry 2 of a stacked `f.w`. None if absent."""
        if path in self.parameters:
            return self._whole(path)
        brackets = list(_BRACKET.finditer(path))
        for keep in range(len(brackets) - 1, -1, -1):
            dropped = brackets[keep:]
            head = path[: dropped[0].start()]
            stacked = head + _BRACKET.sub("", path[dropped[0].start() :])
            if stacked in self.parameters:
                return self._entry(stacked, [int(match[1]) for match in dropped])
        return None

    def entries(self, path: str) -> int:
        """How many entries the stacked weights below `path` have."""
        below = (p for p in self.parameters if p.startswith(f"{path}."))
        return next((self.shape(p)[0] for p in below), 0)

    def _whole(self, path: str) -> Named:
        parameter = self.parameters[path]
        return Named(Weight(path, self.shape(path)), tuple(_sides(parameter)))

    def _entry(self, path: str, indices: list[int]) -> Named | None:
        value = self._whole(path)
        for index in indices:
            if not value.sides or index >= value.shape[0]:
                return None
            value = _picked(value, 0, index)
        return value


def _sides(parameter: Parameter) -> Iterator[Side]:
    groups = {axis: k for k, group in enumerate(parameter.grouping) for axis in group}
    declared = parameter.declared or tuple(axis.name for axis in parameter.axes)
    for axis, name in zip(parameter.axes, declared, strict=True):
        yield Side(tuple(dict.fromkeys((axis.name, name))), groups.get(axis, 0))


@dataclass(frozen=True, slots=True)
class LineReader:
    """Reads the expressions of one scope: `path` leads every weight, `indices` are its numbers."""

    weights: WeightTable
    path: str = ""
    indices: Mapping[str, Value] = field(default_factory=dict)

    def weight_paths(self, expr: syn.Expr) -> Iterator[str]:
        """The full paths of all weights in `expr`, present in the model or not."""
        path = path_text(expr, self.indices)
        if path is not None:
            yield self.path + path
        elif isinstance(expr, syn.Index):
            yield from self.weight_paths(expr.value)
        else:
            for operand in _operands(expr):
                yield from self.weight_paths(operand)

    def __call__(self, expr: syn.Expr) -> Named:
        path = path_text(expr, self.indices)
        if path is not None:
            found = self.weights.find(self.path + path)
            assert found is not None  # lines with absent weights are not read
            return found
        if isinstance(expr, syn.Index):
            return self._index(expr)
        return self._join(expr)

    def stored(self, line: syn.TensorLine) -> Named:
        """The line's value with the file tensor's dimensions as its axes."""
        value = self(line.value)
        if line.brackets is None:
            dims = [len(tuple(run)) for _, run in groupby(value.sides, key=lambda s: s.group)]
        else:
            members = [_members(axis) for axis in line.brackets]
            value = _in_order(value, [name for dim in members for name in dim], line.span)
            dims = [len(dim) for dim in members]
        return _dims(value, dims)

    def _join(self, expr: syn.Expr) -> Named:
        parts = [self(operand) for operand in _operands(expr)]
        assert isinstance(expr, syn.Call)
        assert isinstance(expr.function, syn.Name)
        name = _axis_name(expr.arguments[-1].value)
        if expr.function.name == "stack":
            parts = [part.replaced(0, 0, (name,), (1,)) for part in parts]
        aligned = [_aligned(part, parts[0], name, expr.span) for part in parts]
        axis = aligned[0].position(name, expr.span)
        sides = aligned[0].sides
        side = replace(sides[axis], names=(name,))
        tree = Joined(tuple(part.tree for part in aligned), axis)
        return Named(tree, (*sides[:axis], side, *sides[axis + 1 :]))

    def _index(self, expr: syn.Index) -> Named:
        value = self(expr.value)
        order = [item.name for item in expr.items if isinstance(item, syn.AxisRef)]
        for item in expr.items:
            if isinstance(item, syn.Relabel):
                value = self._relabel(value, item)
            elif isinstance(item, syn.Select):
                value = self._select(value, item)
        return _in_order(value, order, expr.span) if order else value

    def _relabel(self, value: Named, item: syn.Relabel) -> Named:
        value, at = _merged(value, item.source)
        sizes = self._split_sizes(value, at, item.target)
        return value.replaced(at, 1, item.target.names, sizes)

    def _split_sizes(self, value: Named, at: int, target: syn.AxisGroup) -> Shape:
        """Sizes of the axes that axis `at` becomes; at most one is left to infer."""
        total = value.shape[at]
        given = [None if s is None else self._number(s, value) for s in target.sizes]
        known = math.prod(size for size in given if size is not None)
        unknown = given.count(None)
        if unknown > 1 or known == 0 or total % known or (not unknown and known != total):
            reason = f"{total} does not split into ({', '.join(target.names)})"
            raise CheckpointAxis(span=target.span, axis=str(value.sides[at]), reason=reason)
        return tuple(total // known if size is None else size for size in given)

    def _select(self, value: Named, item: syn.Select) -> Named:
        if isinstance(item.start, syn.Name) and item.start.name == "new":
            return value.replaced(0, 0, (item.axis,), (1,))
        at = value.position(item.axis, item.span)
        size = value.shape[at]
        start = self._number(item.start, value)
        stop = start + 1
        if item.is_slice:
            stop = size if item.stop is None else self._number(item.stop, value)
        if not 0 <= start < stop <= size:
            reason = f"{start}..{stop} is not within its {size} entries"
            raise CheckpointAxis(span=item.span, axis=item.axis, reason=reason)
        if not item.is_slice:
            return _picked(value, at, start)
        return Named(Sliced(value.tree, at, start, stop), value.sides)

    def _number(self, expr: syn.Expr, value: Named) -> int:
        number = Fold({**self.weights.sizes, **self.indices, **value.sizes})(expr)
        if isinstance(number, bool) or not isinstance(number, int):
            shown = expr.span.text if isinstance(number, syn.Expr) else show(number)
            raise ConfigValue(span=expr.span, reason=f"`{shown}` is no whole number")
        return number


def path_text(expr: syn.Expr, indices: Mapping[str, Value]) -> str | None:
    """`layers[i].attention.q.w` as a path, none when `expr` is no path of names and numbers."""
    if isinstance(expr, syn.Name):
        return expr.name
    if isinstance(expr, syn.Attribute):
        head = path_text(expr.value, indices)
        return None if head is None else f"{head}.{expr.name}"
    if isinstance(expr, syn.Index) and len(expr.items) == 1:
        head, number = path_text(expr.value, indices), _path_index(expr.items[0], indices)
        return None if head is None or number is None else f"{head}[{number}]"
    return None


def _path_index(item: syn.Node, indices: Mapping[str, Value]) -> int | None:
    if not isinstance(item, syn.AxisRef) or item.value is None:
        return None
    number = Fold(indices)(item.value)
    return number if isinstance(number, int) else None


def _operands(expr: syn.Expr) -> tuple[syn.Expr, ...]:
    """The joined values of a `concat` or `stack`; any other expression is refused."""
    if isinstance(expr, syn.Call) and isinstance(expr.function, syn.Name):
        if expr.function.name in JOINS and len(expr.arguments) >= 2:
            return tuple(argument.value for argument in expr.arguments[:-1])
        raise NotAPermutation(span=expr.span, construct=f"`{expr.function.name}`")
    operator = getattr(expr, "op", None)
    construct = f"`{operator}`" if operator else "this expression"
    raise NotAPermutation(span=expr.span, construct=construct)


def _axis_name(expr: syn.Expr) -> str:
    if isinstance(expr, syn.Name):
        return expr.name
    raise NotAPermutation(span=expr.span, construct="an axis that is no name")


def _members(axis: syn.AxisDecl) -> tuple[str, ...]:
    if axis.kind == "group":
        return tuple(name for member in axis.group for name in _members(member))
    if axis.kind == "axis":
        return (axis.name,)
    raise NotAPermutation(span=axis.span, construct="an open axis list")


def _picked(value: Named, at: int, index: int) -> Named:
    sliced = Named(Sliced(value.tree, at, index, index + 1), value.sides)
    return sliced.replaced(at, 1, (), ())


def _in_order(value: Named, names: list[str | None] | list[str], span: Span) -> Named:
    """`value` with its axes in the order of `names`, which must be all of them."""
    order = tuple(value.position(str(name), span) for name in names)
    left = [str(side) for k, side in enumerate(value.sides) if k not in order]
    if left or len(set(order)) != len(order):
        name = (left or [str(value.sides[order[0]])])[0]
        raise CheckpointAxis(span=span, axis=name, reason="every axis is named exactly once")
    sides = (value.sides[k] for k in order)
    alone = tuple(replace(side, group=k) for k, side in enumerate(sides))
    return Named(value.ordered(order).tree, alone)


def _merged(value: Named, source: syn.AxisGroup) -> tuple[Named, int]:
    """The named axes as one, where the first of them stood; and its position."""
    chosen = [value.position(name, source.span) for name in source.names]
    at = sum(1 for k in range(min(chosen)) if k not in chosen)
    rest = [k for k in range(len(value.sides)) if k not in chosen]
    value = value.ordered((*rest[:at], *chosen, *rest[at:]))
    if len(chosen) > 1:
        size = math.prod(value.shape[at : at + len(chosen)])
        value = value.replaced(at, len(chosen), ("merged",), (size,))
    return value, at


def _aligned(part: Named, first: Named, axis: str, span: Span) -> Named:
    """`part` with its axes in the order of `first`; sizes agree except along `axis`."""
    order: list[int] = []
    along = first.position(axis, span)
    for k, side in enumerate(first.sides):
        at = part.position(axis, span) if k == along else _counterpart(part, side, span)
        if k != along and part.shape[at] != first.shape[k]:
            reason = f"is {first.shape[k]} in one part and {part.shape[at]} in another"
            raise CheckpointAxis(span=span, axis=str(side), reason=reason)
        order.append(at)
    left = [str(side) for k, side in enumerate(part.sides) if k not in order]
    if left:
        reason = f"only some parts have it; give the others `[{left[0]}: new]`"
        raise CheckpointAxis(span=span, axis=left[0], reason=reason)
    return part.ordered(tuple(order))


def _counterpart(part: Named, side: Side, span: Span) -> int:
    for name in side.names:
        matches = [k for k, other in enumerate(part.sides) if name in other.names]
        if len(matches) == 1:
            return matches[0]
    return part.position(side.names[0], span)


def _dims(value: Named, counts: list[int]) -> Named:
    """Neighbouring axes as stored dimensions of `counts` axes each."""
    for at, count in enumerate(counts):
        names = " ".join(map(str, value.sides[at : at + count]))
        shown = f"({names.replace(' ', ', ')})" if count > 1 else names
        value = value.replaced(at, count, (shown,), (math.prod(value.shape[at : at + count]),))
    return value
