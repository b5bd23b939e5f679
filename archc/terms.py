"""The operations of a model's regions as terms: what is computed, and the text that says it.

A term leaves out where its operands come from, so that regions of two models can be aligned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .compiler.ir.graph import AttrValue, Axis, Function, Node, Program
from .dsl.dims import Dim
from .texts import Place, Texts

if TYPE_CHECKING:
    from .api import Model

SILENT = frozenset({"const", "input", "repeat", "result", "size"})  # told by who reads them
AXES = re.compile(r"(axis|axes|into|pairs|parts) = (\([^{}]*?\)|\w+)(?=[,}])")


@dataclass(frozen=True, slots=True)
class Operand:
    """What an operation reads; `name` is what the text calls a number."""

    text: str
    name: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """An operation of a region: its meaning without where operands come from, and its text."""

    op: str
    operands: tuple[Operand, ...]
    attrs: str
    chain: tuple[str, ...]
    place: Place
    weights: tuple[str, ...] = ()
    near: str = ""

    def key(self, masked: frozenset[str]) -> str:
        """What is computed; a number whose name is masked counts by its name."""
        shown = ", ".join(f"<{o.name}>" if o.name in masked else o.text for o in self.operands)
        return f"{self.op}({shown}) {self.attrs}"

    def bare(self, masked: frozenset[str]) -> str:
        """What is computed, without which axes it is about."""
        return AXES.sub("", self.key(masked))

    @property
    def loose(self) -> str:
        """What is computed, with whatever weights."""
        shown = ", ".join("w" if o.text in self.weights else o.text for o in self.operands)
        return f"{self.op}({shown}) {self.attrs}"

    @property
    def local(self) -> str:
        """The path of a weight below its region."""
        return self.attrs.partition("path = ")[2].partition(",")[0]

    @property
    def numbers(self) -> dict[str, str]:
        return {o.name: o.text for o in self.operands if o.name}


@dataclass(slots=True)
class Side:
    """One of the two models, and its regions as terms."""

    model: Model
    texts: Texts = field(init=False)
    inputs: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = Texts(self.model)
        main = self.model.program.main
        self.inputs = frozenset(id(main[i]) for i in main.inputs)

    @property
    def program(self) -> Program:
        return self.model.program

    def regions(self, function: Function) -> dict[str, list[Term]]:
        found: dict[str, list[Term]] = {}
        for owner, node in self._nodes(function):
            if node.op not in SILENT:
                found.setdefault(region_of(node), []).append(self._term(owner, node))
        return found

    def _nodes(self, function: Function) -> Iterator[tuple[Function, Node]]:
        """The nodes of a function, those of its tables and scans in place."""
        for node in function.nodes:
            if "body" in node.attrs:
                yield from self._nodes(self.program.body(node))
            yield function, node

    def _term(self, function: Function, node: Node) -> Term:
        sources = [function[i] for i in node.inputs]
        return Term(
            node.op,
            tuple(self._operand(node, k, s) for k, s in enumerate(sources)),
            self._attrs(node),
            self.texts.chain(node),
            self.texts.place(node),
            tuple(local_path(s, region_of(node)) for s in sources if s.op == "weight"),
            next((r for s in sources if (r := region_of(s).partition(".")[0])), ""),
        )

    def _attrs(self, node: Node) -> str:
        items = {k: self._value(v) for k, v in node.attrs.items() if k != "body"}
        if node.op == "weight":
            items["path"] = local_path(node, region_of(node))
            items["sizes"] = self._value(tuple(axis.size for axis in node.axes))
        return f"{{{', '.join(f'{k} = {v}' for k, v in items.items())}}} {node.type.dtype}"

    def _operand(self, node: Node, position: int, source: Node) -> Operand:
        """A name for sources, the op within one statement, nothing across statements."""
        if source.op == "const":
            value = self._value(source.attrs["value"])
            return Operand(value, self.texts.operand(node, position))
        if source.op == "weight":
            return Operand(local_path(source, region_of(node)))
        if id(source) in self.inputs:
            return Operand(source.attrs.string("name"))
        inside = self._stands(source) == self._stands(node)
        return Operand(source.op if inside else ".")

    def _stands(self, node: Node) -> tuple[object, ...]:
        return region_of(node), self.texts.chain(node), self.texts.place(node).text

    def _value(self, value: AttrValue) -> str:
        if isinstance(value, tuple):
            return f"({', '.join(map(self._value, value))})"
        if isinstance(value, Dim):
            return str(value.substitute(self.program.sizes))
        if isinstance(value, float):
            return repr(float(f"{value:.10g}"))
        return value.name.partition(".")[0] if isinstance(value, Axis) else str(value)


def region_of(node: Node) -> str:
    return node.origins[0].region if node.origins else ""


def local_path(weight: Node, region: str) -> str:
    """A weight's path, without the region's where it lies in that."""
    return weight.attrs.string("path").removeprefix(f"{region}." if region else "")
