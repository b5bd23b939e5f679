"""Contractions and fused nodes: dot, attention, regions, derived parameters.

A dot with a weight is `F.linear` on the weight as it is stored; any other is a matrix product where
the operands lie that way, else an `einsum` whose result has the order a batched product gives.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import reduce

from ...compiler.ir.graph import Axis, Node
from ...compiler.ops.grouped import GroupedPlan, plan_grouped
from . import quantised
from .attention import scaled_dot_product
from .layout import Group, Value, aligned, flat, joint, single, ungrouped
from .lowering import lowers, pointwise
from .scope import Result, Scope
from .source import expression, number


@lowers("dot")
def dot(scope: Scope, node: Node, a: Value, b: Value) -> Value:
    axes = node.attrs.axes("axes")
    a, b = (scope.converted(scope.tensor(x), node.type.dtype) for x in (a, b))
    missing = [axis for axis in axes if axis not in a.axes + b.axes]
    if missing:
        a = scope.arranged(a, (*a.layout, *single(missing)))
    for x, w in ((a, b), (b, a)):
        if w.weight and not x.weight:
            product = linear(scope, node, x, w, axes)
            if product is not None:
                return product
    return product_of(scope, node, a, b, axes)


@lowers("add")
def add(scope: Scope, node: Node, *operands: Value) -> Value:
    """A bias that its product has taken in is there already."""
    if node.id in scope.joined:
        return next(x for x in operands if not x.weight)
    return pointwise(scope, node, *operands)


def _bias(scope: Scope, product: Node, outer: Group) -> ast.expr | None:
    """A weight for each output, if all that becomes of the product is that it is added."""
    function = scope.function
    readers = [n for n in function.nodes if product.id in n.inputs]
    if len(readers) != 1 or product.id in function.output_ids or scope.module.checks:
        return None
    (sum_,) = readers
    others = [i for i in sum_.inputs if i != product.id]
    if sum_.op != "add" or len(others) != 1 or sum_.type.dtype != product.type.dtype:
        return None
    bias = scope.values.get(others[0])
    if not isinstance(bias, Value) or not bias.weight or set(bias.axes) != set(outer):
        return None
    scope.joined.add(sum_.id)
    return scope.arranged(scope.converted(bias, product.type.dtype), (outer,)).expr


def linear(scope: Scope, node: Node, x: Value, w: Value, axes: Sequence[Axis]) -> Value | None:
    """`F.linear(x, w)` or `x @ w`, if the weight is a matrix of outputs and summed axes.

    A bias is the last argument of what takes one.
    """
    inner = tuple(axis for axis in w.axes if axis in axes)
    outer = tuple(axis for axis in w.axes if axis not in axes)
    if set(inner) != set(axes) or set(outer) & set(x.axes) or not set(inner) <= set(x.axes):
        return None
    rows = tuple(g for g in _without(scope, x, inner).layout if not set(g) <= set(inner))
    if w.quantised is not None:
        product = quantised.product(scope, x, rows, w, outer, inner)
        if product is not None:
            return ungrouped(product, outer, scope.size)
    left = scope.arranged(x, (*rows, inner)).expr
    if not w.packed and not (w.axes == (*outer, *inner) and outer):
        right = scope.arranged(w, (inner, outer) if outer else (inner,)).expr
        expr = expression("{0} @ {1}", left, right)
    else:
        right = w.expr if w.packed else scope.arranged(w, (outer, inner)).expr
        function = _product(scope, w)
        bias = _bias(scope, node, outer)
        expr = ast.Call(function, [left, right, *([bias] if bias else [])], [])
    product = Value(expr, x.dtype, (*rows, outer) if outer else rows)
    return ungrouped(product, outer, scope.size)


def _product(scope: Scope, w: Value) -> ast.expr:
    """What multiplies with the matrix w: the programs of a decoding share it as it is stored."""
    if w.packed:
        return scope.module.helper("packed_linear")
    if scope.module.decodes:
        return scope.module.helper("linear")
    return expression("F.linear")


def _without(scope: Scope, x: Value, axes: Group) -> Value:
    """x with no dimension that holds both some of `axes` and another."""
    mixed = [a for g in x.layout if set(g) & set(axes) and not set(g) <= set(axes) for a in g]
    return ungrouped(x, mixed, scope.size)


def product_of(scope: Scope, node: Node, a: Value, b: Value, axes: Sequence[Axis]) -> Value:
    a, b = (ungrouped(x, x.axes, scope.size) for x in (a, b))
    batch = [x for x in a.axes if x in b.axes and x not in axes]
    rows = [x for x in a.axes if x not in batch and x not in axes]
    columns = [x for x in b.axes if x not in batch and x not in axes]
    layout = single((*batch, *rows, *columns))
    summed = [x for x in a.axes if x in axes and x in b.axes]
    if len(rows) == len(columns) == len(summed) == 1 and set(axes) <= {*a.axes} & {*b.axes}:
        left = scope.arranged(a, single((*batch, *rows, *summed))).expr
        right = scope.arranged(b, single((*batch, *summed, *columns))).expr
        return Value(expression("{0} @ {1}", left, right), node.type.dtype, layout)
    wide = a if not columns else b
    if summed and not (rows and columns) and wide.axes[-1] in batch:
        # a product of matrices would move what is contiguous; each of its columns is one number
        return _summed(scope, node, a, b, axes)
    equation = _equation([a.axes, b.axes], flat(layout))
    expr = expression("torch.einsum({0}, {1}, {2})", ast.Constant(equation), a.expr, b.expr)
    return Value(expr, node.type.dtype, layout)


def _summed(scope: Scope, node: Node, a: Value, b: Value, axes: Sequence[Axis]) -> Value:
    """Elementwise products and their sum, as in a depthwise convolution."""
    layout = joint([a.layout, b.layout], (*node.axes, *axes))
    left, right = (aligned(x, layout, scope.size) for x in (a, b))
    dims = [i for i, group in enumerate(layout) if set(group) & set(axes)]
    dim = number(dims[0]) if len(dims) == 1 else ast.Tuple([number(d) for d in dims])
    kept = tuple(group for i, group in enumerate(layout) if i not in dims)
    return Value(expression("({0} * {1}).sum({2})", left, right, dim), node.type.dtype, kept)


def _equation(operands: Sequence[Group], result: Group) -> str:
    """An einsum equation whose letters are the axes' initials where those are free."""
    letters: dict[Axis, str] = {}
    for axis in (a for axes in operands for a in axes):
        initials = [c for c in axis.name.lower() if c.isascii() and c.isalpha()]
        free = (c for c in [*initials, *"abcdefghijklmnopqrstuvwxyz"] if c not in letters.values())
        letters.setdefault(axis, next(free))
    left, right = ("".join(letters[a] for a in axes) for axes in operands)
    return f"{left},{right}->{''.join(letters[a] for a in result)}"


# ------------------------------------------------------------------------ fused nodes


@lowers("attend")
def attend(scope: Scope, node: Node, *operands: Value) -> Result:
    """PyTorch's attention where the body is its formula, else the body as it is."""
    results = scaled_dot_product(scope, scope.module.program.body(node), operands, node)
    if results is None:
        return region(scope, node, *operands)
    return results[0] if len(results) == 1 else results


@lowers("pointwise", "linear")
def region(scope: Scope, node: Node, *operands: Value) -> Result:
    """A region is written out; fusing it is the compiler's work."""
    results = scope.inline(scope.module.program.body(node), operands, node)
    return results[0] if len(results) == 1 else results


@lowers("grouped")
def grouped(scope: Scope, node: Node, *operands: Value) -> Value:
    """`grouped_linear` on rows, with the order that one index has for all its products."""
    body = scope.module.program.body(node)
    plan = plan_grouped(body)
    given = dict(zip(body.inputs, operands, strict=True))
    x, w = (
        scope.converted(scope.tensor(given[n.id]), node.type.dtype) for n in (plan.x, plan.matrices)
    )
    index = scope.arranged(scope.tensor(given[plan.index.id]), (plan.rows,))
    index = scope.bound(index, node, "index")
    scope.module.check(scope, plan.take, index.expr)
    helper = scope.module.helper("rows_by_index")
    order = expression("{0}({1}, {2})", helper, index.expr, scope.size(plan.entries))
    groups = scope.assign(order, node, hint="groups")
    own = tuple(axis for axis in plan.rows if axis in plan.x.axes)
    repeats = plan.rows[: len(own)] == own  # consecutive rows are one row of x
    rows = scope.arranged(x, (own if repeats else plan.rows, plan.inner)).expr
    shared = [scope.size(axis) for axis in plan.rows[len(own) :]] if repeats else []
    helper = scope.module.helper("grouped_linear")
    call = expression("{0}({1}, {2}, *{3})", helper, rows, _stacked(scope, w, plan), groups)
    assert isinstance(call, ast.Call)
    if shared:
        call.args.append(reduce(lambda a, b: ast.BinOp(a, ast.Mult(), b), shared))
    return ungrouped(Value(call, node.type.dtype, (plan.rows, plan.outer)), node.axes, scope.size)


def _stacked(scope: Scope, w: Value, plan: GroupedPlan) -> ast.expr:
    """The matrices as [entries, outer, inner], without moving what is stored the other way."""
    sides = (plan.outer, plan.inner)
    if flat(w.layout) == (plan.entries, *plan.inner, *plan.outer):
        return expression("{0}.mT", scope.arranged(w, ((plan.entries,), *sides[::-1])).expr)
    return scope.arranged(w, ((plan.entries,), *sides)).expr


@lowers("packed")
def packed(scope: Scope, node: Node, x: Value) -> Value:
    """Once, where weights are prepared; as it is where it would be at every call."""
    if not scope.module.prepares(scope):
        return x
    inner = node.attrs.axes("inner")
    layout = (tuple(axis for axis in x.axes if axis not in inner), inner)
    scope.module.helper("packed_linear")
    expr = expression("pack({0})", scope.arranged(x, layout).expr)
    return Value(expr, x.dtype, layout, packed=True)


@lowers("derived")
def derived(scope: Scope, node: Node, *operands: Value) -> Result:
    return scope.module.derived(scope, node, operands)
