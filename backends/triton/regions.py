"""Kernels to be: a region is the flattened graph of one kernel, with memory at its leaves.

A fused node is replaced by its body. Views of its operands, constants and indices of the function
around it are taken in as well, for they cost nothing but address arithmetic; any other operand is a
`leaf`. A primitive node is a region of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...compiler.ir.graph import Axis, Function, Node, Origin, Program
from ...compiler.ops import FUSED, SCANS
from ...compiler.ops.attend import plan_attend
from ...compiler.passes.visible_keys import RANGED
from ...dsl.dims import Dim
from .indexing import identifier

# Sources and views: addressing only, never a kernel.
FREE = frozenset(
    "const index size broadcast rename split merge slice pick transpose stop_gradient".split()
)
# What the host provides: values that exist before a function's kernels run, or calls of functions.
HOST = frozenset("input state append weight table derived repeat result".split()) | SCANS
# Where an array comes from that may have room for more slots than the value has: it is of a state.
ROOMY = frozenset({"append", "state", "input", "result"})


@dataclass(frozen=True, slots=True)
class Attend:
    """What is tiled in an attention: along `keys`, `softmaxes` by the contraction that they weigh.

    `sums` are the contractions of what no softmax weighs, as the gradients of an attention are. The
    mask proves query - lower <= key <= query + upper where these are given; `first` and `stop` are the
    first key that each row sees, and the one behind its last.
    """

    keys: Axis
    softmaxes: dict[int, int]
    query: Axis | None = None
    lower: Dim | None = None
    upper: Dim | None = None
    sums: frozenset[int] = frozenset()
    first: int | None = None
    stop: int | None = None


@dataclass(slots=True)
class Region:
    """`leaves` maps a leaf's id to the id of the function's value that it reads.

    `rooms` has sizes that the host reads off an array: how many entries a leaf has room for along an
    axis.
    """

    node: Node
    sizes: dict[str, int | Dim]
    nodes: dict[int, Node] = field(default_factory=dict)
    leaves: dict[int, int] = field(default_factory=dict)
    outputs: tuple[int, ...] = ()
    names: dict[int, str] = field(default_factory=dict)
    parameters: set[int] = field(default_factory=set)
    rooms: dict[tuple[int, Axis], Dim] = field(default_factory=dict)
    attend: Attend | None = None

    def size(self, axis: Axis) -> Dim:
        """The axis's size over run-time symbols only."""
        return axis.size.substitute(self.sizes)

    def stored(self, leaf: int, axis: Axis) -> Dim:
        """How many entries the array of a leaf has along an axis."""
        return self.rooms.get((leaf, axis)) or self.size(axis)

    def operands(self, node: Node) -> list[Node]:
        return [self.nodes[i] for i in node.inputs]

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Of the node, else of what its body holds."""
        inside = (o for n in self.nodes.values() for o in n.origins if n.op != "leaf")
        return self.node.origins or tuple(dict.fromkeys(inside))

    def add(self, node: Node, inputs: tuple[int, ...]) -> int:
        new = len(self.nodes)
        self.nodes[new] = replace(node, id=new, inputs=inputs)
        return new


def region_of(program: Program, function: Function, node: Node) -> Region:
    """The region of one node that is neither free nor the host's."""
    importer = Importer(program, function, Region(node, dict(program.sizes)))
    inputs = tuple(importer.take(i) for i in node.inputs)
    region = importer.region
    if node.op not in FUSED:
        region.outputs = (region.add(node, inputs),)
        return region
    body = program.body(node)
    inside = dict(zip(body.inputs, inputs, strict=True))
    for inner in body.nodes:
        if inner.op != "input":
            inside[inner.id] = region.add(inner, tuple(inside[i] for i in inner.inputs))
    region.outputs = tuple(inside[i] for i in body.output_ids)
    if node.op == "attend":
        region.attend = _attend(node, body, inside)
    return region


def _attend(node: Node, body: Function, inside: dict[int, int]) -> Attend:
    keys = node.attrs.get("keys")
    plan = plan_attend(body, keys if isinstance(keys, Axis) else None)
    weighed = {inside[c]: inside[s] for c, s in plan.contractions.items() if s is not None}
    query, bounds = node.attrs.get("query"), [node.attrs.get("lower"), node.attrs.get("upper")]
    lower, upper = (b if isinstance(b, Dim) else None for b in bounds)
    sums = frozenset(inside[c] for c, s in plan.contractions.items() if s is None)
    row = query if isinstance(query, Axis) else None
    first, stop = (inside[i] for i in body.inputs[-2:]) if node.attrs.get(RANGED) else (None, None)
    return Attend(plan.keys, weighed, row, lower, upper, sums, first, stop)


def view_region(program: Program, function: Function, node: Node) -> Region:
    """The region that writes out a value which kernels only ever address."""
    importer = Importer(program, function, Region(node, dict(program.sizes)))
    importer.region.outputs = (importer.take(node.id),)
    return importer.region


@dataclass(slots=True)
class Importer:
    """Copies values of the function into the region: free ones as nodes, others as leaves."""

    program: Program
    function: Function
    region: Region
    seen: dict[int, int] = field(default_factory=dict)

    def take(self, node_id: int) -> int:
        if node_id not in self.seen:
            node = self.function[node_id]
            self.seen[node_id] = self._view(node) if node.op in FREE else self._leaf(node)
        return self.seen[node_id]

    def _view(self, node: Node) -> int:
        return self.region.add(node, tuple(self.take(i) for i in node.inputs))

    def _leaf(self, node: Node) -> int:
        leaf = self.region.add(replace(node, op="leaf", types=node.types[:1]), ())
        self.region.leaves[leaf] = node.id
        self.region.names[leaf] = value_name(node)
        whole = self.function[node.inputs[0]] if node.op == "result" else node
        if whole.op in ("weight", "derived"):
            self.region.parameters.add(leaf)
        if (axis := with_room(self.program, node)) is not None:
            room = Dim.symbol(f"room.{len(self.region.rooms) + 1}")
            self.region.rooms[leaf, axis] = room
        return leaf


def with_room(program: Program, node: Node) -> Axis | None:
    """The axis along which the array of a value may have room: the slots, earlier and new ones."""
    if node.op == "append":
        return node.attrs.axis("axis")
    slots = [axis for axis in node.axes if program.past in axis.size.symbols()]
    return slots[0] if node.op in ROOMY and len(slots) == 1 else None


def value_name(node: Node) -> str:
    """A readable name of a value: a weight's path, an input's name, the text's variable."""
    for key in ("path", "name"):
        if key in node.attrs and node.op != "repeat":
            return identifier(str(node.attrs[key]))
    if node.hint:
        return identifier(node.hint)
    last = next((o.region.rsplit(".", 1)[-1] for o in node.origins if o.region), "")
    return identifier(f"{last}_{node.op}" if last else node.op)
