"""Where a value lies: a pointer, and a stride for each axis. A view of it is other strides over the same.

Weights, states and codes lie where their module has them, values of a loop of their own in scratch.
What lies nowhere in one piece has no place: its elements are computed where they are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ....compiler.ir.graph import Axis, Node, elements
from ....compiler.ops.quantise import Format
from ....dsl.dims import Dim
from .frame import ONE, ZERO, Frame, Refused

GROUP = 32  # of `rows.h`: codes that share a scale
NAMES = frozenset({"rename", "transpose", "split", "merge", "slice", "pick", "broadcast"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value lies: its element at an index is at `offset` + the sum of index * stride."""

    pointer: str
    ctype: str
    strides: Mapping[Axis, Dim]
    offset: Dim = ZERO


@dataclass(slots=True)
class Places(Frame):
    """Values' places. `coded` are the scales, offsets and the type of both, by the pointer to codes."""

    places: dict[int, Place | None] = field(default_factory=dict)
    coded: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def place(self, node_id: int) -> Place | None:
        """Where a value lies, if it does so in one piece."""
        if node_id not in self.places:
            self.places[node_id] = self._placed(self.function[node_id])
        return self.places[node_id]

    def _placed(self, node: Node) -> Place | None:
        if node.op in ("weight", "table", "derived"):
            return self._tensor(node, 0)
        if node.op == "result":
            return self._tensor(self.function[node.inputs[0]], node.attrs.integer("index"))
        if node.op == "state":
            return self._state(node)
        if node.op == "dequantise":
            return self._codes(node)
        if node.op in NAMES:
            source = self.place(node.inputs[0])
            return source and self._view(node, source)
        if node.op == "cast" and self.type(self.function[node.inputs[0]].type) == "float":
            return self.place(node.inputs[0])
        return None

    def _tensor(self, node: Node, index: int) -> Place:
        if node.op not in ("weight", "table", "derived"):
            raise Refused(f"a result of `{node.op}`")
        kept = self.text.kept(self.function.name, self.own[node.id])[index]
        pointer = self.ask("tensor", kept.attribute, kept.ctype, node.types[index])
        axes = [a for group in kept.layout for a in group]
        if set(axes) != set(node.types[index].axes):
            raise Refused("a tensor that is broadcast")
        return Place(pointer, kept.ctype, self.dense(axes))

    def _state(self, node: Node) -> Place:
        path = node.attrs.string("path")
        ctype = self.text.of_state(self.function.name, path)
        pointer = self.ask("state", path, ctype, node.type)
        strides = {}
        for axis in node.axes:
            name = self.fresh("stride")
            self.head.append(f"const int64_t {name} = *run.at++;")
            self.strides[name] = name
            strides[axis] = Dim.symbol(name)
        if node.axes:
            strides[node.axes[-1]] = ONE if node.axes[-1].time is None else strides[node.axes[-1]]
        return Place(pointer, ctype, strides)

    def _codes(self, node: Node) -> Place | None:
        """Codes that lie as the kernels read them."""
        form = Format.of(node.attrs)
        stored = [self.place(i) for i in node.inputs]
        codes, scales, *offsets = stored
        length = self.number(form.axis.size)
        if codes is None or scales is None or None in offsets or length % GROUP:
            return None
        whole = codes.strides[form.packed] == ONE == scales.strides[form.groups]
        if form.group != GROUP or not whole:
            return None
        strides = {a: s * form.per_byte for a, s in codes.strides.items() if a != form.packed}
        offset = offsets[0].pointer if offsets and offsets[0] is not None else ""
        self.coded[codes.pointer] = scales.pointer, offset, scales.ctype
        return Place(codes.pointer, f"coded{form.bits}", {**strides, form.axis: ONE})

    def _view(self, node: Node, source: Place) -> Place | None:
        attrs, strides, offset = node.attrs, dict(source.strides), source.offset
        if node.op == "rename":
            new = dict(attrs.pairs("pairs"))
            strides = {new.get(a, a): s for a, s in strides.items()}
        elif node.op == "split":
            stride = strides.pop(attrs.axis("axis"))
            for axis in reversed(attrs.axes("into")):
                strides[axis] = stride
                stride = self.static(stride * axis.size)
        elif node.op == "merge":
            parts = attrs.axes("axes")
            stride = strides[parts[-1]]
            expected = stride
            for axis in reversed(parts):
                if strides.pop(axis) != expected and self.static(axis.size) != ONE:
                    return None
                expected = self.static(expected * axis.size)
            strides[attrs.axis("into")] = stride
        elif node.op == "slice":
            stride = strides.pop(attrs.axis("axis"))
            offset = self.static(offset + stride * attrs.dim("start"))
            strides[attrs.axis("into")] = stride * attrs.integer("step")
        elif node.op == "pick":
            offset = self.static(offset + strides.pop(attrs.axis("axis")) * attrs.dim("at"))
        elif node.op == "broadcast":
            strides |= dict.fromkeys(attrs.axes("axes"), ZERO)
        return Place(source.pointer, source.ctype, strides, offset)

    def new(self, node: Node, axes: Sequence[Axis]) -> Place:
        """Scratch for a value, laid out as `axes`."""
        made = self.buffer(self.type(node.type), axes)
        self.places[node.id] = made
        return made

    def buffer(self, ctype: str, axes: Sequence[Axis]) -> Place:
        pointer = self.scratch(ctype, self.length(elements(axes)))
        return Place(pointer, ctype, self.dense(axes))

    def dense(self, axes: Sequence[Axis]) -> dict[Axis, Dim]:
        strides, stride = {}, ONE
        for axis in reversed(axes):
            strides[axis] = stride
            stride = self.static(stride * axis.size)
        return {axis: strides[axis] for axis in axes}

    def is_dense(self, place: Place, order: Sequence[Axis]) -> bool:
        wanted = self.dense(order)
        return set(order) == set(place.strides) and all(
            place.strides[a] == wanted[a] or self.static(a.size) == ONE for a in order
        )
