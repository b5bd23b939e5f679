"""Rules and the loop that applies them until nothing changes.

A rule is data: its name and equation, the ops at which it starts, what it looks for there, the
guards that may refuse what is found, and a function from that to what should happen: a value that
replaces the node, a `Rewrite` of several values, a `Fuse` of a region into one node, `Declined`
with a reason, or None where the rule does not apply. The engine does the rest: it asks the guards,
changes the function, unites origins, counts firings and records every site.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...dsl.diagnostics import InternalError
from ...dsl.dims import Dim
from ..ir.graph import AttrValue, Axis, Function, Node, Origin, Program, callees
from ..ops import SCANS
from .edit import Edit, Moved
from .region import Region, extract


@dataclass(frozen=True, slots=True)
class Declined:
    """The rule recognised its place and must leave it as it is."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Old values and what replaces them. `before` and `after` are bytes moved.

    `functions` are new ones that the new values run; their names are from `edit.name`.
    """

    values: Mapping[int, int]
    note: str = ""
    before: Dim | None = None
    after: Dim | None = None
    functions: tuple[Function, ...] = ()


@dataclass(frozen=True, slots=True)
class Fuse:
    """A region to become one node `op {attrs, body}` whose body is a function called `stem.k`."""

    op: str
    region: Region
    attrs: Mapping[str, AttrValue] = field(default_factory=dict)
    note: str = ""
    before: Dim | None = None
    after: Dim | None = None


Outcome = int | Rewrite | Fuse | Declined | None
Moves = dict[tuple[str, int], Moved]  # (function, id before) -> where the value is now


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition under which a rule is right, or worth it; `holds` says it in words.

    `refuse(edit, found)` is falsy where it holds, else the reason for which the rule declines, or
    True where the rule has not found its place at all.
    """

    name: str
    holds: str
    refuse: Callable[[Edit, Any], str | bool]


def _itself(edit: Edit, node: Node) -> Iterable[Node]:
    return (node,)


@dataclass(frozen=True, slots=True)
class Rule:
    """`apply(edit, found)` rewrites what `match` found and no guard refuses.

    It is tried at nodes whose op is in `roots` (at all if empty). `match(edit, node)` gives the
    candidates there, of which the first that is the rule's place counts; the node itself unless
    given. A candidate may be one that grows: `grow(edit, found, joins)` enlarges it by what the
    guards `joins` admit. `equation` is what the rule does, over the reals.
    """

    name: str
    apply: Callable[[Edit, Any], Outcome]
    roots: tuple[str, ...] = ()
    match: Callable[[Edit, Node], Iterable[Any]] = _itself
    guards: tuple[Guard, ...] = ()
    equation: str = ""
    grow: Callable[[Edit, Any, tuple[Guard, ...]], Any] | None = None
    joins: tuple[Guard, ...] = ()

    def at(self, edit: Edit, node: Node) -> Outcome:
        """What should happen at a node."""
        for found in self.match(edit, node):
            grown = self.grow(edit, found, self.joins) if self.grow is not None else found
            refused = refusal(self.guards, edit, grown)
            if isinstance(refused, str):
                return Declined(refused)
            if not refused:
                return self.apply(edit, grown)
        return None

    @property
    def conditions(self) -> tuple[Guard, ...]:
        """All that may hold it back."""
        return (*self.guards, *self.joins)

    def without(self, guard: str) -> Rule:
        """The rule as it would be if a guard were forgotten."""
        guards, joins = (
            tuple(g for g in kept if g.name != guard) for kept in (self.guards, self.joins)
        )
        return replace(self, guards=guards, joins=joins)


def refusal(guards: tuple[Guard, ...], edit: Edit, found: Any) -> str | bool:
    """What the first guard that does not hold says; False where all hold."""
    return next((said for g in guards if (said := g.refuse(edit, found))), False)


@dataclass(frozen=True, slots=True)
class Site:
    """One place where a rule fired, or recognised its pattern and declined."""

    pass_name: str
    rule: str
    function: str
    fired: bool
    reason: str
    origins: tuple[Origin, ...]
    hint: str = ""
    before: Dim | None = None
    after: Dim | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """A named set of rules; `equation` is what it does, over the reals.

    One that looks across functions has no rules and rewrites the `whole` program: it records its
    sites in the session, and a value that stays keeps its function and id. One that is not `exact`
    puts other parameters in place of some: what the program computes changes.
    """

    name: str
    equation: str
    rules: tuple[Rule, ...] = ()
    whole: Callable[[Program, Session], tuple[Program, Moves]] | None = None
    exact: bool = True
    _by_op: dict[str, tuple[Rule, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def starting_at(self, op: str) -> tuple[Rule, ...]:
        """The rules to try at a node of this op, in order."""
        if op not in self._by_op:
            self._by_op[op] = tuple(r for r in self.rules if not r.roots or op in r.roots)
        return self._by_op[op]


@dataclass(slots=True)
class Session:
    """What the passes of one compilation share: fresh names, sites, the count of firings."""

    limit: int | None = None
    fired: int = 0
    sites: list[Site] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    axes: set[str] = field(default_factory=set)
    next_ids: dict[str, int] = field(default_factory=dict)  # an id never means two values

    @property
    def exhausted(self) -> bool:
        return self.limit is not None and self.fired >= self.limit

    def name(self, stem: str) -> str:
        """A function name that is not taken: `attend.1`, `attend.2`, ..."""
        return _unused(stem, self.names)

    def axis(self, stem: str, size: Dim) -> Axis:
        """An axis whose name is not taken."""
        return Axis(_unused(stem, self.axes), size)

    def learn(self, program: Program) -> None:
        """Take note of the names and ids that a program uses."""
        for function in program.functions:
            used = max((n.id + 1 for n in function.nodes), default=0)
            self.next_ids[function.name] = max(used, self.next_ids.get(function.name, 0))
        self.names |= {f.name for f in program.functions}
        nodes = (n for f in program.functions for n in f.nodes)
        self.axes |= {a.name for n in nodes for t in n.types for a in t.axes}


def _unused(stem: str, taken: set[str]) -> str:
    number = 1
    while f"{stem}.{number}" in taken:
        number += 1
    taken.add(f"{stem}.{number}")
    return f"{stem}.{number}"


def run_pass(made: Pass, program: Program, session: Session) -> tuple[Program, Moves]:
    """The program after `made` and where its values went. Bodies of fused nodes are left alone."""
    session.learn(program)
    if made.whole is not None:
        return made.whole(program, session) if not session.exhausted else (program, {})
    changed: list[Function] = []
    moved: Moves = {}
    for function in code(program):
        if not any(map(made.starting_at, {node.op for node in function.nodes})):
            continue
        edit = Edit(program, function, session, session.next_ids.get(function.name, 0))
        worker = Worker(made, edit, session)
        worker.run()
        session.next_ids[function.name] = edit.next_id
        changed += [worker.edit.finish(), *worker.bodies]
        moved |= {(function.name, old): to for old, to in worker.edit.moved.items()}
    return program.with_functions(changed), moved


def code(program: Program) -> tuple[Function, ...]:
    """`main`, layer kinds and steps of scans: what passes rewrite. Tables, fused bodies are not."""
    found: dict[str, Function] = {}
    todo = [program.main_name]
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = program.function(name)
            calling = [n for n in found[name].nodes if n.op in SCANS or "body" not in n.attrs]
            todo += [callee for node in calling for callee in callees(node)]
    return tuple(f for f in program.functions if f.name in found)


class Worker:
    """Applies the rules of one pass to one function."""

    def __init__(self, made: Pass, edit: Edit, session: Session) -> None:
        self.made, self.edit, self.session = made, edit, session
        self.bodies: list[Function] = []
        self.budget = 64 + 16 * len(edit)
        self.recent: deque[str] = deque(maxlen=16)

    def run(self) -> None:
        """Sweeps over the function until a sweep fires nothing; its declines are the final ones."""
        declined: list[Site] = []
        changed = True
        while changed and not self.session.exhausted:
            declined = []
            changed = self._sweep(declined)
        self.session.sites += declined

    def _sweep(self, declined: list[Site]) -> bool:
        fired = False
        for node_id in self.edit.order():
            if node_id not in self.edit:
                continue
            for rule in self.made.starting_at(self.edit[node_id].op):
                if self.session.exhausted:
                    return False
                if node_id not in self.edit:
                    break
                fired |= self._try(rule, self.edit[node_id], declined)
        return fired

    def _try(self, rule: Rule, node: Node, declined: list[Site]) -> bool:
        self.edit.begin(node)
        outcome = rule.at(self.edit, node)
        if outcome is None or isinstance(outcome, Declined):
            self._forget_fresh()
            if outcome is not None:
                declined.append(self._site(rule, node, node.origins, outcome))
            return False
        self._spend(rule)
        origins = self._enact(node, outcome)
        self.session.sites.append(self._site(rule, node, origins, outcome))
        return True

    def _spend(self, rule: Rule) -> None:
        self.recent.append(rule.name)
        self.session.fired += 1
        self.budget -= 1
        if self.budget < 0:
            names = ", ".join(sorted(set(self.recent)))
            where = f"{self.made.name} in {self.edit.function.name}"
            raise InternalError(f"{where} does not come to rest; rules that alternate: {names}")

    def _enact(self, node: Node, outcome: int | Rewrite | Fuse) -> tuple[Origin, ...]:
        if isinstance(outcome, Fuse):
            return self._fuse(outcome)
        values = {node.id: outcome} if isinstance(outcome, int) else outcome.values
        self.bodies += () if isinstance(outcome, int) else outcome.functions
        origins = unite(self.edit[old] for old in values)
        for made in self.edit.fresh:
            if made in self.edit:
                self.edit.set_origins(made, origins)
        for old, new in values.items():
            if old in self.edit:
                self.edit.replace(old, new)
            else:
                self.edit.record(old, new)
        return origins

    def _fuse(self, fuse: Fuse) -> tuple[Origin, ...]:
        edit, region = self.edit, fuse.region
        body = extract(edit, region, self.session.name(fuse.op))
        self.bodies.append(body)
        origins = unite(edit[i] for i in region.nodes)
        edit.begin(edit[region.outputs[-1]])
        types = tuple(edit[i].type for i in region.outputs)
        attrs = {"body": body.name, **fuse.attrs}
        fused = edit.add(fuse.op, region.leaves, attrs, types)
        edit.set_origins(fused, origins)
        single = len(region.outputs) == 1
        for index, old in enumerate(region.outputs):
            new = (
                fused if single else edit.add("result", (fused,), {"index": index}, (types[index],))
            )
            edit.replace(old, new)
        for old in set(region.nodes) - set(region.outputs):
            edit.record(old, fused, inside=True)
        return origins

    def _forget_fresh(self) -> None:
        for made in reversed(self.edit.fresh):
            self.edit.sweep(made)

    def _site(self, rule: Rule, node: Node, origins: tuple[Origin, ...], outcome: Outcome) -> Site:
        fired = not isinstance(outcome, Declined)
        reason = outcome.reason if isinstance(outcome, Declined) else getattr(outcome, "note", "")
        before, after = getattr(outcome, "before", None), getattr(outcome, "after", None)
        where = self.edit.function.name
        return Site(
            self.made.name, rule.name, where, fired, reason, origins, node.hint, before, after
        )


def unite(nodes: object) -> tuple[Origin, ...]:
    """The origins of several nodes, each once, in order."""
    return tuple(dict.fromkeys(o for n in nodes for o in n.origins))  # type: ignore[attr-defined]
