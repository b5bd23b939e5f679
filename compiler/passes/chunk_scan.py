"""scan(h' = D h + c; y = f(h', h)) -> chunked_scan: for each chunk of steps

    D, c  for all its steps at once;   h' = D h + c  step by step;   y = f(h', h)  at once.

Legal when the update of some state is such a form with D and c free of the states of its stratum
(`affine.py`). Strata are the strongly connected components of the states' updates, in order; what
an earlier one leaves is known to the later ones, so a running maximum that scales the others does
not stand in their way. A stratum that is no affine form runs its own update step by step. The
factors of a whole sequence never exist at once, and neither do its states unless they are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ...dsl.dims import Dim
from ..ir.graph import Axis, Builder, Function, Node, TensorType
from ..rewrite import Declined, Edit, Outcome, Pass, Rewrite, Rule
from .affine import Form, Forms, Lift, NotAffine
from .properties import SOURCES, VIEWS

LENGTH = 16  # steps of a chunk: its factors stay in cache, its readouts fill a matrix product


def chunk_scan(edit: Edit, node: Node) -> Outcome:
    if node.attrs.integer("stepped") == 0:
        return None  # every step is the same
    chunks = _Chunks.of(edit, node)
    for stratum in _strata(chunks.step, chunks.entering, chunks.updates):
        chunks.solve(stratum)
    if len(chunks.reasons) == len(chunks.strata):
        return Declined(next(iter(chunks.reasons.values())))
    chunk = chunks.finish()
    if not _gains(chunk):
        return None
    return _rewritten(edit, node, chunks, chunk)


def _gains(chunk: Function) -> bool:
    """Whether something is computed for all steps of a chunk at once."""
    idle = VIEWS | SOURCES | {"scan", "result", "cast"}
    return any(n.op not in idle for n in chunk.nodes)


def _rewritten(edit: Edit, node: Node, chunks: _Chunks, chunk: Function) -> Rewrite:
    states = node.attrs.integer("states")
    types = (*(node.types[i] for i in chunks.read), *node.types[-states:])
    attrs = {"chunk": chunks.lift.chunk, "length": LENGTH, "body": chunk.name}
    made = edit.add("chunked_scan", node.inputs, {**node.attrs, **attrs}, types, node.hint)
    kept = [*chunks.read, *range(len(node.types) - states, len(node.types))]
    values = {}
    for user in edit.users(node.id):
        index = kept.index(user.attrs.integer("index"))
        values[user.id] = edit.add("result", (made,), {"index": index}, (types[index],))
    note = f"{LENGTH} steps at a time"
    for name, reason in chunks.reasons.items():
        note += f", but {name} step by step: {reason}"
    return Rewrite(values, note, functions=(chunk, *chunks.functions))


@dataclass(slots=True)
class _Chunks:
    """The function of a chunk under construction, and those of the loops in it.

    `read` are the sequences that something reads; `last` maps each state to its value at the end.
    """

    edit: Edit
    node: Node
    step: Function
    lift: Lift
    read: tuple[int, ...]
    inputs: tuple[int, ...] = ()
    functions: list[Function] = field(default_factory=list)
    last: dict[int, int] = field(default_factory=dict)
    strata: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, edit: Edit, node: Node) -> _Chunks:
        axis, step = node.attrs.axis("axis"), edit.program.body(node)
        named = edit.axis(f"{axis.name}.chunk", Dim())
        chunk = Axis(named.name, Dim.symbol(named.name), axis.time)
        lift = Lift(step, chunk, Builder(edit.name(f"{step.name}.chunk")))
        states, results = (
            node.attrs.integer("states"),
            {u.attrs.integer("index") for u in edit.users(node.id)},
        )
        read = tuple(i for i in range(len(node.types) - states) if i in results)
        made = cls(edit, node, step, lift, read)
        made._enter()
        return made

    @property
    def entering(self) -> tuple[int, ...]:
        first, count = self.node.attrs.integer("stepped"), self.node.attrs.integer("states")
        return self.step.inputs[first : first + count]

    @property
    def updates(self) -> tuple[int, ...]:
        return self.step.output_ids[-self.node.attrs.integer("states") :]

    def _enter(self) -> None:
        axis, stepped = self.node.attrs.axis("axis"), self.node.attrs.integer("stepped")
        inputs = []
        for i, operand in enumerate(self.edit.operands(self.node)):
            inner = self.step[self.step.inputs[i]]
            kind = _swapped(operand.type, axis, self.lift.chunk) if i < stepped else inner.type
            inputs.append(self.lift.add("input", (), inner.attrs, (kind,), inner))
            if inner.id not in self.entering:
                self.lift.values[inner.id] = inputs[i]
        self.inputs = tuple(inputs)
        self.last = dict(enumerate(inputs[stepped : stepped + len(self.entering)]))
        self.lift.sweep()

    def solve(self, stratum: Sequence[int]) -> None:
        """Adds the loop of the states in `stratum`; their sequences are known from here on."""
        name = " and ".join(f"`{self.step[self.entering[k]].hint}`" for k in stratum)
        self.strata.append(name)
        loop = _Loop(self, stratum)
        try:
            forms = Forms(self.lift, {self.entering[k]: k for k in stratum})
            loop.affine([forms.form(self.updates[k]) for k in stratum])
        except NotAffine as refused:
            self.reasons[name] = str(refused)
            loop.copied()
        loop.close(_wanted(self, stratum))
        self.lift.sweep()

    def finish(self) -> Function:
        axis, chunk = self.node.attrs.axis("axis"), self.lift.chunk
        outputs = []
        for i in self.read:
            name, node_id = self.step.outputs[i]
            kind = _swapped(self.node.types[i], axis, chunk)
            outputs.append((name, laid_out(self.lift.builder, self.lift.values[node_id], kind)))
        names = [name for name, _ in self.step.outputs[-len(self.updates) :]]
        outputs += [(name, self.last[k]) for k, name in enumerate(names)]
        whole = self.lift.builder.finish(outputs)
        return replace(whole, nodes=tuple(_live(whole)), inputs=self.inputs)


def _swapped(kind: TensorType, axis: Axis, by: Axis) -> TensorType:
    return TensorType(kind.dtype, tuple(by if a == axis else a for a in kind.axes))


def laid_out(builder: Builder, node_id: int, kind: TensorType) -> int:
    """A value in a type: broadcast along the axes it lacks, cast and transposed."""
    missing = tuple(a for a in kind.axes if a not in builder[node_id].axes)
    if missing:
        node_id = builder.add("broadcast", (node_id,), {"axes": missing})
    if builder[node_id].type.dtype != kind.dtype:
        node_id = builder.add("cast", (node_id,), {"dtype": kind.dtype})
    if builder[node_id].axes != kind.axes:
        node_id = builder.add("transpose", (node_id,), {"order": kind.axes})
    return node_id


def _live(function: Function) -> Iterator[Node]:
    """Inputs, and what the outputs depend on."""
    wanted = _cone(function, function.output_ids, ())
    return (n for n in function.nodes if n.op == "input" or n.id in wanted)


# ------------------------------------------------------------------------------- strata


def _cone(function: Function, roots: Collection[int], stop: Collection[int]) -> set[int]:
    """The values that `roots` depend on, themselves included, as far as those of `stop`."""
    found, todo = set(roots), list(roots)
    while todo:
        current = todo.pop()
        if current in stop:
            continue
        new = set(function[current].inputs) - found
        found |= new
        todo += new
    return found


def _strata(
    step: Function, entering: Sequence[int], updates: Sequence[int]
) -> list[tuple[int, ...]]:
    """Groups of states that depend on one another, each after those that it depends on."""
    reach = {}
    for k, update in enumerate(updates):
        above = _cone(step, [update], ())
        reach[k] = {j for j, i in enumerate(entering) if i in above} | {k}
    for k in reach:  # transitive closure
        for j in reach:
            if k in reach[j]:
                reach[j] |= reach[k]
    groups = {tuple(sorted(j for j in reach[k] if k in reach[j])) for k in reach}
    return sorted(groups, key=lambda group: (len(reach[group[0]]), group))


def _wanted(chunks: _Chunks, stratum: Sequence[int]) -> set[int]:
    """The entries and updates of a stratum that something reads for all steps at once."""
    step, own = chunks.step, {*stratum}
    every = {*chunks.entering, *(i for u in chunks.updates for i in _relabelled(step, u))}
    seen = _cone(step, [step.output_ids[i] for i in chunks.read], every)
    for other in _strata(step, chunks.entering, chunks.updates):
        if not own & set(other):
            updates = {i for k in other for i in _relabelled(step, chunks.updates[k])}
            for k in other:
                seen |= _cone(step, [chunks.updates[k]], every - updates)
    wanted = {chunks.entering[k] for k in own & _states_in(chunks.entering, seen)}
    for k in own:
        if seen & set(_relabelled(step, chunks.updates[k])):
            wanted.add(chunks.updates[k])
    return wanted


def _states_in(entering: Sequence[int], values: Collection[int]) -> set[int]:
    return {k for k, i in enumerate(entering) if i in values}


def _relabelled(step: Function, update: int) -> Iterator[int]:
    """An update, and the values that it only renames or lays out."""
    yield update
    while step[update].op in ("rename", "transpose"):
        (update,) = step[update].inputs
        yield update


# ------------------------------------------------------------------------------- the loop


@dataclass(slots=True)
class _Loop:
    """The loop over the steps of a chunk for the states of one stratum."""

    chunks: _Chunks
    stratum: Sequence[int]
    builder: Builder = field(init=False)
    stepped: dict[int, int] = field(default_factory=dict)  # value of the chunk: input of the step
    captured: dict[int, int] = field(default_factory=dict)
    states: dict[int, int] = field(default_factory=dict)  # number of a state: input of the step
    updates: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.builder = Builder(self.chunks.edit.name(f"{self.chunks.step.name}.step"))
        for k in self.stratum:
            node = self.chunks.step[self.chunks.entering[k]]
            attrs = {"name": node.hint or "state"}
            self.states[k] = self.builder.add(
                "input", (), attrs, node.types, node.origins, node.hint
            )

    def affine(self, forms: Sequence[Form]) -> None:
        """h' = D h + c."""
        for k, form in zip(self.stratum, forms, strict=True):
            terms = [self._term(j, factor) for j, factor in form.factors.items()]
            if not self.chunks.lift.is_number(form.offset, 0):
                terms.append(self._entering(form.offset))
            made = next((t for t in terms if t is not None), self._entering(form.offset))
            for term in terms:
                if term is not None and term != made:
                    made = self.builder.add("add", (made, term))
            kind = self.builder[self.states[k]].type
            self.updates[k] = laid_out(self.builder, made, kind)

    def _term(self, state: int, factor: int) -> int | None:
        is_number = self.chunks.lift.is_number
        if is_number(factor, 0):
            return None
        if is_number(factor, 1):
            return self.states[state]
        return self.builder.add("mul", (self._entering(factor), self.states[state]))

    def copied(self) -> None:
        """The updates as they stand in the step."""
        step, values = self.chunks.step, self.chunks.lift.values
        inside = {self.chunks.entering[k]: self.states[k] for k in self.stratum}
        updates = [self.chunks.updates[k] for k in self.stratum]
        wanted = _cone(step, updates, {*inside, *values})
        for node in step.nodes:
            if node.id in wanted and node.id not in inside:
                if node.id in values:
                    inside[node.id] = self._entering(values[node.id])
                else:
                    operands = tuple(inside[i] for i in node.inputs)
                    types = node.types
                    inside[node.id] = self.builder.add(
                        node.op, operands, node.attrs, types, node.origins, node.hint
                    )
        for k, update in zip(self.stratum, updates, strict=True):
            kind = self.builder[self.states[k]].type
            self.updates[k] = laid_out(self.builder, inside[update], kind)

    def _entering(self, value: int) -> int:
        """A value of the chunk as the step sees it."""
        node, chunk = self.chunks.lift.builder[value], self.chunks.lift.chunk
        if node.op == "const":
            return self.builder.add("const", (), node.attrs, node.types)
        inputs = self.stepped if chunk in node.axes else self.captured
        if value not in inputs:
            kind = TensorType(node.type.dtype, tuple(a for a in node.axes if a != chunk))
            attrs = {"name": node.hint or "x"}
            inputs[value] = self.builder.add("input", (), attrs, (kind,), node.origins, node.hint)
        return inputs[value]

    def close(self, wanted: Collection[int]) -> None:
        """Adds the scan to the chunk, and the sequences that it leaves to the known values."""
        chunks, lift = self.chunks, self.chunks.lift
        step, outputs, kinds, known = chunks.step, [], [], []
        for k in self.stratum:
            entering, update = chunks.entering[k], chunks.updates[k]
            name = step[entering].hint or "state"
            for source, inner, suffix in (
                (entering, self.states[k], ".before"),
                (update, self.updates[k], ""),
            ):
                if source in wanted and source not in lift.values and source not in known:
                    outputs.append((f"{name}{suffix}", inner))
                    kinds.append(self._sequence(step[entering].type))
                    known.append(source)
        outputs += [
            (f"{step[chunks.entering[k]].hint or 'state'}.last", self.updates[k])
            for k in self.stratum
        ]
        inputs = (*self.stepped.values(), *self.states.values(), *self.captured.values())
        function = replace(self.builder.finish(_unique(outputs)), inputs=inputs)
        chunks.functions.append(function)
        types = (*kinds, *(step[chunks.entering[k]].type for k in self.stratum))
        operands = (*self.stepped, *(chunks.last[k] for k in self.stratum), *self.captured)
        attrs = {
            "axis": lift.chunk,
            "body": function.name,
            "reverse": chunks.node.attrs["reverse"],
            "states": len(self.stratum),
            "stepped": len(self.stepped),
        }
        scan = lift.builder.add("scan", operands, attrs, types, chunks.node.origins)
        results = [
            lift.builder.add("result", (scan,), {"index": i}, (t,), chunks.node.origins)
            for i, t in enumerate(types)
        ]
        for source, result in zip(known, results, strict=False):
            self._know(source, result)
        chunks.last.update(zip(self.stratum, results[len(known) :], strict=True))

    def _know(self, source: int, result: int) -> None:
        """`result` is the value `source` of all steps, and what that was before it was renamed."""
        step, lift = self.chunks.step, self.chunks.lift
        for node_id in _relabelled(step, source):
            lift.values.setdefault(node_id, result)
            if step[node_id].op == "rename":
                back = tuple((new, old) for old, new in step[node_id].attrs.pairs("pairs"))
                result = lift.builder.add("rename", (result,), {"pairs": back})

    def _sequence(self, kind: TensorType) -> TensorType:
        """Laid out as the factors are, so that a step of either is one block of memory."""
        chunk = self.chunks.lift.chunk
        for value in self.stepped:
            axes = self.chunks.lift.builder[value].axes
            if tuple(a for a in axes if a != chunk) == kind.axes:
                return TensorType(kind.dtype, axes)
        return TensorType(kind.dtype, (chunk, *kind.axes))


def _unique(outputs: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    taken: set[str] = set()
    for name, node_id in outputs:
        while name in taken:
            name += "_"
        taken.add(name)
        yield name, node_id


CHUNK_SCAN = Pass(
    "chunk-scan",
    "h' = D h + c step by step = for each chunk: D and c at once, h' step by step, readouts at once",
    (Rule("chunk-scan", chunk_scan, ("scan",)),),
)
