"""The tour, walked through (`consoles.py`)."""

from __future__ import annotations

from pathlib import Path

import consoles
import pytest
from snippets import Fence, fences

import archc
from archc.backends.triton.session import Worker

PAGE = Path(archc.__file__).parent.parent / "docs" / "tour.md"
FENCES = list(fences(PAGE))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """Where kernels run is said when the interpreter starts, which is once in a process: not here."""
    Worker.shared()
    return consoles.walk(FENCES, tmp_path_factory.mktemp("tour"))


@pytest.mark.parametrize("console", [f for f in FENCES if f.kind == "console"], ids=str)
def test_a_command_prints_what_the_page_shows(
    console: Fence, results: dict[int, list[str]], accept: bool
) -> None:
    consoles.check(console, results[console.number], accept)
