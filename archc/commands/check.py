"""`archc check`: elaborate a file's models, at their defaults and at every preset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ..api import Model
from ..compiler.elaborate import Module, module_of, preset_overrides, the_model
from ..compiler.ir.graph import Node, Program
from ..dsl import parse_file
from ..dsl.diagnostics import ArchError, Diagnostics
from ..dsl.errors import UnknownModel
from ..dsl.lexer import MOST_ERRORS
from .options import FILE, PRESET


@click.command("check")
@FILE
@PRESET
def command(file: Path, preset: str | None) -> None:
    """Check FILE: names, axes, sizes, dtypes. Every model and every preset, or just preset P."""
    module = module_of(parse_file(file))
    errors: dict[str, ArchError] = {str(error): error for error in _orphans(module)}
    programs = {}
    for where, (name, overrides) in _programs(module, preset).items():
        if len(errors) >= MOST_ERRORS:
            break
        try:
            model = Model(module, the_model(module, name), overrides, loss=True)
            programs[where] = model.program
        except (ArchError, Diagnostics) as found:
            for error in found.errors if isinstance(found, Diagnostics) else [found]:
                error.add_note(f"found in {where}")
                errors.setdefault(f"{error.id} {error.span} {error.message}", error)
    if errors:
        raise Diagnostics(errors.values())
    shown = [f"model {name}" for name in module.models] if preset is None else list(programs)
    for where in shown:
        click.echo(f"{file}: {where}: {_summary(programs[where])}{_presets(module, where)}")
    if not shown:
        click.echo(f"{file}: no model, {len(module.file.items)} items")


def _orphans(module: Module) -> Iterator[ArchError]:
    """Checkpoint blocks for a model that is not there."""
    for block in module.checkpoints:
        if block.model not in module.models:
            yield UnknownModel(name=block.model, known=tuple(module.models), span=block.span)


def _programs(module: Module, preset: str | None) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """(model, overrides) of each program to elaborate, by words for it."""
    models = module.models if preset is None else ()
    found: dict[str, tuple[str, Mapping[str, Any]]] = {f"model {n}": (n, {}) for n in models}
    for name in module.presets if preset is None else (preset,):
        model, overrides = preset_overrides(module, name)
        found[f"preset {name} of {model}"] = (model, overrides)
    return found


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
