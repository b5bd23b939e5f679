"""`archc cost`: parameters, operations and bytes of a model, without running it."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FILE, WEIGHTS, open_sized, sizes
from .reports import JSON, print_json


@click.command("cost")
@FILE
@sizes
@WEIGHTS
@JSON
def command(
    file: Path,
    preset: str | None,
    settings: tuple[str, ...],
    model: str | None,
    weights: Path | None,
    as_json: bool,
) -> None:
    """Count parameters, operations and bytes of the model in FILE.

    Operations are formulas in the run-time sizes; with --set b=1 --set s=2048 they are numbers too.
    Of a checkpoint (--weights) only the config and the names of tensors are needed: a directory with
    nothing but a config.json will do.
    """
    from ..compiler.cost import cost

    sized, at = open_sized(file, preset, settings, model, weights)
    report = cost(sized.program, at)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(report.to_text())
