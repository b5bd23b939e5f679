"""`archc explain`: what each pass did to a model, and what it left alone and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..dsl.diagnostics import InternalError
from .options import FILE, QUANT, open_sized, sizes

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
@click.option(
    "--bisect",
    "bisecting",
    is_flag=True,
    help="Run the graph before and after each pass, in float64, and name the first rewrite that changes"
    " a result.",
)
def command(
    file: Path,
    preset: str | None,
    settings: tuple[str, ...],
    model: str | None,
    quant: Any,
    which: str,
    bisecting: bool,
) -> None:
    """Show every place where a pass rewrote the model in FILE, or declined to.

    Bytes are formulas in the run-time sizes; with --set b=1 --set s=2048 they are numbers, and the
    memory of activations before and after the passes is one too.
    """
    from ..compiler.passes import optimise
    from ..compiler.passes.explain import explain_text, totals_text

    if bisecting and which != "full":
        raise click.UsageError("--bisect runs whole sequences: it does not go with --program")
    sized, at = open_sized(file, preset, settings, model)
    program = _program(sized, which)
    if bisecting:
        _bisect(program, quant)
        return
    done = optimise(program, quant=quant)
    sizes = {**program.sizes, **at}
    click.echo(explain_text(done.sites, sizes))
    click.echo(totals_text(done.sites, sizes))
    for line in _activations(program, done.program, at):
        click.echo(line)


def _program(model: Model, which: str) -> Program:
    if which == "full":
        return model.program
    derived = model.incremental()
    return derived.prefill if which == "prefill" else derived.chunk


def _activations(before: Program, after: Program, at: Mapping[str, int]) -> Iterator[str]:
    """Bytes of what is computed, before and after the passes, once run-time sizes are known."""
    from ..compiler.buffers import Memory
    from ..compiler.cost import run_time_symbols

    if run_time_symbols(before) - at.keys():
        return
    yield "activations"
    for measure, what in (
        (Memory.separate, "a buffer for each value"),
        (Memory.shared, "shared buffers"),
        (Memory.peak, "most alive at once"),
    ):
        old, new = (measure(Memory(p, at), p.main) for p in (before, after))
        yield f"  {what:<25}{old:>16,} -> {new:,} bytes"


def _bisect(program: Program, quant: Any) -> None:
    """Says which rewrite is wrong, if one is; that is our bug, and the exit status 2 of one."""
    from ..backends.numpy import exact
    from ..compiler.passes.bisect import bisect
    from ..compiler.passes.explain import explain_text

    found = bisect(program, exact, quant)
    if not found.error:
        click.echo(f"{found.fired} rewrites, and none changes a result beyond rounding")
        return
    where = explain_text([found.site], program.sizes) if found.site else found.pass_name
    click.echo(f"rewrite {found.fired} is wrong; ARCHC_RULE_LIMIT={found.fired - 1} leaves it out")
    click.echo(where)
    raise InternalError(found.error)
