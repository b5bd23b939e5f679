"""The report of what a program's kernels move: counted, beside the plans read off the graphs.

* A row per kernel: how often it is launched in a run, bytes issued and unique of all its launches
  (`traffic.py`), operations of products, and the least time by the model of `roofline.py`.
* The unfused plan, every primitive a kernel of its own, and the fused plan, by the rule of
  `compiler/plans.py`; and the least that any plan moves: weights, inputs and outputs once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...compiler.ir.graph import Program
from ...compiler.plans import Plan, lower_bound, plan
from .aot import Compiled
from .counting import count
from .launches import HostWork, Launch, Work, total
from .roofline import Device, bound


@dataclass(frozen=True, slots=True)
class Row:
    """All launches of one kernel; seconds at least, and what takes most of them."""

    kernel: str
    work: Work
    seconds: float
    bound_by: str


@dataclass(frozen=True, slots=True)
class Report:
    """`least` is in bytes, None where no number is known. `compiled` has resources by target."""

    name: str
    device: Device
    at: Mapping[str, int]
    rows: tuple[Row, ...]
    host: HostWork
    unfused: Plan
    fused: Plan
    least: int | None
    compiled: tuple[Compiled, ...] = ()

    @property
    def work(self) -> Work:
        return sum((row.work for row in self.rows), Work())

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    def value(self, plan: Plan) -> int | None:
        """The bytes of a plan at the report's sizes."""
        return plan.moved.substitute(self.at).constant

    # --------------------------------------------------------------------------------- JSON

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "device": self.device.name,
            "target": self.device.target,
            "sizes": dict(self.at),
            "kernels": [self._kernel(row) for row in self.rows],
            "total": asdict(self.work) | {"seconds_model": self.seconds},
            "host": asdict(self.host),
            "unfused_plan": self._plan(self.unfused),
            "fused_plan": self._plan(self.fused),
            "lower_bound_bytes": self.least,
        }

    def _kernel(self, row: Row) -> dict[str, Any]:
        model = {"seconds_model": row.seconds, "bound_by": row.bound_by}
        resources = {r.target: asdict(r.usage) for r in self._resources(row.kernel) if r.usage}
        return {"kernel": row.kernel, **asdict(row.work), **model, "resources": resources}

    def _plan(self, plan: Plan) -> dict[str, Any]:
        return {
            "kernels": plan.kernels.substitute(self.at).constant,
            "bytes": {"formula": str(plan.moved), "value": self.value(plan)},
        }

    def _resources(self, kernel: str) -> list[Compiled]:
        return [r for r in self.compiled if r.kernel == kernel]

    # --------------------------------------------------------------------------------- text

    def to_text(self) -> str:
        targets = list(dict.fromkeys(r.target for r in self.compiled))
        rows = [("kernel", *TITLES, *(f"{target} regs/spills" for target in targets))]
        rows += [
            (row.kernel, *_cells(row.work, row.seconds), row.bound_by, *self._usage(row, targets))
            for row in self.rows
        ]
        rows.append(("total", *_cells(self.work, self.seconds), ""))
        sizes = ", ".join(f"{name} = {n}" for name, n in sorted(self.at.items()))
        title = f"{self.name} at {sizes}, in bf16 with the tiles of {self.device.target}"
        return "\n".join([title, _aligned(rows), *self._notes()])

    def _usage(self, row: Row, targets: Sequence[str]) -> list[str]:
        found = {r.target: r.usage for r in self._resources(row.kernel) if r.usage}
        return [f"{found[t].registers}/{found[t].spills}" if t in found else "-" for t in targets]

    def _notes(self) -> list[str]:
        work, host = self.work, self.host
        launches = f"{work.launches:,} launches"
        lines: list[tuple[str, int | None, str]] = [
            ("fused plan, counted unique", work.unique, launches)
        ]
        for name, made in (("fused plan, by the rule", self.fused), ("unfused plan", self.unfused)):
            kernels = made.kernels.substitute(self.at).constant
            lines.append((name, self.value(made), f"{kernels:,} kernels"))
        lines.append(("lower bound", self.least, "weights, inputs and outputs once"))
        lines.append(("moved by the host", host.moved, f"{host.operations:,} operations"))
        least = (
            f"at least {self.seconds * 1e3:,.2f} ms on {self.device.name}: a model, no measurement"
        )
        notes = [least]
        if not work.exact:
            notes.append("~ estimated: the sums over programs passed no check")
        return [*(f"{n:<28} {_bytes(b):>12}  {note}".rstrip() for n, b, note in lines), *notes]


TITLES = ("launches", "issued", "unique", "sectors", "GFLOP", "us (model)", "bound by")


def report(
    original: Program,
    optimised: Program,
    at: Mapping[str, int],
    device: Device,
    compiled: Sequence[Compiled] = (),
    part: str = "",
) -> Report:
    """Of a program as elaborated and as optimised, with run-time sizes `at`, in bf16.

    `part` is what the program is of its model: `prefill`, `chunk`, or nothing for all of it.

    Raises NoLowering, MissingPackage.
    """
    launches, host = count(optimised, at, target=device.target)
    return Report(
        f"{optimised.name} {part}".rstrip(), device, at, tuple(_rows(launches, device)), host,
        plan(original), plan(optimised), lower_bound(original, at), tuple(compiled),
    )  # fmt: skip


def _rows(launches: Sequence[Launch], device: Device) -> list[Row]:
    """A row per kernel, in the order of first launches."""
    kernels: dict[str, list[Launch]] = {}
    for launch in launches:
        kernels.setdefault(launch.kernel, []).append(launch)
    rows = []
    for kernel, group in kernels.items():
        bounds = [(bound(launch, device), launch.times) for launch in group]
        seconds = sum(least * times for (least, _), times in bounds)
        (_, longest), _ = max(bounds, key=lambda found: found[0][0] * found[1])
        rows.append(Row(kernel, total(group), seconds, longest))
    return rows


def _cells(work: Work, seconds: float) -> tuple[str, ...]:
    estimated = "" if work.exact else "~"
    return (
        f"{work.launches:,}",
        estimated + _bytes(work.issued),
        _bytes(work.unique),
        _bytes(work.sectors),
        f"{work.dot / 1e9:,.1f}",
        f"{seconds * 1e6:,.1f}",
    )


def _bytes(count: int | None) -> str:
    if count is None:
        return "unknown"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count} B"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """The first column to the left, others to the right."""
    columns = max(map(len, rows))
    padded = [(*row, *[""] * (columns - len(row))) for row in rows]
    widths = [max(len(row[i]) for row in padded) for i in range(columns)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in padded
    )
