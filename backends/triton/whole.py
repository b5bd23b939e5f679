"""Kernels count in 32 bits, and what is seen not to fit is refused.

An input is looked at when it is given, a value when kernels are written: as far as the bounds of ids
and constants say what it may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...compiler.ir.graph import Function, Node, Program
from ...compiler.ops import FUSED
from ...compiler.passes.properties import constant
from ...dsl.dims import Dim
from ...dsl.errors import NoLowering
from ..base import Array
from .evaluate import refuse
from .mapping import VIEWS

LEAST, MOST = -(2**31), 2**31 - 1
Bounds = tuple[int, int]

# What a value may be, by what its operands may be.
COMBINED: dict[str, Callable[[Sequence[Bounds]], Bounds]] = {
    "add": lambda x: (sum(a for a, _ in x), sum(b for _, b in x)),
    "mul": lambda x: _products(*x),
    "max": lambda x: (max(a for a, _ in x), max(b for _, b in x)),
    "min": lambda x: (min(a for a, _ in x), min(b for _, b in x)),
}


def check_inputs(program: Program, arrays: Mapping[str, Array]) -> None:
    """Raises NoLowering for an input that holds a number of more than 32 bits."""
    for node in (program.main[i] for i in program.main.inputs):
        array = arrays.get(node.attrs.string("name"))
        if node.type.dtype == "int" and array is not None and array.size:
            for value in (int(array.min()), int(array.max())):
                if not LEAST <= value <= MOST:
                    raise _wide(node, value)


def check_values(program: Program) -> None:
    """Raises NoLowering for a value that ids within their bounds make greater than 32 bits."""
    for function in program.functions:
        _walked(program, function, {})


def _walked(
    program: Program, function: Function, given: Mapping[int, Bounds]
) -> list[Bounds | None]:
    """What the outputs of a function may be, where its inputs are what is `given`."""
    found = dict(given)
    for node in function.nodes:
        bounds = found[node.id] if node.id in found else _bounds(program, node, found)
        if bounds is not None:
            found[node.id] = bounds
            for value in bounds:
                if not LEAST <= value <= MOST:
                    raise _wide(node, value)
    return [found.get(i) for i in function.output_ids]


def _wide(node: Node, value: int) -> NoLowering:
    return refuse(node, f"{value}, a whole number of more than 32 bits")


def _bounds(program: Program, node: Node, found: Mapping[int, Bounds]) -> Bounds | None:
    """The least and the greatest that a value can be; None where nothing says so."""
    if len(node.types) != 1 or node.type.dtype != "int":
        return None
    if node.op == "const":
        value = constant(node)
        value = value.constant if isinstance(value, Dim) else value
        return (value, value) if isinstance(value, int) else None
    if node.op == "input":
        return _declared(program, node)
    if node.op in FUSED:
        body = program.function(node.attrs.string("body"))
        inside = zip(body.inputs, node.inputs, strict=True)
        return _walked(program, body, {own: found[i] for own, i in inside if i in found})[0]
    operands = [found[i] for i in node.inputs if i in found]
    if len(operands) < len(node.inputs):
        return None
    if node.op in COMBINED:
        return COMBINED[node.op](operands)
    return operands[0] if node.op in VIEWS and len(operands) == 1 else None


def _declared(program: Program, node: Node) -> Bounds | None:
    below, extra = node.attrs.get("below"), node.attrs.get("extra")
    if not isinstance(below, Dim) or not below.symbols() <= program.sizes.keys():
        return None
    last = below.evaluate(program.sizes) - 1
    return (min(0, extra), max(last, extra)) if isinstance(extra, int) else (0, last)


def _products(a: Bounds, b: Bounds) -> Bounds:
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)
