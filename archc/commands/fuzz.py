"""`archc fuzz`: random architectures, run on every backend and held to the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import backends_option, output_option, timeout_option
from .progress import bar
from .reports import JSON, print_json

if TYPE_CHECKING:
    from ..fuzz.hunt import Find, Plan

COUNT = 100  # programs where neither a number nor a time is given


@click.command("fuzz", short_help="Look for programs that a backend gets wrong.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="The first program."
)
@click.option("--count", type=click.IntRange(1), help=f"How many programs (default: {COUNT}).")
@click.option("--minutes", type=click.FloatRange(0), help="Stop after so long.")
@backends_option(
    "What to run (default: all that are installed, torch and triton at both levels). As for diff, one"
    " may carry a level and a dtype: torch@O0."
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@timeout_option("Seconds for one program; one that takes longer is a find.")
@output_option(
    "DIR",
    "A folder for each find: the program made small, and how to see it fail.",
    "--output",
    default=Path("finds"),
    show_default=True,
)
@click.option(
    "--print", "printing", is_flag=True, help="Write the programs to stdout; run nothing."
)
@JSON
@click.pass_context
def command(
    ctx: click.Context,
    seed: int,
    count: int | None,
    minutes: float | None,
    backends: str | None,
    jobs: int,
    timeout: float,
    output: Path,
    printing: bool,
    as_json: bool,
) -> None:
    """Write random architectures, and look for one that a backend gets wrong.

    The program of a seed is always the same; sizes are small and collide. A failure is made small
    and written to DIR. Exits with 1 when there is one.
    """
    from ..fuzz.hunt import Plan
    from .diff import LEVELLED, candidate, installed

    if count is None and minutes is None:
        count = COUNT
    if printing:
        samples = Plan((), candidate, seed, count, minutes).samples()
        if as_json:
            print_json({"programs": [{"seed": s.seed, "text": s.text} for s in samples]})
        else:
            click.echo("\n".join(f"# seed {s.seed}\n{s.text}" for s in samples), nl=False)
        return
    names = installed()
    specs = backends.split(",") if backends else [s for name in names for s in LEVELLED[name]]
    for spec in specs:
        candidate(spec, "f32")  # what is no backend is refused before any program runs
    plan = Plan(tuple(specs), candidate, seed, count, minutes, jobs, timeout)
    finds, programs = _run(plan, output, (lambda line: None) if as_json else click.echo)
    if as_json:
        made = {"seed": seed, "programs": programs, "finds": [find.to_json() for find in finds]}
        print_json(made)
    else:
        words = f"{len(finds)} of them fail" if finds else "none fails"
        click.echo(f"{programs} programs from seed {seed} on {', '.join(specs)}: {words}")
    ctx.exit(1 if finds else 0)


def _run(plan: Plan, output: Path, say: Callable[[str], Any]) -> tuple[list[Find], int]:
    """The finds, each written and said as it comes, and how many programs ran."""
    from ..fuzz.hunt import hunt

    finds, programs = [], 0
    with bar("fuzzing") as on_program:
        for sample, find in hunt(plan):
            programs += 1
            on_program(programs, plan.count)
            if find is not None:
                finds.append(find)
                say(f"seed {sample.seed}: {find.failure}\n  {find.write(output)}")
    return finds, programs
