"""`archc reduce`: a file that fails, made small."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..compiler.files import write_file
from ..dsl import parse_file
from ..dsl.errors import NothingFails
from .options import (
    DTYPE,
    FILE,
    SIZE,
    backends_option,
    output_option,
    overrides,
    random_option,
    sizes,
    timeout_option,
)
from .progress import bar
from .reports import JSON, print_json

if TYPE_CHECKING:
    from ..fuzz.judge import Trial


@click.command("reduce")
@FILE
@sizes
@backends_option(
    "What to run, as for diff (default: all that are installed). The first to fail is kept failing."
)
@click.option(
    "--check",
    "check",
    metavar="CMD",
    help="A command to ask instead: run with the path of a smaller file behind it, it exits with 0 where"
    " that file still fails.",
)
@random_option("Of weights and inputs.", default=0)
@SIZE
@DTYPE
@click.option(
    "--limit", type=click.IntRange(1), default=2000, show_default=True, help="Smaller files to try."
)
@timeout_option("Seconds for one of them.")
@output_option("OUT", "Default: stdout.", "--output")
@JSON
def command(
    file: Path,
    preset: str | None,
    settings: tuple[str, ...],
    model: str | None,
    backends: str | None,
    check: str | None,
    seed: int,
    lengths: tuple[str, ...],
    dtype: Any,
    limit: int,
    timeout: float,
    output: Path | None,
    as_json: bool,
) -> None:
    """Make FILE as small as it gets while it fails in the same way.

    It fails when it is refused, when a backend differs from the reference or does not run, or when runs
    in chunks differ from a run of the whole.
    """
    from ..fuzz.judge import Trial
    from .diff import random_sizes

    if check is not None and backends is not None:
        raise click.UsageError("--check and --backends exclude each other")
    text, values = parse_file(file).span.source.text, overrides(settings)
    if preset is not None:
        from ..compiler.elaborate import module_of, preset_overrides

        model, given = preset_overrides(module_of(parse_file(file)), preset)
        values = {**given, **values}
    trial = Trial(text, random_sizes(lengths), seed, model, values)
    with bar("reducing") as on_question:
        if check is not None:
            small = _by_command(file, trial, check, limit, timeout, on_question)
        else:
            small = _by_backends(file, trial, backends, dtype, limit, timeout, on_question)
    if output is not None:
        write_file(output, small.text.encode())
    before, after = (len(t.text.splitlines()) for t in (trial, small))
    if as_json:
        lines = {"lines_before": before, "lines_after": after}
        print_json({**lines, "sizes": dict(small.sizes), "program": small.text})
        return
    if output is None:
        click.echo(small.text, nl=False)
    sized = "".join(f" --size {name}={size}" for name, size in small.sizes.items())
    click.echo(f"{before} lines to {after}{sized and f', with{sized}'}", err=True)


def _by_backends(
    file: Path,
    trial: Trial,
    backends: str | None,
    dtype: Any,
    limit: int,
    timeout: float,
    progress: Callable[[int, int], None],
) -> Trial:
    """Kept failing as `archc fuzz` judges it."""
    from ..fuzz.hunt import shrunk
    from ..fuzz.workers import Worker
    from .diff import candidates

    chosen, worker = candidates(backends, dtype), Worker(timeout)
    try:
        failure = worker.judged((trial, tuple(chosen)))
        if failure is None:
            raise NothingFails(path=str(file), asked=", ".join(map(str, chosen)))
        click.echo(str(failure), err=True)
        return shrunk(worker, trial, chosen, failure, limit, progress)
    finally:
        worker.stop()


def _by_command(
    file: Path,
    trial: Trial,
    check: str,
    limit: int,
    timeout: float,
    progress: Callable[[int, int], None],
) -> Trial:
    """Kept failing as a command says."""
    from ..fuzz.reduce import reduced

    with tempfile.TemporaryDirectory(prefix="archc-reduce-") as folder:
        path = Path(folder) / file.name

        def fails(smaller: Trial) -> bool:
            path.write_text(smaller.text, encoding="utf-8")
            return _succeeds(check, path, timeout)

        if not fails(trial):
            raise NothingFails(path=str(file), asked=check)
        return reduced(trial, fails, limit=limit, progress=progress)


def _succeeds(check: str, path: Path, timeout: float) -> bool:
    words = f"{check} {shlex.quote(str(path))}"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        return subprocess.run(words, shell=True, timeout=timeout, **quiet).returncode == 0
    except subprocess.TimeoutExpired:
        return False
