"""`archc check`: elaborate a file's models, at their defaults and at every preset."""

from __future__ import annotations

from pathlib import Path

import click

from ..checking import check
from ..compiler.elaborate import Module, module_of, preset_overrides
from ..compiler.ir.graph import Node, Program
from ..dsl import parse_file
from ..dsl.diagnostics import Diagnostics
from .options import FILE, PRESET


@click.command("check")
@FILE
@PRESET
def command(file: Path, preset: str | None) -> None:
    """Check FILE: names, axes, sizes, dtypes. Every model and every preset, or just preset P."""
    module = module_of(parse_file(file))
    found = check(module, preset)
    if found.errors:
        raise Diagnostics(found.errors)
    programs = found.programs
    shown = [f"model {name}" for name in module.models] if preset is None else list(programs)
    for where in shown:
        click.echo(f"{file}: {where}: {_summary(programs[where])}{_presets(module, where)}")
    if not shown:
        click.echo(f"{file}: no model, {len(module.file.items)} items")


def _summary(program: Program) -> str:
    """`6,738,415,616 parameters, 32 layers of 1 kind`."""
    words = f"{program.parameter_count:,} parameters"
    kinds = [k for n in program.main.nodes if n.op == "repeat" for k in _kinds(n)]
    if not kinds:
        return words
    count = len(set(kinds))
    return f"{words}, {len(kinds)} layers of {count} kind{'s' * (count != 1)}"


def _kinds(repeat: Node) -> tuple[object, ...]:
    kinds = repeat.attrs["kinds"]
    assert isinstance(kinds, tuple)
    return kinds


def _presets(module: Module, where: str) -> str:
    """`; presets tiny, large` behind a model that has some."""
    names = [p for p in module.presets if where == f"model {preset_overrides(module, p)[0]}"]
    return f"; presets {', '.join(names)}" if names else ""
