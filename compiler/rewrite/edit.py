"""One function under rewriting: nodes come and go, users always read the newest value.

A value keeps its id for as long as it lives, so a pass touches only what it changes. `replace`
sends the readers of one value to another and sweeps away what nobody reads any more; `moved`
remembers where each vanished value went. `finish` gives back an immutable function in a stable
topological order: a new node stands where the node it came from stood.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from ...dsl.diagnostics import InternalError
from ...dsl.dims import Dim
from ..ir.graph import (
    Attrs,
    AttrValue,
    Axis,
    Function,
    Node,
    Origin,
    Program,
    TensorType,
    operand_types,
)
from ..ops import infer


@dataclass(frozen=True, slots=True)
class Moved:
    """Where an old value is now: equal to value `id`, or computed inside the fused node `id`."""

    id: int
    inside: bool = False


class Names(Protocol):
    """Gives axes and functions of names that nothing else in the program has."""

    def axis(self, stem: str, size: Dim) -> Axis: ...

    def name(self, stem: str) -> str: ...


class Edit:
    """A function being rewritten. Read by id; change through `add` and `replace`."""

    def __init__(
        self,
        program: Program,
        function: Function,
        names: Names,
        first_id: int = 0,
    ) -> None:
        self.program = program
        self.function = function
        self.axis, self.name = names.axis, names.name
        self.outputs = list(function.outputs)
        self.moved: dict[int, Moved] = {}
        self.fresh: list[int] = []
        self.anchor: Node | None = None
        self._nodes: dict[int, Node] = {n.id: n for n in function.nodes}
        self._rank: dict[int, tuple[int, int]] = {
            n.id: (i, 0) for i, n in enumerate(function.nodes)
        }
        self._users: dict[int, list[int]] = function.users()
        self._order: list[int] | None = list(self._nodes)  # while nothing is changed
        self.next_id = max([first_id, *(i + 1 for i in self._nodes)])

    def __getitem__(self, node_id: int) -> Node:
        return self._nodes[node_id]

    def __contains__(self, node_id: int) -> bool:
        return node_id in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def nodes(self) -> tuple[Node, ...]:
        """All nodes, oldest first; `order` is the topological one."""
        return tuple(self._nodes.values())

    def operands(self, node: Node) -> tuple[Node, ...]:
        return tuple(self._nodes[i] for i in node.inputs)

    def users(self, node_id: int) -> tuple[Node, ...]:
        """The distinct nodes that read a value, in the order they started to."""
        return tuple(self._nodes[u] for u in dict.fromkeys(self._users[node_id]))

    def before(self, a: int, b: int) -> bool:
        """Whether `a` stands before `b` in the text's order."""
        return self._rank[a] < self._rank[b]

    def is_output(self, node_id: int) -> bool:
        return any(i == node_id for _, i in self.outputs)

    def used_once(self, node_id: int) -> bool:
        """One operand slot reads the value, and it is not a result of the function."""
        return len(self._users[node_id]) == 1 and not self.is_output(node_id)

    def begin(self, anchor: Node) -> None:
        """Nodes added from here on stand at `anchor` and, unless told, come from where it came."""
        self.anchor, self.fresh = anchor, []

    def add(
        self,
        op: str,
        inputs: tuple[int, ...] = (),
        attrs: Mapping[str, AttrValue] | None = None,
        types: tuple[TensorType, ...] | None = None,
        hint: str = "",
    ) -> int:
        """A new node; its type is inferred unless given (sources and fused nodes)."""
        frozen = Attrs(attrs)
        if types is None:
            types = infer(op, frozen, operand_types(op, [self._nodes[i] for i in inputs]))
        origins = self.anchor.origins if self.anchor else ()
        node = Node(self.next_id, op, inputs, frozen, types, origins, hint)
        rank = self._rank[self.anchor.id][0] if self.anchor else -1
        self.next_id += 1
        self._order = None
        self._nodes[node.id] = node
        self._rank[node.id] = (rank, node.id)
        self._users[node.id] = []
        for source in inputs:
            self._users[source].append(node.id)
        self.fresh.append(node.id)
        return node.id

    def replace(self, old: int, new: int, *, inside: bool = False) -> None:
        """Readers of `old` read `new` instead: the same value, laid out as `old` was."""
        if old == new:
            return
        new_id = self._as_laid_out(new, self._nodes[old].type)
        for user in dict.fromkeys(self._users[old]):
            if user != new_id:
                self._substitute(user, old, new_id)
        self.outputs = [(name, new_id if i == old else i) for name, i in self.outputs]
        self.moved[old] = Moved(new_id, inside)
        self._unite(old, new_id)
        self.sweep(old)

    def record(self, old: int, new: int, *, inside: bool = False) -> None:
        """Note where a value that was swept away is now."""
        if old not in self._nodes:
            self.moved[old] = Moved(new, inside)

    def set_origins(self, node_id: int, origins: tuple[Origin, ...]) -> None:
        self._nodes[node_id] = replace(self._nodes[node_id], origins=origins)

    def sweep(self, node_id: int) -> None:
        """Drop a value that nobody reads, and then whatever only it read."""
        todo = [node_id]
        while todo:
            dead = todo.pop()
            if dead not in self._nodes or self._users[dead] or self.is_output(dead):
                continue
            if self._nodes[dead].op == "input":
                continue
            node = self._nodes.pop(dead)
            self._order = None
            del self._users[dead]
            if len(node.inputs) == 1:  # a view or cast that became superfluous
                self.moved.setdefault(dead, Moved(node.inputs[0], inside=True))
            for source in dict.fromkeys(node.inputs):
                self._users[source] = [u for u in self._users[source] if u != dead]
                todo.append(source)

    def order(self) -> list[int]:
        """All ids, operands first, otherwise as the text had them."""
        if self._order is None:
            self._order = self._sorted()
        return self._order

    def _sorted(self) -> list[int]:
        waiting = {i: len(set(n.inputs)) for i, n in self._nodes.items()}
        ready = [(self._rank[i], i) for i, count in waiting.items() if count == 0]
        heapq.heapify(ready)
        found: list[int] = []
        while ready:
            _, node_id = heapq.heappop(ready)
            found.append(node_id)
            for user in dict.fromkeys(self._users[node_id]):
                waiting[user] -= 1
                if waiting[user] == 0:
                    heapq.heappush(ready, (self._rank[user], user))
        if len(found) != len(self._nodes):
            raise InternalError(f"a rewrite made a cycle in {self.function.name}")
        return found

    def finish(self) -> Function:
        """The rewritten function; the same object when nothing changed."""
        for node_id in reversed(self.order()):
            self.sweep(node_id)
        nodes = tuple(self._nodes[i] for i in self.order())
        done = Function(self.function.name, nodes, self.function.inputs, tuple(self.outputs))
        return self.function if done == self.function else done

    def reaches(self, start: Iterable[int], goal: Iterable[int]) -> bool:
        """Whether a path of operand edges leads from a value of `start` to one of `goal`."""
        goals, seen = set(goal), set(start)
        todo = list(seen)
        while todo:
            for user in self._users[todo.pop()]:
                if user in goals:
                    return True
                if user not in seen:
                    seen.add(user)
                    todo.append(user)
        return False

    def _as_laid_out(self, node_id: int, wanted: TensorType) -> int:
        have = self._nodes[node_id].type
        if have.dtype != wanted.dtype or set(have.axes) != set(wanted.axes):
            raise InternalError(f"a rewrite replaces {wanted} by {have} in {self.function.name}")
        if have.axes == wanted.axes:
            return node_id
        return self.add("transpose", (node_id,), {"order": wanted.axes})

    def _substitute(self, user: int, old: int, new: int) -> None:
        self._order = None
        node = self._nodes[user]
        inputs = tuple(new if i == old else i for i in node.inputs)
        self._nodes[user] = replace(node, inputs=inputs)
        self._users[new] += [user] * node.inputs.count(old)
        self._users[old] = [u for u in self._users[old] if u != user]

    def _unite(self, old: int, new: int) -> None:
        gone, kept = self._nodes[old], self._nodes[new]
        origins = tuple(dict.fromkeys(kept.origins + gone.origins))
        self._nodes[new] = replace(kept, origins=origins, hint=kept.hint or gone.hint)
