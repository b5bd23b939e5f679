"""What a model costs: parameters by weight identity, operations by call, bytes kept and moved.

Everything is read off the graph: a contraction's flops are its op's own count, a weight counts
once however often it is read, a layer kind is counted once and multiplied by how often it runs.
Results are closed forms in the run-time sizes (`b`, `s`), and numbers once those are given. A
causal product is counted whole: the flops are those of the unmasked sums, an upper bound.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..dsl.dims import Dim, product
from .ir.graph import Axis, Function, Node, Program, TensorType, callees, operand_types
from .ir.walk import join
from .ops import FUSED, OPS

# Bytes of an element where `float` is stored in 2.
WIDTH = {"float": 2, "f32": 4, "f64": 8, "int": 8, "bool": 1}
VIEWS = frozenset({"rename", "split", "merge", "slice", "pick", "transpose", "broadcast", "result"})
ZERO, ONE = Dim(), Dim.of(1)
AT_LOAD = frozenset({"weight", "table", "derived", "const"})
LOOPS = frozenset({"repeat", "scan"})  # what they run is counted where it stands


@dataclass(frozen=True, slots=True)
class WeightRow:
    """Weights of one place in the text: `path` has `[]` where layers differ. Buffers are not trained."""

    path: str
    count: int
    size: int
    trained: bool = True

    @property
    def total(self) -> int:
        return self.count * self.size


@dataclass(frozen=True, slots=True)
class Work:
    """Operations of one forward pass: flops of contractions, other scalar operations."""

    flops: Dim = ZERO
    elementwise: Dim = ZERO

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.elementwise + other.elementwise)

    def times(self, count: Dim) -> Work:
        return Work(self.flops * count, self.elementwise * count)


@dataclass(frozen=True, slots=True)
class CostReport:
    """`work` and the bytes are forms in the run-time sizes; `at` gives sizes for numbers.

    `state_bytes` are kept for each token, `recurrent_bytes` once for a row of the batch.
    """

    name: str
    weights: tuple[WeightRow, ...]
    embedding: int
    work: Work
    regions: tuple[tuple[str, Work], ...]
    state_bytes: Dim
    recurrent_bytes: Dim = ZERO
    at: Mapping[str, int] = field(default_factory=dict)
    peak_bytes: int | None = None

    @property
    def parameters(self) -> int:
        return sum(row.total for row in self.weights if row.trained)

    @property
    def buffers(self) -> int:
        """Elements that a checkpoint stores and no training changes."""
        return sum(row.total for row in self.weights if not row.trained)

    @property
    def non_embedding(self) -> int:
        """Without the token embedding; an untied head stays in."""
        return self.parameters - self.embedding

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "parameters": self.parameters,
            "non_embedding_parameters": self.non_embedding,
            "buffers": self.buffers,
            "weights": [asdict(r) | {"total": r.total} for r in self.weights],
            "flops": self._form(self.work.flops),
            "elementwise_operations": self._form(self.work.elementwise),
            "regions": {name: self._form(work.flops) for name, work in self.regions},
            "state_bytes_per_token": self._form(self.state_bytes),
            "recurrent_state_bytes": self._form(self.recurrent_bytes),
            "sizes": dict(self.at),
            "peak_activation_bytes": self.peak_bytes,
        }

    def _form(self, size: Dim) -> dict[str, Any]:
        return {"formula": str(size), "value": size.substitute(self.at).constant}

    def to_text(self) -> str:
        """Totals first, then a row per weight and per region."""
        lines = [
            self.name,
            f"  parameters           {self.parameters:>20,}",
            f"    without embedding  {self.non_embedding:>20,}",
            *(
                [f"    with buffers       {self.parameters + self.buffers:>20,}"]
                * (self.buffers > 0)
            ),
            f"  flops, forward       {self._shown(self.work.flops)}",
            f"  other operations     {self._shown(self.work.elementwise)}",
        ]
        if self.state_bytes != Dim():
            lines.append(f"  keys and values      {self._shown(self.state_bytes)} bytes per token")
        if self.recurrent_bytes != Dim():
            lines.append(
                f"  recurrent state      {self._shown(self.recurrent_bytes)} bytes per row"
            )
        if self.peak_bytes is not None:
            lines.append(f"  peak activations     {_count(self.peak_bytes)} bytes, op by op")
        lines += ["", "  weights"]
        lines += [
            f"    {r.path:<32} {r.count:>5} x {r.size:>14,} = {r.total:>16,}"
            + ("" if r.trained else "  buffer")
            for r in self.weights
        ]
        lines += ["", "  flops by region"]
        lines += [f"    {name or '(top)':<32} {self._shown(w.flops)}" for name, w in self.regions]
        return "\n".join(lines)

    def _shown(self, size: Dim) -> str:
        value = size.substitute(self.at).constant
        if value is None or size.constant is not None:
            return _count(size.constant) if size.constant is not None else str(size)
        where = ", ".join(f"{name} = {n}" for name, n in sorted(self.at.items()))
        return f"{size}  ({_count(value)} at {where})"


def _count(value: int | None) -> str:
    return f"{value:,}" if value is not None else "?"


def cost(program: Program, at: Mapping[str, int] | None = None) -> CostReport:
    """The report of a program as elaborated. `at` gives run-time sizes to evaluate the forms at."""
    weights = _weights(program)
    regions = _regions(program)
    total = sum(regions.values(), Work())
    sizes = dict(at or {})
    missing = run_time_symbols(program) - sizes.keys()
    peak = None if missing else _Peak(program, sizes).of(program.main)
    return CostReport(
        program.name,
        weights,
        _embedding(program),
        total,
        tuple(sorted(regions.items())),
        _state_bytes(program),
        _recurrent_bytes(program),
        sizes,
        peak,
    )


def _weights(program: Program) -> tuple[WeightRow, ...]:
    """Rows in the order of the text; layers of one repeat share a row where sizes agree."""
    counts: Counter[tuple[str, int, bool]] = Counter()
    sizes: dict[tuple[Axis, ...], int] = {}
    for parameter in program.parameters:
        if parameter.axes not in sizes:
            sizes[parameter.axes] = parameter.size(program.sizes)
        place = re.sub(r"\[\d+\]", "[]", parameter.path)
        counts[place, sizes[parameter.axes], parameter.trained] += 1
    return tuple(WeightRow(path, n, size, trained) for (path, size, trained), n in counts.items())


def run_time_symbols(program: Program) -> set[str]:
    kinds = [program.main[i].type for i in program.main.inputs]
    return {s for t in kinds for a in t.axes for s in a.size.symbols()} - program.sizes.keys()


# --------------------------------------------------------------------------- operations


def _regions(program: Program) -> dict[str, Work]:
    """Work by region; a region inside a repeat is `path[].region`, all its iterations together."""
    found: dict[str, Work] = {}
    for path, function, count in kinds(program):
        for node in function.nodes:
            work = _work(program, function, node).times(count)
            if work != Work():
                label = _region(path, node)
                found[label] = found.get(label, Work()) + work
    return found


def kinds(
    program: Program, function: Function | None = None, path: str = "", count: Dim = ONE
) -> Iterator[tuple[str, Function, Dim]]:
    """(path, function, how often it runs) of main, of each layer kind and each step of a scan."""
    function = function or program.main
    yield path, function, count
    for node in function.nodes:
        if node.op == "scan":
            steps = node.attrs.axis("axis").size.substitute(program.sizes)
            yield from kinds(program, program.body(node), path, count * steps)
        if node.op == "repeat":
            inner = join(path, f"{node.attrs.string('path')}[]")
            for kind in callees(node):
                times = count * _iterations(node, kind)
                yield from kinds(program, program.function(kind), inner, times)


def _iterations(node: Node, kind: str) -> int:
    names = node.attrs["kinds"]
    assert isinstance(names, tuple)
    return names.count(kind)


def _region(path: str, node: Node) -> str:
    """The outermost label of where a node came from."""
    label = next((o.region.split(".")[0] for o in node.origins if o.region), "")
    return join(path, label) if label else path


def _work(program: Program, function: Function, node: Node) -> Work:
    """What one node does in a run; a fused node does what its body does."""
    if node.op in AT_LOAD | LOOPS:
        return Work()
    if node.op in FUSED:
        body = program.body(node)
        return sum((_work(program, body, n) for n in body.nodes), Work())
    types = operand_types(node.op, [function[i] for i in node.inputs])
    op = OPS[node.op]
    counts = (count(node.attrs, types, node.types) for count in (op.flops, op.elementwise))
    return Work(*(c.substitute(program.sizes) for c in counts))


# --------------------------------------------------------------------------- parameters


def _embedding(program: Program) -> int:
    """Elements of the token embedding: the largest table that an `ids` input looks rows up in."""
    return max((_table_size(program, node) for node in _lookups(program)), default=0)


def _lookups(program: Program) -> Iterator[Node]:
    """The weights of main that are indexed by an expression of token ids."""
    main = program.main
    ids = {i for i in main.inputs if main[i].attrs.get("kind") == "ids"}
    for node in main.nodes:
        if node.op == "take" and not ids.isdisjoint(_above(main, node.inputs[1])):
            source = main[node.inputs[0]]
            while source.op in VIEWS:
                source = main[source.inputs[0]]
            if source.op == "weight":
                yield source


def _above(function: Function, start: int) -> set[int]:
    found: set[int] = set()
    todo = [start]
    while todo:
        current = todo.pop()
        if current not in found:
            found.add(current)
            todo += function[current].inputs
    return found


def _table_size(program: Program, node: Node) -> int:
    return elements(node.axes).evaluate(program.sizes)


def elements(axes: tuple[Axis, ...]) -> Dim:
    return product([axis.size for axis in axes])


# --------------------------------------------------------------------------- bytes


def _state_bytes(program: Program) -> Dim:
    """Bytes per token of the values that later positions read: renamed along the decode axis.

    A rename from the decode axis is where positions start to see each other; what is renamed must
    be kept. Truth values and integers (masks, positions) are counters, not state.
    """
    total = Dim()
    for _, function, count in kinds(program):
        for node in function.nodes:
            if _sees_past(program, node):
                total = total + _row_bytes(program, node.type) * count
    return total


def _row_bytes(program: Program, kind: TensorType) -> Dim:
    """Bytes of a value without its axes of run-time size."""
    features = tuple(a for a in kind.axes if a.size.symbols() <= program.sizes.keys())
    return elements(features).substitute(program.sizes) * WIDTH[kind.dtype]


def _recurrent_bytes(program: Program) -> Dim:
    """Bytes of the states of scans along the decode axis, however many tokens they have seen."""
    total = Dim()
    for _, function, count in kinds(program):
        for node in function.nodes:
            if (
                node.op == "scan"
                and program.decode
                and node.attrs.axis("axis").time == program.decode
            ):
                states = node.types[-node.attrs.integer("states") :]
                total = total + sum((_row_bytes(program, t) for t in states), Dim()) * count
    return total


def _sees_past(program: Program, node: Node) -> bool:
    if node.op != "rename" or node.type.dtype in ("bool", "int") or not program.decode:
        return False
    return any(old.name == program.decode for old, _ in node.attrs.pairs("pairs"))


@dataclass(frozen=True, slots=True)
class _Peak:
    """The most bytes alive at once when each op stores its result and views share memory."""

    program: Program
    at: Mapping[str, int]

    def of(self, function: Function) -> int:
        last = self._last_uses(function)
        alive: dict[int, int] = {}
        peak = 0
        for position, node in enumerate(function.nodes):
            alive[node.id] = self._stored(node)
            peak = max(peak, sum(alive.values()) + self._inside(node))
            alive = {i: size for i, size in alive.items() if last[i] > position}
        return peak

    def _last_uses(self, function: Function) -> dict[int, int]:
        """Position of the last reader of each value; a view keeps what it looks at alive."""
        places = {n.id: i for i, n in enumerate(function.nodes)}
        last = places | dict.fromkeys(function.output_ids, len(function.nodes))
        for node in reversed(function.nodes):
            here = last[node.id] if node.op in VIEWS else places[node.id]
            for source in node.inputs:
                last[source] = max(last[source], here)
        return last

    def _stored(self, node: Node) -> int:
        if node.op in VIEWS | AT_LOAD | {"index", "size"}:
            return 0
        sizes = {**self.program.sizes, **self.at}
        return sum(elements(t.axes).evaluate(sizes) * WIDTH[t.dtype] for t in node.types)

    def _inside(self, node: Node) -> int:
        """A loop needs, beside its operands, what its hungriest function needs."""
        if node.op not in LOOPS:
            return 0
        return max(self.of(self.program.function(kind)) for kind in callees(node))
