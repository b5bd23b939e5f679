"""What passes ask: properties of ops and of the expressions above a value, never spellings."""

from __future__ import annotations

from collections.abc import Collection

from ...dsl.dims import Dim
from ..ir.graph import Axis, Node, TensorType, elements
from ..ops import OPS
from ..rewrite import Edit

# Ops that only re-index: no arithmetic, and a backend may run them without moving data.
VIEWS = frozenset({"rename", "split", "merge", "slice", "pick", "transpose", "broadcast"})
SOURCES = frozenset({"input", "weight", "const", "table", "index", "size"})
REDUCTIONS = frozenset({"sum", "amax", "softmax"})
ROW_OPS = REDUCTIONS | {"logsumexp"}

# What may compute a parameter, beside elementwise ops.
DERIVABLE = (
    VIEWS
    | REDUCTIONS
    | frozenset(
        "weight derived const table index concat dot packed quantise result dequantise".split()
    )
)

# Bytes of an element in reports and cost rules: `float` as the two bytes models are served in.
ELEMENT_BYTES = {"float": 2, "f32": 4, "f64": 8, "int": 8, "i8": 1, "bool": 1}


def is_elementwise(node: Node) -> bool:
    """Each element of the result depends on the elements of the operands at the same position."""
    return OPS[node.op].pointwise


def constant(node: Node) -> int | float | bool | Dim | None:
    """The value of a constant."""
    value = node.attrs["value"] if node.op == "const" else None
    return value if isinstance(value, int | float | Dim) else None


def bytes_of(kind: TensorType) -> Dim:
    return elements(kind.axes) * ELEMENT_BYTES[kind.dtype]


def traffic(edit: Edit, reads: Collection[int], writes: Collection[int]) -> Dim:
    """Bytes of one kernel that reads and writes these values once."""
    return sum((bytes_of(edit[i].type) for i in (*reads, *writes)), Dim())


def unfused_traffic(edit: Edit, nodes: Collection[int]) -> Dim:
    """Bytes when every node that computes something is a kernel of its own."""
    total = Dim()
    for node in (edit[i] for i in nodes):
        if node.op not in VIEWS | SOURCES:
            reads = [i for i in dict.fromkeys(node.inputs) if edit[i].op != "const"]
            total = total + traffic(edit, reads, [node.id])
    return total


def is_static(edit: Edit, axis: Axis) -> bool:
    """Whether an axis has its size from hyperparameters alone."""
    return axis.size.symbols() <= edit.program.sizes.keys()


def parameter_expression(edit: Edit, node_id: int) -> frozenset[int] | None:
    """The nodes above a value that depends on weights alone (itself included), else None.

    Derived parameters count as weights. Constants and tables of static size may take part.
    """
    found: set[int] = set()
    todo = [node_id]
    while todo:
        current = todo.pop()
        if current in found:
            continue
        node = edit[current]
        if not _may_be_derived(edit, node):
            return None
        found.add(current)
        if node.op != "derived":
            todo += node.inputs
    return frozenset(found) if any(edit[i].op in ("weight", "derived") for i in found) else None


def reduced_axes(node: Node) -> tuple[Axis, ...]:
    """The axes over which a reduction op runs."""
    return (node.attrs.axis("axis"),) if "axis" in node.attrs else node.attrs.axes("axes")


def is_statistic(edit: Edit, row: Node, summed: frozenset[Axis]) -> bool:
    """Whether a row factor comes from a reduction over the contracted axes."""
    todo, seen = [row], {row.id}
    while todo:
        node = todo.pop()
        if node.op in REDUCTIONS - {"softmax"} and set(node.attrs.axes("axes")) == summed:
            return True
        if is_elementwise(node):
            todo += [o for o in edit.operands(node) if o.id not in seen]
            seen |= set(node.inputs)
    return False


def other_readers(edit: Edit, weight: Node, reader: Node) -> tuple[Node, tuple[Node, ...]]:
    """The stored weight above a view or cast, and who reads it other than through `reader`."""
    others: list[Node] = []
    below, current = reader.id, weight
    while True:
        others += [u for u in edit.users(current.id) if u.id != below]
        if len(current.inputs) != 1 or current.op == "derived":
            return current, tuple(others)
        below, current = current.id, edit[current.inputs[0]]


def _may_be_derived(edit: Edit, node: Node) -> bool:
    if node.op == "input" or not all(is_static(edit, a) for a in node.axes):
        return False
    return node.op in DERIVABLE or is_elementwise(node)


def line(node: Node) -> str:
    """Where a node was written, for a reason: `file.arch:12`, or its op where nothing is known."""
    for origin in node.origins:
        for span in origin.spans[-1:]:
            return f"{span.source.name}:{span.line}"
    return node.op
