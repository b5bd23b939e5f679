"""`repeat`: one graph function per layer kind, elaborated with the index symbolic.

The index is a `PerLayer`. Where structure depends on it, elaboration starts again on each group of
iterations that agree; a number that merely differs becomes a scalar argument of the function.

With `until`, each function also returns the condition, and the node's `exit` holds its axes: none
where all rows stop together, one where each row stops by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...dsl import errors, syntax
from ...dsl.dims import Dim
from ...dsl.span import Span
from ..ir.graph import Axis, Builder, DType
from ..ir.rows import mixing
from ..ops import promote
from . import brackets, calls, expressions, numbers, statements
from .body import Body
from .scopes import GraphScope
from .values import Labelled, PerLayer, Skip, SplitIterations, Tensor, WeightPlace

MOST_ITERATIONS = 10_000
MOST_WEIGHTS = 100_000  # of the repeats of a model, one by one; real ones have some thousand


@dataclass(slots=True)
class Kind:
    """A layer kind: the iterations it serves and the function they run."""

    iterations: tuple[int, ...]
    scope: GraphScope
    outputs: list[tuple[str, int]]
    until: Tensor | bool | None = None


class Widen(Exception):
    """A carried value leaves an iteration with a higher dtype than it entered: start with that."""

    def __init__(self, name: str, dtype: DType) -> None:
        super().__init__()
        self.name, self.dtype = name, dtype


def elaborate_repeat(body: Body, statement: syntax.RepeatStmt) -> None:
    if body.emitter.scope.scans():
        raise errors.Unsupported(what="a `repeat` in a `scan`", span=statement.span)
    if body.place.chosen:
        what = "a `repeat` in a bank indexed by a tensor"
        raise errors.Unsupported(what=what, span=statement.span)
    if body.place.scope is not body.emitter.scope:
        what = "a `shared` block with a `repeat` in it, applied in another `repeat`,"
        raise errors.Unsupported(what=what, span=statement.span)
    count = _count(body, statement)
    calls.claim(body, statement.path, statement.span)
    carried = _carried(body, statement)
    if not carried:
        raise errors.IdleRepeat(span=_path_span(statement))
    if statement.until is not None:
        carried = _aligned(body, carried, statement.span)
    iterations = tuple(range(count))
    while iterations:
        try:
            kinds = _kinds(body, statement, carried, iterations)
        except Widen as found:
            carried[found.name] = body.emitter.cast(carried[found.name], found.dtype)
            continue
        rows = _rows(body, statement.until, carried, kinds)
        numbers_of_all = [name for name in carried if rows and not carried[name].axes]
        if not numbers_of_all:
            _emit(body, statement, carried, kinds, rows)
            return
        for name in numbers_of_all:
            carried[name] = _for_each(body, carried[name], rows, statement)


def _count(body: Body, statement: syntax.RepeatStmt) -> int:
    expr = statement.count or syntax.Name(name=statement.path, span=_path_span(statement))
    count = numbers.whole(brackets.expect_size(body, expr), body.bindings, expr.span)
    if not 0 <= count <= MOST_ITERATIONS:
        raise errors.RepeatCount(count=count, most=MOST_ITERATIONS, span=expr.span)
    return count


def _path_span(statement: syntax.RepeatStmt) -> Span:
    start = statement.span.source.text.index(statement.path, statement.span.start + len("repeat"))
    return Span(statement.span.source, start, start + len(statement.path))


def _carried(body: Body, statement: syntax.RepeatStmt) -> dict[str, Tensor]:
    """Names that exist before the repeat and are assigned in its body: tensors and numbers."""
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(statements.assigned_names(statement.body)):
        if body.environment.find(name) is not None:
            value = body.lookup(name, statement.span)
            if not isinstance(value, Tensor | bool | float | Dim | PerLayer):
                raise errors.CarriedValue(
                    name=name, got=numbers.describe(value), span=statement.span
                )
            found[name] = expressions.as_tensor(body, value, statement.span)
    return found


def _aligned(body: Body, carried: dict[str, Tensor], span: Span) -> dict[str, Tensor]:
    """The same values with one graph axis for each label: a row is one row in all of them."""
    nodes, labels = body.emitter.align(list(carried.values()), span)
    axes = {label: axis for axis, label in labels.items()}
    return {
        name: replace(
            value,
            node=node,
            scope=body.emitter.scope,
            axes=tuple((label, axes[label]) for label in value.labels),
        )
        for (name, value), node in zip(carried.items(), nodes, strict=True)
    }


# --------------------------------------------------------------------------------- leaving


def _rows(
    body: Body,
    until: syntax.Expr | None,
    carried: dict[str, Tensor],
    kinds: Sequence[Kind],
) -> Labelled:
    """The axis along which rows stop by themselves; none where all stop together."""
    if until is None:
        return ()
    conditions = [kind.until for kind in kinds if isinstance(kind.until, Tensor)]
    if not conditions or any(kind.until is True for kind in kinds):
        raise errors.FixedExit(span=until.span)
    labels = list(dict.fromkeys(label for c in conditions for label in c.labels))
    if len(labels) > 1:
        names = ", ".join(label.name for label in labels)
        raise errors.ExitAxes(axes=f"[{names}]", span=until.span)
    for label in labels:
        for name, value in carried.items():
            if value.axes and not value.carries(label):
                raise errors.SharedByRows(
                    name=name, got=value.names, axis=label.name, span=until.span
                )
        axis = next(c.axis(label) for c in (*carried.values(), *conditions) if c.carries(label))
        if axis.size != Dim.symbol(str(axis.size)) or axis.size.symbols() <= set(body.bindings):
            size = body.emitter.show(axis.size)
            raise errors.FixedRows(axis=label.name, size=size, span=until.span)
        return ((label, axis),)
    return ()


def _for_each(body: Body, value: Tensor, rows: Labelled, statement: syntax.RepeatStmt) -> Tensor:
    """A number carried for all rows, as one for each."""
    assert statement.until is not None
    with body.at(statement.until.span):
        node = body.emitter.laid_out(value, rows, statement.until.span)
    return replace(value, node=node, scope=body.emitter.scope, axes=rows, known=1, cover=1)


def _return_conditions(
    body: Body, until: syntax.Expr, rows: Labelled, kinds: Sequence[Kind]
) -> dict[str, tuple[Axis, ...]]:
    """Every kind returns its condition after the carried values. Returns the attribute `exit`."""
    for kind in kinds:
        with body.emitter.within(kind.scope), body.at(until.span):
            value = body.emitter.number(False) if kind.until is False else kind.until
            assert isinstance(value, Tensor)
            kind.outputs.append(("until", body.emitter.laid_out(value, rows, until.span)))
    return {"exit": tuple(axis for _, axis in rows)}


# ------------------------------------------------------------------------------- layer kinds


def _kinds(
    body: Body,
    statement: syntax.RepeatStmt,
    carried: dict[str, Tensor],
    iterations: tuple[int, ...],
) -> list[Kind]:
    """Elaborate the body for `iterations`, on smaller groups where structure differs."""
    session = body.session
    mistakes, functions = len(session.errors), dict(session.functions)
    scope = GraphScope(Builder("kind"), body.emitter.scope)
    try:
        return [_kind(body, statement, carried, iterations, scope)]
    except SplitIterations as split:
        if split.scope is not scope:
            raise
        del session.errors[mistakes:]
        session.functions = functions
        groups = [tuple(iterations[p] for p in group) for group in split.groups]
    return _all_kinds(body, statement, carried, groups)


def _all_kinds(
    body: Body,
    statement: syntax.RepeatStmt,
    carried: dict[str, Tensor],
    groups: Sequence[tuple[int, ...]],
) -> list[Kind]:
    """The kinds of every group: a mistake in one does not hide those of the next."""
    found: list[Kind] = []
    skipped: Skip | None = None
    for group in groups:
        try:
            found += _kinds(body, statement, carried, group)
        except Skip as skip:
            skipped = skip
    if skipped is not None:
        raise skipped
    return found


def _kind(
    body: Body,
    statement: syntax.RepeatStmt,
    carried: dict[str, Tensor],
    iterations: tuple[int, ...],
    scope: GraphScope,
) -> Kind:
    inner = replace(body.nested(), place=WeightPlace(scope, ""), loop="repeat")
    index = tuple(Dim.of(i) for i in iterations)
    inner.environment.values[statement.index] = PerLayer.of(index, scope)
    place = body.emitter.place
    with body.emitter.within(scope), body.frame.local():
        body.emitter.place = replace(place, region="")
        try:
            inputs = _carried_inputs(scope, carried, body)
            inner.environment.values.update(inputs)
            statements.execute_all(inner, statement.body)
            outputs = [
                (name, _carried_output(inner, name, before, statement))
                for name, before in inputs.items()
            ]
            until = _condition(inner, statement.until)
        finally:
            body.emitter.place = place
    return Kind(iterations, scope, outputs, until)


def _condition(inner: Body, expr: syntax.Expr | None) -> Tensor | bool | None:
    """Whether to stop after an iteration; a truth value where the text alone decides."""
    if expr is None:
        return None
    value = inner.settled(expressions.evaluate(inner, expr))
    if not isinstance(value, Tensor):
        return numbers.boolean(value, expr.span)
    if value.dtype != "bool":
        raise errors.NotABoolTensor(got=brackets.kind_of(value), span=expr.span)
    return value


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
    widest = carried_dtype(name, before, after, not before.axes, statement.span)
    if widest != before.dtype:
        raise Widen(name, widest)
    layout = inner.emitter.scope.builder[before.node].axes
    axes = tuple(sorted(before.axes, key=lambda pair: layout.index(pair[1])))
    return inner.emitter.laid_out(inner.emitter.cast(after, widest), axes, statement.span)


def carried_dtype(
    name: str, before: Tensor, after: Tensor, starts_as_number: bool, span: Span
) -> DType:
    """A carried value never loses precision; a number before the loop may become a fraction."""
    if after.dtype == before.dtype:
        return after.dtype
    fixed = before.dtype == "int" and not starts_as_number
    if "bool" in (before.dtype, after.dtype) or fixed:
        raise errors.CarriedDtype(
            name=name,
            before=brackets.kind_of(before),
            after=brackets.kind_of(after),
            span=span,
        )
    return promote(before.dtype, after.dtype)


# --------------------------------------------------------------------------------- emission


def _emit(
    body: Body,
    statement: syntax.RepeatStmt,
    carried: dict[str, Tensor],
    kinds: Sequence[Kind],
    rows: Labelled,
) -> None:
    """Close the kinds, and put the node that runs them into the enclosing function."""
    emitter, path = body.emitter, body.place.child(statement.path).path
    leaving = _return_conditions(body, statement.until, rows, kinds) if statement.until else {}
    sources = list(dict.fromkeys(s for kind in kinds for s in kind.scope.captured.values()))
    dtypes = _scalar_dtypes(kinds)
    columns = [kind.scope.scalar_columns(dtypes) for kind in kinds]
    names = [
        _finish(body, path, kind, sources, column)
        for kind, column in zip(kinds, columns, strict=True)
    ]
    for row in leaving.get("exit", ()):
        _independent(body, statement, names, row)
    order = sorted((i, n) for k, n in zip(kinds, names, strict=True) for i in k.iterations)
    inputs = [emitter.use(v) for v in carried.values()]
    inputs += [emitter.scope.import_node(scope, node) for scope, node in sources]
    types = tuple(v.scope.builder[v.node].type for v in carried.values())
    node = emitter.node(
        "repeat",
        inputs,
        types,
        path=path,
        kinds=tuple(name for _, name in order),
        indices=tuple(i for i, _ in order),
        scalars=_scalar_table(kinds, columns, len(order)),
        carried=len(carried),
        **leaving,
    )
    _add_parameters(body, path, kinds)
    for position, (name, before) in enumerate(carried.items()):
        result = emitter.node("result", (node,), (types[position],), index=position)
        emitter.scope.builder.set_hint(result, name)
        body.environment.values[name] = replace(
            before,
            node=result,
            scope=emitter.scope,
            cover=len(before.axes),
            quiet=frozenset(),
            clock=None,
        )


def _scalar_dtypes(kinds: Sequence[Kind]) -> list[DType]:
    """The dtypes of the common scalar arguments: of each as many as some kind has."""
    most: Counter[Any] = Counter()
    for kind in kinds:
        most |= Counter(dtype for dtype, _ in kind.scope.scalars.values())
    return sorted(most.elements())


def _scalar_table(
    kinds: Sequence[Kind], columns: Sequence[list[int]], count: int
) -> tuple[tuple[float, ...], ...]:
    """The value of every scalar in every iteration; 0 where its kind does not use it."""
    table = [[0.0] * count for _ in (columns[0] if columns else ())]
    for kind, nodes in zip(kinds, columns, strict=True):
        for column, node in zip(table, nodes, strict=True):
            _, values = kind.scope.scalars[node]
            for iteration, value in zip(kind.iterations, values, strict=False):
                column[iteration] = value
    return tuple(map(tuple, table))


def _finish(
    body: Body,
    path: str,
    kind: Kind,
    sources: Sequence[tuple[GraphScope, int]],
    scalars: Sequence[int],
) -> str:
    """Close a kind's function with inputs in the common order: carried, captured, scalars."""
    scope = kind.scope
    captured = [scope.import_node(owner, node) for owner, node in sources]
    name = body.session.function_name(path)
    function = scope.builder.finish(kind.outputs)
    others = {*captured, *scalars}
    carried = [i for i in function.inputs if i not in others]
    inputs = (*carried, *captured, *scalars)
    body.session.functions[name] = replace(function, name=name, inputs=inputs)
    return name


def _independent(body: Body, statement: syntax.RepeatStmt, names: Sequence[str], row: Axis) -> None:
    """Raises MixesRows where a kind reads one row for another: rows that left are not there."""
    for name in dict.fromkeys(names):
        node = mixing(body.session.functions, name, row)
        if node is not None:
            span, *calls = node.spans or (statement.span,)
            raise errors.MixesRows(
                op=node.op,
                axis=row.name,
                span=span,
                calls=tuple(calls),
                until_at=statement.until.span if statement.until is not None else None,
            )


def _add_parameters(body: Body, path: str, kinds: Sequence[Kind]) -> None:
    """Every iteration's weights. An instance that repeats makes them once, however often applied."""
    known = body.emitter.scope.parameters
    count = sum(len(kind.iterations) * len(kind.scope.parameters) for kind in kinds)
    if len(known) + count > MOST_WEIGHTS:
        raise errors.TooManyWeights(limit=MOST_WEIGHTS, span=body.emitter.place.spans[0])
    made = {parameter.path: parameter for parameter in known}
    for iteration, kind in sorted((i, n) for n, k in enumerate(kinds) for i in k.iterations):
        for parameter in kinds[kind].scope.parameters:
            complete = parameter.below(f"{path}[{iteration}].")
            earlier = made.get(complete.path)
            if earlier is None:
                known.append(complete)
            elif earlier.axes != complete.axes and earlier.span is not None:
                raise errors.SharedSizes(
                    weight=complete.path,
                    got=", ".join(map(str, complete.axes)),
                    expected=", ".join(map(str, earlier.axes)),
                    span=earlier.span,
                    shared_at=body.place.shared_at,
                )


__all__ = ["carried_dtype", "elaborate_repeat"]
