"""A model as a tree of blocks: what is applied where, in which shapes, at what cost.

A block is a group of nodes: those of one label at one depth, or those of one line. A repeat is one
block for all its iterations, with a block for each kind of layer where there are several; what a
scan runs at each step is below it. Costs are forms in the run-time sizes, multiplied by how often a
block runs; those of all blocks add up to what `archc cost` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Literal

from ..compiler.cost import LOOPS, cost, iterations_of, weight_bytes_by, weights_by, work_of
from ..compiler.cost_report import CostReport, WeightRow, Work
from ..compiler.elaborate.module import standard_library
from ..compiler.ir.graph import Axis, Function, Node, Program, TensorType
from ..compiler.ir.text import all_axes
from ..compiler.ir.walk import calls, iterations, join, ranges
from ..compiler.passes.drop_unread import drop_unread
from ..compiler.passes.explain import region
from ..compiler.reads import pattern, reads
from ..compiler.rewrite import Session
from ..compiler.state import State
from ..dsl.dims import Dim
from ..dsl.span import Source, Span

if TYPE_CHECKING:
    from ..api import Model

Kind = Literal["model", "input", "repeat", "layer", "block", "scan", "line"]
Instance = tuple[tuple[str, str], ...]  # the repeats around a function and its kind in each
Keyed = Callable[[tuple[Instance, str]], bool]
ZERO = Dim()
SOURCES = frozenset({"const", "index", "size", "table", "weight"})
HELD = {"state": ("append", "ring"), "recurrent": ("recurrent", "last"), "constant": ("constant",)}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a block costs in one forward pass, and what it keeps when decoding."""

    parameters: int = 0
    active: int = 0
    weight_bytes: Dim = ZERO
    work: Work = field(default_factory=Work)
    states: tuple[State, ...] = ()

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.active + other.active,
            self.weight_bytes + other.weight_bytes,
            self.work + other.work,
            self.states + other.states,
        )

    def held(self, what: str) -> Dim:
        """Bytes of states: `state` for each token, `recurrent` and `constant` for a row."""
        return sum((s.total for s in self.states if s.kind in HELD[what]), ZERO)

    @property
    def forms(self) -> dict[str, Dim]:
        """The parts that are forms in the run-time sizes, by name."""
        return {
            "flops": self.work.flops,
            "other": self.work.elementwise,
            "weight_bytes": self.weight_bytes,
            **{f"{name}_bytes": self.held(name) for name in HELD},
        }


@dataclass(frozen=True, slots=True, order=True)
class Lines:
    """Lines of a text, the first and the last of them."""

    source: str
    first: int
    last: int

    @classmethod
    def of(cls, span: Span) -> Lines:
        end = max(span.start, span.end - 1)
        return cls(span.source.name, span.line, span.source.position(end)[0])


@dataclass(frozen=True, slots=True)
class Edge:
    """A value that goes from one end to another: ends are blocks by number, or names at the border."""

    source: int | str
    target: int | str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Block:
    """Part of a model. `site` are the lines that apply it, outermost first, `body` those it is made of.

    `path` is where its weights are, `calls` the definition that it applies, `runs` how often it runs in a
    pass, `results` what leaves it. `flow` has the values that go among its children.
    """

    number: int
    kind: Kind
    label: str
    path: str
    runs: Dim
    cost: Cost
    calls: str = ""
    times: str = ""
    results: tuple[TensorType, ...] = ()
    site: tuple[Lines, ...] = ()
    body: tuple[Lines, ...] = ()
    ops: tuple[str, ...] = ()
    weights: tuple[WeightRow, ...] = ()
    children: tuple[Block, ...] = ()
    flow: tuple[Edge, ...] = ()

    @property
    def lines(self) -> tuple[Lines, ...]:
        """Of all its text, what applies it first."""
        return tuple(dict.fromkeys((*self.site, *self.body)))

    @property
    def place(self) -> Lines | None:
        """The lines to look at first."""
        return self.site[-1] if self.site else next(iter(self.body), None)

    def walk(self) -> Iterator[Block]:
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class Picture:
    """`at` are run-time sizes that are known. `sources` are the texts that the model is written in."""

    program: Program
    report: CostReport
    root: Block
    sources: tuple[Source, ...]
    axes: tuple[Axis, ...]
    at: Mapping[str, int]
    preset: str = ""

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(self.root.walk())


def picture(model: Model, at: Mapping[str, int], preset: str = "") -> Picture:
    """The picture of a model, at the run-time sizes `at` where they are known."""
    program = model.program
    needed, _ = drop_unread(program, Session())
    report = cost(program, at)
    builder = _Builder(model, program, needed, report)
    root = builder.root()
    own = model.definition.span.source
    found = {s.name: s for f in program.functions for n in f.nodes for s in _texts(n)}
    others = sorted((s for s in found.values() if s.name != own.name), key=lambda s: s.name)
    return Picture(program, report, root, (own, *others), all_axes(program), dict(at), preset)


def _texts(node: Node) -> Iterator[Source]:
    return (span.source for origin in node.origins for span in origin.spans)


@dataclass(frozen=True, slots=True)
class _Scope:
    """A function where it runs: the repeats around it, how often, what its inputs are called."""

    function: Function
    path: str
    instance: Instance
    runs: Dim
    names: Mapping[int, str]
    users: Mapping[int, Sequence[int]]


@dataclass(slots=True, eq=False)
class _Group:
    key: tuple[object, ...]
    nodes: list[Node] = field(default_factory=list)
    before: set[int] = field(default_factory=set)  # places of the groups it reads from


@dataclass(slots=True)
class _Builder:
    """Builds blocks from the inside out; weights and states go to the innermost block of their path."""

    model: Model
    program: Program
    needed: Program
    report: CostReport
    count: int = 0
    rows: dict[tuple[Instance, str], tuple[WeightRow, ...]] = field(default_factory=dict)
    read: dict[tuple[Instance, str], Dim] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    definitions: list[tuple[Span, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = dict(_instances(self.program))

        def place(path: str) -> tuple[Instance, str]:
            return _placed(path, known)

        self.rows = dict(weights_by(self.program, reads(self.program), place))
        self.read, _ = weight_bytes_by(self.needed, reads(self.needed), place)
        self.states = list(self.report.states)
        tables = (self.model.module.definitions, standard_library())
        self.definitions = [(d.span, name) for table in tables for name, d in table.items()]

    def root(self) -> Block:
        main = self.needed.main
        scope = _Scope(main, "", (), Dim.of(1), {}, main.users())
        children, flow = self._inside(scope, main.nodes, 0, 0)
        weights = self._weights(lambda key: True)
        read = self._read(lambda key: True)
        states, self.states = tuple(self.states), []
        own = _of_weights(weights, read, states)
        outputs = tuple(main[i].type for _, i in reversed(main.outputs))
        return Block(
            0, "model", self.program.name, "", Dim.of(1), _sum(children, own), results=outputs,
            site=(Lines.of(self.model.definition.span),), weights=weights, children=children,
            flow=flow,
        )  # fmt: skip

    # ------------------------------------------------------------------------------- groups

    def _inside(
        self, scope: _Scope, nodes: Sequence[Node], depth: int, chain: int
    ) -> tuple[tuple[Block, ...], tuple[Edge, ...]]:
        """The blocks of some nodes of a function, and the values among them."""
        groups = _grouped(scope, nodes, depth, chain)
        blocks = tuple(self._block(scope, group, depth, chain) for group in groups)
        owner = {
            n.id: block.number for g, block in zip(groups, blocks, strict=True) for n in g.nodes
        }
        return blocks, tuple(_edges(scope, nodes, owner))

    def _block(self, scope: _Scope, group: _Group, depth: int, chain: int) -> Block:
        self.count += 1
        number = self.count
        if group.key[0] == "loop":
            loop = next(n for n in group.nodes if n.id == group.key[1])
            made = (self._repeat if loop.op == "repeat" else self._scan)(scope, loop, depth, chain)
        elif group.key[0] == "label":
            made = self._labelled(scope, group, depth)
        else:
            made = self._line(scope, group, chain)
        return replace(made, number=number, results=_results(scope, group.nodes))

    def _labelled(self, scope: _Scope, group: _Group, depth: int) -> Block:
        """The nodes of one label: an application of a block."""
        label = str(group.key[1])
        stacks = [_stack(n) for n in group.nodes if n.op not in SOURCES] or [
            _stack(n) for n in group.nodes
        ]
        common = _common(stacks)
        deeper = [s[len(common)] for s in stacks if len(s) > len(common)]
        children, flow = self._inside(scope, group.nodes, depth + 1, len(common))
        first = next((n for n in group.nodes if n.origins), group.nodes[0])
        prefix = ".".join(first.origins[0].region.split(".")[: depth + 1])
        path = join(scope.path, prefix)
        weights, own = self._claimed(scope, path)
        ops: tuple[str, ...] = ()
        if len(children) == 1 and children[0].kind == "line":
            own, ops, children, flow = own + children[0].cost, children[0].ops, (), ()
        body = sorted({Lines.of(s[i]) for s in stacks for i in range(len(common), len(s))})
        return Block(
            0, "block", label, path, scope.runs, _sum(children, own), self._definition(deeper),
            site=tuple(map(Lines.of, common)), body=tuple(body), ops=ops, weights=weights,
            children=children, flow=flow,
        )  # fmt: skip

    def _line(self, scope: _Scope, group: _Group, chain: int) -> Block:
        """What one line computes beside the blocks that it applies."""
        first = next((n for n in group.nodes if n.op not in SOURCES), group.nodes[0])
        work = sum((self._work(scope, n) for n in group.nodes), Work())
        where = _site(first, chain)
        label = where.source.line(where.line).strip() if where is not None else first.op
        site = (Lines(where.source.name, where.line, where.line),) if where is not None else ()
        if first.op == "input":
            label = first.attrs.string("name")
        return Block(
            0, "input" if first.op == "input" else "line", label, "", scope.runs, Cost(work=work),
            site=site, body=tuple(sorted({Lines.of(s) for n in group.nodes for s in n.spans})),
            ops=tuple(n.op for n in group.nodes if n.op != "result"),
        )  # fmt: skip

    def _work(self, scope: _Scope, node: Node) -> Work:
        return work_of(self.needed, scope.function, node).times(scope.runs)

    # -------------------------------------------------------------------------------- loops

    def _repeat(self, scope: _Scope, node: Node, depth: int, chain: int) -> Block:
        """All iterations of a repeat; below it the kinds of layers, or the blocks of the only one."""
        name = node.attrs.string("path")
        path = join(scope.path, f"{name}[]")
        indices: dict[str, list[int]] = {}
        for inner, kind in iterations(node, ""):
            indices.setdefault(kind, []).append(int(inner.rpartition("[")[2][:-1]))
        layers = [self._layer(scope, node, k, path, at) for k, at in indices.items()]
        site = (Lines.of(node.spans[0]),) if node.spans else ()
        early = "at most " if "exit" in node.attrs else ""
        times = f"{early}{sum(map(len, indices.values()))}"
        found = Block(
            0, "repeat", name, path, scope.runs, _sum(layers, Cost()), times=times, site=site
        )
        if len(layers) > 1:
            return replace(found, children=tuple(layers))
        (only,) = layers
        runs = only.runs
        return replace(
            found, runs=runs, children=only.children, flow=only.flow, weights=only.weights
        )

    def _layer(self, scope: _Scope, node: Node, kind: str, path: str, at: list[int]) -> Block:
        self.count += 1
        number = self.count
        function = self.needed.function(kind)
        instance = (*scope.instance, (path, kind))
        runs = scope.runs * iterations_of(scope.path, node, kind)
        names = _named(scope, node, function)
        within = _Scope(function, path, instance, runs, names, function.users())
        children, flow = self._inside(within, function.nodes, 0, 0)
        weights, own = self._claimed(within, path, whole=True)
        label = f"{node.attrs.string('path')}[{_ranges(at)}]"
        return Block(
            number, "layer", label, path, runs, _sum(children, own), times=str(len(at)),
            results=tuple(node.types), site=(Lines.of(node.spans[0]),) if node.spans else (),
            weights=weights, children=children, flow=flow,
        )  # fmt: skip

    def _scan(self, scope: _Scope, node: Node, depth: int, chain: int) -> Block:
        """What a scan runs at each step."""
        function, axis = self.needed.body(node), node.attrs.axis("axis")
        runs = scope.runs * axis.size.substitute(self.needed.sizes)
        names = _named(scope, node, function)
        within = replace(scope, function=function, runs=runs, names=names, users=function.users())
        children, flow = self._inside(within, function.nodes, depth, chain)
        where = _site(node, chain)
        return Block(
            0, "scan", "scan", scope.path, runs, _sum(children, Cost()),
            times=str(axis.size), site=(Lines.of(where),) if where is not None else (),
            children=children, flow=flow,
        )  # fmt: skip

    # -------------------------------------------------------------------- weights and states

    def _claimed(
        self, scope: _Scope, path: str, whole: bool = False
    ) -> tuple[tuple[WeightRow, ...], Cost]:
        """What no inner block has taken of the weights and states at a path of a function."""

        def ours(key: tuple[Instance, str]) -> bool:
            return key[0] == scope.instance and _within(key[1], path)

        weights, read = self._weights(ours), self._read(ours)
        taken = [
            s
            for s in self.states
            if s.function == scope.function.name and _within(f"{s.place}.", path)
        ]
        self.states = [s for s in self.states if s not in taken]
        return weights, _of_weights(weights, read, tuple(taken))

    def _weights(self, ours: Keyed) -> tuple[WeightRow, ...]:
        keys = [key for key in self.rows if ours(key)]
        return tuple(row for key in keys for row in self.rows.pop(key))

    def _read(self, ours: Keyed) -> Dim:
        return sum((self.read.pop(key) for key in [k for k in self.read if ours(k)]), ZERO)

    def _definition(self, spans: Sequence[Span]) -> str:
        """The definition that some text is in."""
        for span in spans[:1]:
            for outer, name in self.definitions:
                same = outer.source.name == span.source.name
                if same and outer.start <= span.start and span.end <= outer.end:
                    return name
        return ""


def _of_weights(weights: Sequence[WeightRow], read: Dim, states: tuple[State, ...]) -> Cost:
    trained = [row for row in weights if row.trained]
    total, active = sum(r.total for r in trained), sum(r.count * r.active for r in trained)
    return Cost(total, active, read, states=states)


def _sum(blocks: Iterable[Block], own: Cost) -> Cost:
    return sum((block.cost for block in blocks), own)


def _instances(program: Program) -> Iterator[tuple[str, Instance]]:
    """Every call path, and the repeats and kinds that it goes through."""
    found: dict[str, Instance] = {"": ()}
    for path, function in calls(program):
        yield path, found[path]
        for node in function.nodes:
            if node.op == "repeat":
                inside = join(pattern(path), f"{node.attrs.string('path')}[]")
                for inner, kind in iterations(node, path):
                    found[inner] = (*found[path], (inside, kind))


def _placed(path: str, known: Mapping[str, Instance]) -> tuple[Instance, str]:
    """The instance that a weight is of, and its path with folded indices."""
    end = len(path)
    while (end := path.rfind("]", 0, end)) >= 0:
        if path[: end + 1] in known:
            return known[path[: end + 1]], pattern(path)
    return (), pattern(path)


def _within(path: str, prefix: str) -> bool:
    return path.startswith(f"{prefix}.") if prefix else True


def _named(scope: _Scope, loop: Node, function: Function) -> dict[int, str]:
    """What a loop's operands are called where it stands, for the inputs of what it runs."""
    outer = [_name(scope, scope.function[i]) for i in loop.inputs]
    return dict(zip(function.inputs, outer, strict=False))


def _name(scope: _Scope, node: Node) -> str:
    if node.id in scope.names and not node.hint:
        return scope.names[node.id]
    if node.op == "input" and not node.hint:
        return node.attrs.string("name")
    return node.hint or region(node.origins).rpartition(".")[2] or node.op


# ------------------------------------------------------------------------------- grouping


def _grouped(scope: _Scope, nodes: Sequence[Node], depth: int, chain: int) -> list[_Group]:
    """Nodes by label or line, in order. No two groups read from one another: a block that is
    applied again after others is a group of its own."""
    groups: list[_Group] = []
    open_: dict[tuple[object, ...], int] = {}
    owner: dict[int, int] = {}
    for node in nodes:
        if node.op == "result" and node.inputs[0] in owner:
            _put(scope, node, owner[node.inputs[0]], groups, owner)
            continue
        key = _key(node, depth, chain)
        if key is None or (key[0] != "label" and _waits(node, scope.users)):
            continue
        read = {owner[i] for i in node.inputs if i in owner}
        at = open_.get(key)
        if at is None or any(p != at and _reaches(groups, at, p) for p in read):
            open_[key] = at = len(groups)
            groups.append(_Group(key))
        _put(scope, node, at, groups, owner)
        groups[at].before |= read - {at}
    return groups


def _put(scope: _Scope, node: Node, at: int, groups: list[_Group], owner: dict[int, int]) -> None:
    """A node, and the constants above it that no group has."""
    for source in (scope.function[i] for i in node.inputs):
        if source.op in SOURCES and source.id not in owner:
            owner[source.id] = at
            groups[at].nodes.append(source)
    if node.id not in owner:
        owner[node.id] = at
        groups[at].nodes.append(node)


def _waits(node: Node, users: Mapping[int, Sequence[int]]) -> bool:
    """Whether a node is grouped with the first that reads it."""
    return node.op in SOURCES and bool(users[node.id])


def _key(node: Node, depth: int, chain: int) -> tuple[object, ...] | None:
    """What a node is grouped by; nothing for an input of a function that is called."""
    if node.op == "input" and "kind" not in node.attrs:
        return None
    labels = node.origins[0].region.split(".") if node.origins and node.origins[0].region else []
    if len(labels) > depth:
        return ("label", labels[depth])
    if node.op in LOOPS:
        return ("loop", node.id)
    if node.op == "input":
        return ("input", node.id)
    where = _site(node, chain)
    return ("line", where.source.name, where.line) if where is not None else ("line", node.id)


def _reaches(groups: Sequence[_Group], start: int, end: int) -> bool:
    """Whether group `end` reads, through others, from group `start`."""
    todo, seen = [end], {end}
    while todo:
        if (at := todo.pop()) == start:
            return True
        new = groups[at].before - seen
        seen |= new
        todo += new
    return False


def _stack(node: Node) -> tuple[Span, ...]:
    """Where a node's text is, outermost first."""
    return tuple(reversed(node.spans))


def _site(node: Node, chain: int) -> Span | None:
    """The line of a node within what is reached by `chain` calls."""
    stack = _stack(node)
    return stack[min(chain, len(stack) - 1)] if stack else None


def _common(stacks: Sequence[tuple[Span, ...]]) -> tuple[Span, ...]:
    """The calls that all have in common, without the text that they lead to."""
    first, *rest = [stack[:-1] for stack in stacks] or [()]
    return reduce(_prefix, rest, first)


def _prefix(a: tuple[Span, ...], b: tuple[Span, ...]) -> tuple[Span, ...]:
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    return a[:same]


def _results(scope: _Scope, nodes: Sequence[Node]) -> tuple[TensorType, ...]:
    """The types of what leaves some nodes, the last one first."""
    inside, outputs = {n.id for n in nodes}, set(scope.function.output_ids)
    leaving = [
        n
        for n in reversed(nodes)
        if n.op not in SOURCES
        and (n.id in outputs or any(u not in inside for u in scope.users[n.id]))
    ]
    return tuple(dict.fromkeys(n.types[0] for n in leaving if n.op not in LOOPS))


def _edges(scope: _Scope, nodes: Sequence[Node], owner: Mapping[int, int]) -> Iterator[Edge]:
    """The values among blocks and over the border, each once for each pair."""
    function, inside = scope.function, {n.id for n in nodes}
    found: dict[tuple[int | str, int | str], TensorType] = {}
    for node in nodes:
        for source in (function[i] for i in node.inputs):
            start: int | str = owner.get(source.id, _name(scope, source))
            target = owner.get(node.id)
            known = source.op not in SOURCES or source.id in owner
            if target is not None and start != target and known:
                found.setdefault((start, target), source.type)
    for node in (n for n in nodes if n.id in owner and n.op not in SOURCES):
        for name in _leaving(scope, node, inside):
            found.setdefault((owner[node.id], f"→ {name or _name(scope, node)}"), node.type)
    yield from (Edge(*ends, kind) for ends, kind in found.items())


def _leaving(scope: _Scope, node: Node, inside: set[int]) -> Iterator[str]:
    """What a value is called outside: names of outputs, or nothing where it is read in passing."""
    names = [name for name, i in scope.function.outputs if i == node.id]
    yield from names
    outside = any(user not in inside for user in scope.users[node.id])
    if outside and not names and node.op not in LOOPS:
        yield ""


def _ranges(numbers: Sequence[int]) -> str:
    """`0..3, 5`; `0, 2 .. 10` for steps of more than one."""
    step = numbers[1] - numbers[0] if len(numbers) > 2 else 1
    if step > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1, step)):
        return f"{numbers[0]}, {numbers[1]} .. {numbers[-1]}"
    return ranges(numbers)
