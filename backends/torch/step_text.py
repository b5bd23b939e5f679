"""A program that goes on from states, as one C++ function: what a step of few rows runs.

    step(sizes, tensors, scratch, threads)     all layers, all threads, without Python in between

Fused nodes are written out first. A value is then either *stored*, in a loop over its elements that
the threads share, or computed where it is read: views are arithmetic on indices, and elementwise ops
that one loop reads are part of it. A product with a weight is a kernel of `rows.h`. Threads wait for
each other where a loop reads what an earlier one has written. Floats are computed in float32 and
rounded where they are kept. What has no text yet raises `Refused`: such a program runs in PyTorch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ...compiler.ir.graph import Axis, Builder, DType, Function, Node, Program, TensorType
from ...compiler.ir.walk import calls
from ...compiler.ops import OPS
from ...compiler.ops.quantise import Format
from ...compiler.passes.properties import is_elementwise
from ...dsl.dims import Dim, product
from .emit import left
from .layout import Layout

ONE, ZERO = Dim.of(1), Dim()
GROUP = 32  # of `rows.h`: codes that share a scale
TYPES: dict[DType, str] = {
    "float": "float",
    "f32": "float",
    "int": "int64_t",
    "i8": "int8_t",
    "bool": "bool",
}
WRITTEN_OUT = frozenset({"pointwise", "linear", "attend"})
NAMES = frozenset({"rename", "transpose", "split", "merge", "slice", "pick", "broadcast"})
STORED = frozenset({"dot", "sum", "amax", "softmax"})
PLACED = frozenset({"input", "weight", "table", "derived", "state", "append", "repeat", "result"})
WITHIN = NAMES | {"const", "index", "size", "concat", "take", "dequantise"}
LIGHT = frozenset({"cast", "to_float", "stop_gradient"})
# Elementwise ops over operands that have the types of `Op.operands`.
ELEMENTWISE = {
    "exp": "exponential({0})",
    "log": "std::log({0})",
    "log1p": "std::log1p({0})",
    "sqrt": "std::sqrt({0})",
    "rsqrt": "(1 / std::sqrt({0}))",
    "sin": "std::sin({0})",
    "cos": "std::cos({0})",
    "tanh": "std::tanh({0})",
    "sigmoid": "sigmoid({0})",
    "erf": "std::erf({0})",
    "round": "std::nearbyint({0})",
    "floor": "std::floor({0})",
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "floordiv": "quotient({0}, {1})",
    "mod": "remainder_of({0}, {1})",
    "pow": "std::pow({0}, {1})",
    "min": "least({0}, {1})",
    "max": "greatest({0}, {1})",
    "eq": "({0} == {1})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "where": "({0} ? {1} : {2})",
    "abs": "std::abs({0})",
    "not": "(!{0})",
    "to_int": "int64_t({0})",
    "to_float": "float({0})",
    "stop_gradient": "{0}",
    "cast": "float({0})",
}
HEAD = '#include "step.h"\n\nnamespace {{\n\n{functions}\n\n}}  // namespace\n'
STEP = """
extern "C" int64_t scratch(const int64_t* sizes) {{ return {needs}; }}

// Whether an index was outside of what it is for.
extern "C" bool step(const int64_t* sizes, const int64_t* tensors, char* memory, int threads) {{
  Team team{{threads}};
  std::atomic<bool> outside{{false}};
  helpers.run(threads, [&](int thread) {{
    Run run{{sizes, tensors, memory, thread, &team, &outside}};
    {main}(run);
  }});
  return outside;
}}
"""

Env = Mapping[Axis, str]
Of = Literal["tensor", "state", "left", "input", "output"]


class Refused(Exception):
    """Why a program has no such text."""


@dataclass(frozen=True, slots=True)
class Slot:
    """An address that a function asks for: a tensor of its module, a state, an input, a result.

    A state is followed by its strides.
    """

    of: Of
    name: str
    ctype: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Text:
    """The text, the symbols whose sizes it is given, and what each function asks for, in order."""

    text: str
    symbols: tuple[str, ...]
    slots: Mapping[str, tuple[Slot, ...]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value lies: its element at an index is at `offset` + the sum of index * stride."""

    pointer: str
    ctype: str
    strides: Mapping[Axis, Dim]
    offset: Dim = ZERO


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor of a module: the type of its elements and the axes of each dimension."""

    attribute: str
    ctype: str
    layout: Layout


def step_text(
    program: Program,
    kept: Callable[[str, int], tuple[Kept, ...]],
    ctype: Callable[[TensorType], str],
    of_state: Callable[[str, str], str],
) -> Text:
    """`kept` is what a module has of a node of a function: weights, tables, what is derived of them.

    `ctype` and `of_state` are the types of elements of inputs and results, and of the state at a path
    of a function. Raises Refused.
    """
    writer = _Text(program, kept, ctype, of_state)
    functions = [writer.function(f) for f in reversed(program.functions) if f.name in writer.names]
    main = writer.names[program.main_name]
    declared = "\n".join(f"int64_t need_{name}(const int64_t*);" for name in writer.names.values())
    head = HEAD.format(functions="\n\n".join([declared, *functions]))
    needs = " + ".join(f"need_{name}(sizes)" for name in writer.names.values())
    return Text(head + STEP.format(needs=needs, main=main), tuple(writer.symbols), writer.slots)


def written_out(program: Program, function: Function) -> tuple[Function, dict[int, int]]:
    """The function with the bodies of fused nodes in place of them, and the old ids of its own nodes."""
    builder = Builder(function.name)
    own: dict[int, int] = {}  # new: old
    results: dict[int, list[int]] = {}

    def write(source: Function, values: dict[int, int], *, outer: bool) -> None:
        for node in source.nodes:
            if node.id in values:
                continue
            given = tuple(values[i] for i in node.inputs if i in values)
            if node.op in WRITTEN_OUT:
                body = program.body(node)
                inner = dict(zip(body.inputs, given, strict=True))
                write(body, inner, outer=False)
                results[node.id] = [inner[i] for i in body.output_ids]
                values[node.id] = results[node.id][0]
            elif node.op == "result" and outer and node.inputs[0] in results:
                values[node.id] = results[node.inputs[0]][node.attrs.integer("index")]
            else:
                made = builder.add(node.op, given, node.attrs, node.types, node.origins, node.hint)
                values[node.id] = made
                if outer:
                    own[made] = node.id

    values: dict[int, int] = {}
    write(function, values, outer=True)
    outputs = [(name, values[i]) for name, i in function.outputs]
    inputs = tuple(values[i] for i in function.inputs)
    return Function(function.name, builder.nodes, inputs, tuple(outputs)), own


@dataclass(slots=True)
class _Text:
    """What the functions of a text share."""

    program: Program
    kept: Callable[[str, int], tuple[Kept, ...]]
    ctype: Callable[[TensorType], str]
    of_state: Callable[[str, str], str]
    names: dict[str, str] = field(default_factory=dict)  # of main and the layer kinds
    symbols: list[str] = field(default_factory=list)
    slots: dict[str, tuple[Slot, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for _, function in calls(self.program):
            stem = re.sub(r"\W", "_", function.name)
            self.names.setdefault(function.name, f"run_{stem}_{len(self.names)}")

    def function(self, function: Function) -> str:
        writer = _Function(self, *written_out(self.program, function))
        return writer.render()

    def symbol(self, name: str) -> str:
        if name not in self.symbols:
            self.symbols.append(name)
        return f"run.sizes[{self.symbols.index(name)}]"


@dataclass(slots=True)
class _Block:
    """Statements of a loop's body; an element that is read twice is read once."""

    indent: int
    lines: list[str] = field(default_factory=list)
    memo: dict[tuple[object, ...], str] = field(default_factory=dict)

    def line(self, text: str) -> None:
        self.lines.append("  " * self.indent + text)

    def inner(self, indent: int = 1) -> _Block:
        return _Block(self.indent + indent, [], dict(self.memo))


@dataclass(slots=True)
class _Function:
    """Writes one function. `dirty` are the pointers written since the threads last waited."""

    text: _Text
    function: Function
    own: Mapping[int, int]
    head: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    places: dict[int, Place | None] = field(default_factory=dict)
    lengths: dict[Dim, str] = field(default_factory=dict)
    strides: dict[str, str] = field(default_factory=dict)  # symbol of a stride: its name
    coded: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    direct: dict[int, str] = field(
        default_factory=dict
    )  # what is written where the caller wants it
    reads: set[str] = field(default_factory=set)
    dirty: set[str] = field(default_factory=set)
    count: int = 0

    # ------------------------------------------------------------------------------ the whole

    @property
    def is_main(self) -> bool:
        return self.function.name == self.text.program.main_name

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
                pointer = self._ask("input", node.attrs.string("name"), ctype, node.type)
            else:
                ctype = self._type(node.type)
                pointer = f"in_{i}"
                found.append(f"const {ctype}* {pointer}" if node.axes else f"{ctype} {pointer}")
            self.places[node_id] = Place(pointer, ctype, self._dense(node.axes))
            if not node.axes and not self.is_main:
                self.places[node_id] = Place(f"&{pointer}", ctype, {})
        named = [o for o in self.function.outputs if not o[0].startswith("state.")]
        for k, (name, node_id) in enumerate(named):
            node = self.function[node_id]
            if self.is_main:
                self._ask("output", name, self.text.ctype(node.type), node.type)
            else:
                found.append(f"{self._type(node.type)}* out_{k}")
                if is_elementwise(node) and node_id not in self.direct:
                    self.direct[node_id] = f"out_{k}"
        return found

    def _ask(self, of: Of, name: str, ctype: str, kind: TensorType) -> str:
        """The name of the pointer to something outside."""
        pointer = self._fresh("p")
        constant = "" if of in ("left", "output", "state") else "const "
        self.slots.append(Slot(of, name, ctype, kind))
        self.head.append(f"{constant}{ctype}* {pointer} = run.next<{constant}{ctype}>();")
        return pointer

    def _leave(self) -> None:
        """Results and the states that are not kept in place."""
        named = [o for o in self.function.outputs if not o[0].startswith("state.")]
        pointers = [
            s for s in zip(self.slots, self._pointers(), strict=True) if s[0].of == "output"
        ]
        for k, (_, node_id) in enumerate(named):
            node = self.function[node_id]
            if self.is_main:
                slot, pointer = pointers[k]
                self._copy(node, pointer, slot.ctype)
            elif self.direct.get(node_id) != f"out_{k}":
                self._copy(node, f"out_{k}", self._type(node.type))
        for path, node_id in left(self.function):
            node = self.function[node_id]
            ctype = self.text.ctype(node.type)
            self._copy(node, self._ask("left", path, ctype, node.type), ctype)
        self._wait()

    def _pointers(self) -> list[str]:
        found = [re.search(r"(\w+) = run\.next", line) for line in self.head]
        return [match[1] for match in found if match is not None]

    # ------------------------------------------------------------------------------- planning

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

    # -------------------------------------------------------------------------------- emission

    def _node(self, node: Node, stored: set[int]) -> None:
        rule = {
            "dot": self._dot,
            "sum": self._reduced,
            "amax": self._reduced,
            "softmax": self._softmax,
            "append": self._append,
            "repeat": self._repeat,
        }.get(node.op)
        if rule is not None:
            rule(node)
        elif node.id in stored:
            self._compute(node)
        elif node.op not in PLACED | WITHIN and node.op not in ELEMENTWISE:
            raise Refused(f"`{node.op}`")

    def _compute(self, node: Node) -> None:
        pointer = self.direct.get(node.id)
        if pointer is None:
            self._new(node, node.axes)
        else:
            self.places[node.id] = Place(pointer, self._type(node.type), self._dense(node.axes))
        place = self.places[node.id]
        assert place is not None
        if node.op == "concat":
            self._join(node, place)
        else:
            self._each(
                node.axes,
                lambda b, env: self._put(b, place, env, self._made(b, node, env)),
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
            self._each(
                axes,
                lambda b, env, s=source, p=there: self._put(b, p, env, self.element(b, s, env)),
                place.pointer,
            )  # type: ignore[misc]
            start = start + part.size

    def _copy(self, node: Node, pointer: str, ctype: str) -> None:
        there = Place(pointer, ctype, self._dense(node.axes))
        self._each(
            node.axes,
            lambda b, env: self._put(b, there, env, self.element(b, node.id, env)),
            pointer,
        )

    def _put(self, block: _Block, place: Place, env: Env, value: str) -> None:
        block.line(f"store({value}, {place.pointer} + {self._address(place, env)});")

    def _append(self, node: Node) -> None:
        """Rows are written behind those that are kept."""
        state, rows = (self.function[i] for i in node.inputs)
        held, (part, added) = self.place(state.id), node.attrs.axes("parts")
        if state.op != "state" or held is None:
            raise Refused("an append to what is no state")
        stride = held.strides[part]
        others = {a: s for a, s in held.strides.items() if a != part}
        there = Place(held.pointer, held.ctype, {**others, added: stride}, stride * part.size)
        self._each(
            rows.axes,
            lambda b, env: self._put(b, there, env, self.element(b, rows.id, env)),
            held.pointer,
        )
        whole = {**others, node.attrs.axis("axis"): stride}
        self.places[node.id] = Place(held.pointer, held.ctype, whole)

    def _reduced(self, node: Node) -> None:
        axes, ctype = node.attrs.axes("axes"), self._type(node.type)
        place = self._new(node, node.axes)
        first = {
            "sum": "0",
            "amax": {"float": "-INFINITY", "int64_t": "-(int64_t(1) << 31)"}.get(ctype, "false"),
        }[node.op]
        join = {"sum": "total += {0};", "amax": "total = greatest(total, {0});"}[node.op]
        source = self.function[node.inputs[0]]
        ordered = [a for a in source.axes if a in axes]

        def body(block: _Block, env: Env) -> None:
            block.line(f"{ctype} total = {first};")
            self._nest(
                block,
                ordered,
                env,
                lambda b, e: b.line(join.format(f"{ctype}({self.element(b, source.id, e)})")),
                summed=node.op == "sum" and ctype != "bool",
            )
            self._put(block, place, env, "total")

        self._each(node.axes, body, place.pointer)

    def _softmax(self, node: Node) -> None:
        axis = node.attrs.axis("axis")
        rows = tuple(a for a in node.axes if a != axis)
        place = self._new(node, (*rows, axis))
        length = self._length(axis.size)

        def body(block: _Block, env: Env) -> None:
            block.line(
                f"float* row = {place.pointer} + {self._address(place, {**env, axis: '0'})};"
            )
            block.line("float most = -3.402823466e38f, total = 0;")
            index = self._fresh("i")
            block.line(f"for (int64_t {index} = 0; {index} < {length}; {index}++) {{")
            inner = block.inner()
            inner.line(
                f"row[{index}] = {self.element(inner, node.inputs[0], {**env, axis: index})};"
            )
            inner.line(f"most = greatest(most, row[{index}]);")
            block.lines += inner.lines
            block.line("}")
            block.line("#pragma omp simd reduction(+:total)")
            block.line(
                f"for (int64_t i = 0; i < {length}; i++) total += row[i] = exponential(row[i] - most);"
            )
            block.line("const float scale = 1 / std::max(total, 1.0f);")
            block.line(f"for (int64_t i = 0; i < {length}; i++) row[i] *= scale;")

        self._each((*rows, ONLY), body, place.pointer)

    # -------------------------------------------------------------------------------- products

    def _dot(self, node: Node) -> None:
        for x, w in (node.inputs, node.inputs[::-1]):
            if self._matrix(node, x, w):
                return
        self._general(node)

    def _matrix(self, node: Node, x: int, w: int) -> bool:
        """A few rows times a weight, where it is stored as the kernels read it."""
        place, given = self.place(w), self.function[x]
        if place is None or not self._is_weight(place) or self._type(node.type) != "float":
            return False
        inner = set(node.attrs.axes("axes"))
        outer = {*place.strides} - inner
        if not inner <= set(given.axes) or not inner <= {*place.strides} or outer & set(given.axes):
            return False
        order = sorted(place.strides, key=lambda a: -self._number(place.strides[a]))
        columns, summed = [a for a in order if a in outer], [a for a in order if a in inner]
        sizes = {a: self._number(self._static(a.size)) for a in order}
        if order != [*columns, *summed] or not self._is_dense(place, order) or place.offset != ZERO:
            return False
        k, n = (math.prod(sizes[a] for a in axes) for axes in (summed, columns))
        rows = [a for a in given.axes if a not in inner]
        source = self._rows(given, rows, summed)
        made = self._new(node, (*rows, *columns))
        count = self._length(product([a.size for a in rows]))
        kernel = self._kernel(place, k)
        if place.ctype == "coded4":
            kernel, source = self._paired(kernel, source, count, k)
        self.reads |= {source}
        self._stage(
            [f"  product(run, {kernel}, {source}, {made.pointer}, {count}, {n}, {k});"],
            made.pointer,
        )
        return True

    def _is_weight(self, place: Place) -> bool:
        named = {p for s, p in zip(self.slots, self._pointers(), strict=True) if s.of == "tensor"}
        return place.pointer in named and place.ctype in ("float", "uint16_t", "coded8", "coded4")

    def _rows(self, given: Node, rows: Sequence[Axis], summed: Sequence[Axis]) -> str:
        """A pointer to the operand as a matrix of rows."""
        place, order = self.place(given.id), [*rows, *summed]
        if (
            place is not None
            and place.ctype == "float"
            and place.offset == ZERO
            and self._is_dense(place, order)
        ):
            return place.pointer
        packed = self._buffer("float", order)
        self._each(
            tuple(order),
            lambda b, env: self._put(b, packed, env, self.element(b, given.id, env)),
            packed.pointer,
        )
        return packed.pointer

    def _kernel(self, place: Place, k: int) -> str:
        if not place.ctype.startswith("coded"):
            return f"Plain<{place.ctype}>{{{place.pointer}, {k}}}"
        scales, offsets, ctype = self.coded[place.pointer]
        if place.ctype == "coded8":
            return f"Bytes<{ctype}>{{{place.pointer}, {scales}, {k}}}"
        codes = f"reinterpret_cast<const uint8_t*>({place.pointer})"
        return f"Nibbles<{ctype}>{{{codes}, {scales}, {offsets}, sums, {k}}}"

    def _paired(self, kernel: str, source: str, count: str, k: int) -> tuple[str, str]:
        pairs, sums = (
            self._scratch("float", f"{count} * {k}"),
            self._scratch("float", f"{count} * {k // GROUP}"),
        )
        self.reads |= {source}
        self._stage([f"  pair(run, {source}, {pairs}, {sums}, {count} * {k});"], pairs)
        return kernel.replace("sums", sums), pairs

    def _general(self, node: Node) -> None:
        """A loop over all axes, the one along which an operand lies in memory inside."""
        summed = [*node.attrs.axes("axes")]
        fast = self._fast(node)
        a, b = node.inputs
        ctype = self._type(node.type)

        def term(block: _Block, env: Env) -> str:
            left_, right = (f"{ctype}({self.element(block, i, env)})" for i in (a, b))
            return f"{left_} * {right}"

        if fast is None or fast in summed:
            summed = [x for x in summed if x != fast] + ([fast] if fast else [])
            place = self._new(node, node.axes)

            def body(block: _Block, env: Env) -> None:
                block.line(f"{ctype} total = 0;")
                self._nest(
                    block, summed, env, lambda b, e: b.line(f"total += {term(b, e)};"), summed=True
                )
                self._put(block, place, env, "total")

            self._each(node.axes, body, place.pointer)
            return
        rest = tuple(x for x in node.axes if x != fast)
        place = self._new(node, (*rest, fast))
        length = self._length(fast.size)

        def across(block: _Block, env: Env) -> None:
            block.line(
                f"{ctype}* row = {place.pointer} + {self._address(place, {**env, fast: '0'})};"
            )
            block.line(f"for (int64_t i = 0; i < {length}; i++) row[i] = 0;")
            index = self._fresh("i")

            def add(b: _Block, e: Env) -> None:
                b.line(f"row[{index}] += {term(b, e)};")

            self._nest(block, [*summed, fast], env, add, last=index)

        self._each((*rest, ONLY), across, place.pointer)

    def _fast(self, node: Node) -> Axis | None:
        """The axis with a stride of 1 in the operand that has more axes, or lies outside."""
        found = [
            (len(p.strides), a)
            for p in map(self.place, node.inputs)
            if p is not None
            for a, s in p.strides.items()
            if s == ONE and (a in node.axes or a in node.attrs.axes("axes"))
        ]
        outside = [
            a
            for i in node.inputs
            for p in [self.place(i)]
            if p is not None and self._is_held(p)
            for a, s in p.strides.items()
            if s == ONE
        ]
        if outside and (outside[-1] in node.axes or outside[-1] in node.attrs.axes("axes")):
            return outside[-1]
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def _is_held(self, place: Place) -> bool:
        slots = zip(self.slots, self._pointers(), strict=True)
        return any(p == place.pointer and s.of == "state" for s, p in slots)

    # ---------------------------------------------------------------------------------- layers

    def _repeat(self, node: Node) -> None:
        if "exit" in node.attrs:
            raise Refused("an exit")
        kinds, scalars = node.attrs["kinds"], node.attrs["scalars"]
        assert isinstance(kinds, tuple)
        assert isinstance(scalars, tuple)
        carried, pairs = len(node.types), []
        for k, kind in enumerate(node.types):
            pair = [self._buffer(self._type(kind), kind.axes) for _ in range(2)]
            self._copy_to(node.inputs[k], pair[0])
            pairs.append(pair)
        captured = [self._plain(i) for i in node.inputs[carried:]]
        columns = [self._table(values) for values in scalars]
        layer = self._fresh("layer")
        given = [*(p[0].pointer for p in pairs), *captured, *(f"{c}[{layer}]" for c in columns)]
        arguments = ", ".join(["run", *given, *(p[1].pointer for p in pairs)])
        self._wait()
        names = list(dict.fromkeys(map(str, kinds)))
        lines = [f"  for (int64_t {layer} = 0; {layer} < {len(kinds)}; {layer}++) {{"]
        if len(names) == 1:
            lines.append(f"    {self.text.names[names[0]]}({arguments});")
        else:
            table = self._table([names.index(str(kind)) for kind in kinds])
            lines.append(f"    switch (int({table}[{layer}])) {{")
            lines += [
                f"      case {i}: {self.text.names[n]}({arguments}); break;"
                for i, n in enumerate(names)
            ]
            lines.append("    }")
        lines += [f"    std::swap({a.pointer}, {b.pointer});" for a, b in pairs]
        self.blocks += [*lines, "  }"]
        results = [n for n in self.function.nodes if n.op == "result" and n.inputs == (node.id,)]
        for result in results:
            self.places[result.id] = pairs[result.attrs.integer("index")][0]

    def _copy_to(self, node_id: int, there: Place) -> None:
        axes = tuple(there.strides)
        self._each(
            axes,
            lambda b, env: self._put(b, there, env, self.element(b, node_id, env)),
            there.pointer,
        )

    def _plain(self, node_id: int) -> str:
        """A pointer to a value as its type has it."""
        node = self.function[node_id]
        place = self.place(node_id)
        dense = place is not None and place.offset == ZERO and place.ctype == self._type(node.type)
        if place is not None and dense and node.axes and self._is_dense(place, node.axes):
            return place.pointer
        made = self._buffer(self._type(node.type), node.axes)
        self._copy_to(node_id, made)
        return made.pointer if node.axes else f"*{made.pointer}"

    def _table(self, values: Sequence[object]) -> str:
        name = self._fresh("table")
        numbers = ", ".join(repr(float(str(v))) for v in values)
        self.head.append(f"static const double {name}[] = {{{numbers}}};")
        return name

    # ---------------------------------------------------------------------------------- places

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
        if node.op == "cast" and self._type(self.function[node.inputs[0]].type) == "float":
            return self.place(node.inputs[0])
        return None

    def _tensor(self, node: Node, index: int) -> Place:
        if node.op not in ("weight", "table", "derived"):
            raise Refused(f"a result of `{node.op}`")
        kept = self.text.kept(self.function.name, self.own[node.id])[index]
        pointer = self._ask("tensor", kept.attribute, kept.ctype, node.types[index])
        axes = [a for group in kept.layout for a in group]
        if set(axes) != set(node.types[index].axes):
            raise Refused("a tensor that is broadcast")
        return Place(pointer, kept.ctype, self._dense(axes))

    def _state(self, node: Node) -> Place:
        path = node.attrs.string("path")
        ctype = self.text.of_state(self.function.name, path)
        pointer = self._ask("state", path, ctype, node.type)
        strides = {}
        for axis in node.axes:
            name = self._fresh("stride")
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
        length = self._number(form.axis.size)
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
                stride = self._static(stride * axis.size)
        elif node.op == "merge":
            parts = attrs.axes("axes")
            stride = strides[parts[-1]]
            expected = stride
            for axis in reversed(parts):
                if strides.pop(axis) != expected and self._static(axis.size) != ONE:
                    return None
                expected = self._static(expected * axis.size)
            strides[attrs.axis("into")] = stride
        elif node.op == "slice":
            stride = strides.pop(attrs.axis("axis"))
            offset = self._static(offset + stride * attrs.dim("start"))
            strides[attrs.axis("into")] = stride * attrs.integer("step")
        elif node.op == "pick":
            offset = self._static(offset + strides.pop(attrs.axis("axis")) * attrs.dim("at"))
        elif node.op == "broadcast":
            strides |= dict.fromkeys(attrs.axes("axes"), ZERO)
        return Place(source.pointer, source.ctype, strides, offset)

    def _new(self, node: Node, axes: Sequence[Axis]) -> Place:
        """Scratch for a value, laid out as `axes`."""
        made = self._buffer(self._type(node.type), axes)
        self.places[node.id] = made
        return made

    def _buffer(self, ctype: str, axes: Sequence[Axis]) -> Place:
        pointer = self._scratch(ctype, self._length(product([a.size for a in axes])))
        return Place(pointer, ctype, self._dense(axes))

    def _scratch(self, ctype: str, size: str) -> str:
        pointer = self._fresh("v")
        self.head.append(f"{ctype}* {pointer} = take<{ctype}>(free, {size});")
        whole = re.sub(r"\bn_\d+\b", lambda m: f"({self._spelled[m[0]]})", size)
        self.needs.append(f"({whole}) * int64_t(sizeof({ctype}))")
        return pointer

    @property
    def _spelled(self) -> dict[str, str]:
        """What each length is."""
        return {name: self._dim(dim) for dim, name in self.lengths.items()}

    def _dense(self, axes: Sequence[Axis]) -> dict[Axis, Dim]:
        strides, stride = {}, ONE
        for axis in reversed(axes):
            strides[axis] = stride
            stride = self._static(stride * axis.size)
        return {axis: strides[axis] for axis in axes}

    def _is_dense(self, place: Place, order: Sequence[Axis]) -> bool:
        wanted = self._dense(order)
        return set(order) == set(place.strides) and all(
            place.strides[a] == wanted[a] or self._static(a.size) == ONE for a in order
        )

    # -------------------------------------------------------------------------------- elements

    def element(self, block: _Block, node_id: int, env: Env) -> str:
        """The element of a value at the indices of `env`, as an expression."""
        node = self.function[node_id]
        key = (node_id, *(env.get(a) for a in node.axes))
        if key not in block.memo:
            place = self.place(node_id)
            text = self._made(block, node, env) if place is None else self._load(place, env)
            if re.fullmatch(r"[\w.]+", text) is None and node.op != "const":
                name = self._fresh("x")
                block.line(f"const {self._type(node.type)} {name} = {text};")
                text = name
            block.memo[key] = text
        return block.memo[key]

    def _load(self, place: Place, env: Env) -> str:
        self.reads.add(place.pointer)
        at = self._address(place, env)
        if place.ctype in ("coded8", "coded4"):
            scales, offsets, _ = self.coded[place.pointer]
            scale, group = f"wide({scales}[({at}) / {GROUP}])", f"({at}) / {GROUP}"
            if place.ctype == "coded8":
                return f"(float({place.pointer}[{at}]) * {scale})"
            return f"(nibble({place.pointer}, {at}) * {scale} + wide({offsets}[{group}]))"
        read = f"{place.pointer}[{at}]" if not place.pointer.startswith("&") else place.pointer[1:]
        return f"wide({read})" if place.ctype == "uint16_t" else read

    def _address(self, place: Place, env: Env) -> str:
        terms = [] if place.offset == ZERO else [self._dim(place.offset)]
        for axis, stride in place.strides.items():
            if stride == ZERO or env.get(axis) == "0":
                continue
            terms.append(env[axis] if stride == ONE else f"{env[axis]} * ({self._dim(stride)})")
        return " + ".join(terms) or "0"

    def _made(self, block: _Block, node: Node, env: Env) -> str:
        """An element that is computed where it is read."""
        if node.op in ELEMENTWISE:
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
            return f"int64_t({self._length(node.attrs.axis('axis').size)})"
        if node.op in NAMES:
            return self.element(block, node.inputs[0], self._moved(node, env))
        raise Refused(f"`{node.op}` where it is read")

    def _elementwise(self, block: _Block, node: Node, env: Env) -> str:
        operands = [self.function[i] for i in node.inputs]
        kinds = OPS[node.op].operands(tuple(o.type.dtype for o in operands))
        texts = []
        for operand, kind in zip(operands, kinds, strict=True):
            text, wanted = self.element(block, operand.id, env), self._type(TensorType(kind))
            same = self._type(operand.type) == wanted
            texts.append(text if same else f"{wanted}({text})")
        return ELEMENTWISE[node.op].format(*texts)

    def _const(self, node: Node) -> str:
        value, ctype = node.attrs["value"], self._type(node.type)
        if isinstance(value, Dim):
            return f"{ctype}({self._length(value)})"
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
                index = f"({index} * ({self._dim(axis.size)}) + {env[axis]})"
            moved[attrs.axis("axis")] = index
        elif node.op == "merge":
            rest = env[attrs.axis("into")]
            for axis in reversed(attrs.axes("axes")):
                size = self._length(axis.size)
                moved[axis], rest = f"({rest} % {size})", f"({rest} / {size})"
        elif node.op == "slice":
            step, start = attrs.integer("step"), self._dim(attrs.dim("start"))
            moved[attrs.axis("axis")] = f"({start} + {step} * {env[attrs.axis('into')]})"
        elif node.op == "pick":
            moved[attrs.axis("axis")] = f"({self._dim(attrs.dim('at'))})"
        return moved

    def _concat(self, block: _Block, node: Node, env: Env) -> str:
        axis, start, text = node.attrs.axis("axis"), ZERO, ""
        parts = node.attrs.axes("parts")
        for source, part in zip(node.inputs, parts, strict=True):
            index = f"({env[axis]} - ({self._dim(start)}))"
            start = start + part.size
            there = self._apart(block, source, {**env, part: index})
            last = part == parts[-1] and source == node.inputs[-1]
            text += there if last else f"{env[axis]} < {self._dim(start)} ? {there} : "
        return f"({text})"

    def _take(self, block: _Block, node: Node, env: Env) -> str:
        axis, fill = node.attrs.axis("axis"), node.attrs["fill"]
        source, index = node.inputs
        at = self.element(block, index, env)
        inside = f"uint64_t({at}) < uint64_t({self._length(axis.size)})"
        there = self._apart(block, source, {**env, axis: at})
        ctype = self._type(node.type)
        if fill is None:
            return f"({inside} ? {there} : (run.outside->store(true), {ctype}(0)))"
        assert isinstance(fill, int | float)
        return f"({inside} ? {there} : {ctype}({fill!r}))"

    def _raised(self, block: _Block, node: Node, env: Env) -> str:
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

    def _apart(self, block: _Block, node_id: int, env: Env) -> str:
        """An element that is read only if it is there."""
        inner = _Block(0, [], dict(block.memo))
        text = self.element(inner, node_id, env)
        if not inner.lines:
            return text
        return f"[&] {{ {' '.join(inner.lines)} return {text}; }}()"

    # ----------------------------------------------------------------------------------- loops

    def _each(
        self, axes: tuple[Axis, ...], body: Callable[[_Block, Env], None], written: str
    ) -> None:
        """All elements along `axes`, shared among the threads: the flat range, cut anywhere."""
        *outer, inner = axes or (ONLY,)
        total, length = self._length(product([a.size for a in axes])), self._length(inner.size)
        block, env = _Block(3), {}
        row, index = self._fresh("row"), self._fresh("i")
        lines = [
            f"  if (const Part part = run.part({total}); part.begin < part.end) {{",
            f"    for (int64_t {row} = part.begin / {length}; {row} * {length} < part.end; {row}++) {{",
        ]
        rest = row
        for axis in reversed(outer):
            name, size = self._fresh("i"), self._length(axis.size)
            whole = axis == outer[0]
            lines.append(f"      const int64_t {name} = {rest}{'' if whole else f' % {size}'};")
            rest, env[axis] = f"({rest} / {size})", name
        bounds = (
            f"std::max(part.begin - {row} * {length}, int64_t(0))",
            f"std::min(part.end - {row} * {length}, int64_t({length}))",
        )
        lines.append(f"      const int64_t first = {bounds[0]}, last = {bounds[1]};")
        lines.append("#pragma GCC ivdep")
        lines.append(f"      for (int64_t {index} = first; {index} < last; {index}++) {{")
        env[inner] = index
        block.indent = 4
        body(block, env)
        self._stage([*lines, *block.lines, "      }", "    }", "  }"], written)

    def _nest(
        self,
        block: _Block,
        axes: Sequence[Axis],
        env: Env,
        body: Callable[[_Block, Env], None],
        *,
        summed: bool = False,
        last: str = "",
    ) -> None:
        """Loops of one thread, the last axis inside."""
        if not axes:
            inner = block.inner(0)
            body(inner, env)
            block.lines += inner.lines
            return
        axis, *others = axes
        index = last if last and not others else self._fresh("i")
        if not others:
            block.lines.append(
                "#pragma omp simd reduction(+:total)" if summed else "#pragma GCC ivdep"
            )
        block.line(f"for (int64_t {index} = 0; {index} < {self._length(axis.size)}; {index}++) {{")
        inner = block.inner()
        self._nest(inner, others, {**env, axis: index}, body, summed=summed, last=last)
        block.lines += inner.lines
        block.line("}")

    def _stage(self, lines: Iterable[str], written: str) -> None:
        if self.reads & self.dirty:
            self._wait()
        self.reads = set()
        self.dirty.add(written)
        self.blocks += lines

    def _wait(self) -> None:
        self.blocks.append("  run.wait();")
        self.dirty = set()

    # ----------------------------------------------------------------------------------- sizes

    def _fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def _type(self, kind: TensorType) -> str:
        if kind.dtype not in TYPES:
            raise Refused(f"values of {kind.dtype}")
        return TYPES[kind.dtype]

    def _static(self, dim: Dim) -> Dim:
        return dim.substitute(self.text.program.sizes)

    def _number(self, dim: Dim) -> int:
        found = self._static(dim).constant
        return -1 if found is None else found

    def _length(self, dim: Dim) -> str:
        """A size as a number or a name."""
        dim = self._static(dim)
        if dim.constant is not None:
            return str(dim.constant)
        if dim not in self.lengths:
            self.lengths[dim] = name = self._fresh("n")
            self.head.append(f"const int64_t {name} = {self._dim(dim)};")
        return self.lengths[dim]

    def _dim(self, dim: Dim) -> str:
        terms = []
        for monomial, coefficient in self._static(dim).terms:
            factors = [str(coefficient)] if coefficient != 1 or not monomial else []
            for atom in monomial:
                if not atom.args:
                    factors.append(self.strides.get(atom.name) or self.text.symbol(atom.name))
                    continue
                word = {"floordiv": "quotient", "min": "std::min", "max": "std::max"}[atom.name]
                first, second = (f"int64_t({self._dim(arg)})" for arg in atom.args)
                factors.append(f"{word}({first}, {second})")
            terms.append(" * ".join(factors))
        return " + ".join(terms) or "0"


ONLY = Axis("", ONE)  # of a loop whose body has the last axis itself
