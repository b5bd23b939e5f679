"""The values of one function as decoding sees them: what may be kept, what can be made again, and where
positions meet.

`state.py` says why, and puts the cuts of all functions together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ..dsl.dims import Dim, maximum, product
from .cut import cheapest_cut
from .ir.graph import Axis, Function, Node, Program, TensorType, elements
from .ir.walk import cone
from .passes.bounds import Visibility
from .passes.properties import ELEMENT_BYTES, ROW_OPS, VIEWS, is_elementwise, reduced_axes
from .rewrite import Edit, Session

Reach = Dim | None  # how many of the last positions are read; None is all of them

ZERO, ONE = Dim(), Dim.of(1)
NOMINAL = 1024  # what a size that a call decides counts for when two values are compared
FINE = 1 << 20  # parts of a byte, so that prices stay whole numbers
REDUCES = ROW_OPS | {"dot", "topk", "cumsum"}
LINEAR = VIEWS | {"concat", "cast", "to_float", "add", "sub"}


def wider(a: Reach, b: Reach) -> Reach:
    return None if a is None or b is None else maximum(a, b)


def want(demand: dict[int, Reach], node_id: int, reach: Reach) -> None:
    """Ask for the history of a value, on top of what was asked before."""
    demand[node_id] = wider(demand.get(node_id, Dim()), reach)


@dataclass(frozen=True, slots=True)
class Given:
    """What is known of a function's input.

    Whether it is a fact, how wide what it narrows is, and how many calls have it in common.
    """

    fact: bool = False
    narrowed: int = 0
    shared: int = 1


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
        held = elements(self.features(kind))
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
        if node.op in ROW_OPS or (node.op == "dot" and self.weighted(node) is None):
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
                key = self.key(node)
                shared = key is not None and key in self.reaches
                want(found, node.id, self.reaches[key] if key and shared else self.window(node))
        return found

    @cached_property
    def reaches(self) -> dict[Axis, Reach]:
        """How many of the last slots an axis of keys has: as many as its farthest reader sees."""
        found: dict[Axis, Reach] = {}
        for node in self.function.nodes:
            for key in filter(self.is_key, node.axes):
                reading = [self.function[i] for i in self.users[node.id]]
                whole = node.id in self.function.output_ids or node.op in ("input", "result")
                whole |= any(counts(user, key) for user in reading)
                alone = self.key(node) == key
                reach = None if whole else self.window(node) if alone else ZERO
                found[key] = wider(found.get(key, ZERO), reach)
        return {
            key: reach if reach is None or reach != ZERO else ONE for key, reach in found.items()
        }

    def window(self, node: Node) -> Reach:
        """How many of the last positions the reductions below a value of earlier positions can see."""
        key = self.key(node)
        if key is None:
            return None
        widest: Reach = Dim()
        todo, seen = [(node.id, key)], {(node.id, key)}
        while todo and self.decoded is not None and widest is not None:
            current, axis = todo.pop()
            for user in (self.function[i] for i in self.users[current]):
                if reduces(user, axis):
                    widest = wider(widest, self.sees(user, axis))
                    continue
                below = (
                    dict(user.attrs.pairs("pairs")).get(axis, axis) if user.op == "rename" else axis
                )
                if below not in user.axes:
                    return None
                if (user.id, below) not in seen:
                    seen.add((user.id, below))
                    todo.append((user.id, below))
        return widest if self.decoded is not None else None

    def sees(self, node: Node, key: Axis) -> Reach:
        """How many of the last positions a reduction along an axis of keys sees."""
        if self.decoded is None:
            return None
        lower = Visibility(self.edit, key, self.decoded).support(node).lower
        return None if lower is None else lower + 1

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

    # ------------------------------------------------------------- what calls and loops are told

    def given_to(self, loop: Node, body: Function) -> tuple[Given, ...]:
        """What a body may know of its inputs: of what changes from iteration to iteration, nothing."""
        carried, kinds = loop.attrs.integer("carried"), loop.attrs["kinds"]
        assert isinstance(kinds, tuple)
        found = [Given()] * carried
        for i in loop.inputs[carried:]:
            found.append(Given(i not in self.data, self.narrowed.get(i, 0), len(kinds)))
        return (*found, *[Given(fact=True)] * (len(body.inputs) - len(found)))

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

    @cached_property
    def decoded(self) -> Axis | None:
        """The decoded axis itself, where a value has it."""
        axes = (a for n in self.function.nodes for a in n.axes)
        return next((a for a in axes if a.name == self.program.decode), None)

    def is_decoded(self, axis: Axis) -> bool:
        return self.program.decode in (axis.name, axis.time)

    def is_key(self, axis: Axis) -> bool:
        return axis.time == self.program.decode and axis != self.decoded

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
        slot = Visibility(self.edit, None, self.decoded).slot(take.inputs[1])
        if slot.counts != (0, 1, 0) or slot.divisor != ONE or slot.low is None:
            return None
        known = slot.low.symbols() <= self.frame.sizes.keys()
        return maximum(-slot.low, 0) if known else None


def counts(node: Node, key: Axis) -> bool:
    """Whether a node says where along an axis of keys it found something, or may do so inside."""
    if node.op in ("scan", "repeat"):
        return True
    return node.op in ("topk", "cumsum") and node.attrs["axis"] == key


def reduces(node: Node, axis: Axis) -> bool:
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
