"""Which tiles of a product are read through tensor descriptors, from sm_90.

A descriptor reads a tile of a matrix in one instruction: rows a fixed stride apart, entries side by
side. The hardware asks for a first entry and a stride at multiples of 16 bytes, and gives zeros beyond
the matrix, which is what a mask at its edges gives. An address is such a matrix where it is

    base + stride * row + entry        base the same for the whole of a program's loop

A quotient `row // n` is part of the base where blocks of rows end at multiples of n: that is decided by
the block's length, in the kernel. Anything else is read through pointers, as on older devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...dsl.dims import Atom, Dim, Monomial
from .indexing import COLS, Indices, Var, never_negative

ENTRIES = 8  # of two bytes each are 16 bytes
DESCRIPTORS = "DESCRIPTORS"  # the kernel's argument: whether this device reads through descriptors


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a descriptor describes; `within` are lengths that blocks of rows must divide."""

    base: Dim
    stride: Dim
    row: Var
    entry: Var
    within: tuple[int, ...] = ()

    @property
    def is_turned(self) -> bool:
        """Whether the matrix's rows are the tile's columns."""
        return {slot for slot, _ in self.row.tiles} == {COLS}

    @property
    def condition(self) -> str:
        ((_, block),) = self.row.tiles
        return " and ".join([DESCRIPTORS, *(f"{n} % {block} == 0" for n in self.within)])


class NoMatrix(Exception):
    """Why an address is none."""


def matrix(indices: Indices, address: Dim) -> Matrix:
    """The matrix of which an address reads a tile. Raises NoMatrix."""
    base, coefficients, within = Dim(), dict[str, Dim](), dict[str, list[int]]()
    for monomial, coefficient in address.terms:
        varying = [atom for atom in monomial if _tiled(indices, atom)]
        rest = Dim(((_without(monomial, varying), coefficient),))
        if not varying:
            base = base + rest
            continue
        name, divisor = _step(indices, varying)
        if divisor is None:
            coefficients[name] = coefficients.get(name, Dim()) + rest
        else:
            within.setdefault(name, []).append(divisor)
            base = base + rest * (Dim.symbol(_first(indices, name)) // divisor)
    row, entry = _sides(indices, coefficients)
    found = Matrix(base, coefficients[row.symbol], row, entry, tuple(within.pop(row.symbol, ())))
    if within:
        raise NoMatrix("entries are not side by side")
    _check(found, indices.masks(address))
    return found


def _check(found: Matrix, masks: frozenset[str]) -> None:
    """What the hardware asks for. Raises NoMatrix."""
    if not all(c % ENTRIES == 0 for _, c in (*found.base.terms, *found.stride.terms)):
        raise NoMatrix("rows begin between multiples of 16 bytes")
    if not never_negative(found.stride - (found.entry.extent or Dim.of(1))):
        raise NoMatrix("rows overlap")
    if masks - found.row.masks - found.entry.masks:
        raise NoMatrix("a condition hides entries")


def _tiled(indices: Indices, atom: Atom) -> bool:
    return bool(indices.tiles(Dim((((atom,), 1),))))


def _without(monomial: Monomial, atoms: list[Atom]) -> Monomial:
    return tuple(atom for atom in monomial if atom not in atoms)


def _step(indices: Indices, varying: list[Atom]) -> tuple[str, int | None]:
    """The index of `x`, or that of `x // n` and n."""
    (atom, *more) = varying
    if not more and atom.name in indices.table:
        return atom.name, None
    if not more and atom.name == "floordiv":
        x, n = atom.args
        name, divisor = next(iter(x.symbols())), n.constant
        if x == Dim.symbol(name) and divisor is not None and divisor % ENTRIES == 0:
            return name, divisor
    raise NoMatrix("rows are not a fixed stride apart")


def _first(indices: Indices, symbol: str) -> str:
    """The symbol of the first entry of an index."""
    var = indices.table[symbol]
    if not var.first:
        raise NoMatrix("rows are gathered")
    first = Var(var.first, scope=var.scope)
    indices.add(first)
    return first.symbol


def _sides(indices: Indices, coefficients: dict[str, Dim]) -> tuple[Var, Var]:
    sides = [indices.table[symbol] for symbol in coefficients]
    if any(not var.first for var in sides):
        raise NoMatrix("rows are gathered")
    if len({slot for var in sides for slot, _ in var.tiles}) != 2 or len(sides) != 2:
        raise NoMatrix("rows are not a fixed stride apart")
    ones = [coefficients[var.symbol] == Dim.of(1) for var in sides]
    if sum(ones) != 1:
        raise NoMatrix("entries are not side by side")
    return (sides[1], sides[0]) if ones[0] else (sides[0], sides[1])
