"""A file with the files it uses: definitions, models, presets and checkpoints by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from typing import Any

from ...dsl import Source, errors, parse
from ...dsl.diagnostics import ArchError, Diagnostics
from ...dsl.syntax import (
    AxisDecl,
    AxisGroup,
    AxisRef,
    Call,
    CallableDef,
    CheckpointDef,
    File,
    Lambda,
    ModelDef,
    Name,
    Node,
    PresetDef,
    Select,
    Stage,
    UseItem,
    walk,
)
from .values import Builtin, Template

CONSTANTS: dict[str, Any] = {
    "true": True,
    "false": False,
    "none": None,
    "pi": 3.141592653589793,
    "inf": float("inf"),
}


@dataclass(slots=True)
class Module:
    """Everything a file can name. `builtins` are the functions of the language."""

    file: File
    definitions: dict[str, CallableDef] = field(default_factory=dict)
    models: dict[str, ModelDef] = field(default_factory=dict)
    presets: dict[str, PresetDef] = field(default_factory=dict)
    checkpoints: list[CheckpointDef] = field(default_factory=list)
    builtins: frozenset[str] = frozenset()
    axis_names: dict[int, frozenset[str]] = field(default_factory=dict)
    calls: dict[int, tuple[Stage | Call, ...]] = field(default_factory=dict)

    def visible(self, library: bool) -> Mapping[str, CallableDef]:
        """The definitions a text sees: what a file replaces, the library still has for itself."""
        return standard_library() if library else self.definitions

    def lookup(self, name: str, library: bool = False) -> Any:
        """A definition as a configured value, a builtin, or a constant. `KeyError` if unknown."""
        if name in self.visible(library):
            return Template(self.visible(library)[name])
        return Builtin(name) if name in self.builtins else CONSTANTS[name]

    def calls_in(self, text: Node) -> tuple[Stage | Call, ...]:
        """Stages and calls of a text of this module, outside its lambdas."""
        if id(text) not in self.calls:
            self.calls[id(text)] = tuple(_calls(text))
        return self.calls[id(text)]

    def names(self, library: bool = False) -> tuple[str, ...]:
        return (*self.visible(library), *self.builtins, *CONSTANTS)

    def names_used_as_axes(self, definition: CallableDef) -> frozenset[str]:
        """Names that the body writes in brackets, in `->` or as a bare argument.

        Only such a hyperparameter is an axis, so `attention(heads, heads)` binds one, not two.
        """
        key = id(definition)  # hashing it would walk the tree
        if key not in self.axis_names:
            self.axis_names[key] = _names_used_as_axes(definition)
        return self.axis_names[key]


def load_module(file: File, builtins: frozenset[str]) -> Module:
    """Collect definitions of `file` and of what it uses. Reports every name defined twice."""
    module = Module(file, builtins=builtins)
    mistakes: list[ArchError] = []
    for item in file.items:
        if isinstance(item, UseItem):
            if item.name != "std":
                mistakes.append(errors.UnknownUse(name=item.name, span=item.span))
                continue
            module.definitions.update(standard_library())
    for item in file.items:
        if isinstance(item, CheckpointDef):
            module.checkpoints.append(item)
        elif not isinstance(item, UseItem):
            mistakes += _define(module, item)
    if mistakes:
        raise Diagnostics(mistakes)
    return module


def _define(module: Module, item: CallableDef | ModelDef | PresetDef) -> list[ArchError]:
    tables: dict[type, dict[str, Any]] = {
        CallableDef: module.definitions,
        ModelDef: module.models,
        PresetDef: module.presets,
    }
    table = tables[type(item)]
    earlier = table.get(item.name)
    if earlier is not None and earlier.span.source is item.span.source:
        return [errors.DefinedTwice(name=item.name, span=item.span, first=earlier.span)]
    table[item.name] = item
    return []


@cache
def standard_library() -> dict[str, CallableDef]:
    """The definitions of `dsl/std/*.arch`."""
    found: dict[str, CallableDef] = {}
    for entry in sorted(resources.files("archc.std").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".arch"):
            file = parse(Source(f"std/{entry.name}", entry.read_text(encoding="utf-8")))
            found |= {d.name: d for d in file.items if isinstance(d, CallableDef)}
    return found


def is_library(definition: CallableDef) -> bool:
    return standard_library().get(definition.name) is definition


def _names_used_as_axes(definition: CallableDef) -> frozenset[str]:
    found: set[str] = set()
    for node in walk((definition.inputs, definition.results or (), definition.body)):
        if isinstance(node, AxisDecl):
            found.add(node.name)
        elif isinstance(node, AxisGroup):
            found.update(node.names)
        elif isinstance(node, Select):
            found.add(node.axis)
        elif isinstance(node, AxisRef) and node.name is not None:
            found.add(node.name)
        elif isinstance(node, Call):
            found.update(a.value.name for a in node.arguments if isinstance(a.value, Name))
    return frozenset(found)


def _calls(text: Node) -> Iterator[Stage | Call]:
    """A call that is a stage counts as the stage only."""
    pending: list[object] = [text]
    while pending:
        item = pending.pop()
        if isinstance(item, tuple):
            pending += item
        if not isinstance(item, Node) or isinstance(item, Lambda):
            continue
        if isinstance(item, Stage | Call):
            yield item
        if isinstance(item, Stage) and isinstance(item.call, Call):
            item = item.call
        pending += [getattr(item, f.name) for f in fields(item)]
