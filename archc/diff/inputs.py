"""Inputs for a model that was given none, from the domains its `input` lines declare.

Three cases by default: *ragged*, where all run-time sizes are distinct and odd; *colliding*, where
they equal sizes of the model (as many tokens as heads), so that a lookup by size finds the wrong
axis; and *long*, past the borders of tiles. Masks hide the end of one row and the beginning of
another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..backends.base import Array, plain_symbol, span_of
from ..compiler.ir.graph import Axis, Function, Node, Program
from ..compiler.passes.properties import constant
from ..dsl.dims import Dim
from ..dsl.errors import NegativeSize

RAGGED = (3, 7, 5, 2, 9)
COLLIDING = (2, 16)  # the smallest and greatest size of the model to collide with
LONG = 70  # one sequence of more than a tile on every backend, as far as tables of positions reach


@dataclass(frozen=True, slots=True)
class Case:
    """Named input arrays, and a word for what is special about them."""

    name: str
    inputs: Mapping[str, Array]

    def __str__(self) -> str:
        shapes = (f"{name} {list(a.shape)}" for name, a in self.inputs.items())
        return f"{self.name}: {', '.join(shapes)}"


def read_inputs(program: Program) -> dict[str, Node]:
    """The input nodes that something reads, by name."""
    main, users = program.main, program.main.users()
    wanted = [i for i in main.inputs if users[i] or i in main.output_ids]
    return {main[i].attrs.string("name"): main[i] for i in wanted}


def random_cases(program: Program, seed: int, sizes: Mapping[str, int]) -> Iterator[Case]:
    """Ragged, colliding and long; only one when `sizes` fixes all run-time sizes."""
    symbols = run_time_symbols(program)
    colliding = _model_sizes(program) or RAGGED
    reach = max(1, min([LONG, *_table_lengths(program)]))
    long = (*[1] * (len(symbols) - 1), reach)
    for name, cycle in (("ragged", RAGGED), ("colliding", colliding), ("long", long)):
        chosen = {s: min(cycle[i % len(cycle)], reach) for i, s in enumerate(symbols)}
        free = set(symbols) - set(sizes)
        chosen = _related(program, {**program.sizes, **chosen, **sizes}, free)
        chosen = _present(program, chosen, free)
        yield Case(name, _arrays(program, seed, chosen))
        if set(symbols) <= sizes.keys():
            return


def run_time_symbols(program: Program) -> list[str]:
    """Sizes that a call decides, in the order of the inputs."""
    axes = (axis for node in read_inputs(program).values() for axis in node.axes)
    symbols = (plain_symbol(axis.size) for axis in axes)
    return [s for s in dict.fromkeys(symbols) if s is not None and s not in program.sizes]


def _related(program: Program, sizes: Mapping[str, int], free: set[str]) -> dict[str, int]:
    """`sizes`, the `free` ones enlarged until `k <= n` holds wherever the text relies on it."""
    found = dict(sizes)
    for relation in program.constraints:
        symbols = relation.left.symbols() | relation.right.symbols()
        if relation.op == "<=" and symbols <= found.keys():
            found = _grown(found, relation.right.symbols() & free, relation.right - relation.left)
    return found


def _present(program: Program, sizes: Mapping[str, int], free: set[str]) -> dict[str, int]:
    """`sizes`, the `free` ones enlarged until no axis of an input is shorter than nothing.

    Raises NegativeSize where that does not help.
    """
    found = dict(sizes)
    for node in read_inputs(program).values():
        for axis in node.axes:
            found = _grown(found, axis.size.symbols() & free, axis.size)
            size = axis.size.evaluate(found)
            if size < 0:
                raise NegativeSize(axis=axis.name, size=str(size), span=span_of(node))
    return found


def _grown(sizes: dict[str, int], growing: Collection[str], least: Dim) -> dict[str, int]:
    """`sizes`, those that are `growing` enlarged until `least` is 0 or more, as far as is tried."""
    found = dict(sizes)
    for _ in range(LONG if growing else 0):
        if least.evaluate(found) >= 0:
            break
        found |= {symbol: found[symbol] + 1 for symbol in growing}
    return found


def _model_sizes(program: Program) -> tuple[int, ...]:
    known = program.sizes
    axes = {a for f in program.functions for n in f.nodes for t in n.types for a in t.axes}
    sizes = {a.size.evaluate(known) for a in axes if a.size.symbols() <= known.keys()}
    return tuple(sorted(s for s in sizes if COLLIDING[0] <= s <= COLLIDING[1]))


def _table_lengths(program: Program) -> list[int]:
    """Rows of what is looked up by positions, which must be in range; ids are by themselves."""
    takes = [(f, n) for f in program.functions for n in f.nodes if n.op == "take"]
    by_position = [(f, n) for f, n in takes if f[n.inputs[1]].op != "input"]
    sizes = [
        n.attrs.axis("axis").size - _offset(f, f[n.inputs[1]])
        for f, n in by_position
        if n.attrs["fill"] is None
    ]
    return [s.evaluate(program.sizes) for s in sizes if s.symbols() <= program.sizes.keys()]


def _offset(function: Function, index: Node) -> Dim:
    """The constant that an index such as `slot(s) + 2` adds to the position."""
    operands = [function[i] for i in index.inputs] if index.op == "add" else []
    values = [constant(node) for node in operands]
    return sum((Dim.of(v) for v in values if isinstance(v, int | Dim)), Dim())


def _arrays(program: Program, seed: int, sizes: Mapping[str, int]) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    made = {
        name: _array(random, node, node.type.shape(sizes), sizes)
        for name, node in read_inputs(program).items()
    }
    if program.after in made:  # a prefix is no longer than the sequence
        made[program.after] %= _length(program, sizes) + 1
    return made


def _length(program: Program, sizes: Mapping[str, int]) -> int:
    """How long the decoded axis is."""
    axes = (axis for node in read_inputs(program).values() for axis in node.axes)
    return next(a.size.evaluate(sizes) for a in axes if a.name == program.decode)


def _array(
    random: np.random.Generator, node: Node, shape: tuple[int, ...], sizes: Mapping[str, int]
) -> Array:
    if node.type.dtype == "bool":
        return _mask(random, node.axes, shape)
    if node.type.dtype == "int":
        below = node.attrs.dim("below").evaluate(sizes) if node.attrs.get("below") else 8
        return random.integers(0, below, shape)
    return random.standard_normal(shape).astype(np.float32)


def _mask(random: np.random.Generator, axes: tuple[Axis, ...], shape: tuple[int, ...]) -> Array:
    """Along the last axis: padding before, padding after and none, row by row in turn."""
    if len(axes) < 2:
        return random.random(shape) < 0.7
    rows, length = int(np.prod(shape[:-1])), shape[-1]
    mask = np.ones((rows, length), np.bool_)
    for row in range(rows):
        hidden = int(random.integers(1, max(2, (length + 1) // 2)))
        if row % 3 == 0:
            mask[row, :hidden] = False
        elif row % 3 == 1:
            mask[row, length - hidden :] = False
    return mask.reshape(shape)
