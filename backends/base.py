"""What every backend is: it emits sources for a program, or loads it with weights and runs it.

Inputs are checked in one place, before any backend sees them: names, element kinds, sizes, domains.
The sizes of run-time axes are bound by the inputs' shapes and must agree between inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..compiler.ir.graph import Node, Program
from ..compiler.ops import FORMATS, ModelDType, Precision
from ..dsl.dims import Dim
from ..dsl.errors import (
    InputDtype,
    InputRange,
    InputShape,
    MissingInput,
    ShortPrefix,
    SizeRelation,
    UnknownInput,
)
from ..dsl.span import Span
from .lookups import check_lookups

Array = NDArray[Any]
ValueKey = tuple[str, int]  # (call path: "" in main, `layers[3]` inside a repeat; node id)


class Executable(ABC):
    """A program with its weights."""

    @abstractmethod
    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Arrays are laid out as the types of the input and output nodes say."""

    @abstractmethod
    def trace(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], dict[ValueKey, Array]]:
        """As `run`, with every value of the program as loaded (of several results: the first)."""

    def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Any], sizes: Mapping[str, int]
    ) -> Stepped:
        """As `run`, of a program with states: those that go in and, in the result, those that come out.

        `sizes` are known besides those that the inputs show. States are the backend's own arrays.
        """
        raise NotImplementedError

    def empty(self, like: Any, dim: int, length: int, dtype: ModelDType | None = None) -> Any:
        """An array for a state like `like`, but `length` long along `dim`; `dtype` is of its floats."""
        raise NotImplementedError

    def array(self, state: Any) -> Array:
        """A state, or a part of one, as NumPy."""
        return np.asarray(state)


@dataclass(frozen=True, slots=True)
class Stepped:
    """Outputs by name, states by path, and all sizes of the run."""

    outputs: dict[str, Array]
    states: dict[str, Any]
    sizes: dict[str, int]


class Backend(ABC):
    """A way to run programs. `options` are the backend's own."""

    name: ClassVar[str]

    def unwanted_passes(self, dtype: ModelDType, **options: Any) -> tuple[str, ...]:
        """Passes whose results this backend cannot run, or runs slower, at a dtype with these options.

        Packed weights are for a backend with an order of its own, ranges of keys for one that visits
        them tile by tile.
        """
        return ("pack-weights", "visible-keys")

    @abstractmethod
    def emit(self, program: Program, **options: Any) -> dict[str, str]:
        """Source text by file name; nothing for a backend that interprets."""

    @abstractmethod
    def load(
        self,
        program: Program,
        weights: Mapping[str, Array],
        *,
        dtype: ModelDType = "f32",
        like: Executable | None = None,
        **options: Any,
    ) -> Executable:
        """`weights` has an array for each parameter path, shaped as `Parameter.axes`.

        `like` is another program of the same model, loaded from the same weights at the same dtype,
        whose copy of them may be used.
        """


@dataclass(frozen=True, slots=True)
class BoundInputs:
    """Checked inputs of one run, by input name, in the run's dtypes, and all sizes."""

    arrays: dict[str, Array]
    sizes: dict[str, int]


def bind_inputs(
    program: Program,
    inputs: Mapping[str, Array],
    precision: Precision,
    known: Mapping[str, int] = MappingProxyType({}),
) -> BoundInputs:
    """Checks `inputs` against the program's input nodes and binds the sizes of run-time axes.

    `known` has run-time sizes that do not follow from the inputs.

    Raises MissingInput, UnknownInput, InputDtype, InputShape, SizeRelation, InputRange, IndexOutOfRange.
    """
    nodes = {node_name(n): n for n in (program.main[i] for i in program.main.inputs)}
    for name in inputs:
        if name not in nodes:
            raise UnknownInput(name=name, known=tuple(nodes))
    for name, node in nodes.items():
        if name not in inputs and not node.attrs.get("optional"):
            raise MissingInput(name=name, type=str(node.type), span=span_of(node))
    given = {
        name: _converted(node, inputs[name], precision)
        for name, node in nodes.items()
        if name in inputs
    }
    sizes = _bind_sizes({**program.sizes, **known}, nodes, given)
    _check_relations(program, sizes)
    for name, array in given.items():
        _check_range(nodes[name], array, sizes)
    check_lookups(program, sizes)
    left_out = {n: _default(node, sizes, precision) for n, node in nodes.items() if n not in given}
    return BoundInputs({**given, **left_out}, sizes)


def check_prefix(program: Program, bound: BoundInputs) -> None:
    """Of the first call of a decoding: raises `ShortPrefix` where it has not the whole prefix.

    Slots of the prefix see one another (`Program.after` names the input that says how many), so no
    later call can add one. `bound` are the inputs of that call.
    """
    if not program.after:
        return
    (node,) = (
        n
        for n in map(program.main.__getitem__, program.main.inputs)
        if node_name(n) == program.after
    )
    needed = int(bound.arrays[program.after].max(initial=0))
    (rows,) = {
        axis.size.evaluate(bound.sizes)
        for i in program.main.inputs
        for axis in program.main[i].axes
        if axis.name == program.decode
    }
    if needed > rows:
        raise ShortPrefix(
            name=program.after, axis=program.decode, needed=needed, rows=rows, span=span_of(node)
        )


def _default(node: Node, sizes: Mapping[str, int], precision: Precision) -> Array:
    """An input left out: its default everywhere (zero where nothing reads it)."""
    dtype = precision.storage(node.type.dtype)
    return np.full(node.type.shape(sizes), node.attrs.get("default", 0), dtype)


def node_name(node: Node) -> str:
    """The name of an input node."""
    return node.attrs.string("name")


def span_of(node: Node) -> Span | None:
    """The innermost source span of a node, if it has any."""
    return next(iter(node.spans), None)


# What a dtype's kind letter may be, by the kind of the input.
ACCEPTED = {"ids": "iu", "int": "iu", "bool": "biu", "float": "fiu"}


def _converted(node: Node, given: Array, precision: Precision) -> Array:
    array = np.asarray(given)
    kind = node.attrs.string("kind")
    half = kind == "float" and array.dtype in FORMATS.values()
    if array.dtype.kind not in ACCEPTED[kind] and not half:
        expected = "integers" if kind == "ids" else kind
        raise InputDtype(
            name=node_name(node), got=str(array.dtype), expected=expected, span=span_of(node)
        )
    if kind == "bool" and array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
        raise InputDtype(
            name=node_name(node), got="integers", expected="0 or 1", span=span_of(node)
        )
    return array.astype(precision.storage(node.type.dtype), copy=False)


def _bind_sizes(
    known: Mapping[str, int], nodes: Mapping[str, Node], given: Mapping[str, Array]
) -> dict[str, int]:
    """Sizes of plain symbols come from the first input that has them; all others must agree.

    An axis that only inputs left out have is empty.
    """
    sizes, source = dict(known), dict.fromkeys(known, "the model")
    for name, array in given.items():
        node = nodes[name]
        if array.ndim != len(node.axes):
            raise _misshapen(node, array, f"{len(node.axes)} axes, {node.type}")
        for axis, length in zip(node.axes, array.shape, strict=True):
            symbol = plain_symbol(axis.size)
            if symbol is not None and symbol not in sizes:
                sizes[symbol], source[symbol] = length, f"`{name}`"
    for axis in (axis for name, node in nodes.items() if name not in given for axis in node.axes):
        if (symbol := plain_symbol(axis.size)) is not None:
            sizes.setdefault(symbol, 0)
    for name, array in given.items():
        node = nodes[name]
        for axis, length in zip(node.axes, array.shape, strict=True):
            if length != axis.size.evaluate(sizes):
                origin = " and ".join(sorted({source[s] for s in axis.size.symbols()}))
                wanted = f"`{axis}` = {axis.size.evaluate(sizes)}"
                raise _misshapen(node, array, f"{wanted} from {origin}" if origin else wanted)
    return sizes


def _check_relations(program: Program, sizes: Mapping[str, int]) -> None:
    """What the text relies on: a slice or a `topk` has its entries, parts make up a whole."""
    for relation in program.constraints:
        symbols = relation.left.symbols() | relation.right.symbols()
        decided = sorted(symbols - program.sizes.keys())
        if decided and symbols <= sizes.keys() and not relation.holds(sizes):
            given = ", ".join(f"{symbol} = {sizes[symbol]}" for symbol in decided)
            text = f"{relation.left} {relation.op} {relation.right}"
            raise SizeRelation(relation=text, given=given, span=relation.span)


def plain_symbol(size: Dim) -> str | None:
    """The symbol that is the whole of `size`, if it is one."""
    symbols = size.symbols()
    (symbol,) = symbols if len(symbols) == 1 else ("",)
    return symbol if symbol and size == Dim.symbol(symbol) else None


def _misshapen(node: Node, array: Array, expected: str) -> InputShape:
    got = ", ".join(map(str, array.shape))
    return InputShape(name=node_name(node), got=got, expected=expected, span=span_of(node))


def _check_range(node: Node, array: Array, sizes: Mapping[str, int]) -> None:
    """Ids lie in 0 .. below - 1, or are the one extra value."""
    if "below" not in node.attrs or node.attrs["below"] is None:
        return
    below, extra = node.attrs.dim("below").evaluate(sizes), node.attrs.get("extra")
    outside = (array < 0) | (array >= below)
    if extra is not None:
        outside &= array != extra
    if outside.any():
        value = int(array[outside].flat[0])
        more = "" if extra is None else f" or {extra}"
        raise InputRange(
            name=node_name(node), value=value, last=below - 1, extra=more, span=span_of(node)
        )
