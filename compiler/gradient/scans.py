"""A scan from its end.

    h[i + 1], y[i] = f(x[i], h[i], c)   ->   dh[i], dx[i] = (df/d(h, x))^T (dh[i + 1], dy[i])
                                             dc += (df/dc)^T (dh[i + 1], dy[i])

The forward scan gives the states entering each step beside its own results, and the scan from the end reads
them: one sequence for each state.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ..ir.graph import AttrValue, Axis, Function, TensorType
from ..passes.chunk_loops import laid_out
from .reverse import FLOATS, Reverse, Special, result


@dataclass(frozen=True, slots=True)
class Step:
    """A backward step; its first `sequences` outputs are along the scan's axis."""

    function: Function
    sequences: int


@dataclass(slots=True)
class ScanReverse(Special):
    """A scan that also gives the states entering each step, and the scan from its end."""

    @property
    def body(self) -> Function:
        return self.outer.derivation.program.body(self.node)

    @property
    def axis(self) -> Axis:
        return self.node.attrs.axis("axis")

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many operands are stepped, how many states there are, how many sequences come out."""
        stepped, states = (self.node.attrs.integer(n) for n in ("stepped", "states"))
        return stepped, states, len(self.node.types) - states

    def copy(self) -> None:
        of, node, (stepped, states, sequences) = self.outer, self.node, self.counts
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
        of, node, (stepped, states, sequences) = self.outer, self.node, self.counts
        derivation, session = of.derivation, of.derivation.session
        active = [k for k, i in enumerate(node.inputs) if i in of.active]
        given = [k for k in active if k < stepped]
        summed = [k for k in active if k >= stepped + states]
        d = [found[k] is not None for k in range(sequences)]
        step = Reverse(derivation, self.body, session.name(self.body.name), of.special)
        made = _step(step, (stepped, states), active, d)
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
            of.give((node.inputs[place], 0), result(of.builder, scan, k))


def _step(of: Reverse, counts: tuple[int, int], active: Collection[int], d: Sequence[bool]) -> Step:
    """The backward function of a step of a scan: of its inputs those at `active` take gradients."""
    (stepped, states), inputs = counts, of.function.inputs
    moving = [i for i in inputs[stepped : stepped + states] if of.is_float(i)]
    given = [i for k, i in enumerate(inputs[:stepped]) if k in active]
    summed = [i for k, i in enumerate(inputs) if k in active and k >= stepped + states]
    of.find_active({*moving, *given, *summed})
    entering = [of.argument(i, "") for i in inputs[: stepped + states]]
    of.here |= dict(zip(inputs, entering, strict=False))
    ends = of.function.output_ids
    sequences = [o for o, has in zip(ends[: len(d)], d, strict=True) if has]
    arriving = [of.argument(o, "d") for o in sequences]
    carried = [of.argument(i, "d") for i in moving]
    before = [of.argument(i, "sum") for i in summed]
    captured = [of.argument(i, "") for i in inputs[stepped + states :]]
    of.here |= dict(zip(inputs[stepped + states :], captured, strict=True))
    of.copy()
    last = [o for k, o in enumerate(ends[len(d) :]) if of.is_float(inputs[stepped + k])]
    for output, made in zip((*sequences, *last), (*arriving, *carried), strict=True):
        of.give((output, 0), made)
    of.sweep()
    outputs = [(f"d{k}", of.gradient(i)) for k, i in enumerate((*given, *moving))]
    for k, (i, old) in enumerate(zip(summed, before, strict=True)):
        total = of.builder.add("add", (old, of.gradient(i)))
        outputs.append((f"sum{k}", laid_out(of.builder, total, of.function[i].type)))
    arguments = [*entering, *arriving, *carried, *before, *captured]
    return Step(of.finished(arguments, outputs), len(given))
