"""What time means on an axis: slots, declared facts, and the padding that reductions skip.

`time s: valid = m, position = p, segment = g` declares facts of an input axis' timeline. Every axis
with that timeline, whatever it is called, has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...dsl import errors
from ...dsl.dims import Dim
from ...dsl.span import Span
from ..ir.graph import Axis
from ..ops.reduce import LEAST_INT
from .body import Body
from .labels import Label
from .values import Tensor

NORMALISED = ("softmax", "logsumexp")  # they hide the keys of other segments
FLOAT_NEUTRAL = {"sum": 0.0, "cumsum": 0.0, "dot": 0.0, "amax": -float("inf")}
INT_NEUTRAL = {"sum": Dim.of(0), "cumsum": Dim.of(0), "dot": Dim.of(0), "amax": Dim.of(LEAST_INT)}


def slot(body: Body, label: Label, axis: Axis) -> Tensor:
    """0, 1, 2, .. along an axis."""
    with body.emitter.around(label):
        node = body.emitter.node("index", (), axis=axis)
        counted = Tensor(node, body.emitter.scope, ((label, axis),), "int", 1, 1)
    return body.emitter.at_step(counted)


def clock(axis: Axis) -> str:
    """What positions along an axis count; those of different clocks are not comparable."""
    return axis.time or axis.name


def size(body: Body, axis: Axis) -> Any:
    """The size of an axis: a number where it is known, else a run-time value."""
    if axis.size.substitute(body.bindings).constant is not None:
        return axis.size
    node = body.emitter.node("size", (), axis=axis)
    return Tensor(node, body.emitter.scope, (), "int")


def fact(body: Body, name: str, label: Label, axis: Axis) -> Any:
    """`position`, `valid` or `segment` along an axis, as its timeline declares or by default."""
    declared = _declared(body, name, label, axis)
    if name == "position":
        counted = slot(body, label, axis) if declared is None else declared
        return replace(counted, clock=clock(axis))
    if declared is not None:
        return declared
    return True if name == "valid" else Dim.of(0)


def _declared(body: Body, name: str, label: Label, axis: Axis) -> Tensor | None:
    timeline = body.session.timelines.get(axis.time) if axis.time is not None else None
    if timeline is None or name not in timeline.facts:
        return None

    def inward(known: Label) -> Label:
        return label if known is timeline.label else body.frame.inward(known)

    return body.emitter.at_step(timeline.facts[name].relabelled(inward))


def must_not_vary(body: Body, value: Tensor, label: Label, span: Span) -> None:
    """Where an index moves entries along `label`, facts of other axes would not move with them."""
    for other, axis in value.axes:
        for name in ("valid", "position", "segment"):
            declared = _declared(body, name, other, axis)
            if declared is not None and declared.carries(label):
                raise errors.PermutedTime(axis=label.name, time=other.name, span=span)


def derive(body: Body, axis: Axis, source: Axis) -> None:
    """Note that `axis` was cut or joined from one that has a timeline, which it no longer has.

    Of several, the first of which something is declared.
    """
    origin = source.time or body.session.derived.get(source)
    known = body.session.timelines.get(body.session.derived.get(axis, ""))
    if origin is not None and (known is None or not known.facts):
        body.session.derived[axis] = origin


def joined_name(body: Body, parts: Sequence[Axis], sign: str = "+") -> str | None:
    """What the timeline of a concatenation (+) or a merge (*) is called: equal parts make one.

    None where no part has a timeline, where one was cut, or where positions or segments are
    declared: those of several parts have no common meaning.
    """
    timelines = [body.session.timelines.get(part.time) for part in parts if part.time is not None]
    declared = {name for timeline in timelines if timeline is not None for name in timeline.facts}
    cut = any(part in body.session.derived for part in parts)
    timed = any(part.time is not None for part in parts)
    if not timed or cut or declared - {"valid"}:
        return None
    return f" {sign} ".join(part.time or str(part.size) for part in parts)


def merged_name(body: Body, parts: Sequence[Axis]) -> str | None:
    """What the timeline of a merge is called; none where every entry is valid, or as above."""
    timelines = [body.session.timelines.get(part.time) for part in parts if part.time is not None]
    if len(parts) < 2 or not any(timeline and timeline.facts for timeline in timelines):
        return None
    return joined_name(body, parts, "*")


# ------------------------------------------------------------------------------- padding


def masked(body: Body, value: Tensor, labels: Sequence[Label], op: str, span: Span) -> Tensor:
    """`value` with what a reduction along `labels` must not see replaced by what it ignores."""
    for label in labels:
        axis = value.axis(label)
        _must_be_whole(body, axis, span)
        for visible in _visible(body, value, label, axis, op, span):
            value = _hidden(body, value, visible, op, span)
    return value


def _must_be_whole(body: Body, axis: Axis, span: Span) -> None:
    origin = body.session.derived.get(axis)
    timeline = body.session.timelines.get(origin) if origin is not None else None
    if timeline is not None and timeline.facts:
        what = f"a reduction over a part of `{origin}`, whose `time` is declared,"
        raise errors.Unsupported(what=what, span=span)


def _visible(
    body: Body, value: Tensor, label: Label, axis: Axis, op: str, span: Span
) -> list[Tensor]:
    """The conditions under which a reduction sees an entry: it is valid, and of one's segment."""
    found = []
    valid = fact(body, "valid", label, axis)
    if valid is not True and not (label in value.quiet and op in ("sum", "dot", "cumsum")):
        found.append(valid)
    segment = _declared(body, "segment", label, axis) if op in NORMALISED else None
    if segment is not None:
        steps = [(scan.label, scan.axis) for _, scan in body.emitter.scope.scans()]
        for other, its_axis in (*value.axes, *steps):
            if other is not label and its_axis.time == axis.time:
                own = fact(body, "segment", other, its_axis)
                found.append(body.emitter.pointwise("eq", [segment, own], span))
    return found


def _hidden(body: Body, value: Tensor, visible: Tensor, op: str, span: Span) -> Tensor:
    hidden = body.emitter.pointwise("where", [visible, value, _neutral(op, value)], span)
    if set(hidden.labels) != set(value.labels):
        return hidden
    axes = tuple((k, hidden.axis(k)) for k in value.labels)
    return replace(hidden, axes=axes, known=value.known, cover=value.cover)


def _neutral(op: str, value: Tensor) -> Any:
    if value.dtype == "bool":
        return False
    table = INT_NEUTRAL if value.dtype == "int" else FLOAT_NEUTRAL
    return table.get(op, -float("inf"))
