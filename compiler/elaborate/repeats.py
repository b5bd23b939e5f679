"""`repeat`: one graph function per layer kind, elaborated with the index symbolic.

The index is a `PerLayer`. Where structure depends on it, elaboration starts again on each group of
iterations that agree; a number that merely differs becomes a scalar argument of the function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...dsl import errors, syntax
from ...dsl.dims import Dim
from ..ir.graph import Builder, Parameter, TensorType
from . import brackets, expressions, numbers, statements
from .body import Body
from .scopes import GraphScope
from .values import Environment, PerLayer, SplitIterations, Tensor, WeightPlace


@dataclass(slots=True)
class Kind:
    """A layer kind: the iterations it serves and the function they run."""

    iterations: tuple[int, ...]
    scope: GraphScope
    outputs: list[tuple[str, int]]


def elaborate_repeat(body: Body, statement: syntax.RepeatStmt) -> None:
    if statement.until is not None:
        raise errors.Unsupported(what="`repeat ... until`", span=statement.until.span)
    count = _count(body, statement)
    if body.place.taken.get(statement.path) is not None:
        raise errors.LabelTwice(
            label=statement.path, span=statement.span, first=body.place.taken[statement.path]
        )
    body.place.taken[statement.path] = statement.span
    if count == 0:
        return
    carried = _carried(body, statement)
    kinds = _kinds(body, statement, carried, tuple(range(count)))
    _emit(body, statement, carried, kinds, count)


def _count(body: Body, statement: syntax.RepeatStmt) -> int:
    expr = statement.count or syntax.Name(name=statement.path, span=statement.span)
    size = brackets.expect_size(body, expr)
    count = int(numbers.number(size, body.bindings, expr.span))
    if count < 0:
        raise errors.NegativeCount(count=count, span=expr.span)
    return count


def _carried(body: Body, statement: syntax.RepeatStmt) -> dict[str, Tensor]:
    """Run-time names that exist before the repeat and are assigned in its body."""
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(statements.assigned_names(statement.body)):
        if body.environment.find(name) is None:
            continue
        value = body.lookup(name, statement.span)
        if isinstance(value, bool | float | Dim):
            value = body.emitter.number(value)
        if isinstance(value, Tensor):
            found[name] = value
    return found


def _kinds(
    body: Body,
    statement: syntax.RepeatStmt,
    carried: dict[str, Tensor],
    iterations: tuple[int, ...],
) -> list[Kind]:
    """Elaborate the body for `iterations`, on smaller groups where structure differs."""
    mistakes = len(body.session.errors)
    try:
        return [_kind(body, statement, carried, iterations)]
    except SplitIterations as split:
        if body.session.errors[mistakes:] == [] and len(split.groups) > 1:
            groups = [tuple(iterations[p] for p in group) for group in split.groups]
            return [k for group in groups for k in _kinds(body, statement, carried, group)]
        raise


def _kind(
    body: Body,
    statement: syntax.RepeatStmt,
    carried: dict[str, Tensor],
    iterations: tuple[int, ...],
) -> Kind:
    scope = GraphScope(Builder("kind"), body.emitter.scope)
    inner = replace(
        body.nested(),
        environment=Environment(body.environment),
        place=WeightPlace(scope, ""),
    )
    inner.environment.values[statement.index] = PerLayer.of(tuple(Dim.of(i) for i in iterations))
    place = body.emitter.place
    with statements.in_function(body, scope):
        body.emitter.place = replace(place, region="")
        try:
            inputs = _carried_inputs(scope, carried, body)
            inner.environment.values.update(inputs)
            statements.execute_all(inner, statement.body)
            outputs = [
                (name, _carried_output(inner, name, inputs[name], statement)) for name in carried
            ]
        finally:
            body.emitter.place = place
    return Kind(iterations, scope, outputs)


def _carried_inputs(scope: GraphScope, carried: dict[str, Tensor], body: Body) -> dict[str, Tensor]:
    found = {}
    for name, value in carried.items():
        kind = value.scope.builder[value.node].type
        node = scope.builder.add("input", (), {"name": name}, (kind,), body.emitter.origin(), name)
        found[name] = replace(value, node=node, scope=scope)
    return found


def _carried_output(inner: Body, name: str, before: Tensor, statement: syntax.RepeatStmt) -> int:
    """The value at the end of an iteration, with exactly the type it had at the start."""
    after = expressions.as_tensor(inner, inner.lookup(name, statement.span), statement.span)
    if set(after.labels) != set(before.labels):
        raise errors.CarriedAxes(
            name=name, before=before.names, after=after.names, span=statement.span
        )
    emitter = inner.emitter
    pairs = []
    for label, axis in before.axes:
        own = after.axis(label)
        if own != axis:
            emitter.require_equal(own.size, axis.size, label.name, statement.span, None)
            pairs.append((own, axis))
    node = emitter.rename(emitter.use(after), tuple(pairs))
    kind = emitter.scope.builder[before.node].type
    if after.dtype != before.dtype:
        if before.dtype in ("int", "bool") or after.dtype in ("int", "bool"):
            raise errors.CarriedDtype(
                name=name, before=before.dtype, after=after.dtype, span=statement.span
            )
        node = emitter.node("cast", (node,), dtype=before.dtype)
    if emitter.scope.builder[node].axes != kind.axes:
        node = emitter.node("transpose", (node,), order=kind.axes)
    return node


# --------------------------------------------------------------------------------- emission


def _emit(
    body: Body,
    statement: syntax.RepeatStmt,
    carried: dict[str, Tensor],
    kinds: Sequence[Kind],
    count: int,
) -> None:
    sources = _common_captures(kinds)
    scalars = _common_scalars(kinds, count)
    for kind in kinds:
        kind.scope.pad_scalars(len(scalars))
    names = [_finish(body, statement, kind, sources) for kind in kinds]
    by_iteration = {i: n for k, n in zip(kinds, names, strict=True) for i in k.iterations}
    emitter = body.emitter
    inputs = [emitter.use(v) for v in carried.values()]
    inputs += [emitter.scope.import_node(scope, node) for scope, node in sources]
    types = tuple(v.scope.builder[v.node].type for v in carried.values())
    node = emitter.node(
        "repeat",
        inputs,
        types or (TensorType("int"),),
        path=_path(body, statement.path),
        kinds=tuple(by_iteration[i] for i in range(count)),
        indices=tuple(range(count)),
        scalars=scalars,
        carried=len(carried),
    )
    emitter.scope.parameters.extend(_parameters(body, statement, kinds, count))
    for position, (name, before) in enumerate(carried.items()):
        result = emitter.node("result", (node,), (types[position],), index=position)
        emitter.scope.builder.set_hint(result, name)
        body.environment.values[name] = replace(
            before, node=result, scope=emitter.scope, cover=len(before.axes), quiet=frozenset()
        )


def _path(body: Body, path: str) -> str:
    return f"{body.place.path}.{path}" if body.place.path else path


def _common_captures(kinds: Sequence[Kind]) -> list[tuple[GraphScope, int]]:
    """Every outer value some kind reads; all kinds take all of them, in one order."""
    found: list[tuple[GraphScope, int]] = []
    for kind in kinds:
        found += [source for source in kind.scope.captured.values() if source not in found]
    return found


def _common_scalars(kinds: Sequence[Kind], count: int) -> tuple[tuple[float, ...], ...]:
    width = max(len(kind.scope.scalars) for kind in kinds)
    columns = []
    for position in range(width):
        column = [0.0] * count
        for kind in kinds:
            if position < len(kind.scope.scalars):
                for iteration, value in zip(
                    kind.iterations, kind.scope.scalars[position], strict=True
                ):
                    column[iteration] = value
        columns.append(tuple(column))
    return tuple(columns)


def _finish(
    body: Body,
    statement: syntax.RepeatStmt,
    kind: Kind,
    sources: Sequence[tuple[GraphScope, int]],
) -> str:
    """Close the function of a kind with inputs in the common order: carried, captured, scalars."""
    scope = kind.scope
    name = body.session.function_name(_path(body, statement.path))
    by_source = {source: inner for inner, source in scope.captured.items()}
    captured = [by_source[s] if s in by_source else scope.import_node(s[0], s[1]) for s in sources]
    function = scope.builder.finish(kind.outputs)
    inner_inputs = [i for i in function.inputs if i not in scope.captured]
    carried = [i for i in inner_inputs if i not in scope.scalar_inputs]
    inputs = (*carried, *captured, *scope.scalar_inputs)
    body.session.functions[name] = replace(function, name=name, inputs=inputs)
    return name


def _parameters(
    body: Body, statement: syntax.RepeatStmt, kinds: Sequence[Kind], count: int
) -> list[Parameter]:
    by_iteration: dict[int, GraphScope] = {i: k.scope for k in kinds for i in k.iterations}
    path = _path(body, statement.path)
    return [
        parameter.below(f"{path}[{i}].")
        for i in range(count)
        for parameter in by_iteration[i].parameters
    ]


__all__ = ["elaborate_repeat"]
