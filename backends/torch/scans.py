"""A scan: a loop over its steps, the body written out in it, a list for each sequence it leaves."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace

from ...compiler.ir.graph import Axis, Function, Node
from .layers import initial
from .layout import Value, along, signed, single, ungrouped
from .lowering import lowers
from .scope import Result, Scope
from .source import Method, Statement, expression, inlined, number, statement


@lowers("scan")
def scan(scope: Scope, node: Node, *operands: Value) -> Result:
    """Sequences that nothing reads are left out."""
    axis, body = node.attrs.axis("axis"), scope.module.program.body(node)
    first, count = node.attrs.integer("stepped"), node.attrs.integer("states")
    sources = [_source(scope, node, x, axis) for x in operands[:first]]
    entering = [body[i] for i in body.inputs[first : first + count]]
    states = [
        initial(scope, node, scope.full(x, i.axes), i.hint)
        for x, i in zip(operands[first : first + count], entering, strict=True)
    ]
    step = scope.method.placeholder()
    values = [_at_step(x, axis, ast.Name(step)) for x in sources]
    values += [_held(name, i) for name, i in zip(states, entering, strict=True)]
    loop = _Loop(scope, node, body, [*values, *operands[first + count :]])
    lists = loop.fill(step, states, scope.function.read_results(node))
    made = [loop.joined(lists[i], i, axis) if i in lists else _unread(i, node) for i in loop.rows]
    return (*made, *values[first : first + count])


def _source(scope: Scope, node: Node, x: Value, axis: Axis) -> Value:
    """What is read at each step, with a name and a dimension for the scanned axis."""
    if axis not in x.axes:
        return x
    return scope.bound(ungrouped(x, (axis,), scope.size), node)


def _at_step(x: Value, axis: Axis, step: ast.expr) -> Value:
    if axis not in x.axes:
        return x
    layout = tuple(group for group in x.layout if group != (axis,))
    return replace(x, expr=along(x, axis, step), layout=layout, known=())


def _held(name: str, entering: Node) -> Value:
    layout = single(entering.axes)
    return Value(ast.Name(name), entering.type.dtype, layout, finite=False)


def _unread(index: int, node: Node) -> Value:
    return Value(number(0), node.types[index].dtype, literal=True)


class _Loop:
    """The statements of one step, written into a method of their own and put into a `for`."""

    def __init__(self, scope: Scope, node: Node, body: Function, operands: Sequence[Value]) -> None:
        self.scope, self.node, self.body = scope, node, body
        self.rows = range(len(body.outputs) - node.attrs.integer("states"))
        method = Method(scope.method.reserved, count=scope.method.count)
        # without a caller: what is cut off from an operand in the loop is not there outside it
        self.inner = replace(scope.inside(body, operands, node), method=method, caller=None)
        for each in body.nodes:
            self.inner.lower(each)
        scope.method.count = method.count

    def fill(self, step: str, states: Sequence[str], read: set[int]) -> dict[int, str]:
        """Writes the loop; gives the lists of the sequences in `read`."""
        outer, inner = self.scope.method, self.inner.method
        lists = {i: outer.placeholder() for i in self.rows if i in read}
        inner.count = outer.count
        for i, name in lists.items():
            hint = f"{self.body.outputs[i][0]}_steps"
            empty = ast.Assign([ast.Name(name)], ast.List([]), lineno=0)
            outer.append(Statement(empty, (name,), (hint,)))
            append = statement("{0}.append({1})", ast.Name(name), self.value(i))
            inner.append(Statement(append))
        updates = [self.value(i) for i in range(len(self.rows), len(self.body.outputs))]
        inner.append(
            Statement(ast.Assign([_several(map(ast.Name, states))], _several(updates), lineno=0))
        )
        outer.append(self.loop(step, inlined(inner.statements)))
        outer.count = inner.count
        return lists

    def value(self, output: int) -> ast.expr:
        node_id = self.body.output_ids[output]
        return self.inner.full(self.inner.value(node_id), self.body[node_id].axes).expr

    def loop(self, step: str, statements: Sequence[Statement]) -> Statement:
        """The names that a step assigns are the loop's."""
        axis = self.node.attrs.axis("axis")
        steps = expression("range({0})", self.scope.size(axis))
        if self.node.attrs["reverse"]:
            steps = expression("reversed({0})", steps)
        loop = ast.For(ast.Name(step), steps, [s.node for s in statements], [], lineno=0)
        targets = [step, *(t for s in statements for t in s.targets)]
        hints = ["step", *(h for s in statements for h in s.hints)]
        return Statement(loop, tuple(targets), tuple(hints))

    def joined(self, name: str, output: int, axis: Axis) -> Value:
        """The steps of a sequence in the order of its axis."""
        kind = self.node.types[output]
        dim = number(signed(kind.position(axis), len(kind.axes)))
        steps: ast.expr = ast.Name(name)
        if self.node.attrs["reverse"]:
            steps = expression("{0}[::-1]", steps)
        made = expression("torch.stack({0}, {1})", steps, dim)
        if not axis.size.constant:  # there may be no step
            words = {"dtype": self.scope.word(kind.dtype), "device": self.scope.device()}
            helper = self.scope.module.helper("stack")
            made = expression(
                "{0}({1}, {2}, dtype={dtype}, device={device})", helper, steps, dim, **words
            )
            assert isinstance(made, ast.Call)
            made.args += [self.scope.size(a) for a in kind.axes]
        return Value(made, kind.dtype, single(kind.axes), finite=False)


def _several(values: Sequence[ast.expr] | map[ast.Name]) -> ast.expr:
    items = list(values)
    return items[0] if len(items) == 1 else ast.Tuple(items)
