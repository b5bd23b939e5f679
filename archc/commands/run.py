"""`archc run`: one forward pass, from named input arrays to named output arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..memory import keep_memory
from .options import (
    COMPILED,
    DTYPE,
    FILE,
    QUANT,
    RANDOM,
    WEIGHTS,
    backend_option,
    chunks_option,
    inputs_option,
    open_model,
    sizes,
)
from .progress import bar, shown
from .reports import JSON, print_json
from .tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from ..api import Model
    from ..backends.base import Array
    from ..chunks import Chunks


@click.command("run")
@FILE
@sizes
@WEIGHTS
@RANDOM
@inputs_option(
    "Arrays by the names of the `input` lines. Inputs left out take their defaults.", required=True
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="OUT.safetensors",
    help="Where to write arrays by the names of the `output` lines.",
)
@backend_option(default="numpy", show_default=True, help="What runs it.")
@DTYPE
@QUANT
@click.option(
    "-O",
    "level",
    type=click.Choice(["0", "1"]),
    default="1",
    show_default=True,
    help="0 runs the graph as written, 1 optimises it first.",
)
@chunks_option(
    "Run the sequence in chunks of so many rows, each going on from the one before; auto is half"
    " of it, then row by row."
)
@COMPILED
@JSON
def command(
    file: Path,
    preset: str | None,
    settings: tuple[str, ...],
    model: str | None,
    weights: Path | None,
    seed: int | None,
    inputs: Path,
    output: Path,
    backend: str,
    dtype: Any,
    quant: Any,
    level: str,
    chunks: Chunks | None,
    compiled: bool,
    as_json: bool,
) -> None:
    """Run the model in FILE once."""
    if compiled and backend != "torch":
        raise click.BadParameter("only the torch backend compiles", param_hint="--compile")
    keep_memory()
    opened = open_model(file, preset, settings, model, weights, seed)
    given = read_tensors(inputs)
    options = {"dtype": dtype, "level": int(level), "quant": quant}
    options |= {"compile": True} if compiled else {}
    with shown(opened) as watched:
        if chunks is None:
            run: Callable[..., dict[str, Array]] = watched.compile(backend, inputs=given, **options)
        else:
            run = _in_chunks(watched, backend, chunks, given, options)
    with bar("running"):
        results = run(**given)
    results = widened(results, dtype)
    write_tensors(output, results)
    made = {n: {"shape": list(a.shape), "dtype": str(a.dtype)} for n, a in results.items()}
    if as_json:
        print_json({"wrote": str(output), "outputs": made})
        return
    words = (f"{name} {array['shape']} {array['dtype']}" for name, array in made.items())
    click.echo(f"wrote {output}: {', '.join(words)}")


def _in_chunks(
    model: Model,
    backend: str,
    chunks: Chunks,
    given: Mapping[str, Array],
    options: Mapping[str, Any],
) -> Callable[..., dict[str, Array]]:
    from ..chunks import run, sizes_of

    made = sizes_of(chunks, model.program_for(given), given)
    decoder = model.decoder(backend, inputs=given, **options)
    return lambda **arrays: run(decoder, made, arrays)


def widened(results: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    """Floating-point results as float64 for an f64 run, else float32; others as they are."""
    kept = {"b", "i", "u"}
    wide = "float64" if dtype == "f64" else "float32"
    return {n: a if a.dtype.kind in kept else a.astype(wide) for n, a in results.items()}
