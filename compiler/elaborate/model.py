"""A model as a whole: hyperparameters, inputs, time, outputs; and the entry point `elaborate`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...dsl import errors, syntax
from ...dsl.diagnostics import Diagnostics
from ...dsl.dims import Dim
from ...dsl.span import Span
from ..ir.graph import Builder, Function, Program, TensorType
from . import brackets, builtins, expressions, numbers, statements
from .body import Body, Session, Timeline
from .emit import Emitter
from .labels import Frame, Label
from .module import Module, load_module
from .scopes import GraphScope
from .values import Environment, Tensor, WeightPlace

INPUT_DTYPES = {"ids": "int", "int": "int", "bool": "bool", "float": "float"}


@dataclass(slots=True)
class Request:
    """What to elaborate: hyperparameter values by name, the inputs a caller has, loss or not.

    `given` none means that every declared input becomes an input of the program; otherwise an input
    that is not given and has a default is replaced by it.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    given: Collection[str] | None = None
    loss: bool = False


def module_of(file: syntax.File) -> Module:
    """The definitions of a parsed file and of the libraries it uses."""
    return load_module(file, builtins.NAMES)


def the_model(module: Module, name: str | None = None) -> syntax.ModelDef:
    """The model called `name`, or the only one of the file."""
    if name is not None and name not in module.models:
        raise errors.UnknownModel(name=name, known=tuple(module.models))
    if name is None and len(module.models) != 1:
        source = module.file.span.source.name
        raise errors.WhichModel(file=source, known=", ".join(module.models) or "none")
    return module.models[name] if name is not None else next(iter(module.models.values()))


def preset_overrides(module: Module, preset: str) -> tuple[str, dict[str, syntax.Expr]]:
    """The model a preset is of, and the values it sets, as expressions."""
    if preset not in module.presets:
        raise errors.UnknownPreset(name=preset, known=tuple(module.presets))
    definition = module.presets[preset]
    call = definition.value
    if not isinstance(call, syntax.Call) or not isinstance(call.function, syntax.Name):
        raise errors.BadPreset(name=preset, span=call.span)
    positional = next((a for a in call.arguments if a.name is None), None)
    if positional is not None:
        raise errors.BadPreset(name=preset, span=positional.span)
    return call.function.name, {a.name: a.value for a in call.arguments if a.name is not None}


def hyperparameters(model: syntax.ModelDef) -> dict[str, syntax.Assign]:
    """A model's assignments above its first `input`, by name."""
    found: dict[str, syntax.Assign] = {}
    for statement in model.body:
        if isinstance(statement, syntax.InputStmt):
            break
        if isinstance(statement, syntax.Assign) and statement.op == "=":
            found.update({t.name: statement for t in statement.targets})
    return found


def elaborate(module: Module, model: syntax.ModelDef, request: Request | None = None) -> Program:
    """Turn a model into a program. Raises `Diagnostics` with every mistake that was found."""
    return _ModelElaborator(module, model, request or Request()).run()


class _ModelElaborator:
    """The statements only a model has, over the common ones."""

    def __init__(self, module: Module, model: syntax.ModelDef, request: Request) -> None:
        self.model, self.request = model, request
        self.scope = GraphScope(Builder("main"))
        self.session = Session(module, Emitter(self.scope))
        self.body = Body(
            self.session,
            Frame(model.name),
            Environment(),
            WeightPlace(self.scope, ""),
            is_model=True,
        )
        self.outputs: list[tuple[str, int]] = []
        self.decode = ""
        self.hypers = hyperparameters(model)
        self.session.model_effects = {
            syntax.InputStmt: self._input,
            syntax.TimeStmt: self._time,
            syntax.DecodeStmt: self._decode,
            syntax.OutputStmt: self._output,
        }

    def run(self) -> Program:
        self._check_overrides()
        for statement in self.model.body:
            self._execute(statement)
        if self.session.errors:
            raise Diagnostics(self.session.errors)
        if not self.outputs:
            raise errors.NoOutput(name=self.model.name, span=self.model.span)
        program = Program(
            self.model.name,
            (self._main(), *self.session.functions.values()),
            tuple(self.session.emitter.bindings.items()),
            tuple(self.scope.parameters),
            tuple(self.session.emitter.constraints),
            decode=self.decode,
        )
        return program.with_functions(())

    def _check_overrides(self) -> None:
        unknown = [n for n in self.request.overrides if n not in self.hypers]
        if unknown:
            value = self.request.overrides[unknown[0]]
            span = value.span if isinstance(value, syntax.Expr) else None
            raise errors.UnknownHyperparameter(
                model=self.model.name, name=unknown[0], known=tuple(self.hypers), span=span
            )

    def _execute(self, statement: syntax.Stmt) -> None:
        if not isinstance(statement, syntax.Assign):
            statements.execute(self.body, statement)
        elif self._is_hyper(statement):
            with statements.recorded(self.body, statement):
                self._hyper(self.body, statement)
        elif statement.targets[0].name != "loss":
            statements.execute(self.body, statement)
        elif self.request.loss:
            with statements.recorded(self.body, statement):
                self._loss(self.body, statement)

    def _is_hyper(self, statement: syntax.Assign) -> bool:
        return self.hypers.get(statement.targets[0].name) is statement

    def _main(self) -> Function:
        function = self.scope.builder.finish(self.outputs)
        users = function.users()
        used = set(function.output_ids)
        nodes = tuple(
            replace(n, attrs=type(n.attrs)({**n.attrs, "optional": True}))
            if n.op == "input" and not users[n.id] and n.id not in used
            else n
            for n in function.nodes
        )
        return replace(function, nodes=nodes)

    # ------------------------------------------------------------------ hyperparameters

    def _hyper(self, body: Body, statement: syntax.Assign) -> None:
        name = statement.targets[0].name
        value = self.request.overrides.get(name, statement.value)
        if isinstance(value, syntax.Expr):
            value = expressions.evaluate(body, value)
        elif isinstance(value, int) and not isinstance(value, bool):
            value = Dim.of(value)
        if isinstance(value, Tensor):
            raise errors.RunTimeHyperparameter(name=name, span=statement.span)
        value = self._checked(statement, name, value)
        if isinstance(value, Dim):
            body.bindings[name] = int(numbers.number(value, body.bindings, statement.span))
            value = Dim.symbol(name)
        body.environment.values[name] = value

    def _checked(self, statement: syntax.Assign, name: str, value: Any) -> Any:
        """An override must be one of the listed choices, and a number where a number stood."""
        if isinstance(statement.value, syntax.Choice):
            options = [expressions.evaluate(self.body, o) for o in statement.value.options]
            if value not in options:
                raise errors.NotAChoice(
                    function=self.model.name,
                    name=name,
                    got=numbers.describe(value),
                    options=" or ".join(map(str, options)),
                    span=statement.span,
                    declared_at=statement.value.span,
                )
        is_float = isinstance(statement.value, syntax.Number) and isinstance(
            statement.value.value, float
        )
        if is_float and isinstance(value, Dim):
            return float(numbers.number(value, self.body.bindings, statement.span))
        return value

    # ---------------------------------------------------------------------------- inputs

    def _input(self, body: Body, statement: syntax.InputStmt) -> None:
        if statement.kind not in INPUT_DTYPES:
            raise errors.InputKind(
                kind=statement.kind, known=tuple(INPUT_DTYPES), span=statement.span
            )
        labels = [self._input_axis(body, d) for d in statement.brackets]
        if self._left_out(statement):
            assert statement.default is not None
            value = expressions.evaluate(body, statement.default)
            body.environment.values[statement.name] = value
            return
        axes = tuple((label, label.axis) for label in labels if label.axis is not None)
        dtype = INPUT_DTYPES[statement.kind]
        kind = TensorType(dtype, tuple(a for _, a in axes))  # type: ignore[arg-type]
        node = body.emitter.node("input", (), (kind,), **self._input_attrs(body, statement))
        value = Tensor(node, self.scope, axes, kind.dtype, len(axes), len(axes))
        body.environment.values[statement.name] = value

    def _left_out(self, statement: syntax.InputStmt) -> bool:
        given = self.request.given
        return given is not None and statement.name not in given and statement.default is not None

    def _input_axis(self, body: Body, decl: syntax.AxisDecl) -> Label:
        if decl.kind != "axis":
            raise errors.InputAxes(span=decl.span)
        known = body.frame.find(decl.name)
        if known is not None and known.axis is not None:
            return known
        home = body.environment.find(decl.name)
        if decl.size is not None:
            size = brackets.expect_size(body, decl.size)
        elif home is not None and isinstance(home.values[decl.name], Dim):
            size = home.values[decl.name]
        else:
            size = Dim.symbol(decl.name)
        at_run_time = size.substitute(body.bindings).constant is None
        axis = body.emitter.axes.get(decl.name, size, decl.name if at_run_time else None)
        return body.frame.declare(decl.name, axis, decl.span)

    def _input_attrs(self, body: Body, statement: syntax.InputStmt) -> dict[str, Any]:
        attrs: dict[str, Any] = {"name": statement.name, "kind": statement.kind}
        if statement.below is not None:
            attrs["below"] = brackets.expect_size(body, statement.below)
        if statement.extra is not None:
            extra = brackets.expect_size(body, statement.extra)
            attrs["extra"] = int(numbers.number(extra, body.bindings, statement.extra.span))
        if statement.default is not None:
            default = expressions.evaluate(body, statement.default)
            if not isinstance(default, bool | float | Dim):
                raise errors.InputDefault(name=statement.name, span=statement.default.span)
            attrs["default"] = (
                default.evaluate(body.bindings) if isinstance(default, Dim) else default
            )
            attrs["optional"] = True
        return attrs

    def _time(self, body: Body, statement: syntax.TimeStmt) -> None:
        label = body.frame.find(statement.axis)
        if label is None or label.axis is None or label.axis.time != statement.axis:
            raise errors.TimeAxis(axis=statement.axis, span=statement.span)
        timeline = self.session.timelines.setdefault(statement.axis, Timeline(label))
        for name, expr in statement.facts:
            if name not in ("valid", "position", "segment"):
                raise errors.TimeFact(name=name, span=expr.span)
            value = expressions.evaluate(body, expr)
            if isinstance(value, Tensor):
                timeline.facts[name] = value

    def _decode(self, body: Body, statement: syntax.DecodeStmt) -> None:
        label = body.frame.find(statement.axis)
        if label is None or label.axis is None or label.axis.time != statement.axis:
            raise errors.TimeAxis(axis=statement.axis, span=statement.span)
        if statement.after is not None:
            raise errors.Unsupported(what="`decode ... after`", span=statement.span)
        self.decode = label.axis.name

    # --------------------------------------------------------------------------- outputs

    def _output(self, body: Body, statement: syntax.OutputStmt) -> None:
        value = expressions.evaluate(body, statement.value)
        target = syntax.Target(
            name=statement.name, brackets=statement.brackets, span=statement.span
        )
        value = statements.bind(body, target, value, statement.span)
        if not isinstance(value, Tensor):
            raise errors.NotATensor(got=numbers.describe(value), span=statement.span)
        self._record(body, statement.name, value, statement.span)

    def _loss(self, body: Body, statement: syntax.Assign) -> None:
        value = expressions.tensor(body, statement.value)
        if value.axes:
            raise errors.LossAxes(axes=value.names, span=statement.span)
        self._record(body, "loss", value, statement.span)

    def _record(self, body: Body, name: str, value: Tensor, span: Span) -> None:
        if any(name == known for known, _ in self.outputs):
            raise errors.OutputTwice(name=name, span=span)
        if not value.ordered:
            raise errors.WriteTheAxes(name=name, axes=value.names, span=span)
        node = statements.lay_out(body, value, tuple(a for _, a in value.axes))
        body.environment.values[name] = value
        self.outputs.append((name, node))


__all__ = [
    "Request",
    "elaborate",
    "hyperparameters",
    "module_of",
    "preset_overrides",
    "the_model",
]
