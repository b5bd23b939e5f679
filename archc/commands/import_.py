"""`archc import`: a checkpoint to an .arch file, and an account of all that the checkpoint says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..compiler.files import write_file
from ..dsl.diagnostics import Diagnostics
from .completion import classes
from .options import output_option
from .progress import bar
from .reports import JSON, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from ..compiler.checkpoint import Row
    from ..importer import Imported

WIDE = 140  # columns of a table that goes to no terminal


@click.command("import", short_help="Write the .arch file of a checkpoint.")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="DIR")
@output_option("FILE", "Where to write.")
@click.option(
    "--class",
    "class_name",
    metavar="NAME",
    default="",
    help="Its class, where config.json names none.",
    shell_complete=classes,
)
@JSON
def command(checkpoint: Path, output: Path | None, class_name: str, as_json: bool) -> None:
    """Write the bundled example that reads the checkpoint in DIR, with its sizes filled in.

    DIR may hold only a config.json. Tables say of every config field and every tensor what it sets, which
    default is taken, why it is ignored, or why it is refused. With -o or --json they go to standard
    output; else the .arch text does, and they go to standard error.
    """
    from ..importer import read_directory

    with bar("reading the checkpoint"):
        imported = read_directory(checkpoint, class_name)
    if as_json:
        print_json(imported.to_json())
    else:
        _show(imported, to_error=output is None)
    if imported.errors:
        raise Diagnostics(imported.errors)
    if output is not None:
        write_file(output, imported.text.encode())
        if not as_json:
            click.echo(f"wrote {output}")
    elif not as_json:
        click.echo(imported.text, nl=False)


def _show(imported: Imported, to_error: bool) -> None:
    from rich.console import Console

    stream = sys.stderr if to_error else sys.stdout
    width = None if stream.isatty() else WIDE
    console = Console(file=stream, width=width, highlight=False)
    with console.capture() as captured:
        console.print(_table("config field", imported.config))
        if imported.tensors:
            console.print(_table("tensor", imported.tensors))
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()), err=to_error)
    counted = f": {imported.parameters:,} parameters" if imported.parameters else ""
    read_by = f"{imported.class_name} by {imported.example}, {imported.model}"
    click.echo(f"{read_by}{counted}", err=to_error)


def _table(title: str, rows: tuple[Row, ...]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in (title, "holds", "is", "by, or why"):
        table.add_column(column, overflow="fold")
    for row in rows:
        name = f"{row.name} ({row.count})" if row.count > 1 else row.name
        why = "; ".join((*row.to, *([row.reason] if row.reason else [])))
        table.add_row(*map(escape, (name, row.holds, row.fate, why)))
    return table
