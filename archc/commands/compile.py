"""`archc compile`: the source, or the graph, that a backend makes of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..dsl.diagnostics import InternalError
from ..files import files_in, new_directory
from .options import BACKENDS, FILE, QUANT, WEIGHTS, open_model, sizes
from .progress import bar

if TYPE_CHECKING:
    from ..api import Model
    from ..compiler.ir.graph import Program
    from ..compiler.passes import Optimised
    from ..compiler.rewrite import Pass, Site

MODEL = "model"
DEFAULT_TARGETS = ("sm_90", "gfx942")  # the present one of each maker


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
    targets = _targets(backend, target)
    programs = _programs(open_model(file, preset, settings, model, weights), decode)
    unwanted = backend_called(backend).unwanted_passes("f32")
    check = exact if verify else None
    made = {
        name: optimise(p, disable=unwanted, quant=quant, verify=check)
        for name, p in programs.items()
    }
    report = ""
    with new_directory(output) as folder:
        for stem, optimised in made.items():
            for name, text in _texts(backend, emit, stem, programs[stem], optimised).items():
                (folder / name).write_text(text, encoding="utf-8")
            if targets and emit == "source":
                report = _kernels(optimised.program, targets, folder)
        written = _listing(folder, output)
    click.echo(written)
    if report:
        click.echo(f"\n{report}")
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


def _targets(backend: str, named: str | None) -> tuple[str, ...]:
    """The targets to compile for: none but for triton."""
    if backend != "triton":
        if named is not None:
            raise click.BadParameter("only triton has targets", param_hint="--target")
        return ()
    from ..backends.triton.aot import TARGETS

    targets = DEFAULT_TARGETS if named is None else tuple(dict.fromkeys(named.split(",")))
    unknown = [t for t in targets if t not in TARGETS]
    if unknown:
        reason = f"there is no target {unknown[0]!r}; there are {', '.join(TARGETS)}"
        raise click.BadParameter(reason, param_hint="--target")
    return targets


def _kernels(program: Program, targets: Sequence[str], folder: Path) -> str:
    """Compile every kernel into `folder`; a line for each with its resources."""
    from ..backends.triton.aot import compile_program, table

    with bar("compiling kernels") as on_done:
        results = compile_program(program, targets, out=folder, on_done=on_done)
    broken = next((r for r in results if r.error), None)
    if broken is not None:
        raise InternalError(f"{broken.kernel} for {broken.target}: {broken.error}")
    return table(results)


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
