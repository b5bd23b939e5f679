"""Only the last row of each output: what a decoder reads of a prompt.

    f(x)[n - 1] = f(x[n - 1])    where f treats rows of the decoded axis alike

From the outputs up to the first values whose rows are made from others, so that a head over the
vocabulary runs on one row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...dsl.dims import Dim
from ..ir.graph import STATE, AttrValue, Axis, Builder, Function, Node, Program, TensorType
from ..ops import OPS
from ..passes.properties import VIEWS
from .derivation import end_of

ROWWISE = VIEWS | frozenset("dot sum amax softmax logsumexp topk concat take broadcast".split())


def last_row(program: Program) -> Program:
    """The program whose outputs along the decoded axis have one row. States are as they were."""
    main = program.main
    cut = _Cut(program, Builder(main.name))
    for node in main.nodes:
        cut.builder.append(node)
    outputs = tuple(
        (name, i if name.startswith(STATE) else cut.last(main[i])) for name, i in main.outputs
    )
    live = {*main.inputs, *(i for _, i in outputs)}
    nodes: list[Node] = []
    for node in reversed(cut.builder.nodes):
        if node.id in live:
            nodes.append(node)
            live.update(node.inputs)
    return program.with_functions([Function(main.name, tuple(nodes[::-1]), main.inputs, outputs)])


@dataclass(slots=True)
class _Cut:
    program: Program
    builder: Builder
    made: dict[int, int] = field(default_factory=dict)

    def last(self, node: Node) -> int:
        """The last row of a value, or the value where it has none."""
        axis = next((a for a in node.axes if a.name == self.program.decode), None)
        if axis is None:
            return node.id
        if node.id not in self.made:
            row = Axis(f"{axis}.row", Dim.of(1), axis.time)
            self.made[node.id] = self._last(node, axis, row)
        return self.made[node.id]

    def _last(self, node: Node, axis: Axis, row: Axis) -> int:
        alike = OPS[node.op].pointwise or node.op in ROWWISE
        if not alike or any(_names(value, axis) for value in node.attrs.values()):
            return self.builder.add("slice", (node.id,), end_of(axis, row), origins=node.origins)
        operands = tuple(self.last(self.program.main[i]) for i in node.inputs)
        made = self.builder.add(node.op, operands, node.attrs, origins=node.origins, hint=node.hint)
        wanted = tuple(row if a == axis else a for a in node.axes)
        if self.builder[made].type == TensorType(node.type.dtype, wanted):
            return made
        return self.builder.add("transpose", (made,), {"order": wanted})


def _names(value: AttrValue, axis: Axis) -> bool:
    if isinstance(value, tuple):
        return any(_names(v, axis) for v in value)
    return value == axis or (isinstance(value, Dim) and bool(value.symbols() & axis.size.symbols()))
