"""Statements: a table from syntax class to effect on a body."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

from ...dsl import errors, syntax
from ...dsl.diagnostics import ArchError
from ...dsl.dims import Dim
from ...dsl.span import Span
from ..ir.graph import Axis, Builder, Parameter, TensorType
from . import brackets, builtins, calls, expressions, instances, numbers, repeats, scans
from .body import Body, MadeWeight, Naming, Session
from .labels import Label
from .scopes import GraphScope
from .values import (
    Bank,
    Builtin,
    Instance,
    Poison,
    Skip,
    Template,
    Tensor,
)


class Returned(Exception):
    """Carries what `return` gives to the end of the body."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__()
        self.values = values


def run_body(body: Body, definition: syntax.CallableDef) -> list[Any]:
    """Run a block's or fn's statements to its `return`."""
    try:
        execute_all(body, definition.body)
    except Returned as returned:
        return returned.values
    last = definition.body[-1] if definition.body else definition
    raise errors.NoReturn(name=definition.name, span=last.span)


def execute(body: Body, statement: syntax.Stmt) -> None:
    """Run one statement. What only a model's own text may say is looked up in the session."""
    with recorded(body, statement):
        effects = EFFECT
        if body.is_model and body.emitter.scope.parent is None:
            effects = {**EFFECT, **body.session.model_effects}
        effect = effects.get(type(statement))
        if effect is None:
            raise errors.OnlyInModel(span=statement.span)
        effect(body, statement)
        declared = body.environment.values.get(getattr(statement, "name", ""))
        if declared is not None:
            body.session.watch(statement, declared)


@contextmanager
def recorded(body: Body, statement: syntax.Stmt) -> Iterator[None]:
    """In a model a mistake is recorded and the names it leaves undefined are poisoned."""
    old = body.naming
    body.naming = _naming(body, statement)
    try:
        with body.at(statement.span):
            yield
    except (ArchError, Skip) as mistake:
        if not body.is_model or isinstance(mistake, errors.TooLarge):
            raise
        _poison(body, statement)
        if isinstance(mistake, ArchError):
            body.session.record(mistake)
    finally:
        body.naming = old


def execute_all(body: Body, statements: Sequence[syntax.Stmt]) -> None:
    for statement in statements:
        execute(body, statement)


def _poison(body: Body, statement: syntax.Stmt) -> None:
    for name in assigned_names((statement,)):
        body.environment.values[name] = Poison()


NAMING = (
    syntax.ConstStmt,
    syntax.WeightStmt,
    syntax.InputStmt,
    syntax.SharedStmt,
    syntax.BankStmt,
    syntax.OutputStmt,
)


def assigned_names(statements: Sequence[syntax.Stmt]) -> Iterator[str]:
    """Every name that statements may assign, in text order, repeats allowed."""
    for node in syntax.walk(tuple(statements)):
        if isinstance(node, syntax.Assign):
            yield from (t.name for t in node.targets)
        elif isinstance(node, NAMING):
            yield node.name


# ------------------------------------------------------------------------------- labelling


def _naming(body: Body, statement: syntax.Stmt) -> Naming:
    if isinstance(statement, syntax.Assign | syntax.OutputStmt):
        return Naming(_new_variable(body, statement), _applications(body, statement.value))
    if isinstance(statement, syntax.ReturnStmt):
        return Naming(None, _applications(body, statement.values))
    return Naming()


def _new_variable(body: Body, statement: syntax.Assign | syntax.OutputStmt) -> str | None:
    if isinstance(statement, syntax.OutputStmt):
        return statement.name
    names = [t.name for t in statement.targets]
    is_new = len(names) == 1 and body.environment.find(names[0]) is None
    return names[0] if is_new and statement.op == "=" else None


def _applications(body: Body, text: syntax.Expr | tuple[syntax.Expr, ...]) -> int:
    """How many applications a text has: all but builtins and `fn`s called by their own name.

    A lambda's are made where it is called. A block's own name before `(` configures.
    """
    if isinstance(text, tuple):
        return sum(_applications(body, item) for item in text)
    return sum(_applies(body, call) for call in body.session.module.calls_in(text))


def _applies(body: Body, call: syntax.Stage | syntax.Call) -> bool:
    if isinstance(call, syntax.Call):
        return _own_meaning(body, call.function) is None
    called = call.call.function if isinstance(call.call, syntax.Call) else call.call
    own = _own_meaning(body, called)
    return own is None or (isinstance(own, Template) and own.definition.kind == "block")


def _own_meaning(body: Body, function: syntax.Expr) -> Template | Builtin | None:
    """The definition or builtin that a text calls by its own name."""
    if not isinstance(function, syntax.Name) or body.environment.find(function.name) is not None:
        return None
    try:
        found = body.session.module.lookup(function.name, body.library)
    except KeyError:
        return None
    return found if isinstance(found, Template | Builtin) else None


# ------------------------------------------------------------------------------ assignment


def assign(body: Body, statement: syntax.Assign) -> None:
    value = expressions.evaluate(body, statement.value)
    if statement.op == "+=":
        _add_to(body, statement, value)
        return
    values = list(value) if isinstance(value, tuple) else [value]
    if len(values) != len(statement.targets):
        raise errors.TargetCount(
            targets=len(statement.targets), values=len(values), span=statement.span
        )
    errors.DefinedTwice.check((target.name, target.span) for target in statement.targets)
    for target, item in zip(statement.targets, values, strict=True):
        bound = bind(body, target, item, statement.span)
        body.session.watch(target, bound)
        body.environment.values[target.name] = bound


def bind(body: Body, target: syntax.Target, value: Any, span: Span) -> Any:
    """Check a value against its annotation, or against the outer-product rule without one."""
    if not isinstance(value, Tensor):
        if target.brackets is None:
            return value
        value = expressions.as_tensor(body, value, span)
    if target.brackets is not None:
        value = brackets.annotate(body, value, target.brackets, target.span)
    elif value.cover < len(value.axes) and target.name not in body.environment.states:
        raise errors.OuterProduct(name=target.name, axes=value.names, span=span)
    value.scope.builder.set_hint(value.node, target.name)
    return value


def _add_to(body: Body, statement: syntax.Assign, value: Any) -> None:
    if len(statement.targets) != 1:
        raise errors.TargetCount(targets=len(statement.targets), values=1, span=statement.span)
    (target,) = statement.targets
    old = body.lookup(target.name, target.span)
    if isinstance(old, Tensor):
        grows = target.name in body.environment.states
        new: Any = _added(body, old, value, grows, statement.span)
    elif isinstance(value, Tensor):
        new = expressions.tensor_binary(body, "+", old, value, statement.span)
    else:
        new = numbers.binary("+", old, value, body.bindings, statement.span)
    if target.brackets is not None:
        new = bind(body, target, new, statement.span)
    body.session.watch(target, new)
    body.environment.values[target.name] = new


def _added(body: Body, old: Tensor, value: Any, grows: bool, span: Span) -> Tensor:
    """`x += y` keeps the axes and order of x; y may lack axes but not bring new ones.

    A state of a scan `grows`: its scan says in the end which axes it may have.
    """
    extra = [k for k in value.labels if not old.carries(k)] if isinstance(value, Tensor) else []
    if extra and not grows:
        names = ", ".join(k.name for k in extra)
        raise errors.AddsAxes(axes=names, left=old.names, span=span)
    total = expressions.tensor_binary(body, "+", old, value, span)
    if extra:
        return total
    axes = tuple((k, total.axis(k)) for k in old.labels)
    return replace(total, axes=axes, known=old.known, cover=len(axes))


def _return(body: Body, statement: syntax.ReturnStmt) -> None:
    if body.is_model:
        raise errors.MisplacedReturn(where="in a model", span=statement.span)
    if body.loop:
        raise errors.MisplacedReturn(where=f"in a {body.loop}", span=statement.span)
    values = [expressions.evaluate(body, expr) for expr in statement.values]
    raise Returned(list(values[0]) if len(values) == 1 and isinstance(values[0], tuple) else values)


# --------------------------------------------------------------------------- weights, tables


INITIALS = ("zeros", "ones", "normal", "fan_in")


def _initial(statement: syntax.WeightStmt) -> str:
    """The name of the initial value; none is a choice too (`fan_in`)."""
    if statement.init is None:
        return ""
    text = statement.init.span.text
    if text not in INITIALS:
        raise errors.UnknownInitial(text=text, known=INITIALS, span=statement.init.span)
    return text


def _weight(body: Body, statement: syntax.WeightStmt) -> None:
    if body.kind == "fn":
        kind = "weight" if statement.trained else "buffer"
        raise errors.WeightInFunction(kind=kind, name=statement.name, span=statement.span)
    first = body.place.taken.get(statement.name)
    if first is not None:
        raise errors.DefinedTwice(name=statement.name, span=statement.span, first=first)
    groups = [[selection.entries] for selection in body.place.chosen]
    groups += [brackets.axis_for(body, d) for d in statement.brackets]
    pairs = [pair for group in groups for pair in group]
    labels = [label for label, _ in pairs]
    if twice := next((k for k in labels if labels.count(k) > 1), None):
        raise errors.AxisTwice(axis=twice.name, span=statement.span)
    body.place.taken[statement.name] = statement.span
    chosen: dict[Label, Axis] = {}
    for label, axis in pairs:
        body.emitter.choose(label, axis, chosen)
    flat = [(label, chosen[label]) for label in labels]
    path = body.place.child(statement.name).path
    key = (body.place.scope, path)
    made = body.session.weights.get(key)
    if made is not None:
        value = _reuse(body, made, flat, statement)
    else:
        lengths = [len(group) for group in groups]
        value = _make_weight(body, statement, path, lengths, flat)
        body.session.weights[key] = MadeWeight(value, statement.span)
    own = instances.chosen_of(body, value, statement.span)
    body.environment.values[statement.name] = own


def _make_weight(
    body: Body,
    statement: syntax.WeightStmt,
    path: str,
    lengths: Sequence[int],
    flat: list[tuple[Label, Axis]],
) -> Tensor:
    """A new parameter, stored with as many axes per dimension as `lengths` says."""
    order = tuple(axis for _, axis in flat)
    axes = iter(order)
    parameter = Parameter(
        path,
        order,
        grouping=tuple(tuple(islice(axes, n)) for n in lengths),
        init=_initial(statement),
        trained=statement.trained,
        banks=len(body.place.chosen),
        declared=tuple(label.name for label, _ in flat),
        span=statement.span,
    )
    scope = body.place.scope
    scope.parameters.append(parameter)
    kind, origin = TensorType("float", order), body.emitter.origin()
    node = scope.builder.add("weight", (), {"path": path}, (kind,), origin, statement.name)
    return Tensor(node, scope, tuple(flat), "float", len(flat), len(flat))


def _reuse(
    body: Body, made: MadeWeight, flat: list[tuple[Label, Axis]], statement: syntax.WeightStmt
) -> Tensor:
    """An instance applied again: the same weight under the new body's labels, sizes checked."""
    sizes = [(a.size, b.size) for (_, a), (_, b) in zip(flat, made.value.axes, strict=False)]
    differ = any(a.substitute(body.bindings) != b.substitute(body.bindings) for a, b in sizes)
    if differ or len(flat) != len(made.value.axes):
        shown = ", ".join(body.emitter.show(axis.size) for _, axis in flat)
        earlier = ", ".join(body.emitter.show(axis.size) for _, axis in made.value.axes)
        raise errors.SharedSizes(
            weight=statement.name,
            got=f"[{shown}]",
            expected=f"[{earlier}]",
            span=statement.span,
            shared_at=body.place.shared_at,
        )
    for (label, axis), (_, own) in zip(flat, made.value.axes, strict=True):
        body.emitter.require_equal(axis.size, own.size, label.name, statement.span, made.span)
    axes = tuple((k, own) for (k, _), (_, own) in zip(flat, made.value.axes, strict=True))
    return replace(made.value, axes=axes)


def _const(body: Body, statement: syntax.ConstStmt) -> None:
    """A table: its own function of no inputs, evaluated once in float64."""
    emitter = body.emitter
    with emitter.within(GraphScope(Builder("table"))):
        declared = [pair for d in statement.brackets for pair in brackets.axis_for(body, d)]
        result = expressions.evaluate(body, statement.value)
        if isinstance(result, list):
            value = _listed(body, result, [k for k, _ in declared], statement.value.span)
        else:
            value = expressions.as_tensor(body, result, statement.span)
        value = brackets.annotate(body, value, statement.brackets, statement.span)
        node = lay_out(body, value, tuple(value.axis(k) for k, _ in declared))
        if value.dtype not in ("int", "bool"):
            node = emitter.node("cast", (node,), dtype="f64")
        name = _table_function(body.session, emitter.scope.builder, statement.name, node)
        kind = emitter.scope.builder[node].type
    dtype = "f32" if kind.dtype == "f64" else kind.dtype
    home = next(scope for scope in emitter.scope.chain() if scope.scan is None)
    with emitter.within(home):  # a step of a scan reads it like any other value from above
        table = emitter.node("table", (), (TensorType(dtype, kind.axes),), body=name)
    axes = tuple((k, value.axis(k)) for k, _ in declared)
    home.builder.set_hint(table, statement.name)
    body.environment.values[statement.name] = Tensor(table, home, axes, dtype, len(axes), len(axes))


def _listed(body: Body, given: list[Any], labels: Sequence[Label], span: Span) -> Tensor:
    """The numbers of a list along the first of `labels`, those of lists in it along the next."""
    if not labels:
        raise errors.NotATensor(got=numbers.describe(given), span=span)
    label = labels[0]
    if label.axis is not None:
        body.emitter.require_equal(Dim.of(len(given)), label.axis.size, label.name, span, None)
    parts = [
        _listed(body, v, labels[1:], span)
        if isinstance(v, list)
        else expressions.as_tensor(body, v, span)
        for v in given
    ]
    if any(p.dtype not in ("int", "bool") for p in parts):
        parts = [body.emitter.cast(p, "f64") for p in parts]
    return builtins.stacked(body, parts, label, span)


def _table_function(session: Session, builder: Builder, hint: str, node: int) -> str:
    """The name of a function with this content: equal tables share one."""
    function = builder.finish([(hint, node)])
    for known in session.functions.values():
        if replace(known, name=function.name) == function:
            return known.name
    name = session.function_name(f"table.{hint}")
    session.functions[name] = replace(function, name=name)
    return name


def lay_out(body: Body, value: Tensor, order: tuple[Axis, ...]) -> int:
    node = body.emitter.use(value)
    if body.emitter.scope.builder[node].axes == order:
        return node
    return body.emitter.node("transpose", (node,), order=order)


def _shared(body: Body, statement: syntax.SharedStmt) -> None:
    template = _template(body, statement.value)
    place = calls.claim(body, statement.name, statement.span)
    body.environment.values[statement.name] = Instance(
        template, statement.name, place, statement.span
    )


def _template(body: Body, expr: syntax.Expr) -> Template:
    value = body.settled(expressions.evaluate(body, expr))
    if not isinstance(value, Template):
        raise errors.NotATemplate(got=numbers.describe(value), span=expr.span)
    return value


def _bank(body: Body, statement: syntax.BankStmt) -> None:
    template = _template(body, statement.value)
    if len(statement.brackets) != 1 or statement.brackets[0].kind != "axis":
        raise errors.BankSize(span=statement.span)
    (entries,) = statement.brackets
    count = entries.size or syntax.Name(name=entries.name, span=entries.span)
    size = brackets.expect_size(body, count)
    numbers.whole(size, body.bindings, entries.span)
    axis = body.new_axis(entries.name, size, entries.span)
    label = Label(body.frame, entries.name, axis, secondary=True, declared_at=entries.span)
    place = calls.claim(body, statement.name, statement.span)
    body.environment.values[statement.name] = Bank(
        template, statement.name, (label, axis), place, statement.span
    )


# ---------------------------------------------------------------------------- control


def _if(body: Body, statement: syntax.IfStmt) -> None:
    chosen = expressions.condition(body, statement.condition)
    execute_all(body, statement.then if chosen else statement.otherwise)


def _repeat(body: Body, statement: syntax.RepeatStmt) -> None:
    repeats.elaborate_repeat(body, statement)


def _scan(body: Body, statement: syntax.ScanStmt) -> None:
    scans.elaborate_scan(body, statement)


EFFECT: dict[type[syntax.Stmt], Callable[[Body, Any], None]] = {
    syntax.Assign: assign,
    syntax.ReturnStmt: _return,
    syntax.WeightStmt: _weight,
    syntax.ConstStmt: _const,
    syntax.SharedStmt: _shared,
    syntax.BankStmt: _bank,
    syntax.IfStmt: _if,
    syntax.RepeatStmt: _repeat,
    syntax.ScanStmt: _scan,
}

__all__ = [
    "assign",
    "assigned_names",
    "bind",
    "execute",
    "execute_all",
    "lay_out",
    "recorded",
    "run_body",
]
