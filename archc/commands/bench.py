"""`archc bench`: how fast a model runs on this machine."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    DTYPES,
    FILE,
    RANDOM,
    WEIGHTS,
    backend_option,
    compile_option,
    open_model,
    sizes,
)
from .progress import steps
from .reports import JSON, print_json

if TYPE_CHECKING:
    from ..bench import Figures, Found, Way

COUNT = click.IntRange(min=1)
MB = 1e6
HEAD = ("", "prefill tok/s", "decode tok/s", "load s", "first s", "peak MB")


@click.command("bench", short_help="Time a prompt and the decoding after it.")
@FILE
@sizes
@WEIGHTS
@RANDOM
@backend_option("backends", multiple=True, default=["torch"], show_default=True)
@click.option("--dtype", "dtypes", type=DTYPES, multiple=True, default=["f32"], show_default=True)
@click.option(
    "--quant",
    "quants",
    type=click.Choice(["none", "int8", "int4"]),
    multiple=True,
    default=["none"],
    show_default=True,
    help="Weights of products in so many bits.",
)
@compile_option("Measure torch compiled, too, and show the faster.")
@click.option("--prompt", type=COUNT, default=512, show_default=True, help="Tokens of a prompt.")
@click.option(
    "--context", type=COUNT, default=32, show_default=True, help="Tokens before those decoded."
)
@click.option("--tokens", type=COUNT, default=128, show_default=True, help="Tokens to decode.")
@click.option("--rounds", type=COUNT, default=5, show_default=True)
@click.option("--threads", type=COUNT, help="As many as the machine has, if not given.")
@JSON
def command(
    file: Path,
    preset: str | None,
    settings: tuple[str, ...],
    model: str | None,
    weights: Path | None,
    seed: int | None,
    backends: tuple[str, ...],
    dtypes: tuple[str, ...],
    quants: tuple[str, ...],
    compiled: bool,
    as_json: bool,
    **work: Any,
) -> None:
    """Time a prompt and the decoding after it, side by side for each way that is asked for.

    --backend, --dtype and --quant may be repeated: all combinations run in turn. Figures are medians.
    """
    from ..bench import Way, Work, measure

    if compiled and "torch" not in backends:
        raise click.BadParameter("only the torch backend compiles", param_hint="--compile")
    opened = partial(open_model, file, preset, settings, model, weights, seed)
    opened().given_weights()  # what is wrong with these is said once
    ways = [
        Way(backend, dtype, None if quant == "none" else quant, how)  # type: ignore[arg-type]
        for backend, dtype, quant in product(*map(dict.fromkeys, (backends, dtypes, quants)))
        for how in ((False, True) if compiled and backend == "torch" else (False,))
    ]
    with steps("measuring") as tell:
        found = measure(opened, ways, Work(**work), tell)
    if as_json:
        print_json(record(found))
    else:
        click.echo("\n".join(table(found)))
    if found.failed:
        raise click.exceptions.Exit(1)


def table(found: Found) -> list[str]:
    """A line for each way, then what compiling gained, then which ways failed."""
    shown = list(found.shown())
    rows = [HEAD, *(cells(found, figures) for figures, _ in shown)] if shown else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{row[0]:{widths[0]}}"
        + "".join(f"  {c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    lines += [gained(figures.way, gain) for figures, gain in shown if gain is not None]
    return [*lines, *(f"{way}: failed, {reason}" for way, reason in found.failed.items())]


def cells(found: Found, figures: Figures) -> tuple[str, ...]:
    return (
        str(figures.way),
        f"{found.speed(figures, 'prefill'):,.1f}",
        f"{found.speed(figures, 'decode'):,.1f}",
        f"{figures.load:.2f}",
        f"{sum(figures.first.values()):.2f}",
        f"{figures.peak / MB:,.0f}",
    )


def gained(way: Way, gain: float) -> str:
    """`way` is the one that is shown."""
    if gain > 1:
        return f"{way}: {gain:.2f} times as fast as eager"
    return f"{way}: compiling does not pay, {gain:.2f} times as fast; eager is shown"


def record(found: Found) -> dict[str, Any]:
    work = found.work
    return {
        "prompt": work.prompt,
        "context": work.context,
        "tokens": work.tokens,
        "rounds": work.rounds,
        "threads": work.threads,
        "ways": [entry(found, figures) for figures in found.figures],
        "shown": [str(figures.way) for figures, _ in found.shown()],
        "failed": {str(way): reason for way, reason in found.failed.items()},
    }


def entry(found: Found, figures: Figures) -> dict[str, Any]:
    way = figures.way
    return {
        "name": str(way),
        "backend": way.backend,
        "dtype": way.dtype,
        "quant": way.quant,
        "compiled": way.compiled,
        "prefill_tokens_per_second": found.speed(figures, "prefill"),
        "decode_tokens_per_second": found.speed(figures, "decode"),
        "load_seconds": figures.load,
        "first_seconds": figures.first,
        "peak_bytes": figures.peak,
        "seconds": figures.rounds,
    }
