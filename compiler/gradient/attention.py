"""Attention from its end, tile by tile, without its weights.

    o = sum_j w(p) v[j],   p = softmax_j s = exp(s - l),   l = log sum_j exp(s)
    ds = p (w^T(do v) - c),   c = sum_j p w^T(do v) = sum_e do o
    dq = sum_j ds k[j],   dk = sum_i ds q[i],   dv = sum_i w(p) do        (Dao et al., 2022)

Where l is a result too, whose gradient is dl, c - dl takes the place of c: dl / ds = p. Only l and c
are stored, one number for each row. s is any score: its derivative is that of its body,
and for each operand of the attention a body of its own computes the scores again and sums over
keys or over rows. The tiles that the mask excludes are not visited there either. A body that no tiling
fits (the gradient of a bias for each pair) is written out as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..ir.graph import Attrs, AttrValue, Axis, Function, Node, TensorType
from ..ops.attend import MOVES, AttendPlan, NotTileable, plan_attend
from ..ops.reduce import weights
from .reverse import Reverse, Special


@dataclass(slots=True)
class AttendReverse(Special):
    """`plan` says how the body of the node is tiled."""

    body: Function = field(init=False)
    plan: AttendPlan = field(init=False)

    def __post_init__(self) -> None:
        self.body = self.outer.derivation.program.body(self.node)
        self.plan = plan_attend(self.body, self.keys)

    @property
    def keys(self) -> Axis:
        return self.node.attrs.axis("keys")

    @property
    def softmax(self) -> Node:
        (found,) = self.plan.softmaxes
        return self.body[found]

    @property
    def rows(self) -> tuple[Axis, ...]:
        """The axes of l and c."""
        return tuple(a for a in self.body[self.softmax.inputs[0]].axes if a != self.keys)

    @property
    def product(self) -> int:
        """Which of its results is o."""
        (found,) = (k for k, i in enumerate(self.body.output_ids) if i not in self.plan.totals)
        return found

    @property
    def total(self) -> int:
        """Which of the results of the copy is l."""
        ids = self.body.output_ids
        return next((k for k, i in enumerate(ids) if i in self.plan.totals), len(ids))

    def copy(self) -> None:
        """The attention again, with l beside its result."""
        of = self.outer
        body, kinds = self._with_total()
        operands = tuple(of.here[i] for i in self.node.inputs)
        named = {**self.node.attrs, "body": of.derivation.keep(body)}
        made = of.builder.add("attend", operands, named, kinds, self.node.origins, self.node.hint)
        of.results |= {(self.node.id, k): of.result(made, k) for k in range(len(kinds))}
        of.here[self.node.id] = of.results[self.node.id, self.product]

    def _with_total(self) -> tuple[Function, tuple[TensorType, ...]]:
        """A body with l among its results, and their types."""
        body, session = self.body, self.outer.derivation.session
        if self.total < len(body.outputs):
            return replace(body, name=session.name(body.name)), self.node.types
        kind = TensorType(self.softmax.type.dtype, self.rows)
        attrs, last = Attrs({"axis": self.keys}), max(n.id for n in body.nodes) + 1
        total = Node(last, "logsumexp", self.softmax.inputs, attrs, (kind,), self.node.origins)
        outputs = (*body.outputs, ("log_total", last))
        nodes = (*body.nodes, total)
        both = replace(body, name=session.name(body.name), nodes=nodes, outputs=outputs)
        return both, (*self.node.types, kind)

    def reverse(self, found: tuple[int | None, ...]) -> None:
        """Each operand's gradient, by a sweep of its own over the scores."""
        of, at = self.outer, self.outer.adjoint(self.node, (), frozenset())
        d = found[self.product]
        if d is None:
            d = at.add("mul", of.here[self.node.id], at.number(0.0))
        mean, of_total = self._mean(d), found[self.total] if self.total < len(found) else None
        if of_total is not None:
            mean = at.add("sub", mean, of_total)
        given = (d, of.results[self.node.id, self.total], mean)
        for k, i in enumerate(self.node.inputs):
            if i in of.active:
                of.give((i, 0), self._operand(self.body.inputs[k], given))

    def _mean(self, d: int) -> int:
        """c, with the axes of the softmax: rows that moved on the way to the product move back."""
        of, (contraction,) = self.outer, self.plan.contractions
        carriers = list(self._carriers(contraction))
        at = of.adjoint(self.node, (d,), frozenset())
        wide = (at.add("cast", i, dtype="f32") for i in (d, of.here[self.node.id]))
        product = at.add("mul", *wide)
        kept = self.plan.rows[carriers[0].id]
        beside = tuple(a for a in of.builder[product].axes if a not in kept)
        mean = at.add("sum", product, axes=beside)
        for node in carriers:
            if node.op in MOVES:
                mean = of.moved_back(node, mean)
        return mean

    def _carriers(self, contraction: int) -> Iterator[Node]:
        """From the operand of the product up to the softmax."""
        here = self.body[contraction]
        while here.id != self.softmax.id:
            (source,) = (i for i in here.inputs if i in self.plan.source)
            here = self.body[source]
            yield here

    def _operand(self, leaf: int, given: Sequence[int]) -> int:
        """The gradient of an operand: an `attend` without a softmax, if its body is of that shape."""
        of = self.outer
        body, operands = self._body(leaf, given)
        query = self.node.attrs.get("query")
        for keys in (self.keys, *sorted(self.rows, key=lambda a: a != query)):
            tiled = _keys_first(body, keys)
            try:
                plan_attend(tiled, keys)
            except NotTileable:
                continue
            attrs = {"body": of.derivation.keep(tiled), "keys": keys, **self._bounds(keys)}
            types = tuple(tiled[i].type for i in tiled.output_ids)
            return of.builder.add("attend", operands, attrs, types, self.node.origins, "d")
        return of.written_out(body, operands)

    def _bounds(self, keys: Axis) -> dict[str, AttrValue]:
        """j <= i + upper is i >= j - upper."""
        query, lower, upper = (self.node.attrs.get(n) for n in ("query", "lower", "upper"))
        if keys == query:
            query, lower, upper = self.keys, upper, lower
        elif keys != self.keys:
            query = lower = upper = None
        rows = tuple(a for a in self.softmax.axes if a != keys)
        return {"query": query, "lower": lower, "upper": upper, "rows": rows}

    def _body(self, leaf: int, given: Sequence[int]) -> tuple[Function, tuple[int, ...]]:
        """The body that computes a leaf's gradient, and what it reads."""
        of, session = self.outer, self.outer.derivation.session
        name = session.name(self.body.name)
        inner = _Inside(of.derivation, self.body, name, {"softmax": _Weights})
        inner.here |= {i: inner.argument(i, "") for i in self.body.inputs}
        types = [of.builder[i].type for i in given]
        inner.given = tuple(
            inner.builder.add("input", (), {"name": n}, (kind,), self.node.origins, n)
            for n, kind in zip(("d", "log_total", "mean"), types, strict=True)
        )
        inner.find_active({leaf})
        inner.copy()
        inner.give((self.body.output_ids[self.product], 0), inner.given[0])
        inner.sweep()
        arguments = [*(inner.here[i] for i in self.body.inputs), *inner.given]
        made = inner.finished(arguments, [("d", inner.gradient(leaf))])
        reads = [*(of.here[i] for i in self.node.inputs), *given]
        return _reading(made, reads)


@dataclass(slots=True)
class _Inside(Reverse):
    """The body of an attention; `given` are do, l and c."""

    given: tuple[int, ...] = ()


@dataclass(slots=True)
class _Weights(Special):
    """The softmax in terms of l. A row that sees no key has l = -inf, and weights of zero."""

    always = True

    def copy(self) -> None:
        of = self.outer
        assert isinstance(of, _Inside)
        _, log_total, _ = of.given
        at = of.adjoint(self.node, (), frozenset())
        of.here[self.node.id] = weights(at, of.here[self.node.inputs[0]], log_total)

    def reverse(self, found: tuple[int | None, ...]) -> None:
        of, (d,) = self.outer, found
        assert isinstance(of, _Inside)
        assert d is not None
        at = of.adjoint(self.node, found, frozenset())
        centred = at.add("sub", d, of.given[2])
        of.give((self.node.inputs[0], 0), at.add("mul", of.here[self.node.id], centred))


def _reading(function: Function, reads: Sequence[int]) -> tuple[Function, tuple[int, ...]]:
    """The function without inputs that it does not read, and what the others are given."""
    users = function.users()
    kept = [k for k, i in enumerate(function.inputs) if users[i]]
    inputs = tuple(function.inputs[k] for k in kept)
    nodes = tuple(n for n in function.nodes if n.op != "input" or n.id in inputs)
    return replace(function, nodes=nodes, inputs=inputs), tuple(reads[k] for k in kept)


def _keys_first(body: Function, keys: Axis) -> Function:
    """Sums over the keys and other axes with the keys outermost: bounds on keys are bounds then."""

    def ordered(node: Node) -> Node:
        if node.op not in ("dot", "sum") or keys not in node.attrs.axes("axes"):
            return node
        axes = tuple(sorted(node.attrs.axes("axes"), key=lambda a: a != keys))
        return replace(node, attrs=Attrs({**node.attrs, "axes": axes}))

    return replace(body, nodes=tuple(map(ordered, body.nodes)))
