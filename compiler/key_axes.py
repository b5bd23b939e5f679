"""Attentions that see differently far back get key axes of their own.

    sum_t f(m(t), x[s -> t]);  sum_t g(m(t), y[s -> t])
        =  sum_t f(m(t), x[s -> t]);  sum_u g(m(u), y[s -> u])     u as long as t, of the same timeline

Always legal: what is summed over may be called anything. Along one axis as many slots are kept as its
farthest reader sees, so one with a window need not keep what another reads without any. Values along an
axis that are made of one another are a group. What groups only have in common is made for each: slots,
facts such as masks, and earlier positions as they are, before anything is done with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import reduce

from .ir.graph import Attrs, Axis, Function, Node, Program, TensorType, callees, with_axes
from .passes.properties import VIEWS, is_elementwise
from .values import ZERO, Given, Reach, Values, counts, reduces, wider

TOLD = frozenset({"index", "const", "weight", "size"})  # facts of no operand


def with_key_axes(program: Program) -> Program:
    """The canonical program, where a key axis of a function has readers that see as far back."""
    return program.with_functions([_separated(program, f) for f in program.functions])


def _separated(program: Program, function: Function) -> Function:
    given = (Given(),) * len(function.inputs)
    values = Values(program, function, given)
    for key in dict.fromkeys(a for n in function.nodes for a in n.axes if values.is_key(a)):
        program = program.with_functions([function])
        function = _Along(Values(program, function, given), key).separated()
    return function


class _Along:
    """The groups along one key axis: `first` leads from a value to the first one of its group."""

    def __init__(self, values: Values, key: Axis) -> None:
        self.values, self.function, self.key = values, values.function, key
        self.facts = frozenset(self._facts())
        self.common = {n.id for n in self.function.nodes if self._is_common(n)}
        self.first: dict[int, int] = {}
        for node in self.function.nodes:
            if self._is_grouped(node):
                self._join(node)

    def separated(self) -> Function:
        axes = self._axes()
        return self._written(axes) if axes else self.function

    # ------------------------------------------------------------------------------- groups

    def _facts(self) -> Iterator[int]:
        """Values that nothing but facts and weights decides, element by element."""
        found: set[int] = set()
        for node in self.function.nodes:
            light = is_elementwise(node) or node.op in VIEWS
            known = node.op == "input" and node.type.dtype in ("int", "bool")
            if known or node.op in TOLD or (light and found.issuperset(node.inputs)):
                found.add(node.id)
                yield node.id

    def _is_common(self, node: Node) -> bool:
        """Whether a value along the axis may be made for each group that reads it."""
        if self.key not in node.axes or node.op == "input":
            return False
        if node.op == "rename":
            pairs = {b: a for a, b in node.attrs.pairs("pairs")}
            return not self._along(node) and pairs.get(self.key) == self.values.decoded
        light = node.op in ("index", "broadcast") or is_elementwise(node) or self._along(node)
        return node.id in self.facts and bool(light)

    def _along(self, node: Node) -> list[int]:
        """The operands of a node that have the axis."""
        return [i for i in dict.fromkeys(node.inputs) if self._has(self.function[i])]

    def _has(self, node: Node) -> bool:
        return any(self.key in kind.axes for kind in node.types)

    def _is_grouped(self, node: Node) -> bool:
        return node.id not in self.common and (self._has(node) or bool(self._along(node)))

    def _join(self, node: Node) -> None:
        self.first[node.id] = node.id
        for i in self._along(node):
            if i in self.first:
                self.first[self._group(i)] = self._group(node.id)

    def _group(self, node_id: int) -> int:
        while self.first[node_id] != node_id:
            node_id = self.first[node_id]
        return node_id

    # --------------------------------------------------------------------------- their axes

    def _axes(self) -> dict[int, Axis]:
        """The new axis of each value of a group that sees less far back than another."""
        reaches: dict[int, Reach] = {}
        for i in self.first:
            group = self._group(i)
            reaches[group] = wider(reaches.get(group, ZERO), self._reach(self.function[i]))
        read = dict.fromkeys(reach for reach in reaches.values() if reach != ZERO)
        near = [reach for reach in read if reach != reduce(wider, read)]
        named = {
            reach: replace(self.key, name=f"{self.key.name}.near.{number}")
            for number, reach in enumerate(near, 1)
        }
        found = {i: reaches[self._group(i)] for i in self.first}
        return {i: named[reach] for i, reach in found.items() if reach in named}

    def _reach(self, node: Node) -> Reach:
        """How far back a value of a group sees by itself. What others name the axis of sees all."""
        along = self._along(node)
        outside = node.id in self.function.output_ids or node.op == "result" or callees(node)
        if outside or not along or counts(node, self.key):
            return None
        if reduces(node, self.key):
            return self.values.sees(node, self.key)
        return ZERO if self.key in node.axes else None

    # -------------------------------------------------------------------- the new function

    def _written(self, axes: Mapping[int, Axis]) -> Function:
        """Grouped values with new axes, and what is in common once for each axis it is read along."""
        wanted = self._wanted(axes)
        following = max(n.id for n in self.function.nodes) + 1
        made: dict[tuple[int, Axis], int] = {}
        nodes: list[Node] = []
        for node in self.function.nodes:
            along = list(wanted.get(node.id, {axes.get(node.id, self.key): None}))
            for axis in along:
                number = node.id if axis == along[0] else following
                following += number == following
                made[node.id, axis] = number
                inputs = tuple(made.get((i, axis), i) for i in node.inputs)
                nodes.append(_along_another(node, number, inputs, {self.key: axis}))
        return replace(self.function, nodes=tuple(nodes))

    def _wanted(self, axes: Mapping[int, Axis]) -> dict[int, dict[Axis, None]]:
        """The axes along which the values in common are read, the old one first."""
        found: dict[int, dict[Axis, None]] = {}
        for node in reversed(self.function.nodes):
            if node.id in self.common:
                readers = [self.function[i] for i in self.values.users[node.id]]
                named = [found.get(r.id) or {axes.get(r.id, self.key): None} for r in readers]
                out = [self.key] if node.id in self.function.output_ids else []
                read = dict.fromkeys([*out, *(axis for among in named for axis in among)])
                found[node.id] = dict.fromkeys(sorted(read, key=lambda axis: axis != self.key))
        return {i: among or {self.key: None} for i, among in found.items()}


def _along_another(
    node: Node, number: int, inputs: tuple[int, ...], axes: Mapping[Axis, Axis]
) -> Node:
    attrs = Attrs({name: with_axes(value, axes) for name, value in node.attrs.items()})
    types = tuple(TensorType(t.dtype, tuple(axes.get(a, a) for a in t.axes)) for t in node.types)
    return replace(node, id=number, inputs=inputs, attrs=attrs, types=types)
