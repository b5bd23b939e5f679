"""Everything that is wrong with a file: its models are elaborated at their defaults and at every preset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .compiler.causality import elaborate_proved
from .compiler.elaborate import Module, Request, preset_overrides, the_model
from .compiler.elaborate.body import Watch, nobody
from .compiler.ir.graph import Program
from .dsl.diagnostics import ArchError, Diagnostics
from .dsl.errors import UnknownModel
from .dsl.lexer import MOST_ERRORS


@dataclass(frozen=True, slots=True)
class Checked:
    """Programs by words for them (`model M`, `preset p of M`), and each mistake once."""

    programs: Mapping[str, Program]
    errors: tuple[ArchError, ...]


def check(
    module: Module, preset: str | None = None, watch: Watch = nobody, presets: bool = True
) -> Checked:
    """Elaborates all models and, unless `presets` is false, all presets; or just one preset.

    `watch` is told of the values of models at their defaults. Raises `UnknownPreset`, `BadPreset`.
    """
    errors: dict[str, ArchError] = {str(error): error for error in _orphans(module)}
    programs = {}
    for where, (name, overrides) in _requests(module, preset, presets).items():
        if len(errors) >= MOST_ERRORS:
            break
        try:
            seen_by = nobody if overrides else watch
            request = Request(overrides, loss=True, watch=seen_by)
            programs[where] = elaborate_proved(module, the_model(module, name), request)
        except (ArchError, Diagnostics) as found:
            for error in found.errors if isinstance(found, Diagnostics) else [found]:
                error.add_note(f"found in {where}")
                errors.setdefault(f"{error.id} {error.span} {error.message}", error)
    return Checked(programs, tuple(errors.values()))


def _orphans(module: Module) -> Iterator[ArchError]:
    """Checkpoint blocks for a model that is not there."""
    for block in module.checkpoints:
        if block.model not in module.models:
            yield UnknownModel(name=block.model, known=tuple(module.models), span=block.span)


def _requests(
    module: Module, preset: str | None, presets: bool
) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """(model, overrides) of each program to elaborate, by words for it."""
    models = module.models if preset is None else ()
    found: dict[str, tuple[str, Mapping[str, Any]]] = {f"model {n}": (n, {}) for n in models}
    every = module.presets if presets else ()
    for name in every if preset is None else (preset,):
        model, overrides = preset_overrides(module, name)
        found[f"preset {name} of {model}"] = (model, overrides)
    return found
