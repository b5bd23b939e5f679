"""`archc explain`: what each pass did to a model, and what it left alone and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import FILE, QUANT, open_model, sizes


@click.command("explain")
@FILE
@sizes
@QUANT
def command(
    file: Path, preset: str | None, settings: tuple[str, ...], model: str | None, quant: Any
) -> None:
    """Show every place where a pass rewrote the model in FILE, or declined to."""
    from ..compiler.passes import optimise
    from ..compiler.passes.explain import explain_text

    program = open_model(file, preset, settings, model).program
    click.echo(explain_text(optimise(program, quant=quant).sites, program.sizes))
