"""`archc cost`: parameters, operations and bytes of a model, without running it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import FILE, WEIGHTS, open_sized, sizes


@click.command("cost")
@FILE
@sizes
@WEIGHTS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
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
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report.to_text())
