"""`archc fmt`: put files into canonical layout, or with `--check` say which are not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from ..compiler.files import write_file
from ..dsl import format_file, parse_file
from .reports import JSON, print_json


@click.command("fmt")
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if a file is not formatted.")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."
)
@JSON
@click.pass_context
def command(ctx: click.Context, check: bool, files: tuple[Path, ...], as_json: bool) -> None:
    """Format .arch files in place. No file is touched unless all of them parse."""
    trees = {path: parse_file(path) for path in files}
    changed = {p: text for p, t in trees.items() if (text := format_file(t)) != t.span.source.text}
    for path, text in changed.items() if not check else ():
        write_file(path, text.encode())
    if as_json:
        same = [str(path) for path in trees if path not in changed]
        print_json({"written": not check, "changed": list(map(str, changed)), "unchanged": same})
    else:
        _say(changed, len(trees) - len(changed), check)
    ctx.exit(1 if check and changed else 0)


def _say(changed: Iterable[Path], unchanged: int, check: bool) -> None:
    for path in changed:
        click.echo(f"would reformat {path}" if check else f"reformatted {path}")
    click.echo(f"{unchanged} file{'s' * (unchanged != 1)} already formatted")
