"""Joins a checkpoint's tensors to a program's weights: a plan first, then arrays on demand.

`bind` proves that every element of every weight is given exactly once and every tensor of the file
is used exactly once, from names and shapes alone. The result reads a weight when it is asked for
it: a view of the mapped file where one line covers the weight, else a copy of the parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from ...dsl import syntax as syn
from ...dsl.diagnostics import ArchError, Diagnostics
from ...dsl.errors import (
    AliasDiffers,
    MissingTensor,
    NotAPermutation,
    TensorReadTwice,
    TensorShape,
    UnknownWeight,
    UnreadWeight,
    UnusedTensor,
    WeightReadTwice,
)
from ..ir.graph import Program
from .arrangement import Array, Box, Claim, Read, claims, extents, inside, overlapping
from .layout import WeightTable
from .lines import Entry, Lines, expand
from .reader import Checkpoint, TensorStore

LATEST = 4  # weights made last that are kept while their boxes are read
COMPARED_AT_ONCE = 1 << 22  # elements of an alias held in memory at a time


@dataclass(frozen=True, slots=True)
class Source:
    """A claim on a weight, with the file tensor and the line it comes from."""

    entry: Entry
    claim: Claim


@dataclass(frozen=True, slots=True, eq=False)
class BoundWeights(Mapping[str, Array]):
    """Weights by path, in the axes of `Parameter.axes` and the file's dtype, read on demand."""

    store: TensorStore
    table: WeightTable
    sources: Mapping[str, tuple[Source, ...]]

    def __getitem__(self, path: str) -> Array:
        first, *others = self.sources[path]
        part = first.claim.read(self.store.read(first.entry.name))
        if not others:
            return part
        whole = np.empty(self.table.shape(path), part.dtype)
        for source in (first, *others):
            part = source.claim.read(self.store.read(source.entry.name))
            inside(whole, source.claim.box)[...] = part
        return whole

    def part(self, path: str, box: Box) -> Array:
        """A box of a weight; where one tensor holds just that, no more than it is read."""
        exact = next((s for s in self.sources[path] if s.claim.box == box), None)
        if exact is None:
            return inside(self[path], box)
        return exact.claim.read(self.store.read(exact.entry.name))

    def __contains__(self, path: object) -> bool:
        return path in self.sources  # the inherited test would read the weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def tensors(self, path: str) -> tuple[str, ...]:
        """The file tensors that hold `path`."""
        return tuple(source.entry.name for source in self.sources[path])


def bind(checkpoint: syn.CheckpointDef, source: Checkpoint, program: Program) -> BoundWeights:
    """The weights of `program` out of `source`, by the tensor lines of `checkpoint`.

    Raises `Diagnostics` (or its one `ArchError`) when tensors and weights do not match exactly.
    """
    store = source.weights_file()
    lines = expand(checkpoint, program, store.names)
    joint = _Joint(lines, store, WeightTable(program))
    _raise(joint.problems())
    weights = BoundWeights(store, joint.table, joint.sources)
    _raise(_differing(joint.aliases, weights))
    return weights


def parts_of(weights: Mapping[str, Array]) -> Read:
    """How a box of one of `weights` is read. The tensors of a bank's entries alternate in theirs."""
    if isinstance(weights, BoundWeights):
        return weights.part
    whole = lru_cache(LATEST)(weights.__getitem__)
    return lambda path, box: inside(whole(path), box)


@dataclass(slots=True)
class _Joint:
    """Entries against tensors: what is used, and by which weights."""

    lines: Lines
    store: TensorStore
    table: WeightTable
    used: dict[str, Entry] = field(default_factory=dict)
    aliases: list[Entry] = field(default_factory=list)
    sources: dict[str, tuple[Source, ...]] = field(default_factory=dict)

    def problems(self) -> Iterator[ArchError]:
        """All mismatches, most telling first. Fills `used`, `aliases` and `sources`."""
        live = tuple(self.lines.live())
        broken = [*self.missing(entry for entry in live if entry.name not in self.store.names)]
        for entry in live:
            if entry.name in self.store.names:
                broken += self.use(entry)
        yield from _folded(broken)
        yield from self.unused()
        if not broken:  # else the weights of the broken lines would be named again
            yield from self.uncovered()
        yield from self.overlaps()

    def missing(self, entries: Iterable[Entry]) -> Iterator[ArchError]:
        """One error per line; an alias may be absent."""
        absent: dict[int, list[Entry]] = {}
        for entry in entries:
            if not entry.line.alias:
                absent.setdefault(id(entry.line), []).append(entry)
        for group in absent.values():
            tensors = tuple(entry.name for entry in group)
            known = tuple(self.store.names)
            yield MissingTensor(span=group[0].line.span, tensors=tensors, known=known)

    def use(self, entry: Entry) -> Iterator[ArchError]:
        if entry.name in self.used:
            first = self.used[entry.name].line.span
            yield TensorReadTwice(span=entry.line.span, tensor=entry.name, first=first)
            return
        self.used[entry.name] = entry
        assert entry.tree is not None
        shape = self.store.shape(entry.name)
        if shape != entry.tree.shape:
            yield _wrong_shape(entry, shape)
        elif entry.line.alias:
            self.aliases.append(entry)
        else:
            self.claim(entry)

    def claim(self, entry: Entry) -> None:
        for claim in _claims(entry):
            known = self.sources.get(claim.path, ())
            self.sources[claim.path] = (*known, Source(entry, claim))

    def unused(self) -> Iterator[ArchError]:
        left = [n for n in self.store.names if n not in self.used and not self.lines.ignores(n)]
        vanished = {entry.name: entry for entry in self.lines.entries if entry.tree is None}
        known = tuple(self.table.parameters)
        for name in left:
            if name in vanished:
                span, weight = vanished[name].line.span, vanished[name].absent[0]
                yield UnknownWeight(span=span, weight=weight, tensor=name, known=known)
        nameless = tuple(name for name in left if name not in vanished)
        if nameless:
            yield UnusedTensor(tensors=nameless)

    def uncovered(self) -> Iterator[ArchError]:
        unread = tuple(path for path in self.table.parameters if not self._covered(path))
        if unread:
            span = self.table.parameters[unread[0]].span
            yield UnreadWeight(span=span, weights=unread)

    def _covered(self, path: str) -> bool:
        given = sum(math.prod(extents(s.claim.box)) for s in self.sources.get(path, ()))
        return given >= math.prod(self.table.shape(path))

    def overlaps(self) -> Iterator[ArchError]:
        for path, sources in self.sources.items():
            for a, b in overlapping([source.claim.box for source in sources]):
                yield _twice(path, sources[a].entry, sources[b].entry)


def _claims(entry: Entry) -> tuple[Claim, ...]:
    assert entry.tree is not None
    try:
        return claims(entry.tree)
    except ValueError:
        construct = "a slice through a merged axis"
        raise NotAPermutation(span=entry.line.span, construct=construct) from None


def _twice(path: str, a: Entry, b: Entry) -> ArchError:
    first, span = a.line.span, b.line.span
    return WeightReadTwice(span=span, first=first, weight=path, tensor=b.name, other=a.name)


def _wrong_shape(entry: Entry, found: tuple[int, ...]) -> ArchError:
    assert entry.tree is not None
    return TensorShape(
        span=entry.line.span,
        tensor=entry.name,
        found=str(list(found)),
        expected=str(list(entry.tree.shape)),
        layout=f"[{', '.join(entry.dims)}]",
    )


def _folded(mistakes: Iterable[ArchError]) -> Iterator[ArchError]:
    """A line of all layers has one wrong shape in all of them: told once, for the first tensor."""
    alike: dict[object, list[ArchError]] = {}
    for mistake in mistakes:
        shapes = isinstance(mistake, TensorShape) and (mistake.found, mistake.expected)
        alike.setdefault((mistake.span, shapes) if shapes else id(mistake), []).append(mistake)
    for first, *others in alike.values():
        if isinstance(first, TensorShape) and others:
            first = TensorShape(**{**first.facts, "more": f" (and {len(others)} like it)"})
        yield first


def _differing(aliases: Iterable[Entry], weights: BoundWeights) -> Iterator[ArchError]:
    for entry in aliases:
        assert entry.tree is not None
        if not _equal(weights.store.read(entry.name), entry.tree.build(weights.part)):
            named = tuple(dict.fromkeys(claim.path for claim in _claims(entry)))
            yield AliasDiffers(span=entry.line.span, tensor=entry.name, weights=named)


def _equal(a: Array, b: Array) -> bool:
    """Same values, looked at a few rows at a time."""
    rows = max(1, COMPARED_AT_ONCE // max(1, math.prod(a.shape[1:])))
    starts = range(0, max(1, len(a)), rows) if a.ndim else (0,)
    pieces = ((a[k : k + rows], b[k : k + rows]) if a.ndim else (a, b) for k in starts)
    return all(np.array_equal(x, y) for x, y in pieces)


def _raise(problems: Iterator[ArchError]) -> None:
    found = tuple(problems)
    if len(found) == 1:
        raise found[0]
    if found:
        raise Diagnostics(found)
