"""`archc compile`: the source, or the graph, that a backend makes of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .files import write_directory
from .options import BACKENDS, FILE, WEIGHTS, open_model, sizes

if TYPE_CHECKING:
    from ..backends.base import Array
    from ..compiler.ir.graph import Program
    from ..compiler.passes import Optimised
    from ..compiler.rewrite import Site


@click.command("compile")
@FILE
@click.option("--backend", type=BACKENDS, required=True, help="What to compile for.")
@click.option(
    "--target", metavar="T,...", help="GPU architectures for triton, such as sm_90,gfx942."
)
@sizes
@WEIGHTS
@click.option("-o", "output", type=click.Path(path_type=Path), required=True, metavar="DIR")
@click.option(
    "--emit",
    type=click.Choice(["ir", "source"]),
    default="source",
    show_default=True,
    help="The graph before and after the passes, or the backend's source.",
)
@click.option(
    "--verify", is_flag=True, help="Run the graph before and after each pass, in float64."
)
@click.pass_context
def command(
    ctx: click.Context,
    file: Path,
    backend: str,
    target: str | None,
    preset: str | None,
    settings: tuple[str, ...],
    model: str | None,
    weights: Path | None,
    output: Path,
    emit: str,
    verify: bool,
) -> None:
    """Compile the model in FILE to a directory of files.

    The numpy backend runs the graph itself, so its source is the graph. A checkpoint given by
    --weights sets the sizes.
    """
    from ..compiler.passes import optimise

    if target is not None and backend != "triton":
        raise click.BadParameter("only the triton backend has targets", ctx, param_hint="--target")
    program = open_model(file, preset, settings, model, weights).program
    optimised = optimise(program, verify=_evaluate if verify else None)
    if emit == "ir" or backend == "numpy":
        files, report = _graphs(program, optimised), ""
    else:
        files, report = _sources(backend, optimised.program, target)
    write_directory(output, files)
    for name, content in files.items():
        click.echo(f"wrote {output / name} ({len(content):,} bytes)")
    if report:
        click.echo(f"\n{report}")
    click.echo(f"\n{passes_table(optimised.sites)}")
    if verify:
        click.echo("verified: no pass changed a result beyond rounding")


def _evaluate(
    program: Program, inputs: Mapping[str, Array], weights: Mapping[str, Array]
) -> Mapping[str, Array]:
    from ..backends.numpy import NumpyBackend

    return NumpyBackend().load(program, weights, dtype="f64").run(inputs)


def _graphs(program: Program, optimised: Optimised) -> dict[str, str | bytes]:
    from ..compiler.ir.text import show

    return {"before.ir": show(program), "after.ir": show(optimised.program)}


def _sources(
    backend: str, program: Program, target: str | None
) -> tuple[dict[str, str | bytes], str]:
    """Files by name, and what is to be said about them."""
    from ..api import backend as backend_called

    return dict(backend_called(backend).emit(program)), ""


def passes_table(sites: Sequence[Site]) -> str:
    """A row per pass: how often its rules fired, how often they recognised a place and declined."""
    from ..compiler.passes import PIPELINE

    counts = Counter((s.pass_name, s.fired) for s in sites)
    rows = [(p.name, counts[p.name, True], counts[p.name, False]) for p in PIPELINE]
    return "\n".join(
        [f"{'pass':<20} {'fired':>6} {'declined':>9}"]
        + [f"{name:<20} {fired:>6} {declined:>9}" for name, fired, declined in rows]
    )
