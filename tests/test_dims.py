"""Sizes under bindings: the number is that of putting in the values and simplifying."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archc.dsl.dims import Dim, maximum, minimum

SYMBOLS = ("a", "b", "c")
A, B = Dim.symbol("a"), Dim.symbol("b")
ATOMS = st.one_of(st.sampled_from(SYMBOLS).map(Dim.symbol), st.integers(-3, 5).map(Dim.of))
COMBINED = (
    lambda x, y: x + y,
    lambda x, y: x - y,
    lambda x, y: x * y,
    lambda x, y: x // (y * y + 1),
    minimum,
    maximum,
)
SIZES = st.recursive(
    ATOMS, lambda inner: st.builds(lambda f, x, y: f(x, y), st.sampled_from(COMBINED), inner, inner)
)


@given(SIZES, st.fixed_dictionaries({name: st.integers(0, 9) for name in SYMBOLS}))
def test_a_size_has_the_value_of_what_is_substituted(size, bindings):
    assert size.evaluate(bindings) == size.substitute(bindings).constant


def test_a_symbol_without_a_value_may_cancel():
    assert (A * B - A * 2).evaluate({"b": 2}) == 0
    with pytest.raises(KeyError, match="a"):
        (A * B - A).evaluate({"b": 2})


def test_a_quotient_by_nothing_is_refused():
    with pytest.raises(ZeroDivisionError):
        (A // B).evaluate({"a": 6, "b": 0})
