"""The functions of the language itself: a table from name to meaning.

Everything that can be written with these is in `std/`. What time means for them is in `time.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...dsl import errors
from ...dsl.dims import Dim
from ...dsl.span import Span
from ..ir.graph import Axis, DType
from ..ops import promote
from . import brackets, expressions, numbers, time
from .body import Body, Timeline
from .labels import AxisSize, Label
from .values import Builtin, Tensor, each_layer

if TYPE_CHECKING:
    from .calls import Given

UNARY = "exp log log1p sqrt rsqrt sin cos tanh sigmoid erf round floor abs".split()
CASTS: dict[str, DType] = {"f32": "f32", "f64": "f64", "float": "float"}
NEEDS_FLOAT = {*UNARY} - {"abs", "round", "floor"}
ROUNDINGS = ("bf16", "f16", "f32")
FOREIGN = {"max": "amax", "min": "-amax(-x, ..)"}  # what a reduction is called here


def call(body: Body, name: str, given: Given) -> Any:
    for keyword, (_, span) in given.keywords.items():
        if name == "topk":
            raise errors.TopkAxis(span=span)
        raise errors.UnknownArgument(function=name, name=keyword, known=(), span=span)
    for axis, (_, span) in given.axes.items():
        if name != "topk":
            raise errors.UnknownArgument(function=name, name=axis, known=(), span=span)
    low, high = ARITY.get(name, (1, 1))
    count = len(given.positional)
    if not low <= count <= high:
        raise errors.ArgumentCount(
            name=name, expected=_arity_words(low, high), got=count, span=given.span
        )
    for value, span in given.positional:
        if value is None:
            raise errors.NoneUsed(function=name, span=span)
    return TABLE[name](body, name, given)


def _arity_words(low: int, high: int) -> str:
    if low == high:
        return f"{low} argument{'s' if low != 1 else ''}"
    return f"at least {low} arguments" if high > 9 else f"{low} to {high} arguments"


def _values(body: Body, given: Given) -> list[Any]:
    """The arguments; an axis among them stands for its size."""
    return [body.size(v, span) if isinstance(v, AxisSize) else v for v, span in given.positional]


def _tensor(body: Body, given: Given, position: int = 0) -> Tensor:
    value, span = given.positional[position]
    return expressions.as_tensor(body, value, span)


def _axis_argument(given: Given, position: int) -> AxisSize:
    axis, span = given.positional[position]
    if not isinstance(axis, AxisSize):
        raise errors.NotAnAxis(got=numbers.describe(axis), span=span)
    return axis


def _label(given: Given, position: int, *values: Tensor) -> Label:
    """An axis argument that every one of `values` must carry."""
    label = _axis_argument(given, position).label
    for value in values:
        brackets.must_carry(value, label, given.positional[position][1])
    return label


def _labels(given: Given, start: int, *values: Tensor) -> list[Label]:
    found: list[Label] = []
    for position in range(start, len(given.positional)):
        label = _label(given, position, *values)
        if label in found:
            raise errors.ArgumentTwice(name=label.name, span=given.positional[position][1])
        found.append(label)
    return found


def _own_axis(body: Body, given: Given) -> tuple[Label, Axis]:
    """An axis argument as this body declares it, with its graph axis."""
    size = _axis_argument(given, 0)
    return size.label, body.resolved_axis(size, given.positional[0][1])


# ---------------------------------------------------------------------------- elementwise


def _unary(body: Body, name: str, given: Given) -> Any:
    (value,) = _values(body, given)
    if not isinstance(value, Tensor):
        return numbers.unary(name, value, body.bindings, given.span)
    if value.dtype in ("int", "bool") and name in NEEDS_FLOAT:
        value = body.emitter.cast(value, "float")
    return body.emitter.pointwise(name, [value], given.span)


def _number_only(body: Body, name: str, given: Given) -> Any:
    (value,) = _values(body, given)
    if isinstance(value, Tensor):
        raise errors.NumberOnly(name=name, span=given.span)
    return numbers.unary(name, value, body.bindings, given.span)


def _binary(body: Body, name: str, given: Given) -> Any:
    """`max` and `min` of two values; along an axis it is `amax`."""
    left, right = (value for value, _ in given.positional)
    if isinstance(right, AxisSize) and isinstance(left, Tensor) and left.carries(right.label):
        raise errors.ReductionName(
            name=name, instead=FOREIGN[name], axis=right.label.name, span=given.span
        )
    left, right = _values(body, given)
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return body.emitter.pointwise(name, [left, right], given.span)
    return numbers.binary(name, left, right, body.bindings, given.span)


def _divide(body: Body, _: str, given: Given) -> Dim:
    """`divide(d, heads)`: a size over another, which must leave no rest."""
    whole, parts = (body.settled(value) for value in _values(body, given))
    for value, (_, span) in zip((whole, parts), given.positional, strict=True):
        if not isinstance(value, Dim):
            raise errors.NotASize(got=brackets.kind_of(value), span=span)
    quotient: Dim = numbers.binary("//", whole, parts, body.bindings, given.span)
    if (quotient * parts - whole).substitute(body.bindings) != Dim():
        shown = [body.emitter.show(size) for size in (whole, parts)]
        raise errors.NotDivisible(whole=shown[0], parts=shown[1], span=given.span)
    brackets.relied_on(body, quotient * parts, whole, given.span)
    return quotient


def _where(body: Body, _: str, given: Given) -> Any:
    chosen, then, otherwise = _values(body, given)
    chosen = body.settled(chosen)
    if isinstance(chosen, bool):
        return then if chosen else otherwise
    if not isinstance(chosen, Tensor) or chosen.dtype != "bool":
        raise errors.NotABoolTensor(got=brackets.kind_of(chosen), span=given.positional[0][1])
    return body.emitter.pointwise("where", [chosen, then, otherwise], given.span)


def _to_int(body: Body, _: str, given: Given) -> Any:
    (value,) = _values(body, given)
    if not isinstance(value, Tensor):
        return numbers.unary("int", value, body.bindings, given.span)
    if value.dtype == "int":
        return value
    return body.emitter.pointwise("to_int", [value], given.span)


def _convert(body: Body, name: str, given: Given) -> Any:
    (value,) = _values(body, given)
    if not isinstance(value, Tensor):
        return numbers.unary("float", value, body.bindings, given.span)
    return body.emitter.cast(value, CASTS[name])


def _cast(body: Body, _: str, given: Given) -> Tensor:
    target, span = given.positional[1]
    if not isinstance(target, Builtin) or target.name not in CASTS:
        raise errors.NotADtype(span=span, known=tuple(CASTS))
    return body.emitter.cast(_tensor(body, given), CASTS[target.name])


def _round_to(body: Body, _: str, given: Given) -> Tensor:
    format_, span = given.positional[1]
    if format_ not in ROUNDINGS:
        raise errors.NotADtype(span=span, known=tuple(f'"{name}"' for name in ROUNDINGS))
    value = _tensor(body, given)
    if value.dtype in ("int", "bool"):
        value = body.emitter.cast(value, "float")
    node = body.emitter.node("round_to", (body.emitter.use(value),), format=format_)
    return body.emitter.same_axes(value, node, value.quiet)


def _stop_gradient(body: Body, _: str, given: Given) -> Tensor:
    value = _tensor(body, given)
    node = body.emitter.node("stop_gradient", (body.emitter.use(value),))
    return body.emitter.same_axes(value, node, value.quiet)


# -------------------------------------------------------------------------- time and axes


def _index(body: Body, name: str, given: Given) -> Tensor:
    label, axis = _own_axis(body, given)
    numbered = time.slot(body, label, axis)
    return replace(numbered, clock=time.clock(axis)) if name == "slot" else numbered


def _time_fact(body: Body, name: str, given: Given) -> Any:
    return time.fact(body, name, *_own_axis(body, given))


def _size(body: Body, _: str, given: Given) -> Any:
    return time.size(body, _own_axis(body, given)[1])


def _count(body: Body, _: str, given: Given) -> Any:
    """How many valid positions an axis has."""
    label, axis = _own_axis(body, given)
    with body.emitter.around(label):
        valid = time.fact(body, "valid", label, axis)
        counted = time.size(body, axis) if valid is True else reduce(body, "sum", valid, [label])
    return body.emitter.at_step(counted) if isinstance(counted, Tensor) else counted


def _last(body: Body, _: str, given: Given) -> Tensor:
    """The final value of a state, of which a scan leaves the sequence."""
    value, span = given.positional[0]
    key = (value.scope, value.node) if isinstance(value, Tensor) else None
    if key not in body.session.finals:
        raise errors.NotAState(function="last", name=span.text, span=span)
    node, scanned = body.session.finals[key]
    axes = tuple((k, a) for k, a in value.axes if a != scanned)
    tail = value.axes[len(value.axes) - value.known :]
    known = sum(1 for _, a in tail if a != scanned)
    final = Tensor(node, value.scope, axes, value.dtype, known, len(axes))
    return body.emitter.at_step(final)


def _prev(body: Body, _: str, given: Given) -> Tensor:
    """`prev` takes a name, not a value: `calls` sees to the form that has one."""
    states = tuple(body.environment.all_states())
    span = given.positional[0][1]
    raise errors.NotAState(function="prev", name=span.text, states=states, span=span)


# ------------------------------------------------------------------------------ reductions


def _any(body: Body, name: str, given: Given) -> Any:
    """`any(x, a, ..)` of a tensor along axes; `any(list)` of truth values at compile time."""
    if len(given.positional) > 1:
        return _reduction(body, name, given)
    values, span = given.positional[0]
    if not isinstance(values, list):
        raise errors.ArgumentCount(name=name, expected="2 to 9", got=1, span=given.span)
    return each_layer(lambda *known: any(numbers.boolean(v, span) for v in known), *values)


def _reduction(body: Body, name: str, given: Given) -> Tensor:
    value = _tensor(body, given)
    labels = _labels(given, 1, value)
    if name == "any" and value.dtype != "bool":
        raise errors.NotABoolTensor(got=brackets.kind_of(value), span=given.positional[0][1])
    value = time.masked(body, value, labels, name, given.span)
    return reduce(body, "amax" if name == "any" else name, value, labels)


def reduce(body: Body, op: str, value: Tensor, labels: Sequence[Label]) -> Tensor:
    axes = tuple(value.axis(k) for k in labels)
    attrs: dict[str, Any] = {"axis": axes[0]} if op == "logsumexp" else {"axes": axes}
    node = body.emitter.node(op, (body.emitter.use(value),), **attrs)
    kept = tuple((k, a) for k, a in value.axes if k not in labels)
    tail = sum(1 for k in value.labels[len(value.axes) - value.known :] if k not in labels)
    dtype = body.emitter.scope.builder[node].type.dtype
    quiet = value.quiet - set(labels) if op == "sum" else frozenset[Label]()
    return Tensor(node, body.emitter.scope, kept, dtype, tail, len(kept), quiet)


def _dot(body: Body, _: str, given: Given) -> Tensor:
    left, right = _tensor(body, given, 0), _tensor(body, given, 1)
    labels = _labels(given, 2, left, right)
    if left.dtype == right.dtype == "bool":
        raise errors.BoolArithmetic(op="dot", span=given.span)
    noisy = [k for k in labels if k not in left.quiet | right.quiet]
    left = time.masked(body, left, noisy, "dot", given.span)
    nodes, names = body.emitter.align([left, right], given.span)
    by_label = {k: a for a, k in names.items()}
    node = body.emitter.node("dot", nodes, axes=tuple(by_label[k] for k in labels))
    return body.emitter.wrap(node, names)


def _softmax(body: Body, _: str, given: Given) -> Tensor:
    value = _tensor(body, given)
    label = _label(given, 1, value)
    masked = time.masked(body, value, [label], "softmax", given.span)
    node = body.emitter.node("softmax", (body.emitter.use(masked),), axis=masked.axis(label))
    quiet = frozenset({label}) if masked is not value else frozenset[Label]()
    return body.emitter.same_axes(masked, node, quiet)


def _cumsum(body: Body, _: str, given: Given) -> Tensor:
    value = _tensor(body, given)
    label = _label(given, 1, value)
    value = time.masked(body, value, [label], "cumsum", given.span)
    node = body.emitter.node("cumsum", (body.emitter.use(value),), axis=value.axis(label))
    return body.emitter.same_axes(value, node)


def _topk(body: Body, _: str, given: Given) -> tuple[Tensor, Tensor]:
    value = _tensor(body, given)
    label = _label(given, 1, value)
    if len(given.axes) != 1 or len(given.positional) != 2:
        raise errors.TopkAxis(span=given.span)
    ((name, (size, span)),) = given.axes.items()
    if value.dtype == "bool":
        raise errors.BoolArithmetic(op="topk", span=given.span)
    if value.carries(size.label) and size.label is not label:
        raise errors.AxisTwice(axis=name, span=span)
    least, most = (
        d.substitute(body.bindings).constant for d in (size.size, value.axis(label).size)
    )
    if least is not None and most is not None and least > most:
        raise errors.TopkCount(count=least, axis=label.name, size=most, span=span)
    brackets.relied_on(body, size.size, value.axis(label).size, span, "<=")
    axis = brackets.unused_axis(body, None, name, size.size, [a for _, a in value.axes])
    pair = body.emitter.node("topk", (body.emitter.use(value),), axis=value.axis(label), k=axis)
    axes = tuple((size.label, axis) if k is label else (k, a) for k, a in value.axes)
    found = []
    for position in (0, 1):
        kind = body.emitter.scope.builder[pair].types[position]
        node = body.emitter.node("result", (pair,), (kind,), index=position)
        found.append(Tensor(node, body.emitter.scope, axes, kind.dtype, value.known, len(axes)))
    return found[0], found[1]


# --------------------------------------------------------------------------------- joining


def _concat(body: Body, _: str, given: Given) -> Tensor:
    values = [_tensor(body, given, i) for i in range(len(given.positional) - 1)]
    return join(body, values, _label(given, len(values), *values), given.span)


def join(body: Body, values: Sequence[Tensor], label: Label, span: Span) -> Tensor:
    """Concatenate along `label`; a part is repeated along the other axes that it lacks."""
    kind = promote(*(v.dtype for v in values))
    if kind not in ("int", "bool"):
        values = [body.emitter.cast(v, kind) for v in values]
    elif any(v.dtype != kind for v in values):
        raise errors.MixedKinds(span=span)
    rests = [replace(v, axes=tuple((k, a) for k, a in v.axes if k is not label)) for v in values]
    _, names = body.emitter.align(rests, span)
    chosen = {k: a for a, k in names.items()}
    parts = [value.axis(label) for value in values]
    nodes = [_repeated(body, v, rest, chosen) for v, rest in zip(values, rests, strict=True)]
    axis = _joined_axis(body, label, parts, list(chosen.values()), span)
    node = body.emitter.node("concat", nodes, axis=axis, parts=tuple(parts))
    widest = max(values, key=lambda v: len(v.axes))
    order = [*(k for k in chosen if not widest.carries(k)), *widest.labels]
    axes = tuple((k, axis if k is label else chosen[k]) for k in order)
    return Tensor(node, body.emitter.scope, axes, kind, widest.known, len(widest.axes))


def _repeated(body: Body, value: Tensor, rest: Tensor, chosen: dict[Label, Axis]) -> int:
    """A part under the axes `chosen`, repeated along those that the `rest` of it lacks."""
    pairs = tuple((a, chosen[k]) for k, a in rest.axes if a != chosen[k])
    node = body.emitter.rename(body.emitter.use(value), pairs)
    lacking = tuple(axis for k, axis in chosen.items() if k not in rest.labels)
    return body.emitter.node("broadcast", (node,), axes=lacking) if lacking else node


def _joined_axis(
    body: Body, label: Label, parts: Sequence[Axis], used: list[Axis], span: Span
) -> Axis:
    size, timeline = sum((p.size for p in parts), Dim()), _joined_time(body, label, parts, span)
    known = label.axis
    if known is not None and (known.size, known.time) == (size, timeline) and known not in used:
        return known
    axis = body.emitter.axes.get(label.name, size, timeline, besides=used)
    for part in parts if timeline is None else ():
        time.derive(body, axis, part)
    return axis


def _joined_time(body: Body, label: Label, parts: Sequence[Axis], span: Span) -> str | None:
    """The timeline of parts one behind the other: an entry is valid where it is in its part.

    Facts are values of the model, so that all that follows can read them, in whatever layer.
    """
    name = time.joined_name(body, parts)
    if name is None or name in body.session.timelines:
        return name
    made = body.session.timelines[name] = Timeline(body.outward(label))
    with body.emitter.outermost():
        found = [time.fact(body, "valid", label, part) for part in parts]
        if any(valid is not True for valid in found):
            masks = [_everywhere(body, v, label, p) for v, p in zip(found, parts, strict=True)]
            made.facts["valid"] = join(body, masks, label, span).relabelled(body.outward)
    return name


def _everywhere(body: Body, value: Tensor | bool, label: Label, axis: Axis) -> Tensor:
    """A truth value along an axis."""
    if isinstance(value, Tensor):
        return value
    number = body.emitter.use(body.emitter.number(value))
    node = body.emitter.node("broadcast", (number,), axes=(axis,))
    return Tensor(node, body.emitter.scope, ((label, axis),), "bool", 1, 1)


def _stack(body: Body, _: str, given: Given) -> Tensor:
    """`stack(a, b, pair)`: a new axis, written before the others."""
    last = len(given.positional) - 1
    label = _label(given, last)
    parts = [_tensor(body, given, position) for position in range(last)]
    if any(part.carries(label) for part in parts):
        raise errors.AxisTwice(axis=label.name, span=given.positional[last][1])
    return stacked(body, parts, label, given.span)


def stacked(body: Body, parts: Sequence[Tensor], label: Label, span: Span) -> Tensor:
    """Values that lack `label`, one after the other along it."""
    one = Dim.of(1)
    values = []
    for tensor in parts:
        used = [a for _, a in tensor.axes]
        axis = brackets.unused_axis(body, None, label.name, one, used)
        node = body.emitter.node("broadcast", (body.emitter.use(tensor),), axes=(axis,))
        axes = ((label, axis), *tensor.axes)
        values.append(Tensor(node, body.emitter.scope, axes, tensor.dtype, tensor.known, len(axes)))
    return join(body, values, label, span)


Meaning = Callable[[Body, str, "Given"], Any]
TABLE: dict[str, Meaning] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(("min", "max"), _binary),
    **dict.fromkeys(("f32", "f64", "float"), _convert),
    **dict.fromkeys(("ceil", "log2"), _number_only),
    **dict.fromkeys(("position", "valid", "segment"), _time_fact),
    **dict.fromkeys(("sum", "amax"), _reduction),
    "any": _any,
    "divide": _divide,
    "int": _to_int,
    "cast": _cast,
    "round_to": _round_to,
    "stop_gradient": _stop_gradient,
    "where": _where,
    "index": _index,
    "slot": _index,
    "size": _size,
    "count": _count,
    "last": _last,
    "prev": _prev,
    "dot": _dot,
    "softmax": _softmax,
    "logsumexp": _reduction,
    "cumsum": _cumsum,
    "topk": _topk,
    "concat": _concat,
    "stack": _stack,
}
ARITY: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("min", "max", "divide"), (2, 2)),
    **dict.fromkeys(("sum", "amax"), (2, 9)),
    "any": (1, 9),
    **dict.fromkeys(("cast", "round_to", "softmax", "logsumexp", "cumsum"), (2, 2)),
    "topk": (2, 3),  # a count without an axis gets its own words
    "where": (3, 3),
    "dot": (3, 9),
    "concat": (2, 99),
    "stack": (2, 99),
}
NAMES = frozenset(TABLE)
__all__ = ["NAMES", "call", "reduce", "stacked"]
