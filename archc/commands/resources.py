"""What `archc compile` finds out of kernels: their resources per target, and what they move."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..dsl.diagnostics import InternalError
from .progress import bar

if TYPE_CHECKING:
    from ..backends.triton.aot import Compiled
    from ..backends.triton.report import Report
    from ..compiler.ir.graph import Program

DEFAULT_TARGETS = ("sm_90", "gfx942")  # the present one of each maker
DEVICES = ("a100", "h100", "mi300x")


@dataclass(frozen=True, slots=True)
class Resources:
    """Of the kernels of one program; nothing for other backends than triton."""

    compiled: tuple[Compiled, ...] = ()
    report: Report | None = None

    def texts(self) -> Iterator[str]:
        from ..backends.triton.aot import table

        if self.compiled:
            yield f"\n{table(self.compiled)}"
        if self.report is not None:
            yield f"\n{self.report.to_text()}"

    def to_json(self) -> dict[str, Any]:
        """What there is, by `kernels` and `report`."""
        kernels = [kernel.to_json() for kernel in self.compiled]
        return {
            **({"kernels": kernels} if kernels else {}),
            **({} if self.report is None else {"report": self.report.to_json()}),
        }


@dataclass(frozen=True, slots=True)
class Asked:
    """Targets to compile for, and the device that a report is of."""

    targets: tuple[str, ...] = ()
    device: str | None = None

    @classmethod
    def of(cls, backend: str, emit: str, target: str | None, device: str | None) -> Asked:
        """Raises BadParameter and UsageError."""
        if device is not None and (backend != "triton" or emit != "source"):
            raise click.UsageError("--report counts what the kernels of triton move")
        chosen = _targets(backend, target)
        return cls(chosen if emit == "source" else (), device)

    def check(self, programs: Iterable[Program], at: Mapping[str, int]) -> None:
        """Raises UsageError where a run-time size is needed and not given."""
        from ..compiler.cost import run_time_symbols

        if self.device is None:
            return
        needed: set[str] = set()
        for program in programs:
            needed |= run_time_symbols(program)
            needed |= {program.past} if any(f.states for f in program.functions) else set()
        missing = [f"--set {s.replace('.', '_')}=N" for s in sorted(needed - at.keys())]
        if missing:
            raise click.UsageError(f"--report needs sizes: {' '.join(missing)}")

    def resources(
        self,
        original: Program,
        optimised: Program,
        at: Mapping[str, int],
        folder: Path,
        prefix: str,
    ) -> Resources:
        """Compiles and counts the kernels of an optimised program; files go into `folder`."""
        compiled = _kernels(optimised, self.targets, folder) if self.targets else []
        if self.device is None:
            return Resources(tuple(compiled))
        from ..backends.triton.report import report
        from ..backends.triton.roofline import DEVICES as KNOWN

        part = prefix.removesuffix(".")
        with bar("counting what kernels move"):
            made = report(original, optimised, at, KNOWN[self.device], compiled, part)
        text = json.dumps(made.to_json(), indent=2) + "\n"
        (folder / f"{prefix}report.json").write_text(text, encoding="utf-8")
        return Resources(tuple(compiled), made)


def targets() -> Iterable[str]:
    """All that kernels can be compiled for."""
    from ..backends.triton.aot import TARGETS

    return TARGETS


def _targets(backend: str, named: str | None) -> tuple[str, ...]:
    """The targets to compile for: none but for triton."""
    if backend != "triton":
        if named is not None:
            raise click.BadParameter("only triton has targets", param_hint="--target")
        return ()
    chosen = DEFAULT_TARGETS if named is None else tuple(dict.fromkeys(named.split(",")))
    unknown = [t for t in chosen if t not in targets()]
    if unknown:
        reason = f"there is no target {unknown[0]!r}; there are {', '.join(targets())}"
        raise click.BadParameter(reason, param_hint="--target")
    return chosen


def _kernels(program: Program, targets: Sequence[str], folder: Path) -> list[Compiled]:
    """Compile every kernel into `folder`."""
    from ..backends.triton.aot import compile_program

    with bar("compiling kernels") as on_done:
        results = compile_program(program, targets, out=folder, on_done=on_done)
    broken = next((r for r in results if r.error), None)
    if broken is not None:
        raise InternalError(f"{broken.kernel} for {broken.target}: {broken.error}")
    return results
