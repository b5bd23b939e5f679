"""`archc explain`: what each pass did to a model, and what it left alone and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import FILE, QUANT, open_model, sizes

if TYPE_CHECKING:
    from ..api import Model
    from ..compiler.ir.graph import Program


@click.command("explain")
@FILE
@sizes
@QUANT
@click.option(
    "--program",
    "which",
    type=click.Choice(["full", "prefill", "chunk"]),
    default="full",
    show_default=True,
    help="The model as written, or what is derived to run it chunk by chunk: `prefill` also gives"
    " states, `chunk` goes on from them.",
)
def command(
    file: Path,
    preset: str | None,
    settings: tuple[str, ...],
    model: str | None,
    quant: Any,
    which: str,
) -> None:
    """Show every place where a pass rewrote the model in FILE, or declined to."""
    from ..compiler.passes import optimise
    from ..compiler.passes.explain import explain_text

    program = _program(open_model(file, preset, settings, model), which)
    click.echo(explain_text(optimise(program, quant=quant).sites, program.sizes))


def _program(model: Model, which: str) -> Program:
    if which == "full":
        return model.program
    derived = model.incremental()
    return derived.prefill if which == "prefill" else derived.chunk
