"""One function: what it is given, which of its values are stored, each in its turn, what it leaves.

A value is *stored*, in a loop of its own, where an op sums or where computing it again costs
something; any other is computed by who reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ....compiler.ir.graph import Node
from ....compiler.ops import OPS
from ....compiler.passes.properties import is_elementwise
from ..emit import left
from .elements import Block, Env
from .frame import ZERO, Refused
from .layers import append, repeat
from .loops import Writer
from .places import NAMES, Place
from .products import dot
from .reductions import reduced, softmax

WRITTEN: dict[str, Callable[[Writer, Node], None]] = {
    "dot": dot,
    "sum": reduced,
    "amax": reduced,
    "softmax": softmax,
    "append": append,
    "repeat": repeat,
}
STORED = frozenset({"dot", "sum", "amax", "softmax"})
PLACED = frozenset({"input", "weight", "table", "derived", "state", "append", "repeat", "result"})
WITHIN = NAMES | {"const", "index", "size", "concat", "take", "dequantise"}
LIGHT = frozenset({"cast", "to_float", "stop_gradient"})


@dataclass(slots=True)
class FunctionWriter(Writer):
    """Writes a function. `direct` is what is written where the caller wants it."""

    direct: dict[int, str] = field(default_factory=dict)

    def render(self) -> str:
        parameters = self._parameters()
        stored = self._stored()
        for node in self.function.nodes:
            self._node(node, stored)
        self._leave()
        name = self.text.names[self.function.name]
        self.text.slots[self.function.name] = tuple(self.slots)
        needs = " + ".join(f"aligned({need})" for need in self.needs) or "0"
        return "\n".join(
            [
                f"int64_t need_{name}(const int64_t* given) {{",
                "  struct { const int64_t* sizes; } run{given};",
                f"  return {needs};",
                "}",
                "",
                f"void {name}({', '.join(['Run& run', *parameters])}) {{",
                f"  char* free = run.scratch{self._before()};",
                *(f"  {line}" for line in self.head),
                *self.blocks,
                "}",
            ]
        )

    def _before(self) -> str:
        """The scratch of the functions named before this one."""
        names = list(self.text.names.values())
        earlier = names[: names.index(self.text.names[self.function.name])]
        return "".join(f" + need_{name}(run.sizes)" for name in earlier)

    def _parameters(self) -> list[str]:
        """Values of the caller, and where it wants results; of main all are addresses asked for."""
        found = []
        for i, node_id in enumerate(self.function.inputs):
            node = self.function[node_id]
            if self.is_main:
                ctype = self.text.ctype(node.type)
                pointer = self.ask("input", node.attrs.string("name"), ctype, node.type)
            else:
                ctype = self.type(node.type)
                pointer = f"in_{i}"
                found.append(f"const {ctype}* {pointer}" if node.axes else f"{ctype} {pointer}")
            self.places[node_id] = Place(pointer, ctype, self.dense(node.axes))
            if not node.axes and not self.is_main:
                self.places[node_id] = Place(f"&{pointer}", ctype, {})
        named = [o for o in self.function.outputs if not o[0].startswith("state.")]
        for k, (name, node_id) in enumerate(named):
            node = self.function[node_id]
            if self.is_main:
                self.ask("output", name, self.text.ctype(node.type), node.type)
            else:
                found.append(f"{self.type(node.type)}* out_{k}")
                if is_elementwise(node) and node_id not in self.direct:
                    self.direct[node_id] = f"out_{k}"
        return found

    def _leave(self) -> None:
        """Results and the states that are not kept in place."""
        named = [o for o in self.function.outputs if not o[0].startswith("state.")]
        pointers = [s for s in zip(self.slots, self.pointers(), strict=True) if s[0].of == "output"]
        for k, (_, node_id) in enumerate(named):
            node = self.function[node_id]
            if self.is_main:
                slot, pointer = pointers[k]
                self.copy(node, pointer, slot.ctype)
            elif self.direct.get(node_id) != f"out_{k}":
                self.copy(node, f"out_{k}", self.type(node.type))
        for path, node_id in left(self.function):
            node = self.function[node_id]
            ctype = self.text.ctype(node.type)
            self.copy(node, self.ask("left", path, ctype, node.type), ctype)
        self.wait()

    def _stored(self) -> set[int]:
        """What is computed once, in a loop of its own."""
        found = {n.id for n in self.function.nodes if n.op in STORED} | set(self.direct)
        for node in self.function.nodes:
            if self._computes(node):
                readers = self._readers(node)
                again = len(readers) > 1 or any(self._repeats(node, *r) for r in readers)
                found |= {node.id} if again else set()
        return found

    def _computes(self, node: Node) -> bool:
        """Whether to have an element again costs something."""
        if node.op in LIGHT or node.type.dtype in ("int", "i8", "bool"):
            return False
        return node.op in ("concat", "take") or is_elementwise(node)

    def _readers(self, node: Node) -> list[tuple[Node, Node]]:
        """Who reads a value other than as a view or a cast of it, and the view."""
        users = self.function.users()
        found, todo = [], [node]
        while todo:
            view = todo.pop()
            for user in (self.function[i] for i in users[view.id]):
                if user.op in NAMES or user.op in LIGHT:
                    todo.append(user)
                else:
                    found.append((user, view))
        return found

    def _repeats(self, node: Node, reader: Node, view: Node) -> bool:
        if reader.op in ("dot", "repeat"):
            return True
        return is_elementwise(reader) and not set(reader.axes) <= set(view.axes)

    def _node(self, node: Node, stored: set[int]) -> None:
        rule = WRITTEN.get(node.op)
        if rule is not None:
            rule(self, node)
        elif node.id in stored:
            self._compute(node)
        elif node.op not in PLACED | WITHIN and OPS[node.op].cpp is None:
            raise Refused(f"`{node.op}`")

    def _compute(self, node: Node) -> None:
        pointer = self.direct.get(node.id)
        if pointer is None:
            self.new(node, node.axes)
        else:
            self.places[node.id] = Place(pointer, self.type(node.type), self.dense(node.axes))
        place = self.places[node.id]
        assert place is not None
        if node.op == "concat":
            self._join(node, place)
        else:
            self.each(
                node.axes,
                lambda b, env: self.put(b, place, env, self.made(b, node, env)),
                place.pointer,
            )

    def _join(self, node: Node, place: Place) -> None:
        """A loop for each part."""
        axis, start = node.attrs.axis("axis"), ZERO
        for source, part in zip(node.inputs, node.attrs.axes("parts"), strict=True):
            axes = tuple(part if a == axis else a for a in node.axes)
            offset = place.offset + place.strides[axis] * start
            strides = {part if a == axis else a: s for a, s in place.strides.items()}
            there = Place(place.pointer, place.ctype, strides, offset)
            self.each(axes, partial(self._copied, source, there), place.pointer)
            start = start + part.size

    def _copied(self, source: int, place: Place, block: Block, env: Env) -> None:
        self.put(block, place, env, self.element(block, source, env))
