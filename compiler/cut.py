"""The cheapest set of vertices that separates what is wanted from where it comes from.

A vertex cut of a directed acyclic graph by maximum flow (Ford and Fulkerson, 1956; shortest
augmenting paths, Edmonds and Karp, 1972): every vertex is an edge whose capacity is its price, and
edges between vertices have no limit. Of several cheapest cuts it is the one nearest what is wanted.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Collection, Hashable, Mapping
from typing import TypeVar

V = TypeVar("V", bound=Hashable)
_Place = tuple[object, str]  # a vertex's entrance or exit, or the ends of the flow
SOURCE: _Place = (None, "source")
SINK: _Place = (None, "sink")


def cheapest_cut(
    price: Mapping[V, int],
    operands: Mapping[V, Collection[V]],
    made_once: Collection[V],
    wanted: Collection[V],
) -> set[V]:
    """The vertices to keep so that all of `wanted` can be made again from what is kept.

    `operands[v]` are the vertices that v is made of. One that is `made_once` cannot be made again:
    if it is needed it must be kept, or nothing that needs it be made again.
    """
    residual: dict[_Place, dict[_Place, float]] = defaultdict(lambda: defaultdict(float))

    def edge(start: _Place, end: _Place, capacity: float) -> None:
        residual[start][end] += capacity
        residual[end][start] += 0

    for vertex, cost in price.items():
        edge((vertex, "in"), (vertex, "out"), cost)
        for operand in operands.get(vertex, ()):
            edge((operand, "out"), (vertex, "in"), math.inf)
    for vertex in made_once:
        edge(SOURCE, (vertex, "in"), math.inf)
    for vertex in wanted:
        edge((vertex, "out"), SINK, math.inf)
    while path := _path(residual):
        least = min(residual[a][b] for a, b in path)
        for a, b in path:
            residual[a][b] -= least
            residual[b][a] += least
    behind = _behind(residual)
    return {v for v in price if (v, "out") in behind and (v, "in") not in behind}


def _path(residual: Mapping[_Place, Mapping[_Place, float]]) -> list[tuple[_Place, _Place]]:
    """A shortest path with capacity left, as edges; empty when the flow is greatest."""
    came: dict[_Place, _Place] = {SOURCE: SOURCE}
    todo = deque([SOURCE])
    while todo:
        here = todo.popleft()
        for there, capacity in residual[here].items():
            if capacity > 0 and there not in came:
                came[there] = here
                todo.append(there)
    if SINK not in came:
        return []
    path, here = [], SINK
    while here != SOURCE:
        path.append((came[here], here))
        here = came[here]
    return path


def _behind(residual: Mapping[_Place, Mapping[_Place, float]]) -> set[_Place]:
    """What can still send to the sink."""
    found, todo = {SINK}, [SINK]
    while todo:
        here = todo.pop()
        for there in residual[here]:
            if residual[there][here] > 0 and there not in found:
                found.add(there)
                todo.append(there)
    return found
