"""One function from its end to its beginning.

The values of the function are made again, then its nodes are visited in reverse: each adds to the
gradients of its operands what its rule gives for the gradients of its results. What comes out of a loop
over layers is not made again: it is a state that the forward program left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from ...dsl.errors import NoGradient
from ..ir.graph import STATE, AttrValue, Builder, Function, Node, TensorType
from ..ops import OPS
from ..ops.gradient import Adjoint, flows, gradients
from ..passes.chunk_loops import laid_out

if TYPE_CHECKING:
    from .derivation import Derivation

FLOATS = ("float", "f32", "f64")
State = tuple[int, int]  # a node of the function, and which of its results
SAVED = "saved"
BEGINNING = "beginning."  # a state called so is the gradient of what enters a loop
GRADIENT = "gradient."  # a state called so and by a weight's path is its gradient


@dataclass(frozen=True, slots=True)
class Layer:
    """A backward function: gradients of what is carried, sums of those captured, what is captured,
    numbers -> the same gradients, one layer earlier."""

    function: Function


@dataclass(slots=True)
class Special:
    """A node that no rule of an op differentiates. One that is `always` made again in its own way."""

    outer: Reverse
    node: Node
    always: ClassVar[bool] = False

    def copy(self) -> None:
        """Puts the node's results in `here` and `results` of the outer function."""
        raise NotImplementedError

    def reverse(self, found: tuple[int | None, ...]) -> None:
        """Gives the operands their gradients, of those of the results."""
        raise NotImplementedError


@dataclass(slots=True)
class Reverse:
    """`here` has the function's values in the new function, `d` their gradients by result.

    `read` are the states that it needs of the forward function.
    """

    derivation: Derivation
    function: Function
    name: str
    special: Mapping[str, type[Special]]
    builder: Builder = field(init=False)
    here: dict[int, int] = field(default_factory=dict)
    results: dict[State, int] = field(default_factory=dict)
    d: dict[State, int] = field(default_factory=dict)
    active: set[int] = field(default_factory=set)
    states: dict[str, State] = field(default_factory=dict)
    read: dict[str, State] = field(default_factory=dict)
    beginnings: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.builder = Builder(self.name)

    # ---------------------------------------------------------------------------- functions

    def whole(self, loss: str) -> Function:
        """The function of main: its outputs, and the gradients of its weights as states."""
        self.find_active(())
        self.copy()
        outputs = [(name, self.here[i]) for name, i in self.function.outputs]
        value = self.function[dict(self.function.outputs)[loss]]
        one = self.builder.add("const", (), {"dtype": value.type.dtype, "value": 1.0})
        self.give((value.id, 0), one)
        self.sweep()
        inputs = [self.here[i] for i in self.function.inputs]
        return self.finished(inputs, [*outputs, *self._weights(), *self.beginnings])

    def layer(self, carried: int, captured: frozenset[int], operands: int) -> Layer:
        """The backward function of a layer."""
        inputs = self.function.inputs
        moving = [i for i in inputs[:carried] if self.is_float(i)]
        summed = [inputs[i] for i in sorted(captured)]
        self.find_active({*moving, *summed})
        arguments = [self.argument(i, "d") for i in moving]
        before = {i: self.argument(i, "sum") for i in summed}
        arguments += before.values()
        for k, i in enumerate(inputs[:carried]):
            self.here[i] = self._saved(f"{SAVED}.{k}", (i, 0))
        for i in inputs[carried:]:
            self.here[i] = self.argument(i, "")
            arguments.append(self.here[i])
        self.copy()
        ends = [o for k, o in enumerate(self.function.output_ids[:carried]) if self._carries(k)]
        for output, d in zip(ends, arguments, strict=False):
            self.give((output, 0), d)
        self.sweep()
        outputs = [(f"d{k}", self.gradient(i)) for k, i in enumerate(moving)]
        for k, i in enumerate(summed):
            total = self.builder.add("add", (before[i], self.gradient(i)))
            outputs.append((f"sum{k}", laid_out(self.builder, total, self.function[i].type)))
        return Layer(self.finished(arguments, [*outputs, *self._weights(), *self.beginnings]))

    def _carries(self, k: int) -> bool:
        return self.is_float(self.function.inputs[k])

    def finished(self, inputs: Sequence[int], outputs: Sequence[tuple[str, int]]) -> Function:
        made = replace(self.builder.finish(outputs), inputs=tuple(inputs))
        made = without_unread(made)
        read = {node.attrs.string("path") for node in made.states}
        self.read = {path: state for path, state in self.states.items() if path in read}
        return made

    def argument(self, like: int, prefix: str) -> int:
        node = self.function[like]
        name = f"{prefix}.{node.hint or node.op}" if prefix else node.hint or node.op
        attrs = {"name": f"{name}.{len(self.builder.nodes)}"}
        return self.builder.add("input", (), attrs, (node.type,), node.origins, name)

    def _weights(self) -> Iterator[tuple[str, int]]:
        found: dict[str, list[int]] = {}
        wanted = self.derivation.wanted.get(self.function.name, frozenset())
        for node in self.function.nodes:
            if node.op == "weight" and node.attrs.string("path") in wanted:
                found.setdefault(node.attrs.string("path"), []).append(node.id)
        for path, nodes in found.items():
            first, *others = (self.gradient(i) for i in nodes)
            for other in others:
                first = self.builder.add("add", (first, other))
            kind = self.function[nodes[0]].type
            yield f"{STATE}{GRADIENT}{path}", laid_out(self.builder, first, kind)

    # ------------------------------------------------------------------------------- values

    def is_float(self, node_id: int) -> bool:
        return self.function[node_id].type.dtype in FLOATS

    def find_active(self, starts: Collection[int]) -> None:
        """The values through which gradients flow: those that depend on a start or a wanted weight."""
        self.active = set(starts)
        wanted = self.derivation.wanted.get(self.function.name, frozenset())
        for node in self.function.nodes:
            if node.op == "weight":
                found = node.attrs.string("path") in wanted
            else:
                found = self._flows(node) and any(t.dtype in FLOATS for t in node.types)
            if found:
                self.active.add(node.id)

    def _flows(self, node: Node) -> bool:
        if node.op == "repeat" and self.derivation.trains(node):
            return True
        gradient = OPS[node.op].gradient
        return any(
            i in self.active and (gradient is None or flows(gradient, k))
            for k, i in enumerate(node.inputs)
        )

    def copy(self) -> None:
        """The function's values, made again."""
        for node in self.function.nodes:
            if node.id in self.here:
                continue
            if node.op == "repeat":
                self.derivation.check_path(node, self.function)
                for k in range(len(node.types)):
                    path = f"{SAVED}.{node.id}.{k}"
                    self.results[node.id, k] = self._saved(path, (node.id, k))
                self.here[node.id] = self.results[node.id, 0]
            elif self._is_special(node):
                self.special[node.op](self, node).copy()
            elif node.op == "result" and (node.inputs[0], self._index(node)) in self.results:
                self.here[node.id] = self.results[node.inputs[0], self._index(node)]
            else:
                inputs = tuple(self.here[i] for i in node.inputs)
                self.here[node.id] = self.builder.add(
                    node.op, inputs, node.attrs, node.types, node.origins, node.hint
                )

    def _is_special(self, node: Node) -> bool:
        found = self.special.get(node.op)
        return found is not None and (found.always or node.id in self.active)

    @staticmethod
    def _index(node: Node) -> int:
        return node.attrs.integer("index")

    def _saved(self, path: str, state: State) -> int:
        value, index = state
        node = self.function[value]
        self.states[path] = state
        types = (node.types[index],)
        return self.builder.add("state", (), {"path": path}, types, node.origins, node.hint)

    # ---------------------------------------------------------------------------- gradients

    def sweep(self) -> None:
        for node in reversed(self.function.nodes):
            found = tuple(self.d.get((node.id, k)) for k in range(len(node.types)))
            if node.id in self.active and any(d is not None for d in found):
                self._visit(node, found)

    def _visit(self, node: Node, found: tuple[int | None, ...]) -> None:
        if node.op == "result":
            (d,) = found
            assert d is not None
            self.give((node.inputs[0], self._index(node)), d)
        elif node.op == "repeat":
            self._repeat(node, found)
        elif node.op in self.special:
            self.special[node.op](self, node).reverse(found)
        elif node.op not in ("input", "weight"):
            self._apply(node, found)

    def _apply(self, node: Node, found: tuple[int | None, ...]) -> None:
        """Adds what the rule of an op gives."""
        gradient = OPS[node.op].gradient
        if gradient is None:
            raise refused(node, f"`{node.op}`")
        wanted = frozenset(k for k, i in enumerate(node.inputs) if i in self.active)
        made = self.builder[self.here[node.id]]
        given = gradients(gradient, self.adjoint(made, found, wanted))
        for k, (operand, d) in enumerate(zip(node.inputs, given, strict=False)):
            if d is not None and k in wanted:
                self.give((operand, 0), d)

    def result(self, node_id: int, index: int) -> int:
        return result(self.builder, node_id, index)

    def moved_back(self, node: Node, d: int) -> int:
        """What the rule of an op that moves elements gives, of a gradient with some of its axes."""
        gradient = OPS[node.op].gradient
        assert gradient is not None
        (found,) = gradients(gradient, self.adjoint(node, (d,), frozenset({0})))
        assert found is not None
        return found

    def written_out(self, body: Function, operands: Sequence[int]) -> int:
        """The output of a function of one, its nodes made here."""
        inside = dict(zip(body.inputs, operands, strict=True))
        for node in body.nodes:
            if node.op != "input":
                inputs = tuple(inside[i] for i in node.inputs)
                inside[node.id] = self.builder.add(
                    node.op, inputs, node.attrs, node.types, node.origins, node.hint
                )
        return inside[body.output_ids[0]]

    def adjoint(self, node: Node, found: tuple[int | None, ...], wanted: frozenset[int]) -> Adjoint:
        return Adjoint(self.builder, node, found, wanted, self.derivation.session.axis)

    def give(self, to: State, d: int) -> None:
        """Adds to a gradient, in the axes and the dtype of its value."""
        value, index = to
        if value not in self.active:
            return
        d = self._fitted(d, self.function[value].types[index])
        known = self.d.get(to)
        self.d[to] = d if known is None else self.builder.add("add", (known, d))

    def _fitted(self, d: int, kind: TensorType) -> int:
        """Summed over axes that the value lacks, repeated along those that it has beside."""
        add, origins = self.builder.add, self.builder[d].origins
        beside = tuple(a for a in self.builder[d].axes if a not in kind.axes)
        if beside:
            d = add("sum", (d,), {"axes": beside}, origins=origins)
        missing = tuple(a for a in kind.axes if a not in self.builder[d].axes)
        for dtype in _casts(self.builder[d].type.dtype, kind.dtype):
            d = add("cast", (d,), {"dtype": dtype}, origins=origins)
        return add("broadcast", (d,), {"axes": missing}, origins=origins) if missing else d

    def gradient(self, node_id: int) -> int:
        """The gradient of a value, laid out as the value is; zeros where none came."""
        return self.gradient_of((node_id, 0))

    def gradient_of(self, state: State) -> int:
        kind = self.function[state[0]].types[state[1]]
        found = self.d.get(state)
        return laid_out(self.builder, self.zero(kind) if found is None else found, kind)

    def zero(self, kind: TensorType) -> int:
        return self.builder.add("const", (), {"dtype": kind.dtype, "value": 0.0})

    # --------------------------------------------------------------------- loops over layers

    def _repeat(self, node: Node, found: tuple[int | None, ...]) -> None:
        """The layers from the last to the first."""
        if "exit" in node.attrs:
            raise refused(node, "a loop that stops by `until`")
        count, kinds = len(node.types), node.attrs["kinds"]
        assert isinstance(kinds, tuple)
        captured = frozenset(
            k for k, i in enumerate(node.inputs) if k >= count and i in self.active
        )
        moving = [k for k in range(count) if node.types[k].dtype in FLOATS]
        gradients_of = [self.gradient_of((node.id, k)) for k in moving]
        for k in sorted(captured):
            kind = self.function[node.inputs[k]].type
            gradients_of.append(laid_out(self.builder, self.zero(kind), kind))
        types = tuple(self.builder[i].type for i in gradients_of)
        names = [self.derivation.layer(node, str(k), count, captured).function.name for k in kinds]
        attrs = {
            **node.attrs,
            "kinds": tuple(names[::-1]),
            "indices": _turned(node.attrs["indices"]),
            "scalars": tuple(_turned(s) for s in _tuple(node.attrs["scalars"])),
            "carried": len(types),
        }
        operands = (*gradients_of, *(self.here[i] for i in node.inputs[count:]))
        made = self.builder.add("repeat", operands, attrs, types, node.origins, "d")
        places = (*moving, *sorted(captured))
        for k, place in enumerate(places):
            self.give((node.inputs[place], 0), result(self.builder, made, k))
        if not any(node.inputs[place] in self.active for place in places):
            first = result(self.builder, made, 0)  # what is read keeps the loop, and its states
            self.beginnings.append((f"{STATE}{BEGINNING}{node.id}", first))


def refused(node: Node, what: str) -> NoGradient:
    spans = node.spans or (None,)
    return NoGradient(what=what, span=spans[0], calls=spans[1:])


def without_unread(function: Function) -> Function:
    """The function without what its outputs do not read, except for its inputs."""
    live, nodes = set(function.output_ids), list[Node]()
    for node in reversed(function.nodes):
        if node.id in live or node.op == "input":
            nodes.append(node)
            live.update(node.inputs)
    return replace(function, nodes=tuple(nodes[::-1]))


def _tuple(value: AttrValue) -> tuple[AttrValue, ...]:
    assert isinstance(value, tuple)
    return value


def _turned(value: AttrValue) -> AttrValue:
    return _tuple(value)[::-1]


def _casts(have: str, wanted: str) -> tuple[str, ...]:
    """The casts from one dtype to another: they raise, or go back to the model's."""
    if have == wanted:
        return ()
    return (wanted,) if (have, wanted) != ("f64", "f32") else ("float", "f32")


def result(builder: Builder, value: int, index: int) -> int:
    """One result of a node, which may have just one."""
    node = builder[value]
    if len(node.types) == 1:
        return value
    attrs = {"index": index}
    return builder.add("result", (value,), attrs, (node.types[index],), node.origins)
