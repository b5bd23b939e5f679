"""The cheapest cut against all cuts there are, on small random graphs."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from itertools import combinations

import pytest

from archc.compiler.cut import cheapest_cut

Operands = Mapping[int, Collection[int]]


def suffices(kept: Collection[int], operands: Operands, once: set[int], wanted: set[int]) -> bool:
    """Whether everything wanted is kept, or can be made again of what is kept."""
    made = set(kept)
    for vertex in operands:  # operands come before what is made of them
        if vertex not in once and operands[vertex] and made >= set(operands[vertex]):
            made.add(vertex)
    return made >= wanted


def cheapest_of_all(
    price: Mapping[int, int], operands: Operands, once: set[int], wanted: set[int]
) -> int:
    choices = (c for n in range(len(price) + 1) for c in combinations(price, n))
    return min(
        sum(price[v] for v in kept) for kept in choices if suffices(kept, operands, once, wanted)
    )


@pytest.mark.parametrize("seed", range(60))
def test_no_set_that_suffices_is_cheaper(seed: int) -> None:
    chance = random.Random(seed)
    count = chance.randint(2, 8)
    operands = {v: [u for u in range(v) if chance.random() < 0.4] for v in range(count)}
    once = {v for v in operands if not operands[v] or chance.random() < 0.2}
    price = {v: chance.randint(1, 6) for v in operands}
    wanted = set(chance.sample(range(count), chance.randint(1, 2)))
    kept = cheapest_cut(price, operands, once, wanted)
    assert suffices(kept, operands, once, wanted)
    assert sum(price[v] for v in kept) == cheapest_of_all(price, operands, once, wanted)


def test_of_equal_cuts_the_one_nearest_the_use() -> None:
    chain = {"a": [], "b": ["a"], "c": ["b"]}
    assert cheapest_cut(dict.fromkeys(chain, 4), chain, {"a"}, {"c"}) == {"c"}
    assert cheapest_cut({"a": 4, "b": 3, "c": 4}, chain, {"a"}, {"c"}) == {"b"}


def test_a_value_that_several_use_is_kept_once() -> None:
    tree = {"a": [], "b": ["a"], "c": ["a"]}
    assert cheapest_cut(dict.fromkeys(tree, 4), tree, {"a"}, {"b", "c"}) == {"a"}
    assert cheapest_cut(dict.fromkeys(tree, 4), tree, set(tree), {"b", "c"}) == {"b", "c"}
