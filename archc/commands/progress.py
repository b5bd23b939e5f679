"""A progress bar for loading weights, on terminals only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..api import Model
    from ..backends.base import Array


class _Watched(Mapping[str, "Array"]):
    """Weights that say when they are read."""

    def __init__(self, weights: Mapping[str, Array], on_read: Callable[[], None]) -> None:
        self.weights, self.on_read = weights, on_read

    def __getitem__(self, path: str) -> Array:
        self.on_read()
        return self.weights[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@contextmanager
def shown(model: Model) -> Iterator[Model]:
    """The model to load within. On a terminal a bar follows its weights until they are read."""
    if model.weights is None or not sys.stderr.isatty():
        yield model
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loading weights", total=len(model.weights))
        yield replace(model, weights=_Watched(model.weights, lambda: progress.advance(task)))
