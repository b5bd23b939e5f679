"""The values of a program in the order they are computed, by call path and node.

Some nodes only pass on what another made: inputs of a layer kind, results of a repeat. A `Values`
knows for each of those who made it, so that every value is compared once and every operand found.
A repeat that may stop early is one value, like a scan: which of its layers run is known only in a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..backends.base import ValueKey
from ..compiler.ir.graph import Function, Node, Program
from ..compiler.ir.walk import calls, iterations
from ..compiler.passes import Optimised


@dataclass(slots=True)
class Values:
    """`order` lists what is computed; `makers` leads from a passed-on value to the one computed."""

    program: Program
    order: list[ValueKey] = field(default_factory=list)
    makers: dict[ValueKey, ValueKey] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    _carried: dict[ValueKey, list[ValueKey]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._visit("", self.program.main)

    def node(self, key: ValueKey) -> Node:
        return self.functions[key[0]][key[1]]

    def operands(self, key: ValueKey) -> Iterator[ValueKey]:
        """Who made the operands; for a `result` the operands of the node it reads."""
        path, function = key[0], self.functions[key[0]]
        node = self.node(key)
        for source in function[node.inputs[0]].inputs if node.op == "result" else node.inputs:
            yield self.maker((path, source))

    def maker(self, key: ValueKey) -> ValueKey:
        while key in self.makers:
            key = self.makers[key]
        return key

    def _visit(self, path: str, function: Function) -> None:
        self.functions[path] = function
        for node in function.nodes:
            if node.op == "repeat":
                if "exit" not in node.attrs:
                    self._repeat(path, node)
            elif node.op != "input" and len(node.types) == 1:
                key = path, node.id
                self._result(key, node)
                if key not in self.makers:
                    self.order.append(key)

    def _result(self, key: ValueKey, node: Node) -> None:
        carried = self._carried.get((key[0], node.inputs[0])) if node.op == "result" else None
        if carried is not None:
            self.makers[key] = carried[node.attrs.integer("index")]

    def _repeat(self, path: str, node: Node) -> None:
        arguments = [(path, i) for i in node.inputs]
        count = len(node.types)
        for inner, kind in iterations(node, path):
            function = self.program.function(kind)
            self.makers |= {
                (inner, i): a for i, a in zip(function.inputs, arguments, strict=False)
            }  # scalars come after the arguments: nobody makes them
            self._visit(inner, function)
            arguments[:count] = [(inner, i) for i in function.output_ids]
        self._carried[path, node.id] = arguments[:count]


def by_definition(program: Program) -> Program:
    """The same program and node ids, with every `attend` run as its body says, not by tiles."""
    functions = []
    for function in program.functions:
        nodes = (replace(n, op="pointwise") if n.op == "attend" else n for n in function.nodes)
        functions.append(replace(function, nodes=tuple(nodes)))
    return program.with_functions(functions)


def same_values(optimised: Optimised) -> Iterator[tuple[ValueKey, ValueKey]]:
    """(key before the passes, key after) for the values that are in both graphs."""
    pairs = optimised.value_map.pairs()
    for path, function in calls(optimised.value_map.before):
        for node in function.nodes:
            if (function.name, node.id) in pairs:
                yield (path, node.id), (path, pairs[function.name, node.id][1])
