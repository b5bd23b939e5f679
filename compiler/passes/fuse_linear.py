"""f(dot(a(x), b(W)), ...) -> linear: operands are prepared, and the result finished, in
registers.

The epilogue f (`epilogue.py`) is any elementwise expression of the product or of pieces of it
(bias, activation, residual, a row scale, a gate, a rotation); the prologues are casts and row or
column corrections of an operand. Legal when nothing else reads what lies between. A row statistic
over the contracted axes that the epilogue reads joins the loop over them (strategy `in-loop`)
where that is cheaper than a kernel of its own:

    in-loop:        3 flops for each element of x, once per 128 columns
    row-statistic:  one launch, and reading x once more

with the figures of a large accelerator; a run-time size counts as `ROWS` rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ...dsl.dims import product as sizes_of
from ..ir.graph import Axis, Node
from ..rewrite import Edit, Fuse, Guard, Pass, Region, Rule, close, is_free
from .epilogue import JOINS, epilogue, results
from .properties import (
    ELEMENT_BYTES,
    SOURCES,
    is_elementwise,
    is_static,
    is_statistic,
    parameter_expression,
    traffic,
    unfused_traffic,
)

ROWS = 4096  # rows of a prefill, where a size is only known at run time
COLUMN_TILE = 128
FLOPS, BANDWIDTH, LAUNCH = 67e12, 3.35e12, 3e-6  # float32 flop/s, bytes/s, s

# Corrections cheap enough to repeat for every tile of columns.
PROLOGUE = frozenset({"add", "sub", "mul", "div"})


@dataclass(frozen=True)
class Product:
    """A product; what one kernel computes with it is found when it is asked for."""

    edit: Edit
    node: Node
    joins: tuple[Guard, ...] = ()

    @property
    def summed(self) -> frozenset[Axis]:
        return frozenset(self.node.attrs.axes("axes"))

    @cached_property
    def kernel(self) -> tuple[Region, str]:
        """The region of the product, what prepares its operands and finishes it, and the strategy."""
        edit, node = self.edit, self.node
        after = epilogue(edit, node, self.joins)
        members = set(after)
        for operand in edit.operands(node):
            members |= _prologue(edit, node, operand)
        statistic = _loop_statistic(edit, node, members, after - {node.id})
        region = close(edit, members | statistic, results(edit, after))
        strategy = "in-loop" if statistic else _strategy(edit, region.leaves, self.summed)
        return region, strategy


def products(edit: Edit, node: Node) -> Iterator[Product]:
    if node.attrs["axes"]:
        yield Product(edit, node)


def grow(edit: Edit, found: Product, joins: tuple[Guard, ...]) -> Product:
    return replace(found, joins=joins)


def fuse_linear(edit: Edit, found: Product) -> Fuse:
    region, strategy = found.kernel
    unfused = unfused_traffic(edit, region.nodes)
    fused = traffic(edit, region.leaves, region.outputs)
    return Fuse("linear", region, {"strategy": strategy}, strategy, unfused, fused)


def _has_batches(edit: Edit, found: Product) -> bool:
    a, b = edit.operands(found.node)
    return set(a.axes) & set(b.axes) != found.summed


def _is_bare(edit: Edit, found: Product) -> bool:
    region, _ = found.kernel
    return region.nodes == (found.node.id,)


def _strategy(edit: Edit, leaves: tuple[int, ...], summed: frozenset[Axis]) -> str:
    rows = [edit[i] for i in leaves if summed.isdisjoint(edit[i].axes)]
    return "row-statistic" if any(is_statistic(edit, r, summed) for r in rows) else "plain"


def _prologue(edit: Edit, product: Node, operand: Node) -> set[int]:
    """What prepares an operand: casts, and corrections by smaller values where repeating them for
    every tile of columns is cheaper than storing the prepared operand."""
    chain: list[Node] = []
    current = operand
    reader = product.id
    while current.op == "cast" or (current.op in PROLOGUE and len(_full(edit, current)) == 1):
        if not is_free(edit, current) and not _is_stored_by_none(edit, current, reader):
            break
        chain.append(current)
        reader = current.id
        current = edit.operands(current)[0] if current.op == "cast" else _full(edit, current)[0]
    work = sum(n.op in PROLOGUE for n in chain)
    if work == 0 or not _repeating_is_cheaper(edit, product, operand, work):
        chain = [n for n in chain[:1] if is_free(edit, n)]
    while chain and chain[-1].op == "cast" and not is_free(edit, chain[-1]):
        chain.pop()  # the narrower value is the better one to load
    return {n.id for n in chain}


def _is_stored_by_none(edit: Edit, node: Node, reader: int) -> bool:
    """Whether all but `reader` only sum expressions of the value: it need not be stored."""
    todo = [u for u in edit.users(node.id) if u.id != reader]
    if edit.is_output(node.id):
        return False
    while todo:
        user = todo.pop()
        if user.op == "sum":
            continue
        if not is_elementwise(user) or set(user.axes) != set(node.axes) or edit.is_output(user.id):
            return False
        todo += edit.users(user.id)
    return True


def _full(edit: Edit, node: Node) -> list[Node]:
    return [o for o in edit.operands(node) if set(o.axes) == set(node.axes)]


def _loop_statistic(edit: Edit, product: Node, members: set[int], after: set[int]) -> set[int]:
    """The nodes of a row statistic to compute in the loop; none where that is dearer or impossible.

    It must be read by the epilogue alone, and be one sum over the contracted axes of an elementwise
    expression of the operand.
    """
    summed = frozenset(product.attrs.axes("axes"))
    operand = _loaded(edit, members, product, summed)
    if not _repeating_is_cheaper(edit, product, operand, work=3):
        return set()
    for leaf in [i for m in sorted(after) for i in edit[m].inputs if i not in members]:
        if summed.isdisjoint(edit[leaf].axes):
            found = _row_statistic(edit, leaf, after, summed, operand.id)
            if found:
                return found
    return set()


def _loaded(edit: Edit, members: set[int], product: Node, summed: frozenset[Axis]) -> Node:
    """The value that the loop loads for the operand that is no weight."""
    a, b = edit.operands(product)
    current = b if parameter_expression(edit, a.id) is not None else a
    while current.id in members or is_free(edit, current):
        current = next(o for o in edit.operands(current) if summed <= set(o.axes))
    return current


def _row_statistic(
    edit: Edit, leaf: int, readers: set[int], summed: frozenset[Axis], operand: int
) -> set[int]:
    """The nodes from `leaf` up to `operand`, if they are one sum and elementwise ops; else none."""
    found: set[int] = set()
    todo, sums = [leaf], 0
    while todo:
        node = edit[todo.pop()]
        if node.id in found or node.id == operand or node.op in SOURCES:
            continue
        wide = summed <= set(node.axes)
        private = all(u.id in readers | found for u in edit.users(node.id))
        is_sum = node.op == "sum" and frozenset(node.attrs.axes("axes")) == summed
        if not (is_sum or is_elementwise(node)) or not (private or wide):
            return set()
        sums += is_sum
        found.add(node.id)
        todo += node.inputs
    return found if sums == 1 else set()


def _repeating_is_cheaper(edit: Edit, product: Node, operand: Node, work: int) -> bool:
    """Whether `work` flops per element, for every tile of columns, beat a kernel of their own."""
    columns = _count(edit, [a for a in product.axes if a not in operand.axes])
    values = _count(edit, operand.axes)
    repeated = values * work * -(-columns // COLUMN_TILE) / FLOPS
    return repeated < LAUNCH + values * ELEMENT_BYTES["float"] / BANDWIDTH


def _count(edit: Edit, axes: Sequence[Axis]) -> int:
    """Elements along `axes`; all run-time sizes together count as `ROWS`."""
    known = [a for a in axes if is_static(edit, a)]
    rows = ROWS if len(known) < len(axes) else 1
    return rows * sizes_of([a.size for a in known]).evaluate(edit.program.sizes)


GUARDS = (
    Guard("matrix", "a and b share the summed axes alone", _has_batches),
    Guard("finished", "something prepares an operand or finishes the result", _is_bare),
)

FUSE_LINEAR = Pass(
    "fuse-linear",
    "f(a(x) b(W), ...) in one kernel",
    (
        Rule(
            "linear",
            fuse_linear,
            ("dot",),
            products,
            GUARDS,
            "f(a(x) b(W), ...) in one kernel",
            grow,
            JOINS,
        ),
    ),
)
