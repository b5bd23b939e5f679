"""A scan: a loop over its steps, the body written out in it, a list for each sequence it leaves.

A chunked scan is a loop over chunks: its body sees slices of the sequences, and what it leaves is
joined. A loop that is no more than h' = D h + c is a call of `affine_steps`, which stores the states
in one buffer.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace

from ...compiler.ir.graph import Axis, Builder, Function, Node, Program, TensorType
from ...dsl.dims import Dim
from .layers import initial
from .layout import Value, aligned, along, signed, single, ungrouped
from .lowering import lowers
from .scope import Result, Scope
from .source import Method, Statement, expression, inlined, number, statement


@lowers("scan", "chunked_scan")
def scan(scope: Scope, node: Node, *operands: Value) -> Result:
    """Sequences that nothing reads are left out."""
    axis, body = node.attrs.axis("axis"), scope.module.program.body(node)
    if scope.module.file.compile and not scope.in_chunk and node.attrs.integer("stepped"):
        return _by_method(scope, node, body, operands)
    affine = _affine_steps(scope, node, body, operands)
    if affine is not None:
        return affine
    first, count = node.attrs.integer("stepped"), node.attrs.integer("states")
    sources = [_source(scope, node, x, axis) for x in operands[:first]]
    entering = [body[i] for i in body.inputs[first : first + count]]
    states = [
        initial(scope, node, scope.full(x, i.axes), i.hint)
        for x, i in zip(operands[first : first + count], entering, strict=True)
    ]
    held = [_held(name, i) for name, i in zip(states, entering, strict=True)]
    kind = _Chunks if node.op == "chunked_scan" else _Steps
    loop = kind(scope, node, body, sources, [*held, *operands[first + count :]])
    lists = loop.fill(states, scope.function.read_results(node))
    made = [loop.joined(lists[i], i) if i in lists else _unread(i, node) for i in loop.rows]
    return (*made, *held)


def _affine_steps(
    scope: Scope, node: Node, body: Function, operands: Sequence[Value]
) -> Result | None:
    """The states of a loop h' = D h + c that keeps nothing else, without a list of them.

    None where the loop is another one, or its text is one to differentiate or to compile.
    """
    file, axis = scope.module.file, node.attrs.axis("axis")
    if file.train or file.compile or node.op != "scan" or node.attrs["reverse"]:
        return None
    first, update = node.attrs.integer("stepped"), body.output_ids[-1]
    entering = body[body.inputs[first]]
    found = _factor_and_offset(scope.module.program, body, update, entering.id)
    rows = body.output_ids[:-1]
    if node.attrs.integer("states") != 1 or found is None or {*rows} - {entering.id, update}:
        return None
    given = dict(zip(body.inputs, operands, strict=True))
    layout = single((axis, *entering.axes))
    if not any(axis in given[i].axes for i in found):
        return None
    named = (scope.tensor(scope.converted(given[i], entering.type.dtype)) for i in found)
    exprs = [aligned(x, layout, scope.size) for x in named]
    start = scope.full(given[entering.id], entering.axes).expr
    call = expression("{0}({1}, {2}, {3})", scope.module.helper("affine_steps"), *exprs, start)
    hint = f"{entering.hint or 'state'}_steps"
    states = Value(scope.assign(call, node, hint=hint), entering.type.dtype, layout, finite=False)
    parts = {entering.id: "{0}[:-1]", update: "{0}[1:]"}
    made = [replace(states, expr=expression(parts[i], states.expr)) for i in rows]
    last = replace(states, expr=expression("{0}[-1]", states.expr), layout=layout[1:])
    return (*made, last)


def _factor_and_offset(
    program: Program, body: Function, update: int, state: int
) -> tuple[int, int] | None:
    """(D, c), both inputs of `body`, where its value `update` is D h + c; else None."""
    node, inside, names = body[update], body, {i: i for i in body.inputs}
    if node.op == "pointwise" and len(node.types) == 1:
        inside = program.body(node)
        names = dict(zip(inside.inputs, node.inputs, strict=True))
        node = inside[inside.output_ids[0]]
    if node.op != "add":
        return None
    for product, offset in (node.inputs, node.inputs[::-1]):
        if inside[product].op == "mul":
            for factor, held in (inside[product].inputs, inside[product].inputs[::-1]):
                found = names.get(factor), names.get(offset)
                if names.get(held) == state and {*found} <= {*body.inputs} - {state}:
                    return found  # type: ignore[return-value]
    return None


LENGTH = 16  # steps that are compiled together


def _by_method(scope: Scope, node: Node, body: Function, operands: Sequence[Value]) -> Result:
    """A call of `in_chunks`, which the loader keeps out of what it compiles."""
    module, axis = scope.module, node.attrs.axis("axis")
    first, count = node.attrs.integer("stepped"), node.attrs.integer("states")
    read = sorted(scope.function.read_results(node) & set(range(len(node.types) - count)))
    is_loop = node.op == "scan"
    length = LENGTH if is_loop else node.attrs.integer("length")
    if is_loop:
        body = _steps(scope.function, node, body, read)
    dims = [scope.function[i].type.position(axis) for i in node.inputs[:first]]
    name = module.chunk_method(body, dims[0], length, compiled=is_loop)
    given = [
        scope.full(x, scope.function[i].axes).expr
        for x, i in zip(operands, node.inputs, strict=True)
    ]
    sequences = [ast.Tuple([x, number(d)]) for x, d in zip(given, dims, strict=False)]
    kinds = [node.types[i] for i in read] + list(node.types[-count:])
    call = expression(
        "{0}({1}, {2}, {3}, {4}, {5}, {6}, {7})",
        module.helper("in_chunks"),
        ast.Attribute(ast.Name("self"), name),
        number(length),
        ast.Constant(bool(node.attrs["reverse"])),
        ast.List([*sequences]),
        ast.List([number(node.types[i].position(axis)) for i in read]),
        ast.List(given[first : first + count]),
        ast.List(given[first + count :]),
    )
    hints = [output for output, _ in body.outputs]
    made = [
        Value(target, kind.dtype, single(kind.axes), finite=False)
        for target, kind in zip(scope.assign_all(call, node, hints), kinds, strict=True)
    ]
    places = [*read, *range(len(node.types) - count, len(node.types))]
    found = dict(zip(places, made, strict=True))
    return tuple(found.get(i) or _unread(i, node) for i in range(len(node.types)))


def _steps(function: Function, node: Node, body: Function, read: Sequence[int]) -> Function:
    """The function of a chunk whose steps run one after another: the scan itself, but shorter."""
    axis, count = node.attrs.axis("axis"), node.attrs.integer("states")
    chunk = Axis(f"{axis.name}.chunk", Dim.symbol(f"{axis.name}.chunk"))

    def here(kind: TensorType) -> TensorType:
        return TensorType(kind.dtype, tuple(chunk if a == axis else a for a in kind.axes))

    made = Builder(f"{body.name}.chunk")
    inputs = []
    for i, (source, inner) in enumerate(zip(node.inputs, body.inputs, strict=True)):
        kind = (
            here(function[source].type) if i < node.attrs.integer("stepped") else body[inner].type
        )
        hint = body[inner].hint or function[source].hint
        inputs.append(made.add("input", (), {"name": hint}, (kind,), hint=hint))
    types = tuple(map(here, node.types))
    scan = made.add("scan", tuple(inputs), {**node.attrs, "axis": chunk}, types, node.origins)
    places = [*read, *range(len(types) - count, len(types))]
    names = [name for name, _ in body.outputs]
    outputs = [
        (names[i], made.add("result", (scan,), {"index": i}, (types[i],), node.origins))
        for i in places
    ]
    return made.finish(outputs)


def _source(scope: Scope, node: Node, x: Value, axis: Axis) -> Value:
    """What is read at each step, with a name and a dimension for the scanned axis."""
    if axis not in x.axes:
        return x
    return scope.bound(ungrouped(x, (axis,), scope.size), node)


def _held(name: str, entering: Node) -> Value:
    layout = single(entering.axes)
    return Value(ast.Name(name), entering.type.dtype, layout, finite=False)


def _unread(index: int, node: Node) -> Value:
    return Value(number(0), node.types[index].dtype, literal=True)


class _Steps:
    """The statements of one step, written into a method of their own and put into a `for`."""

    rest = "steps"  # of the name of a list
    join = "stack"

    def __init__(
        self,
        scope: Scope,
        node: Node,
        body: Function,
        sources: Sequence[Value],
        others: Sequence[Value],
    ) -> None:
        self.scope, self.node, self.body = scope, node, body
        self.axis = node.attrs.axis("axis")
        self.rows = range(len(body.outputs) - node.attrs.integer("states"))
        self.counter = scope.method.placeholder()
        self.method = Method(scope.method.reserved, count=scope.method.count)
        lengths = self.begin()
        operands = [*map(self.entry, sources), *others]
        # without a caller: what is cut off from an operand in the loop is not there outside it
        self.inner = replace(
            scope.inside(body, operands, node), method=self.method, caller=None, lengths=lengths
        )
        for each in body.nodes:
            self.inner.lower(each)
        scope.method.count = self.method.count

    def begin(self) -> dict[Dim, ast.expr]:
        """Statements before those of the body; the lengths that it knows."""
        return self.scope.lengths

    def entry(self, x: Value) -> Value:
        """What the body sees of a sequence."""
        if self.axis not in x.axes:
            return x
        layout = tuple(group for group in x.layout if group != (self.axis,))
        step = ast.Name(self.counter)
        return replace(x, expr=along(x, self.axis, step), layout=layout, known=())

    def fill(self, states: Sequence[str], read: set[int]) -> dict[int, str]:
        """Writes the loop; gives the lists of the sequences in `read`."""
        outer, inner = self.scope.method, self.method
        lists = {i: outer.placeholder() for i in self.rows if i in read}
        inner.count = outer.count
        for i, name in lists.items():
            hint = f"{self.body.outputs[i][0]}_{self.rest}"
            empty = ast.Assign([ast.Name(name)], ast.List([]), lineno=0)
            outer.append(Statement(empty, (name,), (hint,)))
            append = statement("{0}.append({1})", ast.Name(name), self.value(i))
            inner.append(Statement(append))
        updates = [self.value(i) for i in range(len(self.rows), len(self.body.outputs))]
        inner.append(
            Statement(ast.Assign([_several(map(ast.Name, states))], _several(updates), lineno=0))
        )
        outer.append(self.loop(inlined(inner.statements)))
        outer.count = inner.count
        return lists

    def value(self, output: int) -> ast.expr:
        node_id = self.body.output_ids[output]
        return self.inner.full(self.inner.value(node_id), self.body[node_id].axes).expr

    def loop(self, statements: Sequence[Statement]) -> Statement:
        """The names that a step assigns are the loop's."""
        counts = self.counts()
        if self.node.attrs["reverse"]:
            counts = expression("reversed({0})", counts)
        body = [s.node for s in statements]
        loop = ast.For(ast.Name(self.counter), counts, body, [], lineno=0)
        targets = [self.counter, *(t for s in statements for t in s.targets)]
        hints = [self.hint, *(h for s in statements for h in s.hints)]
        return Statement(loop, tuple(targets), tuple(hints))

    hint = "step"

    def counts(self) -> ast.expr:
        return expression("range({0})", self.scope.size(self.axis))

    def joined(self, name: str, output: int) -> Value:
        """A sequence in the order of its axis."""
        kind = self.node.types[output]
        dim = number(signed(kind.position(self.axis), len(kind.axes)))
        parts: ast.expr = ast.Name(name)
        if self.node.attrs["reverse"]:
            parts = expression("{0}[::-1]", parts)
        made = expression(f"torch.{self.join}({{0}}, {{1}})", parts, dim)
        if not self.axis.size.constant and self.axis.size not in self.scope.lengths:
            words = {"dtype": self.scope.word(kind.dtype), "device": self.scope.device()}
            helper = self.scope.module.helper(self.join)  # there may be no step
            made = expression(
                "{0}({1}, {2}, dtype={dtype}, device={device})", helper, parts, dim, **words
            )
            assert isinstance(made, ast.Call)
            made.args += [self.scope.size(a) for a in kind.axes]
        return Value(made, kind.dtype, single(kind.axes), finite=False)


class _Chunks(_Steps):
    """The statements of one chunk."""

    rest = "chunks"
    join = "cat"
    hint = "start"

    def begin(self) -> dict[Dim, ast.expr]:
        start, size = ast.Name(self.counter), self.scope.size(self.axis)
        length = number(self.node.attrs.integer("length"))
        self.stop = self._assigned("stop", expression("min({0} + {1}, {2})", start, length, size))
        here = self._assigned("length", expression("{0} - {1}", self.stop, start))
        return {**self.scope.lengths, self.node.attrs.axis("chunk").size: here}

    def _assigned(self, hint: str, value: ast.expr) -> ast.Name:
        name = self.method.placeholder()
        assign = ast.Assign([ast.Name(name)], value, lineno=0)
        self.method.append(Statement(assign, (name,), (hint,)))
        return ast.Name(name)

    def entry(self, x: Value) -> Value:
        if self.axis not in x.axes:
            return x
        chunk = self.node.attrs.axis("chunk")
        layout = tuple((chunk,) if group == (self.axis,) else group for group in x.layout)
        part = along(x, self.axis, ast.Slice(ast.Name(self.counter), self.stop))
        sliced = replace(x, expr=part, layout=layout, known=())
        return self.bound(sliced)

    def bound(self, x: Value) -> Value:
        return replace(x, expr=self._assigned("part", x.expr))

    def counts(self) -> ast.expr:
        length = number(self.node.attrs.integer("length"))
        return expression("range(0, {0}, {1})", self.scope.size(self.axis), length)


def _several(values: Sequence[ast.expr] | map[ast.Name]) -> ast.expr:
    items = list(values)
    return items[0] if len(items) == 1 else ast.Tuple(items)
