"""Options that several commands share, and how they pick a model.

A constant means the same for each of them. A function declares what is written alike and means
something of its own: a command gives its words, and a default where it has one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..dsl import Source, parse
from ..dsl.syntax import Call, Expr, Number, PresetDef
from . import completion

if TYPE_CHECKING:
    from ..api import Model

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
PRESET = click.option(
    "--preset", metavar="P", help="A preset of the file.", shell_complete=completion.presets
)
MODEL = click.option(
    "--model",
    metavar="NAME",
    help="A model of the file, where it has several.",
    shell_complete=completion.models,
)
SET = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    help="A hyperparameter as an .arch expression. May be repeated.",
    shell_complete=completion.settings,
)
WEIGHTS = click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="W",
    help="A checkpoint: a Hugging Face directory, a .safetensors file in one, or a .gguf file.",
)


def random_option(words: str, **given: Any) -> Callable[[Command], Command]:
    return click.option("--random", "seed", type=int, metavar="SEED", help=words, **given)


RANDOM = random_option("Random weights from this seed.")
SIZE = click.option(
    "--size", "lengths", multiple=True, metavar="S=N", help="A size of random inputs."
)
DTYPES = click.Choice(["f64", "f32", "bf16", "f16"])
DTYPE = click.option(
    "--dtype",
    type=DTYPES,
    default="f32",
    show_default=True,
    help="The model's element type.",
)
QUANT = click.option(
    "--quant",
    type=click.Choice(["int8", "int4"]),
    help="Keep the weights of products in so many bits, a scale for each 32.",
)


def compile_option(words: str) -> Callable[[Command], Command]:
    return click.option("--compile/--eager", "compiled", default=False, help=words)


COMPILED = compile_option("Whether torch compiles each layer kind.")


class ChunkList(click.ParamType):  # type: ignore[type-arg]  # of click 8.1 it takes none
    """`auto`, or numbers of rows: `7,1,1,1`."""

    name = "chunks"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, tuple) or value == "auto":
            return value
        sizes = [part.strip() for part in value.split(",")]
        if not all(size.isdecimal() and int(size) > 0 for size in sizes):
            self.fail(f"{value!r} is neither auto nor numbers such as 7,1,1,1", param, ctx)
        return tuple(map(int, sizes))


def chunks_option(words: str) -> Callable[[Command], Command]:
    return click.option("--chunks", type=ChunkList(), metavar="N,N,...", help=words)


BACKENDS = click.Choice(["numpy", "torch", "triton"])


def backend_option(*name: str, **given: Any) -> Callable[[Command], Command]:
    """The one backend of a command; `name` where its parameter is called otherwise."""
    return click.option("--backend", *name, type=BACKENDS, **given)


def backends_option(words: str) -> Callable[[Command], Command]:
    """Several, compared with each other."""
    listed = completion.listed(lambda: BACKENDS.choices)
    return click.option("--backends", metavar="A,B,...", shell_complete=listed, help=words)


def inputs_option(words: str, **given: Any) -> Callable[[Command], Command]:
    path, name = click.Path(path_type=Path), "IN.safetensors"
    return click.option("--inputs", type=path, metavar=name, help=words, **given)


def output_option(
    metavar: str, words: str | None = None, *long: str, **given: Any
) -> Callable[[Command], Command]:
    """Where a command writes; `long` where the option has a second name."""
    path, names = click.Path(path_type=Path), long or ("output",)
    return click.option("-o", *names, type=path, metavar=metavar, help=words, **given)


def timeout_option(words: str) -> Callable[[Command], Command]:
    seconds = click.FloatRange(0, min_open=True)
    return click.option("--timeout", type=seconds, default=120.0, show_default=True, help=words)


def sizes(command: Command) -> Command:
    """The options that fix a model's hyperparameters."""
    for option in (MODEL, SET, PRESET):
        command = option(command)
    return command


def overrides(settings: tuple[str, ...]) -> dict[str, Expr]:
    """The values of `--set`, read as those of one more preset, whose text errors then show."""
    if not settings:
        return {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (equals and name.strip().isidentifier() and value.strip()):
            raise click.BadParameter(f"{setting!r} is not of the form K=V", param_hint="--set")
    text = f"preset given = Model({', '.join(settings)})"
    (preset,) = parse(Source("--set", text)).items
    assert isinstance(preset, PresetDef)
    assert isinstance(preset.value, Call)
    return {a.name: a.value for a in preset.value.arguments if a.name is not None}


def open_model(
    file: Path,
    preset: str | None = None,
    settings: tuple[str, ...] = (),
    model: str | None = None,
    weights: Path | None = None,
    seed: int | None = None,
) -> Model:
    """The model that these options name, with weights from a checkpoint or from a seed."""
    from ..api import load

    if weights is not None and seed is not None:
        raise click.UsageError("--weights and --random exclude each other")
    found = load(file, preset=preset, model=model, weights=weights, overrides=overrides(settings))
    return found if seed is None else found.with_random_weights(seed)


def open_sized(
    file: Path,
    preset: str | None = None,
    settings: tuple[str, ...] = (),
    model: str | None = None,
    weights: Path | None = None,
) -> tuple[Model, dict[str, int]]:
    """The model with its hyperparameters set, and the run-time sizes among `settings`.

    A size that only the program of a chunk has, such as `s.past`, is spelled `s_past`.
    """
    from ..compiler.cost import run_time_symbols
    from ..compiler.elaborate import hyperparameters

    opened, values = open_model(file, preset, model=model, weights=weights), overrides(settings)
    hypers = hyperparameters(opened.definition)
    own = {name: value for name, value in values.items() if name in hypers}
    sized = replace(opened, overrides={**opened.overrides, **own})
    symbols: dict[str, str] = {}
    if len(own) < len(values):
        program = sized.program
        symbols = {s: s for s in run_time_symbols(program)}
        symbols |= {program.past.replace(".", "_"): program.past} if program.decode else {}
    at = {
        symbols[name]: value.value
        for name, value in values.items()
        if name in symbols and isinstance(value, Number) and isinstance(value.value, int)
    }
    for name in values:
        if name in symbols and name not in own and symbols[name] not in at:
            problem = f"{name} is a size that a call decides: a whole number, 0 or more"
            raise click.BadParameter(problem, param_hint="--set")
    unknown = {n: v for n, v in values.items() if n not in own and n not in symbols}
    return (replace(sized, overrides={**sized.overrides, **unknown}) if unknown else sized), at
