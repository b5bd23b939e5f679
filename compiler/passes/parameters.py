"""g(weights) -> derived: an expression of weights alone is evaluated once, at load.

The weights themselves survive for export, so this is always legal. It is declined where it would
cost memory: a second copy of a matrix that something else still reads, or a result larger than
its parts. Passes that fold or pack weights write plain expressions; this pass, after them, makes
each of the largest ones a single derived parameter. One that is quantised ends in its codes and
scales: these are what is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ..ir.graph import Node, TensorType
from ..rewrite import Edit, Fuse, Guard, Pass, Region, Rule, close
from .properties import (
    REDUCTIONS,
    SOURCES,
    VIEWS,
    bytes_of,
    is_elementwise,
    line,
    parameter_expression,
)


@dataclass(frozen=True, slots=True)
class Expression:
    """A value of weights alone: `region` is what computes it from them."""

    node: Node
    region: Region


def expressions(edit: Edit, node: Node) -> Iterator[Expression]:
    """What computes something, of weights as they are stored."""
    if not _computes(node):
        return
    members = parameter_expression(edit, node.id)
    if members is None or any(edit[i].op == "derived" for i in members):
        return
    results = [node.id] if len(node.types) == 1 else [u.id for u in edit.users(node.id)]
    yield Expression(node, close(edit, {*members, *results} - _weights(edit, members), results))


def derive(edit: Edit, found: Expression) -> Fuse:
    return Fuse("derived", found.region)


def _is_part(edit: Edit, found: Expression) -> bool:
    return not _is_largest(edit, found.node)


def _is_copied(edit: Edit, found: Expression) -> str:
    return stored_twice(edit, found.region, found.node.types)


def _is_grown(edit: Edit, found: Expression) -> str:
    return outgrown(edit, found.region, found.node.types)


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
    return stored_twice(edit, region, results) or outgrown(edit, region, results)


def stored_twice(edit: Edit, region: Region, results: Sequence[TensorType]) -> str:
    """Names a matrix that something outside reads too, where the results are no small part of it."""
    inside, cost = set(region.nodes), _bytes(edit, results)
    for leaf in (edit[i] for i in region.leaves):
        other = [u for u in edit.users(leaf.id) if u.id not in inside]
        if other and len(leaf.axes) > 1 and cost * 2 > _bytes(edit, [leaf.type]):
            return tied(leaf, other[0])
    return ""


def outgrown(edit: Edit, region: Region, results: Sequence[TensorType]) -> str:
    if _bytes(edit, results) > 2 * max(_bytes(edit, [edit[i].type for i in region.leaves]), 1):
        return "the result is larger than the weights it is made of"
    return ""


def _bytes(edit: Edit, types: Sequence[TensorType]) -> int:
    return sum(bytes_of(kind).evaluate(edit.program.sizes) for kind in types)


def tied(weight: Node, reader: Node) -> str:
    return f"{name_of(weight)} is read at {line(reader)} too: folding would store it twice"


def name_of(node: Node) -> str:
    """A weight's path, or the words for another value."""
    if node.op == "weight":
        return f"`{node.attrs['path']}`"
    return f"`{node.hint}`" if node.hint else f"a {node.op}"


GUARDS = (
    Guard("largest", "what reads it depends on more than weights", _is_part),
    Guard("untied", "no weight it is made of is read elsewhere, or it is a small part", _is_copied),
    Guard("no-growth", "it is at most twice as large as what it is made of", _is_grown),
)

DERIVE_PARAMETERS = Pass(
    "derive-parameters",
    "g(W) = W', computed at load",
    (Rule("derive", derive, match=expressions, guards=GUARDS, equation="g(W) = W'"),),
)
