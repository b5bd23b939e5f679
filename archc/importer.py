"""`archc import`: the bundled example that reads a checkpoint, with its sizes filled in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from .compiler.checkpoint import (
    Checkpoint,
    Row,
    bind,
    config_rows,
    open_checkpoint,
    read_config,
    tensor_rows,
)
from .compiler.checkpoint.fold import Value, show
from .compiler.elaborate import Request, elaborate, hyperparameters, module_of, the_model
from .dsl import syntax as syn
from .dsl.diagnostics import ArchError, Diagnostics
from .dsl.errors import NoExample, UnnamedClass
from .dsl.format import format_file
from .dsl.parse import parse
from .dsl.span import Source

PRESET = "imported"


@dataclass(frozen=True, slots=True)
class Imported:
    """What reading a checkpoint by an example gives. With `errors` there is no `text`.

    `config` and `tensors` say what became of every field and every tensor.
    """

    example: str
    model: str
    class_name: str
    config: tuple[Row, ...]
    tensors: tuple[Row, ...] = ()
    parameters: int = 0
    text: str = ""
    errors: tuple[ArchError, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "example": self.example,
            "model": self.model,
            "class": self.class_name,
            "parameters": self.parameters,
            "config": [row.to_json() for row in self.config],
            "tensors": [row.to_json() for row in self.tensors],
            "errors": [error.to_json() for error in self.errors],
        }


def import_directory(path: str | Path, class_name: str = "") -> str:
    """The text of an `.arch` file for the checkpoint at `path`: an example, with one preset more.

    `class_name` overrides the class that the checkpoint names. Raises `NoExample` when no bundled
    example reads checkpoints of this class, and what is wrong with the checkpoint.
    """
    imported = read_directory(path, class_name)
    if len(imported.errors) > 1:
        raise Diagnostics(imported.errors)
    for error in imported.errors:
        raise error
    return imported.text


def read_directory(path: str | Path, class_name: str = "") -> Imported:
    """As `import_directory`, with an account of the checkpoint; what is refused is in its `errors`.

    A config is enough: then there are no tensors to account for. Raises `NoExample`, `UnnamedClass`
    and what `open_checkpoint` raises.
    """
    opened = open_checkpoint(path)
    opened = replace(opened, class_name=class_name or opened.class_name)
    if not opened.class_name:
        raise UnnamedClass(path=str(path))
    file, block = _example(opened)
    module = module_of(file)
    model = the_model(module, block.model)
    reading = read_config(block, opened.config, hyperparameters(model), opened.tensor_names)
    example = file.span.source.name
    found = Imported(example, model.name, opened.class_name, config_rows(block, reading))
    if reading.errors:
        return replace(found, errors=tuple(error for _, error in reading.errors))
    try:
        program = elaborate(module, model, Request(overrides=reading.values))
    except Diagnostics as mistakes:
        return replace(found, errors=mistakes.errors)
    found = replace(
        found, tensors=tensor_rows(block, opened, program), parameters=program.parameter_count
    )
    try:
        if opened.tensors is not None:
            bind(block, opened, program)
    except Diagnostics as mistakes:
        return replace(found, errors=mistakes.errors)
    except ArchError as mistake:
        return replace(found, errors=(mistake,))
    return replace(found, text=_filled(file, model, reading.values))


def _filled(file: syn.File, model: syn.ModelDef, values: Mapping[str, Value]) -> str:
    preset = f"preset {PRESET} = {model.name}({_arguments(values)})\n"
    text = file.span.source.text
    at = min((i.span.start for i in file.items if isinstance(i, syn.PresetDef)), default=len(text))
    filled = Source(file.span.source.name, f"{text[:at]}{preset}{text[at:]}")
    return format_file(parse(filled))


def examples() -> Iterator[syn.File]:
    """The bundled examples, each parsed when it is first asked for."""
    for entry in sorted(files("archc.examples").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".arch"):
            yield _parsed(entry.name)


@cache
def _parsed(name: str) -> syn.File:
    return parse(Source(name, (files("archc.examples") / name).read_text(encoding="utf-8")))


def class_names() -> list[str]:
    """The classes of Hugging Face checkpoints that the examples read."""
    blocks = (i for f in examples() for i in f.items if isinstance(i, syn.CheckpointDef))
    return sorted({n for b in blocks if b.format == "huggingface" for n in b.class_names})


def _example(opened: Checkpoint) -> tuple[syn.File, syn.CheckpointDef]:
    for file in examples():
        for item in file.items:
            if isinstance(item, syn.CheckpointDef) and (
                item.format == opened.format and opened.class_name in item.class_names
            ):
                return file, item
    raise NoExample(format=opened.format, class_name=opened.class_name)


def _arguments(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{name} = {write(value)}" for name, value in values.items())


def write(value: Value) -> str:
    """A hyperparameter's value as text; operands in parentheses where that could matter."""
    if not isinstance(value, syn.Expr):
        return show(value)
    writer = _WRITERS.get(type(value))
    return writer(value) if writer else value.span.text


_WRITERS: dict[type[syn.Expr], Callable[[Any], str]] = {
    syn.Name: lambda e: e.name,
    syn.Number: lambda e: e.text,
    syn.String: lambda e: f'"{e.value}"',
    syn.Attribute: lambda e: f"{_operand(e.value)}.{e.name}",
    syn.ListExpr: lambda e: f"[{', '.join(map(write, e.items))}]",  # only plain lists are folded
    syn.Unary: lambda e: f"{e.op}{' ' if e.op == 'not' else ''}{_operand(e.operand)}",
    syn.Binary: lambda e: f"{_operand(e.left)} {e.op} {_operand(e.right)}",
    syn.Call: lambda e: f"{_operand(e.function)}({', '.join(map(_argument, e.arguments))})",
    syn.Conditional: lambda e: (
        f"{_operand(e.then)} if {_operand(e.condition)} else {_operand(e.otherwise)}"
    ),
}


def _operand(expr: syn.Expr) -> str:
    compound = isinstance(expr, syn.Binary | syn.Unary | syn.Conditional | syn.Lambda)
    return f"({write(expr)})" if compound else write(expr)


def _argument(argument: syn.Argument) -> str:
    if argument.name is None:
        return write(argument.value)
    return f"{argument.name}{':' if argument.axis else ' ='} {write(argument.value)}"
