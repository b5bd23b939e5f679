"""Does a port compute what its class in `transformers` does? Outputs by name, regions by the map.

The class is judge here: its float64 run is gold, its run in the dtype of the candidate the base of
the rule in `equality.py`. Each region that is a module (`matching.py`) is compared where it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..api import Model
from ..dsl.errors import NothingMatches
from .blame import ModuleDivergence, divergence
from .inputs import Case
from .peer import Peer
from .port import EXACT, Port
from .report import Cell, LeftOut, Report, Row, Status
from .session import Candidate
from .trial import Runs, Trial


def diff_against(
    model: Model,
    candidates: Sequence[Candidate],
    peer: Peer,
    *,
    inputs: Case | None = None,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Report:
    """Compares `candidates` on `model`, loaded from the checkpoint of `peer`, with that class.

    Raises NoWeights, PeerFails, NothingMatches, and whatever backends raise for constructs they lack.
    """
    port = Port.of(model, peer, inputs)
    cases = [inputs] if inputs else list(port.cases(seed, sizes or {}))
    table = _Table()
    for case in cases:
        progress(f"{peer.class_name} on {case.name} inputs")
        runs = Runs(port, case)
        for candidate in candidates:
            progress(f"{candidate} on {case.name} inputs")
            table.add(runs.exact if candidate == EXACT else Trial(runs, candidate))
    if not table.rows:
        raise NothingMatches(name=peer.class_name, model=model.definition.name)
    return Report(
        model.definition.name,
        tuple(map(str, candidates)),
        tuple(map(str, cases)),
        tuple(table.rows.values()),
        tuple(table.divergences.values()),
        against=peer.class_name,
        left_out=tuple(table.left_out.values()),
    )


@dataclass(slots=True)
class _Table:
    """Grows with every trial: the worst of each region by candidate, and where each first differs."""

    rows: dict[str, Row] = field(default_factory=dict)
    left_out: dict[tuple[str, str], LeftOut] = field(default_factory=dict)
    divergences: dict[Candidate, ModuleDivergence] = field(default_factory=dict)

    def add(self, trial: Trial) -> None:
        for left in trial.runs.exact.left_out:  # a shape in the reason is that of the first case
            self.left_out.setdefault((left.region, left.module), left)
        for region, status, comparison in trial.regions:
            self.enter(trial, region.name, region.module, Cell(status, comparison.error))
            chosen = trial.chosen.by(region)
            if chosen is not None:
                wrong: Status = "introduced" if status == "agrees" else status
                cell = Cell("agrees" if chosen.passed else wrong, chosen.error)
                self.enter(trial, f"{region.name}: experts", region.module, cell)
        for name, theirs, _, comparison in trial.outputs:
            cell = Cell("agrees" if comparison.passed else "differs", comparison.error)
            self.enter(trial, f"output {name}", theirs, cell)
        if trial.candidate not in self.divergences:
            found = divergence(trial)
            if found is not None:
                self.divergences[trial.candidate] = found

    def enter(self, trial: Trial, region: str, module: str, cell: Cell) -> None:
        row = self.rows.setdefault(region, Row(region, {}, module))
        name = str(trial.candidate)
        row.cells[name] = cell.worse(row.cells.get(name, cell))
