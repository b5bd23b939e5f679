"""`archc compile`: the source, or the graph, that a backend makes of a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..compiler.files import files_in, new_directory
from .options import BACKENDS, FILE, QUANT, WEIGHTS, open_model, open_sized, sizes
from .resources import DEVICES, Asked, Resources

if TYPE_CHECKING:
    from ..api import Model
    from ..compiler.ir.graph import Program
    from ..compiler.passes import Optimised
    from ..compiler.rewrite import Pass, Site

MODEL = "model"


@click.command("compile")
@FILE
@click.option("--backend", type=BACKENDS, required=True, help="What to compile for.")
@click.option(
    "--target", metavar="T,...", help="GPU architectures for triton, such as sm_90,gfx942."
)
@sizes
@WEIGHTS
@QUANT
@click.option("-o", "output", type=click.Path(path_type=Path), required=True, metavar="DIR")
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
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
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
    if as_json and not report:
        raise click.UsageError("--json prints what --report counts")
    asked = Asked.of(backend, emit, target, device if report else None)
    chosen = (file, preset, settings, model, weights)
    opened, at = open_sized(*chosen) if report else (open_model(*chosen), {})
    programs = _programs(opened, decode)
    asked.check(programs.values(), at)
    unwanted = backend_called(backend).unwanted_passes("f32")
    check = exact if verify else None
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
        written = _listing(folder, output)
    if as_json:
        objects = {stem: resources.to_json() for stem, resources in found.items()}
        click.echo(json.dumps(objects.get(MODEL, objects), indent=2))
        return
    for text in (written, *(text for resources in found.values() for text in resources.texts())):
        click.echo(text)
    for stem, optimised in made.items():
        title = "pass" if stem == MODEL else stem
        click.echo(f"\n{passes_table(optimised.sites, pipeline(quant), title)}")
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


def _listing(folder: Path, output: Path) -> str:
    """A line per file at the top, and per folder of machine code."""
    groups: dict[Path, list[Path]] = {}
    for path in files_in(folder):
        within = path.relative_to(folder)
        key = within if within.parent == Path() else within.parent / "*"
        groups.setdefault(key, []).append(path)
    lines = []
    for key, paths in groups.items():
        kinds = ", ".join(sorted({p.suffix for p in paths}))
        count = f"{len(paths)} files {kinds}, " if len(paths) > 1 else ""
        lines.append(
            f"wrote {output / key} ({count}{sum(p.stat().st_size for p in paths):,} bytes)"
        )
    return "\n".join(lines)


def passes_table(sites: Sequence[Site], passes: Sequence[Pass], title: str = "pass") -> str:
    """A row per pass: how often its rules fired, how often they recognised a place and declined.

    `title` stands over the passes.
    """
    counts = Counter((s.pass_name, s.fired) for s in sites)
    rows = [(p.name, counts[p.name, True], counts[p.name, False]) for p in passes]
    return "\n".join(
        [f"{title:<20} {'fired':>6} {'declined':>9}"]
        + [f"{name:<20} {fired:>6} {declined:>9}" for name, fired, declined in rows]
    )
