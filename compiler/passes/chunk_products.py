"""A state that is only read by contractions, as matrix products over the steps of a chunk:

    h[t] = d[t] h[t-1] + x[t] k[t],  with d free of the contracted axes n and x k of rank one
    dot(h[t-1], q[t], n) = p[t] dot(h[0], q[t], n) + sum_r m[t, r] dot(k[r], q[t], n) x[r]

where m[t, r] is the product of d between r and t, 0 for r >= t, and p[t] the product before t. Both
are running products of d[t-1], that of m with 1 in place of what stands at r + 1 or before: nothing
is divided, so a gate may be 0. Without a gate m is 1 for r < t, and p is 1. No state is stored but
the last.

An update that reads the state by such a contraction itself, as the delta rule does, adds k f u with
u[t] = dot(h[t-1], q[t]). Then u solves a triangular system for all steps of the chunk at once,

    u[t] = p[t] dot(h[0], q[t]) + sum_{r < t} m[t, r] dot(k[r], q[t]) (x[r] + f[r] u[r])

and what is left of the update is affine in h. It is solved by substitution: no inverse is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from ...dsl.dims import Dim
from ..ir.graph import AttrValue, Axis, DType, Function, Node, TensorType
from ..ir.walk import cone
from .affine import Form, Forms, Lift, NotAffine
from .chunk_loops import laid_out

UNKNOWN = -1  # the number of a correction among the states of a form


class NotProducts(Exception):
    """The states themselves are needed, or their inputs are of no low rank."""


@dataclass(frozen=True, slots=True)
class Readout:
    """`node` contracts `form`, a form in the state, with the value `query` of the chunk."""

    node: Node
    form: Form
    query: int


def readouts(
    step: Function, forms: Forms, state: int, roots: Collection[int]
) -> tuple[Readout, ...]:
    """The contractions through which alone `roots` depend on `state`. Raises NotProducts."""
    found: dict[int, Readout] = {}
    held = {state}  # values that depend on the state otherwise than by a contraction
    for node in step.nodes:
        if not held.isdisjoint(node.inputs):
            found |= _readout(forms, node, held)
            if node.id not in found:
                held.add(node.id)
    seen = cone(step, roots, found)
    if not found or not held.isdisjoint(seen):
        raise NotProducts
    return tuple(readout for i, readout in found.items() if i in seen)


def corrections(step: Function, forms: Forms, state: int, update: int) -> tuple[Readout, ...]:
    """The contractions of the state that its own update reads."""
    found: dict[int, Readout] = {}
    held, above = {state}, cone(step, [update])
    for node in step.nodes:
        if node.id in above and not held.isdisjoint(node.inputs):
            made = _readout(forms, node, held)
            found |= made
            if not made:
                held.add(node.id)
    return tuple(found.values())


def _readout(forms: Forms, node: Node, held: Collection[int]) -> dict[int, Readout]:
    for operand, query in (node.inputs, node.inputs[::-1]) if node.op == "dot" else ():
        if operand in held and query in forms.lift.values:
            try:
                return {node.id: Readout(node, forms.read(operand), forms.lift.values[query])}
            except NotAffine:
                return {}
    return {}


def rank_one(lift: Lift, value: int, summed: Collection[Axis]) -> tuple[int, int]:
    """(x, k) with value = x * k and x free of the summed axes."""
    node = lift.builder[value]
    one = lift.number(1, node.type.dtype)
    if not set(summed) & set(node.axes):
        return value, one
    if node.op == "mul":
        (x1, k1), (x2, k2) = (rank_one(lift, i, summed) for i in node.inputs)
        return lift.product(x1, x2), lift.product(k1, k2)
    if node.op == "add":
        (x1, k1), (x2, k2) = (rank_one(lift, i, summed) for i in node.inputs)
        if k1 == k2:
            return lift.sum(x1, x2), k1
    if node.op == "div" and not set(summed) & set(lift.builder[node.inputs[1]].axes):
        x, k = rank_one(lift, node.inputs[0], summed)
        return lift.add("div", (x, node.inputs[1])), k
    if node.op == "where" and lift.is_number(node.inputs[2], 0):
        condition, chosen, zero = node.inputs
        if not set(summed) & set(lift.builder[condition].axes):
            x, k = rank_one(lift, chosen, summed)
            return lift.add("where", (condition, x, zero)), k
    if node.op in ("cast", "broadcast", "transpose"):
        return rank_one(lift, node.inputs[0], summed)
    if node.op == "rename":
        new = dict(node.attrs.pairs("pairs"))
        old = {b: a for a, b in new.items()}
        x, k = rank_one(lift, node.inputs[0], [old.get(a, a) for a in summed])
        return lift.renamed(x, new), lift.renamed(k, new)
    return one, value


@dataclass(slots=True)
class Products:
    """The state `entering` of a chunk, h' = `factor` h + `x` `k`, contracted over `summed`.

    `row` is the axis r of the steps that are read.
    """

    lift: Lift
    entering: Node
    initial: int
    factor: int
    x: int
    k: int
    summed: tuple[Axis, ...]
    row: Axis
    weights: int = field(init=False)  # m
    decays: int = field(init=False)  # p
    last: int = field(init=False)
    scores: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        lift: Lift,
        entering: Node,
        initial: int,
        form: Form,
        found: Sequence[Readout],
        row: Axis,
        beside: Collection[tuple[int, int]],
    ) -> Products:
        """Raises NotProducts."""
        ((number, factor),) = form.factors.items()
        summed = {_back(entering, r.form.axes[number], r.node.attrs.axes("axes")) for r in found}
        if len(summed) != 1 or lift.is_number(form.offset, 0):
            raise NotProducts
        (axes,) = summed
        x, k = rank_one(lift, form.offset, axes)
        made = cls(lift, entering, initial, factor, x, k, axes, row)
        factors = [factor, *(f for r in found for f in r.form.factors.values())]
        made.check(factors, [r.query for r in found], beside)
        return made

    def check(
        self, factors: Sequence[int], queries: Sequence[int], beside: Collection[tuple[int, int]]
    ) -> None:
        """Something of the state must be along axes that neither keys, queries nor factors have.

        Else the products are worth it `beside` a state that has them already: they are the same.
        """
        axes = {a for i in (self.k, *queries, *factors) for a in self.lift.builder[i].axes}
        if all(a in axes for a in self.entering.axes) and (self.k, self.factor) not in beside:
            raise NotProducts
        if any({*self.summed} & {*self.lift.builder[i].axes} for i in factors):
            raise NotProducts

    @classmethod
    def corrected(
        cls,
        lift: Lift,
        entering: Node,
        initial: int,
        form: Form,
        found: Readout,
        row: Axis,
    ) -> tuple[Products, int]:
        """Those of a state without its correction, and f; `form` names both. Raises NotProducts."""
        ((number, factor),) = found.form.factors.items()
        if not lift.is_number(found.form.offset, 0) or UNKNOWN not in form.factors:
            raise NotProducts
        summed = _back(entering, found.form.axes[number], found.node.attrs.axes("axes"))
        share, k = rank_one(lift, form.factors[UNKNOWN], summed)
        x, same = rank_one(lift, form.offset, summed)
        zero = lift.number(0, entering.type.dtype)
        own = form.factors.get(number, zero)
        made = cls(
            lift, entering, initial, own, zero if lift.is_number(x, 0) else x, k, summed, row
        )
        made.check([own, factor], [found.query], ())
        kept = {*lift.builder[k].axes, *lift.builder[found.query].axes, lift.chunk}
        if (k != same and not lift.is_number(x, 0)) or not {*lift.builder[share].axes} <= kept:
            raise NotProducts
        return made, share

    def build(self, *, reverse: bool) -> None:
        """Adds m, p and the last state to the chunk."""
        lift, add, chunk, row = self.lift, self.lift.add, self.lift.chunk, self.row
        dtype, back = self.entering.type.dtype, 1 if reverse else -1
        own, other = (add("index", (), {"axis": a}) for a in (chunk, row))
        zero, one, step = lift.number(0, dtype), lift.number(1, dtype), lift.number(1, "int")
        if lift.is_number(self.factor, 1):
            self.weights = add("where", (_earlier(add, other, own, reverse), one, zero))
            self.decays = one
            self._leave(one, one)
            return
        factor = self._stepped(dtype)
        after = add("add" if back < 0 else "sub", (other, step))  # the row after r
        before = self._at(factor, add("sub" if back < 0 else "add", (own, step)))
        gates = add("where", (_earlier(add, after, own, reverse), before, one))
        between = self._running(gates, chunk, reverse)
        self.weights = add("where", (_earlier(add, other, own, reverse), between, zero))
        self.decays = self._running(before, chunk, reverse)
        last: dict[str, AttrValue] = {"axis": chunk, "at": Dim.of(0) if reverse else chunk.size - 1}
        whole = add("pick", (self._running(factor, chunk, reverse),), last)
        self._leave(whole, self._running(self._at(factor, after), row, not reverse))

    def _leave(self, whole: int, left: int) -> None:
        """The last state, of `whole`, the product of d, and the products behind each row."""
        lift, add = self.lift, self.lift.add
        x = lift.product(left, self._at_row(self.x))
        arrived = add("dot", (x, self._at_row(self.k)), {"axes": (self.row,)})
        kept = lift.product(whole, self.initial)
        self.last = laid_out(lift.builder, add("add", (kept, arrived)), self.entering.type)

    def _stepped(self, dtype: DType) -> int:
        """d, for each step."""
        builder, chunk = self.lift.builder, self.lift.chunk
        axes = (chunk, *(a for a in builder[self.factor].axes if a != chunk))
        return laid_out(builder, self.factor, TensorType(dtype, axes))

    def _at(self, value: int, index: int) -> int:
        """A value of each step at the steps `index`, 1 where there is none."""
        attrs: dict[str, AttrValue] = {"axis": self.lift.chunk, "fill": 1}
        return self.lift.add("take", (value, index), attrs)

    def _running(self, value: int, axis: Axis, reverse: bool) -> int:
        return self.lift.add("cumprod", (value,), {"axis": axis, "reverse": reverse})

    def _at_row(self, value: int) -> int:
        """A value along the rows r instead of the steps t."""
        return self.lift.renamed(value, {self.lift.chunk: self.row})

    def read(self, readout: Readout) -> int:
        """What a contraction gives for all steps of the chunk."""
        lift, form = self.lift, readout.form
        ((number, factor),) = form.factors.items()
        new = dict(zip(self.entering.axes, form.axes[number], strict=True))
        old = {b: a for a, b in new.items()}
        query = lift.renamed(readout.query, old)
        attrs = {"axes": self.summed}
        scores = self._scores(query)
        rows = lift.add("mul", (scores, self.weights))
        arrived = self._summed(rows)
        kept = lift.product(self.decays, lift.add("dot", (query, self.initial), attrs))
        before = lift.renamed(lift.sum(kept, arrived), new)
        made = lift.product(factor, before)
        if not lift.is_number(form.offset, 0):
            axes = readout.node.attrs.axes("axes")
            x, k = rank_one(lift, form.offset, axes)
            if lift.renamed(k, old) == self.k:
                own = self._own(scores)
            else:
                own = lift.add("dot", (readout.query, k), {"axes": axes})
            made = lift.sum(made, lift.product(x, own))
        kind = readout.node.type
        where = lift.builder[made].axes
        return laid_out(lift.builder, made, TensorType(kind.dtype, where))

    def solved(self, correction: Readout, share: int, *, reverse: bool) -> int:
        """u for all steps of the chunk."""
        lift, form = self.lift, correction.form
        ((number, factor),) = form.factors.items()
        new = dict(zip(self.entering.axes, form.axes[number], strict=True))
        old = {b: a for a, b in new.items()}
        query, factor = (lift.renamed(i, old) for i in (correction.query, factor))
        rows = lift.product(factor, lift.add("mul", (self._scores(query), self.weights)))
        kept = lift.product(
            self.decays, lift.add("dot", (query, self.initial), {"axes": self.summed})
        )
        right = lift.sum(lift.product(factor, kept), self._summed(rows))
        triangle = lift.product(rows, self._at_row(share))
        axes = tuple(a for a in lift.builder[triangle].axes if a != self.row)
        missing = tuple(a for a in axes if a not in lift.builder[right].axes)
        if missing:
            right = lift.add("broadcast", (right,), {"axes": missing})
        attrs = {"axis": lift.chunk, "column": self.row, "reverse": reverse}
        made = lift.renamed(lift.add("substitute", (triangle, right), attrs), new)
        kind = TensorType(correction.node.type.dtype, lift.builder[made].axes)
        return laid_out(lift.builder, made, kind)

    def _summed(self, rows: int) -> int:
        """sum_r rows[t, r] x[r]"""
        lift, over = self.lift, {"axes": (self.row,)}
        x = self._at_row(self.x)
        if self.row in lift.builder[x].axes:
            return lift.add("dot", (rows, x), over)
        return lift.product(x, lift.add("sum", (rows,), over))

    def _scores(self, query: int) -> int:
        """dot(k[r], q[t]), once for each q."""
        if query not in self.scores:
            operands = query, self._at_row(self.k)
            self.scores[query] = self.lift.add("dot", operands, {"axes": self.summed})
        return self.scores[query]

    def _own(self, scores: int) -> int:
        """dot(k[t], q[t])"""
        lift, add = self.lift, self.lift.add
        own, other = (add("index", (), {"axis": a}) for a in (lift.chunk, self.row))
        zero = lift.number(0, lift.builder[scores].type.dtype)
        here = add("where", (add("eq", (own, other)), scores, zero))
        return add("sum", (here,), {"axes": (self.row,)})


def _earlier(add: Callable[..., int], a: int, b: int, reverse: bool) -> int:
    return add("lt", (b, a) if reverse else (a, b))


def _back(entering: Node, axes: Sequence[Axis], summed: Sequence[Axis]) -> tuple[Axis, ...]:
    """The contracted axes as the state calls them. Raises NotProducts."""
    old = dict(zip(axes, entering.axes, strict=True))
    if not set(summed) <= set(old):
        raise NotProducts
    return tuple(old[a] for a in summed)
