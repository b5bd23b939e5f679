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

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from types import MappingProxyType
from typing import Literal

from ..dsl.dims import Dim, maximum, minimum, product
from ..dsl.span import Span
from .cut import cheapest_cut
from .ir.graph import Axis, Function, Node, Program, TensorType, callees
from .ir.walk import cone, join
from .passes.bounds import Visibility
from .passes.canonicalize import CANONICALIZE
from .passes.properties import ELEMENT_BYTES, VIEWS, is_elementwise, reduced_axes
from .rewrite import Edit, Session, run_pass

Kind = Literal["append", "ring", "constant", "recurrent", "last"]
Reach = Dim | None  # how many of the last positions are read; None is all of them

ZERO, ONE = Dim(), Dim.of(1)
EMPTY: Mapping[int, Reach] = MappingProxyType({})
NOMINAL = 1024  # what a size that a call decides counts for when two values are compared
FINE = 1 << 20  # parts of a byte, so that prices stay whole numbers
SUMS = frozenset({"sum", "amax", "softmax"})
REDUCES = SUMS | {"dot", "topk", "cumsum"}
LINEAR = VIEWS | {"concat", "cast", "to_float", "add", "sub"}


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
    return _together(plan_of(canonical).states())


def _together(states: Iterable[State]) -> tuple[State, ...]:
    """One state for each value, whose `count` is how many calls keep it."""
    counts: dict[State, Dim] = {}
    for state in states:
        key = replace(state, count=ONE)
        counts[key] = counts.get(key, Dim()) + state.count
    return tuple(replace(state, count=count) for state, count in counts.items())


def wider(a: Reach, b: Reach) -> Reach:
    return None if a is None or b is None else maximum(a, b)


# ------------------------------------------------------------------------ across functions


@dataclass(frozen=True, slots=True)
class Given:
    """What is known of a function's input.

    Whether it is a fact, how wide what it narrows is, and how many calls have it in common.
    """

    fact: bool = False
    narrowed: int = 0
    shared: int = 1


Histories = Mapping[int, Reach]  # by position of an input or output


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
        return tuple(self.values.states(self.chosen, inside))

    def _iterated(self, loop_id: int) -> tuple[State, ...]:
        """One state for all iterations that keep the same; `count` says how many do."""
        loop, plans = self.values.function[loop_id], self.loops[loop_id].kinds
        kinds = loop.attrs["kinds"]
        assert isinstance(kinds, tuple)
        path = f"{loop.attrs.string('path')}[]"
        states = [state for kind in kinds for state in plans[str(kind)].states()]
        placed = (replace(s, place=join(path, s.place) if s.place else path) for s in states)
        return _together(placed)


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
            _want(demand, function.output_ids[index], reach)
        loops: dict[int, LoopPlan] = {}
        for loop in (n for n in function.nodes if n.op == "repeat"):
            loops[loop.id] = plan = self._loop(values, loop)
            for position, reach in self._read_of(loop, plan).items():
                _want(demand, loop.inputs[position], reach)
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
                        _want(carried, position, reach)
            if carried == before:
                return LoopPlan(kinds, carried)

    def _read_of(self, loop: Node, plan: LoopPlan) -> dict[int, Reach]:
        """The operands of a repeat whose history is read: of what it carries, by its first layer."""
        first, *_ = callees(loop)
        found: dict[int, Reach] = {}
        for name, body in plan.kinds.items():
            for position, reach in body.inputs.items():
                if name == first or position >= loop.attrs.integer("carried"):
                    _want(found, position, reach)
        return found


def _want(demand: dict[int, Reach], node_id: int, reach: Reach) -> None:
    """Ask for the history of a value, on top of what was asked before."""
    demand[node_id] = wider(demand.get(node_id, Dim()), reach)


# -------------------------------------------------------------------------- in a function


@dataclass(frozen=True, slots=True)
class Frame:
    """Which axes are time, and which are rows of the batch."""

    decode: str
    rows: frozenset[Axis]
    sizes: Mapping[str, int]

    @staticmethod
    def of(program: Program) -> Frame:
        inputs = [program.main[i].axes for i in program.main.inputs]
        timed = [axes for axes in inputs if any(a.name == program.decode for a in axes)]
        sizes = program.sizes
        rows = {a for axes in timed for a in axes if not a.size.symbols() <= sizes.keys()}
        return Frame(program.decode, frozenset(rows), sizes)

    def times(self, kind: TensorType) -> list[Axis]:
        return [a for a in kind.axes if self.decode in (a.name, a.time)]

    def features(self, kind: TensorType) -> tuple[Axis, ...]:
        """The axes that one position has, or one row of the batch."""
        skipped = {*self.rows, *self.times(kind)}
        return tuple(a for a in kind.axes if a not in skipped)

    def bytes(self, kind: TensorType) -> Dim:
        held = product([a.size for a in self.features(kind)])
        return held.substitute(self.sizes) * ELEMENT_BYTES[kind.dtype]

    def is_fixed(self, axis: Axis) -> bool:
        return axis.size.symbols() <= self.sizes.keys()

    def width(self, kind: TensorType) -> int:
        sizes = [a.size.evaluate(self.sizes) for a in kind.axes if self.is_fixed(a)]
        return product([Dim.of(n) for n in sizes]).evaluate({})


class Values:
    """One function: what may be kept, what can be made again, and where positions meet."""

    def __init__(self, program: Program, function: Function, given: tuple[Given, ...]) -> None:
        self.program = program
        self.function = function
        self.frame = Frame.of(program)
        self.edit = Edit(program, function, Session())
        self.is_main = function is program.main
        self.given = dict(zip(function.inputs, given, strict=True)) if not self.is_main else {}
        self.users = {i: list(dict.fromkeys(found)) for i, found in function.users().items()}

    # ------------------------------------------------------------------------- what a value is

    @cached_property
    def data(self) -> frozenset[int]:
        """Values that come from a numeric input or a looked-up row: neither weights nor facts."""
        found: set[int] = set()
        for node in self.function.nodes:
            if node.op == "input":
                known = self.given.get(node.id)
                fact = known.fact if known else node.type.dtype in ("int", "bool")
                is_data = not fact
            else:
                is_data = self.is_lookup(node) or not found.isdisjoint(node.inputs)
            found |= {node.id} if is_data else set()
        return frozenset(found)

    def is_lookup(self, node: Node) -> bool:
        """Whether what a call gives picks rows of a table, or is multiplied with weights as a vector."""
        if node.op not in ("take", "dot") or node.type.dtype in ("int", "bool"):
            return False
        return any(self.function[i].op == "input" for i in cone(self.function, node.inputs))

    def key(self, node: Node) -> Axis | None:
        """The axis of a value of earlier positions: of the timeline, but not the decoded axis itself."""
        times = self.frame.times(node.type)
        renamed = len(times) == 1 and times[0].name != self.program.decode
        return times[0] if renamed else None

    @cached_property
    def keepable(self) -> frozenset[int]:
        """Values that could be kept: of one position, or of none."""
        return frozenset(
            n.id
            for n in self.function.nodes
            if n.id in self.data and len(n.types) == 1 and len(self.frame.times(n.type)) <= 1
        )

    def operands(self, node: Node) -> list[int]:
        """What a value is made of, along the same timeline or none."""
        timed = bool(self.frame.times(node.type))
        return [
            i
            for i in dict.fromkeys(node.inputs)
            if i in self.keepable and bool(self.frame.times(self.function[i].type)) == timed
        ]

    # ------------------------------------------------------------------ what can be made again

    def is_light(self, node: Node) -> bool:
        """Elementwise, a view, or a sum along axes of fixed size."""
        if is_elementwise(node) or node.op in VIEWS | {"concat"}:
            return True
        if node.op in SUMS or (node.op == "dot" and self.weighted(node) is None):
            return all(self.frame.is_fixed(axis) for axis in reduced_axes(node))
        return node.op == "take" and node.inputs[0] in self.data and node.inputs[1] not in self.data

    def weighted(self, node: Node) -> Node | None:
        """The data operand of a product with weights."""
        if node.op != "dot":
            return None
        found = [self.function[i] for i in node.inputs if i in self.data]
        return found[0] if len(found) == 1 else None

    @cached_property
    def narrowed(self) -> dict[int, int]:
        """For a value made by projections alone: the width of the narrowest thing projected; else 0."""
        found: dict[int, int] = {}
        for node in self.function.nodes:
            source = self.weighted(node)
            if source is not None:
                found[node.id] = self.frame.width(source.type)
            elif node.op == "input" and node.id in self.data:
                found[node.id] = self.given[node.id].narrowed if node.id in self.given else 0
            elif node.id in self.data:
                above = [found[i] for i in node.inputs if i in self.data]
                found[node.id] = min(above, default=0) if self.is_light(node) else 0
        return found

    def widens_a_latent(self, node: Node) -> bool:
        """A product with weights of a narrower value that was narrowed, which can wait for the use."""
        latent = self.weighted(node)
        if latent is None:
            return False
        width = self.frame.width(latent.type)
        narrow = width < min(self.narrowed[latent.id], self.frame.width(node.type))
        return narrow and self.is_absorbed(node)

    def is_absorbed(self, node: Node) -> bool:
        """Whether linear maps lead from a value to products, and to nothing else that reads history."""
        todo, seen = [node.id], {node.id}
        while todo:
            here = self.function[todo.pop()]
            for user in (self.function[i] for i in self.users[here.id] if i in self.read_later):
                if self.meets(here, user):
                    if user.op != "dot":
                        return False
                elif user.id not in seen:
                    if not self.is_linear(user, here):
                        return False
                    seen.add(user.id)
                    todo.append(user.id)
        return True

    def is_linear(self, node: Node, operand: Node) -> bool:
        """Whether a node is linear in an operand, alike at all positions."""
        if node.op in ("mul", "div"):
            if node.inputs.count(operand.id) > 1 or (node.op, node.inputs[-1]) == (
                "div",
                operand.id,
            ):
                return False
            others = [self.function[i] for i in node.inputs if i != operand.id]
            return all(o.id not in self.data and not self.frame.times(o.type) for o in others)
        return node.op in LINEAR

    # -------------------------------------------------------------------- where positions meet

    def meets(self, node: Node, user: Node) -> bool:
        """Whether `user` needs all of a value that was kept: it has other positions, or sums them."""
        if user.op == "repeat" or node.id not in self.keepable:
            return False
        if self.behind(user, node) is not None:
            return False
        times = self.frame.times(user.type)
        key = self.key(node)
        if key is not None:
            return user.op != "rename" and times != [key]
        if self.frame.times(node.type):
            return self.reads_along(user, node) or self.hides_a_meeting(user)
        return bool(times) and not self.is_start(node, user)

    def is_start(self, node: Node, user: Node) -> bool:
        """The first state of a scan is read once."""
        if user.op != "scan":
            return False
        first = user.attrs.integer("stepped")
        states = range(first, first + user.attrs.integer("states"))
        return all(p in states for p, i in enumerate(user.inputs) if i == node.id)

    @cached_property
    def read_later(self) -> frozenset[int]:
        """What is on the way from a value to where positions meet, or meets there."""
        found: set[int] = set()
        for node in reversed(self.function.nodes):
            users = [self.function[i] for i in self.users[node.id]]
            meeting = [u.id for u in users if self.meets(node, u)]
            if node.id in self.keepable and (meeting or any(u.id in found for u in users)):
                found |= {node.id, *meeting}
        return frozenset(found)

    @cached_property
    def mixed(self) -> dict[int, Reach]:
        """The values whose history something reads, and how much of it."""
        found: dict[int, Reach] = {}
        for node in self.function.nodes:
            users = [self.function[i] for i in self.users[node.id]]
            if any(self.meets(node, user) for user in users):
                _want(found, node.id, self.window(node))
        return found

    def window(self, node: Node) -> Reach:
        """How many of the last positions the reductions below a value of earlier positions can see."""
        key = self.key(node)
        if key is None:
            return None
        query = next(
            (a for n in self.function.nodes for a in n.axes if a.name == self.program.decode), None
        )
        widest: Reach = Dim()
        todo, seen = [(node.id, key)], {(node.id, key)}
        while todo and query is not None and widest is not None:
            current, axis = todo.pop()
            for user in (self.function[i] for i in self.users[current]):
                if _reduces(user, axis):
                    seen_back = Visibility(self.edit, axis, query).support(user).lower
                    widest = wider(widest, None if seen_back is None else seen_back + 1)
                    continue
                below = (
                    dict(user.attrs.pairs("pairs")).get(axis, axis) if user.op == "rename" else axis
                )
                if below not in user.axes:
                    return None
                if (user.id, below) not in seen:
                    seen.add((user.id, below))
                    todo.append((user.id, below))
        return widest if query is not None else None

    # ------------------------------------------------------------------------------ the cut

    def chosen(self, demand: Mapping[int, Reach]) -> dict[int, Reach]:
        """The values to keep, with how much of each is read."""
        wanted = demand.keys() & self.keepable
        needed: set[int] = set()
        todo = list(wanted)
        while todo:
            current = todo.pop()
            if current not in needed:
                needed.add(current)
                todo += self.operands(self.function[current])
        nodes = [n for n in self.function.nodes if n.id in needed]
        price = {n.id: self.price(n) for n in nodes}
        made_once = {n.id for n in nodes if not (self.is_light(n) or self.widens_a_latent(n))}
        operands = {n.id: [] if n.id in made_once else self.operands(n) for n in nodes}
        kept = cheapest_cut(price, operands, made_once, wanted)
        return {i: self.reach(i, kept, operands, demand) for i in kept}

    def price(self, node: Node) -> int:
        """Bytes, finely: a part of what several calls have in common; of equals the input is cheapest."""
        size = self.frame.bytes(node.type)
        nominal = dict.fromkeys(size.symbols(), NOMINAL)
        bytes_ = size.evaluate(nominal) * FINE
        given = self.given.get(node.id)
        return bytes_ // given.shared - 1 if given is not None else bytes_

    def reach(
        self,
        start: int,
        kept: set[int],
        operands: Mapping[int, list[int]],
        demand: Mapping[int, Reach],
    ) -> Reach:
        """The most that is read of what is made of a kept value."""
        below: dict[int, list[int]] = {}
        for node_id, above in operands.items():
            for i in above:
                below.setdefault(i, []).append(node_id)
        found: Reach = Dim()
        todo, seen = [start], {start}
        while todo:
            current = todo.pop()
            if current in demand:
                found = wider(found, demand[current])
            new = [i for i in below.get(current, ()) if i not in kept and i not in seen]
            seen |= set(new)
            todo += new
        return found

    # ----------------------------------------------------------------------------- states

    def given_to(self, loop: Node, body: Function) -> tuple[Given, ...]:
        """What a body may know of its inputs: of what changes from iteration to iteration, nothing."""
        carried, kinds = loop.attrs.integer("carried"), loop.attrs["kinds"]
        assert isinstance(kinds, tuple)
        found = [Given()] * carried
        for i in loop.inputs[carried:]:
            found.append(Given(i not in self.data, self.narrowed.get(i, 0), len(kinds)))
        return (*found, *[Given(fact=True)] * (len(body.inputs) - len(found)))

    def states(
        self, chosen: Mapping[int, Reach], inside: Mapping[int, tuple[State, ...]]
    ) -> Iterator[State]:
        """What this function keeps, and its loops within, in the order of the text."""
        for node in self.function.nodes:
            if node.id in chosen:
                yield self.state(node, self.kind(node, chosen[node.id]), chosen[node.id])
            yield from inside.get(node.id, ())
            yield from self.recurrent(node)
            if node.id not in chosen:
                yield from self.recent(node)

    def kind(self, node: Node, reach: Reach) -> Kind:
        if not self.frame.times(node.type):
            return "constant"
        return "append" if reach is None else "ring"

    def state(self, node: Node, kind: Kind, reach: Reach, index: int = 0) -> State:
        held = node.types[index]
        return State(
            kind,
            self.place(node),
            held,
            self.frame.features(held),
            self.frame.bytes(held),
            reach.substitute(self.frame.sizes) if reach is not None else None,
            span=node.spans[-1] if node.spans else None,
            function=self.function.name,
            node=node.id,
        )

    def place(self, node: Node) -> str:
        """The projection that a value comes from, or else the region of its text."""
        todo, seen, found = [node], {node.id}, []
        while todo:
            here = todo.pop()
            if self.weighted(here) is not None:
                found.append(_owner(self.function, here))
                continue
            above = [self.function[i] for i in here.inputs if i in self.data and i not in seen]
            seen |= {n.id for n in above}
            todo += above if self.is_light(here) else []
        names = [name for name in dict.fromkeys(found) if name]
        region = next((o.region for o in node.origins if o.region), "")
        return names[0] if len(names) == 1 else region

    def recurrent(self, node: Node) -> Iterator[State]:
        """What a scan or a running sum along the decoded axis passes on."""
        if node.op == "scan" and self.is_decoded(node.attrs.axis("axis")):
            count = len(node.types)
            for index in range(count - node.attrs.integer("states"), count):
                yield self.state(node, "recurrent", None, index)
        if (
            node.op == "cumsum"
            and self.is_decoded(node.attrs.axis("axis"))
            and node.id in self.data
        ):
            yield self.state(node, "recurrent", None)

    def recent(self, node: Node) -> Iterator[State]:
        """The last inputs of a convolution or a shift."""
        found = [self.behind(self.function[user], node) for user in self.users[node.id]]
        furthest = reduce(maximum, [n for n in found if n is not None], ZERO)
        if furthest != ZERO:
            yield self.state(node, "last", furthest)

    def is_decoded(self, axis: Axis) -> bool:
        return self.program.decode in (axis.name, axis.time)

    # ------------------------------------------------------------------- reads of earlier slots

    def hides_a_meeting(self, node: Node) -> bool:
        """A scan along another axis, in whose steps positions meet: it reads all of what it is given."""
        if node.op != "scan" or self.is_decoded(node.attrs.axis("axis")):
            return False
        times = [self.frame.times(n.type) for n in self.program.body(node).nodes]
        return any(axis.name != self.program.decode for axes in times for axis in axes)

    def reads_along(self, node: Node, source: Node) -> bool:
        """A take of `source` along the timeline."""
        taken = node.op == "take" and node.inputs[0] == source.id and source.id in self.data
        return taken and self.is_decoded(node.attrs.axis("axis"))

    def behind(self, node: Node, source: Node) -> Dim | None:
        """How many earlier entries of `source` a take reads, where it reads at most so many."""
        return self.lag(node) if self.reads_along(node, source) else None

    def lag(self, take: Node) -> Dim | None:
        """How far before the slot a take along the timeline reads, where that is bounded."""
        offset = self.offset(self.function[take.inputs[1]])
        if offset is None or offset.slots != 1:
            return None
        known = offset.low.symbols() <= self.frame.sizes.keys()
        return maximum(-offset.low, 0) if known else None

    def offset(self, node: Node) -> _Offset | None:
        """A whole number as a multiple of the slot and a bounded rest."""
        if node.op == "const":
            value = node.attrs["value"]
            known = isinstance(value, int | Dim) and not isinstance(value, bool)
            return _Offset(0, Dim.of(value), Dim.of(value)) if known else None  # type: ignore[arg-type]
        if node.op == "index":
            axis = node.attrs.axis("axis")
            slots = axis.name == self.program.decode
            return _Offset(1) if slots else _Offset(0, Dim(), axis.size - 1)
        if node.op in VIEWS:
            return self.offset(self.function[node.inputs[0]])
        rule = _OFFSETS.get(node.op)
        parts = [self.offset(self.function[i]) for i in node.inputs[-2:]] if rule else []
        a, b = parts if len(parts) == 2 else (None, None)
        return rule(a, b) if rule and a is not None and b is not None else None


@dataclass(frozen=True, slots=True)
class _Offset:
    """`slots` times the slot, plus something from `low` to `high`."""

    slots: int
    low: Dim = ZERO
    high: Dim = ZERO


def _added(a: _Offset, b: _Offset) -> _Offset:
    return _Offset(a.slots + b.slots, a.low + b.low, a.high + b.high)


def _subtracted(a: _Offset, b: _Offset) -> _Offset:
    return _Offset(a.slots - b.slots, a.low - b.high, a.high - b.low)


def _multiplied(a: _Offset, b: _Offset) -> _Offset | None:
    factor = b.low.constant
    if b.slots or b.low != b.high or factor is None or factor < 0:
        return None
    return _Offset(a.slots * factor, a.low * factor, a.high * factor)


def _either(a: _Offset, b: _Offset) -> _Offset | None:
    same = a.slots == b.slots
    return _Offset(a.slots, minimum(a.low, b.low), maximum(a.high, b.high)) if same else None


def _not_below(a: _Offset, b: _Offset) -> _Offset | None:
    """A slot's offset or a number, whichever is greater: not further back than the offset."""
    if a.slots == b.slots:
        return _Offset(a.slots, maximum(a.low, b.low), maximum(a.high, b.high))
    slot, number = (a, b) if a.slots else (b, a)
    return replace(slot, high=maximum(slot.high, number.high)) if slot.slots == 1 else None


_OFFSETS: dict[str, Callable[[_Offset, _Offset], _Offset | None]] = {
    "add": _added,
    "sub": _subtracted,
    "mul": _multiplied,
    "where": _either,
    "max": _not_below,
}


def _reduces(node: Node, axis: Axis) -> bool:
    """Whether a node sums, or chooses among, the entries of an axis."""
    return node.op in REDUCES and axis in reduced_axes(node)


def _owner(function: Function, projection: Node) -> str:
    """What the weight of a projection belongs to: its path but for the last name."""
    todo = list(projection.inputs)
    while todo:
        node = function[todo.pop()]
        if node.op == "weight":
            return node.attrs.string("path").rpartition(".")[0]
        todo += node.inputs if node.op in VIEWS | {"cast", "mul", "take"} else []
    return ""
