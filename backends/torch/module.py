"""A function as an `nn.Module` class: its weights, tables and layers, and its forward pass.

`Module` collects what lowering the function asks for and prints the class. Attributes are named
after `.arch` paths (`attention.q.w` is `self.attention_q_w`); the class's PATHS table has them all.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from ...compiler.ir.graph import DType, Function, Node, Program
from ...dsl.dims import Dim
from ...dsl.errors import NoLowering
from ..base import span_of
from .layout import Group, Layout, Value, single
from .scope import OP_WORDS, Result, Scope, extents
from .source import Method, Statement, expression, format_node, identifier, number, statement

if TYPE_CHECKING:
    from .emit import File

# Attributes of nn.Module, and ours, that a weight must not hide.
TAKEN = frozenset(
    "T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda"
    " double dtype dump_patches eval extra_repr float forward get_buffer get_extra_state"
    " get_parameter get_submodule half ipu load_state_dict modules mtia named_buffers"
    " named_children named_modules"
    " named_parameters parameters prefix prepare register_backward_hook register_buffer"
    " register_forward_hook register_forward_pre_hook register_full_backward_hook"
    " register_full_backward_pre_hook register_load_state_dict_post_hook"
    " register_load_state_dict_pre_hook register_module register_parameter"
    " register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state"
    " set_submodule share_memory state_dict to to_empty train training type wide xpu"
    " zero_grad".split()
)
WORDS: dict[DType, str] = {
    "float": "self.dtype",
    "f32": "self.wide",
    "f64": "torch.float64",
    "int": "torch.int64",
    "i8": "torch.int8",
    "bool": "torch.bool",
}


@dataclass(frozen=True, slots=True)
class Layers:
    """How a loop over layers is written: `for variables in iterable`, all of one signature."""

    kind: str
    variables: tuple[str, ...]
    iterable: ast.expr


@dataclass(frozen=True, slots=True)
class ChunkMethod:
    """A method that runs `length` entries of a scan, along dimension `dim` of its first operand."""

    kind: str  # the class
    name: str
    dim: int
    length: int
    compiled: bool  # matrix products gain nothing by it


@dataclass(slots=True)
class Module:
    """The class made from `function`, which runs first at call path `path`."""

    file: File
    function: Function
    path: str
    name: str
    taken: set[str] = field(default_factory=lambda: set(TAKEN))
    paths: dict[str, str] = field(default_factory=dict)  # attribute -> path
    members: list[ast.stmt] = field(default_factory=list)  # of __init__
    weights: dict[str, Value] = field(default_factory=dict)  # path -> value
    states: dict[str, Value] = field(default_factory=dict)  # path -> value
    inputs: tuple[Value, ...] = ()
    names: dict[str, str] = field(default_factory=dict)  # placeholder -> parameter name
    preparation: Scope | None = None
    methods: list[list[str]] = field(default_factory=list)  # beside `forward`
    scope: Scope = field(init=False)

    def __post_init__(self) -> None:
        method = Method({"self"})
        passed = self.file.passed.get(self.function.name, ())
        self.names, self.inputs = parameters(self.function, method, passed)
        source = next(iter(self.names), "")
        past = self._state_parameters(method)
        sized = [*self.inputs, *(x for x in self.states.values() if not self._grows(x))]
        found = extents(sized, set(self.program.sizes), method, self.names.values())
        self.scope = Scope(self, self.function, method, self.inputs, source, found)
        self.scope.lengths.update(past)

    @property
    def program(self) -> Program:
        return self.file.program

    def _state_parameters(self, method: Method) -> dict[Dim, ast.expr]:
        """`past` and the states, after the other parameters.

        One that calls layers with states is given theirs too, and the place where it leaves them.
        """
        is_main = self.function.name == self.program.main_name
        past: dict[Dim, ast.expr] = {}
        if self.file.continues:
            past[Dim.symbol(self.program.past)] = self._parameter(method, "past")
        for node in self.function.states:
            held = self._parameter(method, f"{node.hint}_kept" if node.hint else "kept")
            self.states[node.attrs.string("path")] = Value(
                held, node.type.dtype, single(node.axes), finite=False
            )
        file, name = self.file, self.function.name
        if file.keeps(name) if is_main else file.passes_on(name):
            if self.file.continues:
                self.names["layer_states"] = "layer_states"
            if not is_main:
                self.names["left"] = "left"
            else:
                method.append(Statement(statement("left = {{}}")))
        return past

    def _parameter(self, method: Method, wanted: str) -> ast.Name:
        hole = method.placeholder()
        self.names[hole] = identifier(wanted, {"self", *self.names.values()}, "state")
        return ast.Name(hole)

    def _grows(self, state: Value) -> bool:
        """Whether the tensor of a state may have room beyond it."""
        past = Dim.symbol(self.program.past)
        return any(axis.size == past for axis in state.axes)

    def tapped(self, node: Node) -> bool:
        """Whether the value is stored when tracing: all are that exist in the forward pass."""
        return self.file.taps and (self.file.train or not self._is_folded(node))

    @property
    def decodes(self) -> bool:
        """Whether the program is one that leaves states or goes on from them."""
        return self.file.continues or self.file.keeps(self.program.main_name)

    def know(self, facts: Sequence[Value]) -> None:
        """Facts about parameters that every caller agrees on."""
        self.scope.inputs = tuple(
            replace(x, known=y.known, finite=y.finite)
            for x, y in zip(self.inputs, facts, strict=True)
        )

    # ---- what lowering asks for

    def word(self, dtype: DType) -> ast.expr:
        return expression(WORDS[dtype])

    def constant(self, symbol: str) -> str | None:
        return self.file.constants.get(symbol)

    def helper(self, name: str) -> ast.expr:
        self.file.helpers.add(name)
        return ast.Name(name)

    def tap(self, node: Node, value: ast.expr) -> ast.stmt:
        return statement("TAPS[self.prefix[:-1], {0}] = {1}", number(node.id), value)

    @property
    def checks(self) -> bool:
        return self.file.taps

    def check(self, scope: Scope, node: Node, index: ast.expr) -> None:
        """In a traced text, a test that the indices of a `take` are within its axis."""
        if self.checks:
            self.file.takes.append(node)
            size = scope.size(node.attrs.axis("axis"))
            serial = number(len(self.file.takes) - 1)
            scope.method.append(Statement(statement("check({0}, {1}, {2})", index, size, serial)))

    def weight(self, node: Node) -> Value:
        path = node.attrs.string("path")
        if path not in self.weights:
            groups = self.file.grouping(self.path, path, node)
            shape = [self._extent(group) for group in groups]
            attribute = self._attribute(path)
            self.paths[attribute] = path
            made = expression("torch.empty(**factory)")
            assert isinstance(made, ast.Call)
            made.args = shape or [ast.Tuple([])]
            place = self_attribute(attribute)
            if self.file.parameter(self.path, path).trained:
                member = statement("{0} = nn.Parameter({1})", place, made)
            else:
                member = statement("self.register_buffer({0}, {1})", ast.Constant(attribute), made)
            self.members.append(member)
            self.weights[path] = Value(place, "float", groups, weight=True)
        return self.weights[path]

    def _extent(self, group: Group) -> ast.expr:
        sizes = [self.scope.size(axis) for axis in group] or [number(1)]
        total = sizes[0]
        for size in sizes[1:]:
            total = ast.BinOp(total, ast.Mult(), size)
        return total

    def _attribute(self, path: str) -> str:
        name = identifier(path, self.taken)
        self.taken.add(name)
        return name

    def table(self, node: Node) -> Value:
        body = self.program.body(node)
        attribute = self._attribute(node.hint or body.name)
        made = expression("{0}()", self.file.table(body, node.axes))
        stored = self._buffer(attribute, made, node.type.dtype)
        return Value(stored, node.type.dtype, single(node.axes))

    def derived(self, scope: Scope, node: Node, operands: Sequence[Value]) -> Result:
        """Computed by `prepare` when the weights are there, or here where gradients must flow.

        Raises NoLowering: rounding has no gradient.
        """
        body = self.program.body(node)
        if self.file.train:
            if any(n.op == "quantise" for n in body.nodes):
                raise NoLowering(op="quantise with gradients", backend="torch", span=span_of(node))
            return scope.inline(body, operands, node)[0]
        if self.preparation is None:
            self.preparation = Scope(self, self.function, Method({"self"}))
        made = self.preparation.inline(body, operands, node)
        name = self._derived_name(node)
        if len(made) == 1:
            (value,) = made
            groups = value.layout if value.packed else self.file.used_as(self.function, node)
            return self._kept(value, name, groups)
        names = [f"{name}_{output}" for output in ("codes", "scales", "offsets")]
        return tuple(
            self._kept(value, name, single(kind.axes))
            for value, name, kind in zip(made, names, node.types, strict=False)
        )

    def _kept(self, value: Value, name: str, groups: Layout) -> Value:
        """A buffer for what `prepare` computes."""
        assert self.preparation is not None
        attribute = self._attribute(name)
        stored = self.preparation.arranged(value, groups)
        template = "self.register_buffer({0}, {1}, persistent=False)"
        call = statement(template, ast.Constant(attribute), stored.expr)
        self.preparation.method.append(Statement(call))
        place = self_attribute(attribute)
        return Value(place, value.dtype, groups, weight=True, packed=value.packed)

    def stored(self) -> dict[int, tuple[tuple[str, Layout], ...]]:
        """The attributes that hold a node's results, with their layouts, of weights, tables and what
        is derived of weights."""
        found = {}
        for node in self.function.nodes:
            if node.op in ("weight", "table", "derived"):
                made = self.scope.values[node.id]
                values = made if isinstance(made, tuple) else (made,)
                held = [
                    (v.expr.attr, v.layout) for v in values if isinstance(v.expr, ast.Attribute)
                ]
                if len(held) == len(values) and not any(v.packed for v in values):
                    found[node.id] = tuple(held)
        return found

    def prepares(self, scope: Scope) -> bool:
        """Whether `scope` writes what runs once, when the weights are there."""
        return self.preparation is not None and scope.method is self.preparation.method

    def _derived_name(self, node: Node) -> str:
        """After the matrices it is made of: `attention_packed` of attention's q, k and v."""
        sources = [self.function[i] for i in node.inputs if self.function[i].op == "weight"]
        matrices = [n for n in sources if len(n.axes) > 1] or sources
        paths = [n.attrs.string("path").split(".") for n in matrices]
        common = [part for part, *rest in zip(*paths, strict=False) if {part} >= set(rest)]
        packed = len(paths) > 1 or self.program.body(node).nodes[-1].op == "packed"
        alone = ["folded"] if len(node.types) == 1 else []
        return "_".join([*common, *(["packed"] if packed else alone)])

    def layers(self, node: Node, operands: Sequence[Value]) -> Layers:
        """A ModuleList with a module per iteration, a buffer per scalar that differs by layer."""
        kinds, scalars = _tuple(node, "kinds"), _tuple(node, "scalars")
        path = node.attrs.string("path")
        attribute = self._attribute(path)
        self.members.append(self.file.module_list(attribute, node))
        self.file.called(node, operands, [name_of(self.function[i]) for i in node.inputs])
        reserved = {*self.scope.method.reserved, *self.names.values()}
        singular = path.removesuffix("s") if path.endswith("s") else "layer"
        variables = [identifier(singular, {attribute, *reserved}, "layer")]
        iterables = [self_attribute(attribute)]
        kind = self.program.function(str(kinds[0]))
        sources = [kind[i] for i in kind.inputs[len(kind.inputs) - len(scalars) :]]
        for values, source in zip(scalars, sources, strict=True):
            name = identifier(source.hint, {*variables, *reserved}, "scalar")
            variables.append(name)
            iterables.append(self._scalars(f"{attribute}_{name}", values, source))
        iterable = ast.Call(ast.Name("zip"), iterables, []) if scalars else iterables[0]
        return Layers(str(kinds[0]), tuple(variables), iterable)

    def _scalars(self, wanted: str, values: object, node: Node) -> ast.expr:
        """0-d tensors of one buffer, so that a compiled layer serves all values."""
        assert isinstance(values, tuple)
        listed = ast.List([number(v) for v in values])
        made = expression("torch.tensor({0}, dtype=torch.float64)", listed)
        return self._buffer(self._attribute(wanted), made, node.type.dtype)

    def _buffer(self, attribute: str, made: ast.expr, dtype: DType) -> ast.expr:
        stored = expression("{0}.to({1})", made, self.word(dtype))
        template = "self.register_buffer({0}, {1}, persistent=False)"
        self.members.append(statement(template, ast.Constant(attribute), stored))
        return self_attribute(attribute)

    # ---- text

    def finish(self, results: ast.expr) -> None:
        """Ends the forward pass with what it returns."""
        self.scope.method.append(Statement(ast.Return(results)))

    def render(self, doc: str) -> list[str]:
        return [
            f"class {self.name}(nn.Module):",
            f'    """{doc}"""',
            "",
            *self._paths(),
            '    def __init__(self, prefix="", dtype=torch.float32, device=None):',
            "        super().__init__()",
            "        self.prefix, self.dtype = prefix, dtype",
            "        self.wide = torch.promote_types(dtype, torch.float32)",
            *(['        factory = {"dtype": dtype, "device": device}'] if self.weights else []),
            *(line for member in self.members for line in format_node(member, 8)),
            "",
            *self._prepare(),
            *self._method("forward", self.scope, self.names),
            *(line for method in self.methods for line in ("", *method)),
        ]

    def chunk_method(self, body: Function, dim: int, length: int, *, compiled: bool) -> str:
        """The name of a method that runs the body of a chunked scan; it returns a tuple."""
        stem, method = body.outputs[-1][0].removeprefix("last."), Method({"self"})
        attribute = self._attribute(f"{stem}_chunk")
        names, inputs = parameters(body, method, ())
        sizes = extents(inputs, set(self.program.sizes), method, names.values())
        scope = Scope(self, body, method, inputs, next(iter(names)), sizes, in_chunk=True)
        for each in body.nodes:
            scope.lower(each)
        results = [scope.full(scope.value(i), body[i].axes).expr for i in body.output_ids]
        method.append(Statement(ast.Return(ast.Tuple(results))))
        self.methods.append(self._method(attribute, scope, names))
        self.file.chunks.append(ChunkMethod(self.name, attribute, dim, length, compiled))
        return attribute

    def _method(self, name: str, scope: Scope, names: dict[str, str]) -> list[str]:
        body = [*_sizes(scope, names), *scope.method.render(8, names)]
        return [f"    def {name}({', '.join(['self', *names.values()])}):", *body[not body[0] :]]

    def _paths(self) -> list[str]:
        if not self.paths:
            return ["    PATHS = {}", ""]
        rows = [f'        "{attribute}": "{path}",' for attribute, path in self.paths.items()]
        return ["    PATHS = {", *rows, "    }", ""]

    def _prepare(self) -> list[str]:
        """The derived parameters, and the end of weights that only they read."""
        if self.preparation is None:
            return []
        lines = self.preparation.method.render(8)
        return [
            "    @torch.no_grad()",
            "    def prepare(self):",
            '        """Computes what depends on weights alone, drops weights read only here."""',
            *lines[not lines[0] :],
            *self._dropped(),
            "",
        ]

    def _is_folded(self, node: Node) -> bool:
        """Whether a weight is read by derived parameters alone."""
        readers = {n.op for n in self.function.nodes if node.id in n.inputs}
        return node.op == "weight" and readers == {"derived"}

    def _dropped(self) -> list[str]:
        """Lines that delete the weights which only derived parameters read."""
        weights = [n for n in self.function.nodes if n.op == "weight"]
        kept = {n.attrs.string("path") for n in weights if not self._is_folded(n)}
        names = [attribute for attribute, path in self.paths.items() if path not in kept]
        listed = ast.Tuple([ast.Constant(name) for name in names])
        loop = statement("for name in {0}: delattr(self, name)", listed)
        return format_node(loop, 8) if names else []


def _sizes(scope: Scope, names: dict[str, str]) -> list[str]:
    """`b, s = tokens.shape` for the run-time sizes that the text mentions."""
    lines = []
    for source in dict.fromkeys(extent.source for extent in scope.used.values()):
        found = sorted((e for e in scope.used.values() if e.source == source), key=lambda e: e.dim)
        name = names[source]
        if len(found) == found[0].rank > 1:
            lines.append(f"        {', '.join(e.name for e in found)} = {name}.shape")
        else:
            lines += [f"        {e.name} = {name}.shape[{e.dim}]" for e in found]
    return lines


def self_attribute(name: str) -> ast.expr:
    return ast.Attribute(ast.Name("self"), name)


def _tuple(node: Node, name: str) -> tuple[object, ...]:
    value = node.attrs[name]
    assert isinstance(value, tuple)
    return value


def name_of(node: Node) -> str:
    """What the text calls a value; an input of the model has its own name."""
    given = node.attrs.get("name") if node.op == "input" and "kind" in node.attrs else None
    return str(given or node.hint or OP_WORDS.get(node.op, ""))


def parameters(
    function: Function, method: Method, passed: Sequence[str]
) -> tuple[dict[str, str], tuple[Value, ...]]:
    """Placeholder -> name of each parameter, and their values. `passed` are the caller's names."""
    names: dict[str, str] = {}
    values = []
    for node, outer in zip_longest((function[i] for i in function.inputs), passed, fillvalue=""):
        assert isinstance(node, Node)
        hole = method.placeholder()
        wanted = name_of(node) or str(outer)
        fallback = "value" if node.axes else "scalar"
        names[hole] = identifier(wanted, {"self", *names.values()}, fallback)
        layout = single(node.axes)
        values.append(Value(ast.Name(hole), node.type.dtype, layout, finite=False))
    return names, tuple(values)
