"""Symbolic sizes: integer polynomials over named symbols, with floor division, minimum and maximum.

A `Dim` is kept in one canonical form, a sorted sum of integer multiples of monomials, so equality of
sizes is equality of values. A symbol is a hyperparameter (`d`, bound at compile time) or the size of
an input axis (`b`, bound by a call).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce


@dataclass(frozen=True, slots=True, order=True)
class Atom:
    """An indivisible factor: a symbol (`args` empty) or `floordiv`, `min`, `max` of two sizes."""

    name: str
    args: tuple[Dim, ...] = ()

    def __str__(self) -> str:
        if not self.args:
            return self.name
        if self.name == "floordiv":
            return f"{_wrap(self.args[0])} // {_wrap(self.args[1])}"
        return f"{self.name}({', '.join(map(str, self.args))})"


Monomial = tuple[Atom, ...]  # sorted, repeated for powers


@dataclass(frozen=True, slots=True, order=True)
class Dim:
    """A size. Build with `Dim.of(3)` or `Dim.symbol("d")`, combine with `+ - * // %`."""

    terms: tuple[tuple[Monomial, int], ...] = ()

    @staticmethod
    def of(value: int | Dim) -> Dim:
        if isinstance(value, Dim):
            return value
        return Dim((((), value),)) if value else Dim()

    @staticmethod
    def symbol(name: str) -> Dim:
        return Dim((((Atom(name),), 1),))

    @property
    def constant(self) -> int | None:
        """The value, when no symbol is left."""
        if not self.terms:
            return 0
        if len(self.terms) == 1 and self.terms[0][0] == ():
            return self.terms[0][1]
        return None

    def symbols(self) -> frozenset[str]:
        found: set[str] = set()
        for monomial, _ in self.terms:
            for atom in monomial:
                found |= {atom.name} if not atom.args else set()
                for arg in atom.args:
                    found |= arg.symbols()
        return frozenset(found)

    def substitute(self, bindings: Mapping[str, int | Dim]) -> Dim:
        """Replace symbols that `bindings` names; what it does not name stays."""
        total = Dim()
        for monomial, coefficient in self.terms:
            product = Dim.of(coefficient)
            for atom in monomial:
                product = product * _substitute_atom(atom, bindings)
            total = total + product
        return total

    def evaluate(self, bindings: Mapping[str, int]) -> int:
        """The number under `bindings`; `KeyError` names a symbol that has no value."""
        try:
            return self._value(bindings)
        except KeyError:  # of a symbol that may vanish, as in a product with 0
            pass
        value = self.substitute(bindings).constant
        if value is None:
            raise KeyError(", ".join(sorted(self.symbols() - set(bindings))))
        return value

    def _value(self, bindings: Mapping[str, int]) -> int:
        """As `substitute`, with plain numbers: a run evaluates thousands of sizes."""
        total = 0
        for monomial, coefficient in self.terms:
            for atom in monomial:
                coefficient *= _atom_value(atom, bindings)
            total += coefficient
        return total

    def __add__(self, other: int | Dim) -> Dim:
        right = Dim.of(other)
        if not self.terms or not right.terms:
            return right if not self.terms else self
        return _collect([*self.terms, *right.terms])

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: int | Dim) -> Dim:
        return self + Dim.of(other) * -1

    def __rsub__(self, other: int) -> Dim:
        return Dim.of(other) - self

    def __mul__(self, other: int | Dim) -> Dim:
        right = Dim.of(other)
        for one, factor in ((self, right.constant), (right, self.constant)):
            if factor is not None:  # the same monomials
                return Dim(tuple((m, x * factor) for m, x in one.terms)) if factor else Dim()
        pairs = ((a + b, x * y) for a, x in self.terms for b, y in right.terms)
        return _collect([(tuple(sorted(monomial)), value) for monomial, value in pairs])

    __rmul__ = __mul__

    def __floordiv__(self, other: int | Dim) -> Dim:
        return _floordiv(self, Dim.of(other))

    def __rfloordiv__(self, other: int) -> Dim:
        return _floordiv(Dim.of(other), self)

    def __mod__(self, other: int | Dim) -> Dim:
        return self - (self // other) * other

    def __rmod__(self, other: int) -> Dim:
        return Dim.of(other) % self

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        # constants last: `d + 1`
        ordered = sorted(self.terms, key=lambda term: (term[0] == (), term))
        text = ""
        for monomial, coefficient in ordered:
            sign = "-" if coefficient < 0 else "+"
            body = _term(monomial, coefficient)
            text = (f"-{body}" if sign == "-" else body) if not text else f"{text} {sign} {body}"
        return text


def minimum(a: int | Dim, b: int | Dim) -> Dim:
    return _extremum("min", min, Dim.of(a), Dim.of(b))


def maximum(a: int | Dim, b: int | Dim) -> Dim:
    return _extremum("max", max, Dim.of(a), Dim.of(b))


def product(sizes: list[Dim] | tuple[Dim, ...]) -> Dim:
    return reduce(lambda a, b: a * b, sizes, Dim.of(1))


def _collect(terms: list[tuple[Monomial, int]]) -> Dim:
    sums: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        sums[monomial] = sums.get(monomial, 0) + coefficient
    return Dim(tuple(sorted((m, c) for m, c in sums.items() if c)))


def _floordiv(a: Dim, b: Dim) -> Dim:
    if b.constant == 0:
        raise ZeroDivisionError(f"{a} // 0")
    if a.constant is not None and b.constant is not None:
        return Dim.of(a.constant // b.constant)
    exact = _divide_exactly(a, b)
    return exact if exact is not None else Dim((((Atom("floordiv", (a, b)),), 1),))


def _divide_exactly(a: Dim, b: Dim) -> Dim | None:
    """`a / b` when b is one monomial that divides every term of a (sizes are positive)."""
    if len(b.terms) != 1:
        return Dim.of(1) if a == b else None
    divisor, by = b.terms[0]
    terms: list[tuple[Monomial, int]] = []
    for monomial, coefficient in a.terms:
        rest = list(monomial)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % by:
            return None
        terms.append((tuple(rest), coefficient // by))
    return _collect(terms)


def _extremum(name: str, of: Callable[[int, int], int], a: Dim, b: Dim) -> Dim:
    if a == b:
        return a
    if a.constant is not None and b.constant is not None:
        return Dim.of(of(a.constant, b.constant))
    low, high = sorted((a, b))
    return Dim((((Atom(name, (low, high)),), 1),))


def _substitute_atom(atom: Atom, bindings: Mapping[str, int | Dim]) -> Dim:
    if not atom.args:
        return Dim.of(bindings[atom.name]) if atom.name in bindings else Dim((((atom,), 1),))
    left, right = (arg.substitute(bindings) for arg in atom.args)
    if atom.name == "floordiv":
        return left // right
    return minimum(left, right) if atom.name == "min" else maximum(left, right)


def _atom_value(atom: Atom, bindings: Mapping[str, int]) -> int:
    if not atom.args:
        return bindings[atom.name]
    left, right = (arg.evaluate(bindings) for arg in atom.args)
    if atom.name == "floordiv":
        return left // right
    return min(left, right) if atom.name == "min" else max(left, right)


def _term(monomial: Monomial, coefficient: int) -> str:
    factors = [_factor(atom, len(monomial) > 1 or coefficient != 1) for atom in monomial]
    if abs(coefficient) != 1 or not factors:
        factors.insert(0, str(abs(coefficient)))
    return "*".join(factors)


def _factor(atom: Atom, within_product: bool) -> str:
    return f"({atom})" if within_product and atom.name == "floordiv" else str(atom)


def _wrap(dim: Dim) -> str:
    text = str(dim)
    return text if re.fullmatch(r"\w+|(min|max)\([^()]*\)", text) else f"({text})"


_TOKEN = re.compile(r"\s*(//|\d+|[A-Za-z_][\w.]*|[-+*(),])")


def parse(text: str) -> Dim:
    """The inverse of `str`. Raises `ValueError` for anything else."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != re.sub(r"\s", "", text):
        raise ValueError(f"not a size: {text!r}")
    value, rest = _parse_sum(tokens)
    if rest:
        raise ValueError(f"not a size: {text!r}")
    return value


def _parse_sum(tokens: list[str]) -> tuple[Dim, list[str]]:
    value, tokens = _parse_quotient(tokens)
    while tokens and tokens[0] in "+-":
        sign, tokens = tokens[0], tokens[1:]
        right, tokens = _parse_quotient(tokens)
        value = value + right if sign == "+" else value - right
    return value, tokens


def _parse_quotient(tokens: list[str]) -> tuple[Dim, list[str]]:
    value, tokens = _parse_factor(tokens)
    while tokens and tokens[0] in ("*", "//"):
        operator, tokens = tokens[0], tokens[1:]
        right, tokens = _parse_factor(tokens)
        value = value * right if operator == "*" else value // right
    return value, tokens


def _parse_factor(tokens: list[str]) -> tuple[Dim, list[str]]:
    if not tokens:
        raise ValueError("a size ends too early")
    head, rest = tokens[0], tokens[1:]
    if head == "-":
        value, rest = _parse_factor(rest)
        return -value, rest
    if head == "(":
        value, rest = _parse_sum(rest)
        return value, rest[1:]
    if head in ("min", "max") and rest[:1] == ["("]:
        left, rest = _parse_sum(rest[1:])
        right, rest = _parse_sum(rest[1:])
        return (minimum if head == "min" else maximum)(left, right), rest[1:]
    return (Dim.of(int(head)) if head.isdigit() else Dim.symbol(head)), rest
