"""`scan`: one function for a step, run along an axis with states passed from step to step.

Inside, a value along the axis is read at the step wherever it is named (`Emitter.at_step`). What
time and `reset` do is written into the step: it starts from the initial values where a document
begins, and passes on what it got at an invalid entry. So the graph's `scan` is a plain loop. The
axes of a state are those of its brackets, its initial value and its update: the step is elaborated
again until they stay. Weights belong to the body around the scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ...dsl import errors, syntax
from ...dsl.dims import Dim
from ...dsl.span import Span
from ..ir.graph import Builder, DType, TensorType
from . import brackets, calls, expressions, numbers, repeats, statements, time
from .body import Body
from .emit import NUMBER_DTYPE
from .labels import AxisSize, Label
from .scopes import GraphScope, Stepping
from .values import Environment, Labelled, Poison, Skip, Tensor

OPTIONS = ("reverse", "reset")


@dataclass(slots=True)
class State:
    """What is known of a state. `initial` is a number or a tensor of the enclosing function.

    `declared` are the axes of its brackets, which are all of them where `closed`.
    """

    name: str
    initial: Any
    declared: Labelled
    closed: bool
    axes: Labelled
    dtype: DType
    span: Span

    @property
    def names(self) -> str:
        return f"[{', '.join(label.name for label, _ in self.axes)}]"

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, tuple(axis for _, axis in self.axes))


@dataclass(frozen=True, slots=True)
class Options:
    reverse: bool = False
    reset: Any = None


class Grow(Exception):
    """The update of a state has more axes, or a higher dtype: start again with those."""

    def __init__(self, state: State, axes: Labelled, dtype: DType) -> None:
        super().__init__()
        self.state, self.axes, self.dtype = state, axes, dtype


@dataclass(slots=True)
class Step:
    """The function of one step under construction. `carried` enter it; `updates` leave it.

    `sequences` are the values that the scan leaves, one for each step.
    """

    body: Body
    scope: GraphScope
    scan: Stepping
    states: list[State]
    carried: list[Tensor] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    sequences: dict[str, Tensor] = field(default_factory=dict)


def elaborate_scan(body: Body, statement: syntax.ScanStmt) -> None:
    scan = _stepping(body, statement)
    options = _options(body, statement, scan)
    states = _states(body, statement, scan)
    _check_assigned(body, statement, scan, states)
    session = body.session
    mistakes, functions = len(session.errors), dict(session.functions)
    while True:
        try:
            step = _step(body, statement, scan, states, options)
        except Grow as found:
            found.state.axes, found.state.dtype = found.axes, found.dtype
            del session.errors[mistakes:]
            session.functions = dict(functions)
        else:
            break
    _emit(body, statement, step, options)


# ------------------------------------------------------------------------------- the header


def _stepping(body: Body, statement: syntax.ScanStmt) -> Stepping:
    label = body.frame.find(statement.axis)
    if label is None or label.axis is None:
        known = tuple(n for f in body.frame.chain() for n, k in f.labels.items() if k.axis)
        raise errors.ScanAxis(axis=statement.axis, known=known, span=_axis_span(statement))
    size = AxisSize(label.axis.size, label, label.ambiguous)
    axis = body.resolved_axis(size, _axis_span(statement))
    yields = label.owner.secondary  # another view of a sequence, which may be there too
    return Stepping(label, body.emitter.alternative(label, axis) if yields else axis)


def _axis_span(statement: syntax.ScanStmt) -> Span:
    source, start = statement.span.source, statement.span.start + len("scan")
    start = source.text.index(statement.axis, start)
    return Span(source, start, start + len(statement.axis))


def _options(body: Body, statement: syntax.ScanStmt, scan: Stepping) -> Options:
    given = calls.evaluate_arguments(body, statement.options, statement.span)
    others = [(span.text, span) for _, span in given.positional]
    others += [(name, span) for name, (_, span) in given.axes.items()]
    others += [(n, span) for n, (_, span) in given.keywords.items() if n not in OPTIONS]
    for name, span in others:
        raise errors.UnknownArgument(function="scan", name=name, known=OPTIONS, span=span)
    reverse, span = given.keywords.get("reverse", (False, statement.span))
    if isinstance(reverse, Tensor):
        raise errors.RunTimeCondition(span=span)
    reset, reset_span = given.keywords.get("reset", (None, statement.span))
    reset = body.settled(reset)
    if isinstance(reset, Tensor) and reset.dtype != "bool":
        raise errors.NotABoolTensor(got=brackets.kind_of(reset), span=reset_span)
    if not isinstance(reset, Tensor):
        reset = True if reset is not None and numbers.boolean(reset, reset_span) else None
    return Options(numbers.boolean(body.settled(reverse), span), reset)


def _states(body: Body, statement: syntax.ScanStmt, scan: Stepping) -> list[State]:
    errors.DefinedTwice.check((target.name, target.span) for target, _ in statement.states)
    return [_state(body, scan, target, initial) for target, initial in statement.states]


def _state(body: Body, scan: Stepping, target: syntax.Target, initial: syntax.Expr) -> State:
    """A state as its declaration has it; its update may add axes where they are not all written."""
    written = [d for d in target.brackets or () if d.kind != "open"]
    closed = target.brackets is not None and len(written) == len(target.brackets)
    pairs = tuple(pair for d in written for pair in brackets.axis_for(body, d))
    declared = _beside(body, scan, pairs)
    value = body.settled(expressions.evaluate(body, initial))
    if not isinstance(value, Tensor | bool | float | Dim):
        raise errors.NotATensor(got=numbers.describe(value), span=initial.span)
    dtype = value.dtype if isinstance(value, Tensor) else NUMBER_DTYPE[type(value)]
    state = State(target.name, value, declared, closed, declared, dtype, target.span)
    own = value.axes if isinstance(value, Tensor) else ()
    for label, _ in (*declared, *own):
        _must_not_run_along(scan, target.name, label, target.span)
    state.axes = _grown(body, scan, state, own, "its initial value")
    return state


def _beside(body: Body, scan: Stepping, axes: Labelled) -> Labelled:
    """Labelled axes, each with a graph axis of its own, none of them the scanned one."""
    chosen = {scan.label: scan.axis}
    for label, axis in axes:
        used = axis in chosen.values()
        chosen[label] = body.emitter.free_axis(label, axis, chosen) if used else axis
    return tuple((label, chosen[label]) for label, _ in axes)


def _must_not_run_along(scan: Stepping, name: str, label: Label, span: Span) -> None:
    if scan.runs_along(label):
        raise errors.ScannedAxis(name=name, axis=scan.label.name, span=span)


def _grown(body: Body, scan: Stepping, state: State, axes: Labelled, what: str) -> Labelled:
    """The axes of a state together with those of a value of it."""
    known = {label for label, _ in state.axes}
    new = tuple((label, axis) for label, axis in axes if label not in known)
    if new and state.closed:
        got = f"[{', '.join(label.name for label, _ in axes)}]"
        raise errors.StateAxes(
            name=state.name, written=state.names, got=got, what=what, span=state.span
        )
    found = _beside(body, scan, (*state.axes, *new))
    return (*found[len(state.axes) :], *found[: len(state.axes)])


# ------------------------------------------------------------------------------- assignments


def _assignments(statement: syntax.ScanStmt) -> Iterator[tuple[syntax.Target, syntax.Assign]]:
    for node in syntax.walk(statement.body):
        if isinstance(node, syntax.Assign):
            yield from ((target, node) for target in node.targets)


def _check_assigned(
    body: Body, statement: syntax.ScanStmt, scan: Stepping, states: list[State]
) -> None:
    """Every state is assigned, and nothing else is written as if it passed from step to step."""
    first: dict[str, syntax.Assign] = {}
    for target, node in _assignments(statement):
        first.setdefault(target.name, node)
    for state in states:
        if state.name not in first:
            raise errors.IdleState(name=state.name, span=state.span)
        del first[state.name]
    for name, node in first.items():
        if _is_fixed(body, scan, name) and _reads_itself(name, node):
            raise errors.NotCarried(name=name, axis=statement.axis, span=node.span)


def _is_fixed(body: Body, scan: Stepping, name: str) -> bool:
    """Whether a name from above the scan has one value for all its steps."""
    home = body.environment.find(name)
    value = home.values[name] if home is not None else Poison()
    if isinstance(value, Tensor):
        return not any(scan.runs_along(label) for label in value.labels)
    return isinstance(value, bool | float | Dim)


def _reads_itself(name: str, node: syntax.Assign) -> bool:
    read = (n.name for n in syntax.walk(node.value) if isinstance(n, syntax.Name))
    return node.op == "+=" or name in read


# ------------------------------------------------------------------------------- one step


def _step(
    body: Body, statement: syntax.ScanStmt, scan: Stepping, states: list[State], options: Options
) -> Step:
    """Elaborate the body once. Raises Grow where a state must be wider."""
    scan = Stepping(scan.label, scan.axis)
    scope = GraphScope(Builder("scan"), body.emitter.scope, scan)
    environment = Environment(body.environment)
    place = replace(body.place, taken=dict(body.place.taken))
    inner = replace(body.nested(), environment=environment, place=place, loop="scan")
    step = Step(inner, scope, scan, states)
    with body.emitter.within(scope):
        step.carried = [_input(step, s.name, s.type, s.axes) for s in states]
        segments = _Segments.of(step)
        starts = [s for s in (options.reset, segments.begins(step)) if s is not None]
        for state, value in zip(states, step.carried, strict=True):
            environment.states[state.name] = _entry(step, state, value, starts)
        environment.values.update(environment.states)
        statements.execute_all(inner, statement.body)
        _close(step, statement)
        segments.close(step)
    body.place.taken.update(place.taken)
    return step


def _input(step: Step, name: str, kind: TensorType, axes: Labelled) -> Tensor:
    node = step.scope.builder.add(
        "input", (), {"name": name}, (kind,), step.body.emitter.origin(), name
    )
    return Tensor(node, step.scope, axes, kind.dtype, len(axes), len(axes))


def _entry(step: Step, state: State, carried: Tensor, starts: list[Any]) -> Tensor:
    """The state as the step sees it: its initial value where one of `starts` holds."""
    value = carried
    for condition in starts:
        if isinstance(condition, Tensor):
            condition = step.body.emitter.at_step(condition)
        value = _chosen(step, condition, state.initial, value, state, "its reset")
    return replace(value, known=len(state.declared), cover=len(state.axes))


def _chosen(
    step: Step, condition: Any, then: Any, otherwise: Tensor, state: State, what: str
) -> Tensor:
    """`where`, laid out as the state is; `what` is the condition in words."""
    emitter, span = step.body.emitter, state.span
    if condition is True:
        condition = emitter.number(True)
    made = emitter.pointwise("where", [condition, then, otherwise], span)
    if set(made.labels) - set(otherwise.labels):
        axes = _grown(step.body, step.scan, state, made.axes, what)
        raise Grow(state, axes, state.dtype)
    node = emitter.laid_out(emitter.cast(made, state.dtype), state.axes, span)
    return replace(otherwise, node=node)


@dataclass(slots=True)
class _Segments:
    """The document of the last valid entry, a hidden state where the axis has several documents."""

    own: Tensor | None = None
    last: Tensor | None = None

    @classmethod
    def of(cls, step: Step) -> _Segments:
        own = time.fact(step.body, "segment", step.scan.label, step.scan.axis)
        if not isinstance(own, Tensor):
            return cls()
        kind = step.scope.builder[own.node].type
        return cls(own, _input(step, "segment", kind, own.axes))

    def begins(self, step: Step) -> Tensor | None:
        """Whether another document begins. At the first entry it makes no difference."""
        if self.own is None:
            return None
        span = step.body.emitter.place.spans[0]
        same = step.body.emitter.pointwise("eq", [self.own, self.last], span)
        return step.body.emitter.pointwise("not", [same], span)

    def close(self, step: Step) -> None:
        if self.own is None or self.last is None:
            return
        state = State("segment", Dim.of(0), (), True, self.own.axes, "int", step.states[0].span)
        step.states = [*step.states, state]
        step.carried.append(self.last)
        step.updates.append(_held(step, state, self.own, self.last).node)


def _close(step: Step, statement: syntax.ScanStmt) -> None:
    """What leaves the step: the states, held at invalid entries, and every other assigned name."""
    problems: list[Exception] = []
    for state, carried in zip(step.states, step.carried, strict=True):
        try:
            update = _update(step, state)
            held = _held(step, state, update, carried)
        except (Grow, Skip) as problem:
            problems.append(problem)
        else:
            step.scope.builder.set_hint(held.node, state.name)
            step.updates.append(held.node)
            step.sequences[state.name] = replace(held, known=0)
    if problems:  # a state that grows may mend what failed with it
        raise next((p for p in problems if isinstance(p, Grow)), problems[0])
    for target, _ in _assignments(statement):
        value = step.body.environment.values.get(target.name)
        if isinstance(value, Tensor) and target.name not in step.sequences:
            step.sequences[target.name] = _own_axes(step, target.name, value, target.span)


def _update(step: Step, state: State) -> Tensor:
    """A state at the end of the step, in its dtype."""
    body = step.body
    value = expressions.as_tensor(body, body.lookup(state.name, state.span), state.span)
    for label in value.labels:
        _must_not_run_along(step.scan, state.name, label, state.span)
    axes = _grown(body, step.scan, state, value.axes, "its update")
    before = replace(step.carried[0], dtype=state.dtype)
    is_number = not isinstance(state.initial, Tensor)
    dtype = repeats.carried_dtype(state.name, before, value, is_number, state.span)
    if axes != state.axes or dtype != state.dtype:
        raise Grow(state, axes, dtype)
    return body.emitter.cast(value, dtype)


def _held(step: Step, state: State, update: Tensor, carried: Tensor) -> Tensor:
    """The update, or at an invalid entry what the step got."""
    valid = time.fact(step.body, "valid", step.scan.label, step.scan.axis)
    if valid is not True:
        return _chosen(step, valid, update, carried, state, "the padding it skips")
    node = step.body.emitter.laid_out(update, state.axes, state.span)
    return replace(carried, node=node)


def _own_axes(step: Step, name: str, value: Tensor, span: Span) -> Tensor:
    """A value of the step, none of whose axes is the graph's scanned axis under another name."""
    emitter = step.body.emitter
    for label in value.labels:
        _must_not_run_along(step.scan, name, label, span)
    axes = _beside(step.body, step.scan, value.axes)
    pairs = tuple((a, b) for (_, a), (_, b) in zip(value.axes, axes, strict=True) if a != b)
    node = emitter.rename(emitter.use(value), pairs)
    return replace(value, node=node, scope=step.scope, axes=axes)


# ------------------------------------------------------------------------------- emission


def _emit(body: Body, statement: syntax.ScanStmt, step: Step, options: Options) -> None:
    """Close the step's function, and put the node that runs it into the enclosing one."""
    emitter, scope = body.emitter, step.scope
    outer = [emitter.scope.import_node(owner, n) for owner, n in scope.captured.values()]
    initial = [_initial(body, state) for state in step.states]
    name = _finish(body, step)
    types = [_sequence_type(step, n, v) for n, v in step.sequences.items()]
    types += [state.type for state in step.states]
    node = emitter.node(
        "scan",
        (*step.scan.inputs.values(), *initial, *outer),
        tuple(types),
        axis=step.scan.axis,
        body=name,
        reverse=options.reverse,
        states=len(step.states),
        stepped=len(step.scan.inputs),
    )
    results = [emitter.node("result", (node,), (t,), index=i) for i, t in enumerate(types)]
    finals = dict(zip((s.name for s in step.states), results[len(step.sequences) :], strict=True))
    declared = {state.name: state.declared for state in step.states}
    for target, value in step.body.environment.values.items():
        if target not in step.sequences and not isinstance(value, Tensor):
            body.environment.values[target] = value
    for result, (target, value) in zip(results, step.sequences.items(), strict=False):
        left = _left(body, step, value, result, declared.get(target))
        emitter.scope.builder.set_hint(result, target)
        body.environment.values[target] = left
        if target in declared:
            body.session.finals[left.scope, left.node] = finals[target], step.scan.axis


def _initial(body: Body, state: State) -> int:
    value = state.initial
    if not isinstance(value, Tensor):
        value = body.emitter.number(value, state.dtype)
    return body.emitter.laid_out(body.emitter.cast(value, state.dtype), state.axes, state.span)


def _finish(body: Body, step: Step) -> str:
    """Inputs: read at the step, states, captured. Outputs: one for each sequence, the states."""
    outputs = [(name, value.node) for name, value in step.sequences.items()]
    outputs += [
        (f"last.{state.name}", node) for state, node in zip(step.states, step.updates, strict=True)
    ]
    function = step.scope.builder.finish(outputs)
    inputs = (*step.scan.inputs, *(c.node for c in step.carried), *step.scope.captured)
    name = body.session.function_name(f"scan.{step.states[0].name}")
    body.session.functions[name] = replace(function, name=name, inputs=inputs)
    return name


def _place(step: Step, name: str, value: Tensor) -> int:
    """Where the scanned axis stands: before the axes that a state's brackets name."""
    declared = {state.name: state.declared for state in step.states}
    behind = len(declared[name]) if name in declared else min(len(value.axes), 1)
    return len(value.axes) - behind


def _sequence_type(step: Step, name: str, value: Tensor) -> TensorType:
    kind, place = step.scope.builder[value.node].type, _place(step, name, value)
    return TensorType(kind.dtype, (*kind.axes[:place], step.scan.axis, *kind.axes[place:]))


def _left(body: Body, step: Step, value: Tensor, node: int, declared: Labelled | None) -> Tensor:
    """A sequence under its labels: a state's order is open before the scanned axis."""
    scanned = (step.scan.label, step.scan.axis)
    named = declared or ()
    behind = [label for label, _ in named]
    rest = [label for label in value.labels if label not in behind]
    middle, is_known = brackets.open_part(body, replace(value, known=0), rest)
    axes = (*((k, value.axis(k)) for k in middle), scanned, *((k, value.axis(k)) for k in behind))
    known = len(axes) if is_known else len(named) + 1
    if not named:
        known = 0
    return Tensor(node, body.emitter.scope, axes, value.dtype, known, len(axes))


__all__ = ["elaborate_scan"]
