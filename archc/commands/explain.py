"""`archc explain`: what each pass did to a model, and what it left alone and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..dsl.diagnostics import InternalError
from .options import FILE, QUANT, open_sized, sizes
from .progress import bar
from .reports import JSON, print_json

if TYPE_CHECKING:
    from ..api import Model
    from ..compiler.ir.graph import Program


@click.command("explain", short_help="Show where passes rewrote the model in FILE, or why not.")
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
@JSON
def command(
    file: Path,
    preset: str | None,
    settings: tuple[str, ...],
    model: str | None,
    quant: Any,
    which: str,
    bisecting: bool,
    as_json: bool,
) -> None:
    """Show every place where a pass rewrote the model in FILE, or declined to.

    Bytes are formulas in the run-time sizes; with --set b=1 --set s=2048 they are numbers, and the
    memory of activations before and after the passes is one too.
    """
    from ..compiler.passes import optimise
    from ..compiler.passes.explain import (
        explain_json,
        explain_text,
        quiet_json,
        totals,
        totals_text,
    )

    if bisecting and which != "full":
        raise click.UsageError("--bisect runs whole sequences: it does not go with --program")
    sized, at = open_sized(file, preset, settings, model)
    program = _program(sized, which)
    if bisecting:
        _bisect(program, quant, as_json)
        return
    done = optimise(program, quant=quant)
    sizes = {**program.sizes, **at}
    activations = _activations(program, done.program, at)
    if as_json:
        print_json(
            {
                "sites": explain_json(done.sites, sizes),
                "canonical": quiet_json(done.sites),
                "passes": totals(done.sites, sizes),
                "activations": {name: row for name, (_, row) in activations.items()},
            }
        )
        return
    click.echo(explain_text(done.sites, sizes))
    click.echo(totals_text(done.sites, sizes))
    if activations:
        click.echo("activations")
    for words, row in activations.values():
        click.echo(f"  {words:<25}{row['before']:>16,} -> {row['after']:,} bytes")


def _program(model: Model, which: str) -> Program:
    if which == "full":
        return model.program
    derived = model.incremental()
    return derived.prefill if which == "prefill" else derived.chunk


def _activations(
    before: Program, after: Program, at: Mapping[str, int]
) -> dict[str, tuple[str, dict[str, int]]]:
    """Bytes of what is computed, before and after the passes, once run-time sizes are known.

    By name, with words for it.
    """
    from ..compiler.buffers import Memory
    from ..compiler.cost import run_time_symbols

    if run_time_symbols(before) - at.keys():
        return {}
    measures = {
        "separate": (Memory.separate, "a buffer for each value"),
        "shared": (Memory.shared, "shared buffers"),
        "peak": (Memory.peak, "most alive at once"),
    }
    return {
        name: (
            words,
            {
                "before": measure(Memory(before, at), before.main),
                "after": measure(Memory(after, at), after.main),
            },
        )
        for name, (measure, words) in measures.items()
    }


def _bisect(program: Program, quant: Any, as_json: bool) -> None:
    """Says which rewrite is wrong, if one is; that is our bug, and the exit status 70 of one."""
    from ..backends.numpy import exact
    from ..compiler.passes.bisect import bisect
    from ..compiler.passes.explain import entry, explain_text

    with bar("running the graph before and after each pass"):
        found = bisect(program, exact, quant)
    if as_json:
        site = found.site and entry(found.site, program.sizes)
        print_json(
            {
                "rewrites": found.fired,
                "error": found.error or None,
                "pass": found.pass_name or None,
                "site": site,
            }
        )
    elif not found.error:
        click.echo(f"{found.fired} rewrites, and none changes a result beyond rounding")
    else:
        where = explain_text([found.site], program.sizes) if found.site else found.pass_name
        limit = f"ARCHC_RULE_LIMIT={found.fired - 1}"
        click.echo(f"rewrite {found.fired} is wrong; {limit} leaves it out\n{where}")
    if found.error:
        raise InternalError(found.error)
