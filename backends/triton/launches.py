"""What was counted of a launch, and sums over launches. Counts of a launch are those of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Launch:
    """`programs` were launched and `ran` of them run; bytes by operand; `times` it was launched.

    `exact` is false where sums over the programs are estimates.
    """

    kernel: str
    grid: tuple[int, ...]
    programs: int
    ran: int
    exact: bool
    reads: Mapping[str, int] = field(default_factory=dict)
    writes: Mapping[str, int] = field(default_factory=dict)
    unique_reads: Mapping[str, int] = field(default_factory=dict)
    unique_writes: Mapping[str, int] = field(default_factory=dict)
    sectors: int = 0
    dot: int = 0
    float_ops: int = 0
    special: int = 0
    races: tuple[str, ...] = ()
    times: int = 1

    @property
    def issued(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())

    @property
    def unique(self) -> int:
        return sum(self.unique_reads.values()) + sum(self.unique_writes.values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Launch:
        lists = {"grid": tuple(found["grid"]), "races": tuple(found["races"])}
        return cls(**{**found, **lists})


@dataclass(frozen=True, slots=True)
class HostWork:
    """Operations of the host on arrays, other than views, and the bytes that they read and write."""

    operations: int = 0
    moved: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """Of several launches: how many, bytes, operations."""

    launches: int = 0
    issued: int = 0
    unique: int = 0
    sectors: int = 0
    dot: int = 0
    float_ops: int = 0
    special: int = 0
    exact: bool = True

    def __add__(self, other: Work) -> Work:
        names = ("launches", *SUMMED)
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Work(**sums, exact=self.exact and other.exact)


SUMMED = ("issued", "unique", "sectors", "dot", "float_ops", "special")


def total(launches: Iterable[Launch]) -> Work:
    """Each launch as often as it was launched."""
    works = (
        Work(x.times, **{name: getattr(x, name) * x.times for name in SUMMED}, exact=x.exact)
        for x in launches
    )
    return sum(works, Work())
