"""`decode s` is a promise that no output at position i reads a position after i; here is the proof.

One abstract interpretation over the canonical graph. For each value and each of its axes on the
decoded timeline it finds the largest j - i such that the value at i may depend on input position j;
a reduction over time is bounded by the proved support of what it reduces (`passes/bounds.py`). What
is not proved counts as looking ahead, and the refusal names the line where that begins.

`decode s after p` promises less: the value at i reads no j but those with j <= i or j < p. Then a
reach of r means j <= i + r or j < p. Of a reach of at most 0 a position may read all below p, and
keeps that promise; where the reach is more, the prefix is like any other place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..dsl.dims import Dim
from ..dsl.errors import ExitInDecode, LooksAhead
from ..dsl.syntax import ModelDef
from .elaborate import Module, Request, elaborate
from .ir.graph import Axis, Function, Node, Program
from .passes.bounds import ONE, Visibility
from .passes.canonicalize import CANONICALIZE
from .passes.properties import reduced_axes
from .rewrite import Edit, Session, run_pass

NOTHING, ALL = -math.inf, math.inf
SOURCES = frozenset({"weight", "const", "table", "index"})


@dataclass(frozen=True, slots=True)
class Reach:
    """How far ahead a value reads: per time axis, and `anywhere` for what has lost its position.

    `cause` is the node at which a value first read ahead.
    """

    along: Mapping[Axis, float] = field(default_factory=dict)
    anywhere: float = NOTHING
    cause: Node | None = None

    @property
    def furthest(self) -> float:
        return max([self.anywhere, *self.along.values()])

    @property
    def bounds(self) -> tuple[Mapping[Axis, float], float]:
        return self.along, self.anywhere

    def join(self, other: Reach) -> Reach:
        along = {
            axis: max(self.along.get(axis, NOTHING), other.along.get(axis, NOTHING))
            for axis in {**self.along, **other.along}
        }
        first = self.cause if self.cause is not None else other.cause
        return Reach(along, max(self.anywhere, other.anywhere), first)


def elaborate_proved(module: Module, model: ModelDef, request: Request) -> Program:
    """Elaborate a model and prove it causal, for any values of the inputs with computed defaults.

    Such a value is a fact of the call, like the number of its positions: no position reads another
    through it, so the proof is about the program that has it as an input. Raises what `elaborate`
    and `prove_causal` raise.
    """
    program = elaborate(module, model, replace(request, facts=True))
    prove_causal(program)
    computed = {n.attrs["name"] for n in program.main.nodes if n.attrs.get("computed")}
    if computed <= set(request.given or ()):
        return program
    return elaborate(module, model, request)


def prove_causal(program: Program) -> None:
    """Of a program that declares `decode`: raises `LooksAhead` when it reads ahead along that axis,
    `ExitInDecode` when it may skip layers, which then keep nothing for later positions.
    """
    if not program.decode:
        return
    _every_layer(program)
    canonical, _ = run_pass(CANONICALIZE, program, Session())
    nodes = [canonical.main[i] for i in canonical.main.inputs]
    inputs = {node.id: _of_input(node, program.decode) for node in nodes}
    prefix = frozenset(n.id for n in nodes if n.attrs["name"] == program.after)
    reaches = _reaches(canonical, canonical.main, inputs, prefix)
    for name, node_id in canonical.main.outputs:
        if name != "loss" and reaches[node_id].furthest > 0:
            raise _refusal(program, name, reaches[node_id].cause)


def _every_layer(program: Program) -> None:
    for node in (n for f in program.functions for n in f.nodes if "exit" in n.attrs):
        spans = node.spans or (None,)
        raise ExitInDecode(axis=program.decode, span=spans[0], calls=spans[1:])


def _of_input(node: Node, axis: str) -> Reach:
    return Reach({a: 0.0 for a in node.axes if a.time == axis})


def _without(axis: Axis, reach: Reach, anywhere: float) -> Reach:
    """The reach of a value that stands at one entry of `axis`, or has lost it."""
    along = {a: r for a, r in reach.along.items() if a != axis}
    return Reach(along, max(reach.anywhere, anywhere), reach.cause)


def _refusal(program: Program, output: str, cause: Node | None) -> LooksAhead:
    spans = cause.origins[0].spans if cause is not None and cause.origins else ()
    return LooksAhead(
        axis=program.decode,
        after=program.after,
        output=output,
        op=cause.op if cause is not None else "this",
        span=spans[0] if spans else None,
        calls=spans[1:],
    )


def _reaches(
    program: Program, function: Function, inputs: Mapping[int, Reach], prefix: frozenset[int]
) -> dict[int, Reach]:
    """The reach of every value of a function, whose inputs `prefix` are the length of the prefix."""
    proof = _Proof(program, Edit(program, function, Session()), prefix)
    found: dict[int, Reach] = dict(inputs)
    for node in function.nodes:
        if node.op != "input":
            found[node.id] = proof.node(node, [found[i] for i in node.inputs])
    return found


@dataclass(frozen=True, slots=True)
class _Proof:
    """The rules for the nodes of one function."""

    program: Program
    edit: Edit
    prefix: frozenset[int]
    carried: dict[int, list[Reach]] = field(default_factory=dict)
    """What each value that a repeat carries reads at its end, by the node of the repeat."""

    def node(self, node: Node, operands: list[Reach]) -> Reach:
        joined = Reach()
        for operand in operands:
            joined = joined.join(operand)
        rule = _RULES.get(node.op)
        result = rule(self, node, operands, joined) if rule is not None else joined
        if result.furthest > 0 and result.cause is None:
            result = replace(result, cause=node)
        return result

    @property
    def length(self) -> frozenset[str]:
        """The symbols in the size of the decoded axis that only a call binds."""
        main = self.program.main
        axes = {a for i in main.inputs for a in main[i].axes if a.name == self.program.decode}
        return frozenset[str]().union(*(a.size.symbols() for a in axes)) - set(self.program.sizes)

    # ------------------------------------------------------------------------ reductions

    def reduced(self, node: Node, _: list[Reach], joined: Reach) -> Reach:
        for axis in reduced_axes(node):
            if axis.time == self.program.decode:
                joined = self.over_time(node, axis, joined)
        return joined

    def over_time(self, node: Node, key: Axis, joined: Reach) -> Reach:
        """Every query position may read the keys of the support, wherever those read.

        Those of the prefix count only where they read ahead themselves.
        """
        queries = [a for a in node.axes if a.time == self.program.decode and a != key]
        kept = {a: r for a, r in joined.along.items() if a != key or node.op == "softmax"}
        read = max(joined.along.get(key, NOTHING), 0.0)
        if not queries:
            return Reach(kept, ALL, joined.cause)
        prefix = self.prefix if read <= 0 else frozenset[int]()
        for query in queries:
            seen = Visibility(self.edit, key, query, prefix).support(node)
            ahead = NOTHING if seen.empty else self.number(seen.upper) + read
            kept[query] = max(kept.get(query, NOTHING), ahead)
        return Reach(kept, joined.anywhere, joined.cause)

    def number(self, bound: Dim | None) -> float:
        """A bound in positions. One that depends on a run-time size proves nothing."""
        value = bound.substitute(self.program.sizes).constant if bound is not None else None
        return ALL if value is None else float(value)

    # ----------------------------------------------------------------- views and indices

    def renamed(self, node: Node, _: list[Reach], joined: Reach) -> Reach:
        names = dict(node.attrs.pairs("pairs"))
        along = {names.get(a, a): r for a, r in joined.along.items()}
        return Reach(along, joined.anywhere, joined.cause)

    def reshaped(self, node: Node, _: list[Reach], joined: Reach) -> Reach:
        """A view that cuts, joins or reorders the decoded axis itself is not followed.

        Nor is one of any axis that starts where the length of the sequence says.
        """
        places = [node.attrs.dim(name) for name in ("at", "start") if name in node.attrs]
        if any(place.symbols() & self.length for place in places):
            return Reach(joined.along, ALL, joined.cause)
        lost = [a for a in joined.along if a not in node.axes]
        if not lost:
            return joined
        along = {a: r for a, r in joined.along.items() if a not in lost}
        return Reach(along, ALL, joined.cause)

    def size(self, node: Node, _: list[Reach], joined: Reach) -> Reach:
        return Reach({}, ALL) if node.attrs.axis("axis").time == self.program.decode else joined

    def taken(self, node: Node, operands: list[Reach], joined: Reach) -> Reach:
        """Reading at slot i + c reads c ahead; reading where data says is not bounded."""
        axis = node.attrs.axis("axis")
        source, index = operands
        if axis.time != self.program.decode or axis not in source.along:
            return joined
        along = {a: r for a, r in joined.along.items() if a != axis}
        for query in [a for a in node.axes if a.time == self.program.decode]:
            ahead = self.ahead(Visibility(self.edit, axis, query), node.inputs[1])
            along[query] = max(along.get(query, NOTHING), source.along[axis] + ahead)
        anywhere = joined.anywhere if along else ALL
        return Reach(along, anywhere, source.cause or index.cause)

    def ahead(self, sight: Visibility, index: int) -> float:
        """The most by which an index is past the query's slot, which is at least 0."""
        slot = sight.slot(index)
        if slot.keys or slot.queries not in (0, 1):
            return ALL
        past = self.number(slot.high)
        return past if slot.queries and slot.divisor == ONE else max(past, 0.0)

    # ----------------------------------------------------------------------------- calls

    def repeated(self, node: Node, operands: list[Reach], _: Reach) -> Reach:
        """Run the kinds on what they gave until nothing is added, at most until all is carried on.

        What still grows then looks further ahead with every layer.
        """
        count = node.attrs.integer("carried")
        state = operands[:count]
        for _step in range(count + 1):
            before, state = state, self.iterated(node, state, operands[count:])
            if [r.bounds for r in before] == [r.bounds for r in state]:
                break
        else:
            grown = zip(before, state, strict=True)
            state = [replace(s, anywhere=ALL) if s.bounds != r.bounds else s for r, s in grown]
        self.carried[node.id] = state
        joined = Reach()
        for reach in state:
            joined = joined.join(reach)
        return joined

    def scanned(self, node: Node, operands: list[Reach], _: Reach) -> Reach:
        """Step i has read steps 0 to i, each of which reads what it may read of its position.

        Inside a step a position is lost: what an operand reads past the step counts as `anywhere`.
        """
        axis, first = node.attrs.axis("axis"), node.attrs.integer("stepped")
        inside = [_without(axis, r, r.along.get(axis, NOTHING)) for r in operands]
        state, others = inside[first : first + node.attrs.integer("states")], inside[:first]
        others += inside[first + len(state) :]
        for _step in range(len(state) + 1):
            before, (made, state) = state, self.stepped(node, others, state, first)
            if [r.bounds for r in before] == [r.bounds for r in state]:
                break
        joined = Reach()
        for reach in (*made, *state):
            joined = joined.join(reach)
        if axis.time != self.program.decode:
            return joined
        if node.attrs["reverse"]:
            return Reach({**joined.along, axis: ALL}, joined.anywhere, joined.cause)
        ahead = joined.anywhere
        return Reach({**joined.along, axis: ahead}, ALL if ahead > 0 else NOTHING, joined.cause)

    def stepped(
        self, node: Node, others: list[Reach], state: list[Reach], first: int
    ) -> tuple[list[Reach], list[Reach]]:
        """What a step makes of its operands, and the states after it joined with those before."""
        body = self.program.body(node)
        given = [*others[:first], *state, *others[first:]]
        read = dict(zip(body.inputs, given, strict=True))
        last = first + len(state)
        prefix = self.prefix_in(body, node.inputs[last:], last)
        found = _reaches(self.program, body, read, prefix)
        results = [found[i] for i in body.output_ids]
        count = len(state)
        return results[:-count], [r.join(s) for r, s in zip(results[-count:], state, strict=True)]

    def prefix_in(self, body: Function, captured: Sequence[int], first: int) -> frozenset[int]:
        """The inputs of a body, from `first` on, that are the length of the prefix in every step."""
        given = zip(captured, body.inputs[first:], strict=False)
        return frozenset(inside for outside, inside in given if outside in self.prefix)

    def result(self, node: Node, operands: list[Reach], joined: Reach) -> Reach:
        """A repeat gives what it carries apart; the last state of a scan has read every step."""
        scan = self.edit[node.inputs[0]]
        if scan.op == "repeat":
            return self.carried[scan.id][node.attrs.integer("index")]
        if scan.op != "scan":
            return joined
        axis, sequences = scan.attrs.axis("axis"), len(scan.types) - scan.attrs.integer("states")
        if node.attrs.integer("index") < sequences:
            return joined
        if axis.time != self.program.decode:
            return _without(axis, joined, NOTHING)
        cause = joined.cause if joined.cause is not None else scan
        return replace(_without(axis, joined, ALL), cause=cause)

    def iterated(self, node: Node, state: list[Reach], captured: list[Reach]) -> list[Reach]:
        """The carried values after one run of each kind, joined with what they were."""
        kinds = node.attrs["kinds"]
        assert isinstance(kinds, tuple)
        for name in dict.fromkeys(k for k in kinds if isinstance(k, str)):
            body = self.program.function(name)
            given = [*state, *captured]
            given += [Reach()] * (len(body.inputs) - len(given))
            read = dict(zip(body.inputs, given, strict=True))
            prefix = self.prefix_in(body, node.inputs[len(state) :], len(state))
            found = _reaches(self.program, body, read, prefix)
            state = [found[i].join(s) for i, s in zip(body.output_ids, state, strict=True)]
        return state


_RULES = {
    **dict.fromkeys(("sum", "amax", "dot", "softmax", "logsumexp", "topk"), _Proof.reduced),
    **dict.fromkeys(("split", "merge", "slice", "concat", "pick"), _Proof.reshaped),
    "rename": _Proof.renamed,
    "size": _Proof.size,
    "take": _Proof.taken,
    "repeat": _Proof.repeated,
    "scan": _Proof.scanned,
    "result": _Proof.result,
}
