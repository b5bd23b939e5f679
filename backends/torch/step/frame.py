"""What the C++ of a function is written with before any value: names, sizes, addresses and scratch.

A size that a call decides is a number of its own, named once at the function's head. What lies outside
is asked for in a fixed order, a `Slot` each; what lies inside is taken from the scratch of the call.
What has no text raises `Refused`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ....compiler.ir.graph import DType, Function, Program, TensorType
from ....compiler.ir.walk import calls
from ....dsl.dims import Dim
from ..layout import Layout

ONE, ZERO = Dim.of(1), Dim()
TYPES: dict[DType, str] = {
    "float": "float",
    "f32": "float",
    "int": "int64_t",
    "i8": "int8_t",
    "bool": "bool",
}
Of = Literal["tensor", "state", "left", "input", "output"]


class Refused(Exception):
    """Why a program has no such text."""


@dataclass(frozen=True, slots=True)
class Slot:
    """An address that a function asks for: a tensor of its module, a state, an input, a result.

    A state is followed by its strides.
    """

    of: Of
    name: str
    ctype: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor of a module: the type of its elements and the axes of each dimension."""

    attribute: str
    ctype: str
    layout: Layout


@dataclass(slots=True)
class Shared:
    """What the functions of a text share."""

    program: Program
    kept: Callable[[str, int], tuple[Kept, ...]]
    ctype: Callable[[TensorType], str]
    of_state: Callable[[str, str], str]
    names: dict[str, str] = field(default_factory=dict)  # of main and the layer kinds
    symbols: list[str] = field(default_factory=list)
    slots: dict[str, tuple[Slot, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for _, function in calls(self.program):
            stem = re.sub(r"\W", "_", function.name)
            self.names.setdefault(function.name, f"run_{stem}_{len(self.names)}")

    def symbol(self, name: str) -> str:
        if name not in self.symbols:
            self.symbols.append(name)
        return f"run.sizes[{self.symbols.index(name)}]"


@dataclass(slots=True)
class Frame:
    """One function's. `own` are the old ids of the nodes that are not of a fused node's body."""

    text: Shared
    function: Function
    own: Mapping[int, int]
    head: list[str] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    lengths: dict[Dim, str] = field(default_factory=dict)
    strides: dict[str, str] = field(default_factory=dict)  # symbol of a stride: its name
    count: int = 0

    @property
    def is_main(self) -> bool:
        return self.function.name == self.text.program.main_name

    def ask(self, of: Of, name: str, ctype: str, kind: TensorType) -> str:
        """The name of the pointer to something outside."""
        pointer = self.fresh("p")
        constant = "" if of in ("left", "output", "state") else "const "
        self.slots.append(Slot(of, name, ctype, kind))
        self.head.append(f"{constant}{ctype}* {pointer} = run.next<{constant}{ctype}>();")
        return pointer

    def pointers(self) -> list[str]:
        found = [re.search(r"(\w+) = run\.next", line) for line in self.head]
        return [match[1] for match in found if match is not None]

    def scratch(self, ctype: str, size: str) -> str:
        pointer = self.fresh("v")
        self.head.append(f"{ctype}* {pointer} = take<{ctype}>(free, {size});")
        whole = re.sub(r"\bn_\d+\b", lambda m: f"({self._spelled[m[0]]})", size)
        self.needs.append(f"({whole}) * int64_t(sizeof({ctype}))")
        return pointer

    @property
    def _spelled(self) -> dict[str, str]:
        """What each length is."""
        return {name: self.dim(dim) for dim, name in self.lengths.items()}

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def type(self, kind: TensorType) -> str:
        if kind.dtype not in TYPES:
            raise Refused(f"values of {kind.dtype}")
        return TYPES[kind.dtype]

    def static(self, dim: Dim) -> Dim:
        return dim.substitute(self.text.program.sizes)

    def number(self, dim: Dim) -> int:
        found = self.static(dim).constant
        return -1 if found is None else found

    def length(self, dim: Dim) -> str:
        """A size as a number or a name."""
        dim = self.static(dim)
        if dim.constant is not None:
            return str(dim.constant)
        if dim not in self.lengths:
            self.lengths[dim] = name = self.fresh("n")
            self.head.append(f"const int64_t {name} = {self.dim(dim)};")
        return self.lengths[dim]

    def dim(self, dim: Dim) -> str:
        terms = []
        for monomial, coefficient in self.static(dim).terms:
            factors = [str(coefficient)] if coefficient != 1 or not monomial else []
            for atom in monomial:
                if not atom.args:
                    factors.append(self.strides.get(atom.name) or self.text.symbol(atom.name))
                    continue
                word = {"floordiv": "quotient", "min": "std::min", "max": "std::max"}[atom.name]
                first, second = (f"int64_t({self.dim(arg)})" for arg in atom.args)
                factors.append(f"{word}({first}, {second})")
            terms.append(" * ".join(factors))
        return " + ".join(terms) or "0"
