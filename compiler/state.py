"""What a model keeps from one decoded token to the next: the cheapest cut of its graph.

A position is decoded by running the graph on its row alone. What the row reads of earlier positions
must have been kept, or be made again from what was kept; so the state is a set of values that
separates the inputs from every place where positions meet, and of all such sets the one of fewest
bytes. Positions meet where a value renamed along the decoded axis is used with another axis of that
timeline or is summed over. Values without the axis, such as an encoder's, are kept the same way,
once for a row of the batch. Facts of time (masks, slots, segments, token ids) are given, not kept.

A value is made again for all earlier positions in every step, so only what is cheap may be:
elementwise ops, views, and sums along axes of fixed size. Norms, rotary turns and repeated heads are.
A lookup is made once: what stands above the token embedding is never kept in its stead. So is a product
with a weight, but for one case. A *latent* is made by projections that narrow; a projection that
widens it, with nothing but linear maps up to the products it enters, need not be made for each position:
(W c) . q = c . (W^T q), at the price of as many multiplications for a key as the latent is wide. That
a latent is narrow makes this cheap, and it is the only reason: keys and values of plain attention could be
absorbed into the stream they are projections of, at the price of its full width for every head.
Among equal cuts the one nearest the use is taken: keys after rotary turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from types import MappingProxyType
from typing import Literal

from ..dsl.dims import Dim, maximum
from ..dsl.span import Span
from .ir.graph import Axis, Function, Node, Program, TensorType, callees
from .ir.walk import join
from .key_axes import with_key_axes
from .passes.canonicalize import CANONICALIZE
from .rewrite import Session, run_pass
from .values import ONE, ZERO, Given, Reach, Values, want

Kind = Literal["append", "ring", "constant", "recurrent", "last"]
Histories = Mapping[int, Reach]  # by position of an input or output
EMPTY: Histories = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class State:
    """One value that is kept, in `count` layers or calls.

    `append` grows by `bytes` with each token; `ring` does up to the last `capacity` tokens; `last` is
    `bytes` for each of the last `capacity` inputs; `constant` and `recurrent` are `bytes` for a row
    of the batch. `node` is its id in `function` of the canonical program, `place` the projection or
    the region that it comes from, `features` its axes but for time and the rows of the batch.
    """

    kind: Kind
    place: str
    type: TensorType
    features: tuple[Axis, ...]
    bytes: Dim
    capacity: Reach = None
    count: Dim = ONE
    span: Span | None = None
    function: str = ""
    node: int = -1

    @property
    def grows(self) -> bool:
        return self.kind in ("append", "ring")

    @property
    def total(self) -> Dim:
        """Bytes in all layers: for a token where it grows, else for a row of the batch."""
        held = self.capacity if self.kind == "last" and self.capacity is not None else ONE
        return self.bytes * self.count * held


def state_of(program: Program) -> tuple[State, ...]:
    """The states of a program that declares `decode`, in the order of the text; none of any other."""
    if not program.decode:
        return ()
    canonical, _ = run_pass(CANONICALIZE, program, Session())
    return _together(plan_of(with_key_axes(canonical)).states())


def _together(states: Iterable[State]) -> tuple[State, ...]:
    """One state for each value, whose `count` is how many calls keep it."""
    counts: dict[State, Dim] = {}
    for state in states:
        key = replace(state, count=ONE)
        counts[key] = counts.get(key, Dim()) + state.count
    return tuple(replace(state, count=count) for state, count in counts.items())


@dataclass(frozen=True, slots=True)
class Plan:
    """What a function keeps: values with how much of each is read, and what its loops keep.

    `inputs` are the operands, by position, whose history it is given: of what a repeat captures one
    history serves all layers that read it, of what it carries a layer gives the next the history.
    """

    values: Values
    chosen: Histories
    inputs: Histories
    loops: Mapping[int, LoopPlan]

    def states(self) -> tuple[State, ...]:
        """The states of the function and of its loops, in the order of the text."""
        inside = {loop: self._iterated(loop) for loop in self.loops}
        return tuple(self._kept(inside))

    def _iterated(self, loop_id: int) -> tuple[State, ...]:
        """One state for all iterations that keep the same; `count` says how many do."""
        loop, plans = self.values.function[loop_id], self.loops[loop_id].kinds
        kinds = loop.attrs["kinds"]
        assert isinstance(kinds, tuple)
        path = f"{loop.attrs.string('path')}[]"
        states = [state for kind in kinds for state in plans[str(kind)].states()]
        placed = (replace(s, place=join(path, s.place) if s.place else path) for s in states)
        return _together(placed)

    def _kept(self, inside: Mapping[int, tuple[State, ...]]) -> Iterator[State]:
        for node in self.values.function.nodes:
            reach = self.chosen.get(node.id)
            if node.id in self.chosen:
                yield self._state(node, self._kind(node, reach), reach)
            yield from inside.get(node.id, ())
            yield from self._recurrent(node)
            if node.id not in self.chosen:
                yield from self._recent(node)

    def _kind(self, node: Node, reach: Reach) -> Kind:
        if not self.values.frame.times(node.type):
            return "constant"
        return "append" if reach is None else "ring"

    def _state(self, node: Node, kind: Kind, reach: Reach, index: int = 0) -> State:
        held, frame = node.types[index], self.values.frame
        return State(
            kind,
            self.values.place(node),
            held,
            frame.features(held),
            frame.bytes(held),
            reach.substitute(frame.sizes) if reach is not None else None,
            span=node.spans[-1] if node.spans else None,
            function=self.values.function.name,
            node=node.id,
        )

    def _recurrent(self, node: Node) -> Iterator[State]:
        """What a scan or a running sum along the decoded axis passes on."""
        if node.op not in ("scan", "cumsum"):
            return
        if not self.values.is_decoded(node.attrs.axis("axis")):
            return
        if node.op == "scan":
            count = len(node.types)
            for index in range(count - node.attrs.integer("states"), count):
                yield self._state(node, "recurrent", None, index)
        elif node.id in self.values.data:
            yield self._state(node, "recurrent", None)

    def _recent(self, node: Node) -> Iterator[State]:
        """The last inputs of a convolution or a shift."""
        values = self.values
        found = [values.behind(values.function[user], node) for user in values.users[node.id]]
        furthest = reduce(maximum, [n for n in found if n is not None], ZERO)
        if furthest != ZERO:
            yield self._state(node, "last", furthest)


@dataclass(frozen=True, slots=True)
class LoopPlan:
    """The plan of each kind of a repeat, and the carried values that are carried with histories."""

    kinds: Mapping[str, Plan]
    carried: Histories


def plan_of(program: Program) -> Plan:
    """The plan of a canonical program that declares `decode`."""
    return _Placement(program).of(program.main, ())


@dataclass(slots=True)
class _Placement:
    """The cuts of all functions. A call is known by what it is given and what is wanted of it."""

    program: Program
    known: dict[tuple[str, tuple[Given, ...], frozenset[tuple[int, Reach]]], Plan] = field(
        default_factory=dict
    )

    def of(self, function: Function, given: tuple[Given, ...], wanted: Histories = EMPTY) -> Plan:
        key = (function.name, given, frozenset(wanted.items()))
        if key not in self.known:
            self.known[key] = self._plan(Values(self.program, function, given), wanted)
        return self.known[key]

    def _plan(self, values: Values, wanted: Histories) -> Plan:
        function = values.function
        demand = dict(values.mixed)
        for index, reach in wanted.items():
            want(demand, function.output_ids[index], reach)
        loops: dict[int, LoopPlan] = {}
        for loop in (n for n in function.nodes if n.op == "repeat"):
            loops[loop.id] = plan = self._loop(values, loop)
            for position, reach in self._read_of(loop, plan).items():
                want(demand, loop.inputs[position], reach)
        chosen = values.chosen(demand)
        given = {i: r for i, r in chosen.items() if i in values.given}
        kept = {i: r for i, r in chosen.items() if i not in given}
        inputs = {function.inputs.index(i): reach for i, reach in given.items()}
        return Plan(values, kept, inputs, loops)

    def _loop(self, values: Values, loop: Node) -> LoopPlan:
        """What one layer reads of a carried value's history, all layers give the next."""
        bodies = [self.program.function(name) for name in callees(loop)]
        count = loop.attrs.integer("carried")
        carried: dict[int, Reach] = {}
        while True:
            kinds = {b.name: self.of(b, values.given_to(loop, b), carried) for b in bodies}
            before = dict(carried)
            for plan in kinds.values():
                for position, reach in plan.inputs.items():
                    if position < count:
                        want(carried, position, reach)
            if carried == before:
                return LoopPlan(kinds, carried)

    def _read_of(self, loop: Node, plan: LoopPlan) -> dict[int, Reach]:
        """The operands of a repeat whose history is read: of what it carries, by its first layer."""
        first, *_ = callees(loop)
        found: dict[int, Reach] = {}
        for name, body in plan.kinds.items():
            for position, reach in body.inputs.items():
                if name == first or position >= loop.attrs.integer("carried"):
                    want(found, position, reach)
        return found
