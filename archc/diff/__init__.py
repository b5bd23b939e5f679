"""Do these backends compute what the model says? `diff` runs them and says where they differ.

Every candidate runs the whole program with its values traced. Each value is judged against the same
program in NumPy (`reference.py`), the outputs against the graph as written, so the passes are
judged too. Only when something breaks the rule of `equality.py` are nodes run on their own
(`localise.py`), to tell the error that a node introduces from what it inherits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

from ..api import Model
from ..compiler.passes.quantise import Quant
from ..equality import Comparison
from .chunked import diff_chunks
from .inputs import Case, random_cases, read_inputs
from .quantising import Quantising, quantising
from .regions import group
from .report import Cell, Divergence, Report, Row, Status
from .session import Candidate, Session, Trial

__all__ = ["Candidate", "Case", "Report", "diff", "diff_chunks", "random_cases"]


def diff(
    model: Model,
    candidates: Sequence[Candidate],
    *,
    inputs: Case | None = None,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    introduced: bool = False,
    quant: Quant | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Report:
    """Compares `candidates` on `model`, which has weights.

    Without `inputs` random cases are made from `seed`; `sizes` fixes run-time sizes of all.
    `introduced` runs every node on its own, not only suspects. With `quant` the candidates run
    quantised weights, as their reference does, and the report has what quantising changed. Raises
    NoWeights, and whatever backends raise for constructs they lack.
    """
    weights = model.given_weights()
    given = inputs.inputs if inputs else read_inputs(model.program)
    session = Session(model.program_for(given), weights, quant)
    cases = [inputs] if inputs else list(random_cases(session.program, seed, sizes or {}))
    table = _Table()
    for case in cases:
        for level, dtype in dict.fromkeys((c.level, c.dtype) for c in candidates):
            table.divergences += session.check_passes(level, dtype, case)
        for candidate in candidates:
            progress(f"{candidate} on {case.name} inputs")
            table.add(session.trial(candidate, case, introduced))
    return Report(
        model.definition.name,
        tuple(map(str, candidates)),
        tuple(map(str, cases)),
        table.rows(),
        table.first_divergences(),
        _lossy(session, quant, candidates, cases) if quant else (),
    )


def _lossy(
    session: Session, quant: Quant, candidates: Sequence[Candidate], cases: Sequence[Case]
) -> tuple[Quantising, ...]:
    """What quantising changed, at worst over the cases, for each dtype that the weights are held in."""
    dtypes = dict.fromkeys(c.dtype for c in candidates)
    return tuple(
        reduce(
            Quantising.worse,
            (quantising(session.program, session.weights, quant, dtype, case) for case in cases),
        )
        for dtype in dtypes
    )


@dataclass(slots=True)
class _Table:
    """Grows with every trial: the worst of each group by candidate, and all divergences."""

    groups: dict[str, dict[str, Cell]] = field(default_factory=dict)
    outputs: dict[str, dict[str, Cell]] = field(default_factory=dict)
    divergences: list[Divergence] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        name, values = str(trial.candidate), trial.stage.values
        if trial.divergence is not None:
            self.divergences.append(trial.divergence)
        for key in values.order:
            alone = trial.alone.get(key)
            whole = trial.traced.get(key, alone)
            if whole is None:
                continue
            region = group(values.program, key[0], values.node(key))
            self._enter(self.groups, region, name, Cell(_status(whole, alone), whole.error))
        for output, whole in trial.outputs.items():
            status = "inherited" if output in trial.inherited else _status(whole, None)
            self._enter(self.outputs, f"output {output}", name, Cell(status, whole.error))

    @staticmethod
    def _enter(rows: dict[str, dict[str, Cell]], region: str, name: str, cell: Cell) -> None:
        cells = rows.setdefault(region, {})
        cells[name] = cell.worse(cells.get(name, cell))

    def rows(self) -> tuple[Row, ...]:
        return tuple(Row(r, cells) for r, cells in (self.groups | self.outputs).items())

    def first_divergences(self) -> tuple[Divergence, ...]:
        """One for each candidate: that of the first case in which it differs by itself, if it does."""
        own_first = sorted(self.divergences, key=lambda d: bool(d.inherits))
        return tuple({d.candidate: d for d in reversed(own_first)}.values())[::-1]


def _status(whole: Comparison, alone: Comparison | None) -> Status:
    if alone is not None and not alone.passed:
        return "introduced"
    if whole.passed:
        return "agrees"
    return "inherited" if alone is not None else "differs"
