"""The functions of the language itself: a table from name to meaning.

Everything that can be written with these is in `std/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...dsl import errors
from ...dsl.dims import Dim
from ...dsl.span import Span
from ..ir.graph import Axis, DType
from . import brackets, expressions, numbers
from .body import Body
from .labels import AxisSize, Label
from .values import Tensor

if TYPE_CHECKING:
    from .calls import Given

UNARY = (
    "exp log log1p sqrt rsqrt sin cos tanh sigmoid erf round floor abs".split()
)  # also on numbers
BINARY = {"min": "min", "max": "max"}
CASTS: dict[str, DType] = {"f32": "f32", "f64": "f64", "float": "float"}
NEEDS_FLOAT = {*UNARY} - {"abs", "round", "floor"}


def call(body: Body, name: str, given: Given) -> Any:
    for keyword, (_, span) in given.keywords.items():
        raise errors.UnknownArgument(function=name, name=keyword, known=(), span=span)
    low, high = ARITY.get(name, (1, 1))
    count = len(given.positional)
    if not low <= count <= high:
        raise errors.ArgumentCount(
            name=name, expected=_arity_words(low, high), got=count, span=given.span
        )
    values = [value for value, _ in given.positional]
    if any(value is None for value in values):
        position = values.index(None)
        raise errors.NoneUsed(function=name, span=given.positional[position][1])
    return TABLE[name](body, name, given)


def _arity_words(low: int, high: int) -> str:
    if low == high:
        return f"{low} argument{'s' if low != 1 else ''}"
    return f"at least {low}" if high > 9 else f"{low} to {high} arguments"


def _values(given: Given) -> list[Any]:
    return [v.size if isinstance(v, AxisSize) else v for v, _ in given.positional]


def _tensor(body: Body, given: Given, position: int = 0) -> Tensor:
    value, span = given.positional[position]
    return expressions.as_tensor(body, value, span)


def _label(body: Body, given: Given, position: int, value: Tensor | None) -> Label:
    """An axis argument; where a tensor is given it must carry the axis."""
    axis, span = given.positional[position]
    if not isinstance(axis, AxisSize):
        raise errors.NotAnAxis(name="axis", got=numbers.describe(axis), span=span)
    if value is not None and not value.carries(axis.label):
        raise errors.NoSuchAxis(
            axis=axis.label.name,
            axes=value.names,
            known=tuple(k.name for k in value.labels),
            span=span,
        )
    return axis.label


def _labels(body: Body, given: Given, start: int, values: Sequence[Tensor]) -> list[Label]:
    found = []
    for position in range(start, len(given.positional)):
        owner = values[0] if len(values) == 1 else None
        found.append(_label(body, given, position, owner))
    return found


# ---------------------------------------------------------------------------- elementwise


def _unary(body: Body, name: str, given: Given) -> Any:
    (value,) = _values(given)
    if not isinstance(value, Tensor):
        return numbers.unary(name, value, body.bindings, given.span)
    if value.dtype in ("int", "bool") and name in NEEDS_FLOAT:
        value = body.emitter.cast(value, "float")
    return body.emitter.pointwise(name, [value], given.span)


def _number_only(body: Body, name: str, given: Given) -> Any:
    (value,) = _values(given)
    if isinstance(value, Tensor):
        raise errors.NumberOnly(name=name, span=given.span)
    return numbers.unary(name, value, body.bindings, given.span)


def _binary(body: Body, name: str, given: Given) -> Any:
    left, right = _values(given)
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return body.emitter.pointwise(BINARY[name], [left, right], given.span)
    return numbers.binary(name, left, right, body.bindings, given.span)


def _where(body: Body, _: str, given: Given) -> Any:
    chosen, then, otherwise = _values(given)
    if isinstance(chosen, bool):
        return then if chosen else otherwise
    if not isinstance(chosen, Tensor) or chosen.dtype != "bool":
        raise errors.NotABoolTensor(got=_kind(chosen), span=given.positional[0][1])
    return body.emitter.pointwise("where", [chosen, then, otherwise], given.span)


def _kind(value: Any) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else numbers.describe(value)


def _to_int(body: Body, _: str, given: Given) -> Any:
    (value,) = _values(given)
    if not isinstance(value, Tensor):
        return numbers.unary("to_int", value, body.bindings, given.span)
    return body.emitter.pointwise("to_int", [value], given.span)


def _convert(body: Body, name: str, given: Given) -> Any:
    (value,) = _values(given)
    if not isinstance(value, Tensor):
        return numbers.unary("to_float", value, body.bindings, given.span)
    return body.emitter.cast(value, CASTS[name])


def _cast(body: Body, _: str, given: Given) -> Tensor:
    target = given.positional[1][0]
    name = getattr(target, "name", None)
    if name not in CASTS:
        raise errors.NotADtype(span=given.positional[1][1], known=tuple(CASTS))
    return body.emitter.cast(_tensor(body, given), CASTS[name])


def _round_to(body: Body, _: str, given: Given) -> Tensor:
    format_, span = given.positional[1]
    if format_ not in ("bf16", "f16", "f32"):
        raise errors.NotADtype(span=span, known=('"bf16"', '"f16"', '"f32"'))
    value = _tensor(body, given)
    node = body.emitter.node("round_to", (body.emitter.use(value),), format=format_)
    return body.emitter.same_axes(value, node, keep_quiet=True)


def _stop_gradient(body: Body, _: str, given: Given) -> Tensor:
    value = _tensor(body, given)
    node = body.emitter.node("stop_gradient", (body.emitter.use(value),))
    return body.emitter.same_axes(value, node, keep_quiet=True)


# -------------------------------------------------------------------------- time and axes


def _index(body: Body, _: str, given: Given) -> Tensor:
    return _slot(body, _label(body, given, 0, None))


def _slot(body: Body, label: Label) -> Tensor:
    axis = _axis(label)
    node = body.emitter.node("index", (), axis=axis)
    return Tensor(node, body.emitter.scope, ((label, axis),), "int", 1, 1)


def _axis(label: Label) -> Axis:
    assert label.axis is not None, f"axis {label!r} has no size"
    return label.axis


def _time_fact(body: Body, name: str, given: Given) -> Any:
    label = _label(body, given, 0, None)
    return time_fact(body, name, label, given.span)


def time_fact(body: Body, fact: str, label: Label, span: Span) -> Any:
    """`position`, `valid` or `segment` along an axis, as its timeline declares or by default."""
    axis = _axis(label)
    declared = _declared_fact(body, fact, label, span)
    if declared is None:
        if fact == "valid":
            return True
        declared = _slot(body, label) if fact == "position" else Dim.of(0)
    clock = axis.time or axis.name
    is_position = fact == "position" and isinstance(declared, Tensor)
    return replace(declared, clock=clock) if is_position else declared


def _declared_fact(body: Body, fact: str, label: Label, span: Span) -> Tensor | None:
    axis = _axis(label)
    timeline = body.session.timelines.get(axis.time) if axis.time is not None else None
    value = timeline.facts.get(fact) if timeline is not None else None
    if value is None or timeline is None:
        return None
    home = timeline.label

    def inward(known: Label) -> Label:
        if known is home:
            return label
        stands = body.frame.standing_for(known)
        return stands[0] if len(stands) == 1 else known

    return value.relabelled(inward)


def _size(body: Body, _: str, given: Given) -> Any:
    return axis_size(body, _label(body, given, 0, None))


def axis_size(body: Body, label: Label) -> Any:
    axis = _axis(label)
    if axis.size.substitute(body.bindings).constant is not None:
        return axis.size
    node = body.emitter.node("size", (), axis=axis)
    return Tensor(node, body.emitter.scope, (), "int")


def _count(body: Body, _: str, given: Given) -> Any:
    """How many valid positions an axis has."""
    label = _label(body, given, 0, None)
    valid = time_fact(body, "valid", label, given.span)
    if valid is True:
        return axis_size(body, label)
    number = body.emitter.cast(valid, "float")
    return _reduce(body, "sum", number, [label])


# ------------------------------------------------------------------------------ reductions

NEUTRAL: dict[str, Any] = {"sum": 0.0, "amax": float("-inf"), "any": False, "dot": 0.0}


def masked(body: Body, value: Tensor, labels: Sequence[Label], neutral: Any, span: Span) -> Tensor:
    """Invalid positions along `labels` replaced by what the reduction ignores."""
    for label in labels:
        valid = time_fact(body, "valid", label, span) if label.axis is not None else True
        if valid is True or (neutral == 0 and label in value.quiet):
            continue
        fill = neutral if value.dtype != "int" else Dim.of(0)
        known, axes = value.known, value.axes
        value = body.emitter.pointwise("where", [valid, value, fill], span)
        value = _keep_order(value, axes, known)
    return value


def _keep_order(value: Tensor, axes: Any, known: int) -> Tensor:
    order = [k for k, _ in axes]
    extra = [k for k in value.labels if k not in order]
    if extra:
        return value
    return replace(value, axes=tuple((k, value.axis(k)) for k in order), known=known)


def _reduction(body: Body, name: str, given: Given) -> Tensor:
    value = _tensor(body, given)
    labels = _labels(body, given, 1, [value])
    value = masked(body, value, labels, NEUTRAL[name], given.span)
    return _reduce(body, "amax" if name == "any" else name, value, labels)


def _reduce(body: Body, op: str, value: Tensor, labels: Sequence[Label]) -> Tensor:
    axes = tuple(value.axis(k) for k in labels)
    node = body.emitter.node(op, (body.emitter.use(value),), axes=axes)
    kept = tuple((k, a) for k, a in value.axes if k not in labels)
    tail = sum(1 for k in value.labels[len(value.axes) - value.known :] if k not in labels)
    dtype = body.emitter.scope.builder[node].type.dtype
    quiet = value.quiet - set(labels) if op == "sum" else frozenset[Label]()
    return Tensor(node, body.emitter.scope, kept, dtype, tail, len(kept), quiet)


def _dot(body: Body, _: str, given: Given) -> Tensor:
    left, right = _tensor(body, given, 0), _tensor(body, given, 1)
    labels = [_label(body, given, i, left) for i in range(2, len(given.positional))]
    for position in range(2, len(given.positional)):
        _label(body, given, position, right)
    quiet = left.quiet | right.quiet
    noisy = [k for k in labels if k not in quiet]
    left = masked(body, left, noisy, 0.0, given.span)
    nodes, names = body.emitter.align([left, right], given.span)
    by_label = {k: a for a, k in names.items()}
    node = body.emitter.node("dot", nodes, axes=tuple(by_label[k] for k in labels))
    return body.emitter.wrap(node, names)


def _softmax(body: Body, _: str, given: Given) -> Tensor:
    value = _tensor(body, given)
    label = _label(body, given, 1, value)
    has_padding = time_fact(body, "valid", label, given.span) is not True
    value = masked(body, value, [label], float("-inf"), given.span)
    node = body.emitter.node("softmax", (body.emitter.use(value),), axis=value.axis(label))
    result = body.emitter.same_axes(value, node)
    return replace(result, quiet=frozenset({label}) if has_padding else frozenset())


def _cumsum(body: Body, _: str, given: Given) -> Tensor:
    value = _tensor(body, given)
    label = _label(body, given, 1, value)
    value = masked(body, value, [label], 0.0, given.span)
    node = body.emitter.node("cumsum", (body.emitter.use(value),), axis=value.axis(label))
    return body.emitter.same_axes(value, node)


def _topk(body: Body, _: str, given: Given) -> tuple[Tensor, Tensor]:
    value = _tensor(body, given)
    label = _label(body, given, 1, value)
    if len(given.axes) != 1:
        raise errors.TopkAxis(span=given.span)
    ((name, (size, _)),) = given.axes.items()
    axis = brackets._unused(body, None, name, size.size, [a for _, a in value.axes])
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
    label = _label(body, given, len(values), values[0])
    for value in values:
        _label(body, given, len(values), value)
    return join(body, values, label, given.span)


def join(body: Body, values: list[Tensor], label: Label, span: Span) -> Tensor:
    """Concatenate along `label`; every other axis must be the same."""
    rests = [replace(v, axes=tuple((k, a) for k, a in v.axes if k is not label)) for v in values]
    first = set(rests[0].labels)
    for rest in rests[1:]:
        if set(rest.labels) != first:
            raise errors.JoinAxes(first=rests[0].names, second=rest.names, span=span)
    _, names = body.emitter.align(rests, span)
    chosen = {k: a for a, k in names.items()}
    nodes, parts = [], []
    for value, rest in zip(values, rests, strict=True):
        pairs = tuple((a, chosen[k]) for k, a in rest.axes if a != chosen[k])
        part = value.axis(label)
        nodes.append(body.emitter.rename(body.emitter.use(value), pairs))
        parts.append(part)
    size = sum((p.size for p in parts), Dim())
    known = label.axis
    same = known is not None and known.size == size and known not in chosen.values()
    axis = known if same else brackets._unused(body, None, label.name, size, list(chosen.values()))
    node = body.emitter.node("concat", nodes, axis=axis, parts=tuple(parts))
    lead = values[0]
    axes = tuple((k, axis if k is label else chosen[k]) for k in lead.labels)
    assert axis is not None
    dtype = body.emitter.scope.builder[node].type.dtype
    return Tensor(node, body.emitter.scope, axes, dtype, lead.known, len(axes))  # type: ignore[arg-type]


def _stack(body: Body, _: str, given: Given) -> Tensor:
    """`stack(a, b, pair)`: a new axis, written before the others."""
    new, span = given.positional[-1]
    parts = given.positional[:-1]
    if not isinstance(new, AxisSize):
        raise errors.NotAnAxis(name="axis", got=numbers.describe(new), span=span)
    one = Dim.of(1)
    values = []
    for value, where in parts:
        tensor = expressions.as_tensor(body, value, where)
        axis = brackets._unused(body, None, new.label.name, one, [a for _, a in tensor.axes])
        node = body.emitter.node("broadcast", (body.emitter.use(tensor),), axes=(axis,))
        axes = ((new.label, axis), *tensor.axes)
        values.append(Tensor(node, body.emitter.scope, axes, tensor.dtype, tensor.known, len(axes)))
    return join(body, values, new.label, given.span)


Meaning = Callable[[Body, str, "Given"], Any]
TABLE: dict[str, Meaning] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(("f32", "f64", "float"), _convert),
    **dict.fromkeys(("ceil", "log2"), _number_only),
    **dict.fromkeys(("position", "valid", "segment"), _time_fact),
    **dict.fromkeys(("sum", "amax", "any"), _reduction),
    "int": _to_int,
    "cast": _cast,
    "round_to": _round_to,
    "stop_gradient": _stop_gradient,
    "where": _where,
    "index": _index,
    "slot": _index,
    "size": _size,
    "count": _count,
    "dot": _dot,
    "softmax": _softmax,
    "cumsum": _cumsum,
    "topk": _topk,
    "concat": _concat,
    "stack": _stack,
}
ARITY: dict[str, tuple[int, int]] = {
    **dict.fromkeys(BINARY, (2, 2)),
    **dict.fromkeys(("sum", "amax", "any"), (2, 9)),
    **dict.fromkeys(("cast", "round_to", "softmax", "cumsum", "topk"), (2, 2)),
    "where": (3, 3),
    "dot": (3, 9),
    "concat": (2, 99),
    "stack": (2, 99),
}
NAMES = frozenset(TABLE)
__all__ = ["NAMES", "call", "time_fact"]
