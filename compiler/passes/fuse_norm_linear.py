"""dot(r * g * x + b, W) -> r * dot(x, g * W) + dot(b, W): a norm costs its row statistic, no
more.

Over the contracted axes, r is constant (it has none of them) and comes from a reduction over
them: an rms, a standard deviation. g and b are parameters, so g * W and dot(b, W) are derived
parameters. Legal for any such r, g, b: nothing here knows a norm by name. For layernorm x stands
for the centred value: taking the mean out as well would cancel. Casts are floors and are crossed
by raising: the product accumulates in at least float32, where an unscaled row cannot overflow.
`round_to` is never crossed. Declined when something other than products reads the normalised
value (it is stored anyway), or the weight is read elsewhere (it would be stored twice).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..ir.graph import Axis, Node
from ..rewrite import Edit, Guard, Pass, Rewrite, Rule, refusal
from .canonicalize import TIDY
from .parameters import tied
from .properties import (
    bytes_of,
    is_statistic,
    line,
    other_readers,
    parameter_expression,
    traffic,
)


@dataclass(slots=True)
class Affine:
    """value = core * rows * gains + shift; a factor comes with its op, `mul` or `div`.

    `rows` have none of the contracted axes; `gains` and `shift` depend on weights alone.
    """

    summed: frozenset[Axis]
    core: Node
    rows: list[tuple[str, Node]] = field(default_factory=list)
    gains: list[tuple[str, Node]] = field(default_factory=list)
    shift: Node | None = None


@dataclass(frozen=True, slots=True)
class Normed:
    """A product of `value`, which is `form`, with a weight."""

    product: Node
    value: Node
    weight: Node
    form: Affine


def normed(edit: Edit, node: Node) -> Iterator[Normed]:
    """A product with a weight, of which the value is to be read as an affine form."""
    summed = frozenset(node.attrs.axes("axes"))
    for value, weight in (edit.operands(node), edit.operands(node)[::-1]):
        if _is_projection(edit, value, weight, summed):
            yield Normed(node, value, weight, Affine(summed, value))


def _is_projection(edit: Edit, value: Node, weight: Node, summed: frozenset[Axis]) -> bool:
    if not summed or set(value.axes) & set(weight.axes) != summed:
        return False
    return parameter_expression(edit, weight.id) is not None


@dataclass(frozen=True, slots=True)
class Layer:
    """The outermost op of a core, of `x` and another value; a cast has no other."""

    form: Affine
    op: str
    x: Node
    other: Node | None = None


def layers(edit: Edit, form: Affine) -> Iterator[Layer]:
    """How the core of a form may be taken apart once more."""
    node, operands = form.core, edit.operands(form.core)
    if node.op == "cast":
        yield Layer(form, "cast", operands[0])
    if node.op in ("mul", "div", "add"):
        sides = (operands,) if node.op == "div" else (operands, operands[::-1])
        for x, other in sides:
            if set(x.axes) == set(node.axes):
                yield Layer(form, node.op, x, other)


def peel(edit: Edit, found: Normed, joins: tuple[Guard, ...]) -> Normed:
    """Peels factors and a shift off the value, from the outside in; what is left is the core."""
    form = found.form
    while layer := next((x for x in layers(edit, form) if not refusal(joins, edit, x)), None):
        form.core = layer.x
        if layer.other is not None:
            _absorb(edit, form, layer.op, layer.other)
    return found


def _absorb(edit: Edit, form: Affine, op: str, other: Node) -> None:
    if op == "add":
        form.shift = other
    elif parameter_expression(edit, other.id) is not None:
        form.gains.append((op, other))
    else:
        form.rows.append((op, other))


def fold_norm(edit: Edit, found: Normed) -> Rewrite:
    node, value, weight, form = found.product, found.value, found.weight, found.form
    columns = _scaled_weight(edit, weight, form)
    product = edit.add("dot", (_operand(edit, form.core.id, value), columns), node.attrs)
    for op, row in reversed(form.rows):
        product = edit.add(op, (product, row.id))
    if form.shift is not None:
        product = edit.add("add", (product, _shift(edit, weight, form.shift, node)))
    kind = node.type.dtype
    if edit[product].type.dtype != kind:
        product = edit.add("cast", (product,), {"dtype": kind})
    rows = " and ".join(line(row) for _, row in form.rows)
    before = traffic(edit, [form.core.id, weight.id], [node.id]) + bytes_of(value.type) * 2
    after = traffic(edit, [form.core.id, weight.id], [node.id])
    return Rewrite({node.id: product}, f"row statistic {rows} after the product", before, after)


def _has_no_statistic(edit: Edit, found: Normed) -> bool:
    summed = found.form.summed
    return not any(is_statistic(edit, row, summed) for _, row in found.form.rows)


def _is_read(edit: Edit, found: Normed) -> str:
    for user in edit.users(found.value.id):
        if not _projects(edit, user, found.value, found.form.summed):
            return f"the normalised value is read at {line(user)} too, so it is stored anyway"
    return ""


def _is_output(edit: Edit, found: Normed) -> str:
    return "the normalised value is an output" if edit.is_output(found.value.id) else ""


def _is_tied(edit: Edit, found: Normed) -> str:
    root, others = other_readers(edit, found.weight, found.product)
    scaled = found.form.gains and others and len(root.axes) > 1
    return tied(root, others[0]) if scaled else ""


def _projects(edit: Edit, user: Node, value: Node, summed: frozenset[Axis]) -> bool:
    if user.op != "dot" or frozenset(user.attrs.axes("axes")) != summed:
        return False
    other = edit[user.inputs[1 - user.inputs.index(value.id)]]
    return _is_projection(edit, value, other, summed)


def _scaled_weight(edit: Edit, weight: Node, form: Affine) -> int:
    """gain * W, computed in float32 and stored as W is, then raised again for the product."""
    scaled = _raised(edit, weight.id) if form.gains else weight.id
    for op, gain in form.gains:
        scaled = edit.add(op, (scaled, _raised(edit, gain.id)))
    if edit[scaled].type.dtype != weight.type.dtype:
        scaled = edit.add("cast", (scaled,), {"dtype": weight.type.dtype})
    return _raised(edit, scaled)


def _shift(edit: Edit, weight: Node, shift: Node, product: Node) -> int:
    """dot(b, W) over the contracted axes."""
    return edit.add("dot", (_raised(edit, shift.id), _raised(edit, weight.id)), product.attrs)


def _operand(edit: Edit, core: int, value: Node) -> int:
    """The core, no more precise than the operand it replaces, accumulating in float32."""
    if value.type.dtype == "float" != edit[core].type.dtype:
        core = edit.add("cast", (core,), {"dtype": "float"})
    return _raised(edit, core)


def _raised(edit: Edit, node_id: int) -> int:
    """At least float32."""
    if edit[node_id].type.dtype in ("f32", "f64"):
        return node_id
    return edit.add("cast", (node_id,), {"dtype": "f32"})


def _mixes_axes(edit: Edit, layer: Layer) -> bool:
    other = layer.other
    if other is None or layer.op == "add" or parameter_expression(edit, other.id) is not None:
        return False
    return not layer.form.summed.isdisjoint(other.axes)


def _adds_a_value(edit: Edit, layer: Layer) -> bool:
    added = layer.other if layer.op == "add" else None
    return added is not None and parameter_expression(edit, added.id) is None


def _adds_within(edit: Edit, layer: Layer) -> bool:
    form = layer.form
    return layer.op == "add" and bool(form.rows or form.gains or form.shift)


JOINS = (
    Guard("one-side", "a factor is of weights, or has none of the summed axes", _mixes_axes),
    Guard("constant-shift", "what is added is of weights", _adds_a_value),
    Guard("outermost-shift", "it is added last", _adds_within),
)

GUARDS = (
    Guard("statistic", "r comes from a reduction over the summed axes", _has_no_statistic),
    Guard("products-only", "only products read the normalised value", _is_read),
    Guard("no-output", "it is no output", _is_output),
    Guard("untied", "nothing else reads a weight that a gain is folded into", _is_tied),
)

FUSE_NORM_LINEAR = Pass(
    "fuse-norm-linear",
    "dot(r g x + b, W) = r dot(x, g W) + dot(b, W)",
    (
        Rule(
            "fold-norm",
            fold_norm,
            ("dot",),
            normed,
            GUARDS,
            "dot(r g x + b, W) = r dot(x, g W) + dot(b, W)",
            peel,
            JOINS,
        ),
        *TIDY,
    ),
)
