"""`archc compile`: the source, or the graph, that a backend makes of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..compiler.files import files_in, new_directory
from .completion import listed
from .options import (
    FILE,
    QUANT,
    WEIGHTS,
    backend_option,
    open_model,
    open_sized,
    output_option,
    sizes,
)
from .progress import bar
from .reports import JSON, print_json
from .resources import DEVICES, Asked, Resources, targets

if TYPE_CHECKING:
    from ..api import Model
    from ..compiler.ir.graph import Program
    from ..compiler.passes import Optimised
    from ..compiler.rewrite import Pass, Site

MODEL = "model"


@click.command("compile")
@FILE
@backend_option(required=True, help="What to compile for.")
@click.option(
    "--target",
    metavar="T,...",
    help="GPU architectures for triton, such as sm_90,gfx942.",
    shell_complete=listed(targets),
)
@sizes
@WEIGHTS
@QUANT
@output_option("DIR", required=True)
@click.option(
    "--emit",
    type=click.Choice(["ir", "source"]),
    default="source",
    show_default=True,
    help="The graph before and after the passes, or the backend's source.",
)
@click.option(
    "--decode",
    is_flag=True,
    help="What is derived to run a sequence chunk by chunk: prefill.py for the first rows, chunk.py for"
    " those that follow.",
)
@click.option(
    "--verify", is_flag=True, help="Run the graph before and after each pass, in float64."
)
@click.option(
    "--report",
    is_flag=True,
    help="Count what the kernels move; with sizes, such as --set b=1 --set s=4096.",
)
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="h100",
    show_default=True,
    help="Whose tiles the report counts, and whose peak rates bound its times.",
)
@JSON
def command(
    file: Path,
    backend: str,
    target: str | None,
    preset: str | None,
    settings: tuple[str, ...],
    model: str | None,
    weights: Path | None,
    quant: Any,
    output: Path,
    emit: str,
    decode: bool,
    verify: bool,
    report: bool,
    device: str,
    as_json: bool,
) -> None:
    """Compile the model in FILE to a directory of files.

    The numpy backend runs the graph itself, so its source is the graph. A checkpoint given by
    --weights sets the sizes. Kernels are compiled for each target, which needs no GPU.
    """
    from ..api import backend as backend_called
    from ..backends.numpy import exact
    from ..compiler.passes import optimise, pipeline

    if decode and verify:
        raise click.UsageError("--verify runs whole sequences: it does not go with --decode")
    asked = Asked.of(backend, emit, target, device if report else None)
    chosen = (file, preset, settings, model, weights)
    opened, at = open_sized(*chosen) if report else (open_model(*chosen), {})
    programs = _programs(opened, decode)
    asked.check(programs.values(), at)
    unwanted = backend_called(backend).unwanted_passes("f32")
    check = exact if verify else None
    with bar("optimising"):
        made = {
            name: optimise(p, disable=unwanted, quant=quant, verify=check)
            for name, p in programs.items()
        }
    found: dict[str, Resources] = {}
    with new_directory(output) as folder:
        for stem, optimised in made.items():
            for name, text in _texts(backend, emit, stem, programs[stem], optimised).items():
                (folder / name).write_text(text, encoding="utf-8")
            prefix = "" if stem == MODEL else f"{stem}."
            found[stem] = asked.resources(programs[stem], optimised.program, at, folder, prefix)
        written = _written(folder, output)
    counted = {name: _counted(done.sites, pipeline(quant)) for name, done in made.items()}
    if as_json:
        parts = {name: {"passes": counted[name], **found[name].to_json()} for name in made}
        print_json({"wrote": written, "programs": parts, "verified": verify})
        return
    click.echo("\n".join(map(_line, written)))
    for text in (text for resources in found.values() for text in resources.texts()):
        click.echo(text)
    for stem, rows in counted.items():
        click.echo(f"\n{_table('pass' if stem == MODEL else stem, rows)}")
    if verify:
        lossy = ", but for quantise, which changed weights" if quant else ""
        click.echo(f"verified: no pass changed a result beyond rounding{lossy}")


def _programs(model: Model, decode: bool) -> dict[str, Program]:
    """What to compile, by the name of its file."""
    if not decode:
        return {MODEL: model.program}
    derived = model.incremental()
    return {"prefill": derived.prefill, "chunk": derived.chunk}


def _texts(
    backend: str, emit: str, stem: str, program: Program, optimised: Optimised
) -> Mapping[str, str]:
    """Files to write, by name."""
    from ..api import backend as backend_called
    from ..compiler.ir.text import show

    if emit == "ir" or backend == "numpy":
        graphs = {"before.ir": show(program), "after.ir": show(optimised.program)}
        return graphs if stem == MODEL else {f"{stem}.{n}": text for n, text in graphs.items()}
    texts = backend_called(backend).emit(optimised.program)
    return {name.replace(MODEL, stem): text for name, text in texts.items()}


def _written(folder: Path, output: Path) -> list[dict[str, Any]]:
    """A row per file at the top, and per folder of machine code."""
    groups: dict[Path, list[Path]] = {}
    for path in files_in(folder):
        within = path.relative_to(folder)
        key = within if within.parent == Path() else within.parent / "*"
        groups.setdefault(key, []).append(path)
    return [
        {
            "path": str(output / key),
            "files": len(paths),
            "kinds": sorted({p.suffix for p in paths}),
            "bytes": sum(p.stat().st_size for p in paths),
        }
        for key, paths in groups.items()
    ]


def _line(row: Mapping[str, Any]) -> str:
    kinds = ", ".join(row["kinds"])
    count = f"{row['files']} files {kinds}, " if row["files"] > 1 else ""
    return f"wrote {row['path']} ({count}{row['bytes']:,} bytes)"


def _counted(sites: Sequence[Site], passes: Sequence[Pass]) -> list[dict[str, Any]]:
    """A row per pass: how often its rules fired, how often they recognised a place and declined."""
    counts = Counter((s.pass_name, s.fired) for s in sites)
    return [
        {"pass": p.name, "fired": counts[p.name, True], "declined": counts[p.name, False]}
        for p in passes
    ]


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """`title` stands over the passes."""
    return "\n".join(
        [f"{title:<20} {'fired':>6} {'declined':>9}"]
        + [f"{row['pass']:<20} {row['fired']:>6} {row['declined']:>9}" for row in rows]
    )
