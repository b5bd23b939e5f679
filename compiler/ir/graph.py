"""The graph: frozen, typed nodes in functions, functions in a program.

A value is a node; its type says which named axes it has. Axes have no order in meaning: the order of
`TensorType.axes` is how a backend lays the value out, nothing more. A function is a list of nodes in
topological order; layer kinds, scan bodies, tables and fused regions are functions of the same program
and name the same axes. Nothing here is ever mutated: a rewrite builds a new function.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, TypeAlias

from ...dsl.diagnostics import InternalError
from ...dsl.dims import Dim, product
from ...dsl.span import Span

STATE = "state."  # an output that is a state is called so and by its path; no other name begins so
DType = Literal["float", "f32", "f64", "int", "i8", "bool"]


@dataclass(frozen=True, slots=True, order=True)
class Axis:
    """A named axis. One name is one axis in a program; `time` is the input axis whose timeline it has."""

    name: str
    size: Dim
    time: str | None = None

    def __hash__(self) -> int:
        return hash(self.name)  # one name, one axis

    def __str__(self) -> str:
        return self.name


def elements(axes: Iterable[Axis]) -> Dim:
    """How many elements a value with these axes has: the product of their sizes."""
    return _elements(tuple(axes))


@lru_cache(maxsize=4096)  # passes ask for the same types all the time
def _elements(axes: tuple[Axis, ...]) -> Dim:
    return product([axis.size for axis in axes])


@dataclass(frozen=True, slots=True)
class TensorType:
    """An element kind and axes. `float` is the dtype of the run; `f32` is at least float32.

    `i8` is a byte that holds codes of a quantised weight: only `quantise` makes it.
    """

    dtype: DType
    axes: tuple[Axis, ...] = ()

    def __post_init__(self) -> None:
        if len({a.name for a in self.axes}) != len(self.axes):
            raise InternalError(f"an axis occurs twice in {self}")

    def position(self, axis: Axis) -> int:
        """Where `axis` lies in the layout."""
        return self.axes.index(axis)

    def shape(self, bindings: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(axis.size.evaluate(bindings) for axis in self.axes)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(a.name for a in self.axes)}]"


AttrValue: TypeAlias = "int | float | bool | str | Dim | Axis | tuple[AttrValue, ...] | None"


def with_axes(value: AttrValue, axes: Mapping[Axis, Axis]) -> AttrValue:
    """An attribute with other axes in place of some."""
    if isinstance(value, tuple):
        return tuple(with_axes(v, axes) for v in value)
    return axes.get(value, value) if isinstance(value, Axis) else value


class Attrs(Mapping[str, AttrValue]):
    """An immutable, hashable mapping, iterated in name order."""

    __slots__ = ("_items", "_lookup")

    def __init__(self, items: Mapping[str, AttrValue] | None = None) -> None:
        self._items = tuple(sorted((items or {}).items()))
        self._lookup = dict(self._items)

    def __getitem__(self, name: str) -> AttrValue:
        return self._lookup[name]

    # What `Mapping` gives for these two raises and catches a KeyError: rules ask all the time.
    def __contains__(self, name: object) -> bool:
        return name in self._lookup

    def get(self, name: str, default: AttrValue = None) -> AttrValue:  # type: ignore[override]
        return self._lookup.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lookup)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attrs) and self._items == other._items

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{k} = {v}" for k, v in self._items) + "}"

    def axis(self, name: str) -> Axis:
        value = self[name]
        assert isinstance(value, Axis)
        return value

    def axes(self, name: str) -> tuple[Axis, ...]:
        value = self[name]
        assert isinstance(value, tuple)
        return tuple(a for a in value if isinstance(a, Axis))

    def pairs(self, name: str) -> tuple[tuple[Axis, Axis], ...]:
        value = self[name]
        assert isinstance(value, tuple)
        return tuple((p[0], p[1]) for p in value if isinstance(p, tuple))  # type: ignore[misc]

    def string(self, name: str) -> str:
        value = self[name]
        assert isinstance(value, str)
        return value

    def integer(self, name: str) -> int:
        value = self[name]
        assert isinstance(value, int)
        return value

    def dim(self, name: str) -> Dim:
        value = self[name]
        assert isinstance(value, int | Dim)
        return Dim.of(value)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a node came from: source spans (the callee's text first, then its callers') and a region.

    The region is a path of labels such as `attention.q`, relative to the function that holds the node.
    """

    spans: tuple[Span, ...] = ()
    region: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. `inputs` are node ids of the same function; `origins` and `hint` carry no meaning."""

    id: int
    op: str
    inputs: tuple[int, ...]
    attrs: Attrs
    types: tuple[TensorType, ...]
    origins: tuple[Origin, ...] = field(default=(), compare=False)
    hint: str = field(default="", compare=False)

    @property
    def type(self) -> TensorType:
        return self.types[0]

    @property
    def spans(self) -> tuple[Span, ...]:
        """Where the node's text is, innermost first, by its first origin that knows."""
        return next((origin.spans for origin in self.origins if origin.spans), ())

    @property
    def axes(self) -> tuple[Axis, ...]:
        return self.types[0].axes


def operand_types(op: str, sources: Sequence[Node]) -> tuple[TensorType, ...]:
    """What a shape rule sees: each operand's type, but for `result` all the types of its operand."""
    return sources[0].types if op == "result" else tuple(source.type for source in sources)


@dataclass(frozen=True, slots=True)
class Function:
    """Nodes in topological order. `inputs` are ids of `input` nodes, `outputs` named values."""

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[tuple[str, int], ...]
    called: tuple[str, ...] = field(init=False, repr=False, compare=False)  # names of functions
    _by_id: dict[int, Node] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        called = dict.fromkeys(name for node in self.nodes for name in callees(node))
        object.__setattr__(self, "called", tuple(called))
        object.__setattr__(self, "_by_id", {n.id: n for n in self.nodes})

    def __getitem__(self, node_id: int) -> Node:
        return self._by_id[node_id]

    def __contains__(self, node_id: int) -> bool:
        return node_id in self._by_id

    def users(self) -> dict[int, list[int]]:
        """For each node, the ids of the nodes that read it, one entry per operand slot."""
        users: dict[int, list[int]] = {n.id: [] for n in self.nodes}
        for node in self.nodes:
            for source in node.inputs:
                users[source].append(node.id)
        return users

    def read_results(self, node: Node) -> set[int]:
        """Which results of a node that has several something reads."""
        readers = (n for n in self.nodes if n.op == "result" and n.inputs == (node.id,))
        return {reader.attrs.integer("index") for reader in readers}

    @property
    def states(self) -> tuple[Node, ...]:
        """The states the function reads, as they stand in it."""
        return tuple(n for n in self.nodes if n.op == "state")

    @property
    def left(self) -> tuple[tuple[str, int], ...]:
        """The states the function leaves: paths and values."""
        outputs = ((name, i) for name, i in self.outputs if name.startswith(STATE))
        return tuple((name.removeprefix(STATE), i) for name, i in outputs)

    @property
    def output_ids(self) -> tuple[int, ...]:
        return tuple(i for _, i in self.outputs)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A weight of the whole program. `grouping` is how it is stored: each stored dimension's axes.

    `path` is complete (`layers[3].attention.q.w`). `init` is the initialiser as written; `declared`
    gives, for each axis, the name its block declared it by (`out`, `in`). One that is not `trained`
    is a buffer. The first `banks` axes are those of banks that tensors index: for each entry along
    them there is a weight.
    """

    path: str
    axes: tuple[Axis, ...]
    grouping: tuple[tuple[Axis, ...], ...]
    init: str = ""
    declared: tuple[str, ...] = ()
    trained: bool = True
    banks: int = 0
    span: Span | None = field(default=None, compare=False)

    def below(self, prefix: str) -> Parameter:
        """The same weight at `prefix` and its own path."""
        return Parameter(  # made by hand: a model has thousands, `replace` is slow
            f"{prefix}{self.path}",
            self.axes,
            self.grouping,
            self.init,
            self.declared,
            self.trained,
            self.banks,
            self.span,
        )

    def size(self, bindings: Mapping[str, int]) -> int:
        return elements(self.axes).evaluate(bindings)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A relation of sizes that elaboration relied on under the present bindings: `left op right`."""

    left: Dim
    op: Literal["==", "<="]
    right: Dim
    span: Span | None = field(default=None, compare=False)

    def holds(self, bindings: Mapping[str, int]) -> bool:
        left, right = self.left.evaluate(bindings), self.right.evaluate(bindings)
        return left == right if self.op == "==" else left <= right


@dataclass(frozen=True, slots=True)
class Program:
    """A model: `main` and the functions it uses, hyperparameter bindings, parameters.

    `decode` names the axis along which the model is declared autoregressive, if any; `after` the
    input that says behind how many slots: those before all see one another, so they must be given
    together.
    """

    name: str
    functions: tuple[Function, ...]
    bindings: tuple[tuple[str, int], ...] = ()
    parameters: tuple[Parameter, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    main_name: str = "main"
    decode: str = ""
    after: str = ""
    _by_name: dict[str, Function] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {f.name: f for f in self.functions})

    @property
    def main(self) -> Function:
        return self._by_name[self.main_name]

    def function(self, name: str) -> Function:
        return self._by_name[name]

    def body(self, node: Node) -> Function:
        """The function a fused or table node runs."""
        return self._by_name[node.attrs.string("body")]

    @property
    def past(self) -> str:
        """The size symbol for the slots before a chunk of the decoded axis."""
        return f"{self.decode}.past"

    @property
    def sizes(self) -> dict[str, int]:
        return dict(self.bindings)

    @property
    def parameter_count(self) -> int:
        """The elements of all trained weights, each shared one counted once."""
        sizes = self.sizes
        return sum(p.size(sizes) for p in self.parameters if p.trained)

    def returning(self, names: Collection[str]) -> Program:
        """The same program with only these of its outputs. What nothing reads then is left to passes."""
        outputs = tuple((name, i) for name, i in self.main.outputs if name in names)
        return self.with_functions([replace(self.main, outputs=outputs)])

    def with_functions(self, functions: Iterable[Function]) -> Program:
        """The same program with some functions replaced or added (by name); unreachable ones dropped."""
        table = {f.name: f for f in self.functions} | {f.name: f for f in functions}
        reachable = _reachable(table, self.main_name)
        return replace(self, functions=tuple(f for n, f in table.items() if n in reachable))


def callees(node: Node) -> tuple[str, ...]:
    """Names of the functions a node refers to, in order of first use."""
    attrs = node.attrs
    if "body" not in attrs and "kinds" not in attrs:
        return ()
    names = [attrs.string("body")] if "body" in attrs else []
    kinds = attrs.get("kinds")
    if isinstance(kinds, tuple):
        names += [k for k in kinds if isinstance(k, str)]
    return tuple(dict.fromkeys(names))


def _reachable(table: Mapping[str, Function], root: str) -> set[str]:
    seen: set[str] = set()
    todo = [root]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += table[name].called
    return seen


class Builder:
    """Grows one function. `add` infers the type from the op's shape rule, so no node is ever untyped."""

    def __init__(self, name: str, start: int = 0) -> None:
        self.name = name
        self.inputs: list[int] = []
        self._next = start
        self._by_id: dict[int, Node] = {}

    def __getitem__(self, node_id: int) -> Node:
        return self._by_id[node_id]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes so far, in the order they were added."""
        return tuple(self._by_id.values())

    def add(
        self,
        op: str,
        inputs: tuple[int, ...] = (),
        attrs: Mapping[str, AttrValue] | None = None,
        types: tuple[TensorType, ...] | None = None,
        origins: tuple[Origin, ...] = (),
        hint: str = "",
    ) -> int:
        """Append a node and return its id. `types` is given only for sources (input, weight) and calls."""
        from ..ops import infer  # ops import the graph's types

        frozen = Attrs(attrs)
        if types is None:
            types = infer(op, frozen, operand_types(op, [self[i] for i in inputs]))
        return self.append(Node(self._next, op, inputs, frozen, types, origins, hint))

    def append(self, node: Node) -> int:
        """Append a node as it is; its id must be free."""
        if node.id in self._by_id:
            raise InternalError(f"node %{node.id} is added twice to {self.name}")
        self._by_id[node.id] = node
        self._next = max(self._next, node.id + 1)
        if node.op == "input":
            self.inputs.append(node.id)
        return node.id

    def set_hint(self, node_id: int, hint: str) -> None:
        """Give a node the name its value was assigned to, unless it has one already."""
        old = self._by_id[node_id]
        if not old.hint and old.op not in ("input", "weight"):
            self._by_id[node_id] = replace(old, hint=hint)

    def finish(self, outputs: Iterable[tuple[str, int]]) -> Function:
        return Function(self.name, self.nodes, tuple(self.inputs), tuple(outputs))
