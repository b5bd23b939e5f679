"""What the programs of a launch touch: distinct bytes, and elements that two programs share.

Programs of a launch run in any order, at once. So where one of them writes an element, no other one
may read or write it; atomic operations may share an element among themselves.

`Footprint` marks every element of every operand: exact, for launches that run whole. `Hull` keeps
the first and last place touched along each axis of an operand: of launches of which the corner
programs run, an upper bound as long as places move one way with the program's index.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["load", "store", "atomic"]
Addresses = NDArray[np.uint64]
NOBODY, SEVERAL = -1, -2
MOST_RACES = 4  # named of one launch


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that a kernel gets: bytes from `start` to `stop` of a storage; strides in elements."""

    name: str
    start: int
    stop: int
    item: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: int

    def holds(self, low: int, high: int) -> bool:
        return self.start <= low and high <= self.stop


def operand(name: str, tensor: Any) -> Operand:
    """Of a torch tensor: it reaches to its last element, whatever its strides skip."""
    start, item = tensor.data_ptr(), tensor.element_size()
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    stop = start + (last + 1) * item if tensor.numel() else start
    return Operand(
        name, start, stop, item, shape, strides, tensor.untyped_storage().data_ptr()
    )  # fmt: skip


def distinct(numbers: NDArray[np.uint64]) -> int:
    """How many different numbers there are."""
    low = numbers.min()
    span = int(numbers.max() - low) + 1
    if span > 64 * numbers.size:
        return int(np.unique(numbers).size)
    seen = np.zeros(span, np.bool_)
    seen[numbers - low] = True
    return int(np.count_nonzero(seen))


# ----------------------------------------------------------------------------------- exactly


@dataclass(slots=True)
class _Marks:
    """Of one storage, in units of its smallest element: who touched each unit, by kind of access."""

    name: str
    start: int
    unit: int
    by: dict[Kind, NDArray[np.int32]]

    def mark(self, kind: Kind, addresses: Addresses, size: int, program: int) -> None:
        units = ((addresses - np.uint64(self.start)) // np.uint64(self.unit)).astype(np.int64)
        if size > self.unit:
            units = (units[:, None] + np.arange(size // self.unit)).ravel()
        known = self.by[kind][units]
        alone = (known == NOBODY) | (known == program)
        self.by[kind][units] = np.where(alone, program, SEVERAL)

    def touched(self, kind: Kind) -> int:
        """Distinct bytes."""
        return int(np.count_nonzero(self.by[kind] != NOBODY)) * self.unit

    def races(self) -> list[str]:
        load, store, atomic = (self.by[kind] for kind in ("load", "store", "atomic"))
        found = {"several programs write": store == SEVERAL}
        for what, a, b in (
            ("one program writes and another reads", store, load),
            ("one program writes and another changes", store, atomic),
            ("one program reads and another changes", load, atomic),
        ):
            found[what] = (a != NOBODY) & (b != NOBODY) & ((a != b) | (a == SEVERAL))
        return [
            f"{what} {self.name} at byte {int(np.argmax(where)) * self.unit}"
            for what, where in found.items()
            if where.any()
        ]


@dataclass(slots=True)
class Footprint:
    """Every element that a launch touches."""

    marks: dict[int, _Marks] = field(default_factory=dict)

    @classmethod
    def of(cls, operands: list[Operand]) -> Footprint:
        made = cls()
        for storage in dict.fromkeys(o.storage for o in operands):
            group = [o for o in operands if o.storage == storage]
            start, unit = min(o.start for o in group), min(o.item for o in group)
            length = (max(o.stop for o in group) - start) // unit
            kinds: tuple[Kind, ...] = ("load", "store", "atomic")
            by = {kind: np.full(length, NOBODY, np.int32) for kind in kinds}
            made.marks[storage] = _Marks(group[0].name, start, unit, by)
        return made

    def mark(self, kind: Kind, to: Operand, addresses: Addresses, size: int, program: int) -> None:
        self.marks[to.storage].mark(kind, addresses, size, program)

    def unique(self, kind: Kind, issued: dict[str, int]) -> dict[str, int]:
        """Distinct bytes by the name of a storage's first operand."""
        found = {marks.name: marks.touched(kind) for marks in self.marks.values()}
        return {name: count for name, count in found.items() if count}

    def races(self) -> list[str]:
        return [race for marks in self.marks.values() for race in marks.races()][:MOST_RACES]


# -------------------------------------------------------------------------------- by corners


@dataclass(slots=True)
class Hull:
    """First and last place along each axis, of each operand and kind of access."""

    ends: dict[tuple[Kind, str], tuple[int, list[tuple[int, int]]]] = field(default_factory=dict)

    def mark(self, kind: Kind, to: Operand, addresses: Addresses, size: int, program: int) -> None:
        rest = (addresses - np.uint64(to.start)) // np.uint64(to.item)
        found = []
        for stride, length in sorted(zip(to.strides, to.shape, strict=True), reverse=True):
            if length > 1 and stride:
                place = rest // np.uint64(stride)
                rest = rest - place * np.uint64(stride)  # faster than np.divmod
                found.append((int(place.min()), int(place.max())))
        _, known = self.ends.get((kind, to.name), (0, found))
        wider = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(known, found, strict=True)]
        self.ends[kind, to.name] = to.item, wider

    def unique(self, kind: Kind, issued: dict[str, int]) -> dict[str, int]:
        """The bytes of the box between these places, or those issued where they are fewer."""
        found = {}
        for (made, name), (item, ends) in self.ends.items():
            if made == kind:
                box = item * int(np.prod([b - a + 1 for a, b in ends], dtype=np.int64))
                found[name] = min(box, issued.get(name, box))
        return found

    def races(self) -> list[str]:
        return []
