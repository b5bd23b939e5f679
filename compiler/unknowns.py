"""Counts that data decides, by name: their least, their most, and what is expected where that is known.

A form may hold such a name as a symbol, as it holds the run-time size `b`: `layers.depth` iterations
of a `repeat until`, `layers.moe.f.touched` entries of a bank. Expected is under uniform routing: each of
n tokens picks k of E entries without preference, so an entry is picked by n k / E tokens, and
E (1 - (1 - k/E)^n) entries by at least one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..dsl.dims import Dim
from .reads import Picks

Expected = Callable[[Mapping[str, int]], float]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A count between `least` and `most`. `expected` is a formula, and `mean` its value at given sizes."""

    name: str
    meaning: str
    least: Dim
    most: Dim
    expected: str | None = None
    mean: Expected | None = None

    @property
    def symbol(self) -> Dim:
        return Dim.symbol(self.name)


def of_bank(picks: Picks) -> Iterator[Unknown]:
    """How many entries of a bank a call reads, and how many tokens one of them gets."""
    place, name = picks.bank, symbol_name(picks.bank)
    k, of, n = picks.entries, picks.of, picks.tokens

    def tokens(at: Mapping[str, int]) -> int:
        return n.evaluate(at)

    yield Unknown(
        f"{name}.touched",
        f"entries of the bank {place} that a call reads",
        Dim.of(k),
        picks.most,
        f"{of}*(1 - (1 - {k}/{of})**({n}))",
        lambda at: picks.expected(tokens(at)),
    )
    yield Unknown(
        f"{name}.load",
        f"tokens that an entry of the bank {place} gets",
        Dim(),
        n,
        f"{k}*({n})/{of}",
        lambda at: k * tokens(at) / of,
    )


def depth_of(place: str, count: int) -> Unknown:
    """How many iterations of a `repeat until` run; nothing is expected."""
    meaning = f"iterations of {place} that run"
    return Unknown(f"{symbol_name(place)}.depth", meaning, Dim.of(1), Dim.of(count))


def symbol_name(place: str) -> str:
    """A place in the text as a symbol of a size."""
    return place.replace("[]", "")


def between(
    form: Dim, unknowns: Mapping[str, Unknown], at: Mapping[str, int]
) -> tuple[Dim, Dim, float | None]:
    """The least and the most of a form that grows with its unknowns, and what is expected of it at `at`.

    Expected is None where an unknown's is, where a size is missing, or where it is no linear form.
    """
    least = form.substitute({name: u.least for name, u in unknowns.items()})
    most = form.substitute({name: u.most for name, u in unknowns.items()})
    return least, most, _expected(form, unknowns, at)


def _expected(form: Dim, unknowns: Mapping[str, Unknown], at: Mapping[str, int]) -> float | None:
    total = 0.0
    for monomial, coefficient in form.terms:
        value = float(coefficient)
        random = 0
        for atom in monomial:
            unknown = unknowns.get(atom.name) if not atom.args else None
            if (
                unknown is not None
                and unknown.mean is not None
                and unknown.most.symbols() <= at.keys()
            ):
                value *= unknown.mean(at)
                random += 1
                continue
            size = Dim((((atom,), 1),)).substitute(at).constant
            if size is None:
                return None
            value *= size
        if random > 1:
            return None
        total += value
    return total
