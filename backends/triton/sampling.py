"""Sums over the programs of a launch from a few of them.

What a program moves is affine in its index nearly everywhere: blocks are alike but for the last
along each axis, and causal attention visits tiles in proportion to its row. So the grid is cut into
boxes, apart from the last program along each axis; in a box the sum of an affine quantity is

    sum of f over the box  =  programs in the box * mean of f at its corners.

A box whose probes, its centre and one off it, do not lie on the multilinear function through its
corners is cut along an axis: into every p-th program where f repeats its step after p of them
(tiles that blocks share), else into halves. That is a check, not a proof: a quantity may
deviate where no probe is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise, product

Index = tuple[int, ...]
Box = tuple[range, ...]
Quantities = Mapping[str, int]
MOST = 128  # programs that are run for one launch before its sums are given as estimates
OFF_CENTRE = Fraction(5, 13)
PERIODS = range(2, 9)


@dataclass(slots=True)
class Sampled:
    """`measure` runs one program. `exact` says that every box passed its probes."""

    grid: Index
    measure: Callable[[Index], Quantities]
    most: int = MOST
    exact: bool = True
    known: dict[Index, Quantities] = field(default_factory=dict)

    def total(self) -> dict[str, int]:
        """Each quantity summed over all programs, rounded where it is an estimate."""
        sums: Counter[str] = Counter()
        for box in _parts(self.grid):
            for name, value in self._sum(box).items():
                sums[name] += value  # type: ignore[assignment]
        return {name: round(value) for name, value in sums.items()}

    def at(self, index: Index) -> Quantities:
        if index not in self.known:
            self.known[index] = self.measure(index)
        return self.known[index]

    def _sum(self, box: Box) -> dict[str, Fraction]:
        corners = [self.at(i) for i in _corners(box)]
        if max(map(len, box)) > 2 and not self._is_affine(box):
            if len(self.known) < self.most:
                return _added([self._sum(part) for part in self._cut(box)])
            self.exact = False
        scale = Fraction(math.prod(map(len, box)), len(corners))
        return {name: scale * value for name, value in _added(corners).items()}

    def _cut(self, box: Box) -> list[Box]:
        axes = sorted(range(len(box)), key=lambda i: -len(box[i]))
        axis = next((i for i in axes if not self._is_affine(_edge(box, i))), axes[0])
        places, period = box[axis], self._period(box, axis)
        middle = len(places) // 2
        cut = [places[i::period] for i in range(period)] if period else []
        parts = cut or [places[:middle], places[middle:]]
        return [(*box[:axis], part, *box[axis + 1 :]) for part in parts]

    def _period(self, box: Box, axis: int) -> int | None:
        """After how many programs, more than one, the first ones along an axis repeat their step."""

        def steps(period: int, first: int) -> list[dict[str, int]]:
            edge = _edge(box, axis)
            places = edge[axis][first : first + 3 * period + 1 : period]
            values = [self.at(i) for i in product(*edge[:axis], places, *edge[axis + 1 :])]
            return [_less(b, a) for a, b in pairwise(values)]

        def repeats(period: int) -> bool:
            found = [steps(period, first) for first in (0, 1)]
            return all(step == made[0] for made in found for step in made)

        if repeats(1):
            return None
        return next((p for p in PERIODS if 4 * p <= len(box[axis]) and repeats(p)), None)

    def _is_affine(self, box: Box) -> bool:
        for probe in _probes(box):
            found = self.at(tuple(r[i] for r, i in zip(box, probe, strict=True)))
            expected = self._between(box, probe)
            if any(found.get(n, 0) != expected.get(n, 0) for n in found.keys() | expected.keys()):
                return False
        return True

    def _between(self, box: Box, probe: Index) -> dict[str, Fraction]:
        """The multilinear function through the corners of a box, at places within it."""
        found: list[dict[str, Fraction]] = []
        for corner in _corners(box):
            weight = Fraction(1)
            for places, end, at in zip(box, corner, probe, strict=True):
                if len(places) > 1:
                    share = Fraction(at, len(places) - 1)
                    weight *= share if end == places[-1] else 1 - share
            found.append({name: weight * value for name, value in self.at(corner).items()})
        return _added(found)


def _probes(box: Box) -> Iterator[Index]:
    """The centre, and a program off it."""
    lasts = [len(places) - 1 for places in box]
    yield tuple(last // 2 for last in lasts)
    yield tuple(map(_off_centre, lasts))


def _off_centre(last: int) -> int:
    """With 0, the centre and `last` not at one phase of anything that repeats after some programs."""
    start = math.floor(last * OFF_CENTRE)
    apart = (i for i in range(start, last) if math.gcd(i, last // 2, last) == 1)
    return next(apart, start)


def _parts(grid: Index) -> Iterator[Box]:
    """Boxes that cut the last program off each axis."""
    yield from product(*([range(n - 1), range(n - 1, n)] if n > 1 else [range(n)] for n in grid))


def _edge(box: Box, axis: int) -> Box:
    """The programs of a box along one axis, first along the others."""
    return tuple(places if i == axis else places[:1] for i, places in enumerate(box))


def _corners(box: Box) -> list[Index]:
    return list(product(*(dict.fromkeys((places[0], places[-1])) for places in box)))


def _added(several: list[Quantities] | list[dict[str, Fraction]]) -> dict[str, Fraction]:
    sums: dict[str, Fraction] = {}
    for quantities in several:
        for name, value in quantities.items():
            sums[name] = sums.get(name, Fraction()) + value
    return sums


def _less(a: Quantities, b: Quantities) -> dict[str, int]:
    return {name: a.get(name, 0) - b.get(name, 0) for name in a.keys() | b.keys()}
