"""Does a model run chunk by chunk give what it gives in one run? `diff_chunks` tries, and says where not.

Outputs of chunked runs are held to the exact run of the whole sequence by the rule of `equality.py`,
and so is the candidate's own run of the whole, to tell a wrong step from a wrong backend. Where a
chunked run breaks the rule, each state after each chunk is held to the one that the reference leaves
when it is given the rows so far at once: the first that differs is where a step went wrong. The step that
made it, or a wrong output, is then run node by node from right states: one that is wrong on exact
operands is at fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from .. import api
from ..api import Model
from ..backends.base import Array, node_name, plain_symbol
from ..chunks import Chunks, check_joinable, described, joined, prefix_of, sizes_of, sliced, steps
from ..chunks import rows_along as rows_dim
from ..compiler.incremental import Slot
from ..compiler.ir.graph import Node, Program
from ..compiler.passes import optimise
from ..decoder import Decoder, rows_of
from ..dsl.diagnostics import snippet
from ..dsl.span import Span
from ..equality import Comparison, compare
from .inputs import Case, random_cases, read_inputs
from .localise import OPTIONS, Bench, CandidateFailed, Localiser, failing
from .reference import Reference, Rounded
from .regions import places
from .report import Cell, Divergence, Report, Row, judged, located, stated
from .session import Candidate, Session, Stage, diverged


def diff_chunks(
    model: Model,
    candidates: Sequence[Candidate],
    chunks: Chunks = "auto",
    *,
    inputs: Case | None = None,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Report:
    """Compares runs of `candidates` in `chunks` with one run of the whole sequence.

    `auto` tries each row alone, half and then row by row, and thirds; a list of sizes must make up the
    sequence, and random inputs are as long as it says. The other arguments are those of `diff`. Raises
    NoWeights, NoDecode, NeedsWholeSequence, ChunkSizes, UnjoinedOutput, and whatever backends raise
    for constructs they lack.
    """
    given = inputs.inputs if inputs else read_inputs(model.program)
    check_joinable(model.incremental(given).prefill)
    session = Session(model.program_for(given), model.given_weights())
    wanted = {**_length(session.program, chunks), **(sizes or {})}
    cases = [inputs] if inputs else list(random_cases(session.program, seed, wanted))
    table = _Table()
    splits = {case.name: _splits(chunks, session.program, case) for case in cases}
    for candidate in candidates:
        trial = _Trial(model, session, candidate, tuple(given))
        for case in cases:
            progress(f"{candidate} on {case.name} inputs")
            for split in splits[case.name]:
                table.add(trial, case, split)
    return Report(
        model.definition.name,
        tuple(map(str, candidates)),
        tuple(map(str, cases)),
        tuple(Row(region, cells) for region, cells in table.rows.items()),
        tuple(table.divergences.values()),
    )


# ------------------------------------------------------------------------------- what is tried


@dataclass(frozen=True, slots=True)
class Split:
    """How many rows each chunk has, and words for it; one that is `whole` is no run of the decoder's."""

    sizes: tuple[int, ...]
    words: str
    whole: bool = False

    def chunk_of(self, row: int) -> int:
        """The number of the chunk that has a row, from 0."""
        return next(n for n, end in enumerate(accumulate(self.sizes)) if row < end)

    def rows_of(self, chunk: int) -> str:
        """`rows 3 to 5`."""
        end = sum(self.sizes[: chunk + 1])
        start = end - self.sizes[chunk]
        return f"row {start}" if end == start + 1 else f"rows {start} to {end - 1}"


@dataclass(frozen=True, slots=True)
class Stale:
    """The first state that differs: after which chunk, and how."""

    slot: Slot
    chunk: int
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class StepDivergence:
    """Where a candidate first differs: in which `row` of which `output`, and in which state before.

    `row` is None where none breaks the rule alone, `stale` where every state is right. `written` is
    where the output is. One that did not run at all has no output.
    """

    candidate: str
    case: str
    split: Split
    output: str
    row: int | None
    comparison: Comparison
    stale: Stale | None = None
    written: tuple[Span, ...] = ()
    node: Divergence | None = None

    @property
    def region(self) -> str:
        if self.node is not None:
            return self.node.region
        if self.stale is not None:
            return self.stale.slot.path
        return f"output {self.output}" if self.output else self.split.words

    @property
    def spans(self) -> tuple[Span, ...]:
        if self.node is not None:
            return self.node.spans
        return self.written if self.stale is None else self.stale.slot.spans

    def lines(self) -> list[str]:
        """The screen."""
        if not self.output:
            return [f"{self.candidate} does not run {self.split.words}: {self.comparison.mismatch}"]
        where = f"row {self.row} of `{self.output}`" if self.row is not None else f"`{self.output}`"
        out = [f"{self.candidate} first differs in {where}, {self._run()}"]
        out.append(f"  {stated(self.comparison)}")
        if self.split.whole:
            return [*out, "  the step is not at fault: `archc diff` without --chunks says what is"]
        out += self._cause()
        for mark, span in zip("^-", places(self.spans), strict=False):
            out += snippet(span, "", mark)
        return out

    def _run(self) -> str:
        """Which run, and which part of it."""
        chunk = ""
        if self.row is not None and not self.split.whole:
            number = self.split.chunk_of(self.row)
            chunk = f"in chunk {number + 1} of {len(self.split.sizes)}, "
        return f"{chunk}run {self.split.words} ({self.case} inputs)"

    def _cause(self) -> list[str]:
        if self.node is not None:
            return [*self._state(), f"  at fault is {self.node.what()}"]
        return self._state()

    def _state(self) -> list[str]:
        if self.stale is None:
            return ["  every state is right after every chunk: what a step makes of them is wrong"]
        chunk, slot = self.stale.chunk, self.stale.slot
        return [
            f"  the first state that differs is `{slot.path}` ({slot.kind}), after chunk {chunk + 1}"
            f" ({self.split.rows_of(chunk)}): {stated(self.stale.comparison)}"
        ]

    def to_json(self) -> dict[str, Any]:
        state = None
        if self.stale is not None:
            state = {
                "path": self.stale.slot.path,
                "kind": self.stale.slot.kind,
                "chunk": self.stale.chunk,
                **judged(self.stale.comparison),
            }
        return {
            "candidate": self.candidate,
            "inputs": self.case,
            "chunks": list(self.split.sizes),
            "whole": self.split.whole,
            "output": self.output,
            "row": self.row,
            "state": state,
            "node": None if self.node is None else self.node.to_json(),
            "places": located(self.spans),
            **judged(self.comparison),
        }


def _splits(chunks: Chunks, program: Program, case: Case) -> list[Split]:
    """Those to try, the whole first: for `auto` several, each once for a short sequence."""
    rows, least = rows_of(program, case.inputs), prefix_of(program, case.inputs)
    sizes = sizes_of(chunks, program, case.inputs)
    tried = [Split((rows,), "in one run", whole=True)]
    if chunks != "auto":
        return [*tried, Split(sizes, f"in chunks of {described(sizes)}")]
    first, third = min(max(least, 1), rows), max(least, (rows + 2) // 3)
    rest = rows - third
    thirds = tuple(n for n in (third, rest - rest // 2, rest // 2) if n)
    single = (first, *[1] * (rows - first))
    wanted = {thirds: "in thirds", sizes: "half, then row by row", single: "row by row"}
    return tried + [Split(made, words) for made, words in reversed(wanted.items())]


def _length(program: Program, chunks: Chunks) -> dict[str, int]:
    """The size of random inputs that a list of chunks decides."""
    axes = (a for i in program.main.inputs for a in program.main[i].axes)
    symbol = next((plain_symbol(a.size) for a in axes if a.name == program.decode), None)
    return {} if symbol is None or chunks == "auto" else {symbol: sum(chunks)}


@dataclass(slots=True)
class _Trial:
    """One candidate, loaded once each way."""

    model: Model
    session: Session
    candidate: Candidate
    given: tuple[str, ...]
    _decoders: dict[str, Decoder] = field(default_factory=dict)

    @property
    def stage(self) -> Stage:
        """The graph as written, with its reference runs."""
        return self.session.stage(0, self.candidate.dtype)

    def outputs(self, case: Case, split: Split) -> dict[str, Array]:
        """What the candidate makes of the sequence. Raises CandidateFailed."""
        with failing():
            if split.whole:
                return self.session.executable(self.candidate).run(self.inputs(case))
            made = steps(self.decoder, split.sizes, self.inputs(case))
            return joined(self.decoder, [outputs for outputs, _ in made])

    def inputs(self, case: Case) -> dict[str, Array]:
        return self.stage.reference.rounded(case.inputs)

    @property
    def decoder(self) -> Decoder:
        """The candidate's."""
        c = self.candidate
        return self._decoder("own", self.model, c.backend, dtype=c.dtype, level=c.level)

    def reference(self, dtype: Any) -> Decoder:
        """The graph as written, in NumPy: in float64, or carefully in the candidate's dtype."""
        weights = Rounded(self.model.given_weights(), self.candidate.dtype)
        rounded = self.model.with_weights(weights)
        return self._decoder(dtype, rounded, "numpy", dtype=dtype, level=0)

    def _decoder(self, name: str, model: Model, backend: str, **options: Any) -> Decoder:
        if name not in self._decoders:
            options |= OPTIONS.get(backend, {})
            self._decoders[name] = model.decoder(backend, inputs=self.given, **options)
        return self._decoders[name]

    # ---- where it went wrong

    def divergence(
        self, case: Case, split: Split, output: str, got: Array, comparison: Comparison
    ) -> StepDivergence:
        """Where an output begins to break the rule, and which state did before."""
        main, row = self.session.program.main, self._first_row(case, output, got)
        stale = None if split.whole else self._stale(case, split)
        written = main[dict(main.outputs)[output]].spans
        name, node = str(self.candidate), None
        if not split.whole and (stale is not None or row is not None):
            chunk = split.chunk_of(row or 0) if stale is None else stale.chunk
            node = self._node(case, split, chunk)
        return StepDivergence(name, case.name, split, output, row, comparison, stale, written, node)

    def _node(self, case: Case, split: Split, chunk: int) -> Divergence | None:
        """The first node of a step that is wrong on exact operands, from the states before it.

        A step that was derived wrongly has none: each of its nodes is right.
        """
        if chunk == 0:
            return None
        start, rows = sum(split.sizes[:chunk]), split.sizes[chunk]
        decoder, inputs, dtype = self.reference("f64"), self.inputs(case), self.candidate.dtype
        _, before = decoder(None, **sliced(decoder.derived.prefill, inputs, 0, start))
        new = sliced(decoder.derived.prefill, inputs, start, rows)
        runner = api.backend(self.candidate.backend)
        unwanted = runner.unwanted_passes(dtype)
        step = optimise(decoder.derived.chunk, level=self.candidate.level, disable=unwanted)
        stage = Stage(step, Reference(step.program, self.model.given_weights(), dtype))
        exact, sizes = stage.reference.stepped(
            {name: new[name] for name in map(node_name, _inputs(step.program)) if name in new},
            decoder.arrays(before),
            {**before.sizes, decoder.derived.past: start},
        )
        bench = Bench(runner, self.model.given_weights(), dtype)
        search = Localiser(step.program, stage.values, exact, sizes, bench)
        keys = [k for k in stage.values.order if k in exact and stage.values.node(k).op != "state"]
        fault = search.fault({}, search.introduced(keys))
        return None if fault is None else diverged(stage, fault, str(self.candidate), case.name)

    def _first_row(self, case: Case, output: str, got: Array) -> int | None:
        """The first row that breaks the rule alone, if any does."""
        dim = rows_dim(self.decoder.derived.prefill, output)
        truth = self.stage.truth(case)
        gold, base = truth.gold.outputs[output], truth.base.outputs[output]
        if dim is None or got.shape != gold.shape:
            return None
        for row in range(gold.shape[dim]):
            ours, exact, careful = (x.take([row], dim) for x in (got, gold, base))
            if not compare(ours, exact, careful, self.candidate.dtype).passed:
                return row
        return None

    def _stale(self, case: Case, split: Split) -> Stale | None:
        """The first state that differs, by chunks, then as the text runs."""
        inputs, decoder = self.inputs(case), self.decoder
        made, ends = steps(decoder, split.sizes, inputs), accumulate(split.sizes)
        for chunk, ((_, state), end) in enumerate(zip(made, ends, strict=True)):
            gold, base = (self._states(d, inputs, end) for d in ("f64", self.candidate.dtype))
            for path, got in decoder.arrays(state).items():
                careful = base[path]
                got = got.astype(careful.dtype, copy=False)
                found = compare(got, gold[path], careful, self.candidate.dtype)
                if not found.passed:
                    return Stale(decoder.slots[path], chunk, found)
        return None

    def _states(self, dtype: Any, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """What the reference leaves of the first `rows` rows, given at once."""
        decoder = self.reference(dtype)
        _, state = decoder(None, **sliced(decoder.derived.prefill, inputs, 0, rows))
        return decoder.arrays(state)


def _inputs(program: Program) -> list[Node]:
    return [program.main[i] for i in program.main.inputs]


@dataclass(slots=True)
class _Table:
    """Grows with every trial: a row for each output of each case, run each way."""

    rows: dict[str, dict[str, Cell]] = field(default_factory=dict)
    divergences: dict[str, StepDivergence] = field(default_factory=dict)  # the first of a candidate

    def add(self, trial: _Trial, case: Case, split: Split) -> None:
        truth, name = trial.stage.truth(case), str(trial.candidate)
        try:
            got = trial.outputs(case, split)
        except CandidateFailed as failure:
            failed = Comparison(False, float("inf"), mismatch=str(failure))
            self._enter(name, case, split, dict.fromkeys(truth.gold.outputs, failed))
            found = StepDivergence(name, case.name, split, "", None, failed)
            self.divergences.setdefault(name, found)
            return
        gold, base, dtype = truth.gold.outputs, truth.base.outputs, trial.candidate.dtype
        compared = {n: compare(got[n], x, base[n], dtype) for n, x in gold.items()}
        self._enter(name, case, split, compared)
        wrong = next((n for n, c in compared.items() if not c.passed), None)
        if wrong is not None and name not in self.divergences:
            args = case, split, wrong, got[wrong], compared[wrong]
            self.divergences[name] = trial.divergence(*args)

    def _enter(
        self, candidate: str, case: Case, split: Split, found: Mapping[str, Comparison]
    ) -> None:
        for output, c in found.items():
            cells = self.rows.setdefault(f"{case.name}: {output}, {split.words}", {})
            cells[candidate] = Cell("agrees" if c.passed else "differs", c.error)
