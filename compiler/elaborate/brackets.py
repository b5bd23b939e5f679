"""Brackets on a tensor: relabel, select, order; and brackets on the left of `=`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from typing import Any, Literal

from ...dsl import errors, syntax
from ...dsl.dims import Dim, product
from ...dsl.span import Span
from ..ir.graph import Axis, Constraint
from . import expressions, numbers, time
from .body import Body, Timeline
from .labels import AxisSize, Label
from .values import PerLayer, SplitIterations, Tensor

ELEMENTS = {"int": "whole numbers", "bool": "truth values"}


def index_tensor(body: Body, value: Tensor, expr: syntax.Index) -> Tensor:
    """`x[...]` for a tensor. Relabels are simultaneous; selections follow, left to right."""
    relabels = [i for i in expr.items if isinstance(i, syntax.Relabel)]
    selects = [i for i in expr.items if isinstance(i, syntax.Select)]
    names = [i for i in expr.items if isinstance(i, syntax.AxisRef)]
    if names and not relabels and not selects:
        return _order(body, value, names, expr.span)
    if names:
        raise errors.MixedBrackets(span=expr.span)
    plain = [r for r in relabels if not r.source.grouped and not r.target.grouped]
    value = _rename(body, value, plain) if plain else value
    for item in relabels:
        if item not in plain:
            value = _regroup(body, value, item)
    for select in selects:
        with body.at(select.span):
            value = _select(body, value, select)
    return value


def carried(body: Body, value: Tensor, name: str, span: Span) -> Label:
    """The label `name` of a value, or an error that lists the axes it has."""
    label = body.frame.find(name)
    if label is not None and value.carries(label):
        return label
    raise _no_such_axis(value, name, span)


def must_carry(value: Tensor, label: Label, span: Span) -> None:
    if not value.carries(label):
        raise _no_such_axis(value, label.name, span)


def _no_such_axis(value: Tensor, name: str, span: Span) -> errors.NoSuchAxis:
    known = tuple(k.name for k in value.labels)
    return errors.NoSuchAxis(axis=name, axes=value.names, known=known, span=span)


def kind_of(value: Any) -> str:
    """A value in words, with the kind of its elements."""
    if isinstance(value, Tensor):
        return f"a tensor of {ELEMENTS.get(value.dtype, 'fractions')}"
    return numbers.describe(value)


# ------------------------------------------------------------------------------- relabel


def _rename(body: Body, value: Tensor, items: list[syntax.Relabel]) -> Tensor:
    mapping: dict[Label, Label] = {}
    for item in items:
        old = carried(body, value, item.source.names[0], item.source.span)
        mapping[old] = _relabel_target(
            body, item.target.names[0], item.target.span, value.axis(old)
        )
    result = value.relabelled(lambda label: mapping.get(label, label))
    _no_repeats(result.labels, items[0].span)
    return result


def _relabel_target(body: Body, name: str, span: Span, axis: Axis) -> Label:
    known = body.frame.find(name)
    label = known or body.frame.declare(name, axis, span)
    if known is None:
        label.secondary = True
    elif label.axis is None:
        label.axis = axis
    return label


def _regroup(body: Body, value: Tensor, item: syntax.Relabel) -> Tensor:
    if item.source.grouped and item.target.grouped:
        merged = Label(body.frame, "_".join(item.source.names))
        return split(body, merge(body, value, item.source, merged), merged, item.target)
    if item.source.grouped:
        name = item.target.names[0]
        return merge(body, value, item.source, body.frame.find(name) or body.frame.declare(name))
    return split(
        body, value, carried(body, value, item.source.names[0], item.source.span), item.target
    )


def merge(body: Body, value: Tensor, group: syntax.AxisGroup, into: Label) -> Tensor:
    """`x[(g, r) -> h]`: row-major in the written order; the result stands where the first stood."""
    parts = [carried(body, value, name, group.span) for name in group.names]
    _no_repeats(parts, group.span)
    if value.carries(into) and into not in parts:
        raise errors.AxisTwice(axis=into.name, span=group.span)
    axes = [value.axis(p) for p in parts]
    target = _merged_axis(body, value, parts, into, group.span)
    node = body.emitter.node("merge", (body.emitter.use(value),), axes=tuple(axes), into=target)
    if target.time is None or target.time != time.merged_name(body, axes):
        for axis in axes if len(axes) > 1 else ():
            time.derive(body, target, axis)
    elif target.time not in body.session.timelines:
        _merge_validity(body, parts, axes, (into, target), group.span)
    first = min(value.labels.index(p) for p in parts)
    kept = [(k, a) for k, a in value.axes if k not in parts]
    before = sum(1 for k in value.labels[:first] if k not in parts)
    kept.insert(before, (into, target))
    within = all(value.labels.index(p) >= len(value.axes) - value.known for p in parts)
    known = value.known - len(parts) + 1 if within else min(value.known, len(kept) - before - 1)
    return _structured(body, value, node, tuple(kept), max(known, 0))


def _merged_axis(
    body: Body, value: Tensor, parts: Sequence[Label], into: Label, span: Span
) -> Axis:
    """The axis of a merge: that of its name where it has one of this size already."""
    size = product([value.axis(p).size for p in parts])
    stated = body.stated_size(into.name)
    if stated is not None:
        body.emitter.require_equal(size, stated, into.name, span, into.declared_at)
    used = [a for k, a in value.axes if k not in parts]
    if into.axis is not None and (into.axis.size == size or stated is not None):
        return into.axis if into.axis not in used else body.emitter.alternative(into, into.axis)
    timeline = time.merged_name(body, [value.axis(p) for p in parts])
    axis = body.emitter.axes.get(into.name, size, timeline, besides=used)
    into.ambiguous |= into.axis is not None and into.declared_at is None
    into.axis = into.axis or axis
    return axis


def _merge_validity(
    body: Body,
    parts: Sequence[Label],
    axes: Sequence[Axis],
    into: tuple[Label, Axis],
    span: Span,
) -> None:
    """An entry of merged axes is valid where it is along each of them: a value of the model."""
    made = body.session.timelines[into[1].time or ""] = Timeline(body.outward(into[0]))
    with body.emitter.outermost():
        known = [time.fact(body, "valid", k, a) for k, a in zip(parts, axes, strict=True)]
        masks = [valid for valid in known if isinstance(valid, Tensor)]
        valid = reduce(lambda a, b: body.emitter.pointwise("min", [a, b], span), masks)
        along = dict(valid.axes)
        for label, axis in zip(parts, axes, strict=True):
            used = along.values()  # a renamed part has the graph axis of what it was
            if label not in along:
                along[label] = body.emitter.axes.get(axis.name, axis.size, axis.time, besides=used)
        node = body.emitter.use(valid)
        lacking = tuple(a for k, a in along.items() if not valid.carries(k))
        if lacking:
            node = body.emitter.node("broadcast", (node,), axes=lacking)
        node = body.emitter.node(
            "merge", (node,), axes=tuple(along[k] for k in parts), into=into[1]
        )
        rest = tuple((k, a) for k, a in valid.axes if k not in parts)
        merged = Tensor(node, body.emitter.scope, (*rest, into), "bool")
        made.facts["valid"] = merged.relabelled(body.outward)


def split(body: Body, value: Tensor, label: Label, group: syntax.AxisGroup) -> Tensor:
    """`x[h -> (g: 4, r)]`: one size may be left out."""
    axis = value.axis(label)
    sizes = _group_sizes(body, group, axis.size, label)
    others = [(k, a) for k, a in value.axes if k is not label]
    pairs: list[tuple[Label, Axis]] = []
    for name, size in zip(group.names, sizes, strict=True):
        part = body.declare_axis(name, size, group.span)
        used = [a for _, a in (*others, *pairs)]
        known = part.axis if part.axis is not None and part.axis.size == size else None
        pairs.append((part, unused_axis(body, known, part.name, size, used)))
        time.derive(body, pairs[-1][1], axis)
    _no_repeats([k for k, _ in (*others, *pairs)], group.span)
    into = tuple(a for _, a in pairs)
    node = body.emitter.node("split", (body.emitter.use(value),), axis=axis, into=into)
    at = value.labels.index(label)
    axes = (*value.axes[:at], *pairs, *value.axes[at + 1 :])
    known_tail = at >= len(value.axes) - value.known
    return _structured(
        body, value, node, axes, value.known + len(pairs) - 1 if known_tail else value.known
    )


def _group_sizes(body: Body, group: syntax.AxisGroup, whole: Dim, label: Label) -> list[Dim]:
    """The size of each part: written, known in this body, or what is left of the whole."""
    sizes: list[Dim | None] = []
    for name, size in zip(group.names, group.sizes, strict=True):
        known = body.frame.find(name)
        if size is not None:
            sizes.append(expect_size(body, size))
        elif known is not None and known.axis is not None and not known.ambiguous:
            sizes.append(known.axis.size)
        else:
            sizes.append(body.stated_size(name))
    if sizes.count(None) > 1:
        missing = tuple(n for n, s in zip(group.names, sizes, strict=True) if s is None)
        raise errors.SplitSizes(axes=", ".join(missing), span=group.span)
    given = product([s for s in sizes if s is not None])
    if given.substitute(body.bindings).constant == 0:
        raise _uneven(body, whole, given, group, label)
    found = [s if s is not None else whole // given for s in sizes]
    if product(found) != whole:
        _divides(body, whole, product(found), group, label)
    return found


def _divides(body: Body, whole: Dim, parts: Dim, group: syntax.AxisGroup, label: Label) -> None:
    if whole.substitute(body.bindings) != parts.substitute(body.bindings):
        raise _uneven(body, whole, parts, group, label)
    relied_on(body, parts, whole, group.span)


def relied_on(
    body: Body, left: Dim, right: Dim, span: Span, op: Literal["==", "<="] = "=="
) -> None:
    """Record a relation of two sizes that holds under the present bindings, and need not under others."""
    constraint = Constraint(left, op, right, span)
    always = (right - left).constant is not None
    if not always and constraint not in body.emitter.constraints:
        body.emitter.constraints.append(constraint)


def _uneven(
    body: Body, whole: Dim, parts: Dim, group: syntax.AxisGroup, label: Label
) -> errors.SplitUneven:
    return errors.SplitUneven(
        axis=label.name,
        size=body.emitter.show(whole),
        parts=", ".join(group.names),
        product=body.emitter.show(parts),
        span=group.span,
    )


def unused_axis(body: Body, wanted: Axis | None, hint: str, size: Dim, used: list[Axis]) -> Axis:
    """`wanted`, or an axis called like `hint`, but none that the value has already."""
    if wanted is not None and wanted not in used:
        return wanted
    return body.emitter.axes.get(hint, size, besides=used)


# -------------------------------------------------------------------------------- select


def _select(body: Body, value: Tensor, item: syntax.Select) -> Tensor:
    if isinstance(item.start, syntax.Name) and item.start.name == "new" and not item.is_slice:
        return _new_axis(body, value, item)
    label = carried(body, value, item.axis, item.span)
    if item.is_slice:
        return _slice(body, value, label, item)
    at = expressions.evaluate(body, item.start)
    if isinstance(at, PerLayer):  # in float32, which has every layer number
        at = body.emitter.pointwise("to_int", [body.emitter.number(at, "f32")], item.span)
    if isinstance(at, Dim):
        return _pick(body, value, label, at, item.span)
    if not isinstance(at, Tensor) or at.dtype != "int":
        raise errors.BadIndex(what=f"axis `{item.axis}`", got=kind_of(at), span=item.start.span)
    return take(body, value, label, at, item.span)


def _new_axis(body: Body, value: Tensor, item: syntax.Select) -> Tensor:
    one = Dim.of(1)
    label = body.declare_axis(item.axis, one, item.span)
    if value.carries(label):
        raise errors.AxisTwice(axis=item.axis, span=item.span)
    axis = unused_axis(body, None, item.axis, one, [a for _, a in value.axes])
    node = body.emitter.node("broadcast", (body.emitter.use(value),), axes=(axis,))
    return _structured(body, value, node, ((label, axis), *value.axes), value.known)


def _slice(body: Body, value: Tensor, label: Label, item: syntax.Select) -> Tensor:
    axis = value.axis(label)
    start = expect_size(body, item.start)
    stop = expect_size(body, item.stop) if item.stop is not None else axis.size
    if start == Dim.of(0) and stop == axis.size:
        return value
    _check_range(body, label, (Dim.of(0), start, stop, axis.size), item.span)
    used = [a for _, a in value.axes]
    into = unused_axis(body, None, label.name, stop - start, used)
    time.derive(body, into, axis)
    node = body.emitter.node(
        "slice", (body.emitter.use(value),), axis=axis, into=into, start=start, step=1
    )
    axes = tuple((k, into if k is label else a) for k, a in value.axes)
    return _structured(body, value, node, axes, value.known)


def _check_range(body: Body, label: Label, bounds: tuple[Dim, ...], span: Span) -> None:
    """0 <= start <= stop <= size, as far as it is known."""
    for low, high in pairwise(bounds):
        gap = (high - low).substitute(body.bindings).constant
        if gap is not None and gap < 0:
            _, start, stop, size = map(body.emitter.show, bounds)
            raise errors.SliceRange(axis=label.name, start=start, stop=stop, size=size, span=span)
        relied_on(body, low, high, span, "<=")


def _pick(body: Body, value: Tensor, label: Label, at: Dim, span: Span) -> Tensor:
    axis = value.axis(label)
    position = at.substitute(body.bindings).constant
    size = axis.size.substitute(body.bindings).constant
    if position is not None and size is not None and not -size <= position < size:
        raise errors.PickRange(axis=label.name, index=position, size=size, span=span)
    if position is not None and position < 0:
        at = axis.size + at
    relied_on(body, at + 1, axis.size, span, "<=")
    node = body.emitter.node("pick", (body.emitter.use(value),), axis=axis, at=at)
    return _dropped(body, value, node, label)


def _dropped(body: Body, value: Tensor, node: int, label: Label) -> Tensor:
    place = value.labels.index(label)
    axes = tuple((k, a) for k, a in value.axes if k is not label)
    inside = place >= len(value.axes) - value.known
    return _structured(body, value, node, axes, value.known - 1 if inside else value.known)


def take(body: Body, value: Tensor, label: Label, at: Tensor, span: Span) -> Tensor:
    """`x[a: ids]`: the axes of the index stand in the place of `a`; shared axes are aligned."""
    rest = replace(value, axes=tuple((k, a) for k, a in value.axes if k is not label))
    if at.carries(label):
        time.must_not_vary(body, rest, label, span)
    (_, index), labels = body.emitter.align([rest, at], span)
    axis = value.axis(label)
    chosen = {k: a for a, k in labels.items()}
    pairs = tuple((a, chosen[k]) for k, a in rest.axes if chosen[k] != a)
    source = body.emitter.rename(body.emitter.use(value), pairs)
    node = body.emitter.node("take", (source, index), axis=axis, fill=None)
    place = value.labels.index(label)
    new = [k for k in at.labels if k not in rest.labels]
    order = [*value.labels[:place], *new, *value.labels[place + 1 :]]
    after = len(value.axes) - place - 1
    known = after if value.known <= after or not at.ordered else value.known - 1 + len(new)
    return _structured(body, value, node, tuple((k, chosen[k]) for k in order), known)


def _structured(
    body: Body, value: Tensor, node: int, axes: tuple[tuple[Label, Axis], ...], known: int
) -> Tensor:
    kind = body.emitter.scope.builder[node].type
    labels = {k for k, _ in axes}
    quiet = frozenset(k for k in value.quiet if k in labels)
    return Tensor(node, body.emitter.scope, axes, kind.dtype, known, len(axes), quiet)


def _no_repeats(labels: Iterable[Label], span: Span) -> None:
    seen: set[Label] = set()
    for label in labels:
        if label in seen:
            raise errors.AxisTwice(axis=label.name, span=span)
        seen.add(label)


# --------------------------------------------------------------------------------- order


def _order(body: Body, value: Tensor, items: list[syntax.AxisRef], span: Span) -> Tensor:
    """`x[b, s, e]` checks the axes and states their order."""
    for item in items:
        if item.name is None or _is_position(body, value, item.name):
            axes = value.labels
            raise errors.TensorIndex(axis=axes[0].name if axes else "axis", span=span)
    decls = tuple(
        syntax.AxisDecl(kind="open" if i.name == "..." else "axis", name=i.name or "", span=i.span)
        for i in items
    )
    return annotate(body, value, decls, span)


def _is_position(body: Body, value: Tensor, name: str) -> bool:
    """Is `name` a variable rather than an axis: `table[ids]` for `table[rows: ids]`?"""
    label, home = body.frame.find(name), body.environment.find(name)
    is_axis = label is not None and value.carries(label)
    return home is not None and not is_axis and name != "..."


def annotate(body: Body, value: Tensor, brackets: syntax.Brackets, span: Span) -> Tensor:
    """Check a value against written axes and give it their order.

    `...` stands for any other axes; it has the order of the first input's `...` when it is that
    set.
    """
    before, after, is_open = written(body, brackets)
    labels = [label for label, _ in (*before, *after)]
    _no_repeats(labels, span)
    for label, decl in (*before, *after):
        must_carry(value, label, decl.span)
        if decl.size is not None:
            size = expect_size(body, decl.size)
            body.emitter.require_equal(value.axis(label).size, size, label.name, decl.span, None)
    rest = [k for k in value.labels if k not in labels]
    if rest and not is_open:
        raise errors.ExtraAxes(axes=value.names, extra=", ".join(k.name for k in rest), span=span)
    middle, middle_known = open_part(body, value, rest)
    order = [*(k for k, _ in before), *middle, *(k for k, _ in after)]
    known = len(order) if middle_known else len(after)
    axes = tuple((k, value.axis(k)) for k in order)
    return replace(value, axes=axes, known=known, cover=len(axes))


Declared = list[tuple[Label, syntax.AxisDecl]]


def written(body: Body, brackets: syntax.Brackets) -> tuple[Declared, Declared, bool]:
    """What stands before and after `...`, and whether there is one."""
    before: Declared = []
    after: Declared = []
    opened = False
    for decl in brackets:
        if decl.kind == "open":
            check_open(decl, opened)
            opened = True
            continue
        (after if opened else before).extend((k, decl) for k in declared_labels(body, decl))
    return before, after, opened


def check_open(decl: syntax.AxisDecl, opened: bool) -> None:
    """`...` stands once in brackets, and a group only where a weight is declared."""
    if decl.kind == "group" or opened:
        raise errors.MisplacedAxes(
            what="a group `(..)`" if decl.kind == "group" else "a second `...`", span=decl.span
        )


def declared_labels(body: Body, decl: syntax.AxisDecl) -> tuple[Label, ...]:
    """The labels one entry of written brackets names: a pack names several."""
    if decl.kind == "pack" and decl.name not in body.packs:
        raise errors.UnknownPack(name=decl.name, known=tuple(body.packs), span=decl.span)
    if decl.name in body.packs:
        return body.packs[decl.name]
    if decl.kind == "group":
        check_open(decl, False)
    if decl.size is not None:
        return (body.declare_axis(decl.name, expect_size(body, decl.size), decl.span),)
    return (body.axis_label(decl.name),)


def open_part(body: Body, value: Tensor, rest: list[Label]) -> tuple[list[Label], bool]:
    if len(rest) <= 1:
        return rest, True
    if set(rest) == set(body.open_order):
        return list(body.open_order), True
    if value.ordered:
        return [k for k in value.labels if k in rest], True
    return rest, False


# --------------------------------------------------------------------------------- sizes


def expect_size(body: Body, expr: syntax.Expr) -> Dim:
    """An expression that must be a whole number known at compile time."""
    return must_be_size(body.settled(expressions.evaluate(body, expr)), expr.span)


def must_be_size(value: Any, span: Span) -> Dim:
    if isinstance(value, float):
        raise errors.NotWhole(got=str(value), span=span)
    if not isinstance(value, Dim):
        raise errors.NotASize(got=kind_of(value), span=span)
    return value


def axis_for(body: Body, decl: syntax.AxisDecl) -> list[tuple[Label, Axis]]:
    """The axes of a declaration (`weight`, `const`): a bare name must have a size already."""
    if decl.kind == "open":
        raise errors.MisplacedAxes(what="`...`", span=decl.span)
    if decl.kind == "group":
        return [pair for member in decl.group for pair in axis_for(body, member)]
    return [(label, _declared_axis(body, label, decl)) for label in declared_labels(body, decl)]


def _declared_axis(body: Body, label: Label, decl: syntax.AxisDecl) -> Axis:
    home = body.environment.find(label.name) if decl.kind == "axis" else None
    value = home.values[label.name] if home is not None else None
    if decl.size is not None:
        value = expect_size(body, decl.size)
    if isinstance(value, PerLayer):
        raise SplitIterations(value)
    if isinstance(value, Dim) and label.role is None:
        return body.resolved_axis(AxisSize(value, label), decl.span)
    if label.axis is None:
        raise errors.UnknownSize(axis=label.name, span=decl.span)
    return body.resolved_axis(AxisSize(label.axis.size, label, label.ambiguous), decl.span)
