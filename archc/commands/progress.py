"""Progress bars: on standard error, where that is a terminal, and gone at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..api import Model
    from ..backends.base import Array


class _Watched(Mapping[str, "Array"]):
    """Weights that say how many of how many are read."""

    def __init__(self, weights: Mapping[str, Array], on_read: Callable[[int, int], None]) -> None:
        self.weights, self.on_read, self.read = weights, on_read, 0

    def __getitem__(self, path: str) -> Array:
        self.read += 1
        self.on_read(self.read, len(self.weights))
        return self.weights[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A function to call with (done, total), which the bar follows. Without a total it pulses."""
    with _progress() as progress:
        if progress is None:
            yield lambda done, total: None
            return
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def steps(title: str) -> Iterator[Callable[[str], None]]:
    """A function to call with what is done next, which stands before a pulsing bar."""
    with _progress() as progress:
        if progress is None:
            yield lambda words: None
            return
        task = progress.add_task(title, total=None)
        yield lambda words: progress.update(task, description=words, refresh=True)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """None where nobody watches, or a line cannot be cleared."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    # Lines for the terminal are drawn above the bar; those for a file must stay with the file.
    console, above = Console(stderr=True), sys.stdout.isatty()
    with Progress(console=console, transient=True, redirect_stdout=above) as progress:
        yield progress


@contextmanager
def shown(model: Model) -> Iterator[Model]:
    """The model to load within. On a terminal a bar follows its weights until they are read."""
    if model.weights is None:
        yield model
        return
    with bar("loading weights") as on_read:
        yield model.with_weights(_Watched(model.weights, on_read))
