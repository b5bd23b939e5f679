"""From labelled values to graph nodes: operands are aligned by label, and renamed where axes disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...dsl import errors
from ...dsl.dims import Dim
from ...dsl.span import Span
from ..ir.graph import Attrs, Axis, Constraint, DType, Origin, TensorType
from .labels import Label
from .numbers import describe
from .scopes import AxisTable, GraphScope
from .values import PerLayer, Tensor

NUMBER_DTYPE: dict[type, DType] = {bool: "bool", float: "float", Dim: "int"}
LOGICAL = {"min", "max"}
COMPARISONS = {"eq", "lt", "le"}


@dataclass(slots=True)
class Place:
    """Where the text being elaborated stands: spans from the innermost outwards, and the region."""

    spans: tuple[Span, ...] = ()
    region: str = ""


@dataclass(slots=True)
class Emitter:
    """Adds nodes to the current graph scope. Owns axis names, size bindings and recorded constraints."""

    scope: GraphScope
    bindings: dict[str, int] = field(default_factory=dict)
    axes: AxisTable = field(default_factory=AxisTable)
    constraints: list[Constraint] = field(default_factory=list)
    place: Place = field(default_factory=Place)

    # ------------------------------------------------------------------ sizes

    def require_equal(self, a: Dim, b: Dim, axis: str, span: Span, other: Span | None) -> None:
        """Two sizes must agree: by algebra, or under the present bindings (which is recorded)."""
        if a == b:
            return
        left, right = a.substitute(self.bindings), b.substitute(self.bindings)
        if left != right:
            raise errors.SizeMismatch(
                axis=axis, got=self.show(a), expected=self.show(b), span=span, bound_at=other
            )
        constraint = Constraint(a, "==", b, span)
        if constraint not in self.constraints:
            self.constraints.append(constraint)

    def show(self, size: Dim) -> str:
        value = size.substitute(self.bindings)
        return str(size) if str(size) == str(value) else f"{size} = {value}"

    # ------------------------------------------------------------------ nodes

    def origin(self) -> tuple[Origin, ...]:
        return (Origin(self.place.spans, self.place.region),)

    def node(
        self,
        op: str,
        inputs: Sequence[int] = (),
        types: tuple[TensorType, ...] | None = None,
        **attrs: Any,
    ) -> int:
        return self.scope.builder.add(op, tuple(inputs), attrs, types, self.origin())

    def use(self, value: Tensor) -> int:
        """The id of a value in the current function."""
        return self.scope.import_node(value.scope, value.node)

    def wrap(
        self,
        node: int,
        labels: dict[Axis, Label],
        order: Sequence[Label] = (),
        cover: int | None = None,
    ) -> Tensor:
        """A tensor for a fresh node; `order` is its written order where one is known."""
        kind = self.scope.builder[node].type
        by_label = {labels[axis]: axis for axis in kind.axes}
        rest = [label for label in by_label if label not in order]
        axes = tuple((label, by_label[label]) for label in [*rest, *order])
        known = len(order) if rest else len(axes)
        return Tensor(
            node, self.scope, axes, kind.dtype, known, len(axes) if cover is None else cover
        )

    def number(self, value: Any, partner: DType | None = None) -> Tensor:
        """A compile-time number as a 0-d value; a float takes the precision of its partner."""
        if isinstance(value, PerLayer):
            numbers = tuple(float(self.evaluate(v)) for v in value.values)
            return Tensor(self.scope.scalar(numbers), self.scope, (), "float")
        dtype = NUMBER_DTYPE[bool if isinstance(value, bool) else type(value)]
        if dtype != "bool" and partner in ("float", "f32", "f64"):
            dtype = partner
        plain = value.constant if isinstance(value, Dim) else value
        if isinstance(value, Dim) and (free := value.symbols() - set(self.bindings)):
            # `size(s)` is a node, which the proof of causality sees; a bare `s` would slip past it
            span = self.place.spans[0] if self.place.spans else None
            raise errors.RunTimeSize(axis=min(free), span=span)
        stored = value if plain is None else plain
        node = self.node("const", (), (TensorType(dtype),), value=stored, dtype=dtype)
        return Tensor(node, self.scope, (), dtype)

    def evaluate(self, value: Any) -> Any:
        """A number under the present bindings."""
        return value.evaluate(self.bindings) if isinstance(value, Dim) else value

    # -------------------------------------------------------------- alignment

    def alternative(self, label: Label, axis: Axis) -> Axis:
        """The graph axis a label takes when another label of the same value has its own."""
        owner = label.splits
        if owner.alternative is None or owner.alternative.size != axis.size:
            hint = label.name if label.name != axis.name else axis.name
            owner.alternative = self.axes.get(
                hint, axis.size, axis.time, fresh=label.name == axis.name
            )
            if owner.alternative == axis:
                owner.alternative = self.axes.get(hint, axis.size, axis.time, fresh=True)
        return owner.alternative

    def align(self, values: Sequence[Tensor], span: Span) -> tuple[list[int], dict[Axis, Label]]:
        """Nodes whose equal labels share one graph axis and whose different labels do not."""
        chosen: dict[Label, Axis] = {}
        for value in values:
            for label, axis in value.axes:
                if label in chosen:
                    self.meet(label, axis, chosen[label], span)
                else:
                    self.choose(label, axis, chosen)
        nodes = [self.renamed(value, chosen) for value in values]
        return nodes, {axis: label for label, axis in chosen.items()}

    def meet(self, label: Label, axis: Axis, other: Axis, span: Span) -> None:
        if axis == other:
            return
        if axis.time != other.time and axis.time is not None and other.time is not None:
            raise errors.TimelineMismatch(
                axis=label.name, first=other.time, second=axis.time, span=span
            )
        self.require_equal(axis.size, other.size, label.name, span, label.declared_at)

    def choose(self, label: Label, axis: Axis, chosen: dict[Label, Axis]) -> None:
        rival = next((known for known, taken in chosen.items() if taken == axis), None)
        if rival is None:
            chosen[label] = axis
        elif rival.is_secondary and not label.is_secondary:
            chosen[rival] = self.alternative(rival, axis)
            chosen[label] = axis
        else:
            self.choose(label, self.alternative(label, axis), chosen)

    def renamed(self, value: Tensor, chosen: dict[Label, Axis]) -> int:
        node = self.use(value)
        pairs = tuple((axis, chosen[label]) for label, axis in value.axes if axis != chosen[label])
        return self.rename(node, pairs)

    def rename(self, node: int, pairs: tuple[tuple[Axis, Axis], ...]) -> int:
        if not pairs:
            return node
        key = (node, pairs)
        if key not in self.scope.renames:
            self.scope.renames[key] = self.node("rename", (node,), pairs=pairs)
        return self.scope.renames[key]

    # ----------------------------------------------------------- pointwise ops

    def pointwise(self, op: str, operands: Sequence[Tensor | Any], span: Span) -> Tensor:
        """An op that works element by element; numbers among the operands become constants."""
        for operand in operands:
            if not isinstance(operand, Tensor | bool | float | Dim | PerLayer):
                raise errors.NotATensor(got=describe(operand), span=span)
        tensors = [o for o in operands if isinstance(o, Tensor)]
        partner = strongest(tensors)
        values = [o if isinstance(o, Tensor) else self.number(o, partner) for o in operands]
        nodes, labels = self.align(values, span)
        node = self.node(op, nodes)
        result = self.wrap(node, labels, written_order(values))
        return replace(
            result,
            cover=max((v.cover for v in values), default=0),
            quiet=quiet_after(op, values),
            clock=clock_after(op, values, span),
        )

    def cast(self, value: Tensor, dtype: DType) -> Tensor:
        if value.dtype == dtype:
            return value
        # an integer goes to float32 in one step: through bfloat16 a position would lose digits
        op = "to_float" if dtype == "float" and value.dtype in ("int", "bool") else "cast"
        node = (
            self.node(op, (self.use(value),), dtype=dtype)
            if op == "cast"
            else self.node(op, (self.use(value),))
        )
        converted = replace(
            value, node=node, scope=self.scope, dtype=self.scope.builder[node].type.dtype
        )
        return self.cast(converted, dtype) if converted.dtype != dtype else converted

    def same_axes(self, value: Tensor, node: int, keep_quiet: bool = False) -> Tensor:
        """A node with the axes of `value`, as a tensor under the same labels."""
        dtype = self.scope.builder[node].type.dtype
        quiet = value.quiet if keep_quiet else frozenset[Label]()
        return replace(value, node=node, scope=self.scope, dtype=dtype, quiet=quiet, clock=None)

    def attributes(self, node: int) -> Attrs:
        return self.scope.builder[node].attrs


def strongest(values: Sequence[Tensor]) -> DType | None:
    """The dtype constants adapt to: the highest floating one among the operands."""
    order: tuple[DType, ...] = ("f64", "f32", "float", "int")
    present = {v.dtype for v in values}
    return next((d for d in order if d in present), None)


def written_order(values: Sequence[Tensor]) -> tuple[Label, ...]:
    """The order a pointwise result inherits.

    It is that of an operand with all the axes; an ordered operand wins over an unordered one, and two
    different full orders keep only their common suffix.
    """
    union = {label for value in values for label in value.labels}
    covering = [v for v in values if set(v.labels) == union]
    if not covering:
        return ()
    suffixes = [v.labels[len(v.axes) - v.known :] for v in covering]
    longest = max(suffixes, key=len)
    for suffix in suffixes:
        if len(suffix) == len(longest):
            longest = common_suffix(longest, suffix)
    return longest


def common_suffix(a: tuple[Label, ...], b: tuple[Label, ...]) -> tuple[Label, ...]:
    length = 0
    while length < min(len(a), len(b)) and a[-1 - length] is b[-1 - length]:
        length += 1
    return a[len(a) - length :]


def quiet_after(op: str, values: Sequence[Tensor]) -> frozenset[Label]:
    """A product is zero where any factor is; other ops promise nothing."""
    if op in ("mul", "cast"):
        return frozenset().union(*(v.quiet for v in values))
    return frozenset()


def clock_after(op: str, values: Sequence[Tensor], span: Span) -> str | None:
    """Positions of unrelated timelines must not be compared or subtracted."""
    clocks = {v.clock for v in values if v.clock is not None}
    if op in ("le", "lt", "eq", "sub") and len(clocks) > 1:
        first, second = sorted(clocks)
        raise errors.UnrelatedTimelines(first=first, second=second, span=span)
    return clocks.pop() if len(clocks) == 1 and op in ("add", "where", "mul", "floordiv") else None
