"""The bundled examples, elaborated."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from archc.compiler.elaborate import Request, elaborate, module_of, preset_overrides, the_model
from archc.compiler.ir.graph import Program
from archc.dsl.parse import parse
from archc.dsl.span import Source

FOLDER = Path(__file__).parent.parent / "examples"


@cache
def example(name: str, preset: str = "tiny") -> Program:
    """A program is immutable: read once in a session."""
    text = (FOLDER / f"{name}.arch").read_text()
    module = module_of(parse(Source(f"{name}.arch", text)))
    model, overrides = preset_overrides(module, preset)
    return elaborate(module, the_model(module, model), Request(overrides))
