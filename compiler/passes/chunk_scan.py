"""scan(h' = D h + c; y = f(h', h)) -> chunked_scan: for each chunk of steps

    D, c  for all its steps at once;   h' = D h + c  step by step;   y = f(h', h)  at once.

Legal when the update of some state is such a form with D and c free of the states of its stratum
(`affine.py`). Strata are the strongly connected components of the states' updates, in order; what
an earlier one leaves is known to the later ones, so a running maximum that scales the others does
not stand in their way. A stratum that is no affine form runs its own update step by step. The
factors of a whole sequence never exist at once, and neither do its states unless they are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...dsl.dims import Dim
from ..ir.graph import AttrValue, Axis, Builder, Function, Node, TensorType
from ..ir.walk import cone
from ..rewrite import Edit, Guard, Pass, Rewrite, Rule
from .affine import Form, Forms, Lift, NotAffine
from .chunk_loops import Loop, laid_out
from .chunk_products import UNKNOWN, NotProducts, Products, corrections, readouts
from .properties import SOURCES, VIEWS

LENGTH = 16  # steps of a chunk whose factors are stored: they stay in cache
ROWS = 64  # of the matrix products of a chunk whose states are not


@dataclass(frozen=True, slots=True)
class Chunked:
    """A scan, what became of its states, and the function of a chunk."""

    node: Node
    states: _Chunks
    chunk: Function


def in_chunks(edit: Edit, node: Node) -> Iterator[Chunked]:
    """A scan, its states as products where they are only read by contractions, else step by step,
    and all else at once."""
    if node.attrs.integer("stepped") > 0:  # else every step is the same
        chunks = _Chunks.of(edit, node)
        for stratum in _strata(chunks.step, chunks.entering, chunks.updates):
            chunks.solve(stratum)
        yield Chunked(node, chunks, chunks.finish())


def _has_loops(edit: Edit, found: Chunked) -> bool:
    return found.states.looped


def _waits(edit: Edit, found: Chunked) -> str:
    reasons = found.states.reasons
    if len(reasons) < len(found.states.strata):
        return ""
    return f"{next(iter(reasons.values()))}: each step waits for the one before"


def _computes_nothing(edit: Edit, found: Chunked) -> bool:
    """Nothing is computed for all steps of a chunk at once."""
    return not _gains(found.chunk)


def _gains(chunk: Function) -> bool:
    """Whether something is computed for all steps of a chunk at once."""
    idle = VIEWS | SOURCES | {"scan", "result", "cast"}
    return any(n.op not in idle for n in chunk.nodes)


def chunk_scan(edit: Edit, found: Chunked) -> Rewrite:
    node, chunks, chunk = found.node, found.states, found.chunk
    states = node.attrs.integer("states")
    types = (*(node.types[i] for i in chunks.read), *node.types[-states:])
    attrs: dict[str, AttrValue] = {
        "chunk": chunks.lift.chunk,
        "length": chunks.length,
        "body": chunk.name,
    }
    made = edit.add("chunked_scan", node.inputs, {**node.attrs, **attrs}, types, node.hint)
    kept = [*chunks.read, *range(len(node.types) - states, len(node.types))]
    values = {}
    for user in edit.users(node.id):
        index = kept.index(user.attrs.integer("index"))
        values[user.id] = edit.add("result", (made,), {"index": index}, (types[index],))
    note = f"{chunks.length} steps at a time"
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
    length: int = LENGTH
    looped: bool = False
    row: Axis | None = None  # the steps that the products of a chunk sum over
    multiplied: list[tuple[int, int]] = field(default_factory=list)  # keys and factors

    @classmethod
    def of(cls, edit: Edit, node: Node) -> _Chunks:
        axis, step = node.attrs.axis("axis"), edit.program.body(node)
        named = edit.axis(f"{axis.name}.chunk", Dim())
        chunk = Axis(named.name, Dim.symbol(named.name), axis.time)
        lift = Lift(step, chunk, Builder(edit.name(f"{step.name}.chunk")))
        states = node.attrs.integer("states")
        results = {user.attrs.integer("index") for user in edit.users(node.id)}
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
        """Adds what computes the states in `stratum`; what they leave is known from here on."""
        name = " and ".join(f"`{self.step[self.entering[k]].hint}`" for k in stratum)
        self.strata.append(name)
        if len(stratum) == 1:
            self._correct(*stratum)
        forms = Forms(self.lift, {self.entering[k]: k for k in stratum})
        try:
            updates = {k: forms.form(self.updates[k]) for k in stratum}
        except NotAffine as refused:
            self.reasons[name] = str(refused)
            self._looped(stratum, None)
        else:
            if not self._multiplied(stratum, forms, updates):
                self._looped(stratum, updates)
        self.lift.sweep()

    def _correct(self, k: int) -> None:
        """Solves for the contraction of a state that its own update reads, if that is all it reads."""
        entering, update = self.step[self.entering[k]], self.updates[k]
        found = corrections(self.step, Forms(self.lift, {entering.id: k}), entering.id, update)
        if len(found) != 1:
            return
        (correction,) = found
        both = Forms(self.lift, {entering.id: k, correction.node.id: UNKNOWN})
        try:
            products, share = Products.corrected(
                self.lift, entering, self.last[k], both.form(update), correction, self._rows()
            )
        except (NotAffine, NotProducts):
            return
        reverse = bool(self.node.attrs["reverse"])
        products.build(reverse=reverse)
        self.lift.values[correction.node.id] = products.solved(correction, share, reverse=reverse)
        self.length = ROWS
        self.lift.sweep()

    def _rows(self) -> Axis:
        """The axis r of the steps that products sum over."""
        if self.row is None:
            chunk = self.lift.chunk
            name = self.edit.axis(chunk.name, chunk.size).name
            self.row = Axis(name, chunk.size, chunk.name)
        return self.row

    def _multiplied(
        self, stratum: Sequence[int], forms: Forms, updates: Mapping[int, Form]
    ) -> bool:
        """Adds the state of `stratum` as matrix products, if it is one that allows it."""
        if len(stratum) > 1:
            return False
        (k,) = stratum
        roots = [self.step.output_ids[i] for i in self.read]
        roots += [update for j, update in enumerate(self.updates) if j != k]
        entering = self.step[self.entering[k]]
        try:
            found = readouts(self.step, forms, entering.id, roots)
            form, last = updates[k], self.last[k]
            products = Products.of(
                self.lift, entering, last, form, found, self._rows(), self.multiplied
            )
        except NotProducts:
            return False
        products.build(reverse=bool(self.node.attrs["reverse"]))
        self.multiplied.append((products.k, products.factor))
        self.last[k] = products.last
        self.lift.values |= {readout.node.id: products.read(readout) for readout in found}
        self.length = ROWS
        return True

    def _loop(self) -> Loop:
        name = self.edit.name(f"{self.step.name}.step")
        return Loop(self.lift, name, bool(self.node.attrs["reverse"]), self.node.origins)

    def _looped(self, stratum: Sequence[int], forms: Mapping[int, Form] | None) -> None:
        """Adds the states of `stratum` as a loop: of affine forms, or of the step's own text."""
        self.looped = True
        loop = self._loop()
        for k in stratum:
            node = self.step[self.entering[k]]
            loop.state(k, self.last[k], node.type, node.hint)
        if forms is None:
            _copy(loop, self, stratum)
        else:
            for k, form in forms.items():
                _affine(loop, k, form)
        wanted = _wanted(self, stratum)
        sources = {self.entering[k]: loop.states[k] for k in stratum}
        sources |= {
            self.updates[k]: loop.updates[k] for k in stratum if self.updates[k] not in sources
        }
        known = [i for i in sources if i in wanted and i not in self.lift.values]
        names = {self.updates[k]: self.step[self.entering[k]].hint or "state" for k in stratum}
        names |= {
            self.entering[k]: f"{self.step[self.entering[k]].hint or 'state'}.before"
            for k in stratum
        }
        step, sequences, last = loop.close([(names[i], sources[i]) for i in known])
        self.functions.append(step)
        self.last |= last
        for source, sequence in zip(known, sequences, strict=True):
            self._know(source, sequence)

    def _know(self, source: int, sequence: int) -> None:
        """`sequence` is the value `source` of all steps, and what that was before it was renamed."""
        for node_id in _relabelled(self.step, source):
            self.lift.values.setdefault(node_id, sequence)
            if self.step[node_id].op == "rename":
                new = dict(self.step[node_id].attrs.pairs("pairs"))
                sequence = self.lift.renamed(sequence, {b: a for a, b in new.items()})

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


def _live(function: Function) -> Iterator[Node]:
    """Inputs, and what the outputs depend on."""
    wanted = cone(function, function.output_ids)
    return (n for n in function.nodes if n.op == "input" or n.id in wanted)


# ------------------------------------------------------------------------------- strata


def _strata(
    step: Function, entering: Sequence[int], updates: Sequence[int]
) -> list[tuple[int, ...]]:
    """Groups of states that depend on one another, each after those that it depends on."""
    reach = {}
    for k, update in enumerate(updates):
        above = cone(step, [update])
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
    seen = cone(step, [step.output_ids[i] for i in chunks.read], every)
    for other in _strata(step, chunks.entering, chunks.updates):
        if not own & set(other):
            updates = {i for k in other for i in _relabelled(step, chunks.updates[k])}
            for k in other:
                seen |= cone(step, [chunks.updates[k]], every - updates)
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


# ------------------------------------------------------------------------------- loops


def _affine(loop: Loop, number: int, form: Form) -> None:
    """h' = D h + c."""
    is_number, terms = loop.lift.is_number, list[int]()
    for k, factor in form.factors.items():
        if is_number(factor, 1):
            terms.append(loop.states[k])
        elif not is_number(factor, 0):
            terms.append(loop.builder.add("mul", (loop.seen(factor), loop.states[k])))
    if not terms or not is_number(form.offset, 0):
        terms.append(loop.seen(form.offset))
    made = terms[0]
    for term in terms[1:]:
        made = loop.builder.add("add", (made, term))
    loop.update(number, made)


def _copy(loop: Loop, chunks: _Chunks, stratum: Sequence[int]) -> None:
    """The updates as they stand in the step."""
    step, values = chunks.step, chunks.lift.values
    inside = {chunks.entering[k]: loop.states[k] for k in stratum}
    wanted = cone(step, [chunks.updates[k] for k in stratum], {*inside, *values})
    for node in step.nodes:
        if node.id in wanted and node.id in values:
            inside[node.id] = loop.seen(values[node.id])
        elif node.id in wanted and node.id not in inside:
            operands = tuple(inside[i] for i in node.inputs)
            inside[node.id] = loop.builder.add(
                node.op, operands, node.attrs, node.types, node.origins, node.hint
            )
    for k in stratum:
        loop.update(k, inside[chunks.updates[k]])


CHUNK_PRODUCTS = Pass(
    "chunk-products",
    "dot(h[t], q[t]) = p[t] dot(h[0], q[t]) + sum_r m[t, r] dot(k[r], q[t]) x[r] for each chunk",
    (
        Rule(
            "chunk-products",
            chunk_scan,
            ("scan",),
            in_chunks,
            (Guard("contracted", "the states are only read by contractions", _has_loops),),
            "dot(h[t], q[t]) = p[t] dot(h[0], q[t]) + sum_r m[t, r] dot(k[r], q[t]) x[r]",
        ),
    ),
)

CHUNK_SCAN = Pass(
    "chunk-scan",
    "h' = D h + c step by step = for each chunk: D and c at once, h' step by step, readouts at once",
    (
        Rule(
            "chunk-scan",
            chunk_scan,
            ("scan",),
            in_chunks,
            (
                Guard("affine", "a state is affine in the states of its stratum", _waits),
                Guard("at-once", "something is computed for many steps", _computes_nothing),
            ),
            "h' = D h + c, y = f(h')  =  D, c at once; h' step by step; y at once",
        ),
    ),
)
