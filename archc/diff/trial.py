"""One candidate beside the class on one case: regions with modules, outputs by name.

A region is compared where it ends; what is padding is left out. Where one differs, the module is run
again on the region's own input: what is wrong then is *introduced*, else it came to the region wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..backends.base import Array, ValueKey, bind_inputs
from ..compiler.ir.graph import Node
from ..compiler.ops import ModelDType, Precision
from ..equality import Comparison, compare
from .chosen import Chosen
from .inputs import Case
from .matching import Layout, Region
from .peer import Call, PeerRun
from .port import EXACT, Port
from .report import LeftOut, Status, listed
from .session import Candidate
from .values import Values, same_values

OUTPUTS = {"hidden": "last_hidden_state", "pooled": "pooler_output"}  # names that classes use
RULE: dict[ModelDType, ModelDType] = {"f64": "f32"}  # classes keep islands of float32 in float64


@dataclass
class Runs:
    """The runs of the class on one case, by dtype."""

    port: Port
    case: Case
    _made: dict[ModelDType, PeerRun] = field(default_factory=dict)
    _ignoring: dict[str, bool] = field(default_factory=dict)

    def __getitem__(self, dtype: ModelDType) -> PeerRun:
        if dtype not in self._made:
            self._made[dtype] = self.port.peer.run(self.case.inputs, dtype)
        return self._made[dtype]

    @cached_property
    def exact(self) -> Trial:
        """The text itself."""
        return Trial(self, EXACT)

    @cached_property
    def layout(self) -> Layout:
        return Layout.of(self.port.session.program, self.case.inputs, self.sizes)

    @cached_property
    def sizes(self) -> dict[str, int]:
        inputs = self.case.inputs
        return bind_inputs(self.port.session.program, inputs, Precision("f64")).sizes

    def ignores(self, module: str) -> bool:
        """Whether a module returns the same whatever it is given, as a table of positions does."""
        if module not in self._ignoring:
            self._ignoring[module] = self._ignores(module)
        return self._ignoring[module]

    def _ignores(self, module: str) -> bool:
        call = self["f64"].calls[module][-1]
        given, before = call.given(), self["f64"].returned(module)
        if given is None or before is None:
            return False
        after = self.port.peer.again(module, call, np.zeros_like(given))
        return after is not None and np.array_equal(before, after)


@dataclass(frozen=True, slots=True)
class Pair:
    """A value that a region returns, and the call of its module that it is."""

    key: ValueKey
    call: int
    value: Array  # in the order of the module's


@dataclass
class Trial:
    """One candidate on one case."""

    runs: Runs
    candidate: Candidate

    @property
    def port(self) -> Port:
        return self.runs.port

    @property
    def dtype(self) -> ModelDType:
        """That of the rule, and of the run of the class that it allows for."""
        return RULE.get(self.candidate.dtype, self.candidate.dtype)

    @property
    def values(self) -> Values:
        return self.port.stage.values

    @cached_property
    def ran(self) -> tuple[Mapping[str, Array], Mapping[ValueKey, Array]]:
        """Outputs and values, by the keys of the graph as written."""
        session = self.port.session
        stage = session.stage_of(self.candidate)
        outputs, values = session.executable(self.candidate).trace(
            stage.reference.rounded(self.runs.case.inputs)
        )
        if not self.candidate.level:
            return outputs, values
        pairs = same_values(stage.optimised)
        return outputs, {before: values[after] for before, after in pairs if after in values}

    def pair(self, region: Region) -> Iterator[Pair]:
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
                yield self.formed(Pair(key, call, value), region)
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
        if region.reads and self.runs.ignores(region.module):
            return "the module makes nothing of what it is given"
        if len(calls) > 1:
            return f"the class calls the module {len(calls)} times"
        return f"the module returns another shape, {list(result.shape)}"

    def formed(self, pair: Pair, region: Region) -> Pair:
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
                return Pair(key, pair.call, value)
        return pair

    def returned(self, region: Region, pair: Pair) -> tuple[Array, Array]:
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

    def seen(self, key: ValueKey, shape: tuple[int, ...]) -> Array:
        """Which entries of a value, arranged, are no padding."""
        return self.runs.layout.seen(self.values.node(key), shape)

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
        return None if apart and region.reads and self.runs.ignores(region.module) else worst

    @property
    def base(self) -> PeerRun:
        return self.runs[self.dtype]

    @cached_property
    def regions(self) -> list[tuple[Region, Status, Comparison]]:
        """How each region that can be compared does."""
        found = ((region, self.region(region)) for region in self.port.matched.regions)
        return [(r, self.status(r, whole), whole) for r, whole in found if whole is not None]

    @cached_property
    def chosen(self) -> Chosen:
        """Which experts it chooses."""
        return Chosen(self)

    @cached_property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The regions that are not compared, although a module has their tensors as its own."""
        compared = {region.name for region, _, _ in self.regions}
        others = (
            LeftOut(region.name, region.module, self.unpaired(region))
            for region in self.port.matched.regions
            if region.entries and region.name not in compared
        )
        return (*self.port.matched.left_out, *others)

    @cached_property
    def outputs(self) -> list[tuple[str, str, Node, Comparison]]:
        return list(self._outputs())

    def _outputs(self) -> Iterator[tuple[str, str, Node, Comparison]]:
        """Each output that the class has too: its name there, and how it compares."""
        main = self.port.session.program.main
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

    def alone(self, region: Region) -> tuple[Comparison, Pair, Array, Array] | None:
        """How a region compares with its module run on the region's input; also what that made.

        None where the module cannot be given that input.
        """
        for pair in self.pair(region):
            call = self.runs["f64"].calls[region.module][pair.call]
            given = self.given(region, call)
            gold, base = self.returned(region, pair)
            made = gold
            if given is not None:
                result = self.port.peer.again(region.module, call, given)
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
                seen = self.seen(key, theirs.shape)
                mixed = theirs.copy()
                mixed[seen] = value.astype(theirs.dtype)[seen]
                return mixed
        return None

    def status(self, region: Region, whole: Comparison) -> Status:
        if whole.passed:
            return "agrees"
        if self.chosen.after_tie(region.exits[-1]):
            return "inherited"
        alone = self.alone(region)
        if alone is None:
            return "differs"
        return "inherited" if alone[0].passed else "introduced"
