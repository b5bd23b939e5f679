"""A model as a whole: hyperparameters, inputs, time, outputs; and the entry point `elaborate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any

from ...dsl import errors, syntax
from ...dsl.diagnostics import Diagnostics
from ...dsl.dims import Dim
from ...dsl.span import Span
from ..ir.graph import Axis, Builder, DType, Function, Program, TensorType
from ..ir.walk import cone
from . import brackets, builtins, calls, expressions, numbers, statements
from .body import Body, Session, Timeline, Watch, nobody
from .emit import Emitter
from .labels import Frame, Label
from .module import Module, load_module
from .scopes import GraphScope
from .values import Environment, Tensor, WeightPlace

INPUT_DTYPES: dict[str, DType] = {"ids": "int", "int": "int", "bool": "bool", "float": "float"}
# what a fact of time must be, and the constant that says nothing (any, for None)
TIME_FACTS: dict[str, tuple[DType, bool | None]] = {
    "valid": ("bool", True),
    "position": ("int", None),
    "segment": ("int", None),
}


@dataclass(slots=True)
class Request:
    """What to elaborate: hyperparameter values by name, the inputs a caller has, loss or not.

    `given` none means that every declared input becomes an input of the program, but for those whose
    default is computed; otherwise an input that is not given and has a default is replaced by it.
    `facts` keeps the inputs with a computed default inputs, given or not, unless they have the decoded
    axis: what holds for the program then holds whatever they are. `watch` is told of every value.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    given: Collection[str] | None = None
    loss: bool = False
    facts: bool = False
    watch: Watch = nobody


def module_of(file: syntax.File) -> Module:
    """The definitions of a parsed file and of the libraries it uses."""
    return load_module(file, builtins.NAMES)


def the_model(module: Module, name: str | None = None, span: Span | None = None) -> syntax.ModelDef:
    """The model called `name` (by the text at `span`), or the only one of the file."""
    if name is not None and name not in module.models:
        raise errors.UnknownModel(name=name, known=tuple(module.models), span=span)
    if name is None and len(module.models) != 1:
        source = module.file.span.source.name
        raise errors.WhichModel(file=source, known=tuple(module.models))
    return module.models[name] if name is not None else next(iter(module.models.values()))


def preset_overrides(module: Module, preset: str) -> tuple[str, dict[str, syntax.Expr]]:
    """The model a preset is of, and the values it sets, as expressions."""
    if preset not in module.presets:
        raise errors.UnknownPreset(name=preset, known=tuple(module.presets))
    call = module.presets[preset].value
    if not isinstance(call, syntax.Call) or not isinstance(call.function, syntax.Name):
        raise errors.BadPreset(name=preset, span=call.span)
    the_model(module, call.function.name, call.function.span)
    values: dict[str, syntax.Expr] = {}
    for argument in call.arguments:
        if argument.name is None or argument.axis:
            raise errors.BadPreset(name=preset, span=argument.span)
        if argument.name in values:
            raise errors.ArgumentTwice(name=argument.name, span=argument.span)
        values[argument.name] = argument.value
    return call.function.name, values


def hyperparameters(model: syntax.ModelDef) -> dict[str, syntax.Assign]:
    """A model's assignments above its first `input`, by name; it may stand in an `if`."""
    found: dict[str, syntax.Assign] = {}
    for statement in model.body:
        if any(isinstance(node, syntax.InputStmt) for node in syntax.walk(statement)):
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
        self.session = Session(module, Emitter(self.scope), watch=request.watch)
        self.body = Body(
            self.session,
            Frame(model.name),
            Environment(),
            WeightPlace(self.scope, ""),
            kind="model",
        )
        self.outputs: list[tuple[str, int]] = []
        self.declared: set[str] = set()
        self._stated: dict[tuple[str, str], Span] = {}  # facts of timelines, by axis and name
        self.decode: syntax.DecodeStmt | None = None
        self.after = ""
        self.hypers = hyperparameters(model)
        self.session.model_effects = {
            syntax.Assign: self._assign,
            syntax.InputStmt: self._input,
            syntax.TimeStmt: self._time,
            syntax.DecodeStmt: self._decode,
            syntax.OutputStmt: self._output,
        }

    def run(self) -> Program:
        self._check_overrides()
        try:
            statements.execute_all(self.body, self.model.body)
        except RecursionError:
            raise errors.TooDeep(limit=calls.MAX_DEPTH, span=self.model.span) from None
        if self.session.errors:
            raise Diagnostics(self.session.errors)
        if not any(name != "loss" for name, _ in self.outputs):
            raise errors.NoOutput(name=self.model.name, span=self.model.span)
        program = Program(
            self.model.name,
            (self._main(), *self.session.functions.values()),
            tuple(self.session.emitter.bindings.items()),
            tuple(self.scope.parameters),
            tuple(self.session.emitter.constraints),
            decode=self.decode.axis if self.decode is not None else "",
            after=self.after,
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

    def _assign(self, body: Body, statement: syntax.Assign) -> None:
        if self._is_hyper(statement):
            self._hyper(body, statement)
        elif statement.targets[0].name != "loss":
            statements.assign(body, statement)
        elif self.request.loss:
            self._loss(body, statement)

    def _is_hyper(self, statement: syntax.Assign) -> bool:
        return self.hypers.get(statement.targets[0].name) is statement

    def _main(self) -> Function:
        """The function, with every input that no output reads optional."""
        function = self.scope.builder.finish(self.outputs)
        read = cone(function, function.output_ids)
        nodes = tuple(
            replace(n, attrs=type(n.attrs)({**n.attrs, "optional": True}))
            if n.op == "input" and n.id not in read
            else n
            for n in function.nodes
        )
        return replace(function, nodes=nodes)

    # ------------------------------------------------------------------ hyperparameters

    def _hyper(self, body: Body, statement: syntax.Assign) -> None:
        if len(statement.targets) != 1 or statement.targets[0].brackets is not None:
            raise errors.HyperTarget(span=statement.span)
        name = statement.targets[0].name
        value = self._value_of(body, statement, name)
        if isinstance(value, Tensor):
            raise errors.RunTimeHyperparameter(name=name, span=statement.span)
        value = self._checked(statement, name, value)
        if isinstance(value, Dim):
            body.bindings[name] = numbers.whole(value, body.bindings, statement.span)
            value = Dim.symbol(name)
        body.session.watch(statement.targets[0], value)
        body.environment.values[name] = value

    def _value_of(self, body: Body, statement: syntax.Assign, name: str) -> Any:
        """The override if there is one. A Python caller's whole numbers are sizes like any other."""
        value = self.request.overrides.get(name, statement.value)
        if isinstance(value, syntax.Expr):
            return expressions.evaluate(body, value)
        if isinstance(value, list | tuple):
            return [self._number(v) for v in value]
        return self._number(value)

    @staticmethod
    def _number(value: Any) -> Any:
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        return Dim.of(int(value)) if is_whole else value

    def _checked(self, statement: syntax.Assign, name: str, value: Any) -> Any:
        """An override must be a number where a number stood."""
        given = self.request.overrides.get(name)
        span = given.span if isinstance(given, syntax.Expr) else statement.span
        default = statement.value.value if isinstance(statement.value, syntax.Number) else None
        if isinstance(default, float) and isinstance(value, Dim):
            return float(numbers.number(value, self.body.bindings, span))
        if isinstance(default, int) and not isinstance(value, Dim | None):
            raise errors.HyperKind(
                name=name, got=numbers.describe(value), span=span, declared_at=statement.span
            )
        return value

    # ---------------------------------------------------------------------------- inputs

    def _input(self, body: Body, statement: syntax.InputStmt) -> None:
        if statement.kind not in INPUT_DTYPES:
            raise errors.InputKind(
                kind=statement.kind, known=tuple(INPUT_DTYPES), span=statement.span
            )
        if statement.name in self.declared:
            raise errors.InputTwice(name=statement.name, span=statement.span)
        self.declared.add(statement.name)
        labels = [self._input_axis(body, d) for d in statement.brackets]
        twice = next((k for k, times in Counter(labels).items() if times > 1), None)
        if twice is not None:
            raise errors.AxisTwice(axis=twice.name, span=statement.span)
        axes = tuple((label, label.axis) for label in labels if label.axis is not None)
        kind = TensorType(INPUT_DTYPES[statement.kind], tuple(a for _, a in axes))
        default = self._default(body, statement, kind)
        attrs = self._input_attrs(body, statement, default)
        if isinstance(default, Tensor) and not self._is_input(statement):
            body.environment.values[statement.name] = self._computed(body, statement, default, axes)
            return
        if "default" in attrs and self._left_out(statement):
            node = self._constant(body, attrs["default"], kind)
        else:
            node = body.emitter.node("input", (), (kind,), **attrs)
        body.environment.values[statement.name] = Tensor(
            node, self.scope, axes, kind.dtype, len(axes), len(axes)
        )

    def _left_out(self, statement: syntax.InputStmt) -> bool:
        """Never the length of a prefix: it is an input of what runs, given or not."""
        given = self.request.given
        prefixes = {s.after for s in self._decoding}
        return given is not None and statement.name not in {*given, *prefixes}

    @cached_property
    def _decoding(self) -> list[syntax.DecodeStmt]:
        return [s for s in syntax.walk(self.model) if isinstance(s, syntax.DecodeStmt)]

    @cached_property
    def _inputs(self) -> list[syntax.InputStmt]:
        return [s for s in syntax.walk(self.model) if isinstance(s, syntax.InputStmt)]

    def _is_input(self, statement: syntax.InputStmt) -> bool:
        """Whether an input whose default is computed stays one.

        With an entry for each decoded position it is no fact of the call.
        """
        decoded = {s.axis for s in self._decoding}
        is_fact = self.request.facts and decoded.isdisjoint(d.name for d in statement.brackets)
        return is_fact or statement.name in (self.request.given or ())

    def _computed(
        self,
        body: Body,
        statement: syntax.InputStmt,
        default: Tensor,
        axes: tuple[tuple[Label, Axis], ...],
    ) -> Tensor:
        """A default computed from what stands above it, once per call, laid out as declared."""
        span = statement.default.span if statement.default is not None else statement.span
        target = syntax.Target(name=statement.name, brackets=statement.brackets, span=span)
        value = statements.bind(body, target, default, span)
        node = statements.lay_out(body, value, tuple(axis for _, axis in axes))
        return Tensor(node, self.scope, axes, value.dtype, len(axes), len(axes))

    def _constant(self, body: Body, value: bool | int | float, kind: TensorType) -> int:
        number = body.emitter.node("const", (), value=value, dtype=kind.dtype)
        if not kind.axes:
            return number
        return body.emitter.node("broadcast", (number,), axes=kind.axes)

    def _input_axis(self, body: Body, decl: syntax.AxisDecl) -> Label:
        if decl.kind != "axis":
            raise errors.InputAxes(span=decl.span)
        known = body.frame.find(decl.name)
        size = self._input_size(body, decl)
        if known is not None and known.axis is not None:
            if decl.size is not None:
                body.emitter.require_equal(
                    size, known.axis.size, decl.name, decl.span, known.declared_at
                )
            return known
        at_run_time = size.substitute(body.bindings).constant is None
        if size == Dim.symbol(decl.name) and at_run_time and decl.name in self._absent_axes:
            size = Dim.of(0)
        axis = body.new_axis(decl.name, size, decl.span, decl.name if at_run_time else None)
        return body.frame.declare(decl.name, axis, decl.span)

    def _input_size(self, body: Body, decl: syntax.AxisDecl) -> Dim:
        """What is written, the variable of that name, or a symbol that a call binds."""
        if decl.size is not None:
            return brackets.expect_size(body, decl.size)
        home = body.environment.find(decl.name)
        value = home.values[decl.name] if home is not None else None
        return value if isinstance(value, Dim) else Dim.symbol(decl.name)

    @cached_property
    def _absent_axes(self) -> set[str]:
        """Axes that only inputs have which are left out: there is nothing along them.

        An input without a default cannot be left out where something reads it.
        """
        there = [s for s in self._inputs if s.default is None or not self._left_out(s)]
        given = {d.name for s in there for d in s.brackets}
        return {d.name for s in self._inputs for d in s.brackets} - given

    def _input_attrs(
        self, body: Body, statement: syntax.InputStmt, default: Tensor | bool | int | float | None
    ) -> dict[str, Any]:
        attrs: dict[str, Any] = {"name": statement.name, "kind": statement.kind}
        if statement.below is not None:
            attrs["below"] = below = brackets.expect_size(body, statement.below)
            count = below.substitute(body.bindings).constant
            if count is not None and count < 1:
                raise errors.NoIds(name=statement.name, span=statement.below.span)
        if statement.extra is not None:
            extra = brackets.expect_size(body, statement.extra)
            attrs["extra"] = numbers.whole(extra, body.bindings, statement.extra.span)
        if isinstance(default, Tensor):
            attrs["computed"] = True
        elif default is not None:
            attrs["default"] = default
            attrs["optional"] = True
        return attrs

    @staticmethod
    def _default(
        body: Body, statement: syntax.InputStmt, kind: TensorType
    ) -> Tensor | bool | int | float | None:
        expr, dtype = statement.default, kind.dtype
        if expr is None:
            return None
        value = expressions.evaluate(body, expr)
        if isinstance(value, Tensor) and value.dtype == dtype:
            return value
        fits = {"bool": bool, "int": Dim, "float": Dim | float}[dtype]
        if not isinstance(value, fits):
            raise errors.InputDefault(name=statement.name, kind=statement.kind, span=expr.span)
        if isinstance(value, bool):
            return value
        number = numbers.number(value, body.bindings, expr.span)
        return float(number) if dtype == "float" else number

    # ------------------------------------------------------------------------------ time

    def _time(self, body: Body, statement: syntax.TimeStmt) -> None:
        label = self._time_axis(body, statement)
        timeline = self.session.timelines.setdefault(statement.axis, Timeline(label))
        for name, expr in statement.facts:
            if name not in TIME_FACTS:
                raise errors.TimeFact(name=name, span=expr.span)
            first = self._stated.setdefault((statement.axis, name), expr.span)
            if first is not expr.span:
                raise errors.DefinedTwice(name=name, span=expr.span, first=first)
            value = expressions.evaluate(body, expr)
            dtype, default = TIME_FACTS[name]
            is_tensor = isinstance(value, Tensor)
            if is_tensor and value.dtype == dtype and value.carries(label):
                if name == "position" or not self._is_constant(value, default):
                    timeline.facts[name] = value
            elif is_tensor or value is not True or name != "valid":
                raise errors.TimeFactValue(
                    name=name,
                    axis=statement.axis,
                    expected=brackets.ELEMENTS[dtype],
                    got=brackets.kind_of(value),
                    axes=value.names if is_tensor else "no axes",
                    span=expr.span,
                )

    def _is_constant(self, value: Tensor, default: bool | None) -> bool:
        """Is this an input that was left out, with a default that says nothing?"""
        node = self.scope.builder[value.node]
        if node.op != "broadcast":
            return False
        (number,) = (self.scope.builder[i] for i in node.inputs)
        return number.op == "const" and default in (None, number.attrs["value"])

    def _decode(self, body: Body, statement: syntax.DecodeStmt) -> None:
        self._time_axis(body, statement)
        first = self.decode or statement
        if (first.axis, first.after) != (statement.axis, statement.after):
            first_text, second = first.span.text, statement.span.text
            raise errors.DecodeTwice(first=first_text, second=second, span=statement.span)
        self.decode = statement
        if statement.after is not None:
            self.after = self._prefix(body, statement, statement.after)

    def _prefix(self, body: Body, statement: syntax.DecodeStmt, name: str) -> str:
        """The input that is the length of the prefix."""
        value = body.environment.values.get(name)
        node = self.scope.builder[value.node] if isinstance(value, Tensor) else None
        if node is None or not any(s.name == name for s in self._inputs):
            problem = f"no input above is called `{name}`"
        elif node.attrs.get("name") != name or node.attrs.get("computed"):
            problem = f"`{name}` is computed"
        elif node.type.dtype != "int":
            problem = f"`{name}` is {node.type}"
        elif any(axis.time == statement.axis for axis in node.axes):
            problem = f"`{name}` has an entry for each position"
        else:
            return name
        raise errors.DecodeAfter(
            axis=statement.axis, name=name, problem=problem, span=statement.span
        )

    def _time_axis(self, body: Body, statement: syntax.TimeStmt | syntax.DecodeStmt) -> Label:
        label = body.frame.find(statement.axis)
        if label is None or label.axis is None or label.axis.time != statement.axis:
            known = tuple(
                k.name for k in body.frame.labels.values() if k.axis is not None and k.axis.time
            )
            raise errors.TimeAxis(axis=statement.axis, known=known, span=statement.span)
        return label

    # --------------------------------------------------------------------------- outputs

    def _output(self, body: Body, statement: syntax.OutputStmt) -> None:
        if statement.name == "loss":
            raise errors.OutputLoss(span=statement.span)
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
            raise errors.OutputOrder(name=name, axes=value.names, span=span)
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
