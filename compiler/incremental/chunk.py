"""The chunk of one function: every value for the new rows, from the first node to the last.

Values whose earlier rows are read have a history too, made on demand. How far back it goes is known
only when all its readers are: where one looks further back, the function is built again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ...dsl.dims import Dim
from ...dsl.errors import NeedsWholeSequence
from ..ir.graph import (
    STATE,
    AttrValue,
    Axis,
    Builder,
    Function,
    Node,
    TensorType,
    with_axes,
)
from ..passes.properties import VIEWS, is_elementwise, reduced_axes
from ..state import Kind, Plan
from ..values import ONE, ZERO, Reach, wider
from .derivation import Call, Derivation, Kept, Part, end_of

# Ops of a scan's body for which rows of the sequence are not alike.
MEETING = frozenset({"index", "rename", "take", "cumsum", "scan", "size", "repeat"})


def chunk_of(derivation: Derivation, plan: Plan, call: Call, name: str) -> Part:
    """The part of a function. Its call may have more in it than `call`: what turned out to be read."""
    return _Chunk(derivation, plan, call, name).part()


class _Chunk:
    """`made` has the new rows of each value, `known` its histories by how far back they go."""

    def __init__(self, derivation: Derivation, plan: Plan, call: Call, name: str) -> None:
        self.derivation, self.plan, self.call, self.name = derivation, plan, call, name
        self.values, self.function = plan.values, plan.values.function
        self.decoded = derivation.decoded
        self.reaches = self.values.reaches
        self.keys = {a: derivation.keys(a, reach) for a, reach in self.reaches.items()}
        given = {**plan.inputs, **call.histories, **call.captured}
        self.widest: dict[int, Reach] = {
            **plan.chosen,
            **{self.function.inputs[i]: reach for i, reach in given.items()},
        }
        self.outputs = self._outputs()
        self.settled = False

    # ------------------------------------------------------------------------- the function

    def part(self) -> Part:
        outputs: list[tuple[str, int]] = []
        while not self.settled:
            self.settled = True
            outputs = self._built()
        return self._finished(outputs)

    def _built(self) -> list[tuple[str, int]]:
        self.builder = Builder(self.name)
        self.node: Node | None = None
        self.made: dict[int, int] = {}
        self.known: dict[tuple[int, Reach], int] = {}
        self.kept: dict[tuple[int, int], Kept] = {}
        self.after: list[tuple[str, int]] = []
        self.inputs: dict[int, int] = {}
        self.histories: dict[int, int] = {}
        for index in (*range(self.call.carried), *self.call.reads):
            self.given(self.function[self.function.inputs[index]])
        for index in (*self.call.histories, *self.call.captured):
            self.given_history(self.function[self.function.inputs[index]])
        for node in self._needed():
            self.node = node
            rule = _Chunk.constant if self.is_constant(node) else _RULES.get(node.op, _Chunk.same)
            self.made[node.id] = rule(self, node)
        outputs = [(name, self.made[i]) for name, i in self.outputs]
        for index, reach in self.call.histories.items():
            name, node_id = self.function.outputs[index]
            outputs.append((f"{name}.all", self.history(node_id, reach)))
        return outputs + self.after

    def _outputs(self) -> tuple[tuple[str, int], ...]:
        """Of main those that rows reach: the others are as the first call gave them."""
        if not self.values.is_main:
            return self.function.outputs
        reached: set[int] = set()
        for node in self.function.nodes:
            timed = any(self.values.frame.times(kind) for kind in node.types)
            if timed or not reached.isdisjoint(node.inputs):
                reached.add(node.id)
        return tuple((name, i) for name, i in self.function.outputs if i in reached)

    def _needed(self) -> list[Node]:
        """What the outputs read, without what is above a value that is a state as it is."""
        needed = {i for _, i in self.outputs}
        self.loops: dict[int, Mapping[str, Part]] = {}
        found: list[Node] = []
        for node in reversed(self.function.nodes):
            if node.id in needed:
                found.append(node)
                needed.update(() if self.is_constant(node) else self._read(node))
        return found[::-1]

    def _read(self, node: Node) -> list[int]:
        """The operands that a node's chunk needs: of a repeat, what its layers do."""
        if node.op != "repeat":
            return list(node.inputs)
        parts = self.derivation.loop(node, self.plan.loops[node.id])
        self.loops[node.id] = parts
        call = next(iter(parts.values())).call
        read = {*range(call.carried), *call.reads, *call.captured}
        return [node.inputs[i] for i in sorted(read)]

    def _finished(self, outputs: list[tuple[str, int]]) -> Part:
        """Without what turned out not to be read."""
        inputs, call = self.function.inputs, self.call
        if not self.values.is_main:
            captured = range(call.carried, call.operands)
            reads = frozenset(i for i in captured if inputs[i] in self.inputs)
            later = {i: self.widest[inputs[i]] for i in captured if inputs[i] in self.histories}
            call = replace(call, reads=reads, captured=later)
            for i in inputs[call.operands :]:
                self.given(self.function[i])
        arguments = self._arguments(call)
        live = {*(i for _, i in outputs), *arguments}
        nodes = []
        for node in reversed(self.builder.nodes):
            if node.id in live:
                nodes.append(node)
                live.update(node.inputs)
        chunk = Function(self.name, tuple(nodes[::-1]), arguments, tuple(outputs))
        return Part(self.name, self.plan, call, chunk, tuple(self.kept.values()), self.loops)

    def _arguments(self, call: Call) -> tuple[int, ...]:
        """Carried values and their histories, captured ones and theirs, scalars."""
        inputs = self.function.inputs
        if self.values.is_main:
            return tuple(self.inputs[i] for i in inputs if i in self.inputs)
        return (
            *(self.inputs[i] for i in inputs[: call.carried]),
            *(self.histories[inputs[i]] for i in sorted(call.histories)),
            *(self.inputs[inputs[i]] for i in sorted(call.reads)),
            *(self.histories[inputs[i]] for i in sorted(call.captured)),
            *(self.inputs[i] for i in inputs[call.operands :]),
        )

    # --------------------------------------------------------------------- what axes become

    def type(self, kind: TensorType, axes: Mapping[Axis, Axis]) -> TensorType:
        return TensorType(kind.dtype, tuple(axes.get(a, a) for a in kind.axes))

    def add(
        self, op: str, inputs: tuple[int, ...], attrs: Mapping[str, AttrValue], **more: object
    ) -> int:
        """A node that comes from the one that is being made."""
        origins = self.node.origins if self.node is not None else ()
        return self.builder.add(op, inputs, attrs, origins=origins, **more)  # type: ignore[arg-type]

    def clone(self, node: Node, inputs: tuple[int, ...], axes: Mapping[Axis, Axis]) -> int:
        """The same op on other operands, along other axes."""
        self._check_sizes(node)
        attrs = {name: with_axes(value, axes) for name, value in node.attrs.items()}
        types = tuple(self.type(t, axes) for t in node.types)
        declared = types if node.op in DECLARED else None
        return self.builder.add(node.op, inputs, attrs, declared, node.origins, node.hint)

    def _check_sizes(self, node: Node) -> None:
        """No size but that of the decoded axis and of keys may follow from the length."""
        length = self.decoded.size.symbols()
        for value in node.attrs.values():
            if isinstance(value, Dim) and value.symbols() & length:
                raise self.refusal(node, "reads the length of the sequence")
        for axis in (a for t in node.types for a in t.axes):
            if axis.size.symbols() & length and not self.derivation.is_time(axis):
                raise self.refusal(node, f"has an axis `{axis}` as long as the sequence")

    def refusal(self, node: Node, reason: str) -> NeedsWholeSequence:
        spans = node.spans or (None,)
        return NeedsWholeSequence(
            axis=self.decoded.name, reason=reason, span=spans[0], calls=spans[1:]
        )

    # ------------------------------------------------------------------------------- states

    def is_constant(self, node: Node) -> bool:
        """A value of no position that is kept as it is, and an input of none."""
        if self.values.frame.times(node.type):
            return False
        given = node.op == "input" and self.values.is_main
        return given or (node.id in self.plan.chosen and node.op != "const")

    def state(self, node: Node, kind: Kind, held: TensorType, index: int = 0) -> int:
        """The state of a value, from now on one of the function's."""
        reach = self.widest.get(node.id) if kind in ("append", "ring") else None
        fact = node.id not in self.values.data
        path = self._path(node)
        self.kept[node.id, index] = Kept(path, kind, node, index, reach, fact)
        return self.add("state", (), {"path": path}, types=(held,), hint=path.rpartition(".")[2])

    def leave(self, node: Node, value: int, index: int = 0) -> None:
        """What the state of a value is after the chunk."""
        self.after.append((f"{STATE}{self.kept[node.id, index].path}", value))

    def _path(self, node: Node) -> str:
        """After the projection or the region the value comes from, numbered where several do."""
        name = str(node.attrs.get("name", "")) if node.op == "input" else ""
        stem = name or self.values.place(node) or node.hint or node.op
        taken = {kept.path for kept in self.kept.values()}
        number, path = 1, stem
        while path in taken:
            number += 1
            path = f"{stem}.{number}"
        return path

    def given(self, node: Node) -> int:
        """An input of the function."""
        if node.id not in self.inputs:
            types = tuple(self.type(t, self.keys) for t in node.types)
            self.inputs[node.id] = self.builder.add(
                "input", (), node.attrs, types, node.origins, node.hint
            )
        return self.inputs[node.id]

    def given_history(self, node: Node) -> int:
        """The history of an input, which the caller keeps."""
        if node.id not in self.histories:
            axis = self.derivation.history(self.widest[node.id])
            held = self.type(node.type, {self.decoded: axis})
            attrs = {"name": f"{node.attrs['name']}.all"}
            self.histories[node.id] = self.builder.add("input", (), attrs, (held,), node.origins)
        return self.histories[node.id]

    # ----------------------------------------------------------------------------- histories

    def history(self, node_id: int, reach: Reach) -> int:
        """A value along the decoded axis, for the slots that are kept and the new ones."""
        key = node_id, reach
        if key not in self.known:
            self.known[key] = self._history(self.function[node_id], reach)
        return self.known[key]

    def _history(self, node: Node, reach: Reach) -> int:
        if self.decoded not in node.axes:
            return self.made[node.id]
        axis = self.derivation.history(reach)
        if node.op == "index":
            return self.offset(self.add("index", (), {"axis": axis}), self.derivation.start(reach))
        if self.is_made_again(node):
            operands = tuple(self.history(i, reach) for i in node.inputs)
            return self.clone(node, operands, {**self.keys, self.decoded: axis})
        return self._kept(node, reach)

    def _kept(self, node: Node, reach: Reach) -> int:
        """The history of a value that is a state itself."""
        known = self.widest.setdefault(node.id, reach)
        if wider(known, reach) != known:
            self.widest[node.id] = wider(known, reach)
            self.settled = False
        return self._latest(self._whole(node), self.widest[node.id], reach)

    def is_made_again(self, node: Node) -> bool:
        if node.id in self.plan.chosen or node.op in ("input", "result", "scan", "cumsum"):
            return False
        if node.op == "take" and self.derivation.is_time(node.attrs.axis("axis")):
            return False
        if node.id in self.values.data:
            return self.values.is_light(node) or self.values.widens_a_latent(node)
        return is_elementwise(node) or node.op in VIEWS

    def _whole(self, node: Node) -> int:
        """The history of a value that is kept, here or by the caller."""
        if node.op == "input" and self._is_kept_by_caller(node):
            return self.given_history(node)
        key = node.id, self.widest[node.id]
        if key not in self.known:
            self.known[key] = self.joined(node, self.made[node.id], self.decoded)
        return self.known[key]

    def _is_kept_by_caller(self, node: Node) -> bool:
        """What a loop captures, and what it carries with its history."""
        position = self.function.inputs.index(node.id)
        captured = self.call.carried <= position < self.call.operands
        return captured or position in self.call.histories

    def joined(self, node: Node, rows: int, along: Axis) -> int:
        """What was kept of a value and its new rows, which stand along the decoded axis."""
        reach = self.widest[node.id]
        derivation = self.derivation
        axis = derivation.history(reach) if along == self.decoded else self.keys[along]
        if reach == ONE:
            return self.add("rename", (rows,), {"pairs": ((self.decoded, axis),)})
        before = derivation.before(reach)
        held = self.type(node.type, {along: before})
        past = self.state(node, "append" if reach is None else "ring", held)
        attrs: dict[str, AttrValue] = {"axis": axis, "parts": (before, self.decoded)}
        if reach is None:
            whole = self.add("append", (past, rows), attrs)
            self.leave(node, whole)
            return whole
        whole = self.add("concat", (past, rows), attrs)
        self.leave(node, self.end_of(whole, axis, derivation.after(reach)))
        return whole

    def _latest(self, whole: int, have: Reach, reach: Reach) -> int:
        """The last slots of a history that goes further back than they are read."""
        if have == reach:
            return whole
        return self.end_of(whole, self.derivation.history(have), self.derivation.history(reach))

    def end_of(self, whole: int, axis: Axis, into: Axis) -> int:
        """The last entries of a value along an axis, as many as `into` has."""
        return self.add("slice", (whole,), end_of(axis, into))

    def rows(self, node: Node, key: Axis) -> int:
        """The new rows of a value along `key`: as the slots they are queries for."""
        if key not in node.axes:
            return self.made[node.id]
        if node.op == "index":
            return self.slots()
        if node.op == "rename":
            others = tuple((a, b) for a, b in node.attrs.pairs("pairs") if b != key)
            made = self.made[node.inputs[0]]
            return self.add("rename", (made,), {"pairs": others}) if others else made
        operands = tuple(self.rows(self.function[i], key) for i in node.inputs)
        return self.clone(node, operands, {**self.keys, key: self.decoded})

    def slots(self) -> int:
        return self.offset(self.add("index", (), {"axis": self.decoded}), self.derivation.past)

    def offset(self, index: int, by: Dim, op: str = "add") -> int:
        if by == ZERO:
            return index
        return self.add(op, (index, self.add("const", (), {"value": by, "dtype": "int"})), {})

    # -------------------------------------------------------------------------------- rules

    def constant(self, node: Node) -> int:
        value = self.state(node, "constant", node.type)
        self.leave(node, value)
        return value

    def same(self, node: Node) -> int:
        key = self.values.key(node)
        if node.id in self.plan.chosen and key is not None:
            return self.joined(node, self.rows(node, key), key)
        return self.clone(node, tuple(self.made[i] for i in node.inputs), self.keys)

    def index(self, node: Node) -> int:
        axis = node.attrs.axis("axis")
        if axis == self.decoded:
            return self.slots()
        made = self.clone(node, (), self.keys)
        if axis not in self.keys:
            return made
        return self.offset(made, self.derivation.start(self.reaches[axis]))

    def reduced(self, node: Node) -> int:
        if self.decoded in reduced_axes(node):
            raise self.refusal(node, "is over the whole sequence")
        return self.same(node)

    def size(self, node: Node) -> int:
        if self.derivation.is_time(node.attrs.axis("axis")):
            raise self.refusal(node, "is the length of the sequence")
        return self.same(node)

    def rename(self, node: Node) -> int:
        """Where positions meet: an axis of keys has the history of what is renamed to it."""
        pairs = node.attrs.pairs("pairs")
        key = dict(pairs).get(self.decoded)
        if key is None or key not in self.keys:
            return self.same(node)
        if node.id in self.plan.chosen:
            return self.joined(node, self.rows(node, key), key)
        reach = self.reaches[key]
        history = self.derivation.history(reach)
        axes = {**self.keys, self.decoded: history}
        attrs = {"pairs": tuple((axes.get(a, a), axes.get(b, b)) for a, b in pairs)}
        return self.add("rename", (self.history(node.inputs[0], reach),), attrs, hint=node.hint)

    def take(self, node: Node) -> int:
        axis = node.attrs.axis("axis")
        source, index = (self.made[i] for i in node.inputs)
        attrs = {**node.attrs}
        if axis == self.decoded:
            lag = self.values.lag(node)
            reach = None if lag is None else lag + 1
            source = self._read_by(node, reach)
            attrs["axis"] = self.derivation.history(reach)
        elif axis in self.keys:
            reach, attrs["axis"] = self.reaches[axis], self.keys[axis]
        else:
            return self.same(node)
        start = self.derivation.start(reach)
        return self.add("take", (source, self.offset(index, start, "sub")), attrs, hint=node.hint)

    def _read_by(self, take: Node, reach: Reach) -> int:
        """A history that a take reads. The last inputs of a convolution are kept as they are."""
        source = self.function[take.inputs[0]]
        if self.values.behind(take, source) is None:
            return self.history(source.id, reach)
        key = source.id, reach
        self.known[key] = self._kept(source, reach)
        return self.known[key]

    def cumsum(self, node: Node) -> int:
        if node.attrs.axis("axis") != self.decoded:
            return self.same(node)
        total = TensorType(node.type.dtype, tuple(a for a in node.axes if a != self.decoded))
        before = self.state(node, "recurrent", total)
        running = self.clone(node, (self.made[node.inputs[0]],), self.keys)
        value = self.add("add", (running, before), {}, hint=node.hint)
        last: dict[str, AttrValue] = {"axis": self.decoded, "at": self.decoded.size - 1}
        self.leave(node, self.add("pick", (value,), last))
        if self.builder[value].axes == node.axes:
            return value
        return self.add("transpose", (value,), {"order": node.axes})

    def scan(self, node: Node) -> int:
        self._check_body(node)
        axis = node.attrs.axis("axis")
        operands = [self.made[i] for i in node.inputs]
        if axis != self.decoded:
            return self.clone(node, tuple(operands), self.keys)
        first, count = node.attrs.integer("stepped"), node.attrs.integer("states")
        results = range(len(node.types) - count, len(node.types))
        for place, index in zip(range(first, first + count), results, strict=True):
            operands[place] = self.state(node, "recurrent", node.types[index], index)
        made = self.clone(node, tuple(operands), self.keys)
        for index in results:
            last = self.add("result", (made,), {"index": index}, types=(node.types[index],))
            self.leave(node, last, index)
        return made

    def _check_body(self, node: Node) -> None:
        """The steps of a scan are as they were; rows of the sequence may not meet in them."""
        body = self.values.program.body(node)
        for inner in body.nodes:
            times = [a for a in inner.axes if self.derivation.is_time(a)]
            named = [
                v
                for v in inner.attrs.values()
                if isinstance(v, Axis) and self.derivation.is_time(v)
            ]
            if any(map(self.values.is_key, times)) or (inner.op in MEETING and (times or named)):
                raise self.refusal(inner, "reads other positions in the steps of a `scan`")

    def repeat(self, node: Node) -> int:
        parts = self.loops[node.id]
        call = next(iter(parts.values())).call
        kinds = node.attrs["kinds"]
        assert isinstance(kinds, tuple)
        histories = [self._initial(node, i, r) for i, r in sorted(call.histories.items())]
        operands = (
            *(self.made[i] for i in node.inputs[: call.carried]),
            *histories,
            *(self.made[node.inputs[i]] for i in sorted(call.reads)),
            *(self.history(node.inputs[i], call.captured[i]) for i in sorted(call.captured)),
        )
        attrs = {
            **node.attrs,
            "kinds": tuple(parts[str(kind)].name for kind in kinds),
            "carried": call.carried + len(histories),
        }
        types = (
            *(self.type(t, self.keys) for t in node.types),
            *(self.builder[i].type for i in histories),
        )
        return self.builder.add("repeat", operands, attrs, types, node.origins, node.hint)

    def _initial(self, node: Node, index: int, reach: Reach) -> int:
        """The history a loop begins with: of nothing, if its first layer does not read it."""
        kinds = node.attrs["kinds"]
        assert isinstance(kinds, tuple)
        if index in self.plan.loops[node.id].kinds[str(kinds[0])].inputs:
            return self.history(node.inputs[index], reach)
        held = self.type(node.types[index], {self.decoded: self.derivation.history(reach)})
        zero = self.add("const", (), {"value": 0, "dtype": held.dtype})
        return self.add("broadcast", (zero,), {"axes": held.axes})


DECLARED = frozenset({"weight", "repeat", "scan", "table", "state", "input"})
_RULES: dict[str, Callable[[_Chunk, Node], int]] = {
    "input": _Chunk.given,
    "index": _Chunk.index,
    **dict.fromkeys(("sum", "amax", "dot", "softmax", "logsumexp", "topk"), _Chunk.reduced),
    "size": _Chunk.size,
    "rename": _Chunk.rename,
    "take": _Chunk.take,
    "cumsum": _Chunk.cumsum,
    "scan": _Chunk.scan,
    "repeat": _Chunk.repeat,
}
