"""`archc import`: a checkpoint to an .arch file."""

from __future__ import annotations

from pathlib import Path

import click

from .files import write_file


@click.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "-o", "output", type=click.Path(path_type=Path), metavar="FILE", help="Where to write."
)
def command(checkpoint: Path, output: Path | None) -> None:
    """Write the bundled example that reads the checkpoint in DIR, with its sizes filled in."""
    from ..importer import import_directory

    text = import_directory(checkpoint)
    if output is None:
        click.echo(text, nl=False)
        return
    write_file(output, text.encode())
    click.echo(f"wrote {output}")
