"""Index arithmetic of a kernel: coordinates are `Dim` polynomials over its integer variables.

A `Var` is an integer in the kernel's text: a tile's index vector, a program id, an index loaded
from memory. Quotients and remainders that ranges do not decide are vars too, defined as `x // n`
and `x - n * (x // n)`. Written out, a split axis that is merged again cancels by itself, and the
address of a row-major array over flattened axes comes out as `row * n + column`: the form in which
the compiler sees contiguous lanes. Symbols of vars start with `%`, so they never meet those of
sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ...compiler.ir.graph import Axis
from ...dsl.dims import Atom, Dim, Monomial, product
from .scopes import ROOT, Scope, deepest

ROWS, COLS = 0, 1  # the two dimensions of a tile
ALIGNED = 16
Tiles = frozenset[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Var:
    """An integer with 0 <= value < extent wherever its masks hold.

    `tiles` are the tile dimensions along which it varies, each with its length as text; `scope` is
    where its text is valid. One that counts up by ones has the text of its `first` value. A var with
    a `definition` is never printed: it stands for that polynomial of other vars.
    """

    name: str
    extent: Dim | None = None
    tiles: Tiles = frozenset()
    masks: frozenset[str] = frozenset()
    scope: Scope = ROOT
    definition: Dim | None = None
    first: str = ""

    @property
    def symbol(self) -> str:
        return f"%{self.name}"


def identifier(text: str) -> str:
    """`text` as the beginning of a Python name."""
    stem = re.sub(r"\W+", "_", text).strip("_") or "x"
    return f"x{stem}" if stem[0].isdigit() else stem


@dataclass(slots=True)
class Indices:
    """The variables of one kernel and what is known of them."""

    table: dict[str, Var] = field(default_factory=dict)
    size_names: dict[str, str] = field(default_factory=dict)  # size symbol -> kernel argument
    quotients: dict[tuple[Dim, Dim], tuple[Dim, Dim]] = field(default_factory=dict)
    flattened: dict[tuple[str, tuple[Dim, ...]], list[Dim]] = field(default_factory=dict)

    def add(self, var: Var) -> Dim:
        self.table[var.symbol] = var
        return Dim.symbol(var.symbol)

    def flatten(self, axes: Sequence[tuple[str, Dim]], base: Var) -> list[Dim]:
        """Coordinates of row-major `(name, size)` axes whose flat index is `base`."""
        key = base.symbol, tuple(size for _, size in axes)
        if key not in self.flattened:
            self.flattened[key] = self._flatten(axes, base)
        return self.flattened[key]

    def _flatten(self, axes: Sequence[tuple[str, Dim]], base: Var) -> list[Dim]:
        rest, found = Dim.symbol(base.symbol), dict.fromkeys(range(len(axes)), Dim())
        long = [i for i, (_, size) in enumerate(axes) if size != Dim.of(1)]
        for i in reversed(long[1:]):
            name, size = axes[i]
            quotient = _floordiv(rest, size)
            found[i] = self.define(name, size, rest - quotient * size)
            rest = quotient
        if long:
            first, size = axes[long[0]]
            found[long[0]] = self.define(first, size, rest) if long[1:] else rest
        return list(found.values())

    def define(self, name: str, extent: Dim | None, definition: Dim) -> Dim:
        """A var that stands for `definition`."""
        if extent == Dim.of(1):
            return Dim.of(0)
        unique = f"{name}.{len(self.table)}"
        tiles, masks = self.tiles(definition), self.masks(definition)
        return self.add(Var(unique, extent, tiles, masks, self.scope(definition), definition))

    def divide(self, a: Dim, n: Dim) -> tuple[Dim, Dim]:
        """`(a // n, a % n)` for `a >= 0`. What ranges do not decide becomes a pair of new vars."""
        if n == Dim():
            return Dim(), a
        exact, rest = Dim(), Dim()
        for monomial, coefficient in a.terms:
            term = Dim(((monomial, coefficient),))
            quotient = _exact_quotient(term, n)
            exact, rest = (exact, rest + term) if quotient is None else (exact + quotient, rest)
        if self.within(rest, n):
            return exact, rest
        quotient, remainder = self._divided(rest, n)
        return exact + quotient, remainder

    def _divided(self, a: Dim, n: Dim) -> tuple[Dim, Dim]:
        known = self.quotients.get((a, n))
        if known is None:
            high = self.highest(a)
            stem = f"div{len(self.quotients)}"
            extent = None if high is None else high // n + 1
            quotient = self.define(f"{stem}_q", extent, _floordiv(self.expand(a), n))
            known = quotient, self.define(f"{stem}_r", n, a - quotient * n)
            self.quotients[a, n] = known
        return known

    def within(self, a: Dim, n: Dim) -> bool:
        """Whether 0 <= a < n is certain."""
        high = self.highest(a)
        return high is not None and never_negative(n - 1 - high)

    def highest(self, a: Dim) -> Dim | None:
        """An upper bound of `a` where `a >= 0` is certain, else None."""
        total = Dim()
        for monomial, coefficient in a.terms:
            factors = [self._highest_atom(atom) for atom in monomial]
            if coefficient < 0 or None in factors:
                return None
            total = total + product([Dim.of(coefficient), *(f for f in factors if f is not None)])
        return total

    def _highest_atom(self, atom: Atom) -> Dim | None:
        if atom.name.startswith("%"):
            extent = self.table[atom.name].extent
            return None if extent is None else extent - 1
        return Dim(((((atom,)), 1),))

    def variables(self, a: Dim) -> list[Var]:
        return [self.table[s] for s in sorted(a.symbols()) if s.startswith("%")]

    def tiles(self, a: Dim) -> Tiles:
        return frozenset().union(*(v.tiles for v in self.variables(a)))

    def masks(self, a: Dim) -> frozenset[str]:
        return frozenset().union(*(v.masks for v in self.variables(a)))

    def lane(self, a: Dim) -> Var | None:
        """The index vector along which `a` is contiguous, if every other term is aligned."""
        lanes = [m for m, c in a.terms if c == 1 and len(m) == 1 and m[0].name in self.table]
        lanes = [m for m in lanes if self.table[m[0].name].tiles]
        if len(lanes) != 1 or not self.is_aligned(a - Dim(((lanes[0], 1),))):
            return None
        return self.table[lanes[0][0].name]

    def is_aligned(self, a: Dim) -> bool:
        """Whether `a` is a multiple of 16 where run-time sizes are: that of 16 bytes at least."""
        return all(
            coefficient % ALIGNED == 0 or any(atom.name in self.size_names for atom in monomial)
            for monomial, coefficient in a.terms
        )

    def scope(self, a: Dim) -> Scope:
        return deepest(v.scope for v in self.variables(a))

    def expand(self, a: Dim) -> Dim:
        """`a` over printed variables only."""
        while True:
            known = {v.symbol: v.definition for v in self.variables(a) if v.definition is not None}
            if not known:
                return a
            a = a.substitute(known)

    def text(self, a: Dim) -> str:
        """`a` as a Triton expression."""
        return self._sum(self.expand(a))

    def _sum(self, a: Dim) -> str:
        parts: list[str] = []
        rest, remainders = _remainders(a)
        for factor, x, m in remainders:
            parts.append(self._times(factor, f"{self._factor(x)} % {self._factor(m)}"))
        # long strides first: batch, row, column
        for monomial, coefficient in sorted(rest.terms, key=_stride, reverse=True):
            sign = "-" if coefficient < 0 else ""
            parts.append(sign + self._product(monomial, abs(coefficient)))
        if not parts:
            return "0"
        return " + ".join(parts).replace("+ -", "- ")

    def _times(self, factor: Dim, text: str) -> str:
        return text if factor == Dim.of(1) else f"({text}) * {self._factor(factor)}"

    def _factor(self, a: Dim) -> str:
        text = self._sum(a)
        return text if re.fullmatch(r"\w+", text) else f"({text})"

    def _product(self, monomial: Monomial, coefficient: int) -> str:
        factors = [self._atom(atom, len(monomial) > 1 or coefficient != 1) for atom in monomial]
        if coefficient != 1 or not factors:
            factors.append(str(coefficient))
        return " * ".join(factors)

    def _atom(self, atom: Atom, in_product: bool) -> str:
        if atom.name == "floordiv":
            text = f"{self._factor(atom.args[0])} // {self._factor(atom.args[1])}"
            return f"({text})" if in_product else text
        if atom.args:
            function = "tl.minimum" if atom.name == "min" else "tl.maximum"
            return f"{function}({', '.join(map(self._sum, atom.args))})"
        if atom.name.startswith("%"):
            return self.table[atom.name].name
        return self.size_names.setdefault(atom.name, f"n_{identifier(atom.name)}")


def join(coordinates: Iterable[Dim], sizes: Iterable[Dim]) -> Dim:
    """The flat row-major index."""
    flat = Dim()
    for coordinate, size in zip(coordinates, sizes, strict=True):
        flat = flat * size + coordinate
    return flat


Coordinates = Mapping[Axis, Dim]


def _quotient(monomial: Monomial) -> Atom | None:
    return next((atom for atom in monomial if atom.name == "floordiv"), None)


def _without(monomial: Monomial, atom: Atom) -> Monomial:
    rest = list(monomial)
    rest.remove(atom)
    return tuple(rest)


def _floordiv(a: Dim, n: Dim) -> Dim:
    """`a // n` for `a >= 0`; `(a // m) // n` is one division where both are numbers.

    Zero along an axis without elements: what is left of `a`, the index there, is always masked.
    """
    if n == Dim():
        return Dim()
    if len(a.terms) == 1 and a.terms[0][1] == 1 and len(a.terms[0][0]) == 1 and n.constant:
        atom = a.terms[0][0][0]
        if atom.name == "floordiv" and atom.args[1].constant:
            return _floordiv(atom.args[0], atom.args[1] * n)
    return a // n


def _exact_quotient(term: Dim, n: Dim) -> Dim | None:
    quotient = term // n
    unevaluated = Dim((((Atom("floordiv", (term, n)),), 1),))
    return None if quotient == unevaluated or quotient * n != term else quotient


def never_negative(a: Dim) -> bool:
    """Sizes are at least 1, so non-negative coefficients suffice."""
    return all(coefficient >= 0 for _, coefficient in a.terms)


def _remainders(a: Dim) -> tuple[Dim, list[tuple[Dim, Dim, Dim]]]:
    """Splits `a` into a rest and terms `factor * (x % m)`."""
    found: list[tuple[Dim, Dim, Dim]] = []
    for monomial, coefficient in a.terms:
        quotient = _quotient(monomial)
        if quotient is None or coefficient >= 0:
            continue
        x, m = quotient.args
        scale = Dim(((_without(monomial, quotient), -coefficient),))
        factor = scale // m
        if factor * m != scale or not _contains(a, factor * x):
            continue
        a = a - factor * (x - m * (x // m))
        found.append((factor, x, m))
    return a, found


def _contains(a: Dim, part: Dim) -> bool:
    """Whether every term of `part` occurs in `a` with at least that coefficient and sign."""
    have = dict(a.terms)
    return all(have.get(m, 0) * c > 0 and abs(have.get(m, 0)) >= abs(c) for m, c in part.terms)


def _stride(term: tuple[Monomial, int]) -> tuple[bool, int, int, Monomial]:
    monomial, coefficient = term
    sizes = sum(not atom.name.startswith("%") and not atom.args for atom in monomial)
    return bool(monomial), sizes, coefficient, monomial
