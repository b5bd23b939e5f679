"""What the functions of one program share while they are differentiated, and what they become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from ..ir.graph import STATE, Builder, Function, Node, Program
from ..ir.walk import calls, iterations, join
from ..rewrite import Session
from .attention import AttendReverse
from .reverse import Layer, Reverse, Special, State, refused, result
from .scans import ScanReverse

SPECIAL: dict[str, type[Special]] = {"scan": ScanReverse, "attend": AttendReverse}


class Derivation:
    """Backward functions by the function and by which of its operands take gradients."""

    def __init__(self, program: Program, session: Session, wanted: frozenset[str]) -> None:
        self.program, self.session = program, session
        self.paths: dict[str, list[str]] = {}
        for path, function in calls(program):
            self.paths.setdefault(function.name, []).append(path)
        counts = Counter(path for paths in self.paths.values() for path in paths)
        self.repeated = {path for path, count in counts.items() if count > 1}
        self.wanted = {
            name: frozenset(_weights(program.function(name), paths, wanted))
            for name, paths in self.paths.items()
        }
        self.layers: dict[tuple[str, frozenset[int]], Layer] = {}
        self.made: dict[str, Function] = {}
        self.saved: dict[str, dict[str, State]] = {}

    def backward(self, loss: str) -> Program:
        main = Reverse(self, self.program.main, self.program.main_name, SPECIAL)
        function = main.whole(loss)
        self._note(main)
        return self.program.with_functions([function, *self.made.values()])

    def forward(self) -> Program | None:
        """The loops over layers, and as states what the backward functions read."""
        if not any(self.saved.values()):
            return None
        functions = [self._leaving(self.program.function(name)) for name in self.saved]
        return self.program.with_functions(functions)

    def _leaving(self, function: Function) -> Function:
        builder = Builder(function.name)
        for node in function.nodes:
            builder.append(node)
        states = [
            (f"{STATE}{path}", result(builder, value, index))
            for path, (value, index) in self.saved[function.name].items()
        ]
        outputs = () if function.name == self.program.main_name else function.outputs
        return Function(function.name, builder.nodes, function.inputs, (*outputs, *states))

    def layer(self, loop: Node, kind: str, carried: int, captured: frozenset[int]) -> Layer:
        """The backward function of a layer kind; `captured` are the operands that take gradients."""
        key = kind, captured
        if key not in self.layers:
            reverse = Reverse(self, self.program.function(kind), self.session.name(kind), SPECIAL)
            self.layers[key] = reverse.layer(carried, captured, len(loop.inputs))
            self.made[self.layers[key].function.name] = self.layers[key].function
            self._note(reverse)
        return self.layers[key]

    def keep(self, function: Function) -> str:
        """A function that a new node runs."""
        self.made[function.name] = function
        return function.name

    def trains(self, loop: Node) -> bool:
        """Whether a layer of a loop, or one inside it, has a weight whose gradient is wanted."""
        return any(self._has_wanted(kind) for kind in self._kinds(loop))

    def check_path(self, loop: Node, function: Function) -> None:
        """One call path is one layer: two would leave their values at the same place."""
        for path in self.paths[function.name]:
            if any(inner in self.repeated for inner, _ in iterations(loop, path)):
                raise refused(loop, "a loop that runs the same layer again")

    def _has_wanted(self, name: str) -> bool:
        nested = (n for n in self.program.function(name).nodes if n.op == "repeat")
        return bool(self.wanted[name]) or any(self.trains(n) for n in nested)

    @staticmethod
    def _kinds(loop: Node) -> Iterator[str]:
        kinds = loop.attrs["kinds"]
        assert isinstance(kinds, tuple)
        yield from dict.fromkeys(map(str, kinds))

    def _note(self, reverse: Reverse) -> None:
        """What the forward function leaves: all that one of its backward functions reads."""
        self.saved.setdefault(reverse.function.name, {}).update(reverse.read)


def _weights(function: Function, paths: Collection[str], wanted: Collection[str]) -> Iterator[str]:
    for node in function.nodes:
        if node.op == "weight":
            path = node.attrs.string("path")
            if any(join(prefix, path) in wanted for prefix in paths):
                yield path
