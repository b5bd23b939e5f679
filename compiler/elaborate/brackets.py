"""Brackets on a tensor: relabel, select, order; and brackets on the left of `=`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...dsl import errors, syntax
from ...dsl.dims import Dim, product
from ...dsl.span import Span
from ..ir.graph import Axis, Constraint
from . import expressions, numbers
from .body import Body
from .labels import AxisSize, Label
from .values import PerLayer, Tensor


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
    raise errors.NoSuchAxis(
        axis=name, axes=value.names, known=tuple(k.name for k in value.labels), span=span
    )


# ------------------------------------------------------------------------------- relabel


def _rename(body: Body, value: Tensor, items: list[syntax.Relabel]) -> Tensor:
    mapping: dict[Label, Label] = {}
    for item in items:
        old = carried(body, value, item.source.names[0], item.source.span)
        mapping[old] = _relabel_target(
            body, item.target.names[0], item.target.span, value.axis(old)
        )
    result = value.relabelled(lambda label: mapping.get(label, label))
    _no_duplicates(result, items[0].span)
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
        merged = Label(body.frame, "+".join(item.source.names))
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
    axes = [value.axis(p) for p in parts]
    size = product([a.size for a in axes])
    if into.axis is not None:
        body.emitter.require_equal(size, into.axis.size, into.name, group.span, into.declared_at)
        size = into.axis.size
    target = _free_axis(body, value, into, size, parts)
    node = body.emitter.node("merge", (body.emitter.use(value),), axes=tuple(axes), into=target)
    first = min(value.labels.index(p) for p in parts)
    kept = [(k, a) for k, a in value.axes if k not in parts]
    before = sum(1 for k in value.labels[:first] if k not in parts)
    kept.insert(before, (into, target))
    within = all(value.labels.index(p) >= len(value.axes) - value.known for p in parts)
    known = value.known - len(parts) + 1 if within else min(value.known, len(kept) - before - 1)
    return _structured(body, value, node, tuple(kept), max(known, 0))


def split(body: Body, value: Tensor, label: Label, group: syntax.AxisGroup) -> Tensor:
    """`x[h -> (g: 4, r)]`: one size may be left out."""
    axis = value.axis(label)
    sizes = _group_sizes(body, group, axis.size)
    total = product(sizes)
    if total != axis.size:
        _divides(body, axis.size, total, group, label)
    parts, axes = [], []
    for name, size in zip(group.names, sizes, strict=True):
        part = body.declare_axis(name, size, group.span)
        parts.append(part)
        used = [a for k, a in value.axes if k is not label] + axes
        known = part.axis if part.axis is not None and part.axis.size == size else None
        axes.append(_unused(body, known, part.name, size, used))
    node = body.emitter.node("split", (body.emitter.use(value),), axis=axis, into=tuple(axes))
    at = value.labels.index(label)
    kept = list(value.axes)
    kept[at : at + 1] = list(zip(parts, axes, strict=True))
    known = value.known + len(parts) - 1 if at >= len(value.axes) - value.known else value.known
    result = _structured(body, value, node, tuple(kept), known)
    _no_duplicates(result, group.span)
    return result


def _group_sizes(body: Body, group: syntax.AxisGroup, whole: Dim) -> list[Dim]:
    sizes: list[Dim | None] = []
    for name, size in zip(group.names, group.sizes, strict=True):
        known = body.frame.find(name)
        if size is not None:
            sizes.append(expect_size(body, size))
        elif known is not None and known.axis is not None and not known.ambiguous:
            sizes.append(known.axis.size)
        else:
            sizes.append(None)
    if sizes.count(None) > 1:
        missing = tuple(n for n, s in zip(group.names, sizes, strict=True) if s is None)
        raise errors.SplitSizes(axes=", ".join(missing), span=group.span)
    rest = whole // product([s for s in sizes if s is not None])
    return [s if s is not None else rest for s in sizes]


def _divides(body: Body, whole: Dim, parts: Dim, group: syntax.AxisGroup, label: Label) -> None:
    if whole.substitute(body.bindings) != parts.substitute(body.bindings):
        raise errors.SplitUneven(
            axis=label.name,
            size=body.emitter.show(whole),
            parts=", ".join(group.names),
            product=body.emitter.show(parts),
            span=group.span,
        )
    constraint = Constraint(parts, "==", whole, group.span)
    if constraint not in body.emitter.constraints:
        body.emitter.constraints.append(constraint)


def _free_axis(body: Body, value: Tensor, label: Label, size: Dim, removed: list[Label]) -> Axis:
    used = [a for k, a in value.axes if k not in removed]
    axis = label.axis
    if axis is None:
        axis = label.axis = _unused(body, None, label.name, size, used)
    return axis if axis not in used else body.emitter.alternative(label, axis)


def _unused(body: Body, wanted: Axis | None, hint: str, size: Dim, used: list[Axis]) -> Axis:
    axis = wanted or body.emitter.axes.get(hint, size)
    return axis if axis not in used else body.emitter.axes.get(hint, size, fresh=True)


# -------------------------------------------------------------------------------- select


def _select(body: Body, value: Tensor, item: syntax.Select) -> Tensor:
    if isinstance(item.start, syntax.Name) and item.start.name == "new" and not item.is_slice:
        return _new_axis(body, value, item)
    label = carried(body, value, item.axis, item.span)
    if item.is_slice:
        return _slice(body, value, label, item)
    at = expressions.evaluate(body, item.start)
    if isinstance(at, Dim):
        return _pick(body, value, label, at, item.span)
    if isinstance(at, PerLayer):
        at = body.emitter.pointwise("to_int", [body.emitter.number(at)], item.span)
    if not isinstance(at, Tensor) or at.dtype != "int":
        raise errors.BadIndex(axis=item.axis, got=_what(at), span=item.start.span)
    return take(body, value, label, at, item.span)


def _what(value: Any) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else numbers.describe(value)


def _new_axis(body: Body, value: Tensor, item: syntax.Select) -> Tensor:
    label = body.declare_axis(item.axis, Dim.of(1), item.span)
    axis = _unused(body, None, item.axis, Dim.of(1), [a for _, a in value.axes])
    node = body.emitter.node("broadcast", (body.emitter.use(value),), axes=(axis,))
    return _structured(body, value, node, ((label, axis), *value.axes), value.known)


def _slice(body: Body, value: Tensor, label: Label, item: syntax.Select) -> Tensor:
    axis = value.axis(label)
    start = expect_size(body, item.start)
    stop = expect_size(body, item.stop) if item.stop is not None else axis.size
    if start == Dim.of(0) and stop == axis.size:
        return value
    for bound, limit in ((start, stop), (stop, axis.size)):
        low, high = bound.substitute(body.bindings), limit.substitute(body.bindings)
        if low.constant is not None and high.constant is not None and low.constant > high.constant:
            raise errors.SliceRange(
                axis=label.name,
                start=body.emitter.show(start),
                stop=body.emitter.show(stop),
                size=body.emitter.show(axis.size),
                span=item.span,
            )
    used = [a for _, a in value.axes]
    into = _unused(body, None, label.name, stop - start, used)
    node = body.emitter.node(
        "slice", (body.emitter.use(value),), axis=axis, into=into, start=start, step=1
    )
    axes = tuple((k, into if k is label else a) for k, a in value.axes)
    return _structured(body, value, node, axes, value.known)


def _pick(body: Body, value: Tensor, label: Label, at: Dim, span: Span) -> Tensor:
    axis = value.axis(label)
    position = at.substitute(body.bindings).constant
    size = axis.size.substitute(body.bindings).constant
    if position is not None and size is not None and not -size <= position < size:
        raise errors.PickRange(axis=label.name, index=position, size=size, span=span)
    if position is not None and position < 0:
        at = axis.size + at
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
    (_, index), labels = body.emitter.align([rest, at], span)
    axis = value.axis(label)
    chosen = {k: a for a, k in labels.items()}
    pairs = tuple((a, chosen[k]) for k, a in rest.axes if chosen[k] != a)
    source = body.emitter.rename(body.emitter.use(value), pairs)
    node = body.emitter.node("take", (source, index), axis=axis, fill=None)
    place = value.labels.index(label)
    new = [k for k in at.labels if k not in rest.labels]
    order = [*value.labels[:place], *new, *value.labels[place + 1 :]]
    kept = tuple((k, chosen[k]) for k in order)
    after = len(value.axes) - place - 1
    known = after if value.known <= after else value.known - 1 + len(new)
    if not at.ordered and value.known > after:
        known = after
    return _structured(body, value, node, kept, min(known, len(kept)))


def _structured(
    body: Body, value: Tensor, node: int, axes: tuple[tuple[Label, Axis], ...], known: int
) -> Tensor:
    kind = body.emitter.scope.builder[node].type
    labels = {k for k, _ in axes}
    quiet = frozenset(k for k in value.quiet if k in labels)
    return Tensor(node, body.emitter.scope, axes, kind.dtype, known, len(axes), quiet)


def _no_duplicates(value: Tensor, span: Span) -> None:
    seen: set[Label] = set()
    for label in value.labels:
        if label in seen:
            raise errors.AxisTwice(axis=label.name, span=span)
        seen.add(label)


# --------------------------------------------------------------------------------- order


def _order(body: Body, value: Tensor, items: list[syntax.AxisRef], span: Span) -> Tensor:
    """`x[b, s, e]` checks the axes and states their order."""
    names = [i.name for i in items]
    if None in names:
        raise errors.TensorIndex(axis=value.labels[0].name if value.axes else "a", span=span)
    decls = tuple(
        syntax.AxisDecl(kind="open" if n == "..." else "axis", name=n or "", span=i.span)
        for n, i in zip(names, items, strict=True)
    )
    return annotate(body, value, decls, span)


def annotate(body: Body, value: Tensor, brackets: syntax.Brackets, span: Span) -> Tensor:
    """Check a value against written axes and give it their order.

    `...` stands for any other axes; it has the order of the first input's `...` when it is that set.
    """
    before, after, is_open = _written_labels(body, value, brackets, span)
    rest = [k for k in value.labels if k not in before and k not in after]
    if rest and not is_open:
        raise errors.ExtraAxes(axes=value.names, extra=", ".join(k.name for k in rest), span=span)
    middle, middle_known = _open_part(body, value, rest)
    order = [*before, *middle, *after]
    known = len(order) if middle_known else len(after)
    axes = tuple((k, value.axis(k)) for k in order)
    return replace(value, axes=axes, known=known, cover=len(axes))


def _written_labels(
    body: Body, value: Tensor, brackets: syntax.Brackets, span: Span
) -> tuple[list[Label], list[Label], bool]:
    before: list[Label] = []
    after: list[Label] = []
    is_open = False
    for decl in brackets:
        if decl.kind == "open":
            is_open = True
            continue
        part = after if is_open else before
        for label in declared_labels(body, decl):
            if not value.carries(label):
                raise errors.NoSuchAxis(
                    axis=label.name,
                    axes=value.names,
                    known=tuple(k.name for k in value.labels),
                    span=decl.span,
                )
            part.append(label)
    return before, after, is_open


def declared_labels(body: Body, decl: syntax.AxisDecl) -> tuple[Label, ...]:
    """The labels one entry of written brackets names: a pack names several."""
    if decl.kind == "pack" or decl.name in body.packs:
        return body.packs.get(decl.name, ())
    if decl.size is not None:
        return (body.declare_axis(decl.name, expect_size(body, decl.size), decl.span),)
    return (body.axis_label(decl.name),)


def _open_part(body: Body, value: Tensor, rest: list[Label]) -> tuple[list[Label], bool]:
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
    value = body.settled(expressions.evaluate(body, expr))
    if isinstance(value, float) and value.is_integer():
        raise errors.NotWhole(got=str(value), span=expr.span)
    if not isinstance(value, Dim):
        raise errors.NotASize(got=_what(value), span=expr.span)
    return value


def axis_for(body: Body, decl: syntax.AxisDecl) -> list[tuple[Label, Axis]]:
    """The axes of a declaration (`weight`, `const`): a bare name must have a size already."""
    if decl.kind == "group":
        return [pair for member in decl.group for pair in axis_for(body, member)]
    found = []
    for label in declared_labels(body, decl):
        if label.axis is None:
            value = body.environment.find(label.name)
            size = value.values[label.name] if value is not None else None
            if not isinstance(size, Dim):
                raise errors.UnknownSize(axis=label.name, span=decl.span)
            label.axis = body.resolved_axis(AxisSize(size, label))
        found.append((label, label.axis))
    return found
