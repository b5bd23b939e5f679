"""From labelled values to graph nodes: operands align by label, and are renamed where axes differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ...dsl import errors
from ...dsl.dims import Dim
from ...dsl.span import Span
from ..ir.graph import Axis, Constraint, DType, Origin, TensorType
from .labels import Label
from .numbers import describe
from .scopes import AxisTable, GraphScope, Stepping
from .values import Labelled, PerLayer, SplitIterations, Tensor

MOST_AXES = 24  # of a value; NumPy and PyTorch have 64, a product of two values joins theirs

NUMBER_DTYPE: dict[type, DType] = {bool: "bool", float: "float", Dim: "int"}
FLOATING = ("float", "f32", "f64")
ARITHMETIC = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%", "abs": "abs"}


@dataclass(slots=True)
class Place:
    """Where the text being elaborated stands: spans from the innermost outwards, and the region."""

    spans: tuple[Span, ...] = ()
    region: str = ""


@dataclass(slots=True)
class Placed:
    """A context in which an emitter's place is `place`; entered once for every expression."""

    emitter: Emitter
    place: Place

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    def _swap(self) -> None:
        self.emitter.place, self.place = self.place, self.emitter.place


@dataclass(slots=True)
class Emitter:
    """Adds nodes to the current graph scope. Owns axis names, bindings and constraints."""

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
        node = self.scope.builder.add(op, tuple(inputs), attrs, types, self.origin())
        count = max((len(t.axes) for t in self.scope.builder[node].types), default=0)
        if count > MOST_AXES:
            raise errors.TooManyAxes(count=count, limit=MOST_AXES, span=self.place.spans[0])
        return node

    def use(self, value: Tensor) -> int:
        """The id of a value in the current function. A table sees no values but its own."""
        if not value.scope.encloses(self.scope):
            raise errors.RunTimeTable(span=self.place.spans[0])
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
        """A compile-time number as a 0-d value; it takes the precision of its partner."""
        if isinstance(value, PerLayer):
            return self._per_layer(value, partner)
        dtype = NUMBER_DTYPE[type(value)]
        if dtype != "bool" and partner in FLOATING:
            dtype = partner
        if isinstance(value, Dim) and (free := value.symbols() - set(self.bindings)):
            # `size(s)` is a node, which the proof of causality sees; a bare `s` would slip past it
            raise errors.RunTimeSize(axis=min(free), span=self.place.spans[0])
        constant = value.constant if isinstance(value, Dim) else None
        stored = value if constant is None else constant
        node = self.node("const", (), (TensorType(dtype),), value=stored, dtype=dtype)
        return Tensor(node, self.scope, (), dtype)

    def _per_layer(self, value: PerLayer, partner: DType | None) -> Tensor:
        """A fraction becomes an argument of the layer kind; anything else makes kinds of its own."""
        kinds = {type(v) for v in value.values}
        is_number = kinds == {float} or (kinds <= {float, Dim} and partner in FLOATING)
        if not is_number or not value.scope.encloses(self.scope):
            raise SplitIterations(value)
        dtype: DType = partner if partner in FLOATING else "float"
        numbers = tuple(float(self.evaluate(v)) for v in value.values)
        return Tensor(value.scope.scalar(numbers, dtype), value.scope, (), dtype)

    def evaluate(self, value: Any) -> Any:
        """A number under the present bindings."""
        return value.evaluate(self.bindings) if isinstance(value, Dim) else value

    # ------------------------------------------------------------------ scans

    @contextmanager
    def within(self, scope: GraphScope) -> Iterator[None]:
        """Emit into another function."""
        outer, self.scope = self.scope, scope
        try:
            yield
        finally:
            self.scope = outer

    @contextmanager
    def outermost(self) -> Iterator[None]:
        """Emit into the model's own function, whose values all others can read."""
        with self.within([*self.scope.chain()][-1]):
            yield

    @contextmanager
    def around(self, label: Label) -> Iterator[None]:
        """Emit into the function around the scan along `label`, where there is one."""
        found = [s.parent for s, scan in self.scope.scans() if scan.runs_along(label)]
        with self.within(found[-1] if found and found[-1] is not None else self.scope):
            yield

    def at_step(self, value: Tensor) -> Tensor:
        """A value as the present function sees it: read at the step of each scan it enters."""
        for scope, scan in reversed(self.scope.scans()):
            if scope.parent is not None and value.scope.encloses(scope.parent):
                label = next((k for k in value.labels if scan.runs_along(k)), None)
                value = value if label is None else self._stepped(value, label, scope, scan)
        return value

    def _stepped(self, value: Tensor, label: Label, scope: GraphScope, scan: Stepping) -> Tensor:
        assert scope.parent is not None
        own = value.axis(label)
        self.meet(label, own, scan.axis, self.place.spans[0])
        swap = {own: scan.axis, scan.axis: own} if own != scan.axis else {}
        pairs = tuple((a, swap[a]) for _, a in value.axes if a in swap)
        with self.within(scope.parent):
            node = scope.at_step(self.rename(self.use(value), pairs), scan)
        axes = tuple((k, swap.get(a, a)) for k, a in value.axes if k is not label)
        tail = value.labels[len(value.axes) - value.known :]
        known = value.known - (label in tail)
        quiet = value.quiet - {label}
        return Tensor(node, scope, axes, value.dtype, known, len(axes), quiet, value.clock)

    # -------------------------------------------------------------- alignment

    def alternative(self, label: Label, axis: Axis) -> Axis:
        """The graph axis a label takes when another label of the same value has its own."""
        owner, known = label.owner, label.owner.alternative
        if known is None or (known.size, known.time) != (axis.size, axis.time):
            known = self.axes.get(label.name, axis.size, axis.time, besides=(axis,))
            owner.alternative = known
        return known

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
        """Two labels of one value never share an axis: the secondary one yields."""
        rival = next((known for known, taken in chosen.items() if taken == axis), None)
        if rival is not None and rival.yields_to(label) and not label.yields_to(rival):
            chosen[rival] = self.free_axis(rival, axis, chosen)
            rival = None
        chosen[label] = axis if rival is None else self.free_axis(label, axis, chosen)

    def free_axis(self, label: Label, axis: Axis, chosen: dict[Label, Axis]) -> Axis:
        """A graph axis for a label whose own is among those chosen."""
        found = self.alternative(label, axis)
        used = chosen.values()
        if found in used:
            found = self.axes.get(label.name, axis.size, axis.time, besides=used)
        return found

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

    def laid_out(self, value: Tensor, axes: Labelled, span: Span) -> int:
        """A node with exactly these axes in this order; the value is the same along those it lacks."""
        pairs = []
        for label, axis in axes:
            if value.carries(label) and value.axis(label) != axis:
                self.meet(label, value.axis(label), axis, span)
                pairs.append((value.axis(label), axis))
        node = self.rename(self.use(value), tuple(pairs))
        missing = tuple(axis for label, axis in axes if not value.carries(label))
        if missing:
            node = self.node("broadcast", (node,), axes=missing)
        order = tuple(axis for _, axis in axes)
        if self.scope.builder[node].axes == order:
            return node
        return self.node("transpose", (node,), order=order)

    # ----------------------------------------------------------- pointwise ops

    def pointwise(self, op: str, operands: Sequence[Tensor | Any], span: Span) -> Tensor:
        """An op that works element by element; numbers among the operands become constants."""
        for operand in operands:
            if not isinstance(operand, Tensor | bool | float | Dim | PerLayer):
                raise errors.NotATensor(got=describe(operand), span=span)
        partner = strongest([o for o in operands if isinstance(o, Tensor)])
        values = [o if isinstance(o, Tensor) else self.number(o, partner) for o in operands]
        self.check_kinds(op, values, span)
        nodes, labels = self.align(values, span)
        node = self.node(op, nodes)
        result = self.wrap(node, labels, written_order(values))
        return replace(
            result,
            cover=max((v.cover for v in values), default=0),
            quiet=quiet_after(op, values),
            clock=clock_after(op, values, span),
        )

    def check_kinds(self, op: str, values: Sequence[Tensor], span: Span) -> None:
        """Logic takes truth values, arithmetic needs a number on one side."""
        truths = [v.dtype == "bool" for v in values]
        if op in ARITHMETIC and all(truths):
            raise errors.BoolArithmetic(op=ARITHMETIC[op], span=span)
        if op in ("min", "max") and any(truths) and not all(truths):
            raise errors.MixedKinds(span=span)

    def cast(self, value: Tensor, dtype: DType) -> Tensor:
        if value.dtype == dtype:
            return value
        if dtype == "float" and value.dtype in ("int", "bool"):
            return self.same_axes(value, self.node("to_float", (self.use(value),)), value.quiet)
        # an integer goes to float32 in one step: through bfloat16 a position would lose digits
        node = self.node("cast", (self.use(value),), dtype=dtype)
        return self.same_axes(value, node, value.quiet)

    def same_axes(self, value: Tensor, node: int, quiet: frozenset[Label] = frozenset()) -> Tensor:
        """A node with the axes of `value`, as a tensor under the same labels."""
        dtype = self.scope.builder[node].type.dtype
        return replace(value, node=node, scope=self.scope, dtype=dtype, quiet=quiet, clock=None)


def strongest(values: Sequence[Tensor]) -> DType | None:
    """The dtype constants adapt to: the highest floating one among the operands."""
    order: tuple[DType, ...] = ("f64", "f32", "float", "int")
    present = {v.dtype for v in values}
    return next((d for d in order if d in present), None)


def written_order(values: Sequence[Tensor]) -> tuple[Label, ...]:
    """The order a pointwise result inherits.

    It is that of an operand with all the axes; an ordered operand wins over an unordered one, and
    two different full orders keep only their common suffix.
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
