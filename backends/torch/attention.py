"""dot(softmax(scale * dot(q, k) [+ bias] [masked], t), v, t) as PyTorch's own attention.

The formula is found from its end: the dot over the keys, the softmax below it, then masks, terms
and factors peeled off the scores down to the product of queries and keys. Rows share keys across a
group by `enable_gqa`; `is_causal` stands for a mask known to be slot(key) <= slot(query). A row
that sees no key gives zeros there too. Any other body is written out as it is.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...compiler.ir.graph import Axis, Function, Node, elements
from ...compiler.ops import promote
from .layout import Group, Layout, Value, aligned, single
from .scope import Scope
from .source import expression, number, text_of


@dataclass(frozen=True, slots=True)
class Scores:
    """factors * dot + terms, -inf where a mask does not hold."""

    dot: Node
    factors: tuple[Value, ...] = ()
    masks: tuple[int, ...] = ()
    terms: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Roles:
    """What each axis is to the formula. `group` are row axes that share the keys of a head."""

    lead: Group
    head: Group
    group: Group
    query: Axis
    key: Axis
    inner: Group
    values: Group

    def layout(self, heads: Group, row: Axis, features: Group) -> Layout:
        return (*single(self.lead), *((heads,) if heads else ()), (row,), features)

    @property
    def scores(self) -> Layout:
        return self.layout(self.head + self.group, self.query, (self.key,))


def scaled_dot_product(
    scope: Scope, body: Function, operands: Sequence[Value], call: Node
) -> tuple[Value, ...] | None:
    """The body's outputs with its attention as one call, or None where it is not the formula."""
    inner = scope.inside(body, operands, call)
    for node in body.nodes:
        found = _formula(inner, node)
        if found is not None:
            inner.values[node.id] = inner.bind(node, _call(inner, node, *found))
            return tuple(inner.need(i) for i in body.output_ids)
    return None


def _formula(scope: Scope, node: Node) -> tuple[Scores, Node, Roles] | None:
    if node.op != "dot" or len(node.attrs.axes("axes")) != 1:
        return None
    (key,) = node.attrs.axes("axes")
    for weights, values in (node.inputs, node.inputs[::-1]):
        softmax = _uncast(scope.function, weights)
        if softmax.op == "softmax" and softmax.attrs.axis("axis") == key:
            scores = _scores(scope, softmax.inputs[0])
            value = scope.function[values]
            roles = scores and _roles(scope.function, scores.dot, value, key)
            return (scores, value, roles) if scores and roles else None
    return None


def _uncast(function: Function, node_id: int) -> Node:
    """A cast is a floor, and attention accumulates in float32 at least."""
    node = function[node_id]
    return _uncast(function, node.inputs[0]) if node.op in ("cast", "transpose") else node


def _scores(scope: Scope, node_id: int) -> Scores | None:
    """Peels masks, terms and factors off the scores, outermost first."""
    node = _uncast(scope.function, node_id)
    peel = _PEELERS.get(node.op)
    return peel(scope, node) if peel else None


def _peel_dot(scope: Scope, node: Node) -> Scores | None:
    return Scores(node)


def _peel_where(scope: Scope, node: Node) -> Scores | None:
    condition, kept, other = node.inputs
    hidden = _number(scope, other)
    if hidden is None or text_of(hidden.expr) != "-torch.inf":
        return None
    scores = _scores(scope, kept)
    return scores and replace(scores, masks=(*scores.masks, condition))


def _peel_scale(scope: Scope, node: Node) -> Scores | None:
    """A factor that is a number. Terms inside it would need it too: not the formula."""
    for kept, other in (node.inputs, node.inputs[::-1]):
        factor = _number(scope, other)
        if factor is None or (node.op == "div" and other != node.inputs[1]):
            continue
        if node.op == "div":
            factor = replace(factor, expr=expression("1 / {0}", factor.expr))
        scores = _scores(scope, kept)
        if scores and not scores.terms:
            return replace(scores, factors=(*scores.factors, factor))
    return None


def _peel_term(scope: Scope, node: Node) -> Scores | None:
    for kept, term in (node.inputs, node.inputs[::-1]):
        scores = _scores(scope, kept)
        if scores:
            return replace(scores, terms=(*scores.terms, term))
    return None


_PEELERS = {
    "dot": _peel_dot,
    "where": _peel_where,
    "mul": _peel_scale,
    "div": _peel_scale,
    "add": _peel_term,
}


def _number(scope: Scope, node_id: int) -> Value | None:
    """The value of a node without axes that is a Python number."""
    if scope.function[node_id].axes:
        return None
    value = scope.need(node_id)
    return value if value.literal else None


def _roles(function: Function, dot: Node, value: Node, key: Axis) -> Roles | None:
    """The axes' parts, if queries, keys and values have only those of the formula."""
    a, b = (function[i] for i in dot.inputs)
    q, k = (a, b) if key in b.axes else (b, a)
    inner = dot.attrs.axes("axes")
    batch = tuple(x for x in q.axes if x in k.axes and x not in inner)
    rows = tuple(x for x in q.axes if x not in k.axes)
    values = tuple(x for x in value.axes if x != key and x not in batch)
    strange = set(k.axes) - {key, *batch, *inner} or set(values) & set(rows)
    if strange or key in q.axes or key not in value.axes or not (rows and values and inner):
        return None
    query = _query(rows, key)
    group = tuple(x for x in rows if x != query)
    heads = 1 if len(batch) > 1 else 0
    lead = batch[: len(batch) - heads]
    return Roles(lead, batch[len(lead) :], group, query, key, inner, values)


def _query(rows: Group, key: Axis) -> Axis:
    """The row axis of the key's timeline, else one with a timeline, else one of the same size."""
    alike = [x for x in rows if key.time and key.time in (x.name, x.time)]
    timed = [x for x in rows if x.time is not None]
    return (alike or timed or [x for x in rows if x.size == key.size] or list(rows))[0]


def _call(scope: Scope, node: Node, scores: Scores, value: Node, roles: Roles) -> Value:
    a, b = scores.dot.inputs
    q, k = (a, b) if roles.key in scope.function[b].axes else (b, a)
    operands = [scope.need(i) for i in (q, k, value.id)]
    dtype = promote(*(x.dtype for x in operands))
    queries, keys, values = (scope.converted(scope.tensor(x), dtype) for x in operands)
    heads = roles.head + roles.group
    arguments = [
        scope.arranged(queries, roles.layout(heads, roles.query, roles.inner)).expr,
        _shared(scope, keys, roles, roles.inner),
        _shared(scope, values, roles, roles.values),
    ]
    call = expression("F.scaled_dot_product_attention({0}, {1}, {2})", *arguments)
    assert isinstance(call, ast.Call)
    call.keywords += [*_mask(scope, scores, roles, dtype_of=queries), _scale(scores)]
    queries_per_head = elements(roles.group)
    if queries_per_head.substitute(scope.module.program.sizes).constant != 1:
        call.keywords.append(ast.keyword("enable_gqa", ast.Constant(True)))
    result = Value(call, dtype, roles.layout(heads, roles.query, roles.values))
    return scope.converted(result, node.type.dtype)


def _shared(scope: Scope, x: Value, roles: Roles, features: Group) -> ast.expr:
    """Keys or values as [lead, heads, key, features]; one head for all where they have none."""
    filled = scope.arranged(x, roles.layout(roles.head, roles.key, features))
    layout = roles.layout(roles.head or roles.group, roles.key, features)
    return aligned(filled, layout, scope.size, leading=True)


def _scale(scores: Scores) -> ast.keyword:
    factors = [factor.expr for factor in scores.factors] or [number(1.0)]
    product = factors[0]
    for factor in factors[1:]:
        product = expression("{0} * {1}", product, factor)
    return ast.keyword("scale", product)


def _mask(scope: Scope, scores: Scores, roles: Roles, dtype_of: Value) -> list[ast.keyword]:
    masks = [scope.need(i) for i in scores.masks]
    terms = [scope.converted(scope.tensor(scope.need(i)), dtype_of.dtype) for i in scores.terms]
    if [m.known for m in masks] == [("causal", roles.query, roles.key)] and not terms:
        return [ast.keyword("is_causal", ast.Constant(True))]
    visible = _joined(scope, roles, [scope.tensor(m) for m in masks], "{0} & {1}")
    added = _joined(scope, roles, terms, "{0} + {1}")
    both = visible and added and expression("torch.where({0}, {1}, -torch.inf)", visible, added)
    mask = both or visible or added
    return [ast.keyword("attn_mask", mask)] if mask else []


def _joined(scope: Scope, roles: Roles, parts: list[Value], template: str) -> ast.expr | None:
    """Masks or terms as one expression that broadcasts against the scores."""
    if not parts:
        return None
    exprs = [aligned(x, roles.scores, scope.size, leading=x.axes == (roles.key,)) for x in parts]
    joined = exprs[0]
    for part in exprs[1:]:
        joined = expression(template, joined, part)
    return joined
