"""g(weights) -> derived: an expression of weights alone is evaluated once, at load.

The weights themselves survive for export, so this is always legal. It is declined where it would
cost memory: a second copy of a matrix that something else still reads, or a result larger than
its parts. Passes that fold or pack weights write plain expressions; this pass, after them, makes
each of the largest ones a single derived parameter. One that is quantised ends in its codes and
scales: these are what is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..ir.graph import Node, TensorType
from ..rewrite import Declined, Edit, Fuse, Outcome, Pass, Region, Rule, close
from .properties import (
    REDUCTIONS,
    SOURCES,
    VIEWS,
    bytes_of,
    is_elementwise,
    line,
    parameter_expression,
)


def derive(edit: Edit, node: Node) -> Outcome:
    if not _computes(node):
        return None
    members = parameter_expression(edit, node.id)
    if members is None or not _is_largest(edit, node):
        return None
    if any(edit[i].op == "derived" for i in members):
        return None
    results = [node.id] if len(node.types) == 1 else [u.id for u in edit.users(node.id)]
    region = close(edit, {*members, *results} - _weights(edit, members), results)
    refused = refuse_copy(edit, region, node.types)
    return Declined(refused) if refused else Fuse("derived", region)


def _weights(edit: Edit, members: Collection[int]) -> set[int]:
    return {i for i in members if edit[i].op == "weight"}


def _computes(node: Node) -> bool:
    """Views of a weight are read as they are, and raised where they are read; so are codes."""
    if node.op in VIEWS | SOURCES | {"result", "dequantise"} or (
        node.op == "cast" and node.type.dtype != "float"
    ):
        return False
    kept = REDUCTIONS | {"concat", "dot", "packed", "quantise"}
    return node.op in kept or is_elementwise(node)


def _is_largest(edit: Edit, node: Node) -> bool:
    """Whether a reader of the value, or of a view or cast of it, depends on more than weights."""
    if edit.is_output(node.id):
        return True
    for user in edit.users(node.id):
        if parameter_expression(edit, user.id) is None:
            return True
        if not _computes(user) and _is_largest(edit, user):
            return True
    return False


def refuse_copy(edit: Edit, region: Region, results: Sequence[TensorType]) -> str:
    """Why the derived parameter of these `results` is not worth its memory; empty when it is."""
    inside, sizes = set(region.nodes), edit.program.sizes
    leaves = [edit[i] for i in region.leaves]
    stored = {leaf.id: bytes_of(leaf.type).evaluate(sizes) for leaf in leaves}
    cost = sum(bytes_of(result).evaluate(sizes) for result in results)
    for leaf in leaves:
        other = [u for u in edit.users(leaf.id) if u.id not in inside]
        if other and len(leaf.axes) > 1 and cost * 2 > stored[leaf.id]:
            return tied(leaf, other[0])
    if cost > 2 * max(sum(stored.values()), 1):
        return "the result is larger than the weights it is made of"
    return ""


def tied(weight: Node, reader: Node) -> str:
    return f"{name_of(weight)} is read at {line(reader)} too: folding would store it twice"


def name_of(node: Node) -> str:
    """A weight's path, or the words for another value."""
    if node.op == "weight":
        return f"`{node.attrs['path']}`"
    return f"`{node.hint}`" if node.hint else f"a {node.op}"


DERIVE_PARAMETERS = Pass(
    "derive-parameters", "g(W) = W', computed at load", (Rule("derive", derive),)
)
