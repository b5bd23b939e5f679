"""Element permutations of weights: one tree, read both ways.

An `Arrangement` says how a file tensor is made of weights: the leaves are weights, the inner nodes
move elements and never change one. Evaluated upwards (`build`) it exports. Walked downwards
(`claims`) it imports: for every weight, which box of it this tensor holds and which views of the
file's array give that box. Walking down handles shapes only, so a plan for billions of elements
costs nothing, and its views copy nothing unless NumPy must.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Box = tuple[tuple[int, int], ...]  # per axis: first index, one past the last
Read = Callable[[str, Box], Array]  # a box of the weight at a path


# ------------------------------------------------------------------- views of a file's array


@dataclass(frozen=True, slots=True)
class Reshape:
    shape: Shape

    def __call__(self, array: Array) -> Array:
        return array.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Transpose:
    """Result axis k is operand axis `order[k]`."""

    order: tuple[int, ...]

    def __call__(self, array: Array) -> Array:
        return array.transpose(self.order)


@dataclass(frozen=True, slots=True)
class Slice:
    axis: int
    start: int
    stop: int

    def __call__(self, array: Array) -> Array:
        return array[(slice(None),) * self.axis + (slice(self.start, self.stop),)]


Steps = tuple[Reshape | Transpose | Slice, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """`box` of weight `path` is what `steps` leave of the file tensor."""

    path: str
    box: Box
    steps: Steps

    def read(self, array: Array) -> Array:
        for step in self.steps:
            array = step(array)
        return array


# --------------------------------------------------------------------------------- the tree


@dataclass(frozen=True, slots=True)
class Weight:
    path: str
    shape: Shape

    def build(self, read: Read) -> Array:
        return read(self.path, whole(self.shape))

    def claims(self, box: Box, steps: Steps) -> Iterator[Claim]:
        yield Claim(self.path, box, steps)


@dataclass(frozen=True, slots=True)
class Reshaped:
    """Row-major: splits, merges of neighbours, new and dropped axes of size 1."""

    of: Arrangement
    shape: Shape

    def build(self, read: Read) -> Array:
        return self.of.build(read).reshape(self.shape)

    def claims(self, box: Box, steps: Steps) -> Iterator[Claim]:
        inner = reshape_box(box, self.shape, self.of.shape)
        return self.of.claims(inner, (*steps, Reshape(extents(inner))))


@dataclass(frozen=True, slots=True)
class Transposed:
    """Axis k is axis `order[k]` of `of`."""

    of: Arrangement
    order: tuple[int, ...]

    @property
    def shape(self) -> Shape:
        return tuple(self.of.shape[k] for k in self.order)

    def build(self, read: Read) -> Array:
        return self.of.build(read).transpose(self.order)

    def claims(self, box: Box, steps: Steps) -> Iterator[Claim]:
        back = tuple(self.order.index(k) for k in range(len(self.order)))
        return self.of.claims(tuple(box[k] for k in back), (*steps, Transpose(back)))


@dataclass(frozen=True, slots=True)
class Sliced:
    of: Arrangement
    axis: int
    start: int
    stop: int

    @property
    def shape(self) -> Shape:
        return _replace(self.of.shape, self.axis, self.stop - self.start)

    def build(self, read: Read) -> Array:
        if isinstance(self.of, Weight):
            box = _replace(whole(self.of.shape), self.axis, (self.start, self.stop))
            return read(self.of.path, box)  # one entry of a bank, say, without the others
        return Slice(self.axis, self.start, self.stop)(self.of.build(read))

    def claims(self, box: Box, steps: Steps) -> Iterator[Claim]:
        low, high = box[self.axis]
        inner = _replace(box, self.axis, (low + self.start, high + self.start))
        return self.of.claims(inner, steps)


@dataclass(frozen=True, slots=True)
class Joined:
    """Parts one after the other along `axis`."""

    parts: tuple[Arrangement, ...]
    axis: int

    @property
    def shape(self) -> Shape:
        total = sum(part.shape[self.axis] for part in self.parts)
        return _replace(self.parts[0].shape, self.axis, total)

    def build(self, read: Read) -> Array:
        return np.concatenate([part.build(read) for part in self.parts], axis=self.axis)

    def claims(self, box: Box, steps: Steps) -> Iterator[Claim]:
        low, high = box[self.axis]
        offset = 0
        for part in self.parts:
            end = offset + part.shape[self.axis]
            start, stop = max(low, offset), min(high, end)
            if start < stop:
                inner = _replace(box, self.axis, (start - offset, stop - offset))
                yield from part.claims(inner, (*steps, Slice(self.axis, start - low, stop - low)))
            offset = end


Arrangement = Weight | Reshaped | Transposed | Sliced | Joined


def claims(tree: Arrangement) -> tuple[Claim, ...]:
    """What a file tensor laid out as `tree` holds of each weight.

    Raises `ValueError` when a slice cuts a merged axis so that what is left of a weight is no box.
    """
    return tuple(tree.claims(whole(tree.shape), ()))


# --------------------------------------------------------------------------------- boxes


def whole(shape: Shape) -> Box:
    return tuple((0, size) for size in shape)


def extents(box: Box) -> Shape:
    return tuple(high - low for low, high in box)


def inside(array: Array, box: Box) -> Array:
    return array[tuple(slice(*side) for side in box)]


def overlap(a: Box, b: Box) -> bool:
    pairs = zip(a, b, strict=True)
    return all(max(p[0], q[0]) < min(p[1], q[1]) for p, q in pairs)


def overlapping(boxes: Sequence[Box]) -> Iterator[tuple[int, int]]:
    """The pairs of boxes that have an element in common, by position.

    A bank is read from one tensor for each entry: only boxes that meet along the first axis are
    compared.
    """
    order = sorted(range(len(boxes)), key=lambda i: boxes[i])
    for at, i in enumerate(order):
        for j in order[at + 1 :]:
            if boxes[i] and boxes[j][0][0] >= boxes[i][0][1]:
                break
            if overlap(boxes[i], boxes[j]):
                yield min(i, j), max(i, j)


def reshape_box(box: Box, source: Shape, target: Shape) -> Box:
    """The box of an array of shape `target` that holds the elements of `box` in shape `source`."""
    result: list[tuple[int, int]] = []
    for ours, theirs in _aligned(source, target):
        low, high = _flat_range(box[ours], source[ours])
        result += _range_box(low, high, target[theirs])
    return tuple(result)


def _aligned(a: Shape, b: Shape) -> Iterator[tuple[slice, slice]]:
    """The finest runs of axes of `a` and `b` that cover the same elements."""
    i = j = 0
    while i < len(a) or j < len(b):
        start = i, j
        p, i = (a[i], i + 1) if i < len(a) else (1, i)
        q, j = (b[j], j + 1) if j < len(b) else (1, j)
        while p != q:
            if p < q:
                p, i = p * a[i], i + 1
            else:
                q, j = q * b[j], j + 1
        yield slice(start[0], i), slice(start[1], j)


def _flat_range(box: Box, shape: Shape) -> tuple[int, int]:
    sizes = extents(box)
    first = next((k for k, size in enumerate(sizes) if size > 1), len(sizes))
    if sizes[first + 1 :] != shape[first + 1 :]:
        raise ValueError(f"{box} of {shape} is not one run of elements")
    low = 0
    for (start, _), size in zip(box, shape, strict=True):
        low = low * size + start
    return low, low + math.prod(sizes)


def _range_box(low: int, high: int, shape: Shape) -> Box:
    first, last = _unravel(low, shape), _unravel(high - 1, shape)
    box = tuple((a, b + 1) for a, b in zip(first, last, strict=True))
    if any(a >= b for a, b in box) or math.prod(extents(box)) != high - low:
        raise ValueError(f"elements {low} to {high} are no box of {shape}")
    return box


def _unravel(index: int, shape: Shape) -> Shape:
    digits: list[int] = []
    for size in reversed(shape):
        index, digit = divmod(index, size)
        digits.append(digit)
    return tuple(reversed(digits))


def _replace(items: tuple[Any, ...], position: int, item: Any) -> tuple[Any, ...]:
    return (*items[:position], item, *items[position + 1 :])
