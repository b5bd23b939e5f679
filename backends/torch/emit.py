"""`model.py`: a program as standalone PyTorch.

One class per layer kind and one for the model, tables as functions, sizes as constants at the top.
A kind's class is written after all its callers, so that it knows what they agree on about what they
pass (that a mask is causal, that positions are slots).
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import ClassVar

from ...compiler.ir.graph import (
    STATE,
    Axis,
    DType,
    Function,
    Node,
    Parameter,
    Program,
    callees,
)
from ...compiler.ir.walk import calls, join
from ...dsl.diagnostics import InternalError
from ..numpy.prepared import symbols
from . import contraction, layers, lowering, quantised, scans
from .layout import Group, Layout, Value, flat, single
from .module import ChunkMethod, Module
from .scope import Scope
from .source import Method, Statement, expression, identifier, number, plain, statement

__all__ = ["contraction", "emit_model", "layers", "lowering", "quantised", "scans"]


def _sections(text: str) -> dict[str, str]:
    """By the name that a line such as `# ---- name` gives them."""
    _, *parts = re.split(r"^# -+ (\w+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))


HELPERS = _sections(Path(__file__).with_name("helpers.py").read_text(encoding="utf-8"))
# What a helper's own text is written with.
BELOW = {
    "grouped_linear": ("OPS",),
    "linear": ("OPS", "few_rows", "packed_linear"),
    "packed_linear": ("OPS",),
    "quantise": ("few_rows",),
    "dequantise": ("few_rows",),
    "quantised_linear": ("OPS", "few_rows", "linear", "packed_linear"),
}
# Every name that a helper defines.
GLOBALS = frozenset(
    re.findall(r"^(?:def )?([A-Za-z]\w*)(?:\(| = )", "\n".join(HELPERS.values()), re.MULTILINE)
)
PREFILL = """
The model is given the first rows of a sequence. Beside its outputs it returns what another program,
the chunk, goes on from: a dictionary in which a module's `prefix` leads to the list of its states.
The states of each class, in their order:
"""
STATELESS = """
The model goes on from the first `past` rows of a sequence and is given the rows that follow, then
`past`. It keeps nothing of earlier rows.
"""
CHUNK = """
The model goes on from the first `past` rows of a sequence and is given the rows that follow. It takes
its own states and, as `layer_states`, those of each layer: a dictionary in which a module's `prefix`
leads to the list of its states. One with an axis `{past}` is a buffer with room for more along that
axis: the new rows are written behind the first `past`. The others are returned, by prefix too, as
they are after the new rows. The states of each class, in their order:
"""


def emit_model(
    program: Program,
    *,
    train: bool = False,
    taps: bool = False,
    compile: bool = False,
    source: str = "",
    preset: str = "",
) -> Emitted:
    """The text of `model.py`, and its class for each function.

    With `train` derived parameters are recomputed in the forward pass, so gradients reach the
    weights; with `taps` every value of the program is stored in TAPS[call path, node id]. With
    `compile` the chunks of scans are methods, which can be compiled by themselves.
    """
    file = File(program, train, taps, compile)
    text = file.render(source, preset)
    return Emitted(text, file.classes, tuple(file.takes), tuple(file.chunks), file.stored)


Stored = dict[int, tuple[tuple[str, Layout], ...]]


@dataclass(frozen=True, slots=True)
class Emitted:
    """A file's text, class names by function, the `take` nodes that a traced text checks, the methods
    that a loader compiles by themselves, and as what modules store weights, tables and what is derived
    of them: attributes and layouts, by function and node."""

    text: str
    classes: dict[str, str]
    takes: tuple[Node, ...]
    chunks: tuple[ChunkMethod, ...] = ()
    stored: dict[str, Stored] = field(default_factory=dict)


@dataclass(slots=True)
class File:
    """The file being written."""

    program: Program
    train: bool
    taps: bool
    compile: bool = False
    parameters: dict[str, Parameter] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    helpers: set[str] = field(default_factory=set)
    tables: dict[str, tuple[str, list[str]]] = field(default_factory=dict)  # body: name, lines
    classes: dict[str, str] = field(default_factory=dict)  # function: class name
    facts: dict[str, list[Sequence[Value]]] = field(default_factory=dict)  # of each call
    takes: list[Node] = field(default_factory=list)
    chunks: list[ChunkMethod] = field(default_factory=list)
    passed: dict[str, Sequence[str]] = field(default_factory=dict)  # names, of the first call
    stored: dict[str, Stored] = field(default_factory=dict)  # by function
    taken: set[str] = field(default_factory=lambda: {"Model", *GLOBALS})

    def __post_init__(self) -> None:
        self.parameters.update((p.path, p) for p in self.program.parameters)
        for symbol, _ in self.program.bindings:
            self.constants[symbol] = self._global(symbol.upper(), "N")
        for function in self._functions():
            words = re.split(r"\W+|_", function.name)
            name = "".join(word[:1].upper() + word[1:] for word in words)
            self.classes[function.name] = self._global(name, "Layer")
        self.classes[self.program.main_name] = "Model"

    def _global(self, wanted: str, fallback: str) -> str:
        name = identifier(wanted, self.taken, fallback)
        self.taken.add(name)
        return name

    def _functions(self) -> list[Function]:
        """Main and the layer kinds, each after all its callers."""
        order: dict[str, None] = {}

        def visit(name: str) -> None:
            for node in reversed(self.program.function(name).nodes):
                if node.op == "repeat":
                    for kind in reversed(callees(node)):
                        if kind not in order:
                            visit(kind)
            order[name] = None

        visit(self.program.main_name)
        return [self.program.function(name) for name in reversed(order)]

    def keeps(self, name: str) -> bool:
        """Whether a function leaves states, or one that it calls."""
        function = self.program.function(name)
        return bool(function.left) or any(map(self.keeps, inside(function)))

    def returns_states(self, name: str) -> bool:
        """Whether a layer's results end in its states: also where only others of its loop have some."""
        return any(map(self.keeps, beside(self.program, name)))

    def passes_on(self, name: str) -> bool:
        """Whether a layer is given all states, for layers inside it or inside others of its loop."""
        functions = map(self.program.function, beside(self.program, name))
        return any(map(self.keeps, (kind for f in functions for kind in inside(f))))

    @property
    def continues(self) -> bool:
        """Whether the program is given `past`."""
        return continues(self.program)

    # ---- what modules ask for

    def grouping(self, path: str, relative: str, node: Node) -> Layout:
        """The stored dimensions of a weight, in the axes its node has for them."""
        axes = iter(node.axes)
        groups = self.parameter(path, relative).grouping
        return tuple(tuple(next(axes) for _ in group) for group in groups)

    def parameter(self, path: str, relative: str) -> Parameter:
        """The weight that `relative` names at the call path `path`."""
        return self.parameters[join(path, relative)]

    def used_as(self, function: Function, node: Node) -> Layout:
        """A derived weight's stored dimensions: the matrix that the first dot with it wants."""
        summed = _summed(self.program, function, node.id)
        outer = tuple(axis for axis in node.axes if axis not in summed)
        inner = tuple(axis for axis in node.axes if axis in summed)
        matrix = (outer, inner) if node.axes == (*outer, *inner) else (inner, outer)
        return matrix if outer and inner and flat(matrix) == node.axes else single(node.axes)

    def table(self, body: Function, axes: Sequence[Axis]) -> ast.expr:
        """The name of the function that computes a table in float64."""
        if body.name not in self.tables:
            name = self._global(body.name, "table")
            self.tables[body.name] = (name, [])
            self.tables[body.name] = (name, Table(self, body).render(name, axes))
        return ast.Name(self.tables[body.name][0])

    def called(self, node: Node, operands: Sequence[Value], names: Sequence[str]) -> None:
        """Notes what a call knows of the values it passes, and their names. Carried ones change."""
        carried = int(str(node.attrs.get("carried", len(node.types))))
        for kind in callees(node):
            inputs = self.program.function(kind).inputs
            unknown = Value(number(0), "float", finite=False)
            facts = [unknown] * carried + list(operands[carried:])
            facts += [replace(unknown, finite=True)] * (len(inputs) - len(facts))
            self.facts.setdefault(kind, []).append(facts)
            self.passed.setdefault(kind, names)

    def module_list(self, attribute: str, node: Node) -> ast.stmt:
        path, indices, kinds = (node.attrs[name] for name in ("path", "indices", "kinds"))
        assert isinstance(indices, tuple)
        assert isinstance(kinds, tuple)
        if not re.fullmatch(r"[\w.\[\]]+", str(path)):
            raise InternalError(f"not a path: {path!r}")
        prefix = ast.Name(f'f"{{prefix}}{path}[{{i}}]."')
        names = [ast.Name(self.classes[str(kind)]) for kind in kinds]
        in_order = indices == tuple(range(len(indices)))
        numbers: ast.expr = ast.Tuple([number(int(str(i))) for i in indices])
        if in_order:
            numbers = expression("range({0})", number(len(indices)))
        if len(set(kinds)) == 1:
            template = "{0} = nn.ModuleList([{1}({2}, dtype, device) for i in {3}])"
            return statement(template, self_(attribute), names[0], prefix, numbers)
        template = "{0} = nn.ModuleList([kind({1}, dtype, device) for i, kind in {2}])"
        pairs = expression("zip({0}, {1})", numbers, ast.Tuple([*names]))
        return statement(template, self_(attribute), prefix, pairs)

    # ---- text

    def render(self, source: str, preset: str) -> str:
        first = {f.name: path for path, f in reversed(list(calls(self.program)))}
        classes = [self._class(function, first[function.name]) for function in self._functions()]
        below = {part for name in self.helpers & BELOW.keys() for part in BELOW[name]}
        blocks = [
            self._head(source, preset),
            *(HELPERS[name].split("\n") for name in sorted(self.helpers | below)),
            *([HELPERS["check"].split("\n")] if self.takes else []),
            *(lines for _, lines in self.tables.values()),
            *reversed(classes),
            HELPERS["weights"].split("\n"),
        ]
        return "\n\n\n".join("\n".join(lines).rstrip() for lines in blocks) + "\n"

    def _class(self, function: Function, path: str) -> list[str]:
        module = Module(self, function, path, self.classes[function.name])
        if function.name in self.facts:
            module.know(_agreed(self.facts[function.name]))
        scope = module.scope
        scope.lower_all()
        self.stored[function.name] = module.stored()
        named = [(name, i) for name, i in function.outputs if not name.startswith(STATE)]
        values = [scope.full(scope.value(i), function[i].axes).expr for _, i in named]
        states = [scope.full(scope.value(i), function[i].axes).expr for _, i in left(function)]
        if function.name == self.program.main_name:
            names = ", ".join(name for name, _ in named)
            results: ast.expr = ast.Dict([ast.Constant(name) for name, _ in named], values)
            if self.keeps(function.name):
                leave = statement("left[self.prefix] = {0}", ast.List(states))
                scope.method.append(Statement(leave))
                results, names = ast.Tuple([results, ast.Name("left")]), f"{names}; states"
            module.finish(results)
            return module.render(f"The model. Returns {names}.")
        values += states
        alone = len(values) == 1 and not self.returns_states(function.name)
        module.finish(values[0] if alone else ast.Tuple(values))
        return module.render(f"Layers `{plain(re.sub(r'[0-9]+]$', 'i]', path))}`.")

    def _head(self, source: str, preset: str) -> list[str]:
        names = zip(self.constants.values(), self.program.bindings, strict=True)
        sizes = [f"{name} = {value}" for name, (_, value) in names]
        taps = ["", "TAPS = {}  # (call path, node of the program): its value in the last run"]
        return [
            *self._docstring(source or self._source(), preset),
            "",
            *(["from functools import cache", ""] if self.tables else []),
            "import torch",
            "import torch.nn.functional as F",
            "from torch import nn",
            *(["", *sizes] if sizes else []),
            *(taps if self.taps else []),
        ]

    def _docstring(self, source: str, preset: str) -> list[str]:
        name = f"{self.program.name}, preset {preset}" if preset else self.program.name
        title = f"{name}, from {source}" if source else name
        lines = [
            f'"""{plain(title)}.',
            "",
            "Written by archc. Weights are stored as matrices and named after the file's paths:",
            "each class's PATHS maps its attributes to them, `weights(model)` lists them all.",
        ]
        if self._derives():
            lines.append("After loading weights, call `prepare()` on every module that has it.")
        return [*lines, *self._about_states(), '"""']

    def _about_states(self) -> list[str]:
        """How a program is called that leaves states, or goes on from them."""
        left_by = self._listed(lambda f: [(path, f[i].axes) for path, i in left(f)])
        if not self.continues:
            return ["", *PREFILL.strip().split("\n"), *left_by] if left_by else []
        given = self._listed(lambda f: [(n.attrs.string("path"), n.axes) for n in f.states])
        past = self.program.past
        if not given:
            return ["", *STATELESS.strip().split("\n")]
        lines = ["", *CHUNK.format(past=past).strip().split("\n"), *given]
        return [*lines, "Those returned, in their order:", *left_by] if left_by else lines

    def _listed(self, states: Callable[[Function], list[tuple[str, Sequence[Axis]]]]) -> list[str]:
        """A paragraph for each class that has states."""
        lines = []
        for function in self._functions():
            words = [f"{path} [{', '.join(map(str, axes))}]" for path, axes in states(function)]
            text = f"{self.classes[function.name]}: {', '.join(words)}"
            wrapped = textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent="    ")
            lines += wrapped if words else []
        return lines

    def _derives(self) -> bool:
        nodes = (node for function in self._functions() for node in function.nodes)
        return not self.train and any(node.op == "derived" for node in nodes)

    def _source(self) -> str:
        """The file that the outputs' text stands in."""
        main = self.program.main
        origins = [o for i in main.output_ids for o in main[i].origins if o.spans]
        return PurePath(origins[0].spans[-1].source.name).name if origins else ""


def inside(function: Function) -> list[str]:
    """The kinds of the layers that a function calls."""
    return [kind for node in function.nodes if node.op == "repeat" for kind in callees(node)]


def beside(program: Program, name: str) -> set[str]:
    """The kinds that share a loop with a layer, its own among them."""
    nodes = (node for function in program.functions for node in function.nodes)
    loops = (set(callees(node)) for node in nodes if node.op == "repeat")
    return set().union(*(kinds for kinds in loops if name in kinds))


def continues(program: Program) -> bool:
    """Whether a program goes on from states, or counts its slots from where another stopped."""
    if any(function.states for function in program.functions):
        return True
    return any(program.past in symbols(program, node) for node in program.main.nodes)


def left(function: Function) -> list[tuple[str, int]]:
    """The states that a function returns: of those that grow the rows were written where they are."""
    return [(path, i) for path, i in function.left if function[i].op != "append"]


def without_blank(lines: list[str]) -> list[str]:
    """The lines of a body without an empty one in front."""
    return lines[1:] if lines[:1] == [""] else lines


def self_(attribute: str) -> ast.expr:
    return ast.Attribute(ast.Name("self"), attribute)


def _agreed(calls: Iterable[Sequence[Value]]) -> list[Value]:
    """What all calls know about each operand."""
    return [
        replace(
            values[0],
            finite=all(v.finite for v in values),
            known=values[0].known if len({v.known for v in values}) == 1 else (),
        )
        for values in zip(*calls, strict=True)
    ]


def _summed(program: Program, function: Function, node_id: int) -> Group:
    """The axes that the first dot reading a value sums, be it inside a fused node."""
    for node in function.nodes:
        if node_id not in node.inputs:
            continue
        if node.op == "dot":
            return node.attrs.axes("axes")
        if node.op in ("linear", "pointwise", "attend"):
            body = program.body(node)
            found = _summed(program, body, body.inputs[node.inputs.index(node_id)])
            if found:
                return found
    return ()


@dataclass(slots=True)
class Table:
    """A table's function: no parameters, everything in float64."""

    file: File
    body: Function

    @property
    def program(self) -> Program:
        return self.file.program

    checks: ClassVar[bool] = False

    def tapped(self, node: Node) -> bool:
        return False

    def check(self, scope: Scope, node: Node, index: ast.expr) -> None:
        """Tables are computed once, when a model is made."""

    def word(self, dtype: DType) -> ast.expr:
        kinds = {"int": "torch.int64", "bool": "torch.bool"}
        return expression(kinds.get(dtype, "torch.float64"))

    def constant(self, symbol: str) -> str | None:
        return self.file.constants.get(symbol)

    def helper(self, name: str) -> ast.expr:
        self.file.helpers.add(name)
        return ast.Name(name)

    def table(self, node: Node) -> Value:
        made = expression("{0}()", self.file.table(self.program.body(node), node.axes))
        return Value(made, node.type.dtype, single(node.axes))

    def render(self, name: str, axes: Sequence[Axis]) -> list[str]:
        scope = Scope(self, self.body, Method())  # type: ignore[arg-type]
        scope.lower_all()
        value = scope.full(scope.value(self.body.output_ids[0]), axes)
        scope.method.append(Statement(ast.Return(value.expr)))
        doc = f'    """`{plain(self.body.name)}`, computed once in float64."""'
        return ["@cache", f"def {name}():", doc, *without_blank(scope.method.render(4))]
