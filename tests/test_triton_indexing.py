"""Index arithmetic: what cancels, what stays, and how it is written."""

from __future__ import annotations

import numpy as np
import pytest

from archc.backends.triton.indexing import COLS, ROWS, Indices, Var, join
from archc.dsl.dims import Dim

S = Dim.symbol("s")


@pytest.fixture
def indices() -> Indices:
    made = Indices()
    made.add(Var("rows", Dim.symbol("b") * S * 8, frozenset({(ROWS, "BLOCK_M")})))
    made.add(Var("cols", Dim.of(64), frozenset({(COLS, "64")})))
    return made


def rows(indices: Indices) -> list[Dim]:
    axes = [("b", Dim.symbol("b")), ("s", S), ("h", Dim.of(8))]
    return indices.flatten(axes, indices.table["%rows"])


def test_address_of_flattened_axes_is_the_flat_index(indices):
    sizes = [Dim.symbol("b"), S, Dim.of(8)]
    assert indices.text(join(rows(indices), sizes)) == "rows"
    cols = Dim.symbol("%cols")
    assert indices.text(join([*rows(indices), cols], [*sizes, Dim.of(64)])) == "rows * 64 + cols"


def test_split_then_merge_cancels(indices):
    cols = Dim.symbol("%cols")
    quotient, remainder = indices.divide(cols, Dim.of(16))
    assert indices.text(quotient) == "cols // 16"
    assert indices.text(remainder) == "cols % 16"
    assert indices.text(quotient * 16 + remainder) == "cols"
    assert indices.divide(quotient * 16 + remainder, Dim.of(16)) == (quotient, remainder)
    assert indices.divide(remainder * 4 + quotient, Dim.of(4)) == (remainder, quotient)


def test_ranges_decide_divisions(indices):
    _, position, head = rows(indices)
    assert indices.divide(head * S + position, S) == (head, position)
    assert indices.within(head, Dim.of(8))
    assert not indices.within(head + 1, Dim.of(8))
    assert not indices.within(Dim.symbol("%cols") - 1, Dim.of(64))


def test_text_means_the_polynomial(indices):
    cols, numbers = Dim.symbol("%cols"), np.arange(64)
    high, low = indices.divide(cols, Dim.of(8))
    for polynomial, expected in [
        (low * 8 + high, numbers % 8 * 8 + numbers // 8),
        (high * 3 - low + 100, numbers // 8 * 3 - numbers % 8 + 100),
        (indices.divide(low, Dim.of(2))[0], numbers % 8 // 2),
    ]:
        text = indices.text(polynomial)
        assert np.array_equal(eval(text, {"cols": numbers}), expected), text


def test_size_one_axes_vanish(indices):
    base = indices.table["%cols"]
    one, rest = indices.flatten([("one", Dim.of(1)), ("rest", Dim.of(64))], base)
    assert one == Dim()
    assert indices.text(rest) == "cols"
