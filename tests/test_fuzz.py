"""Any text is compiled or refused by name. `tests/fuzz/text.py` looks longer, guided by coverage."""

from __future__ import annotations

import splices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)


def chooser(data: st.DataObject) -> splices.Choose:
    return lambda count: data.draw(st.integers(0, count - 1))


@settings(QUIET, max_examples=80)
@given(st.data())
def test_an_example_with_pieces_of_others(data: st.DataObject) -> None:
    splices.examine(splices.grafted(chooser(data)))


@settings(QUIET, max_examples=200)
@given(st.data())
def test_words_in_any_order(data: st.DataObject) -> None:
    splices.examine(splices.soup(chooser(data)))
