"""Statements: a table from syntax class to effect on a body."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ...dsl import errors, syntax
from ...dsl.diagnostics import ArchError
from ...dsl.span import Span
from ..ir.graph import Axis, Builder, Parameter, TensorType
from . import brackets, expressions, numbers, repeats
from .body import Body, MadeWeight, Naming, Session
from .labels import AxisSize, Label
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


def run_body(body: Body, statements: Sequence[syntax.Stmt]) -> list[Any]:
    """Run a block's or fn's statements to its `return`."""
    try:
        for statement in statements:
            execute(body, statement)
    except Returned as returned:
        return returned.values
    last = statements[-1].span if statements else body.emitter.place.spans[0]
    raise errors.NoReturn(name=body.frame.name, span=last)


def execute(body: Body, statement: syntax.Stmt) -> None:
    """Run one statement. What only a model's own text may say is looked up in the session."""
    with recorded(body, statement):
        effect = EFFECT.get(type(statement))
        at_top = body.is_model and body.emitter.scope.parent is None
        if effect is None and at_top:
            effect = body.session.model_effects[type(statement)]
        if effect is None:
            raise errors.OnlyInModel(span=statement.span)
        effect(body, statement)


@contextmanager
def recorded(body: Body, statement: syntax.Stmt) -> Iterator[None]:
    """In a model a mistake is recorded and the names it leaves undefined are poisoned."""
    old = body.naming
    body.naming = _naming(body, statement)
    try:
        with body.at(statement.span):
            yield
    except (ArchError, Skip) as mistake:
        if not body.is_model:
            raise
        _poison(body, statement)
        if isinstance(mistake, ArchError):
            body.session.errors.append(mistake)
    finally:
        body.naming = old


def execute_all(body: Body, statements: Sequence[syntax.Stmt]) -> None:
    for statement in statements:
        execute(body, statement)


def _poison(body: Body, statement: syntax.Stmt) -> None:
    for name in assigned_names((statement,)):
        body.environment.values[name] = Poison()


def assigned_names(statements: Sequence[syntax.Stmt]) -> Iterator[str]:
    """Every name that statements may assign, in text order, repeats allowed."""
    for node in syntax.walk(tuple(statements)):
        if isinstance(node, syntax.Assign):
            yield from (t.name for t in node.targets)
        elif isinstance(node, syntax.ConstStmt | syntax.WeightStmt | syntax.InputStmt) or isinstance(node, syntax.SharedStmt | syntax.BankStmt | syntax.OutputStmt):
            yield node.name


# ------------------------------------------------------------------------------- labelling


def _naming(body: Body, statement: syntax.Stmt) -> Naming:
    if isinstance(statement, syntax.Assign | syntax.OutputStmt):
        count = sum(1 for _ in _applications(body, statement.value))
        return Naming(_new_variable(body, statement), count)
    if isinstance(statement, syntax.ReturnStmt):
        return Naming(None, sum(1 for v in statement.values for _ in _applications(body, v)))
    return Naming()


def _new_variable(body: Body, statement: syntax.Assign | syntax.OutputStmt) -> str | None:
    if isinstance(statement, syntax.OutputStmt):
        return statement.name
    names = [t.name for t in statement.targets]
    is_new = len(names) == 1 and body.environment.find(names[0]) is None
    return names[0] if is_new and statement.op == "=" else None


def _applications(body: Body, expr: syntax.Expr) -> Iterator[syntax.Expr]:
    """What counts as an application in the text: all but builtins and `fn`s called by own name."""
    for node in _outside_lambdas(expr):
        if isinstance(node, syntax.Stage):
            call = node.call
            function = call.function if isinstance(call, syntax.Call) else call
            if not _is_plain_function(body, function):
                yield function
        elif isinstance(node, syntax.Call) and not _is_plain_function(body, node.function):
            callee = node.function
            is_own = isinstance(callee, syntax.Name) and _own_block(body, callee.name)
            if not is_own and not _is_stage_call(expr, node):
                yield callee


def _is_stage_call(expr: syntax.Expr, call: syntax.Call) -> bool:
    stages = (n for n in _outside_lambdas(expr) if isinstance(n, syntax.Stage))
    return any(stage.call is call for stage in stages)


def _outside_lambdas(node: object) -> Iterator[syntax.Node]:
    for found in syntax.walk(node):
        if not isinstance(found, syntax.Lambda):
            yield found


def _is_plain_function(body: Body, function: syntax.Expr) -> bool:
    if not isinstance(function, syntax.Name):
        return False
    if body.environment.find(function.name) is not None:
        return False
    found = body.session.module.lookup(function.name)
    is_fn = isinstance(found, Template) and found.definition.kind == "fn"
    return is_fn or isinstance(found, Builtin)


def _own_block(body: Body, name: str) -> bool:
    return body.environment.find(name) is None and name in body.session.module.definitions


# ------------------------------------------------------------------------------ assignment


def _assign(body: Body, statement: syntax.Assign) -> None:
    value = expressions.evaluate(body, statement.value)
    if statement.op == "+=":
        _add_to(body, statement, value)
        return
    values = list(value) if isinstance(value, tuple) else [value]
    if len(values) != len(statement.targets):
        raise errors.TargetCount(
            targets=len(statement.targets), values=len(values), span=statement.span
        )
    for target, item in zip(statement.targets, values, strict=True):
        body.environment.values[target.name] = bind(body, target, item, statement.span)


def bind(body: Body, target: syntax.Target, value: Any, span: Span) -> Any:
    """Check a value against its annotation, or against the outer-product rule without one."""
    if not isinstance(value, Tensor):
        if target.brackets is None:
            return value
        value = expressions.as_tensor(body, value, span)
    if target.brackets is not None:
        value = brackets.annotate(body, value, target.brackets, target.span)
    elif value.cover < len(value.axes):
        raise errors.OuterProduct(name=target.name, axes=value.names, span=span)
    value.scope.builder.set_hint(value.node, target.name)
    return value


def _add_to(body: Body, statement: syntax.Assign, value: Any) -> None:
    target = statement.targets[0]
    old = body.lookup(target.name, target.span)
    if isinstance(old, Tensor):
        new = _added(body, old, value, statement.span)
    else:
        new = (
            expressions.evaluate(
                body,
                syntax.Binary(
                    op="+",
                    left=syntax.Name(name=target.name, span=target.span),
                    right=statement.value,
                    span=statement.span,
                ),
            )
            if not isinstance(value, Tensor)
            else expressions.tensor_binary(body, "+", old, value, statement.span)
        )
    body.environment.values[target.name] = new


def _added(body: Body, old: Tensor, value: Any, span: Span) -> Tensor:
    """`x += y` keeps the axes and order of x; y may lack axes but not bring new ones."""
    if isinstance(value, Tensor):
        extra = [k.name for k in value.labels if not old.carries(k)]
        if extra:
            raise errors.AddsAxes(axes=", ".join(extra), left=old.names, span=span)
    total = expressions.tensor_binary(body, "+", old, value, span)
    axes = tuple((k, total.axis(k)) for k in old.labels)
    return replace(total, axes=axes, known=old.known, cover=len(axes))


def _return(body: Body, statement: syntax.ReturnStmt) -> None:
    values = []
    for expr in statement.values:
        value = expressions.evaluate(body, expr)
        values.append(value)
    flat = list(values[0]) if len(values) == 1 and isinstance(values[0], tuple) else values
    raise Returned(flat)


# --------------------------------------------------------------------------- weights, tables


def _weight(body: Body, statement: syntax.WeightStmt) -> None:
    if body.place.path == "" and not body.is_model:
        raise errors.WeightInFunction(name=statement.name, span=statement.span)
    groups = [brackets.axis_for(body, d) for d in statement.brackets]
    pairs = [pair for group in groups for pair in group]
    labels = [label for label, _ in pairs]
    if twice := next((k for k in labels if labels.count(k) > 1), None):
        raise errors.AxisTwice(axis=twice.name, span=statement.span)
    flat = _distinct(body, pairs)
    path = f"{body.place.path}.{statement.name}" if body.place.path else statement.name
    key = (id(body.place.scope), path)
    made = body.session.weights.get(key)
    if made is None:
        made = _make_weight(body, statement, path, groups, flat)
        body.session.weights[key] = made
        body.environment.values[statement.name] = made.value
        return
    body.environment.values[statement.name] = _reuse(body, made, flat, statement)


def _distinct(body: Body, pairs: list[tuple[Label, Axis]]) -> list[tuple[Label, Axis]]:
    """A square weight: the axis that yields gets a graph axis of its own."""
    found: list[tuple[Label, Axis]] = []
    taken = [axis for _, axis in pairs]
    for label, axis in pairs:
        if (taken.count(axis) > 1 and label.is_secondary) or axis in (a for _, a in found):
            axis = body.emitter.alternative(label, axis)
        found.append((label, axis))
    return found


def _make_weight(
    body: Body,
    statement: syntax.WeightStmt,
    path: str,
    groups: list[list[tuple[Label, Axis]]],
    flat: list[tuple[Label, Axis]],
) -> MadeWeight:
    axes = iter(axis for _, axis in flat)
    grouping = tuple(tuple(next(axes) for _ in group) for group in groups)
    order = tuple(axis for _, axis in flat)
    scope = body.place.scope
    scope.parameters.append(
        Parameter(
            path,
            order,
            grouping,
            statement.init.span.text if statement.init is not None else "",
            tuple(label.name for label, _ in flat),
            statement.span,
        )
    )
    node = scope.builder.add(
        "weight",
        (),
        {"path": path},
        (TensorType("float", order),),
        body.emitter.origin(),
        statement.name,
    )
    value = Tensor(node, scope, tuple(flat), "float", len(flat), len(flat))
    return MadeWeight(value, tuple(label for label, _ in flat), statement.span)


def _reuse(
    body: Body, made: MadeWeight, flat: list[tuple[Label, Axis]], statement: syntax.WeightStmt
) -> Tensor:
    """An instance applied again: the same weight under the new body's labels, sizes checked."""
    axes = []
    for (label, axis), (_, own) in zip(flat, made.value.axes, strict=True):
        body.emitter.require_equal(axis.size, own.size, label.name, statement.span, made.span)
        axes.append((label, own))
    return replace(made.value, axes=tuple(axes))


def _const(body: Body, statement: syntax.ConstStmt) -> None:
    """A table: its own function of no inputs, evaluated once in float64."""
    session, emitter = body.session, body.emitter
    outer = emitter.scope
    emitter.scope = GraphScope(Builder("table"), None)
    try:
        declared = [pair for d in statement.brackets for pair in brackets.axis_for(body, d)]
        value = expressions.as_tensor(
            body, expressions.evaluate(body, statement.value), statement.span
        )
        value = brackets.annotate(body, value, statement.brackets, statement.span)
        node = _laid_out(body, value, [k for k, _ in declared])
        if value.dtype not in ("int", "bool"):
            node = emitter.node("cast", (node,), dtype="f64")
        name = _table_function(session, emitter.scope.builder, statement.name, node)
        kind = emitter.scope.builder[node].type
    finally:
        emitter.scope = outer
    dtype = "f32" if kind.dtype == "f64" else kind.dtype
    table = emitter.node("table", (), (TensorType(dtype, kind.axes),), body=name)
    axes = tuple((k, value.axis(k)) for k, _ in declared)
    emitter.scope.builder.set_hint(table, statement.name)
    body.environment.values[statement.name] = Tensor(
        table, outer, axes, dtype, len(axes), len(axes)
    )


def _table_function(session: Session, builder: Builder, hint: str, node: int) -> str:
    """The name of a function with this content: equal tables share one."""
    function = builder.finish([(hint, node)])
    for known in session.functions.values():
        if replace(known, name=function.name) == function:
            return known.name
    name = session.function_name(f"table.{hint}")
    session.functions[name] = replace(function, name=name)
    return name


def _laid_out(body: Body, value: Tensor, order: Sequence[Label]) -> int:
    """The value's node, transposed when it is not laid out in the written order."""
    return lay_out(body, value, tuple(value.axis(k) for k in order))


def lay_out(body: Body, value: Tensor, order: tuple[Axis, ...]) -> int:
    node = body.emitter.use(value)
    if body.emitter.scope.builder[node].axes == order:
        return node
    return body.emitter.node("transpose", (node,), order=order)


def _shared(body: Body, statement: syntax.SharedStmt) -> None:
    template = _template(body, statement.value)
    first = body.place.taken.get(statement.name)
    if first is not None:
        raise errors.LabelTwice(label=statement.name, span=statement.span, first=first)
    body.place.taken[statement.name] = statement.span
    body.environment.values[statement.name] = Instance(
        template, statement.name, body.place.child(statement.name), statement.span
    )


def _template(body: Body, expr: syntax.Expr) -> Template:
    value = body.settled(expressions.evaluate(body, expr))
    if not isinstance(value, Template):
        raise errors.NotATemplate(got=numbers.describe(value), span=expr.span)
    return value


def _bank(body: Body, statement: syntax.BankStmt) -> None:
    template = _template(body, statement.value)
    entries = statement.brackets[0]
    if entries.size is not None:
        count = brackets.expect_size(body, entries.size)
        size = AxisSize(count, body.declare_axis(entries.name, count, statement.span))
    else:
        size = expressions.argument(body, syntax.Name(name=entries.name, span=entries.span))
    body.environment.values[statement.name] = Bank(
        template, statement.name, size, body.place.child(statement.name), statement.span
    )


# ---------------------------------------------------------------------------- control


def _if(body: Body, statement: syntax.IfStmt) -> None:
    chosen = expressions.condition(body, statement.condition)
    execute_all(body, statement.then if chosen else statement.otherwise)


def _repeat(body: Body, statement: syntax.RepeatStmt) -> None:
    repeats.elaborate_repeat(body, statement)


def _scan(body: Body, statement: syntax.ScanStmt) -> None:
    raise errors.Unsupported(what="`scan`", span=statement.span)


@contextmanager
def in_function(body: Body, scope: GraphScope) -> Iterator[None]:
    """Emit into another graph function."""
    outer = body.emitter.scope
    body.emitter.scope = scope
    try:
        yield
    finally:
        body.emitter.scope = outer


EFFECT: dict[type[syntax.Stmt], Callable[[Body, Any], None]] = {
    syntax.Assign: _assign,
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
    "assigned_names",
    "bind",
    "execute",
    "execute_all",
    "in_function",
    "lay_out",
    "recorded",
    "run_body",
]
