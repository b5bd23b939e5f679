"""`archc diff`: where backends first differ on one model, or from its class; how two models differ."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    DTYPE,
    QUANT,
    SIZE,
    WEIGHTS,
    backends_option,
    chunks_option,
    inputs_option,
    open_model,
    random_option,
    sizes,
)
from .progress import steps
from .reports import JSON, print_json
from .tensors import read_tensors

if TYPE_CHECKING:
    from ..api import Model
    from ..chunks import Chunks
    from ..diff import Candidate, Case, Report

# what each backend needs besides archc itself
NEEDS = {"numpy": "numpy", "torch": "torch", "triton": "triton"}
# each of them at both levels; numpy at O0 is the reference itself
LEVELLED = {"numpy": ("numpy",), "torch": ("torch@O0", "torch"), "triton": ("triton@O0", "triton")}
EXACT = "numpy@O0@f64"  # what is compared with a class: the text, not a backend
SMALL = "tiny"  # the preset that a comparison takes by itself: backends differ at any size
LEVELS = ("O0", "O1")
DTYPES = ("f64", "f32", "bf16", "f16")


@click.command("diff", short_help="Compare backends on FILE, or two architectures.")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.argument("other", type=click.Path(path_type=Path), metavar="[OTHER]", required=False)
@sizes
@backends_option(
    "What to compare (default: all that are installed). A backend may carry a level and a"
    " dtype of its own: numpy@O0, torch@bf16."
)
@WEIGHTS
@random_option("Random weights and inputs.")
@inputs_option(
    "Arrays by the names of the `input` lines (default: random ones, padded and ragged)."
)
@SIZE
@DTYPE
@QUANT
@chunks_option(
    "Compare runs in chunks of so many rows with one run of the whole sequence; auto tries row by"
    " row, half and then row by row, and thirds."
)
@click.option(
    "--against",
    metavar="hf:DIR",
    help="Compare FILE, with the weights of a checkpoint directory, with its class in transformers:"
    " outputs by name, and module by module where the checkpoint block says which region it is.",
)
@click.option("--class", "class_name", metavar="NAME", help="With --against: another class.")
@click.option("--introduced", is_flag=True, help="Run every node on its own, not only suspects.")
@click.option("--full", is_flag=True, help="With OTHER: every parameter and operation.")
@JSON
@click.pass_context
def command(
    ctx: click.Context,
    file: Path,
    other: Path | None,
    preset: str | None,
    settings: tuple[str, ...],
    model: str | None,
    backends: str | None,
    weights: Path | None,
    seed: int | None,
    inputs: Path | None,
    lengths: tuple[str, ...],
    dtype: Any,
    quant: Any,
    chunks: Chunks | None,
    against: str | None,
    class_name: str | None,
    introduced: bool,
    full: bool,
    as_json: bool,
) -> None:
    """Compare what backends compute for FILE, or the architectures of FILE and OTHER.

    With --against FILE is compared with the class of a checkpoint in transformers, in float64 unless
    --backends says otherwise.

    For two files, `--preset P,Q` takes P of FILE and Q of OTHER; one P is taken of both. With --chunks
    runs of whole sequences are compared with runs in chunks.

    Exits with 1 when they differ. Each value is held to a float64 run of the graph as written, as
    closely as the dtype allows; the first node that breaks this is named with its line, and so is a
    known convention, such as the pairing of rotary entries, that would make both sides agree. With
    --quant that graph has the quantised weights too, and what they change is shown below.
    """
    if weights is not None and seed is not None:
        raise click.UsageError("--weights and --random exclude each other")
    if chunks is not None and (other is not None or introduced):
        raise click.UsageError("--chunks goes with neither OTHER nor --introduced")
    if against is not None:
        _refuse_beside_against(other, weights, introduced, quant, chunks)
        report = _with_class(
            _opened_for(against, file, preset, settings, model),
            class_name,
            candidates(backends or EXACT, dtype),
            {"inputs": _case(inputs), "seed": seed or 0, "sizes": random_sizes(lengths)},
        )
        _finish(ctx, report, not report.agree, as_json)
        return
    presets = _presets(preset, other)
    opened = open_model(file, presets[0], settings, model, weights)
    if other is not None:
        from ..architecture import contrast

        found = contrast(opened, open_model(other, presets[-1], settings, model))
        _finish(ctx, found.full if full and not as_json else found, not found.same, as_json)
        return
    if not (weights or preset or settings) and SMALL in opened.module.presets:
        click.echo(f"no sizes are given: preset {SMALL} is compared", err=True)
        opened = open_model(file, SMALL, (), model)
    if weights is None:
        opened = opened.with_random_weights(seed or 0)
    if quant is not None and chunks is not None:
        raise click.UsageError("--quant and --chunks exclude each other")
    chosen = candidates(backends, dtype)
    asked = random_sizes(lengths)
    report = _compared(opened, chosen, inputs, seed or 0, asked, introduced, quant, chunks)
    _finish(ctx, report, not report.agree, as_json)


def _presets(given: str | None, other: Path | None) -> list[str | None]:
    """The preset of each file: `P,Q` where there are two, else one for all."""
    names: list[str | None] = [*(given.split(",") if given and other else [given])]
    if len(names) > 2:
        raise click.BadParameter(f"{given!r} is not of the form P,Q", param_hint="--preset")
    return [name.strip() if name else None for name in names]


def _finish(ctx: click.Context, report: Any, differ: bool, as_json: bool) -> None:
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(str(report))
    ctx.exit(1 if differ else 0)


def _compared(
    model: Model,
    candidates: Sequence[Candidate],
    inputs: Path | None,
    seed: int,
    lengths: dict[str, int],
    introduced: bool,
    quant: Any,
    chunks: Chunks | None,
) -> Report:
    from ..diff import diff, diff_chunks

    with steps("comparing") as progress:
        options: dict[str, Any] = {"inputs": _case(inputs), "seed": seed, "sizes": lengths}
        options["progress"] = progress
        if chunks is not None:
            return diff_chunks(model, candidates, chunks, **options)
        return diff(model, candidates, introduced=introduced, quant=quant, **options)


def _case(inputs: Path | None) -> Case | None:
    from ..diff import Case

    return Case("given", read_tensors(inputs)) if inputs else None


def _refuse_beside_against(*others: Any) -> None:
    if any(others):
        raise click.UsageError(
            "--against goes with none of OTHER, --weights, --introduced, --quant and --chunks"
        )


def _opened_for(
    against: str,
    file: Path,
    preset: str | None,
    settings: tuple[str, ...],
    model: str | None,
) -> Model:
    """FILE with the weights of the directory that `hf:DIR` names."""
    kind, colon, directory = against.partition(":")
    if kind != "hf" or not colon or not directory:
        raise click.BadParameter(f"{against!r} is not of the form hf:DIR", param_hint="--against")
    return open_model(file, preset, settings, model, Path(directory))


def _with_class(
    model: Model, class_name: str | None, chosen: Sequence[Candidate], options: dict[str, Any]
) -> Report:
    from ..diff.against import diff_against
    from ..diff.peer import Peer

    assert model.checkpoint is not None
    peer = Peer(model.checkpoint.path, class_name or model.checkpoint.class_name)
    with steps("comparing") as progress:
        return diff_against(model, chosen, peer, progress=progress, **options)


def candidates(backends: str | None, dtype: Any) -> list[Candidate]:
    """Those named, else every backend that is installed."""
    return [candidate(name, dtype) for name in (backends.split(",") if backends else installed())]


def candidate(spec: str, dtype: Any) -> Candidate:
    """The one that a spec such as `torch@O0` names. Raises `UnknownBackend`, `MissingPackage`."""
    from ..api import backend
    from ..diff import Candidate

    found = Candidate(*_spec(spec.strip(), dtype), label=spec.strip())
    backend(found.backend)
    return found


def _spec(text: str, dtype: Any) -> tuple[str, int, Any]:
    """The backend, level and dtype of `NAME[@O0|@O1][@DTYPE]`."""
    name, *suffixes = text.split("@")
    level = 1
    for suffix in suffixes:
        if suffix in LEVELS:
            level = LEVELS.index(suffix)
        elif suffix in DTYPES:
            dtype = suffix
        else:
            known = ", ".join((*LEVELS, *DTYPES))
            raise click.BadParameter(f"{suffix!r} is none of {known}", param_hint="--backends")
    return name, level, dtype


def installed() -> list[str]:
    """Every backend whose package is there; the others are named on stderr."""
    found = {name: find_spec(package) is not None for name, package in NEEDS.items()}
    for name in (name for name, there in found.items() if not there):
        click.echo(f'{name} is left out: pip install "archc[{name}]" adds it', err=True)
    return [name for name, there in found.items() if there]


def random_sizes(lengths: Sequence[str]) -> dict[str, int]:
    """`S=N` of each `--size`."""
    pairs = [text.partition("=") for text in lengths]
    for name, _, value in pairs:
        if not (name.isidentifier() and value.isdigit()):
            problem = f"{name!r} is not of the form S=N"
        elif int(value) == 0:
            problem = f"random inputs have at least one {name}; --inputs gives empty ones"
        else:
            continue
        raise click.BadParameter(problem, param_hint="--size")
    return {name: int(value) for name, _, value in pairs}
