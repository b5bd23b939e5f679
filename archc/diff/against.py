"""Does a port compute what its class in `transformers` does? Outputs by name, regions by the map.

The class is judge here: its float64 run is gold, its run in the dtype of the candidate the base of
the rule in `equality.py`. Each region that is a module (`matching.py`) is compared where it ends;
what is padding is left out. Where one differs, the module is run again on the region's own input:
what is wrong then is *introduced*, else it came to the region wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..api import Model
from ..backends.base import Array, ValueKey, bind_inputs
from ..compiler.checkpoint.lines import expand
from ..compiler.extract import section
from ..compiler.ir.graph import Node
from ..compiler.ops import ModelDType, Precision
from ..dsl.diagnostics import snippet
from ..dsl.errors import NothingMatches
from ..dsl.span import Span
from ..equality import Comparison, compare, flips_allowed
from .conventions import Alternative, Hint, Setting, hints
from .experts import Choice, choices, largest, ranked, stated_by
from .inputs import Case, random_cases, read_inputs
from .matching import Layout, Matched, Region, matched
from .names import owned
from .peer import Call, Peer, PeerRun
from .reference import Reference
from .regions import in_std, places
from .report import Cell, LeftOut, Report, Row, Status, judged, listed, located, stated
from .session import TIE, Candidate, Session, Stage, margin_of
from .values import Values, same_values

TOKENS = "input_ids"  # what classes call ids of tokens, a decoder's too; others have no padding
OUTPUTS = {"hidden": "last_hidden_state", "pooled": "pooler_output"}  # names that classes use
RULE: dict[ModelDType, ModelDType] = {"f64": "f32"}  # classes keep islands of float32 in float64
EXACT = Candidate("numpy", 0, "f64", "numpy@O0@f64")  # what is compared when nothing else is asked


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
    against = _Against.of(model, peer, inputs)
    cases = [inputs] if inputs else list(against.cases(seed, sizes or {}))
    table = _Table()
    for case in cases:
        progress(f"{peer.class_name} on {case.name} inputs")
        runs = _Runs(against, case)
        for candidate in candidates:
            progress(f"{candidate} on {case.name} inputs")
            table.add(runs.exact if candidate == EXACT else _Trial(runs, candidate))
    if not table.rows:
        raise NothingMatches(name=peer.class_name, model=model.definition.name)
    return Report(
        model.definition.name,
        tuple(map(str, candidates)),
        tuple(map(str, cases)),
        tuple(table.rows.values()),
        tuple(table.divergences.values()),
        against=peer.class_name,
        left_out=tuple(table.left_out),
    )


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


@dataclass(frozen=True)
class _Against:
    """The model and the class, and which modules are which regions."""

    model: Model
    peer: Peer
    session: Session
    matched: Matched

    @classmethod
    def of(cls, model: Model, peer: Peer, inputs: Case | None) -> _Against:
        weights, block, checkpoint = model.given_weights(), model.block, model.checkpoint
        assert block is not None
        assert checkpoint is not None
        names = inputs.inputs if inputs else peer.accepts & read_inputs(model.program).keys()
        if not names:
            raise NothingMatches(name=peer.class_name, model=model.definition.name)
        session = Session(model.program_for(names), weights)
        file = checkpoint.weights_file()
        modules = owned(peer.parameters(), file.names, file.read, peer.base)
        lines = expand(block, session.program, file.names)
        found = matched(session.stage(0, "f64").values, lines, modules, file.names)
        return cls(model, peer, session, found)

    def cases(self, seed: int, sizes: Mapping[str, int]) -> Iterator[Case]:
        """Random ones, padded as the class expects it."""
        for case in random_cases(self.session.program, seed, sizes):
            masked = {n: self._ends(v) if v.dtype == bool else v for n, v in case.inputs.items()}
            yield Case(case.name, dict(self._padded(masked)))

    @staticmethod
    def _ends(mask: Array) -> Array:
        """Padding at the end alone: a query of padding that sees nothing makes classes give NaN."""
        ended = np.sort(mask, axis=-1)[..., ::-1].copy()
        ended[..., 0] = True
        return ended

    def _padded(self, inputs: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        """The class's own id where padding is, and nowhere else."""
        nodes = read_inputs(self.session.program)
        masks = {nodes[n].axes: v for n, v in inputs.items() if nodes[n].type.dtype == "bool"}
        for name, value in inputs.items():
            mask, pad = masks.get(nodes[name].axes), self.peer.padding
            if name.endswith(TOKENS) and mask is not None and pad is not None:
                value = np.where(mask, np.where(value == pad, pad + 1, value), pad)
            yield name, value

    @property
    def stage(self) -> Stage:
        """The graph as written."""
        return self.session.stage(0, "f64")

    @cached_property
    def choices(self) -> Sequence[Choice]:
        """The choices of experts."""
        return tuple(choices(self.stage.values, self.matched.regions))

    @cached_property
    def numbers(self) -> tuple[float, ...]:
        """Small numbers of the config, which may be an epsilon."""
        config = self.model.checkpoint.config if self.model.checkpoint else {}
        return tuple(v for v in config.values() if isinstance(v, float) and 0 <= v <= 1e-2)


@dataclass
class _Runs:
    """The runs of the class on one case, by dtype."""

    against: _Against
    case: Case
    _made: dict[ModelDType, PeerRun] = field(default_factory=dict)

    def __getitem__(self, dtype: ModelDType) -> PeerRun:
        if dtype not in self._made:
            self._made[dtype] = self.against.peer.run(self.case.inputs, dtype)
        return self._made[dtype]

    @cached_property
    def exact(self) -> _Trial:
        """The text itself."""
        return _Trial(self, EXACT)

    @cached_property
    def layout(self) -> Layout:
        return Layout.of(self.against.session.program, self.case.inputs)

    def ignores(self, region: Region) -> bool:
        """Whether a module returns the same whatever it is given, as a table of positions does."""
        call = self["f64"].calls[region.module][-1]
        given, before = call.given(), self["f64"].returned(region.module)
        if given is None or before is None:
            return False
        after = self.against.peer.again(region.module, call, np.zeros_like(given))
        return after is not None and np.array_equal(before, after)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A value that a region returns, and the call of its module that it is."""

    key: ValueKey
    call: int
    value: Array  # in the order of the module's


@dataclass
class _Trial:
    """One candidate on one case."""

    runs: _Runs
    candidate: Candidate

    @property
    def against(self) -> _Against:
        return self.runs.against

    @property
    def dtype(self) -> ModelDType:
        """That of the rule, and of the run of the class that it allows for."""
        return RULE.get(self.candidate.dtype, self.candidate.dtype)

    @property
    def values(self) -> Values:
        return self.against.stage.values

    @cached_property
    def ran(self) -> tuple[Mapping[str, Array], Mapping[ValueKey, Array]]:
        """Outputs and values, by the keys of the graph as written."""
        session = self.against.session
        stage = session.stage_of(self.candidate)
        outputs, values = session.executable(self.candidate).trace(
            stage.reference.rounded(self.runs.case.inputs)
        )
        if not self.candidate.level:
            return outputs, values
        pairs = same_values(stage.optimised)
        return outputs, {before: values[after] for before, after in pairs if after in values}

    def pair(self, region: Region) -> Iterator[_Pair]:
        """The values of a region that can be compared with calls of its module."""
        calls = self.runs["f64"].calls.get(region.module, [])
        if region.reads and any(call.given() is None for call in calls):
            return  # it adds to a value what the module alone makes of whole numbers
        last = [(key, 0) for key in reversed(region.exits)] if len(calls) == 1 else []
        several = len(calls) == len(region.exits) > 1 and not region.is_layer
        pairs = [(k, i) for i, k in enumerate(region.exits)] if several else last
        for key, call in pairs:
            gold = self.part(region, key, self.runs["f64"].returned(region.module, call))
            value = None if gold is None else self.arranged(key, gold.shape)
            if value is not None:
                yield self.formed(_Pair(key, call, value), region)
                if not several:
                    return

    def unpaired(self, region: Region) -> str:
        """Why no value of a region can be compared with its module."""
        calls = self.runs["f64"].calls.get(region.module, [])
        if not calls:
            return "the class does not call the module"
        if region.reads and any(call.given() is None for call in calls):
            return "the module is given whole numbers alone"
        result = self.runs["f64"].returned(region.module)
        if result is None:
            return "the module returns no tensor"
        node = self.values.node(region.exits[-1])
        if self.runs.layout.part(result, node, region) is None:
            places = self.runs.layout.places(result.shape[-1], node, region)
            lost = [f"`{name}`" for name, found in places.items() if found is None]
            if places and not lost:
                return f"{listed([f'`{name}`' for name in places])} have it in different places"
            tensors = listed(lost or [f"`{entry.name}`" for entry in region.entries])
            return f"no dimension of {tensors} counts what it returns"
        if region.reads and self.runs.ignores(region):
            return "the module makes nothing of what it is given"
        if len(calls) > 1:
            return f"the class calls the module {len(calls)} times"
        return f"the module returns another shape, {list(result.shape)}"

    def formed(self, pair: _Pair, region: Region) -> _Pair:
        """The pair, or one of a form of its value that agrees where it does not."""
        for key in region.forms[pair.key]:
            gold, base = self.returned(region, pair)
            value = self.arranged(key, gold.shape)
            if (
                value is None
                or self.compared(self.values.node(pair.key), pair.value, gold, base).passed
            ):
                break
            if self.compared(self.values.node(key), value, gold, base).passed:
                return _Pair(key, pair.call, value)
        return pair

    def returned(self, region: Region, pair: _Pair) -> tuple[Array, Array]:
        """What a call of a region's module gave, exactly and in the dtype of the rule."""
        results = (r.returned(region.module, pair.call) for r in (self.runs["f64"], self.base))
        gold, base = (self.part(region, pair.key, result) for result in results)
        assert gold is not None
        assert base is not None
        return gold, base

    def part(self, region: Region, key: ValueKey, result: Array | None) -> Array | None:
        """What of its module's result is a region's value."""
        if result is None:
            return None
        return self.runs.layout.part(result, self.values.node(key), region)

    def arranged(self, key: ValueKey, shape: tuple[int, ...]) -> Array | None:
        value = self.ran[1].get(key)
        if value is None:
            return None
        return self.runs.layout.arranged(value, self.values.node(key), shape)

    def compared(self, node: Node, value: Array, gold: Array, base: Array) -> Comparison:
        """Over what is no padding."""
        seen = self.runs.layout.seen(node, gold.shape)
        ours, exact, theirs = (x.astype(np.float64)[seen] for x in (value, gold, base))
        return compare(ours, exact, theirs, self.dtype)

    def region(self, region: Region) -> Comparison | None:
        """How what a region returns compares, at worst over its calls; None where nothing can be.

        So it is where a module makes nothing of the value that its region adds to.
        """
        found = []
        for pair in self.pair(region):
            gold, base = self.returned(region, pair)
            found.append(self.compared(self.values.node(pair.key), pair.value, gold, base))
        worst = max(found, key=lambda c: (not c.passed, c.error), default=None)
        apart = worst is not None and not worst.passed
        return None if apart and region.reads and self.runs.ignores(region) else worst

    @property
    def base(self) -> PeerRun:
        return self.runs[self.dtype]

    @cached_property
    def regions(self) -> list[tuple[Region, Status, Comparison]]:
        """How each region that can be compared does."""
        found = ((region, self.region(region)) for region in self.against.matched.regions)
        return [(r, self.status(r, whole), whole) for r, whole in found if whole is not None]

    @cached_property
    def chosen(self) -> list[tuple[Choice, Comparison]]:
        """How the experts that each router chooses compare."""
        found = ((choice, self.choice(choice)) for choice in self.against.choices)
        return [(choice, compared) for choice, compared in found if compared is not None]

    def chosen_by(self, region: Region) -> Comparison | None:
        """How what one router chooses compares, at worst; None of a region that is no router.

        What follows a tie elsewhere says nothing.
        """
        own = ((c, compared) for c, compared in self.chosen if c.router is region)
        told = (compared for c, compared in own if not self.follows_tie(c.ids))
        return min(told, key=lambda compared: compared.passed, default=None)

    def choice(self, choice: Choice) -> Comparison | None:
        """Whether the class chose the same, as sets; None where it does not say what it chose."""
        if choice.ids not in self.ran[1]:
            return None
        ours, gold = self.by_token(choice.ids, self.ran[1]), self.gold_ids(choice)
        if gold is None:
            return None
        seen = self.runs.layout.seen(self.values.node(choice.ids), ours.shape) & (gold >= 0).all(-1)
        wrong = (np.sort(ours, -1) != np.sort(gold, -1)).any(-1) & seen
        if not wrong.any():
            return Comparison(True)
        if self._may_differ(choice, ours, gold, seen, wrong):
            return Comparison(True, mismatch=TIE)
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        us, them = (listed([str(i) for i in sorted(x[place])]) for x in (ours, gold))
        words = (
            f"{us} instead of {them} at {list(place)}, {wrong.sum()} of {seen.sum()} choices differ"
        )
        return Comparison(False, float("inf"), mismatch=words)

    def _may_differ(
        self, choice: Choice, ours: Array, gold: Array, seen: Array, wrong: Array
    ) -> bool:
        """Whether no more than rounding makes the choices of some tokens differ.

        The text itself has to choose among scores that are closer than the class may have them wrong.
        Another candidate has to choose what the scores that it has itself say, and to have right ones
        where it chooses as the class; then rounding moved a token over an edge of the text's own.
        """
        truth = self.against.session.stage(0, self.dtype).truth(self.runs.case)
        runs = truth.gold.values, truth.base.values, self.ran[1]
        scores, base, got = (self.by_token(choice.scores, values) for values in runs)
        if self.candidate == EXACT:
            margin = margin_of(scores[seen], self._judged(got, scores, base, seen))
            us, them = (ranked(ids[wrong], scores[wrong]) for ids in (ours, gold))
            return flips_allowed(us, them, scores[wrong], margin)
        text, right = self.runs.exact.choice(choice), seen & ~wrong
        own = ours[wrong], largest(got[wrong], ours.shape[-1])
        here, best = (np.sort(np.take_along_axis(got[wrong], ids, -1), -1) for ids in own)
        consistent = np.array_equal(here, best) and self._judged(got, scores, base, right).passed
        return consistent and text is not None and text.passed

    def _judged(self, got: Array, gold: Array, base: Array, tokens: Array) -> Comparison:
        ours, exact, theirs = (x[tokens].astype(np.float64) for x in (got, gold, base))
        return compare(ours, exact, theirs, self.dtype)

    def gold_ids(self, choice: Choice) -> Array | None:
        """What the class chose, or has to choose by its scores where the text does so by its own."""
        exact = self.runs.exact.ran[1]
        ids, own = (self.by_token(key, exact) for key in (choice.ids, choice.exit))
        run, module = self.runs["f64"], choice.router.module
        said = stated_by(run, module, ids.shape, own.shape[-1])
        scores = self.part(choice.router, choice.exit, run.returned(module))
        if said is not None or scores is None or scores.size != own.size:
            return said
        plain = np.sort(largest(own, ids.shape[-1]), -1) == np.sort(ids, -1)
        seen = self.runs.layout.seen(self.values.node(choice.ids), ids.shape)
        return largest(scores.reshape(own.shape), ids.shape[-1]) if plain[seen].all() else None

    def by_token(self, key: ValueKey, values: Mapping[ValueKey, Array]) -> Array:
        return self.runs.layout.by_token(values[key], self.values.node(key))

    @cached_property
    def tied(self) -> int | None:
        """Where in the order of values a choice first differs that may: what follows is not judged."""
        order = self.values.order
        ties = (c.ids for c, compared in self.chosen if compared.passed and compared.mismatch)
        return min(map(order.index, ties), default=None)

    def follows_tie(self, key: ValueKey) -> bool:
        return self.tied is not None and self.values.order.index(key) > self.tied

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The regions that are not compared, although a module has their tensors as its own."""
        compared = {region.name for region, _, _ in self.regions}
        others = (
            LeftOut(region.name, region.module, self.unpaired(region))
            for region in self.against.matched.regions
            if region.entries and region.name not in compared
        )
        return (*self.against.matched.left_out, *others)

    @cached_property
    def outputs(self) -> list[tuple[str, str, Node, Comparison]]:
        return list(self._outputs())

    def _outputs(self) -> Iterator[tuple[str, str, Node, Comparison]]:
        """Each output that the class has too: its name there, and how it compares."""
        main = self.against.session.program.main
        for name, node_id in main.outputs:
            theirs = next(
                (n for n in (name, OUTPUTS.get(name)) if n in self.runs["f64"].outputs), None
            )
            if theirs is None:
                continue
            gold, base = self.runs["f64"].outputs[theirs], self.base.outputs[theirs]
            value = self.runs.layout.arranged(self.ran[0][name], main[node_id], gold.shape)
            if value is None:
                shapes = f"shape {list(self.ran[0][name].shape)} instead of {list(gold.shape)}"
                yield name, theirs, main[node_id], Comparison(False, float("inf"), 0.0, shapes)
            else:
                yield name, theirs, main[node_id], self.compared(main[node_id], value, gold, base)

    # ------------------------------------------------------------------ what is introduced

    def alone(self, region: Region) -> tuple[Comparison, _Pair, Array, Array] | None:
        """How a region compares with its module run on the region's input; also what that made.

        None where the module cannot be given that input.
        """
        for pair in self.pair(region):
            call = self.runs["f64"].calls[region.module][pair.call]
            given = self.given(region, call)
            gold, base = self.returned(region, pair)
            made = gold
            if given is not None:
                result = self.against.peer.again(region.module, call, given)
                again = self.part(region, pair.key, result)
                if again is None:
                    return None
                made = again
            elif region.reads:
                return None
            moved = base.astype(np.float64) + (made - gold)
            node = self.values.node(pair.key)
            return self.compared(node, pair.value, made, moved), pair, made, moved
        return None

    def given(self, region: Region, call: Call) -> Array | None:
        """The region's input in place of that of a call; padding stays as the class has it."""
        theirs = call.given()
        if theirs is None:
            return None
        for key in region.reads:
            value = self.arranged(key, theirs.shape)
            if value is not None:
                seen = self.runs.layout.seen(self.values.node(key), theirs.shape)
                mixed = theirs.copy()
                mixed[seen] = value.astype(theirs.dtype)[seen]
                return mixed
        return None

    def status(self, region: Region, whole: Comparison) -> Status:
        if whole.passed:
            return "agrees"
        if self.follows_tie(region.exits[-1]):
            return "inherited"
        alone = self.alone(region)
        if alone is None:
            return "differs"
        return "inherited" if alone[0].passed else "introduced"

    # ------------------------------------------------------------------------ where and why

    def divergence(self) -> ModuleDivergence | None:
        """Where the candidate first differs. Where the text does so too, it is to blame."""
        own = self._in_regions() or self._in_outputs()
        text = self.runs.exact.divergence() if own and self.candidate != EXACT else None
        return replace(text, candidate=str(self.candidate)) if text else own

    def _in_regions(self) -> ModuleDivergence | None:
        """The first region that differs. When it only inherits, the one around it that does not.

        One that reads what agrees, and yet is given something else, is read from wrong tensors.
        """
        wrong = [found for found in self.regions if found[1] != "agrees"]
        wrong = [found for found in wrong if not self.follows_tie(found[0].exits[-1])]
        chosen = self._in_choices({region.name for region, _, _ in wrong})
        if chosen is not None and (not wrong or self._precedes(chosen[0], wrong[0][0])):
            return self._chosen_wrongly(*chosen)
        if not wrong:
            return None
        region, status, comparison = first = wrong[0]
        misread = status == "inherited" and self._reads_what_agrees(region)
        if status == "inherited" and not misread:
            around = (w for w in wrong if w[1] != "inherited" and _contains(w[0].name, region.name))
            region, status, comparison = next(around, first)
        alone = misread or region is first[0]
        experts = self.chosen_by(region)
        return ModuleDivergence(
            str(self.candidate),
            self.runs.case.name,
            region.name,
            region.module,
            self.spans(first[0], first[1] == "inherited" and not misread),
            comparison,
            status != "inherited",
            tuple(e.line.span for e in region.entries) if alone else (),
            self.hints(region) if status == "introduced" else (),
            region.shared,
            f"experts {experts.mismatch}" if experts and not experts.passed else "",
        )

    def _in_choices(self, wrong: Collection[str]) -> tuple[Choice, Comparison] | None:
        """The first wrong choice of a router that is right."""
        found = (f for f in self.chosen if f[0].router.name not in wrong and not f[1].passed)
        return next((f for f in found if not self.follows_tie(f[0].ids)), None)

    def _precedes(self, choice: Choice, region: Region) -> bool:
        order = self.values.order
        return order.index(choice.ids) < order.index(region.exits[-1])

    def _chosen_wrongly(self, choice: Choice, comparison: Comparison) -> ModuleDivergence:
        return ModuleDivergence(
            str(self.candidate),
            self.runs.case.name,
            choice.router.name,
            choice.router.module,
            self.values.node(choice.ids).spans,
            replace(comparison, mismatch=f"experts {comparison.mismatch}"),
            introduced=True,
        )

    def _reads_what_agrees(self, region: Region) -> bool:
        right = {key for r, status, _ in self.regions if status == "agrees" for key in r.exits}
        return bool(region.reads) and set(region.reads) <= right

    def _in_outputs(self) -> ModuleDivergence | None:
        """An output that differs although every region agrees."""
        wrong = (o for o in self.outputs if not o[3].passed and self.tied is None)
        for name, theirs, node, comparison in wrong:
            return ModuleDivergence(
                str(self.candidate),
                self.runs.case.name,
                f"output {name}",
                theirs,
                self.values.node(self.values.maker(("", node.id))).spans,
                comparison,
                introduced=True,
            )
        return None

    def spans(self, region: Region, inherits: bool) -> tuple[Span, ...]:
        """Where a region is called, or what it reads is computed."""
        key = region.reads[0] if inherits and region.reads else region.exits[-1]
        spans = self.values.node(key).spans
        if inherits:
            return spans
        return tuple(s for s in spans if not in_std(s)) or spans

    def hints(self, region: Region) -> tuple[Hint, ...]:
        """Which conventions would make the graph as written agree with the module, here."""
        exact = self.runs.exact
        alone = exact.alone(region)
        function = self.values.functions[region.path]
        if alone is None or alone[1].key[1] not in function:
            return ()
        _, pair, gold, base = alone
        node, result = self.values.node(pair.key), pair.key[1]
        program, weights = self.against.session.program, self.against.session.weights
        truth = self.against.stage.truth(self.runs.case).gold.values
        sizes = bind_inputs(program, self.runs.case.inputs, Precision("f64")).sizes
        part = section(program, function, region.path, region.inside, (result,), sizes)
        fed = {name: truth[region.path, i] for name, i in part.feeds.items()}

        def agrees(tried: Alternative) -> bool:
            made = Reference(tried.program, tried.weights, "f64").truth(fed).gold.outputs
            (value,) = made.values()
            ours = self.runs.layout.arranged(value, node, gold.shape)
            return ours is not None and exact.compared(node, ours, gold, base).passed

        parameters = {p.path: p for p in program.parameters}
        return hints(Setting(part.program, weights, parameters, self.against.numbers), agrees)


@dataclass(slots=True)
class _Table:
    """Grows with every trial: the worst of each region by candidate, and where each first differs."""

    rows: dict[str, Row] = field(default_factory=dict)
    left_out: dict[LeftOut, None] = field(default_factory=dict)
    divergences: dict[Candidate, ModuleDivergence] = field(default_factory=dict)

    def add(self, trial: _Trial) -> None:
        self.left_out |= dict.fromkeys(trial.runs.exact.left_out)
        for region, status, comparison in trial.regions:
            self.enter(trial, region.name, region.module, Cell(status, comparison.error))
            chosen = trial.chosen_by(region)
            if chosen is not None:
                wrong: Status = "introduced" if status == "agrees" else status
                cell = Cell("agrees" if chosen.passed else wrong, chosen.error)
                self.enter(trial, f"{region.name}: experts", region.module, cell)
        for name, theirs, _, comparison in trial.outputs:
            cell = Cell("agrees" if comparison.passed else "differs", comparison.error)
            self.enter(trial, f"output {name}", theirs, cell)
        if trial.candidate not in self.divergences:
            found = trial.divergence()
            if found is not None:
                self.divergences[trial.candidate] = found

    def enter(self, trial: _Trial, region: str, module: str, cell: Cell) -> None:
        row = self.rows.setdefault(region, Row(region, {}, module))
        name = str(trial.candidate)
        row.cells[name] = cell.worse(row.cells.get(name, cell))


def _contains(outer: str, inner: str) -> bool:
    return inner.startswith((f"{outer}.", f"{outer}["))
