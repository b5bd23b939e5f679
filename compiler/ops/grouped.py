"""The shape of a `grouped` body: a product of rows with the matrix that each row's index picks.

    y[r] = W[i[r]] x[r]   is   y[S_e] = W[e] x[S_e]   for each e,  where  S_e = {r : i[r] = e}

so the rows are sorted by index, each matrix that some row picks is multiplied once with the rows
that pick it, and the results go back to where the rows were. No matrix is copied for a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.graph import Axis, Function, Node

Axes = tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class GroupedPlan:
    """`x`, `matrices` and `index` are inputs of the body, its only other nodes `take` and `product`.

    A row is a position along `rows`: the axes of the index, then what x has beside them. A matrix
    has the axes `inner`, which are summed, and `outer`, which the result has.
    """

    x: Node
    matrices: Node
    index: Node
    take: Node
    product: Node
    rows: Axes
    inner: Axes
    outer: Axes

    @property
    def entries(self) -> Axis:
        """The axis along which the index counts."""
        return self.take.attrs.axis("axis")


def plan_grouped(body: Function) -> GroupedPlan:
    """The plan of the body of a `grouped` node."""
    (product,) = (body[i] for i in body.output_ids)
    operands = [body[i] for i in product.inputs]
    (take,) = (node for node in operands if node.op == "take")
    (x,) = (node for node in operands if node is not take)
    matrices, index = (body[i] for i in take.inputs)
    return plan_product(x, take, matrices, index, product)


def plan_product(x: Node, take: Node, matrices: Node, index: Node, product: Node) -> GroupedPlan:
    """The plan of dot(x, take(matrices, index)), fused or not."""
    summed = product.attrs.axes("axes")
    sides = [a for a in matrices.axes if a != take.attrs.axis("axis")]
    beside = [a for a in x.axes if a not in summed and a not in index.axes]
    inner = tuple(a for a in sides if a in summed)
    outer = tuple(a for a in sides if a not in summed)
    return GroupedPlan(x, matrices, index, take, product, (*index.axes, *beside), inner, outer)
