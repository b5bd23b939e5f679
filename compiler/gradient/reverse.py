"""One function from its end to its beginning.

The values of the function are made again, then its nodes are visited in reverse: each adds to the
gradients of its operands what its rule gives for the gradients of its results. What comes out of a loop
over layers is not made again: it is a state that the forward program left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ...dsl.errors import NoGradient
from ..ir.graph import STATE, AttrValue, Axis, Builder, Function, Node, TensorType
from ..ops import OPS
from ..ops.gradient import Adjoint, flows, gradients
from ..passes.chunk_loops import laid_out

if TYPE_CHECKING:
    from .derivation import Derivation

FLOATS = ("float", "f32", "f64")
State = tuple[int, int]  # a node of the function, and which of its results
SAVED = "saved"
GRADIENT = "gradient."  # a state called so and by a weight's path is its gradient


@dataclass(frozen=True, slots=True)
class Layer:
    """A backward function: gradients of what is carried, sums of those captured, what is captured,
    numbers -> the same gradients, one layer earlier."""

    function: Function


@dataclass(slots=True)
class Reverse:
    """`here` has the function's values in the new function, `d` their gradients by result.

    `read` are the states that it needs of the forward function.
    """

    derivation: Derivation
    function: Function
    name: str
    builder: Builder = field(init=False)
    here: dict[int, int] = field(default_factory=dict)
    results: dict[State, int] = field(default_factory=dict)
    d: dict[State, int] = field(default_factory=dict)
    active: set[int] = field(default_factory=set)
    states: dict[str, State] = field(default_factory=dict)
    read: dict[str, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.builder = Builder(self.name)

    # ---------------------------------------------------------------------------- functions

    def whole(self, loss: str) -> Function:
        """The function of main: its outputs, and the gradients of its weights as states."""
        self._find_active(())
        self._copy()
        outputs = [(name, self.here[i]) for name, i in self.function.outputs]
        value = self.function[dict(self.function.outputs)[loss]]
        one = self.builder.add("const", (), {"dtype": value.type.dtype, "value": 1.0})
        self._give((value.id, 0), one)
        self._sweep()
        inputs = [self.here[i] for i in self.function.inputs]
        return self._finished(inputs, [*outputs, *self._weights()])

    def layer(self, carried: int, captured: frozenset[int], operands: int) -> Layer:
        """The backward function of a layer."""
        inputs = self.function.inputs
        moving = [i for i in inputs[:carried] if self._is_float(i)]
        summed = [inputs[i] for i in sorted(captured)]
        self._find_active({*moving, *summed})
        arguments = [self._argument(i, "d") for i in moving]
        before = {i: self._argument(i, "sum") for i in summed}
        arguments += before.values()
        for k, i in enumerate(inputs[:carried]):
            self.here[i] = self._saved(f"{SAVED}.{k}", (i, 0))
        for i in inputs[carried:]:
            self.here[i] = self._argument(i, "")
            arguments.append(self.here[i])
        self._copy()
        ends = [o for k, o in enumerate(self.function.output_ids[:carried]) if self._carries(k)]
        for output, d in zip(ends, arguments, strict=False):
            self._give((output, 0), d)
        self._sweep()
        outputs = [(f"d{k}", self._gradient(i)) for k, i in enumerate(moving)]
        for k, i in enumerate(summed):
            total = self.builder.add("add", (before[i], self._gradient(i)))
            outputs.append((f"sum{k}", laid_out(self.builder, total, self.function[i].type)))
        return Layer(self._finished(arguments, [*outputs, *self._weights()]))

    def _carries(self, k: int) -> bool:
        return self._is_float(self.function.inputs[k])

    def step(self, stepped: int, states: int, active: Collection[int], d: Sequence[bool]) -> Step:
        """The backward function of a step of a scan: of its inputs those at `active` take gradients."""
        inputs = self.function.inputs
        moving = [i for i in inputs[stepped : stepped + states] if self._is_float(i)]
        given = [i for k, i in enumerate(inputs[:stepped]) if k in active]
        summed = [i for k, i in enumerate(inputs) if k in active and k >= stepped + states]
        self._find_active({*moving, *given, *summed})
        entering = [self._argument(i, "") for i in inputs[: stepped + states]]
        self.here |= dict(zip(inputs, entering, strict=False))
        ends = self.function.output_ids
        sequences = [o for o, has in zip(ends[: len(d)], d, strict=True) if has]
        arriving = [self._argument(o, "d") for o in sequences]
        carried = [self._argument(i, "d") for i in moving]
        before = [self._argument(i, "sum") for i in summed]
        captured = [self._argument(i, "") for i in inputs[stepped + states :]]
        self.here |= dict(zip(inputs[stepped + states :], captured, strict=True))
        self._copy()
        last = [o for k, o in enumerate(ends[len(d) :]) if self._is_float(inputs[stepped + k])]
        for output, made in zip((*sequences, *last), (*arriving, *carried), strict=True):
            self._give((output, 0), made)
        self._sweep()
        outputs = [(f"d{k}", self._gradient(i)) for k, i in enumerate((*given, *moving))]
        for k, (i, old) in enumerate(zip(summed, before, strict=True)):
            total = self.builder.add("add", (old, self._gradient(i)))
            outputs.append((f"sum{k}", laid_out(self.builder, total, self.function[i].type)))
        arguments = [*entering, *arriving, *carried, *before, *captured]
        return Step(self._finished(arguments, outputs), len(given))

    def _finished(self, inputs: Sequence[int], outputs: Sequence[tuple[str, int]]) -> Function:
        made = replace(self.builder.finish(outputs), inputs=tuple(inputs))
        made = without_unread(made)
        read = {node.attrs.string("path") for node in made.states}
        self.read = {path: state for path, state in self.states.items() if path in read}
        return made

    def _argument(self, like: int, prefix: str) -> int:
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
            first, *others = (self._gradient(i) for i in nodes)
            for other in others:
                first = self.builder.add("add", (first, other))
            kind = self.function[nodes[0]].type
            yield f"{STATE}{GRADIENT}{path}", laid_out(self.builder, first, kind)

    # ------------------------------------------------------------------------------- values

    def _is_float(self, node_id: int) -> bool:
        return self.function[node_id].type.dtype in FLOATS

    def _find_active(self, starts: Collection[int]) -> None:
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

    def _copy(self) -> None:
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
            elif node.op == "scan" and node.id in self.active:
                ScanReverse(self, node).copy()
            elif node.op == "result" and (node.inputs[0], self._index(node)) in self.results:
                self.here[node.id] = self.results[node.inputs[0], self._index(node)]
            else:
                inputs = tuple(self.here[i] for i in node.inputs)
                self.here[node.id] = self.builder.add(
                    node.op, inputs, node.attrs, node.types, node.origins, node.hint
                )

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

    def _sweep(self) -> None:
        for node in reversed(self.function.nodes):
            found = tuple(self.d.get((node.id, k)) for k in range(len(node.types)))
            if node.id in self.active and any(d is not None for d in found):
                self._visit(node, found)

    def _visit(self, node: Node, found: tuple[int | None, ...]) -> None:
        if node.op == "result":
            (d,) = found
            assert d is not None
            self._give((node.inputs[0], self._index(node)), d)
        elif node.op == "repeat":
            self._repeat(node, found)
        elif node.op == "scan":
            ScanReverse(self, node).reverse(found)
        elif node.op not in ("input", "weight"):
            self._apply(node, found)

    def _apply(self, node: Node, found: tuple[int | None, ...]) -> None:
        """Adds what the rule of an op gives."""
        gradient = OPS[node.op].gradient
        if gradient is None:
            raise refused(node, f"`{node.op}`")
        wanted = frozenset(k for k, i in enumerate(node.inputs) if i in self.active)
        made = self.builder[self.here[node.id]]
        axis = self.derivation.session.axis
        given = gradients(gradient, Adjoint(self.builder, made, found, wanted, axis))
        for k, (operand, d) in enumerate(zip(node.inputs, given, strict=False)):
            if d is not None and k in wanted:
                self._give((operand, 0), d)

    def _give(self, to: State, d: int) -> None:
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

    def _gradient(self, node_id: int) -> int:
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
        for k, place in enumerate((*moving, *sorted(captured))):
            self._give((node.inputs[place], 0), result(self.builder, made, k))


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


# ------------------------------------------------------------------------------------ scans


@dataclass(frozen=True, slots=True)
class Step:
    """A backward step; its first `sequences` outputs are along the scan's axis."""

    function: Function
    sequences: int


@dataclass(slots=True)
class ScanReverse:
    """A scan that also gives the states entering each step, and the scan from its end."""

    reverse_of: Reverse
    node: Node

    @property
    def body(self) -> Function:
        return self.reverse_of.derivation.program.body(self.node)

    @property
    def axis(self) -> Axis:
        return self.node.attrs.axis("axis")

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many operands are stepped, how many states there are, how many sequences come out."""
        stepped, states = (self.node.attrs.integer(n) for n in ("stepped", "states"))
        return stepped, states, len(self.node.types) - states

    def copy(self) -> None:
        of, node, (stepped, states, sequences) = self.reverse_of, self.node, self.counts
        body, session = self.body, of.derivation.session
        entering = body.inputs[stepped : stepped + states]
        named = [(f"entering.{k}", i) for k, i in enumerate(entering)]
        outputs = (*body.outputs[:sequences], *named, *body.outputs[sequences:])
        kept = replace(body, name=session.name(body.name), outputs=outputs)
        attrs = {**node.attrs, "body": of.derivation.keep(kept)}
        kinds = tuple(self._sequence(body[i].type) for i in entering)
        types = (*node.types[:sequences], *kinds, *node.types[sequences:])
        operands = tuple(of.here[i] for i in node.inputs)
        made = of.builder.add("scan", operands, attrs, types, node.origins, node.hint)
        results = [result(of.builder, made, k) for k in range(len(types))]
        own = results[:sequences] + results[sequences + states :]
        of.results |= {(node.id, k): value for k, value in enumerate(own)}
        entered = results[sequences : sequences + states]
        of.results |= {(node.id, -1 - k): value for k, value in enumerate(entered)}
        of.here[node.id] = own[0]

    def _sequence(self, kind: TensorType) -> TensorType:
        return TensorType(kind.dtype, (self.axis, *kind.axes))

    def reverse(self, found: tuple[int | None, ...]) -> None:
        of, node, (stepped, states, sequences) = self.reverse_of, self.node, self.counts
        derivation, session = of.derivation, of.derivation.session
        active = [k for k, i in enumerate(node.inputs) if i in of.active]
        given = [k for k in active if k < stepped]
        summed = [k for k in active if k >= stepped + states]
        d = [found[k] is not None for k in range(sequences)]
        step = Reverse(derivation, self.body, session.name(self.body.name))
        made = step.step(stepped, states, active, d)
        moving = [k for k in range(states) if node.types[sequences + k].dtype in FLOATS]
        operands = [of.here[i] for i in node.inputs[:stepped]]
        operands += [of.results[node.id, -1 - k] for k in range(states)]
        operands += [of.gradient_of((node.id, k)) for k in range(sequences) if d[k]]
        count = len(operands)
        operands += [of.gradient_of((node.id, sequences + k)) for k in moving]
        for k in summed:
            kind = of.function[node.inputs[k]].type
            operands.append(laid_out(of.builder, of.zero(kind), kind))
        states_of = tuple(of.builder[i].type for i in operands[count:])
        operands += [of.here[i] for i in node.inputs[stepped + states :]]
        function = made.function
        types = [self._sequence(function[i].type) for i in function.output_ids[: made.sequences]]
        attrs: dict[str, AttrValue] = {
            "axis": self.axis,
            "body": derivation.keep(function),
            "reverse": not node.attrs["reverse"],
            "states": len(states_of),
            "stepped": count,
        }
        scan = of.builder.add(
            "scan", tuple(operands), attrs, (*types, *states_of), node.origins, "d"
        )
        places = (*given, *(stepped + k for k in moving), *summed)
        for k, place in enumerate(places):
            of._give((node.inputs[place], 0), result(of.builder, scan, k))
