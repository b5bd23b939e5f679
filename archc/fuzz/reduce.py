"""A failing program made small: cuts are tried as long as one keeps the failure.

`reduced` knows a failure only as a question asked of a trial, so that a backend, a command of a user
or a planted bug can answer it. It stops when no cut is kept, or at the limit of questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ..dsl import Source, format_file, parse
from ..dsl.diagnostics import ArchError, Diagnostics
from .cuts import cuts
from .judge import Trial

LIMIT = 2000  # questions
SIZES = (1, 2, 3)

Fails = Callable[[Trial], bool]


def reduced(
    trial: Trial,
    fails: Fails,
    *,
    limit: int = LIMIT,
    progress: Callable[[int, int], Any] = lambda asked, characters: None,
) -> Trial:
    """The smallest trial found on which `fails` still holds, as it does of `trial`."""
    asked: set[tuple[str, tuple[tuple[str, int], ...]]] = set()
    best, kept = trial, True
    while kept:
        kept, at, waiting = False, 0, list(_smaller(best))
        while at < len(waiting) and len(asked) < limit:
            smaller = waiting[at]
            at += 1
            key = smaller.text, tuple(smaller.sizes.items())
            if key in asked:
                continue
            asked.add(key)
            progress(len(asked), len(best.text))
            if fails(smaller):  # what was refused before it will be refused again, most likely
                best, kept, at, waiting = smaller, True, at - 1, list(_smaller(smaller))
    return best


def _smaller(trial: Trial) -> Iterator[Trial]:
    for text in cuts(trial.text):
        neat = _formatted(text)
        if neat is not None and neat != trial.text:
            yield replace(trial, text=neat)
    for name, size in trial.sizes.items():
        for less in SIZES:
            if less < size:
                yield replace(trial, sizes={**trial.sizes, name: less})


def _formatted(text: str) -> str | None:
    """The text in its canonical form, without empty lines; None where it is no program."""
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        return format_file(parse(Source("cut.arch", "\n".join(lines))))
    except (ArchError, Diagnostics):
        return None
