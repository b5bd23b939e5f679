"""A reduction of a product's result, begun in the product's kernel.

    sum_j f(y[i, j]) = sum_c z[i, c]            z[i, c] the same over the c-th block of columns j

The tile of y is in registers there: it leaves one number for each of its rows, and the kernel that
follows sums those, where it would have read all of y again. A row statistic of a norm, whose scale
waits until after the next product, is such a reduction. Legal where f reads nothing else that varies
along the columns, and nothing after the reduction reads y. A program that goes on from states has few
rows; its products may be cut (`split.py`), and nothing is begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...compiler.ir.graph import Axis, Function, Node, Program
from ...compiler.ops import OPS
from ...dsl.dims import Dim
from .mapping import REDUCTIONS
from .regions import FREE, HOST, Region, region_of
from .space import alike, plan_space
from .split import PARTS, above, joining

FOLDS = ("sum", "amax")


@dataclass(frozen=True, slots=True)
class Begun:
    """`region` computes the product and, at `reduction`, what `follower` then reduces over blocks.

    What is left of the blocks has `axes`: side by side, for one program sums those of a row.
    """

    region: Region
    reduction: Node
    axes: tuple[Axis, ...]
    follower: int
    join: Region


def begun(program: Program, function: Function) -> dict[int, Begun]:
    """What the kernels of a function begin, by the node of the product."""
    found: dict[int, Begun] = {}
    for node in function.nodes:
        for maker in () if node.op in FREE | HOST else map(function.__getitem__, node.inputs):
            if maker.op == "linear" and maker.id not in found:
                made = _begun(program, function, maker, node)
                if made is not None:
                    found[maker.id] = made
    return found


def _begun(program: Program, function: Function, maker: Node, node: Node) -> Begun | None:
    producer, reader = (region_of(program, function, n) for n in (maker, node))
    column, reduction = _column(producer), _reduction(reader)
    if column is None or reduction is None or reduction.attrs.axes("axes") != (column,):
        return None
    (leaf, *more) = [i for i, value in reader.leaves.items() if value == maker.id] or [-1]
    inside = [*above(reader, reduction.inputs)]
    if more or any(not _follows(n, leaf) for n in inside):
        return None
    if any(n.id == leaf for n in above(reader, reader.outputs, [reduction])):
        return None
    region = replace(producer, nodes=dict(producer.nodes))
    axes = (*reduction.axes, PARTS)
    join = joining(reader, reduction, axes)
    return Begun(region, _copied(region, reader, reduction, leaf), axes, node.id, join)


def _column(region: Region) -> Axis | None:
    """The axis of the result that runs along the columns of a product's tiles, if one does alone."""
    if region.node.op != "linear" or len(alike(region)) > 1 or len(region.outputs) > 1:
        return None
    space = plan_space(region)
    if space.product is None or len(space.outputs) > 1 or len(space.cols) != 1:
        return None
    ((_, at),) = space.outputs
    symbol = Dim.symbol(space.cols[0].symbol)
    return next((axis for axis, place in at.items() if place == symbol), None)


def _reduction(region: Region) -> Node | None:
    """The one reduction of a region."""
    found = [n for n in region.nodes.values() if n.op in REDUCTIONS or n.op.startswith("cum")]
    alone = len(found) == 1 and found[0].op in FOLDS and region.attend is None
    return found[0] if alone and found[0].type.dtype in ("float", "f32") else None


def _follows(node: Node, leaf: int) -> bool:
    """Whether a node is the product's result, a number, or pointwise in such."""
    return node.id == leaf or node.op == "const" or (node.op in OPS and OPS[node.op].pointwise)


def _copied(region: Region, reader: Region, reduction: Node, leaf: int) -> Node:
    """Adds the reduction of another region, and what it reduces, to the one that makes its leaf."""
    (output,) = region.outputs
    inside = {leaf: output}
    for node in _in_order(reader, reduction, leaf):
        inside[node.id] = region.add(node, tuple(inside[i] for i in node.inputs))
    return region.nodes[inside[reduction.id]]


def _in_order(region: Region, last: Node, leaf: int) -> Iterator[Node]:
    """Operands before what reads them."""
    wanted = {last.id, *(n.id for n in above(region, last.inputs))} - {leaf}
    return (node for i, node in sorted(region.nodes.items()) if i in wanted)
