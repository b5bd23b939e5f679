"""Which prompts run together, and how they do.

Rows of one batch have their slots in common, so a shorter prompt has padding before it. Whether that
changes its text is a property of the model: relative and rotary positions do not mind, a table of
positions does. So it is tried: the model is run at its smallest sizes in float64, each row alone and
both in a batch. Where padding tells, prompts of one length share a batch; where rows read each other,
each runs alone. A model that reads how long the call is, to choose its rotary frequencies for instance,
is told a length by padding that no row has: that it does is seen in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..backends.base import node_name, plain_symbol
from ..backends.numpy import NumpyBackend
from ..compiler.passes.verify import (
    TOLERANCE,
    Case,
    RandomWeights,
    random_inputs,
    relative_error,
    smallest,
)
from ..dsl.diagnostics import ArchError
from ..dsl.errors import CacheFull, GenerationSetting
from .face import Face, Lane
from .rows import Row

if TYPE_CHECKING:
    from ..backends.base import Array
    from ..compiler.ir.graph import Node, Program
    from ..decoder import Decoder

Sharing = Literal["padded", "equal", "alone"]
LENGTH, PADDING = 7, 3  # of the two rows tried, and of the padding of the second one
SMALL = 1_000_000  # weights of a model that can be tried


def together(decoder: Decoder, face: Face, rows: Sequence[Row], given: Mapping[str, Array]) -> None:
    """Continue `rows`, padded on the left to one length, until all are closed.

    `given` are the other inputs, for these rows. Raises what running the model raises.
    """
    length = max(len(row.prompt) for row in rows)
    fit(rows, length, decoder.max_length)
    if not any(row.open for row in rows):
        return
    prompts = padded(face.text, [row.prompt for row in rows], decoder.inputs, left=True)
    sources = encoded(face, rows, decoder.inputs)
    outputs, state = decoder(None, **prompts, **sources, **given)
    while True:
        for row, logits in zip(rows, outputs[face.logits][:, -1], strict=True):
            if row.open:
                row.take(row.choose(logits))
        if not any(row.open for row in rows):
            return
        step = {face.text.ids: np.array([row.ids[-1:] or [0] for row in rows])}
        if face.text.valid in decoder.inputs:
            step[face.text.valid] = np.array([[row.open] for row in rows])
        outputs, state = decoder(state, **step)


def fit(rows: Sequence[Row], length: int, max_length: int | None) -> None:
    """Lower the limits of rows that begin with `length` slots. Raises `CacheFull`."""
    if max_length is None:
        return
    if length > max_length:
        raise CacheFull(length=length, max_length=max_length)
    for row in rows:
        row.fit(max_length - length)


def encoded(face: Face, rows: Sequence[Row], inputs: Sequence[str]) -> dict[str, Array]:
    """What an encoder reads, where the rows have it."""
    if face.source is None or face.source.ids not in inputs or not any(row.source for row in rows):
        return {}
    return padded(face.source, [row.source for row in rows], inputs, left=False)


def padded(
    lane: Lane, rows: Sequence[Sequence[int]], inputs: Sequence[str], *, left: bool
) -> dict[str, Array]:
    """Ids `[b, n]` of one length, and where the input is wanted, which of them are there."""
    length = max(map(len, rows))
    ids: Array = np.zeros((len(rows), length), np.int64)
    valid: Array = np.zeros((len(rows), length), np.bool_)
    for i, row in enumerate(rows):
        place = slice(length - len(row), None) if left else slice(None, len(row))
        ids[i, place], valid[i, place] = row, True
    found = {lane.ids: ids}
    if lane.valid is not None and lane.valid in inputs:
        found[lane.valid] = valid
    return found


def groups(rows: Sequence[Row], sharing: Sharing) -> list[list[int]]:
    """The numbers of the rows that share a batch, in order of their first."""
    found: dict[object, list[int]] = {}
    for i, row in enumerate(rows):
        lengths = (len(row.prompt), len(row.source)) if sharing == "equal" else None
        found.setdefault(i if sharing == "alone" else lengths, []).append(i)
    return list(found.values())


def rows_of(
    inputs: Mapping[str, Array], program: Program, face: Face, rows: Sequence[int], count: int
) -> dict[str, Array]:
    """The entries of other inputs that belong to `rows` of `count`; without a batch axis, all."""
    nodes = _inputs(program)
    batch = nodes[face.text.ids].axes[0]
    found = dict(inputs)
    for name, array in inputs.items():
        axes = nodes[name].axes if name in nodes else ()
        if batch in axes and array.ndim == len(axes):
            at = axes.index(batch)
            if array.shape[at] != count:
                expected = f"one for each prompt, {count}"
                raise GenerationSetting(name=name, got=f"{array.shape[at]} rows", expected=expected)
            found[name] = np.take(array, rows, at)
    return found


def _inputs(program: Program) -> dict[str, Node]:
    main = program.main
    return {node_name(main[i]): main[i] for i in main.inputs}


# ---------------------------------------------------------------------------------- trial


def sharing_of(program: Program, face: Face) -> Sharing:
    """How rows of a batch may differ in length, and still give what each gives alone.

    Tried, not proved: with random weights and inputs, a model that passes by chance is one in a
    measure of none. A model too large to try at its smallest sizes runs its rows alone.
    """
    try:
        trial = _Trial(program, face)
        if not trial.possible:
            return "alone"
        known = face.text.valid in trial.nodes and not _reads_length(program)
        if known and trial.agrees(PADDING):
            return "padded"
        return "equal" if trial.agrees(0) else "alone"
    except ArchError:  # some relation of sizes holds for the batch and not for a row of it
        return "alone"


def _reads_length(program: Program) -> bool:
    """Whether anything uses the size of the decoded axis."""
    return any(
        function.users()[node.id]
        for function in program.functions
        for node in function.nodes
        if node.op == "size"
        and program.decode in (node.attrs.axis("axis").name, node.attrs.axis("axis").time)
    )


class _Trial:
    """A model with random weights at its smallest sizes, and two rows for it."""

    def __init__(self, program: Program, face: Face) -> None:
        self.face, self.nodes = face, _inputs(program)
        self.batch, self.time = self.nodes[face.text.ids].axes
        case = self._case(program)
        small = case.applied(program)
        self.possible = sum(p.size(small.sizes) for p in small.parameters) <= SMALL
        if self.possible:
            self.inputs = random_inputs(small, case)
            self.run = NumpyBackend().load(small, RandomWeights(small), dtype="f64").run

    def _case(self, program: Program) -> Case:
        axes = [axis for node in self.nodes.values() for axis in node.axes]
        symbols = dict.fromkeys(plain_symbol(axis.size) for axis in axes)
        sizes = {s: LENGTH for s in symbols if s is not None and s not in program.sizes}
        sizes[str(plain_symbol(self.batch.size))] = 2
        run_time = tuple(sizes.items())
        return Case(smallest(program, run_time, distinct=True), run_time)

    def agrees(self, padding: int) -> bool:
        """Whether two rows give together what each gives alone, the second without its padding."""
        inputs = dict(self.inputs)
        for lane, there in self._lanes(padding):
            if lane.valid in self.nodes:
                inputs[str(lane.valid)] = np.stack([np.ones(LENGTH, np.bool_), there])
        together = self.run(inputs)[self.face.logits]
        first, second = self._alone(inputs, 0, 0), self._alone(inputs, 1, padding)
        errors = (
            relative_error(together[:1], first),
            relative_error(together[1:, padding:], second),
        )
        return max(errors) <= TOLERANCE

    def _lanes(self, padding: int) -> list[tuple[Lane, Array]]:
        """Where the second row is padded: its text before, its source after."""
        slots = np.arange(LENGTH)
        found = [(self.face.text, slots >= padding)]
        if self.face.source is not None:
            found.append((self.face.source, slots < LENGTH - padding))
        return found

    def _alone(self, inputs: Mapping[str, Array], row: int, padding: int) -> Array:
        cuts = {self.batch: [row]}
        for lane, there in self._lanes(padding):
            cuts[self.nodes[lane.ids].axes[1]] = list(np.flatnonzero(there))
        own = dict(inputs)
        for name in own:
            for at, axis in enumerate(self.nodes[name].axes):
                if axis in cuts:
                    own[name] = np.take(own[name], cuts[axis], at)
        return self.run(own)[self.face.logits]
