"""What each layer computes alike is computed once, before the loop, and given to every layer:

    x <- f(x, g(c)) n times   =   y = g(c);  x <- f(x, y) n times

Legal when g reads only constants, tables, slots, and what the loop captures: no weight, state or
scalar of a layer, nothing that the loop carries. It is declined where the value is larger than all
that is carried, since it lives as long as the loop. Comparisons and whole numbers are left where
they are, unless a reduction made them: they cost nothing, and say what a layer's attention sees. So
are a loop with an exit, and layers that several loops run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ...dsl.dims import Dim
from ..ir.graph import Attrs, Function, Node, Program, TensorType, callees, elements
from ..ops import LOOPS
from ..rewrite import Moved, Moves, Pass, Session, Site, code
from .properties import REDUCTIONS, VIEWS, bytes_of, is_elementwise

RULE = "hoist"
FREE = VIEWS | {"const", "index", "size", "table"}
MOVABLE = FREE | REDUCTIONS | {"concat", "dot", "take", "cumsum"}
EXACT = ("int", "bool")

Key = tuple[str, tuple[int, ...], Attrs, tuple[TensorType, ...]]


def hoist_invariant(program: Program, session: Session) -> tuple[Program, Moves]:
    """The program with such values among what its loops capture, inner loops first."""
    done = {f.name: f for f in code(program)}
    loops = [node for f in done.values() for node in f.nodes if node.op in LOOPS]
    callers = Counter(name for node in loops for name in callees(node))
    moves: Moves = {}
    for name in _inner_first(program, program.main_name):
        for node in [n for n in done[name].nodes if n.op == "repeat" and "exit" not in n.attrs]:
            kinds = {kind: done[kind] for kind in callees(node)}
            if all(callers[kind] == 1 for kind in kinds):
                hoist = _Hoist(program, session, done[name], node, kinds)
                done |= hoist.run()
                moves |= hoist.moves
    return program.with_functions(done.values()), moves


def _inner_first(program: Program, name: str) -> Iterator[str]:
    """A function behind all that it calls in loops."""
    seen: dict[str, None] = {}
    for node in program.function(name).nodes:
        for kind in callees(node) if node.op == "repeat" else ():
            seen.update(dict.fromkeys(_inner_first(program, kind)))
    yield from seen
    yield name


@dataclass(slots=True)
class _Hoist:
    """One loop of `caller`. `made` are values of the caller by what computes them."""

    program: Program
    session: Session
    caller: Function
    loop: Node
    kinds: dict[str, Function]
    moves: Moves = field(default_factory=dict)
    made: dict[Key, int] = field(default_factory=dict)
    before: list[Node] = field(default_factory=list)

    def run(self) -> dict[str, Function]:
        """The functions that change: the kinds take one operand more for each value."""
        for node in self.caller.nodes[: self.caller.nodes.index(self.loop)]:
            self.made.setdefault(_key(node, node.inputs), node.id)
        wanted: dict[
            int, dict[str, list[Node]]
        ] = {}  # value of the caller: what it is in each kind
        for name, kind in self.kinds.items():
            outer = dict(zip(kind.inputs[self.carried :], self.captured, strict=False))
            for node in self._hoisted(kind, outer):
                wanted.setdefault(self._above(kind, node, outer), {}).setdefault(name, []).append(
                    node
                )
        if not wanted:
            return {}
        loop = replace(self.loop, inputs=(*self.loop.inputs, *wanted))
        nodes = (
            part
            for node in self.caller.nodes
            for part in ((*self.before, loop) if node is self.loop else (node,))
        )
        found = {n: self._given(kind, list(wanted.values())) for n, kind in self.kinds.items()}
        return {**found, self.caller.name: replace(self.caller, nodes=tuple(nodes))}

    @property
    def carried(self) -> int:
        return len(self.loop.types)

    @property
    def captured(self) -> tuple[int, ...]:
        return self.loop.inputs[self.carried :]

    def _hoisted(self, kind: Function, outer: dict[int, int]) -> Iterator[Node]:
        """What computes something that a part of the layer reads which is not alike in each."""
        alike, reduced = set(outer), set[int]()
        for node in kind.nodes:
            movable = node.op in MOVABLE or is_elementwise(node)
            if movable and len(node.types) == 1 and alike.issuperset(node.inputs):
                alike.add(node.id)
            if node.op in REDUCTIONS or not reduced.isdisjoint(node.inputs):
                reduced.add(node.id)
        for node in kind.nodes:
            costs = node.type.dtype not in EXACT or node.id in reduced
            worth = node.op not in FREE and costs and bool(node.axes)
            if node.id in alike - set(outer) and worth and self._is_read(kind, node, alike):
                if self._fits(node):
                    yield node
                else:
                    self._note(kind, node, "it is larger than what the loop carries")

    def _is_read(self, kind: Function, node: Node, alike: set[int]) -> bool:
        """By what is not alike, directly or as a view."""
        if node.id in kind.output_ids:
            return True
        users = [n for n in kind.nodes if node.id in n.inputs]
        views = [n for n in users if n.id in alike and n.op in VIEWS]
        return any(u.id not in alike for u in users) or any(
            self._is_read(kind, view, alike) for view in views
        )

    def _fits(self, node: Node) -> bool:
        """Whether each term of its size is within one of a carried value's, at any run-time size."""
        sizes = self.program.sizes
        rooms = [elements(kind.axes).substitute(sizes).terms for kind in self.loop.types]
        room = [term for terms in rooms for term in terms]
        return all(
            any(count <= most and not Counter(m) - Counter(whole) for whole, most in room)
            for m, count in elements(node.axes).substitute(sizes).terms
        )

    def _above(self, kind: Function, node: Node, outer: dict[int, int]) -> int:
        """The value in the caller, made there with what it is made from."""
        if node.id not in outer:
            operands = tuple(self._above(kind, kind[i], outer) for i in node.inputs)
            key = _key(node, operands)
            if key not in self.made:
                number = self._number(self.caller.name)
                self.before.append(replace(node, id=number, inputs=operands))
                self.made[key] = number
            outer[node.id] = self.made[key]
        return outer[node.id]

    def _number(self, function: str) -> int:
        number = self.session.next_ids[function]
        self.session.next_ids[function] = number + 1
        return number

    def _given(self, kind: Function, wanted: Iterable[dict[str, list[Node]]]) -> Function:
        """A kind that is given the values: those that it does not read, too."""
        new: list[Node] = []
        moved: dict[int, int] = {}
        for values in wanted:
            mine = values.get(kind.name, [])
            like = (mine or next(iter(values.values())))[0]
            attrs = Attrs({"name": f"hoisted.{len(kind.inputs) + len(new)}"})
            made = Node(
                self._number(kind.name), "input", (), attrs, like.types, like.origins, like.hint
            )
            new.append(made)
            moved |= {node.id: made.id for node in mine}
            for node in mine:
                self._note(kind, node, "", fired=True)
        self.moves |= {(kind.name, old): Moved(to) for old, to in moved.items()}
        nodes = (
            replace(n, inputs=tuple(moved.get(i, i) for i in n.inputs))
            for n in kind.nodes
            if n.id not in moved
        )
        place = len(self.loop.inputs)
        inputs = (*kind.inputs[:place], *(n.id for n in new), *kind.inputs[place:])
        outputs = tuple((name, moved.get(i, i)) for name, i in kind.outputs)
        return self._swept(kind, Function(kind.name, (*new, *nodes), inputs, outputs), moved)

    def _swept(self, before: Function, after: Function, moved: dict[int, int]) -> Function:
        """Without what only the moved values read; of that the report says where it went."""
        live = {*after.inputs, *after.output_ids}
        for node in reversed(after.nodes):
            live.update(node.inputs if node.id in live else ())
        for node in reversed(before.nodes):
            if node.id not in live and node.id not in moved:
                users = [n for n in before.nodes if node.id in n.inputs]
                places = (self.moves.get((before.name, user.id)) for user in users)
                place = next((p for p in places if p is not None), None)
                if place is not None:
                    self.moves[before.name, node.id] = Moved(place.id, inside=True)
        return replace(after, nodes=tuple(n for n in after.nodes if n.id in live))

    def _note(self, kind: Function, node: Node, reason: str, *, fired: bool = False) -> None:
        kinds = self.loop.attrs["kinds"]
        assert isinstance(kinds, tuple)
        times = kinds.count(kind.name)
        self.session.fired += fired
        size = bytes_of(node.type)
        reason = reason or f"once for {times} layers"
        moved: tuple[Dim | None, Dim | None] = (size * times, size) if fired else (None, None)
        self.session.sites.append(
            Site(
                HOIST_INVARIANT.name,
                RULE,
                kind.name,
                fired,
                reason,
                node.origins,
                node.hint,
                *moved,
            )
        )


def _key(node: Node, operands: tuple[int, ...]) -> Key:
    return node.op, operands, node.attrs, node.types


HOIST_INVARIANT = Pass(
    "hoist-invariant",
    "x <- f(x, g(c)) n times = y = g(c); x <- f(x, y) n times",
    whole=hoist_invariant,
)
