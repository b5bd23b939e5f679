"""What the chunks of one program share: their parts, the axes of slots, and the states found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ...dsl.dims import Dim, minimum
from ...dsl.span import Span
from ..ir.graph import Attrs, Axis, Function, Node, Program, TensorType
from ..rewrite import Session
from ..state import Histories, Kind, LoopPlan, Plan
from ..values import Reach, wider


@dataclass(frozen=True, slots=True)
class Slot:
    """One state. `path` is complete, as a parameter's; `type` is the value's in the full sequence.

    `dim` is the dimension of slots, None where there is none, and `capacity` how many of the last slots
    are held, None for all. A `fact` is known of the timeline, not computed from data. `spans` are where
    the value is written, innermost first.
    """

    path: str
    kind: Kind
    type: TensorType
    dim: int | None = None
    capacity: Dim | None = None
    fact: bool = False
    spans: tuple[Span, ...] = field(default=(), compare=False)

    @property
    def grows(self) -> bool:
        return self.kind == "append"


@dataclass(frozen=True, slots=True)
class Kept:
    """A state of a function: the value `node` (its result `index`) of the canonical function."""

    path: str
    kind: Kind
    node: Node
    index: int = 0
    reach: Reach = None
    fact: bool = False

    def slot(self, derivation: Derivation, path: str) -> Slot:
        held, spans = self.node.types[self.index], self.node.spans
        if self.kind in ("constant", "recurrent"):
            axes = tuple(a for a in held.axes if a != derivation.decoded)
            return Slot(path, self.kind, TensorType(held.dtype, axes), None, None, self.fact, spans)
        (time,) = (a for a in held.axes if derivation.is_time(a))
        capacity = None if self.reach is None else self.reach - 1
        return Slot(path, self.kind, held, held.position(time), capacity, self.fact, spans)


@dataclass(frozen=True, slots=True)
class Call:
    """How a loop calls a function's chunk: main, with no operands, by none.

    Of its `operands` the first `carried` are carried, those of `histories` with all earlier rows
    beside the new ones. `reads` are the captured operands it gives as they are, `captured` those of
    which it gives a history.
    """

    carried: int = 0
    operands: int = 0
    histories: Histories = field(default_factory=dict)
    reads: frozenset[int] = frozenset()
    captured: Histories = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """A function's chunk, how it is called, and what it keeps. `loops` has the parts it calls."""

    name: str
    plan: Plan
    call: Call
    chunk: Function
    kept: tuple[Kept, ...]
    loops: Mapping[int, Mapping[str, Part]]


Build: TypeAlias = "Callable[[Derivation, Plan, Call, str], Part]"


class Derivation:
    """The chunks of all functions of a canonical program, and the axes they have."""

    def __init__(self, program: Program, session: Session, build: Build) -> None:
        self.program, self.session, self.build = program, session, build
        self.past_name = program.past
        self.past = Dim.symbol(self.past_name)
        self.parts: dict[str, Part] = {}
        axes = (a for i in program.main.inputs for a in program.main[i].axes)
        self.decoded = next(a for a in axes if a.name == program.decode)
        self._loops: dict[int, tuple[LoopPlan, dict[str, Part]]] = {}

    def main(self, plan: Plan) -> Part:
        return self._keep(self.build(self, plan, Call(), self.program.main_name))

    def loop(self, loop: Node, plan: LoopPlan) -> dict[str, Part]:
        """The parts of all kinds of a repeat. They are called alike: with what any of them reads."""
        if id(plan) not in self._loops:
            call = Call(loop.attrs.integer("carried"), len(loop.inputs), plan.carried)
            names = {kind: self._name(kind) for kind in plan.kinds}
            parts: dict[str, Part] = {}
            while not parts or any(part.call != call for part in parts.values()):
                parts = {k: self.build(self, p, call, names[k]) for k, p in plan.kinds.items()}
                for part in parts.values():
                    call = _united(call, part.call)
            self._loops[id(plan)] = plan, {k: self._keep(part) for k, part in parts.items()}
        return self._loops[id(plan)][1]

    def _name(self, function: str) -> str:
        return self.session.name(function) if function in self.parts else function

    def _keep(self, part: Part) -> Part:
        self.parts[part.name] = part
        return part

    def chunk_program(self) -> Program:
        """A relation of sizes that has the length of the sequence in it is one of the whole."""
        chunks = [part.chunk for part in self.parts.values()]
        length = self.decoded.size.symbols()
        relations = tuple(
            relation
            for relation in self.program.constraints
            if not (relation.left.symbols() | relation.right.symbols()) & length
        )
        whole = replace(self.program, constraints=relations, after="")
        return whole.with_functions(chunks)

    # ------------------------------------------------------------------------ axes of slots

    def is_time(self, axis: Axis) -> bool:
        return self.program.decode in (axis.name, axis.time)

    def kept(self, reach: Reach) -> Dim:
        """How many slots before the chunk are kept."""
        return self.past if reach is None else minimum(self.past, reach - 1)

    def start(self, reach: Reach) -> Dim:
        """The slot of the first that is kept."""
        return self.past - self.kept(reach)

    def keys(self, axis: Axis, reach: Reach) -> Axis:
        """An axis of keys: the slots that are kept and the new ones."""
        return self._axis(axis.name, reach, self.kept(reach) + self.decoded.size)

    def history(self, reach: Reach) -> Axis:
        return self._axis(f"{self.decoded}.all", reach, self.kept(reach) + self.decoded.size)

    def before(self, reach: Reach) -> Axis:
        return self._axis(self.past_name, reach, self.kept(reach))

    def after(self, reach: Dim) -> Axis:
        """The slots that are kept for the next chunk."""
        size = minimum(self.past + self.decoded.size, reach - 1)
        return self._axis(f"{self.decoded}.next", reach, size)

    def last(self, reach: Dim) -> Axis:
        """The slots that the full sequence leaves."""
        return self._axis(f"{self.decoded}.last", reach, minimum(self.decoded.size, reach - 1))

    def _axis(self, stem: str, reach: Reach, size: Dim) -> Axis:
        """One name has one size."""
        name = stem if reach is None else f"{stem}.{_word(reach)}"
        return Axis(name, size, self.program.decode)


def end_of(axis: Axis, into: Axis) -> Attrs:
    """What a slice has that takes the last entries of an axis, as many as `into` has."""
    return Attrs({"axis": axis, "into": into, "start": axis.size - into.size, "step": 1})


def _word(reach: Dim) -> str:
    return "".join(c if c.isalnum() else "_" for c in str(reach))


def _united(a: Call, b: Call) -> Call:
    """A call that gives all that either does."""
    captured = {**a.captured}
    for position, reach in b.captured.items():
        captured[position] = wider(captured.get(position, reach), reach)
    return replace(a, reads=a.reads | b.reads, captured=captured)
