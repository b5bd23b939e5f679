"""Which values are in memory at the same time, and which may have the same memory one after another.

A value lives from where it is made to its last reader; a view has no memory of its own and keeps
what it looks at alive. A loop needs, while it runs, what its hungriest function needs. Two values
whose lives do not meet may share a buffer: intervals are coloured, the largest value first, each
taking the first buffer in which it meets no other (greedy by size: Pisarchyk and Lee, 2020).

    most alive at once  <=  buffers, shared  <=  buffers, one for each value
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .ir.graph import Function, Node, Program, callees
from .ops import LOOPS
from .passes import properties
from .passes.properties import bytes_of

VIEWS = properties.VIEWS | {"result"}
AT_LOAD = frozenset({"weight", "table", "derived", "const"})


@dataclass(frozen=True, slots=True)
class Life:
    """The value of node `id`, in memory from position `first` to `last` of its function.

    `size` is in bytes; `inside` is what a loop needs beside it while it runs.
    """

    id: int
    size: int
    first: int
    last: int
    inside: int = 0

    def meets(self, other: Life) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(slots=True)
class Buffer:
    """Memory of `size` bytes for values one after another."""

    size: int
    lives: list[Life] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Memory:
    """Measures the functions of a program at run-time sizes `at`.

    Instances of a bank are read where they are stored, as any weight is: `banks` are (function, id).
    """

    program: Program
    at: Mapping[str, int]
    banks: frozenset[tuple[str, int]] = frozenset()

    def peak(self, function: Function) -> int:
        """The most bytes alive at once."""
        return peak(self._lives(function, Memory.peak))

    def separate(self, function: Function) -> int:
        """Bytes where every value has a buffer of its own."""
        return _together(self._lives(function, Memory.separate), share=False)

    def shared(self, function: Function) -> int:
        """Bytes of buffers that values share where they can."""
        return _together(self._lives(function, Memory.shared), share=True)

    def lives(self, function: Function) -> list[Life]:
        """The values of a function that take memory, and its loops."""
        return self._lives(function, Memory.peak)

    def _lives(self, function: Function, inside: Measure) -> list[Life]:
        last, found = self._last_uses(function), list[Life]()
        for position, node in enumerate(function.nodes):
            picked = (function.name, node.id) in self.banks
            size = 0 if picked else self._stored(node)
            within = self._inside(node, inside) if node.op in LOOPS else 0
            found.append(Life(node.id, size, position, last[node.id], within))
        return [life for life in found if life.size or life.inside]

    def _last_uses(self, function: Function) -> dict[int, int]:
        """Position of the last reader of each value; a view keeps what it looks at alive."""
        places = {n.id: i for i, n in enumerate(function.nodes)}
        last = places | dict.fromkeys(function.output_ids, len(function.nodes))
        for node in reversed(function.nodes):
            here = last[node.id] if node.op in VIEWS else places[node.id]
            for source in node.inputs:
                last[source] = max(last[source], here)
        return last

    def _stored(self, node: Node) -> int:
        if node.op in VIEWS | AT_LOAD | {"index", "size"}:
            return 0
        sizes = {**self.program.sizes, **self.at}
        return sum(bytes_of(kind).evaluate(sizes) for kind in node.types)

    def _inside(self, loop: Node, measure: Measure) -> int:
        """A loop needs, beside its operands, what its hungriest function needs."""
        within = self
        if loop.op == "chunked_scan":
            length = {loop.attrs.axis("chunk").name: loop.attrs.integer("length")}
            within = replace(self, at={**self.at, **length})
        return max(measure(within, self.program.function(kind)) for kind in callees(loop))


Measure = Callable[[Memory, Function], int]


def peak(lives: Sequence[Life]) -> int:
    """The most bytes alive at once, with what loops need while they run."""
    return max((_alive(lives, life.first) + life.inside for life in lives), default=0)


def _alive(lives: Sequence[Life], position: int) -> int:
    return sum(life.size for life in lives if life.first <= position <= life.last)


def shared_buffers(lives: Sequence[Life]) -> list[Buffer]:
    """Buffers for all values; the lives of those in one do not meet."""
    buffers: list[Buffer] = []
    for life in sorted(lives, key=lambda x: (-x.size, x.first)):
        free = next((b for b in buffers if not any(map(life.meets, b.lives))), None)
        if free is None:
            buffers.append(free := Buffer(life.size))
        free.lives.append(life)
    return buffers


def _together(lives: Sequence[Life], *, share: bool) -> int:
    """Bytes of all buffers, and of the loop that needs most while it runs."""
    sizes = (b.size for b in shared_buffers(lives)) if share else (life.size for life in lives)
    return sum(sizes) + max((life.inside for life in lives), default=0)
