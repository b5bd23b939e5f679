"""What a shell completes beyond options: names that FILE defines, and parts of lists with commas.

A file that is not there or does not parse completes nothing: its errors are for the command to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..dsl.diagnostics import ArchError, Diagnostics

if TYPE_CHECKING:
    from ..compiler.elaborate import Module

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _module(ctx: click.Context, place: int = 0) -> Module | None:
    """Of the file that is the argument at `place`.

    While an option waits for its value, click has not yet given arguments their names.
    """
    from ..compiler.elaborate import module_of
    from ..dsl import parse_file

    try:
        return module_of(parse_file(Path(ctx.args[place]).expanduser()))
    except (IndexError, ArchError, Diagnostics):
        return None


def presets(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Those of FILE; behind the comma of `P,Q` those of OTHER."""
    before, comma, begun = incomplete.rpartition(",")
    module = _module(ctx, 1 if comma else 0)
    return [before + comma + name for name in _begun(module.presets if module else (), begun)]


def models(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    module = _module(ctx)
    return _begun(module.models if module else (), incomplete)


def settings(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """`K=` of each hyperparameter, of all models or of the one that --model names."""
    from ..compiler.elaborate import hyperparameters

    module = _module(ctx)
    named = ctx.params.get("model")
    definitions = module.models.items() if module else ()
    names = (k for model, d in definitions if named in (None, model) for k in hyperparameters(d))
    return _begun((f"{name}=" for name in names), incomplete)


def listed(names: Callable[[], Iterable[str]]) -> Complete:
    """A list with commas: each name once. `names` are asked for when a shell does."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
        before, comma, begun = incomplete.rpartition(",")
        left = [name for name in names() if name not in before.split(",")]
        return [before + comma + name for name in _begun(left, begun)]

    return complete


def classes(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Classes of checkpoints that a bundled example reads."""
    from ..importer import class_names

    return _begun(class_names(), incomplete)


def _begun(names: Iterable[str], begun: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(begun)]
