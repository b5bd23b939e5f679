"""Values with a vocabulary for each token are made again tile by tile, and never stored.

    l = log sum_j exp(z[j]),  z[target]         a loop over tiles of columns j of z = f(x W)
    dx = sum_j g(z[j]) W[j],  dW[j] = sum_i g(z[i, j]) x[i]        and another one, after l is known

Any value that has the columns and an axis of the call is *wide*. Legal where all of them are elementwise
above products with a matrix that has the columns, and are read by sums over columns, by picks of one
column and by sums over everything but the columns: then a tile needs nothing of another. A reader that
needs what another one gives runs in a later loop: a loss has two, the gradient of the embedding a third.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ...dsl.dims import Dim
from ..ir.graph import (
    AttrValue,
    Axis,
    Builder,
    Function,
    Node,
    Program,
    TensorType,
    with_axes,
)
from ..passes.chunk_loops import laid_out
from ..passes.fuse_loss import COLUMNS
from ..passes.properties import is_elementwise
from ..rewrite import Edit, Pass, Rule, Session

MOVING = frozenset({"broadcast", "transpose"})
INFINITE = float("-inf")


def log_sum_exp(edit: Edit, node: Node) -> int | None:
    """max x + log(sum exp(x - max x)), in either order."""
    for most, log in (edit.operands(node), edit.operands(node)[::-1]):
        if most.op == "amax" and log.op == "log":
            (total,) = edit.operands(log)
            (raised,) = edit.operands(total) if total.op == "sum" else (total,)
            (shifted,) = edit.operands(raised) if raised.op == "exp" else (raised,)
            x, axes = most.inputs[0], most.attrs.axes("axes")
            is_total = total.op == "sum" and total.attrs.axes("axes") == axes and len(axes) == 1
            if is_total and shifted.op == "sub" and shifted.inputs == (x, most.id):
                return edit.add("logsumexp", (x,), {"axis": axes[0]}, hint=node.hint)
    return None


LOG_SUM_EXP = Pass(
    "log-sum-exp",
    "max x + log sum exp(x - max x) = logsumexp x",
    (Rule("log-sum-exp", log_sum_exp, ("add",)),),
)


def in_columns(program: Program, session: Session) -> Program:
    """The program with loops over the columns of main's widest values."""
    axes = (a for node in program.main.nodes for a in node.axes)
    for axis in dict.fromkeys(axes):
        for group in _wide(program, axis):
            session.learn(program)
            edit = Edit(program, program.main, session, session.next_ids[program.main_name])
            columns = Columns(edit, axis, group)
            if columns.find():
                program = program.with_functions([*columns.rewritten(), edit.finish()])
    return program


def _wide(program: Program, axis: Axis) -> list[set[int]]:
    """The values with a long axis and one of the call, those that are made of one another together."""
    sizes, groups = program.sizes, list[set[int]]()
    if not axis.size.symbols() <= sizes.keys() or axis.size.evaluate(sizes) <= COLUMNS:
        return []
    for node in program.main.nodes:
        of_call = any(not a.size.symbols() <= sizes.keys() for a in node.axes)
        if axis in node.axes and of_call and node.op != "input":
            met = [group for group in groups if not group.isdisjoint(node.inputs)]
            groups = [group for group in groups if group not in met]
            groups.append({node.id}.union(*met))
    return groups


@dataclass(slots=True)
class Columns:
    """`wide` values, and their `readers` by the loop that they run in."""

    edit: Edit
    axis: Axis
    wide: set[int]
    readers: dict[int, int] = field(default_factory=dict)

    def find(self) -> bool:
        """Finds who reads what is wide. False where some of it must be stored anyway."""
        edit = self.edit
        found = [edit[i] for i in edit.order() if i in self.wide]
        if not all(self._is_made_in_tiles(node) for node in found):
            return False
        readers = {u.id: u for n in found for u in edit.users(n.id) if u.id not in self.wide}
        stored = any(edit.is_output(n.id) for n in found)
        if not readers or stored or not all(map(self._reads_in_tiles, readers.values())):
            return False
        self._order(set(readers))
        return True

    def _is_made_in_tiles(self, node: Node) -> bool:
        if node.op == "dot":
            having = [o for o in self.edit.operands(node) if self.axis in o.axes]
            return len(having) == 1 and having[0].id not in self.wide
        return len(node.types) == 1 and (is_elementwise(node) or node.op in MOVING)

    def _reads_in_tiles(self, node: Node) -> bool:
        wide = [i for i in node.inputs if i in self.wide]
        if len(wide) != 1 or len(node.types) != 1:
            return False
        if node.op == "take":
            picks = node.inputs[0] == wide[0] and node.attrs["axis"] == self.axis
            index = self.edit[node.inputs[1]]
            return picks and node.attrs["fill"] is None and self.axis not in index.axes
        return node.op in ("logsumexp", "sum", "dot")

    def _order(self, readers: set[int]) -> None:
        """A reader runs after those whose results it needs, perhaps through wide values."""
        after: dict[int, int] = {}  # the first loop in which a value may be read
        for i in self.edit.order():
            node = self.edit[i]
            after[i] = max((after[k] for k in node.inputs), default=0)
            if i in readers:
                self.readers[i] = after[i]
                after[i] += 1

    def rewritten(self) -> Iterator[Function]:
        """The functions of the loops; what they give takes the readers' places."""
        for loop in sorted(set(self.readers.values())):
            readers = [i for i, number in self.readers.items() if number == loop and i in self.edit]
            tile = _Tile(self, [self.edit[i] for i in readers])
            yield tile.body()
            tile.enact()


@dataclass(frozen=True, slots=True)
class _State:
    """What a loop carries: its input in the body, where it starts, its new value."""

    inside: int
    start: float
    kind: TensorType


@dataclass(slots=True)
class _Tile:
    """The loop of some readers, run on a tile of columns."""

    columns: Columns
    readers: list[Node]
    axis: Axis = field(init=False)
    builder: Builder = field(init=False)
    inside: dict[int, int] = field(default_factory=dict)
    stepped: dict[int, int] = field(default_factory=dict)
    captured: dict[int, int] = field(default_factory=dict)
    states: list[_State] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    sequences: dict[int, int] = field(default_factory=dict)  # reader: its columns of the tile
    places: dict[int, int] = field(default_factory=dict)  # reader: its first state

    def __post_init__(self) -> None:
        edit, axis = self.columns.edit, self.columns.axis
        edit.begin(self.readers[-1])
        name = edit.axis(f"{axis.name}.tile", Dim()).name
        self.axis = Axis(name, Dim.symbol(name))
        self.builder = Builder(edit.name("columns"))

    def body(self) -> Function:
        for node in self.readers:
            self._reader(node)
        if not self.states:  # a loop carries something
            self.updates.append(self._state(TensorType("f32"), 0.0))
        outputs = [(f"columns{k}", i) for k, i in enumerate(self.sequences.values())]
        outputs += [
            (f"state{k}", laid_out(self.builder, new, state.kind))
            for k, (new, state) in enumerate(zip(self.updates, self.states, strict=True))
        ]
        states = [state.inside for state in self.states]
        inputs = (*self.stepped.values(), *states, *self.captured.values())
        return replace(self.builder.finish(outputs), inputs=inputs)

    def enact(self) -> None:
        """The loop in the function, and its results in place of the readers'."""
        edit, axis = self.columns.edit, self.columns.axis
        types = [
            TensorType(t.dtype, tuple(axis if a == self.axis else a for a in t.axes))
            for t in (self.builder[i].type for i in self.sequences.values())
        ]
        types += [state.kind for state in self.states]
        starts = [self._start(state) for state in self.states]
        attrs: dict[str, AttrValue] = {
            "axis": axis, "body": self.builder.name, "chunk": self.axis, "length": COLUMNS,
            "reverse": False, "states": len(starts), "stepped": len(self.stepped),
        }  # fmt: skip
        operands = (*self.stepped, *starts, *self.captured)
        made = edit.add("chunked_scan", operands, attrs, tuple(types))
        count = len(self.sequences)
        for k, reader in enumerate(self.sequences):
            self._replace(reader, self._result(made, k, types))
        for reader, place in self.places.items():
            value = self._result(made, count + place, types)
            if edit[reader].op == "logsumexp":
                total = self._result(made, count + place + 1, types)
                value = edit.add("add", (value, edit.add("log", (total,))))
            self._replace(reader, value)

    def _replace(self, reader: int, value: int) -> None:
        edit, wanted = self.columns.edit, self.columns.edit[reader].type.dtype
        if edit[value].type.dtype != wanted:
            value = edit.add("cast", (value,), {"dtype": wanted})
        edit.replace(reader, value)

    def _result(self, made: int, index: int, types: list[TensorType]) -> int:
        edit = self.columns.edit
        if len(types) == 1:
            return made
        return edit.add("result", (made,), {"index": index}, (types[index],))

    def _start(self, state: _State) -> int:
        edit = self.columns.edit
        value = edit.add("const", (), {"dtype": state.kind.dtype, "value": state.start})
        axes = state.kind.axes
        return edit.add("broadcast", (value,), {"axes": axes}) if axes else value

    # ----------------------------------------------------------------------------- in a tile

    def _reader(self, node: Node) -> None:
        if node.op == "logsumexp":
            self._log_total(node)
        elif node.op == "take":
            self._sum(node, self._picked(node))
        elif self.columns.axis in node.axes:
            self.sequences[node.id] = self._copy(node)
        else:
            self._sum(node, self._copy(node))

    def _seen(self, value: int) -> int:
        """A value of the function as the tile sees it."""
        node = self.columns.edit[value]
        if value in self.inside:
            return self.inside[value]
        if value in self.columns.wide or node.op == "const":
            self.inside[value] = self._copy(node)
            return self.inside[value]
        inputs = self.stepped if self.columns.axis in node.axes else self.captured
        if value not in inputs:
            axes = tuple(self.axis if a == self.columns.axis else a for a in node.axes)
            kind = TensorType(node.type.dtype, axes)
            attrs = {"name": f"{node.hint or 'x'}{len(self.stepped) + len(self.captured)}"}
            inputs[value] = self.builder.add("input", (), attrs, (kind,), node.origins, node.hint)
        return inputs[value]

    def _copy(self, node: Node) -> int:
        axes = {self.columns.axis: self.axis}
        attrs = {name: with_axes(value, axes) for name, value in node.attrs.items()}
        inputs = tuple(self._seen(i) for i in node.inputs)
        return self.builder.add(node.op, inputs, attrs, None, node.origins, node.hint)

    def _state(self, kind: TensorType, start: float) -> int:
        """A state of float32 at least."""
        dtype = "f32" if kind.dtype == "float" else kind.dtype
        kind = TensorType(dtype, kind.axes)
        name = f"state{len(self.states)}"
        inside = self.builder.add("input", (), {"name": name}, (kind,), (), name)
        self.states.append(_State(inside, start, kind))
        return inside

    def _sum(self, node: Node, part: int) -> None:
        self.places[node.id] = len(self.states)
        before = self._state(node.type, 0.0)
        self.updates.append(self.builder.add("add", (before, part), origins=node.origins))

    def _picked(self, take: Node) -> int:
        """What was picked, if its column is in the tile. One that is not there stays an error."""
        edit, add = self.columns.edit, self.builder.add
        every = edit.add("index", (), {"axis": self.columns.axis})
        wanted = edit.add("take", (every, take.inputs[1]), take.attrs)
        wide = self._seen(take.inputs[0])
        zero = add("const", (), {"dtype": self.builder[wide].type.dtype, "value": 0.0})
        here = add("eq", (self._seen(every), self._seen(wanted)))
        return add("sum", (add("where", (here, wide, zero)),), {"axes": (self.axis,)})

    def _log_total(self, node: Node) -> None:
        """The running maximum and sum; exponents are finite until a row has a finite entry."""
        add, z = self.builder.add, self._seen(node.inputs[0])
        self.places[node.id] = len(self.states)
        most, total = self._state(node.type, INFINITE), self._state(node.type, 0.0)
        new = add("max", (most, add("amax", (z,), {"axes": (self.axis,)})))
        dtype = self.builder[new].type.dtype
        none = add("const", (), {"dtype": dtype, "value": INFINITE})
        zero = add("const", (), {"dtype": dtype, "value": 0.0})
        shift = add("where", (add("eq", (new, none)), zero, new))
        decay = add("exp", (add("sub", (most, shift)),))
        raised = add("exp", (add("sub", (z, shift)),))
        here = add("sum", (raised,), {"axes": (self.axis,)})
        self.updates += [new, add("add", (add("mul", (total, decay)), here))]
