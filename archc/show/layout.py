"""Where boxes go when arrows point down: Sugiyama's method in its plain form.

Ranks by the longest path, ordered within a rank by the mean place of neighbours in a few sweeps (fewer
crossings), placed by the least sum of squared distances to neighbours that keeps order and gaps. An
arrow over several ranks passes through a point in each. Deterministic: ties keep the given order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

ROW_GAP, COLUMN_GAP, LANE = 30.0, 22.0, 10.0
SWEEPS, SETTLING = 8, 16
Point = tuple[float, float]
End = int | str | tuple[int, int]  # a box, or the point of an arrow in a rank


@dataclass(frozen=True, slots=True)
class Layout:
    """Middles of the tops of boxes, points of arrows, and the extent of it all."""

    tops: Mapping[int | str, Point]
    routes: tuple[tuple[Point, ...], ...]
    width: float
    height: float


def layout(
    sizes: Mapping[int | str, Point], arrows: Sequence[tuple[int | str, int | str]]
) -> Layout:
    """`sizes` are widths and heights of boxes, `arrows` go from one to another without a cycle."""
    ranks = _ranks(list(sizes), arrows)
    rows: list[list[End]] = [[] for _ in range(max(ranks.values(), default=-1) + 1)]
    for box in sizes:
        rows[ranks[box]].append(box)
    chains = [_chain(k, a, b, ranks, rows) for k, (a, b) in enumerate(arrows)]
    links = [link for chain in chains for link in pairwise(chain)]
    _order(rows, links)
    widths = {end: sizes[end][0] if isinstance(end, int | str) else LANE for r in rows for end in r}
    middles = _columns(rows, links, widths)
    heights = [
        max((sizes[e][1] for e in row if isinstance(e, int | str)), default=0.0) for row in rows
    ]
    y = [sum(heights[:i]) + i * ROW_GAP for i in range(len(rows))]
    tops = {
        e: (middles[e], y[i]) for i, row in enumerate(rows) for e in row if isinstance(e, int | str)
    }
    place = {e: (i, y[i], heights[i]) for i, row in enumerate(rows) for e in row}
    routes = tuple(tuple(_route(chain, middles, place, sizes)) for chain in chains)
    right = max((middles[e] + widths[e] / 2 for e in widths), default=0.0)
    height = y[-1] + heights[-1] if y else 0.0
    return Layout(tops, routes, right, height)


def _ranks(
    boxes: Sequence[int | str], arrows: Sequence[tuple[int | str, int | str]]
) -> dict[int | str, int]:
    """The longest path to each box; one that nothing leads to stands just above its first reader."""
    ranks = dict.fromkeys(boxes, 0)
    for _ in boxes:
        before = dict(ranks)
        for a, b in arrows:
            ranks[b] = max(ranks[b], ranks[a] + 1)
        if ranks == before:
            break
    led = {b for _, b in arrows}
    for box in boxes:
        readers = [ranks[b] for a, b in arrows if a == box]
        if box not in led and readers:
            ranks[box] = min(readers) - 1
    return ranks


def _chain(
    number: int, a: int | str, b: int | str, ranks: Mapping[int | str, int], rows: list[list[End]]
) -> list[End]:
    """The ends of an arrow and its points between them, which are put into their rows."""
    points: list[End] = [(number, rank) for rank in range(ranks[a] + 1, ranks[b])]
    for point, rank in zip(points, range(ranks[a] + 1, ranks[b]), strict=True):
        rows[rank].append(point)
    return [a, *points, b]


def _order(rows: list[list[End]], links: Sequence[tuple[End, End]]) -> None:
    above: dict[End, list[End]] = {}
    below: dict[End, list[End]] = {}
    for a, b in links:
        above.setdefault(b, []).append(a)
        below.setdefault(a, []).append(b)
    for sweep in range(SWEEPS):
        near, order = (above, rows) if sweep % 2 == 0 else (below, rows[::-1])
        for row in order:
            place = {end: i for r in rows for i, end in enumerate(r)}
            row.sort(key=lambda e: _mean([place[n] for n in near.get(e, [])], place[e]))


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _columns(
    rows: list[list[End]], links: Sequence[tuple[End, End]], widths: Mapping[End, float]
) -> dict[End, float]:
    """Middles, so that ends of arrows are near each other."""
    middles: dict[End, float] = {}
    for row in rows:
        middles |= zip(row, _spread([0.0] * len(row), [widths[e] for e in row]), strict=True)
    near: dict[End, list[End]] = {}
    above, below = dict[End, End](), dict[End, End]()
    for a, b in links:  # an arrow that leaves its spine to pass by boxes pulls less
        pull = 4 if isinstance(a, tuple) == isinstance(b, tuple) else 1
        near.setdefault(a, []).extend([b] * pull)
        near.setdefault(b, []).extend([a] * pull)
        above[b], below[a] = a, b
    for sweep in range(SETTLING):
        down = sweep % 2 == 0
        for end in (e for row in rows for e in row if isinstance(e, tuple)):  # straight on
            near[end] = [above[end] if down else below[end]]
        for row in rows if down else rows[::-1]:
            wanted = [_mean([middles[n] for n in near.get(e, [])], middles[e]) for e in row]
            middles |= zip(row, _spread(wanted, [widths[e] for e in row]), strict=True)
    left = min((middles[e] - widths[e] / 2 for e in widths), default=0.0)
    return {end: x - left for end, x in middles.items()}


def _spread(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """The places nearest to those wanted that keep order and gaps: isotonic regression."""
    offsets, total = [0.0], 0.0
    for a, b in pairwise(widths):
        total += (a + b) / 2 + COLUMN_GAP
        offsets.append(total)
    pools: list[tuple[float, int]] = []  # (sum, count), means growing
    for value, offset in zip(wanted, offsets, strict=False):
        pools.append((value - offset, 1))
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            (b, m), (a, n) = pools.pop(), pools.pop()
            pools.append((a + b, n + m))
    flat = [total / count for total, count in pools for _ in range(count)]
    return [value + offset for value, offset in zip(flat, offsets, strict=False)]


def _route(
    chain: Sequence[End],
    middles: Mapping[End, float],
    place: Mapping[End, tuple[int, float, float]],
    sizes: Mapping[int | str, Point],
) -> list[Point]:
    """From the bottom of the first box, beside those between, to the top of the last."""
    first, *between, last = chain
    assert isinstance(first, int | str)
    _, y, height = place[first]
    points = [(middles[first], y + sizes[first][1]), (middles[first], y + height)]
    for end in between:
        _, y, height = place[end]
        points += [(middles[end], y), (middles[end], y + height)]
    return [*points, (middles[last], place[last][1])]
