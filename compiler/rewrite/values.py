"""Where values went: a map from the values of a program before passes to those after them.

Reports and comparisons speak of the user's values, and a fused value has no name of its own any
more. Each pass says what moved in each function; the maps are composed by following them in
order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..ir.graph import Program
from .edit import Moved

Step = Mapping[tuple[str, int], Moved]  # (function, id before) -> where it is after one pass


@dataclass(frozen=True, slots=True)
class ValueMap:
    """Follows values of `before` through `steps`; ids that no step names kept their meaning."""

    before: Program
    after: Program
    steps: tuple[Step, ...] = ()

    def then(self, after: Program, step: Step) -> ValueMap:
        return ValueMap(self.before, after, (*self.steps, step))

    def find(self, function: str, node_id: int) -> Moved | None:
        """The value's place now: equal to a value, inside a fused one, or None (not computed)."""
        place = Moved(node_id)
        for step in self.steps:
            while (move := step.get((function, place.id))) is not None:
                place = Moved(move.id, place.inside or move.inside)
        present = any(f.name == function and place.id in f for f in self.after.functions)
        return place if present else None

    def pairs(self) -> dict[tuple[str, int], tuple[str, int]]:
        """(function, id) before -> (function, id) after, for the values present on both sides."""
        found = {}
        for function in self.before.functions:
            for node in function.nodes:
                place = self.find(function.name, node.id)
                if place is not None and not place.inside:
                    found[function.name, node.id] = (function.name, place.id)
        return found
