"""One comparison: programs by level of optimisation, their reference runs, candidates' trials."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from .. import api
from ..backends.base import Array, Executable, ValueKey, bind_inputs
from ..backends.numpy import exact
from ..compiler.ir.graph import Node, Origin, Program
from ..compiler.ir.walk import calls, join
from ..compiler.ops import ModelDType, Precision
from ..compiler.passes import Optimised, optimise
from ..compiler.passes.bisect import bisect
from ..compiler.passes.quantise import Quant
from ..compiler.rewrite import Site
from ..equality import Comparison, compare, flips_allowed, rms
from .conventions import Hint
from .inputs import Case
from .localise import Bench, CandidateFailed, Fault, Localiser, failing
from .reference import Reference, Truth
from .regions import MODEL, blocks, group, main_block, origin
from .report import Divergence
from .values import Values, same_values

Traced = dict[ValueKey, Comparison]
Outputs = dict[str, Comparison]

TIE = "tie"  # the mismatch of indices that differ within their margin
EXACT: ModelDType = "f64"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend to compare, at a level of optimisation, in a dtype."""

    backend: str
    level: int = 1
    dtype: ModelDType = "f32"
    label: str = ""

    def __str__(self) -> str:
        return self.label or self.backend


@dataclass(frozen=True)
class Stage:
    """The program at one level of optimisation, with reference runs in one dtype, case by case."""

    optimised: Optimised
    reference: Reference
    truths: dict[str, Truth] = field(default_factory=dict)

    @property
    def program(self) -> Program:
        return self.optimised.program

    @cached_property
    def values(self) -> Values:
        return Values(self.program)

    def truth(self, case: Case) -> Truth:
        if case.name not in self.truths:
            self.truths[case.name] = self.reference.truth(case.inputs)
        return self.truths[case.name]


@dataclass(frozen=True, slots=True)
class Trial:
    """What one candidate did on one case: how each value compares, run whole and run alone.

    `inherited` are the outputs that are wrong because the passes changed them, and for nothing else.
    """

    candidate: Candidate
    stage: Stage
    traced: Mapping[ValueKey, Comparison]
    outputs: Mapping[str, Comparison]
    alone: Mapping[ValueKey, Comparison]
    divergence: Divergence | None
    inherited: Collection[str] = ()


class Session:
    """Everything that candidates share. Backends are loaded once per candidate.

    With `quant` all run the same quantised weights, and outputs are judged by a reference that does.
    """

    def __init__(
        self, program: Program, weights: Mapping[str, Array], quant: Quant | None = None
    ) -> None:
        self.program, self.weights, self.quant = program, weights, quant
        self._stages: dict[tuple[int, ModelDType, tuple[str, ...]], Stage] = {}
        self._loaded: dict[Candidate, Executable] = {}
        self._hinted: set[Candidate] = set()

    def stage(self, level: int, dtype: ModelDType, unwanted: tuple[str, ...] = ()) -> Stage:
        """The program, optimised without `unwanted`, and its reference in `dtype`, made once."""
        key = (level, dtype, unwanted if level else ())
        if key not in self._stages:
            optimised = optimise(self.program, level=level, disable=unwanted, quant=self.quant)
            reference = Reference(optimised.program, self.weights, dtype)
            self._stages[key] = Stage(optimised, reference)
        return self._stages[key]

    def stage_of(self, candidate: Candidate) -> Stage:
        """What a candidate runs."""
        unwanted = api.backend(candidate.backend).unwanted_passes(candidate.dtype)
        return self.stage(candidate.level, candidate.dtype, unwanted)

    def trial(self, candidate: Candidate, case: Case, every: bool) -> Trial:
        """Runs a candidate. Nodes run alone where something breaks the rule, or all if `every`."""
        stage = self.stage_of(candidate)
        localiser = self._localiser(stage, candidate, case)
        try:
            traced, whole, inherited = self._whole_run(candidate, case)
        except CandidateFailed as failure:
            return self._failed(candidate, localiser, case, failure)
        suspects = [key for key, comparison in traced.items() if every or not comparison.passed]
        alone = localiser.introduced(suspects)
        fault = localiser.fault(traced, alone)
        divergence = None
        if fault is not None:
            hinted = self._hints(localiser, candidate, fault)
            divergence = replace(diverged(stage, fault, str(candidate), case.name), hints=hinted)
        elif not all(c.passed for c in whole.values()) and not _ties(traced):
            own = {name: c for name, c in whole.items() if name not in inherited}
            if not all(c.passed for c in own.values()):
                divergence = self._in_outputs(candidate, case, own)
            else:
                found = self._in_outputs(candidate, case, whole)
                divergence = replace(found, inherits=f"-O{candidate.level}")
        return Trial(candidate, stage, traced, whole, alone, divergence, inherited)

    def _hints(self, localiser: Localiser, candidate: Candidate, fault: Fault) -> tuple[Hint, ...]:
        """For the first fault of a candidate, which is the one that is told."""
        if candidate in self._hinted or not fault.introduced:
            return ()
        self._hinted.add(candidate)
        return localiser.hints(fault)

    def _whole_run(
        self, candidate: Candidate, case: Case
    ) -> tuple[Traced, Outputs, Collection[str]]:
        """How values and outputs compare, and which outputs inherit. Raises CandidateFailed."""
        stage = self.stage_of(candidate)
        inputs = stage.reference.rounded(case.inputs)
        with failing():
            outputs, values = self.executable(candidate).trace(inputs)
        traced = _traced(stage, stage.truth(case), values, candidate.dtype)
        whole = self._outputs(candidate, case, outputs)
        return traced, whole, self._inherited(candidate, case, outputs, whole)

    def _failed(
        self, candidate: Candidate, localiser: Localiser, case: Case, failure: CandidateFailed
    ) -> Trial:
        """The trial of a program that does not run: which node does not run on its own?"""
        stage = self.stage_of(candidate)
        alone = localiser.introduced(stage.values.order)
        fault = localiser.fault({}, alone)
        if fault is None:
            raise failure
        divergence = diverged(stage, fault, str(candidate), case.name)
        return Trial(candidate, stage, {}, {}, alone, divergence)

    def executable(self, candidate: Candidate) -> Executable:
        """What a candidate runs, loaded once."""
        if candidate not in self._loaded:
            program = self.stage_of(candidate).program
            self._loaded[candidate] = self._bench(candidate).load(program)
        return self._loaded[candidate]

    def _outputs(self, candidate: Candidate, case: Case, outputs: Mapping[str, Array]) -> Outputs:
        exact = self.stage_of(candidate) if self.quant else self.stage(0, candidate.dtype)
        truth = exact.truth(case)
        gold, base = truth.gold.outputs, truth.base.outputs
        return {
            name: compare(outputs[name], gold[name], base[name], candidate.dtype) for name in gold
        }

    def _inherited(
        self, candidate: Candidate, case: Case, outputs: Mapping[str, Array], whole: Outputs
    ) -> set[str]:
        """Wrong outputs that the passes changed, and that are right for the program they made."""
        wrong = [name for name, c in whole.items() if not c.passed]
        if not wrong:
            return set()
        changed = self._changed(candidate.level, candidate.dtype, case)
        truth = self.stage_of(candidate).truth(case)
        gold, base = truth.gold.outputs, truth.base.outputs
        return {
            name
            for name in wrong
            if name in changed
            and compare(outputs[name], gold[name], base[name], candidate.dtype).passed
        }

    def _localiser(self, stage: Stage, candidate: Candidate, case: Case) -> Localiser:
        precision = Precision(candidate.dtype)
        sizes = bind_inputs(self.program, stage.reference.rounded(case.inputs), precision).sizes
        exact = stage.truth(case).gold.values
        return Localiser(stage.program, stage.values, exact, sizes, self._bench(candidate))

    def _bench(self, candidate: Candidate) -> Bench:
        return Bench(api.backend(candidate.backend), self.weights, candidate.dtype)

    def _in_outputs(
        self, candidate: Candidate, case: Case, whole: Mapping[str, Comparison]
    ) -> Divergence:
        """An output that is wrong although every traced value is right."""
        stage = self.stage_of(candidate)
        name = next(n for n, c in whole.items() if not c.passed)
        key = stage.values.maker(("", dict(stage.program.main.outputs)[name]))
        fault = Fault(key, stage.values.node(key), None, whole[name], introduced=False)
        return diverged(stage, fault, str(candidate), case.name)

    @cached_property
    def _wrong_rewrite(self) -> Site | None:
        """The first rewrite of the passes that changes a result, run on small sizes."""
        return bisect(self.program, exact).site

    def _changed(self, level: int, dtype: ModelDType, case: Case) -> Outputs:
        """Outputs of the optimised graph, run exactly, that differ from those of the graph as written."""
        before, after = self.stage(0, dtype), self.stage(level, dtype)
        if before is after or self.quant:  # weights are quantised as the passes left them
            return {}
        gold, got = before.truth(case).gold.outputs, after.truth(case).gold.outputs
        compared = {name: compare(got[name], x, x, EXACT) for name, x in gold.items()}
        return {name: c for name, c in compared.items() if not c.passed}

    def check_passes(self, level: int, dtype: ModelDType, case: Case) -> list[Divergence]:
        """Where the optimised graph, run exactly, first differs from the graph as written."""
        changed = self._changed(level, dtype, case)
        if not changed:
            return []
        before, after = self.stage(0, dtype), self.stage(level, dtype)
        rewrite = self._wrong_rewrite
        if rewrite is not None:
            comparison = next(iter(changed.values()))
            return [rewritten(before.program, rewrite, comparison, f"-O{level}", case.name)]
        gold, got = before.truth(case).gold, after.truth(case).gold
        pairs = dict(same_values(after.optimised))
        for key in before.values.order:
            if key not in pairs or pairs[key] not in got.values or key not in gold.values:
                continue
            exact = gold.values[key]
            comparison = compare(got.values[pairs[key]], exact, exact, EXACT)
            if not comparison.passed:
                fault = Fault(key, before.values.node(key), None, comparison, True)
                return [diverged(before, fault, f"-O{level}", case.name)]
        return [self._in_outputs(Candidate("numpy", 0, dtype, f"-O{level}"), case, changed)]


def _traced(
    stage: Stage, truth: Truth, values: Mapping[ValueKey, Array], dtype: ModelDType
) -> Traced:
    gold, base = truth.gold.values, truth.base.values
    found: Traced = {}
    for key in stage.values.order:
        if key in values and key in gold and stage.values.node(key).op not in ("const", "size"):
            found[key] = compare(values[key], gold[key], base[key], dtype)
            if not found[key].passed and is_choice(stage.values, key):
                found[key] = _choice(stage.values, key, truth, values, found)
    return found


def is_choice(values: Values, key: ValueKey) -> bool:
    """Whether a value is the indices of a `topk`."""
    node = values.node(key)
    return node.op == "result" and topk_of(values, key).op == "topk" and node.attrs["index"] == 1


def topk_of(values: Values, key: ValueKey) -> Node:
    """The node that a `result` reads."""
    return values.functions[key[0]][values.node(key).inputs[0]]


def _choice(
    values: Values,
    key: ValueKey,
    truth: Truth,
    got: Mapping[ValueKey, Array],
    found: Mapping[ValueKey, Comparison],
) -> Comparison:
    """Chosen indices may flip where the scores are closer than the scores may be wrong."""
    (source,) = values.operands(key)
    scores, chosen = truth.gold.values[source], truth.gold.values[key]
    along = values.node(source).type.position(topk_of(values, key).attrs.axis("axis"))
    ours, gold, ranked = (_last(x, along) for x in (got[key], chosen, scores))
    margin = margin_of(scores, found[source]) if source in found else 0.0
    legal = flips_allowed(ours, gold, ranked, margin)
    return Comparison(True, mismatch=TIE) if legal else found[key]


def margin_of(scores: Array, compared: Comparison) -> float:
    """How far apart two scores may be that errors as large as allowed may exchange.

    Those of -inf are of what cannot be chosen.
    """
    return 2 * compared.allowed * rms(scores[np.isfinite(scores)])


def _last(x: Array, axis: int) -> Array:
    return x.swapaxes(axis, -1)


def _ties(traced: Mapping[ValueKey, Comparison]) -> bool:
    return any(c.passed and c.mismatch for c in traced.values())


def diverged(stage: Stage, fault: Fault, candidate: str, case: str) -> Divergence:
    """A fault in the words of the user's text."""
    path, node = fault.key[0], fault.node
    within = fault.fused if fault.fused not in (None, node) else None
    around = main_block(stage.program, within or node)
    where = origin(stage.program, node, around)
    return Divergence(
        candidate=candidate,
        case=case,
        region=join(path, where.region) if where.region else group(stage.program, path, node),
        op=node.op,
        value=_name(path if within is None else "", node),
        spans=where.spans,
        comparison=fault.comparison,
        introduced=fault.introduced,
        within=_words(stage.program, within),
        reads=tuple(_weights(stage, fault)),
        at_load="derived" in (node.op, within.op if within else ""),
    )


def rewritten(
    program: Program, site: Site, comparison: Comparison, candidate: str, case: str
) -> Divergence:
    """A wrong rewrite in the words of the user's text: what it rewrote, first where it is called."""
    path = next(path for path, function in calls(program) if function.name == site.function)
    where = next((o for o in site.origins if o.spans), Origin())
    return Divergence(
        candidate=candidate,
        case=case,
        region=join(path, where.region) if where.region else path or MODEL,
        op=site.rule,
        value=site.hint,
        spans=where.spans,
        comparison=comparison,
        introduced=True,
        within=f"a rewrite of the pass {site.pass_name}",
    )


def _name(path: str, node: Node) -> str:
    """A weight's path, or the name that the text gives to the value."""
    return join(path, node.attrs.string("path")) if node.op == "weight" else node.hint


def _words(program: Program, fused: Node | None) -> str:
    if fused is None:
        return ""
    return f"the `{fused.op}` of {' and '.join(blocks(program, fused)) or 'the model'}"


def _weights(stage: Stage, fault: Fault) -> Iterator[str]:
    """The paths of the weights that the node at fault reads, also through derived parameters."""
    path, node_id = fault.key
    function, todo = stage.values.functions[path], [node_id]
    while todo:
        node = function[todo.pop()]
        if node.op == "weight":
            yield join(path, node.attrs.string("path"))
        elif node.id == node_id or node.op == "derived":
            todo += reversed(node.inputs)
