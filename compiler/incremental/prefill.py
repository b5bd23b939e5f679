"""The full-sequence program that also gives the states it leaves."""

from __future__ import annotations

from ..ir.graph import STATE, Attrs, AttrValue, Builder, Function, Node, Program
from .derivation import Derivation, Kept, Part, end_of


def prefilled(derivation: Derivation) -> Program:
    """The canonical program with an output for each state, of main and of each layer kind."""
    functions = [_with_states(derivation, part) for part in derivation.parts.values()]
    return derivation.program.with_functions(functions)


def _with_states(derivation: Derivation, part: Part) -> Function:
    function = part.plan.values.function
    builder = Builder(part.name)
    for node in function.nodes:
        builder.append(_calling(part, node) if node.id in part.loops else node)
    states = [(f"{STATE}{kept.path}", _left(derivation, builder, kept)) for kept in part.kept]
    return Function(part.name, builder.nodes, function.inputs, (*function.outputs, *states))


def _calling(part: Part, loop: Node) -> Node:
    """The loop with the functions that the parts are."""
    kinds = loop.attrs["kinds"]
    assert isinstance(kinds, tuple)
    names = tuple(part.loops[loop.id][str(kind)].name for kind in kinds)
    attrs = Attrs({**loop.attrs, "kinds": names})
    return Node(loop.id, loop.op, loop.inputs, attrs, loop.types, loop.origins, loop.hint)


def _left(derivation: Derivation, builder: Builder, kept: Kept) -> int:
    """The value that is kept when the sequence ends."""
    node = kept.node
    attrs: dict[str, AttrValue]
    if len(node.types) > 1 or node.op == "scan":
        attrs, types = {"index": kept.index}, (node.types[kept.index],)
        return builder.add("result", (node.id,), attrs, types, node.origins)
    if kept.kind == "recurrent":
        attrs = {"axis": derivation.decoded, "at": derivation.decoded.size - 1}
        return builder.add("pick", (node.id,), attrs, origins=node.origins)
    if kept.reach is None:
        return node.id
    (time,) = (a for a in node.axes if derivation.is_time(a))
    last = end_of(time, derivation.last(kept.reach))
    return builder.add("slice", (node.id,), last, origins=node.origins)
