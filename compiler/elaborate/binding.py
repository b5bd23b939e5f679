"""Crossing into a callee and back: formals are bound by written order, captured values by identity.

On entry the caller's axes are replaced by the formals bound to them, on return the formals by what
they stand for; an axis made inside keeps its name. A lambda has two crossings: its arguments go
outward to the body it was written in, its result comes back inward to the body that called it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...dsl import errors, syntax
from ...dsl.span import Span
from ..ir.graph import Axis
from . import brackets, expressions, numbers
from .body import Body
from .labels import AxisSize, Frame, Label
from .values import Template, Tensor

if TYPE_CHECKING:
    from .calls import Given

Definition = syntax.CallableDef | syntax.Lambda
Pair = tuple[Label, Axis]


def name_of(definition: Definition) -> str:
    return definition.name if isinstance(definition, syntax.CallableDef) else "lambda"


# --------------------------------------------------------------------------- hyperparameters


def bind_hypers(callee: Body, template: Template, call: Span) -> None:
    """Give the hyperparameters that were set their values, and axes to those used as axes."""
    definition, bound = template.definition, dict(template.hypers)
    used = callee.session.module.names_used_as_axes(definition)
    for param in definition.hypers or ():
        if param.pack:
            callee.packs[param.name] = tuple(
                callee.frame.formal(
                    s.label.name, s.label, callee.resolved_axis(s, call), param.span, "pack"
                )
                for s in template.pack
            )
        elif param.name in bound:
            value = bound[param.name]
            if isinstance(value, AxisSize):
                if param.name in used:
                    axis = callee.resolved_axis(value, call)
                    callee.frame.formal(param.name, value.label, axis, param.span, "hyper")
                value = value.size
            callee.environment.values[param.name] = value


def bind_defaults(callee: Body, template: Template, call: Span) -> None:
    """Hyperparameters that were not set, in order; then inputs that were not given."""
    definition = template.definition
    for param in definition.hypers or ():
        if param.pack or param.name in callee.environment.values:
            continue
        if param.default is None:
            raise errors.MissingArgument(
                function=definition.name, name=param.name, span=call, declared_at=param.span
            )
        callee.environment.values[param.name] = expressions.evaluate(callee, param.default)
    for entry in definition.inputs:
        if entry.default is not None and not _is_bound(callee, entry):
            _bind_default_input(callee, entry, entry.default)


def _is_bound(callee: Body, param: syntax.InputParam) -> bool:
    return param.name in callee.environment.values or param.name in callee.frame.labels


def _bind_default_input(callee: Body, param: syntax.InputParam, default: syntax.Expr) -> None:
    """`memory[..., t, m] = x`: the default is relabelled; its formals yield to those of `x`.

    An axis that keeps its name, as in `at[..., s] = position(s)`, stays what it is.
    """
    if param.brackets is None:
        value = expressions.argument(callee, default)
        _bind_axis(callee, param, value, default.span)
        return
    tensor = expressions.tensor(callee, default)
    mapping: dict[Label, Label] = {}
    for decl, (source, axis) in _matched(param, tensor, default.span):
        known = callee.frame.formal_named(decl.name)
        if known is source:
            continue
        if known is not None:
            raise errors.AxisClash(
                name=decl.name, first=known.name, second=source.name, span=default.span
            )
        outer = source.outer if source.frame is callee.frame else source
        mapping[source] = callee.frame.formal(decl.name, outer, axis, decl.span)
        mapping[source].secondary = True
    callee.environment.values[param.name] = tensor.relabelled(lambda k: mapping.get(k, k))


# ------------------------------------------------------------------------------------ inputs


def bind_inputs(caller: Body, callee: Body, definition: Definition, given: Given) -> None:
    """Give every input its value: formals first, then whatever else the values carry."""
    params = definition.inputs
    supplied = _assigned(definition, given)
    entering: dict[str, Tensor] = {}
    beside = [value for value, _ in supplied.values() if isinstance(value, Tensor)]
    for param in params:
        if param.name not in supplied:
            continue
        value, span = supplied[param.name]
        if param.brackets is None:
            _bind_axis(callee, param, value, span, beside)
        else:
            tensor = expressions.as_tensor(caller, value, span)
            entering[param.name] = _match(callee, param, tensor, span)
    for name, value in entering.items():
        callee.environment.values[name] = enter_open(callee, value, given.span)
    if params and params[0].name in entering:
        callee.open_order = _open_labels(callee, params[0])


def _assigned(definition: Definition, given: Given) -> dict[str, tuple[Any, Span]]:
    """Inputs by name: keywords, then the others in order."""
    function, params = name_of(definition), definition.inputs
    names = tuple(p.name for p in params)
    supplied = dict(given.keywords)
    for keyword, (_, span) in given.keywords.items():
        if keyword not in names:
            raise errors.UnknownArgument(function=function, name=keyword, known=names, span=span)
    free = [n for n in names if n not in supplied]
    if len(given.positional) > len(free):
        raise errors.TooManyInputs(
            name=function,
            count=len(names),
            span=given.positional[len(free)][1],
            defined_at=definition.span,
        )
    supplied |= zip(free, given.positional, strict=False)
    for param in params:
        if param.name not in supplied and param.default is None:
            raise errors.MissingArgument(
                function=function, name=param.name, span=given.span, declared_at=param.span
            )
    return supplied


def _bind_axis(
    callee: Body,
    param: syntax.InputParam,
    value: Any,
    span: Span,
    beside: Sequence[Tensor] = (),
) -> None:
    """An axis given by name is the one that the tensors `beside` it carry under that name.

    A slice or a concatenation keeps the name and not the size.
    """
    if not isinstance(value, AxisSize):
        raise errors.NotAnAxis(got=numbers.describe(value), span=span)
    label, bindings = value.label, callee.bindings
    carried = [tensor.axis(label) for tensor in beside if tensor.carries(label)]
    found = {axis.size.substitute(bindings): axis for axis in carried}
    if len(found) > 1:
        raise errors.AmbiguousAxis(axis=label.name, span=span, declared_at=label.declared_at)
    own = label.axis.size.substitute(bindings) if label.axis is not None else None
    if found and own not in found:
        (axis,) = found.values()
    else:
        axis = callee.resolved_axis(replace(value, ambiguous=value.ambiguous and not found), span)
    callee.frame.formal(param.name, label, axis, param.span)


def _matched(
    param: syntax.InputParam, value: Tensor, span: Span
) -> list[tuple[syntax.AxisDecl, Pair]]:
    """The entries of `x[b, ..., s, d]` with the axes they bind, by written order."""
    named: list[syntax.AxisDecl] = []
    opened_at = None
    for decl in param.brackets or ():
        if decl.kind == "axis":
            named.append(decl)
        else:
            brackets.check_open(decl, opened_at is not None)
            opened_at = len(named)
    count = len(value.axes)
    if len(named) > count or (opened_at is None and len(named) != count):
        raise errors.AxisCount(
            name=param.name,
            wanted=_shown(param.brackets or ()),
            got=value.names,
            span=span,
            declared_at=param.span,
        )
    before = len(named) if opened_at is None else opened_at
    needed = count if opened_at is None or before else len(named)
    if named and value.known < needed and not value.ordered:
        raise errors.WriteTheAxes(name=param.name, axes=value.names, span=span)
    bound = (*value.axes[:before], *value.axes[count - len(named) + before :])
    return list(zip(named, bound, strict=True))


def _shown(written: syntax.Brackets) -> str:
    return "[" + ", ".join("..." if d.kind == "open" else d.name for d in written) + "]"


def _match(callee: Body, param: syntax.InputParam, value: Tensor, span: Span) -> Tensor:
    mapping = {
        pair[0]: _formal_axis(callee, decl, pair, span)
        for decl, pair in _matched(param, value, span)
    }
    return value.relabelled(lambda label: mapping.get(label, label))


def _formal_axis(callee: Body, decl: syntax.AxisDecl, bound: Pair, span: Span) -> Label:
    """The formal of one entry. A name written twice in a signature is one axis of the caller."""
    outer, axis = bound
    label = callee.frame.formal_named(decl.name)
    if label is None:
        label = callee.frame.formal(decl.name, outer, axis, decl.span)
    elif label.outer is not outer:
        first = label.outer.name if label.outer is not None else decl.name
        raise errors.AxisClash(name=decl.name, first=first, second=outer.name, span=span)
    if decl.size is not None:
        size = brackets.expect_size(callee, decl.size)
        callee.emitter.require_equal(axis.size, size, decl.name, span, decl.span)
    return label


def enter_open(callee: Body, value: Tensor, span: Span) -> Tensor:
    """Replace what `...` carries by the formals that stand for it."""

    def inward(label: Label) -> Label:
        if label.frame is callee.frame:
            return label
        stands = [f for f in callee.frame.standing_for(label) if not value.carries(f)]
        return _the_one(stands, label, span)

    return _distinct(value.relabelled(inward), span)


def _the_one(stands: Sequence[Label], label: Label, span: Span) -> Label:
    """What stands for a label: nothing (it stays), one formal, or too many."""
    if len(stands) > 1:
        first, second = stands[0].name, stands[1].name
        raise errors.BoundTwice(axis=label.name, first=first, second=second, span=span)
    return stands[0] if stands else label


def _distinct(value: Tensor, span: Span) -> Tensor:
    for label, times in Counter(value.labels).items():
        if times > 1:
            raise errors.AxisTwice(axis=label.name, span=span)
    return value


def _open_labels(callee: Body, param: syntax.InputParam) -> tuple[Label, ...]:
    """The order of what the first input's `...` stands for, where it is known."""
    value = callee.environment.values[param.name]
    named = {d.name for d in param.brackets or () if d.kind == "axis"}
    kept = tuple(k for k in value.labels if k.frame is not callee.frame or k.name not in named)
    return kept if value.ordered or len(kept) <= 1 else ()


# ----------------------------------------------------------------------------------- results


def leave_results(
    caller: Body, callee: Body, definition: syntax.CallableDef, results: Sequence[Any]
) -> list[Any]:
    """What a call gives, under the caller's labels."""
    declared = definition.results
    if declared is not None and len(declared) != len(results):
        raise errors.ResultCount(
            name=definition.name, expected=len(declared), got=len(results), span=definition.span
        )
    left = []
    for position, value in enumerate(results):
        if isinstance(value, Tensor):
            if declared is not None:
                value = _declared_result(callee, value, declared[position], definition)
            value = _leave(caller, callee, value, definition)
        left.append(value)
    return left


def _declared_result(
    callee: Body, value: Tensor, written: syntax.Brackets, definition: syntax.CallableDef
) -> Tensor:
    """The outer-product rule sees through a `fn`, as if its text stood in the caller's."""
    result = brackets.annotate(
        callee, value, written, written[0].span if written else definition.span
    )
    is_open = any(d.kind == "open" for d in written)
    return replace(result, cover=value.cover) if is_open and definition.kind == "fn" else result


def _leave(caller: Body, callee: Body, value: Tensor, definition: syntax.CallableDef) -> Tensor:
    """On return the caller's axes stand for the formals; created axes keep their name."""

    def outward(label: Label) -> Label:
        if label.frame is not callee.frame:
            return label
        if label.outer is not None:  # perhaps of the body that configured the callee, further out
            stands = _nearest(caller.frame, label.outer)
            return stands[0] if len(stands) == 1 else label.outer
        if definition.results is None:
            raise errors.PrivateAxis(axis=label.name, name=definition.name, span=definition.span)
        known = caller.frame.find(label.name)
        axis = value.axis(label)
        if known is None or (known.axis is not None and known.axis.size != axis.size):
            return caller.frame.declare(label.name, axis)
        return known

    return _distinct(value.relabelled(outward), caller.emitter.place.spans[1])


# ---------------------------------------------------------------------------------- closures


def move_outward(callee: Body, lambda_: syntax.Lambda) -> dict[Label, Label]:
    """A lambda's inputs, under the labels of the body it was written in.

    Gives what each of these labels stood for. Axes that are one axis there stay apart, under the
    labels they came with.
    """
    home, values = callee.frame.enclosing(), callee.environment.values
    tensors = {p.name: values[p.name] for p in lambda_.inputs if p.name in values}
    labels = dict.fromkeys(k for v in tensors.values() for k in v.labels)
    moved = {k: k.outward(home) for k in labels if k.frame is not callee.frame}
    times = Counter(moved.values())
    moved = {k: to for k, to in moved.items() if times[to] == 1}
    for name, value in tensors.items():
        values[name] = value.relabelled(lambda k: moved.get(k, k))
    return {to: k for k, to in moved.items()}


def back_inward(
    caller: Body, frame: Frame, value: Tensor, origins: dict[Label, Label], span: Span
) -> Tensor:
    """A lambda's result, under the labels of the body that called it."""

    def inward(label: Label) -> Label:
        if label in origins:
            return origins[label]
        if label.frame is not frame:
            return _the_one(_standing(caller.frame, frame, label), label, span)
        if label.outer is None:
            raise errors.PrivateAxis(axis=label.name, name="lambda", span=span)
        return label.outer

    return _distinct(value.relabelled(inward), span)


def _standing(caller: Frame, lambda_: Frame, label: Label) -> Sequence[Label]:
    """The caller's formals for a captured label; where it has several, the lambda's own names."""
    stands = _nearest(caller, label)
    return (lambda_.standing_for(label) or stands) if len(stands) > 1 else stands


def _nearest(frame: Frame, label: Label) -> Sequence[Label]:
    """What stands for a label in a body, or in the nearest of those around it where something does."""
    return next((f for f in (c.standing_for(label) for c in frame.chain()) if f), [])


def captured(body: Body, value: Tensor) -> Tensor:
    """A value of an enclosing body read inside a lambda: the lambda's formals shadow by name.

    A label for which several formals stand is left, to be renamed to the one that is meant.
    """
    frame = body.frame
    if frame.lexical is None:
        return value
    enclosing = frame.enclosing()

    def inward(label: Label) -> Label:
        if id(label.frame) not in enclosing:
            return label
        shadow = frame.formal_named(label.name)
        stands = [shadow] if shadow is not None else frame.standing_for(label)
        return stands[0] if len(stands) == 1 else label

    return value.relabelled(inward)
