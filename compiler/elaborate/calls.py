"""Calls: evaluating arguments, configuring, applying. `binding.py` crosses into the callee."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile
from typing import Any

from ...dsl import errors, syntax
from ...dsl.diagnostics import ArchError
from ...dsl.dims import Dim
from ...dsl.span import Span
from . import binding, brackets, builtins, expressions, instances, numbers, statements
from .body import Body
from .labels import AxisSize, Frame
from .module import is_library
from .values import (
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

STEPS_PER_CALL = 10


@dataclass(slots=True)
class Given:
    """Arguments as evaluated in the caller, each with its place in the text.

    `packed` holds the positional and the axis arguments together, in the order of the text.
    """

    span: Span
    positional: list[tuple[Any, Span]] = field(default_factory=list)
    keywords: dict[str, tuple[Any, Span]] = field(default_factory=dict)
    axes: dict[str, tuple[AxisSize, Span]] = field(default_factory=dict)
    packed: list[tuple[Any, Span]] = field(default_factory=list)


def evaluate_arguments(body: Body, arguments: Sequence[syntax.Argument], span: Span) -> Given:
    given = Given(span)
    for item in arguments:
        if item.name in given.keywords or item.name in given.axes:
            raise errors.ArgumentTwice(name=item.name, span=item.span)
        if item.axis and item.name is not None:
            size = brackets.expect_size(body, item.value)
            axis = AxisSize(size, body.declare_axis(item.name, size, item.span))
            given.axes[item.name] = (axis, item.span)
            given.packed.append((axis, item.span))
            continue
        value = expressions.argument(body, item.value)
        if item.name is None:
            given.positional.append((value, item.span))
            given.packed.append((value, item.span))
        else:
            given.keywords[item.name] = (value, item.span)
    return given


# ------------------------------------------------------------------------ the two call forms


def direct_call(body: Body, expr: syntax.Call) -> Any:
    """`f(a, k = b)` outside a pipeline."""
    own_name = own_definition(body, expr.function)
    callee = body.settled(expressions.evaluate(body, expr.function))
    entry = _entry_value(body, callee, expr.arguments)
    if entry is not None:
        return entry
    given = _arguments(body, callee, expr.arguments, expr.span, piped=0)
    if isinstance(callee, Builtin):
        return builtins.call(body, callee.name, given)
    if isinstance(callee, Template):
        if own_name and callee.definition.hypers is not None:
            return configure(body, callee, given)
        inputs, callee = _configured(body, callee, given)
        if not inputs.positional and not inputs.keywords and callee.definition.hypers is not None:
            return callee
        given = inputs
    return apply(body, callee, given, None)


def stage(body: Body, value: Any, item: syntax.Stage) -> Any:
    """`value |> f(args) as label`."""
    call = item.call
    function = call.function if isinstance(call, syntax.Call) else call
    arguments = call.arguments if isinstance(call, syntax.Call) else ()
    own_name = own_definition(body, function)
    callee = body.settled(expressions.evaluate(body, function))
    given = _arguments(body, callee, arguments, call.span, piped=1)
    if isinstance(callee, Template):
        given, callee = _configured(body, callee, given, positional=own_name)
    piped = replace(given, positional=[(value, item.span), *given.positional])
    if isinstance(callee, Builtin):
        return builtins.call(body, callee.name, piped)
    return apply(body, callee, piped, item.label)


def _arguments(
    body: Body, callee: Any, arguments: Sequence[syntax.Argument], span: Span, piped: int
) -> Given:
    """The last argument of `stack` names an axis that may not exist yet."""
    new = arguments[-1].value if callee == Builtin("stack") and arguments else None
    if isinstance(new, syntax.Name) and body.frame.find(new.name) is None:
        body.declare_axis(new.name, Dim.of(piped + len(arguments) - 1), new.span)
    return evaluate_arguments(body, arguments, span)


def _entry_value(body: Body, callee: Any, arguments: Sequence[syntax.Argument]) -> Tensor | None:
    """`prev(h)`: the value of a scan's state on entry to the step; its name says which."""
    if callee != Builtin("prev") or len(arguments) != 1:
        return None
    state = arguments[0].value
    return body.environment.all_states().get(state.name) if isinstance(state, syntax.Name) else None


def own_definition(body: Body, function: syntax.Expr) -> bool:
    """Is this a definition's own name (which alone fills hyperparameters by position)?"""
    if not isinstance(function, syntax.Name) or body.environment.find(function.name) is not None:
        return False
    return function.name in body.session.module.visible(body.library)


def _configured(
    body: Body, callee: Template, given: Given, positional: bool = False
) -> tuple[Given, Template]:
    """Arguments for inputs, and the template with the others set."""
    if callee.definition.hypers is None:
        return given, callee
    input_names = {p.name for p in callee.definition.inputs}
    inputs = {k: v for k, v in given.keywords.items() if k in input_names}
    rest = {k: v for k, v in given.keywords.items() if k not in input_names}
    if positional:
        hypers, given = replace(given, keywords=rest), Given(given.span, [], inputs)
    else:
        axes = list(given.axes.values())
        hypers = Given(given.span, [], rest, given.axes, axes)
        given = Given(given.span, given.positional, inputs)
    return given, configure(body, callee, hypers)


def configure(body: Body, template: Template, given: Given) -> Template:
    """Set hyperparameters; makes nothing."""
    for value, span in (*given.positional, *given.keywords.values()):
        if isinstance(value, Tensor):
            raise errors.TensorHyperparameter(name=template.name, span=span)
    by_position, packed = _by_position(template, given)
    axes = {} if packed is not None else given.axes
    named: dict[str, tuple[Any, Span]] = {}
    for name, (value, span) in chain(by_position.items(), given.keywords.items(), axes.items()):
        if name in named:
            raise errors.ArgumentTwice(name=name, span=span)
        named[name] = (value, span)
    pack = tuple(_pack_axis(value, span) for value, span in packed or ())
    values = _by_name(body, template, named)
    return replace(template, hypers=values, pack=(*template.pack, *pack))


def _by_position(
    template: Template, given: Given
) -> tuple[dict[str, tuple[Any, Span]], list[tuple[Any, Span]] | None]:
    """Positional arguments by name, and what goes into the pack (none where there is no pack).

    What stands before a pack in the signature is filled first.
    """
    hypers = template.definition.hypers or ()
    names = [p.name for p in takewhile(lambda p: not p.pack, hypers)]
    by_position = dict(zip(names, given.positional, strict=False))
    if len(names) < len(hypers):
        taken = [*by_position.values()]
        return by_position, [item for item in given.packed if item not in taken]
    if len(given.positional) > len(names):
        raise errors.TooManyArguments(
            name=template.name,
            count=len(names),
            span=given.positional[len(names)][1],
            defined_at=template.definition.span,
        )
    return by_position, None


def _by_name(
    body: Body, template: Template, named: dict[str, tuple[Any, Span]]
) -> tuple[tuple[str, Any], ...]:
    hypers = template.definition.hypers or ()
    for name, (value, span) in named.items():
        param = next((p for p in hypers if p.name == name), None)
        if param is None:
            inputs = (p.name for p in template.definition.inputs)
            known = (*(p.name for p in hypers), *inputs)
            raise errors.UnknownArgument(function=template.name, name=name, known=known, span=span)
        if param.pack:
            raise errors.UnnamedAxis(got=numbers.describe(value), span=span)
        if isinstance(value, AxisSize):
            body.size(value, span)
        _check_choice(body, template, param, value, span)
    return tuple((dict(template.hypers) | {n: v for n, (v, _) in named.items()}).items())


def _check_choice(
    body: Body, template: Template, param: syntax.HyperParam, value: Any, span: Span
) -> None:
    if not isinstance(param.default, syntax.Choice):
        return
    options = [expressions.evaluate(body, o) for o in param.default.options]
    for item in value.values if isinstance(value, PerLayer) else (value,):
        if item not in options:
            raise errors.NotAChoice(
                function=template.name,
                name=param.name,
                got=numbers.describe(item),
                options=" or ".join(f'"{o}"' for o in options),
                span=span,
                declared_at=param.span,
            )


def _pack_axis(value: Any, span: Span) -> AxisSize:
    if isinstance(value, PerLayer):
        raise SplitIterations(value)
    if isinstance(value, AxisSize):
        return value
    brackets.must_be_size(value, span)
    raise errors.UnnamedAxis(got=numbers.describe(value), span=span)


# --------------------------------------------------------------------------------- applying


def apply(body: Body, callee: Any, given: Given, label: str | None) -> Any:
    """Apply a template, instance or closure to inputs."""
    if not isinstance(callee, Template | Instance | Closure):
        raise errors.NotCallable(got=numbers.describe(callee), span=given.span)
    for name, (_, span) in given.axes.items():
        raise errors.UnknownArgument(function=_called(callee), name=name, known=(), span=span)
    session = body.session
    session.spend(STEPS_PER_CALL, given.span)
    if session.depth >= MAX_DEPTH:
        raise errors.TooDeep(limit=MAX_DEPTH, span=given.span)
    session.depth += 1
    try:
        return _APPLY[type(callee)](body, callee, given, label)
    except ArchError as mistake:
        raise in_call(mistake, given.span) from None
    finally:
        session.depth -= 1


def _called(callee: Template | Instance | Closure) -> str:
    if isinstance(callee, Closure):
        return "lambda"
    return callee.name if isinstance(callee, Template) else callee.label


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
    """Each application runs the body again, over the weights the first one made."""
    own = instance.place
    place = WeightPlace(own.scope, own.path, shared_at=instance.declared_at, chosen=own.chosen)
    place = place.relabelled(body.frame.inward)
    return run(body, instance.template, given, place)


def _apply_closure(body: Body, closure: Closure, given: Given, _: str | None) -> Any:
    """A lambda: arguments go outward to the body it was written in, its result comes back."""
    syntax_, frame = closure.syntax, Frame("lambda", closure.frame)
    home = frame.enclosing()
    callee = Body(
        body.session,
        frame,
        Environment(closure.environment),
        body.place.relabelled(lambda label: label.outward(home)),
        naming=body.naming,
        kind="lambda",
        library=closure.library,
    )
    with body.inside(syntax_.span, body.emitter.place.region):
        binding.bind_inputs(body, callee, syntax_, given)
        origins = binding.move_outward(callee, syntax_)
        result = expressions.evaluate(callee, syntax_.body)
    if not isinstance(result, Tensor):
        return result
    return binding.back_inward(body, frame, result, origins, syntax_.span)


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
    callee = Body(
        caller.session,
        Frame(definition.name, caller=caller.frame),
        Environment(),
        place,
        kind=definition.kind,
        library=is_library(definition),
    )
    region = place.path if definition.kind == "block" else caller.emitter.place.region
    with caller.inside(definition.span, region):
        binding.bind_hypers(callee, template, given.span)
        binding.bind_inputs(caller, callee, definition, given)
        instances.enter(callee, given.span)
        binding.bind_defaults(callee, template, given.span)
        results = statements.run_body(callee, definition)
        left = binding.leave_results(caller, callee, definition, results)
    return left[0] if len(left) == 1 else tuple(left)


_APPLY: dict[type, Callable[[Body, Any, Given, str | None], Any]] = {
    Template: _apply_template,
    Instance: _apply_instance,
    Closure: _apply_closure,
}
