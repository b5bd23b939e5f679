"""Steps of a scan that are affine in its states: h' = D_1 h_1 + D_2 h_2 + .. + c, elementwise.

`Lift` writes the values of a step that depend on no state for all steps of a chunk at once, in a
function of the chunk. `forms` reads an update as an affine form whose factors and offset are such
values. A choice between two forms is a choice of factors and of offsets, so a reset is D = 0 and a
step that is skipped D = 1, c = 0: nothing is divided and no logarithm is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..ir.graph import Attrs, Axis, Builder, DType, Function, Node, TensorType
from ..ir.walk import cone
from .properties import is_elementwise, line


class NotAffine(Exception):
    """Why an update is no affine form."""


@dataclass(slots=True)
class Lift:
    """The function of a chunk under construction: `values` maps values of `step` into it."""

    step: Function
    chunk: Axis
    builder: Builder
    values: dict[int, int] = field(default_factory=dict)
    made: dict[tuple[str, tuple[int, ...], Attrs], int] = field(default_factory=dict)

    def sweep(self) -> None:
        """Lifts all values of the step whose operands are there."""
        for node in self.step.nodes:
            if node.id not in self.values and node.op != "input":
                operands = [self.values.get(i) for i in node.inputs]
                if None not in operands and is_liftable(self, node):
                    self.values[node.id] = self._lifted(
                        node, [i for i in operands if i is not None]
                    )

    def _lifted(self, node: Node, operands: Sequence[int]) -> int:
        attrs = dict(node.attrs)
        if self.chunked(operands):
            if node.op == "transpose":
                attrs["order"] = (self.chunk, *node.attrs.axes("order"))
            if node.op == "concat":
                operands = [self._filled(i) for i in operands]
            return self.add(node.op, tuple(operands), attrs, like=node)
        types = node.types if node.op in ("const", "table") else None
        return self.add(node.op, tuple(operands), attrs, types, like=node)

    def _filled(self, operand: int) -> int:
        return (
            operand
            if self.chunked([operand])
            else self.add("broadcast", (operand,), {"axes": (self.chunk,)})
        )

    def chunked(self, operands: Collection[int]) -> bool:
        """Whether one of the values varies from step to step."""
        return any(self.chunk in t.axes for i in operands for t in self.builder[i].types)

    def add(
        self,
        op: str,
        inputs: tuple[int, ...] = (),
        attrs: Mapping[str, object] | None = None,
        types: tuple[TensorType, ...] | None = None,
        like: Node | None = None,
    ) -> int:
        """A node, or one that is there already and computes the same."""
        origins, hint = (like.origins, like.hint) if like else ((), "")
        key = op, inputs, Attrs(attrs)  # type: ignore[arg-type]
        if types is not None:  # an input, or a loop
            return self.builder.add(op, inputs, key[2], types, origins, hint)
        if key not in self.made:
            self.made[key] = self.builder.add(op, inputs, key[2], None, origins, hint)
        return self.made[key]

    def product(self, a: int, b: int) -> int:
        """a * b, where 0 and 1 are what they are."""
        for number, other in ((a, b), (b, a)):
            if self.is_number(number, 0):
                return number
            if self.is_number(number, 1):
                return other
        return self.add("mul", (a, b))

    def sum(self, a: int, b: int) -> int:
        for number, other in ((a, b), (b, a)):
            if self.is_number(number, 0):
                return other
        return self.add("add", (a, b))

    def renamed(self, value: int, new: Mapping[Axis, Axis]) -> int:
        """The value under other names; of one that is renamed already, what that was made of."""
        node, names = self.builder[value], dict(new)
        if node.op == "rename":
            before = dict(node.attrs.pairs("pairs"))
            names = {a: b for a, b in new.items() if a not in before.values()}
            names |= {a: new.get(b, b) for a, b in before.items()}
            value = node.inputs[0]
        axes = self.builder[value].axes
        pairs = tuple((a, names[a]) for a in axes if names.get(a, a) != a)
        return self.add("rename", (value,), {"pairs": pairs}) if pairs else value

    def number(self, value: int, dtype: DType) -> int:
        for node in self.builder.nodes:
            same = node.op == "const" and node.type.dtype == dtype
            if same and type(node.attrs["value"]) is int and node.attrs["value"] == value:
                return node.id
        return self.add("const", (), {"value": value, "dtype": dtype}, (TensorType(dtype),))

    def is_number(self, node_id: int, value: int) -> bool:
        node = self.builder[node_id]
        return node.op == "const" and node.attrs["value"] == value and node.type.dtype != "bool"


def is_liftable(lift: Lift, node: Node) -> bool:
    """Loops inside a step are left to the step."""
    return node.op == "table" or "body" not in node.attrs


@dataclass(frozen=True, slots=True)
class Form:
    """sum of factors[k] * state k, plus `offset`: values of the chunk. A state not named has 0.

    `axes` are those of each state as they are called here.
    """

    factors: Mapping[int, int]
    offset: int
    axes: Mapping[int, tuple[Axis, ...]] = field(default_factory=dict)


Term = int | Form


@dataclass(slots=True)
class Forms:
    """Reads updates of the states of one stratum; `states` maps their inputs to their numbers."""

    lift: Lift
    states: Mapping[int, int]
    known: dict[int, Term] = field(default_factory=dict)

    def form(self, update: int) -> Form:
        """The value `update` of the step, under the axes of the states. Raises NotAffine."""
        found, step = self.read(update), self.lift.step
        entering = {k: step[i].axes for i, k in self.states.items()}
        if any(axes != entering[k] for k, axes in found.axes.items()):
            raise NotAffine(f"the axes of {self._names()} change places")
        return found

    def read(self, value: int) -> Form:
        """A value of the step. Raises NotAffine."""
        step = self.lift.step
        for node in step.nodes:
            if node.id in self.states:
                zero, one = (self.lift.number(n, node.type.dtype) for n in (0, 1))
                k = self.states[node.id]
                self.known[node.id] = Form({k: one}, zero, {k: node.axes})
            elif node.id in self.lift.values:
                self.known[node.id] = self.lift.values[node.id]
        wanted = cone(step, [value], self.known)
        for node in step.nodes:
            if node.id in wanted and node.id not in self.known:
                self.known[node.id] = self._read(node)
        return _form(self.known[value])

    def _read(self, node: Node) -> Term:
        terms = [self.known[i] for i in node.inputs]
        rule = RULES.get(node.op)
        if rule is None:
            what = "is not affine in" if is_elementwise(node) else "mixes the elements of"
            raise NotAffine(f"`{node.op}` at {line(node)} {what} {self._names()}")
        form = rule(self.lift, node, *terms)
        if form is None:
            raise NotAffine(f"`{node.op}` at {line(node)} is not affine in {self._names()}")
        return form

    def _names(self) -> str:
        return " and ".join(f"`{self.lift.step[i].hint or 'state'}`" for i in self.states)


def _form(term: Term) -> Form:
    return term if isinstance(term, Form) else Form({}, term)


def _each(form: Form, change: Callable[[int], int]) -> Form:
    factors = {k: change(factor) for k, factor in form.factors.items()}
    return replace(form, factors=factors, offset=change(form.offset))


def _axes(a: Form, b: Form) -> dict[int, tuple[Axis, ...]] | None:
    """What both call the axes of each state; None where they differ."""
    if any(a.axes[k] != b.axes[k] for k in a.axes.keys() & b.axes.keys()):
        return None
    return {**a.axes, **b.axes}


def _added(lift: Lift, node: Node, left: Term, right: Term) -> Form | None:
    a, b = _form(left), _form(right)
    axes, factors = _axes(a, b), dict(a.factors)
    for k, factor in b.factors.items():
        factors[k] = lift.sum(factors[k], factor) if k in factors else factor
    return None if axes is None else Form(factors, lift.sum(a.offset, b.offset), axes)


def _subtracted(lift: Lift, node: Node, left: Term, right: Term) -> Form | None:
    b = _form(right)
    minus = lift.number(-1, node.type.dtype)
    return _added(lift, node, left, _each(b, lambda x: lift.product(x, minus)))


def _multiplied(lift: Lift, node: Node, left: Term, right: Term) -> Form | None:
    if isinstance(left, Form) and isinstance(right, int):
        return _each(left, lambda x: lift.product(x, right))
    if isinstance(right, Form) and isinstance(left, int):
        return _each(right, lambda x: lift.product(x, left))
    return None


def _divided(lift: Lift, node: Node, left: Term, right: Term) -> Form | None:
    if isinstance(left, Form) and isinstance(right, int):
        return _each(left, lambda x: x if lift.is_number(x, 0) else lift.add("div", (x, right)))
    return None


def _chosen(lift: Lift, node: Node, condition: Term, left: Term, right: Term) -> Form | None:
    a, b = _form(left), _form(right)
    axes = _axes(a, b)
    if isinstance(condition, Form) or axes is None:
        return None

    def choice(x: int, y: int) -> int:
        return x if x == y else lift.add("where", (condition, x, y))

    def factor(one: Form, other: Form, k: int) -> int:
        if k in one.factors:
            return one.factors[k]
        return lift.number(0, lift.builder[other.factors[k]].type.dtype)

    factors = {k: choice(factor(a, b, k), factor(b, a, k)) for k in axes}
    return Form(factors, choice(a.offset, b.offset), axes)


def _renamed(lift: Lift, node: Node, term: Term) -> Form:
    form, new = _form(term), dict(node.attrs.pairs("pairs"))

    axes = {k: tuple(new.get(a, a) for a in axes) for k, axes in form.axes.items()}
    return replace(_each(form, lambda x: lift.renamed(x, new)), axes=axes)


def _same(lift: Lift, node: Node, term: Term) -> Form:
    """Laid out otherwise, or a floor on the precision: the loop computes in the widest."""
    return _form(term)


RULES: dict[str, Callable[..., Form | None]] = {
    "add": _added,
    "sub": _subtracted,
    "mul": _multiplied,
    "div": _divided,
    "where": _chosen,
    "rename": _renamed,
    "cast": _same,
    "transpose": _same,
    "broadcast": _same,
}
