"""`archc check`: elaborate a file's models, at their defaults and at every preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..checking import check
from ..compiler.elaborate import Module, module_of, preset_overrides
from ..compiler.ir.graph import Node, Program
from ..dsl import parse_file
from ..dsl.diagnostics import Diagnostics
from .options import FILE, PRESET
from .reports import JSON, print_json


@click.command("check")
@FILE
@PRESET
@JSON
def command(file: Path, preset: str | None, as_json: bool) -> None:
    """Check FILE: names, axes, sizes, dtypes. Every model and every preset, or just preset P."""
    module = module_of(parse_file(file))
    found = check(module, preset)
    if found.errors:
        raise Diagnostics(found.errors)
    programs = found.programs
    shown = [f"model {name}" for name in module.models] if preset is None else list(programs)
    rows = [_row(where, programs[where], module) for where in shown]
    if as_json:
        print_json({"file": str(file), "items": len(module.file.items), "programs": rows})
        return
    for row in rows:
        click.echo(f"{file}: {_words(row)}")
    if not rows:
        click.echo(f"{file}: no model, {len(module.file.items)} items")


def _row(where: str, program: Program, module: Module) -> dict[str, Any]:
    kinds = [k for n in program.main.nodes if n.op == "repeat" for k in _kinds(n)]
    return {
        "name": where,
        "parameters": program.parameter_count,
        "layers": len(kinds),
        "kinds": len(set(kinds)),
        "presets": [
            p for p in module.presets if where == f"model {preset_overrides(module, p)[0]}"
        ],
    }


def _words(row: dict[str, Any]) -> str:
    """`model Llama: 6,738,415,616 parameters, 32 layers of 1 kind; presets tiny, large`."""
    words = f"{row['name']}: {row['parameters']:,} parameters"
    if row["layers"]:
        words += f", {row['layers']} layers of {row['kinds']} kind{'s' * (row['kinds'] != 1)}"
    return f"{words}; presets {', '.join(row['presets'])}" if row["presets"] else words


def _kinds(repeat: Node) -> tuple[object, ...]:
    kinds = repeat.attrs["kinds"]
    assert isinstance(kinds, tuple)
    return kinds
