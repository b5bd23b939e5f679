"""An element of a value at given indices, as an expression of C++.

A value with a place is read there, any other is computed: elementwise ops by the template of their
stanza, views by arithmetic on indices. Floats are computed in float32, whatever they are stored in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ....compiler.ir.graph import Axis, Node, TensorType
from ....compiler.ops import OPS
from ....compiler.ops.quantise import Format
from ....dsl.dims import Dim
from .frame import ONE, ZERO, Refused
from .places import GROUP, NAMES, Place, Places

Env = Mapping[Axis, str]


@dataclass(slots=True)
class Block:
    """Statements of a loop's body; an element that is read twice is read once."""

    indent: int
    lines: list[str] = field(default_factory=list)
    memo: dict[tuple[object, ...], str] = field(default_factory=dict)

    def line(self, text: str) -> None:
        self.lines.append("  " * self.indent + text)

    def inner(self, indent: int = 1) -> Block:
        return Block(self.indent + indent, [], dict(self.memo))


@dataclass(slots=True)
class Elements(Places):
    """Reads values. `reads` are the pointers that were read since the last loop was done."""

    reads: set[str] = field(default_factory=set)

    def element(self, block: Block, node_id: int, env: Env) -> str:
        """The element of a value at the indices of `env`, as an expression."""
        node = self.function[node_id]
        key = (node_id, *(env.get(a) for a in node.axes))
        if key not in block.memo:
            place = self.place(node_id)
            text = self.made(block, node, env) if place is None else self._load(place, env)
            if re.fullmatch(r"[\w.]+", text) is None and node.op != "const":
                name = self.fresh("x")
                block.line(f"const {self.type(node.type)} {name} = {text};")
                text = name
            block.memo[key] = text
        return block.memo[key]

    def _load(self, place: Place, env: Env) -> str:
        self.reads.add(place.pointer)
        at = self.address(place, env)
        if place.ctype in ("coded8", "coded4"):
            scales, offsets, _ = self.coded[place.pointer]
            scale, group = f"wide({scales}[({at}) / {GROUP}])", f"({at}) / {GROUP}"
            if place.ctype == "coded8":
                return f"(float({place.pointer}[{at}]) * {scale})"
            return f"(nibble({place.pointer}, {at}) * {scale} + wide({offsets}[{group}]))"
        read = f"{place.pointer}[{at}]" if not place.pointer.startswith("&") else place.pointer[1:]
        return f"wide({read})" if place.ctype == "uint16_t" else read

    def address(self, place: Place, env: Env) -> str:
        terms = [] if place.offset == ZERO else [self.dim(place.offset)]
        for axis, stride in place.strides.items():
            if stride == ZERO or env.get(axis) == "0":
                continue
            terms.append(env[axis] if stride == ONE else f"{env[axis]} * ({self.dim(stride)})")
        return " + ".join(terms) or "0"

    def made(self, block: Block, node: Node, env: Env) -> str:
        """An element that is computed where it is read."""
        if OPS[node.op].cpp is not None:
            return self._elementwise(block, node, env)
        inner = {"concat": self._concat, "take": self._take, "dequantise": self._raised}
        rule = inner.get(node.op)
        if rule is not None:
            return rule(block, node, env)
        if node.op == "const":
            return self._const(node)
        if node.op == "index":
            return f"int64_t({env[node.attrs.axis('axis')]})"
        if node.op == "size":
            return f"int64_t({self.length(node.attrs.axis('axis').size)})"
        if node.op in NAMES:
            return self.element(block, node.inputs[0], self._moved(node, env))
        raise Refused(f"`{node.op}` where it is read")

    def _elementwise(self, block: Block, node: Node, env: Env) -> str:
        operands = [self.function[i] for i in node.inputs]
        op = OPS[node.op]
        kinds = op.operands(tuple(o.type.dtype for o in operands))
        template = op.template("cpp", kinds[-1])
        assert template is not None
        texts = []
        for operand, kind in zip(operands, kinds, strict=True):
            text, wanted = self.element(block, operand.id, env), self.type(TensorType(kind))
            same = self.type(operand.type) == wanted
            texts.append(text if same else f"{wanted}({text})")
        return template.format(*texts)

    def _const(self, node: Node) -> str:
        value, ctype = node.attrs["value"], self.type(node.type)
        if isinstance(value, Dim):
            return f"{ctype}({self.length(value)})"
        assert isinstance(value, int | float)
        if ctype == "float":
            number = float(value)
            if math.isinf(number) or math.isnan(number):
                return "NAN" if math.isnan(number) else "INFINITY" if number > 0 else "(-INFINITY)"
            return f"float({number!r})"
        return f"{ctype}({int(value)})"

    def _moved(self, node: Node, env: Env) -> dict[Axis, str]:
        """The indices of a view's operand."""
        attrs, moved = node.attrs, dict(env)
        if node.op == "rename":
            moved |= {old: env[new] for old, new in attrs.pairs("pairs")}
        elif node.op == "split":
            index = "0"
            for axis in attrs.axes("into"):
                index = f"({index} * ({self.dim(axis.size)}) + {env[axis]})"
            moved[attrs.axis("axis")] = index
        elif node.op == "merge":
            rest = env[attrs.axis("into")]
            for axis in reversed(attrs.axes("axes")):
                size = self.length(axis.size)
                moved[axis], rest = f"({rest} % {size})", f"({rest} / {size})"
        elif node.op == "slice":
            step, start = attrs.integer("step"), self.dim(attrs.dim("start"))
            moved[attrs.axis("axis")] = f"({start} + {step} * {env[attrs.axis('into')]})"
        elif node.op == "pick":
            moved[attrs.axis("axis")] = f"({self.dim(attrs.dim('at'))})"
        return moved

    def _concat(self, block: Block, node: Node, env: Env) -> str:
        axis, start, text = node.attrs.axis("axis"), ZERO, ""
        parts = node.attrs.axes("parts")
        for source, part in zip(node.inputs, parts, strict=True):
            index = f"({env[axis]} - ({self.dim(start)}))"
            start = start + part.size
            there = self._apart(block, source, {**env, part: index})
            last = part == parts[-1] and source == node.inputs[-1]
            text += there if last else f"{env[axis]} < {self.dim(start)} ? {there} : "
        return f"({text})"

    def _take(self, block: Block, node: Node, env: Env) -> str:
        axis, fill = node.attrs.axis("axis"), node.attrs["fill"]
        source, index = node.inputs
        at = self.element(block, index, env)
        inside = f"uint64_t({at}) < uint64_t({self.length(axis.size)})"
        there = self._apart(block, source, {**env, axis: at})
        ctype = self.type(node.type)
        if fill is None:
            return f"({inside} ? {there} : (run.outside->store(true), {ctype}(0)))"
        assert isinstance(fill, int | float)
        return f"({inside} ? {there} : {ctype}({fill!r}))"

    def _raised(self, block: Block, node: Node, env: Env) -> str:
        """An entry of a weight in few bits, as of a row that an index picks."""
        form, index = Format.of(node.attrs), env[Format.of(node.attrs).axis]
        place = {
            form.packed: f"({index} / {form.per_byte})",
            form.groups: f"({index} / {form.group})",
        }
        code, scale, *offset = (self.element(block, i, {**env, **place}) for i in node.inputs)
        if form.bits == 8:
            return f"(float({code}) * {scale})"
        nibble = f"({index} % 2 ? uint8_t({code}) >> 4 : uint8_t({code}) & 15)"
        return f"(float({nibble} - 8) * {scale} + {offset[0]})"

    def _apart(self, block: Block, node_id: int, env: Env) -> str:
        """An element that is read only if it is there."""
        inner = Block(0, [], dict(block.memo))
        text = self.element(inner, node_id, env)
        if not inner.lines:
            return text
        return f"[&] {{ {' '.join(inner.lines)} return {text}; }}()"
