"""Where a port first differs from its class, why, and which convention would mend it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from ..compiler.extract import section
from ..dsl.diagnostics import snippet
from ..dsl.span import Span
from ..equality import Comparison
from .conventions import Alternative, Hint, Setting, hints
from .experts import Choice
from .matching import Region, is_below
from .port import EXACT
from .reference import Reference
from .regions import in_std, places
from .report import judged, located, stated
from .trial import Trial


@dataclass(frozen=True, slots=True)
class ModuleDivergence:
    """Where a port first differs from its class: in which region, which is which module.

    `introduced` is false where the module makes the same of what the region was given; then the
    text between this region and those before it is at fault, and `spans` are of what it reads, or,
    when that is right, the lines that read its tensors.
    `lines_read` are the checkpoint's lines for the tensors of the module alone. Where it is `shared`
    the region is a part of it. `experts` says which a router chooses that it should not.
    """

    candidate: str
    case: str
    region: str
    module: str
    spans: tuple[Span, ...]
    comparison: Comparison
    introduced: bool
    lines_read: tuple[Span, ...] = ()
    hints: tuple[Hint, ...] = ()
    shared: bool = False
    experts: str = ""

    def lines(self) -> list[str]:
        """The screen."""
        what = f"{'part of ' if self.shared else ''}`{self.module}`"
        out = [f"{self.candidate} first differs at {self.region}, which is {what}"]
        for mark, span in zip("^-", places(self.spans), strict=False):
            out += snippet(span, "", mark)
        for span in self.lines_read:
            out += snippet(span, "its weights are read here", "-")
        kind = "error introduced" if self.introduced else "what it is given differs"
        if self.experts:
            out.append(f"  it chooses {self.experts}")
        out.append(f"  {kind}: {stated(self.comparison)} ({self.case} inputs)")
        return [*out, *(f"  hint: {hint}" for hint in self.hints)]

    def to_json(self) -> dict[str, Any]:
        return {
            "candidate": self.candidate,
            "inputs": self.case,
            "region": self.region,
            "module": self.module,
            "places": located((*self.spans, *self.lines_read)),
            "introduced": self.introduced,
            **judged(self.comparison),
            **({"experts": self.experts} if self.experts else {}),
            "hints": [hint.words for hint in self.hints],
        }


def divergence(trial: Trial) -> ModuleDivergence | None:
    """Where the candidate first differs. Where the text does so too, it is to blame."""
    own = _in_regions(trial) or _in_outputs(trial)
    text = divergence(trial.runs.exact) if own and trial.candidate != EXACT else None
    return replace(text, candidate=str(trial.candidate)) if text else own


def _in_regions(trial: Trial) -> ModuleDivergence | None:
    """The first region that differs. When it only inherits, the one around it that does not.

    One that reads what agrees, and yet is given something else, is read from wrong tensors.
    """
    wrong = [found for found in trial.regions if found[1] != "agrees"]
    wrong = [found for found in wrong if not trial.chosen.after_tie(found[0].exits[-1])]
    chosen = _in_choices(trial, {region.name for region, _, _ in wrong})
    if chosen is not None and (not wrong or _precedes(trial, chosen[0], wrong[0][0])):
        return _chosen_wrongly(trial, *chosen)
    if not wrong:
        return None
    region, status, comparison = first = wrong[0]
    misread = status == "inherited" and _reads_what_agrees(trial, region)
    if status == "inherited" and not misread:
        around = (w for w in wrong if w[1] != "inherited" and is_below(region.name, w[0].name))
        region, status, comparison = next(around, first)
    suspect = misread or (status != "inherited" and region is first[0])
    experts = trial.chosen.by(region)
    return ModuleDivergence(
        str(trial.candidate),
        trial.runs.case.name,
        region.name,
        region.module,
        _spans(trial, first[0], first[1] == "inherited" and not misread),
        comparison,
        status != "inherited",
        tuple(e.line.span for e in region.entries) if suspect else (),
        _hints(trial, region) if status == "introduced" else (),
        region.shared,
        f"experts {experts.mismatch}" if experts and not experts.passed else "",
    )


def _in_choices(trial: Trial, wrong: Collection[str]) -> tuple[Choice, Comparison] | None:
    """The first wrong choice of a router that is right."""
    found = (f for f in trial.chosen.compared if f[0].router.name not in wrong and not f[1].passed)
    return next((f for f in found if not trial.chosen.after_tie(f[0].ids)), None)


def _precedes(trial: Trial, choice: Choice, region: Region) -> bool:
    order = trial.values.order
    return order.index(choice.ids) < order.index(region.exits[-1])


def _chosen_wrongly(trial: Trial, choice: Choice, comparison: Comparison) -> ModuleDivergence:
    return ModuleDivergence(
        str(trial.candidate),
        trial.runs.case.name,
        choice.router.name,
        choice.router.module,
        trial.values.node(choice.ids).spans,
        replace(comparison, mismatch=f"experts {comparison.mismatch}"),
        introduced=True,
    )


def _reads_what_agrees(trial: Trial, region: Region) -> bool:
    right = {key for r, status, _ in trial.regions if status == "agrees" for key in r.exits}
    return bool(region.reads) and set(region.reads) <= right


def _in_outputs(trial: Trial) -> ModuleDivergence | None:
    """An output that differs although every region agrees."""
    wrong = (o for o in trial.outputs if not o[3].passed and trial.chosen.tied is None)
    for name, theirs, node, comparison in wrong:
        return ModuleDivergence(
            str(trial.candidate),
            trial.runs.case.name,
            f"output {name}",
            theirs,
            trial.values.node(trial.values.maker(("", node.id))).spans,
            comparison,
            introduced=True,
        )
    return None


def _spans(trial: Trial, region: Region, inherits: bool) -> tuple[Span, ...]:
    """Where a region is called, or what it reads is computed."""
    key = region.reads[0] if inherits and region.reads else region.exits[-1]
    spans = trial.values.node(key).spans
    if inherits:
        return spans
    return tuple(s for s in spans if not in_std(s)) or spans


def _hints(trial: Trial, region: Region) -> tuple[Hint, ...]:
    """Which conventions would make the graph as written agree with the module, here."""
    exact = trial.runs.exact
    alone = exact.alone(region)
    function = trial.values.functions[region.path]
    if alone is None or alone[1].key[1] not in function:
        return ()
    _, pair, gold, base = alone
    node, result = trial.values.node(pair.key), pair.key[1]
    program, weights = trial.port.session.program, trial.port.session.weights
    truth = trial.port.stage.truth(trial.runs.case).gold.values
    part = section(program, function, region.path, region.inside, (result,), trial.runs.sizes)
    fed = {name: truth[region.path, i] for name, i in part.feeds.items()}

    def agrees(tried: Alternative) -> bool:
        made = Reference(tried.program, tried.weights, "f64").truth(fed).gold.outputs
        (value,) = made.values()
        ours = trial.runs.layout.arranged(value, node, gold.shape)
        return ours is not None and exact.compared(node, ours, gold, base).passed

    parameters = {p.path: p for p in program.parameters}
    return hints(Setting(part.program, weights, parameters, trial.port.numbers), agrees)
