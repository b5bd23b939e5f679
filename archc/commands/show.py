"""`archc show`: a picture of a model, as a text tree, as SVG, or as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..compiler.files import write_file
from .options import FILE, backend_option, open_sized, output_option, sizes
from .progress import bar
from .reports import JSON, print_json

if TYPE_CHECKING:
    from ..api import Model
    from ..show.picture import Picture

WRITTEN = (".html", ".svg")


@click.command("show", short_help="Draw the model in FILE: a tree, an SVG or a page.")
@FILE
@sizes
@click.option("--lines", is_flag=True, help="Every line of the text, also those without products.")
@output_option("OUT", "Write a page (.html, needs no network) or a drawing (.svg) instead.")
@backend_option(help="With a page: the passes for this backend, and its source.")
@JSON
def command(
    file: Path,
    preset: str | None,
    settings: tuple[str, ...],
    model: str | None,
    lines: bool,
    output: Path | None,
    backend: str | None,
    as_json: bool,
) -> None:
    """Show the model in FILE: blocks with repeats folded, their shapes, and what each costs.

    Costs are formulas in the run-time sizes; with --set b=1 --set s=2048 they are numbers. A page
    also has the flow of values, the text beside it, the graph before and after each pass, and with
    --backend the generated kernels.
    """
    _check(output, backend, as_json)
    from ..show.picture import picture

    sized, at = open_sized(file, preset, settings, model)
    found = picture(sized, at, preset or "")
    if output is not None:
        with bar("drawing"):
            drawn = _drawn(sized, found, output, backend)
        write_file(output, drawn.encode())
        click.echo(f"wrote {output} ({output.stat().st_size:,} bytes)")
    elif as_json:
        from ..show.data import record

        print_json(record(found))
    else:
        _print(found, lines)


def _check(output: Path | None, backend: str | None, as_json: bool) -> None:
    """Raises BadParameter and UsageError."""
    if output is not None and output.suffix not in WRITTEN:
        raise click.BadParameter("OUT ends in .html or .svg", param_hint="-o")
    if backend is not None and (output is None or output.suffix != ".html"):
        raise click.UsageError("--backend is for a page: -o OUT.html")
    if as_json and output is not None:
        raise click.UsageError("--json prints: it does not go with -o")


def _drawn(model: Model, found: Picture, output: Path, backend: str | None) -> str:
    if output.suffix == ".svg":
        from ..show.svg import show_svg

        return show_svg(found)
    from ..show.page import show_page
    from ..show.stages import stages_of

    return show_page(found, stages_of(model.program, backend, found.at))


def _print(found: Picture, lines: bool) -> None:
    from rich.console import Console

    from ..show.text import show_text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 100
    show_text(found, console, lines)
