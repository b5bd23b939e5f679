"""`archc cost`: parameters, operations and bytes of a model, without running it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..dsl.syntax import Expr, Number
from .options import FILE, WEIGHTS, open_model, overrides, sizes

if TYPE_CHECKING:
    from ..api import Model


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

    sized, at = _sized(open_model(file, preset, model=model, weights=weights), overrides(settings))
    report = cost(sized.program, at)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report.to_text())


def _sized(model: Model, values: Mapping[str, Expr]) -> tuple[Model, dict[str, int]]:
    """The model with its hyperparameters set, and the run-time sizes among `values`."""
    from ..compiler.cost import run_time_symbols
    from ..compiler.elaborate import hyperparameters

    hypers = hyperparameters(model.definition)
    own = {name: value for name, value in values.items() if name in hypers}
    sized = replace(model, overrides={**model.overrides, **own})
    symbols = run_time_symbols(sized.program) if len(own) < len(values) else set()
    at = {
        name: value.value
        for name, value in values.items()
        if name in symbols and isinstance(value, Number) and isinstance(value.value, int)
    }
    unknown = {name: v for name, v in values.items() if name not in own and name not in at}
    return (replace(sized, overrides={**sized.overrides, **unknown}) if unknown else sized), at
