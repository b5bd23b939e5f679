"""Calls: configuring, binding by written order, entering and leaving a body."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...dsl import errors, syntax
from ...dsl.diagnostics import ArchError
from ...dsl.dims import Dim
from ...dsl.span import Span
from . import brackets, builtins, expressions, numbers, statements
from .body import Body, MadeWeight
from .labels import AxisSize, Frame, Label
from .module import names_used_as_axes
from .values import (
    Bank,
    Builtin,
    Closure,
    Environment,
    Instance,
    PerLayer,
    SplitIterations,
    Template,
    Tensor,
    WeightPlace,
)

MAX_DEPTH = 40  # calls in calls; each takes some fifteen frames of the Python stack


@dataclass(slots=True)
class Given:
    """Arguments as evaluated in the caller: positional values, keywords, axis arguments in order."""

    span: Span
    positional: list[tuple[Any, Span]] = field(default_factory=list)
    keywords: dict[str, tuple[Any, Span]] = field(default_factory=dict)
    axes: dict[str, tuple[AxisSize, Span]] = field(default_factory=dict)


def evaluate_arguments(body: Body, arguments: Sequence[syntax.Argument], span: Span) -> Given:
    given = Given(span)
    for item in arguments:
        if item.axis and item.name is not None:
            size = brackets.expect_size(body, item.value)
            label = body.declare_axis(item.name, size, item.span)
            given.axes[item.name] = (AxisSize(size, label), item.span)
            continue
        value = expressions.argument(body, item.value)
        if item.name is None:
            given.positional.append((value, item.span))
        elif item.name in given.keywords:
            raise errors.ArgumentTwice(name=item.name, span=item.span)
        else:
            given.keywords[item.name] = (value, item.span)
    return given


# ------------------------------------------------------------------------ the two call forms


def direct_call(body: Body, expr: syntax.Call) -> Any:
    """`f(a, k = b)` outside a pipeline."""
    own_name = own_definition(body, expr.function)
    callee = body.settled(expressions.evaluate(body, expr.function))
    if callee == Builtin("stack"):
        _declare_stacked(body, expr)
    given = evaluate_arguments(body, expr.arguments, expr.span)
    if isinstance(callee, Builtin):
        return builtins.call(body, callee.name, given)
    if isinstance(callee, Template):
        only_hypers = own_name and callee.definition.hypers is not None
        if only_hypers or _configures(callee, given):
            return configure(callee, given)
        if callee.definition.hypers is not None:
            given, callee = _divided(callee, given, own_name)
    return apply(body, callee, given, None)


def _declare_stacked(body: Body, expr: syntax.Call) -> None:
    """The last argument of `stack` names an axis that may not exist yet."""
    name = expr.arguments[-1].value if expr.arguments else None
    if isinstance(name, syntax.Name) and body.frame.find(name.name) is None:
        body.declare_axis(name.name, Dim.of(len(expr.arguments) - 1), name.span)


def stage(body: Body, value: Any, item: syntax.Stage) -> Any:
    """`value |> f(args) as label`."""
    call = item.call
    function = call.function if isinstance(call, syntax.Call) else call
    arguments = call.arguments if isinstance(call, syntax.Call) else ()
    own_name = own_definition(body, function)
    callee = body.settled(expressions.evaluate(body, function))
    given = evaluate_arguments(body, arguments, call.span)
    inputs = given
    if isinstance(callee, Template) and callee.definition.hypers is not None:
        inputs, callee = _divided(callee, given, own_name)
    piped = replace_positional(inputs, [(value, item.span), *inputs.positional])
    if isinstance(callee, Builtin):
        return builtins.call(body, callee.name, piped)
    return apply(body, callee, piped, item.label)


def replace_positional(given: Given, positional: list[tuple[Any, Span]]) -> Given:
    return Given(given.span, positional, given.keywords, given.axes)


def own_definition(body: Body, function: syntax.Expr) -> bool:
    """Is this a definition's own name (which alone fills hyperparameters by position)?"""
    if not isinstance(function, syntax.Name) or body.environment.find(function.name) is not None:
        return False
    return function.name in body.session.module.definitions


def _divided(callee: Template, given: Given, own_name: bool) -> tuple[Given, Template]:
    """What of the arguments are inputs, and the callee with the hyperparameters among them set.

    Keywords name either; by position they are hyperparameters only after a definition's own name.
    """
    input_names = {p.name for p in callee.definition.inputs}
    inputs = {k: v for k, v in given.keywords.items() if k in input_names}
    hypers = {k: v for k, v in given.keywords.items() if k not in input_names}
    first, rest = (given.positional, []) if own_name else ([], given.positional)
    configured = configure(callee, Given(given.span, first, hypers, given.axes))
    return Given(given.span, rest, inputs), configured


def _configures(callee: Template, given: Given) -> bool:
    names = {p.name for p in callee.definition.inputs}
    return not given.positional and not any(k in names for k in given.keywords)


def configure(template: Template, given: Given) -> Template:
    """Set hyperparameters; makes nothing."""
    hypers = template.definition.hypers or ()
    pack = next((p.name for p in hypers if p.pack), None)
    names = [p.name for p in hypers if not p.pack]
    values, packed = dict(template.hypers), list(template.pack)
    free = [n for n in names if n not in values]
    for value, span in given.positional:
        if pack is not None:
            packed.append(_pack_axis(value, span))
        elif free:
            values[free.pop(0)] = value
        else:
            raise errors.TooManyArguments(
                name=template.name, count=len(names), span=span, defined_at=template.definition.span
            )
    for name, (value, span) in given.keywords.items():
        if name not in names:
            raise errors.UnknownArgument(
                function=template.name, name=name, known=_all_names(template), span=span
            )
        values[name] = value
    for name, (axis, span) in given.axes.items():
        if pack is not None:
            packed.append(axis)
        elif name in names:
            values[name] = axis
        else:
            raise errors.UnknownArgument(
                function=template.name, name=name, known=_all_names(template), span=span
            )
    return Template(template.definition, tuple(values.items()), tuple(packed))


def _all_names(template: Template) -> tuple[str, ...]:
    hypers = template.definition.hypers or ()
    return tuple(p.name for p in (*hypers, *template.definition.inputs))


def _pack_axis(value: Any, span: Span) -> AxisSize:
    if isinstance(value, PerLayer):
        raise SplitIterations(value)
    if isinstance(value, AxisSize):
        return value
    raise errors.UnnamedAxis(got=numbers.describe(value), span=span)


# --------------------------------------------------------------------------------- applying


def apply(body: Body, callee: Any, given: Given, label: str | None) -> Any:
    """Apply a template, instance or closure to inputs."""
    if callee is None or not isinstance(callee, Template | Instance | Closure):
        raise errors.NotCallable(got=numbers.describe(callee), span=given.span)
    session = body.session
    if session.depth >= MAX_DEPTH:
        raise errors.TooDeep(limit=MAX_DEPTH, span=given.span)
    session.depth += 1
    try:
        return _APPLY[type(callee)](body, callee, given, label)
    except ArchError as mistake:
        raise in_call(mistake, given.span) from None
    finally:
        session.depth -= 1


def in_call(mistake: ArchError, call: Span) -> ArchError:
    """A mistake met inside a callee is shown at the caller's text too."""
    if mistake.span is not None and call not in mistake.calls:
        inside = mistake.span.source is call.source
        if not (inside and call.start <= mistake.span.start and mistake.span.end <= call.end):
            mistake.calls = (*mistake.calls, call)
    return mistake


def _apply_template(body: Body, template: Template, given: Given, label: str | None) -> Any:
    place = body.place
    if template.definition.kind == "block":
        place = claim(body, label or default_label(body, template.name), given.span)
    return run(body, template, given, place)


def _apply_instance(body: Body, instance: Instance, given: Given, _: str | None) -> Any:
    place = WeightPlace(instance.place.scope, instance.place.path)
    return run(body, instance.template, given, place)


def default_label(body: Body, name: str) -> str:
    """The new variable on the left if this is the statement's only application, else the callee."""
    naming = body.naming
    return naming.new_variable if naming.applications == 1 and naming.new_variable else name


def claim(body: Body, label: str, span: Span) -> WeightPlace:
    first = body.place.taken.get(label)
    if first is not None:
        raise errors.LabelTwice(label=label, span=span, first=first)
    body.place.taken[label] = span
    return body.place.child(label)


def run(caller: Body, template: Template, given: Given, place: WeightPlace) -> Any:
    """Elaborate the body of a definition on some inputs."""
    definition = template.definition
    frame = Frame(definition.name)
    callee = Body(caller.session, frame, Environment(), place)
    region = place.path if definition.kind == "block" else caller.emitter.place.region
    bound = {name: value for name, value in template.hypers}
    with caller.inside(definition.span, region):
        _bind_pack(callee, template)
        _bind_hypers(callee, definition, bound)
        _bind_inputs(caller, callee, definition.inputs, given, definition)
        _bind_defaults(callee, definition, bound)
        _bind_default_inputs(callee, definition.inputs)
        results = statements.run_body(callee, definition.body)
        left = leave_results(caller, callee, definition, results)
    return left[0] if len(left) == 1 else tuple(left)


def _bind_pack(callee: Body, template: Template) -> None:
    for param in template.definition.hypers or ():
        if param.pack:
            labels = []
            for size in template.pack:
                axis = callee.resolved_axis(size)
                labels.append(
                    callee.frame.formal(size.label.name, size.label, axis, param.span, hyper=True)
                )
            callee.packs[param.name] = tuple(labels)


def _bind_hypers(callee: Body, definition: syntax.CallableDef, bound: dict[str, Any]) -> None:
    used = names_used_as_axes(definition)
    for param in definition.hypers or ():
        if param.name not in bound:
            continue
        value = bound[param.name]
        if isinstance(value, AxisSize):
            if param.name in used:
                axis = callee.resolved_axis(value)
                callee.frame.formal(param.name, value.label, axis, param.span, hyper=True)
            value = value.size
        _check_choice(callee, definition, param, value)
        callee.environment.values[param.name] = value


def _check_choice(
    callee: Body, definition: syntax.CallableDef, param: syntax.HyperParam, value: Any
) -> None:
    if isinstance(param.default, syntax.Choice):
        options = [expressions.evaluate(callee, o) for o in param.default.options]
        values = value.values if isinstance(value, PerLayer) else (value,)
        for item in values:
            if item not in options:
                raise errors.NotAChoice(
                    function=definition.name,
                    name=param.name,
                    got=numbers.describe(item),
                    options=" or ".join(map(str, options)),
                    span=callee.emitter.place.spans[1]
                    if len(callee.emitter.place.spans) > 1
                    else param.span,
                    declared_at=param.span,
                )


def _bind_defaults(callee: Body, definition: syntax.CallableDef, bound: dict[str, Any]) -> None:
    for param in definition.hypers or ():
        if param.pack or param.name in bound:
            continue
        if param.default is None:
            raise errors.MissingArgument(
                function=definition.name,
                name=param.name,
                span=callee.emitter.place.spans[1],
                declared_at=param.span,
            )
        callee.environment.values[param.name] = expressions.evaluate(callee, param.default)


# ------------------------------------------------------------------------------------ inputs


def _bind_inputs(
    caller: Body,
    callee: Body,
    params: Sequence[syntax.InputParam],
    given: Given,
    definition: syntax.CallableDef | syntax.Lambda,
) -> None:
    """Give every input its value: formals first, then whatever else the values carry."""
    name = definition.name if isinstance(definition, syntax.CallableDef) else "lambda"
    supplied = _assign_inputs(name, params, given, definition.span)
    entering: dict[str, Tensor] = {}
    for param in params:
        if param.name not in supplied:
            continue
        value, span = supplied[param.name]
        if param.brackets is None:
            _bind_axis(callee, param, value, span)
        else:
            tensor = expressions.as_tensor(caller, value, span)
            entering[param.name] = _match(callee, param, tensor, span)
    for param in params:
        if param.name in entering:
            value = enter_open(callee, entering[param.name], given.span)
            callee.environment.values[param.name] = value
    first = params[0] if params else None
    if first is not None and first.name in entering:
        callee.open_order = _open_labels(callee, first, callee.environment.values[first.name])


def _assign_inputs(
    name: str, params: Sequence[syntax.InputParam], given: Given, defined_at: Span
) -> dict[str, tuple[Any, Span]]:
    names = [p.name for p in params]
    supplied = dict(given.keywords)
    for keyword, (_, span) in given.keywords.items():
        if keyword not in names:
            raise errors.UnknownArgument(function=name, name=keyword, known=tuple(names), span=span)
    free = [n for n in names if n not in supplied]
    for value, span in given.positional:
        if not free:
            raise errors.TooManyArguments(
                name=name, count=len(names), span=span, defined_at=defined_at
            )
        supplied[free.pop(0)] = (value, span)
    for param in params:
        if param.name not in supplied and param.default is None:
            raise errors.MissingArgument(
                function=name, name=param.name, span=given.span, declared_at=param.span
            )
    return supplied


def _bind_axis(callee: Body, param: syntax.InputParam, value: Any, span: Span) -> None:
    if not isinstance(value, AxisSize):
        raise errors.NotAnAxis(name=param.name, got=numbers.describe(value), span=span)
    callee.frame.formal(param.name, value.label, callee.resolved_axis(value), span)


def _match(callee: Body, param: syntax.InputParam, value: Tensor, span: Span) -> Tensor:
    """Bind the named axes of `x[..., s, d]` to the last axes of a value, by written order."""
    decls = param.brackets or ()
    named = [d for d in decls if d.kind == "axis"]
    is_open = any(d.kind != "axis" for d in decls)
    if len(named) > len(value.axes) or (not is_open and len(named) != len(value.axes)):
        wanted = "[" + ", ".join("..." if d.kind == "open" else d.name for d in decls) + "]"
        raise errors.AxisCount(
            name=param.name, wanted=wanted, got=value.names, span=span, declared_at=param.span
        )
    if named and value.known < len(named) and not value.ordered:
        raise errors.WriteTheAxes(name=param.name, axes=value.names, span=span)
    start = len(value.axes) - len(named)
    mapping = {
        value.axes[start + i][0]: _formal_axis(callee, d, value.axes[start + i], span)
        for i, d in enumerate(named)
    }
    return value.relabelled(lambda label: mapping.get(label, label))


def _formal_axis(
    callee: Body, decl: syntax.AxisDecl, bound: tuple[Label, Any], span: Span
) -> Label:
    outer, axis = bound
    known = callee.frame.formals.get(decl.name)
    if known is not None and not known.hyper:
        if known.outer is not outer:
            assert known.outer is not None
            raise errors.AxisClash(
                name=decl.name, first=known.outer.name, second=outer.name, span=span
            )
        return known
    if known is not None and known.outer is outer:
        return known
    return callee.frame.formal(decl.name, outer, axis, span)


def enter_open(callee: Body, value: Tensor, span: Span) -> Tensor:
    """Replace what `...` carries by the formals that stand for it."""

    def inward(label: Label) -> Label:
        if label.frame is callee.frame:
            return label
        stands = [f for f in callee.frame.standing_for(label) if not value.carries(f)]
        if len(stands) > 1:
            raise errors.BoundTwice(
                axis=label.name, first=stands[0].name, second=stands[1].name, span=span
            )
        return stands[0] if stands else label

    return value.relabelled(inward)


def _open_labels(callee: Body, param: syntax.InputParam, value: Tensor) -> tuple[Label, ...]:
    named = {d.name for d in param.brackets or () if d.kind == "axis"}
    kept = tuple(k for k in value.labels if k.frame is not callee.frame or k.name not in named)
    return kept if value.ordered or len(kept) <= 1 else ()


def _bind_default_inputs(callee: Body, params: Sequence[syntax.InputParam]) -> None:
    """`memory[..., t, m] = x`: the default is relabelled; its formals yield to those of `x`."""
    for param in params:
        if param.name in callee.environment.values or param.brackets is None:
            continue
        if param.default is None:
            continue
        value = expressions.tensor(callee, param.default)
        start = len(value.axes) - sum(1 for d in param.brackets if d.kind == "axis")
        mapping: dict[Label, Label] = {}
        named = [d for d in param.brackets if d.kind == "axis"]
        for offset, decl in enumerate(named):
            source, axis = value.axes[start + offset]
            label = callee.frame.formal(decl.name, source.outer, axis, decl.span)
            label.secondary = True
            mapping[source] = label
        callee.environment.values[param.name] = value.relabelled(
            lambda label, to=mapping: to.get(label, label)  # type: ignore[misc]
        )


# ----------------------------------------------------------------------------------- results


def leave_results(
    caller: Body, callee: Body, definition: syntax.CallableDef, results: Sequence[Any]
) -> list[Any]:
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
            value = leave(caller, callee, value, definition, declared is not None)
        left.append(value)
    return left


def _declared_result(
    callee: Body, value: Tensor, written: syntax.Brackets, definition: syntax.CallableDef
) -> Tensor:
    cover = value.cover
    result = brackets.annotate(callee, value, written, definition.span)
    is_open = any(d.kind == "open" for d in written)
    return replace(result, cover=cover) if is_open and definition.kind == "fn" else result


def leave(
    caller: Body, callee: Body, value: Tensor, definition: syntax.CallableDef, declared: bool
) -> Tensor:
    """On return the caller's axes stand for the formals; created axes keep their name."""

    def outward(label: Label) -> Label:
        if label.frame is not callee.frame:
            return label
        if label.outer is not None:
            return label.outer
        if not declared:
            raise errors.PrivateAxis(axis=label.name, name=definition.name, span=definition.span)
        known = caller.frame.find(label.name)
        if known is not None and value.carries(known):
            raise errors.AxisTwice(axis=label.name, span=definition.span)
        axis = value.axis(label)
        if known is None or (known.axis is not None and known.axis.size != axis.size):
            return caller.frame.declare(label.name, axis)
        return known

    result = value.relabelled(outward)
    labels = result.labels
    twice = next((k for k in labels if labels.count(k) > 1), None)
    if twice is not None:
        raise errors.AxisTwice(axis=twice.name, span=caller.emitter.place.spans[-1])
    return result


# ---------------------------------------------------------------------------------- closures


def _apply_closure(caller: Body, closure: Closure, given: Given, _: str | None) -> Any:
    """A lambda: arguments go outward to the body it was written in, its result comes back inward."""
    lambda_ = closure.syntax
    frame = Frame("lambda", closure.frame)
    home = frame.enclosing()
    callee = Body(
        caller.session, frame, Environment(closure.environment), caller.place, naming=caller.naming
    )
    with caller.inside(lambda_.span, caller.emitter.place.region):
        _bind_inputs(caller, callee, lambda_.inputs, given, lambda_)
        for param in lambda_.inputs:
            value = callee.environment.values.get(param.name)
            if isinstance(value, Tensor):
                moved = value.relabelled(lambda k: k if k.frame is frame else k.outward(home))
                callee.environment.values[param.name] = moved
        result = expressions.evaluate(callee, lambda_.body)
    if not isinstance(result, Tensor):
        return result
    return result.relabelled(lambda k: _back_inward(caller, frame, k, given.span))


def _back_inward(caller: Body, frame: Frame, label: Label, span: Span) -> Label:
    if label.frame is frame:
        return label.outer if label.outer is not None else label
    stands = caller.frame.standing_for(label)
    if len(stands) > 1:
        raise errors.BoundTwice(
            axis=label.name, first=stands[0].name, second=stands[1].name, span=span
        )
    return stands[0] if stands else label


def captured(body: Body, value: Tensor, span: Span) -> Tensor:
    """A value of an enclosing body read inside a lambda: the lambda's formals shadow by name."""
    frame = body.frame
    if frame.lexical is None:
        return value

    def inward(label: Label) -> Label:
        if label.frame is frame or id(label.frame) not in frame.enclosing():
            return label
        if label.name in frame.formals:
            return frame.formals[label.name]
        stands = frame.standing_for(label)
        if len(stands) > 1:
            raise errors.BoundTwice(
                axis=label.name, first=stands[0].name, second=stands[1].name, span=span
            )
        return stands[0] if stands else label

    return value.relabelled(inward)


# -------------------------------------------------------------------------- instances, banks


def instance_weight(body: Body, instance: Instance, path: str, span: Span) -> Tensor:
    """`embed.w` as a value, under the reader's labels."""
    key = (id(instance.place.scope), f"{instance.place.path}.{path}")
    made = body.session.weights.get(key)
    if made is None:
        prefix = f"{instance.place.path}."
        known = tuple(
            p.removeprefix(prefix)
            for owner, p in body.session.weights
            if owner == key[0] and p.startswith(prefix)
        )
        raise errors.NoWeight(
            instance=instance.label,
            path=path,
            known=known,
            span=span,
            declared_at=instance.declared_at,
        )
    return read_weight(body, made)


def read_weight(body: Body, made: MadeWeight) -> Tensor:
    home = frozenset(id(f) for f in body.frame.chain())

    def reader(label: Label) -> Label:
        seen = label.outward(home)
        if id(seen.frame) in home:
            return seen
        return body.frame.find(label.name) or body.frame.declare(label.name, label.axis)

    return made.value.relabelled(reader)


def bank_entry(body: Body, bank: Bank, key: Any, span: Span) -> Instance:
    key = body.settled(key)
    if isinstance(key, Tensor):
        raise errors.Unsupported(what="a bank indexed by a tensor", span=span)
    if not isinstance(key, Dim):
        raise errors.BadIndex(axis=bank.label, got=numbers.describe(key), span=span)
    position = int(numbers.number(key, body.bindings, span))
    size = int(numbers.number(bank.size.size, body.bindings, span))
    if not 0 <= position < size:
        raise errors.ListIndex(index=position, length=size, span=span)
    path = f"{bank.place.path}[{position}]"
    place = WeightPlace(bank.place.scope, path)
    return Instance(bank.template, f"{bank.label}[{position}]", place, bank.declared_at)


_APPLY: dict[type, Callable[[Body, Any, Given, str | None], Any]] = {
    Template: _apply_template,
    Instance: _apply_instance,
    Closure: _apply_closure,
}
