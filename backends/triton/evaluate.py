"""`Evaluator.value(node, coordinates)`: Triton text that computes any node at given coordinates.

Coordinates map the node's axes to index polynomials (`indexing.py`). Pointwise ops use their
templates; structural ops only change the coordinates; leaves become masked loads; reductions are
evaluated where they are first needed, in a tile or a loop (`reduce.py`). Every (node, coordinates)
is computed once. Floats compute in float32; `stored` marks a value still in the format of memory.
"""

from __future__ import annotations

import keyword
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ...compiler.ir.graph import Axis, DType, Node
from ...compiler.ops import OPS, SCANS, Call, Precision, evaluate
from ...compiler.ops.quantise import MIDDLE, Format
from ...dsl.dims import Dim
from ...dsl.errors import NoLowering
from ..base import span_of
from .descriptors import DESCRIPTORS, Matrix, NoMatrix, matrix
from .indexing import Coordinates, Indices, Tiles, Var, identifier, join
from .mapping import VIEWS, restrict, view
from .regions import Region
from .scopes import ROOT, Scope, deepest

if TYPE_CHECKING:
    from .reduce import Reducer

Number = bool | int | float
TRITON_TYPES: dict[DType, str] = {
    "bool": "tl.int1",
    "int": "tl.int32",
    "i8": "tl.int32",
    "float": "tl.float32",
    "f32": "tl.float32",
}
FORMATS = {
    "f64": "tl.float32",  # what computes in float32 is a float64 already
    "f32": "tl.float32",
    "bf16": "tl.bfloat16",
    "f16": "tl.float16",
    "f8_e4m3": "tl.float8e4nv",
    "f8_e5m2": "tl.float8e5",
}
LONGEST_NESTED = 60
# Names that generated kernels use.
RESERVED = frozenset(
    "tl range float product greater greatest stored_wide_dot wide_stored_dot".split()
)


@dataclass(frozen=True, slots=True)
class Value:
    """Text that is safe as an operand, what it holds, along which tile dimensions it varies."""

    text: str
    dtype: DType
    tiles: Tiles = frozenset()
    scope: Scope = ROOT
    stored: bool = False
    number: Number | None = None

    @property
    def is_name(self) -> bool:
        return self.number is not None or self.text.isidentifier()


def literal(number: Number, dtype: DType | None = None) -> Value:
    if isinstance(number, bool):
        return Value(str(number), dtype or "bool", number=number)
    if isinstance(number, int):
        return Value(f"({number})" if number < 0 else str(number), dtype or "int", number=number)
    text = repr(number)
    if text in ("inf", "-inf", "nan"):
        text = f'float("{text}")'
    return Value(f"({text})" if number < 0 else text, dtype or "float", number=number)


def refuse(node: Node, what: str = "") -> NoLowering:
    return NoLowering(op=what or node.op, backend="triton", span=span_of(node))


@dataclass(slots=True)
class Evaluator:
    """Writes the body of one kernel. `pointers` collects the leaves that it loads, by node id."""

    region: Region
    indices: Indices
    body: Scope = field(repr=False)
    reducer: Reducer = field(init=False)
    pointers: dict[int, str] = field(default_factory=dict)
    known: dict[tuple[object, ...], Value] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=Counter)
    uses: Counter[int] = field(default_factory=Counter)
    letters: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, Value] = field(default_factory=dict)  # masks by name
    multiplied: set[int] = field(default_factory=set)  # leaves that are operands of products as is
    carried: dict[int, tuple[Coordinates, Value]] = field(default_factory=dict)  # states of a scan
    wide: set[tuple[str, ...]] = field(default_factory=set)  # shapes of aligned contiguous loads
    described: dict[str, str] | None = None  # why not through a descriptor, or "", by operand
    matrices: dict[object, str] = field(default_factory=dict)  # descriptors by what they describe
    opened: tuple[str, int] = ("", 0)  # the condition under which the body's last lines stand
    waiting: set[int] = field(default_factory=set)  # nodes that a loop of products comes before

    def __post_init__(self) -> None:
        for node in self.region.nodes.values():
            if node.op == "dot":
                self.multiplied.update(map(self._source, node.inputs))
            if node.op == "dot" or not self.waiting.isdisjoint(node.inputs):
                self.waiting.add(node.id)
        if self.region.node.op in SCANS:  # all of a step is inside the one loop
            self.waiting.clear()
        self.uses.update(i for n in self.region.nodes.values() for i in n.inputs)
        self.uses.update(self.region.outputs)

    def _source(self, node_id: int) -> int:
        node = self.region.nodes[node_id]
        while node.op in VIEWS or node.op in ("cast", "take"):
            node = self.region.nodes[node.inputs[0]]
        return node.id

    def value(self, node_id: int, at: Coordinates) -> Value:
        node = self.region.nodes[node_id]
        key = (node_id, *(at[axis] for axis in node.axes))
        return self.once(key, lambda: self._rule(node)(node, restrict(at, node.axes)))

    def once(self, key: tuple[object, ...], make: Callable[[], Value]) -> Value:
        """What `make` gave for this key, unless it was in a loop that has ended."""
        found = self.known.get(key)
        if found is None or found.scope.closed:
            found = self.known[key] = make()
        return found

    def _rule(self, node: Node) -> Callable[[Node, Mapping[Axis, Dim]], Value]:
        types = (node.type, *(o.type for o in self.region.operands(node)))
        if any(t.dtype == "f64" for t in types):
            raise refuse(node, f"{node.op} in f64")
        if node.op in VIEWS:
            return self._view
        if node.op in OPS and OPS[node.op].pointwise:
            return self._pointwise
        rule = RULES.get(node.op)
        if rule is None:
            raise refuse(node)
        return lambda n, at: rule(self, n, at)

    # ------------------------------------------------------------------------------- statements

    def assign(self, text: str, dtype: DType, tiles: Tiles, scope: Scope, base: str) -> Value:
        """A new name for `text`, defined in `scope`."""
        name = self.fresh(base, tiles)
        self.scope(scope).add(f"{name} = {_bare(text)}")
        return Value(name, dtype, tiles, scope)

    def fresh(self, base: str, tiles: Tiles = frozenset()) -> str:
        """An unused name: `base`, the letters of its tile dimensions, a number if need be."""
        if base in RESERVED or keyword.iskeyword(base) or base.startswith(("n_", "BLOCK_")):
            base += "_"
        letters = "".join(self.letters.get(block, "D") for _, block in sorted(tiles))
        name = f"{base}_{letters}" if letters else base
        self.names[name] += 1
        count = self.names[name]
        return name if count == 1 else f"{name}_{count}"

    def scope(self, scope: Scope) -> Scope:
        return self.body if scope is ROOT else scope

    def condition(self, text: str, tiles: Tiles, scope: Scope, base: str) -> Value:
        """A named mask."""
        made = self.assign(text, "bool", tiles, scope, base)
        self.conditions[made.text] = made
        return made

    def named(self, value: Value, base: str = "v") -> Value:
        if value.is_name:
            return value
        made = self.assign(value.text, value.dtype, value.tiles, value.scope, base)
        return replace(made, stored=value.stored)

    # ------------------------------------------------------------------------------- conversion

    def convert(self, value: Value, dtype: DType) -> Value:
        """The value in registers as `dtype`."""
        if value.number is not None:
            cast = {"bool": bool, "int": int}.get(dtype, float)
            return literal(cast(value.number), dtype)
        wanted, have = TRITON_TYPES[dtype], TRITON_TYPES[value.dtype]
        if wanted == have and not value.stored:
            return value
        return replace(value, text=f"{value.text}.to({wanted})", dtype=dtype, stored=False)

    def shape(self, tiles: Tiles) -> str:
        lengths = dict(tiles)
        return f"({lengths.get(0, '1')}, {lengths.get(1, '1')})"

    def spread(self, value: Value, tiles: Tiles) -> Value:
        """The value repeated to exactly the shape of `tiles`."""
        if value.tiles == tiles:
            return value
        shape = self.shape(tiles)
        if value.number is not None or not value.tiles:
            text = f"{value.text} + tl.zeros({shape}, {TRITON_TYPES[value.dtype]})"
        else:
            text = f"tl.broadcast_to({value.text}, {shape})"
        return replace(value, text=text, tiles=tiles, number=None)

    def masked(self, value: Value, masks: Iterable[str], neutral: Value) -> Value:
        """The value where all masks hold, else `neutral`."""
        texts = sorted(masks)
        if not texts:
            return value
        conditions = [self.conditions[m] for m in texts if m in self.conditions]
        return replace(
            value,
            text=f"tl.where({' & '.join(texts)}, {value.text}, {neutral.text})",
            tiles=value.tiles.union(*(c.tiles for c in conditions)),
            scope=deepest([value.scope, *(c.scope for c in conditions)]),
            number=None,
        )

    # ------------------------------------------------------------------------------------ rules

    def _view(self, node: Node, at: Coordinates) -> Value:
        return self.value(node.inputs[0], view(self.indices, self.region, node, at))

    def _pointwise(self, node: Node, at: Coordinates) -> Value:
        """What waits for products comes first, so that no register holds the rest through a loop."""
        op, operands = OPS[node.op], self.region.operands(node)
        kinds = op.operands(tuple(o.type.dtype for o in operands))
        order = sorted(operands, key=lambda o: o.id not in self.waiting)
        values = {o.id: self.value(o.id, restrict(at, o.axes)) for o in order}
        args = [self.convert(values[o.id], kind) for o, kind in zip(operands, kinds, strict=True)]
        if all(a.number is not None for a in args):
            return self._folded(node, args)
        if node.op in ("cast", "stop_gradient"):
            return replace(self.convert(args[0], node.type.dtype), dtype=node.type.dtype)
        if node.op == "where" and args[0].number is not None:
            return args[1 if args[0].number else 2]
        return self._expression(node, kinds[-1], args)

    def _folded(self, node: Node, args: Sequence[Value]) -> Value:
        types = tuple(o.type for o in self.region.operands(node))
        call = Call(node.attrs, types, node.types, {}, Precision("f64"))
        (result,) = evaluate(node.op, call, [np.asarray(a.number) for a in args])
        return literal(result.item(), node.type.dtype)

    def _expression(self, node: Node, kind: DType, args: Sequence[Value]) -> Value:
        template = OPS[node.op].template("triton", kind)
        words = {"dtype": TRITON_TYPES[node.type.dtype]}
        if "format" in node.attrs:
            words["format"] = FORMATS[node.attrs.string("format")]
        if template is None:
            raise refuse(node)
        scope = deepest(a.scope for a in args)
        ready = [
            self.named(a) if template.count(f"{{{i}}}") > 1 or a.scope is not scope else a
            for i, a in enumerate(args)
        ]
        tiles = frozenset().union(*(a.tiles for a in ready))
        text = template.format(*(a.text for a in ready), **words)
        dtype = node.type.dtype
        if self.uses[node.id] == 1 and not node.hint and len(text) <= LONGEST_NESTED:
            return Value(text, dtype, tiles, scope)
        return self.assign(text, dtype, tiles, scope, identifier(node.hint or node.op))

    def load(self, leaf: int, pointer: str, address: Dim, dtype: DType) -> Value:
        """A masked load; what is only computed with is widened at once."""
        base = self.region.names[leaf]
        address = self.indices.expand(address)
        masks, scope = sorted(self.indices.masks(address)), self.indices.scope(address)
        where = f", mask={' & '.join(masks)}, other=0" if masks else ""
        text = f"tl.load({pointer} + {self.indices.text(address)}{where})"
        text += ".to(tl.int32)" if dtype in ("int", "i8") else ""
        stored = dtype not in ("int", "i8", "bool")
        if stored and leaf not in self.multiplied:
            text, stored = f"{text}.to(tl.float32)", False
        described = self._described(leaf, pointer, address, dtype)
        if described is None:
            made = self.assign(text, dtype, self.indices.tiles(address), scope, base)
        else:
            made = self._either(described, text, address, base)
        if dtype in ("float", "f32") and self._is_wide(address, masks):
            self.wide.add(tuple(length for _, length in sorted(made.tiles)))
        return replace(made, stored=stored)

    def _described(
        self, leaf: int, pointer: str, address: Dim, dtype: DType
    ) -> tuple[str, str] | None:
        """The condition and the text of a load through a descriptor, of a tile of a product."""
        tiles = self.indices.tiles(address)
        wanted = self.described is not None and leaf in self.multiplied and dtype == "float"
        if not wanted or self.described is None or len(tiles) != 2:
            return None
        try:
            found = matrix(self.indices, address)
            if self.scope(self.indices.scope(found.base)) is not self.body:
                raise NoMatrix("it begins elsewhere in each step")
        except NoMatrix as reason:
            self.described[pointer] = str(reason)
            return None
        self.described.setdefault(pointer, "")
        self.reducer.blocks.add(DESCRIPTORS)
        made = self._descriptor(found, pointer, self.region.names[leaf])
        text = f"{made}.load([{found.row.first}, {found.entry.first}])"
        return found.condition, f"tl.trans({text})" if found.is_turned else text

    def _descriptor(self, of: Matrix, pointer: str, name: str) -> str:
        """The name of the descriptor, which is made before the loop."""
        if (pointer, of) not in self.matrices:
            made = self.fresh(f"{name}_tiles")
            self.matrices[pointer, of] = made
            base = "" if of.base == Dim() else f" + {self.indices.text(of.base)}"
            shape = ", ".join(self.integer(v.extent or Dim.of(1)).text for v in (of.row, of.entry))
            block = ", ".join(length for v in (of.row, of.entry) for _, length in v.tiles)
            stride = self.integer(of.stride).text
            if self.opened != (of.condition, len(self.body.lines)):
                self.body.add(f"if {of.condition}:")
            self.body.add(
                f"    {made} = tl.make_tensor_descriptor("
                f"{pointer}{base}, [{shape}], [{stride}, 1], [{block}])"
            )
            self.opened = of.condition, len(self.body.lines)
        return self.matrices[pointer, of]

    def _either(self, described: tuple[str, str], text: str, address: Dim, base: str) -> Value:
        """A load through a descriptor where the device has such, else through pointers."""
        (condition, load), tiles = described, self.indices.tiles(address)
        scope, name = self.indices.scope(address), self.fresh(base, tiles)
        for line in (f"if {condition}:", f"    {name} = {load}", "else:", f"    {name} = {text}"):
            self.scope(scope).add(line)
        return Value(name, "float", tiles, scope)

    def _is_wide(self, address: Dim, masks: Sequence[str]) -> bool:
        """Whether 16 bytes at a time are surely addressed along one dimension, under one mask."""
        lane = self.indices.lane(address)
        if lane is None:
            return False
        along = {m for m in masks if lane.tiles <= self.conditions[m].tiles}
        return along <= lane.masks and self.indices.is_aligned(lane.extent or Dim.of(1))

    def _leaf(self, node: Node, at: Coordinates) -> Value:
        if node.id not in self.pointers:
            self.pointers[node.id] = self.fresh(f"{self.region.names[node.id]}_ptr")
        sizes = [self.region.stored(node.id, a) for a in node.axes]
        address = join([at[a] for a in node.axes], sizes)
        return self.load(node.id, self.pointers[node.id], address, node.type.dtype)

    def _carried(self, node: Node, at: Coordinates) -> Value:
        """A state of a scan, of which a program has the elements at its own places, either way round."""
        places, value = self.carried[node.id]
        own, wanted = ([self.indices.expand(x[a]) for a in node.axes] for x in (places, at))
        if own == wanted:
            return value
        if [self.reducer.turned(place) for place in own] != wanted:
            raise refuse(node, f"other elements of `{node.hint or 'a state'}` than a program's own")
        tiles = frozenset((1 - slot, block) for slot, block in value.tiles)
        return self.assign(f"tl.trans({value.text})", value.dtype, tiles, value.scope, value.text)

    def integer(self, a: Dim) -> Value:
        """An index polynomial as a value."""
        a = self.indices.expand(a)
        if a.constant is not None:
            return literal(a.constant)
        text = self.indices.text(a)
        text = text if text.isidentifier() else f"({text})"
        return Value(text, "int", self.indices.tiles(a), self.indices.scope(a))

    def _const(self, node: Node, at: Coordinates) -> Value:
        value = node.attrs["value"]
        if isinstance(value, Dim):
            return self.integer(value.substitute(self.region.sizes))
        assert isinstance(value, Number)
        return self.convert(literal(value), node.type.dtype)

    def _index(self, node: Node, at: Coordinates) -> Value:
        return self.integer(at[node.attrs.axis("axis")])

    def _size(self, node: Node, at: Coordinates) -> Value:
        return self.integer(self.region.size(node.attrs.axis("axis")))

    def _concat(self, node: Node, at: Coordinates) -> Value:
        """The part that holds the coordinate: chosen here if that is certain, else by `where`."""
        where = at[node.attrs.axis("axis")]
        pieces: list[tuple[int, Dim, Dim]] = []
        start = Dim()
        for source, part in zip(node.inputs, node.attrs.axes("parts"), strict=True):
            size = self.region.size(part)
            if self.indices.within(where - start, size):
                return self._part(node, source, at, where - start)
            pieces.append((source, start, start + size))
            start = start + size
        chosen: Value | None = None
        for source, begin, end in reversed(pieces):
            here = self.convert(self._guarded(node, source, at, begin, end), node.type.dtype)
            chosen = here if chosen is None else self._choose(where, end, here, chosen)
        assert chosen is not None
        return self.named(chosen, identifier(node.hint or node.op))

    def _part(self, node: Node, source: int, at: Coordinates, inside: Dim) -> Value:
        part = node.attrs.axes("parts")[node.inputs.index(source)]
        return self.value(source, {**at, part: inside})

    def _guarded(self, node: Node, source: int, at: Coordinates, begin: Dim, end: Dim) -> Value:
        """A part read where the joined coordinate lies in it; masked elsewhere."""
        where = at[node.attrs.axis("axis")]
        if end - begin == Dim.of(1):
            return self._part(node, source, at, Dim())
        text, conditions = self.integer(where).text, []
        if begin != Dim():
            conditions.append(f"({text} >= {self.integer(begin).text})")
        if end != self.region.size(node.attrs.axis("axis")):
            conditions.append(f"({text} < {self.integer(end).text})")
        inside = self.alias(where - begin, end - begin, " & ".join(conditions))
        return self._part(node, source, at, inside)

    def alias(self, a: Dim, extent: Dim | None, condition: str) -> Dim:
        """`a` under a condition: loads that use it are masked by the condition."""
        tiles, scope = self.indices.tiles(a), self.indices.scope(a)
        holds = self.condition(condition, tiles, scope, "inside")
        made = self.assign(self.integer(a).text, "int", tiles, scope, "at")
        masks = self.indices.masks(a) | {holds.text}
        return self.indices.add(Var(made.text, extent, tiles, masks, scope))

    def _choose(self, where: Dim, end: Dim, here: Value, other: Value) -> Value:
        at = self.integer(where)
        scope = deepest((at.scope, here.scope, other.scope))
        tiles = at.tiles | here.tiles | other.tiles
        text = f"tl.where({at.text} < {self.integer(end).text}, {here.text}, {other.text})"
        return Value(text, here.dtype, tiles, scope)

    def _take(self, node: Node, at: Coordinates) -> Value:
        x, by = self.region.operands(node)
        axis, fill = node.attrs.axis("axis"), node.attrs["fill"]
        index = self.as_index(by.id, restrict(at, by.axes))
        others = {a: at[a] for a in x.axes if a != axis}
        size = self.region.size(axis)
        if fill is None or self.indices.within(index, size):
            return self.value(x.id, {**others, axis: index})
        text = self.integer(index).text
        inside = self.alias(index, size, f"({text} >= 0) & ({text} < {self.integer(size).text})")
        holds = max(self.indices.masks(inside) - self.indices.masks(index))
        found = self.convert(self.value(x.id, {**others, axis: inside}), node.type.dtype)
        assert isinstance(fill, Number)
        return self.masked(found, [holds], literal(fill))

    def _dequantise(self, node: Node, at: Coordinates) -> Value:
        """The code at a coordinate, with its group's scale: 4 bits are the low or high half of a byte."""
        form = Format.of(node.attrs)
        byte, half = self.indices.divide(at[form.axis], Dim.of(form.per_byte))
        places = (byte, *[self.indices.divide(at[form.axis], Dim.of(form.group))[0]] * 2)
        code, *steps = (
            self.value(i, {**at, part: place})
            for i, part, place in zip(node.inputs, form.parts, places, strict=False)
        )
        text = code.text
        scope, tiles = code.scope, code.tiles
        if form.bits == 4:
            shift = self.integer(half)
            text = f"({text} >> (4 * {shift.text}) & 15) - {MIDDLE}"
            scope, tiles = deepest((scope, shift.scope)), tiles | shift.tiles
        text = f"({text}).to(tl.float32)"
        for operator, step in zip("*+", steps, strict=False):
            value = self.convert(step, "float")
            text = f"{text} {operator} {value.text}"
            scope, tiles = deepest((scope, value.scope)), tiles | value.tiles
        return self.assign(text, node.type.dtype, tiles, scope, identifier(node.hint or "weight"))

    def as_index(self, node_id: int, at: Coordinates) -> Dim:
        """An integer value as an index polynomial; opaque where it depends on data."""
        node = self.region.nodes[node_id]
        if node.op in VIEWS:
            return self.as_index(node.inputs[0], view(self.indices, self.region, node, at))
        if node.op in AFFINE:
            a, b = (self.as_index(o.id, restrict(at, o.axes)) for o in self.region.operands(node))
            return AFFINE[node.op](a, b)
        if node.op == "index":
            return at[node.attrs.axis("axis")]
        if node.op == "size":
            return self.region.size(node.attrs.axis("axis"))
        value = self.value(node_id, at)
        if isinstance(value.number, int):
            return Dim.of(value.number)
        value = self.named(value, "index")
        masks = frozenset().union(*(self.indices.masks(at[a]) for a in node.axes))
        return self.indices.add(Var(value.text, None, value.tiles, masks, value.scope))


AFFINE: dict[str, Callable[[Dim, Dim], Dim]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
}
Rule = Callable[[Evaluator, Node, Mapping[Axis, Dim]], Value]
RULES: dict[str, Rule] = {
    "leaf": Evaluator._leaf,
    "carried": Evaluator._carried,
    "const": Evaluator._const,
    "index": Evaluator._index,
    "size": Evaluator._size,
    "concat": Evaluator._concat,
    "take": Evaluator._take,
    "dequantise": Evaluator._dequantise,
    "sum": lambda e, node, at: e.reducer.reduced(node, at),
    "amax": lambda e, node, at: e.reducer.amax(node, at),
    "cumsum": lambda e, node, at: e.reducer.cumsum(node, at),
    "cumprod": lambda e, node, at: e.reducer.cumprod(node, at),
    "substitute": lambda e, node, at: e.reducer.substitute(node, at),
    "softmax": lambda e, node, at: e.reducer.softmax(node, at),
    "logsumexp": lambda e, node, at: e.reducer.logsumexp(node, at),
    "dot": lambda e, node, at: e.reducer.reduced(node, at),
}


def _bare(text: str) -> str:
    """`text` without parentheses that enclose all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for position, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0 and position < len(text) - 1:
            return text
    return text[1:-1]
