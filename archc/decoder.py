"""A model that goes on from where it stopped: `prefill` for the first rows, `chunk` for those after.

decoder = model.decoder(backend="torch")
outputs, state = decoder(None, input_ids=prompt)     # arrays [b, n]
outputs, state = decoder(state, input_ids=next)      # only what has the decoded axis

A state is a value: an older one may be continued, also after a newer one was made from it. Slots are
common to the rows of a batch; shorter rows are padded, on whichever side, and say so by the input that
declares what is valid.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .backends.base import node_name
from .compiler.incremental import last_row
from .compiler.passes import optimise
from .dsl.errors import CacheFull

if TYPE_CHECKING:
    from .api import Model
    from .backends.base import Array, Executable
    from .compiler.incremental import Slot
    from .compiler.ir.graph import Function, Program
    from .compiler.ops import ModelDType
    from .compiler.passes.quantise import Quant

Rows = Literal["all", "last"]
FIRST_ROOM = 64  # slots that a cache without a greatest length has room for at least


@dataclass(slots=True)
class Growing:
    """An array with room for later slots. `filled` of them are written, for the newest of its states."""

    array: Any
    filled: int
    room: int


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What is kept of the first `length` slots: values by path, and the sizes they have."""

    length: int
    values: Mapping[str, Any]
    sizes: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """The bytes that are held, with the room for later slots."""
        held = (v.array if isinstance(v, Growing) else v for v in self.values.values())
        return sum(int(array.nbytes) for array in held)


class Decoder:
    """`model` loaded for decoding. `inputs` names what calls supply, `rows` what outputs hold.

    With `rows="last"` outputs have the last new row only. What grows with each slot is stored as
    `cache_dtype` (default: as computed), with room for `max_length` slots (default: grown as needed);
    rings and recurrent states are stored as computed. Raises `NoDecode`, `NeedsWholeSequence`, and what
    `Model.compile` raises.
    """

    def __init__(
        self,
        model: Model,
        backend: str = "torch",
        *,
        dtype: ModelDType = "f32",
        level: int = 1,
        quant: Quant | None = None,
        cache_dtype: ModelDType | None = None,
        max_length: int | None = None,
        inputs: Collection[str] | None = None,
        rows: Rows = "all",
        **options: Any,
    ) -> None:
        from .api import backend as backend_called

        self.model, self.rows, self.max_length = model, rows, max_length
        self.cache_dtype = cache_dtype
        self.derived = model.incremental(inputs)
        self.slots = {slot.path: slot for slot in self.derived.slots}
        runner, weights = backend_called(backend), model.given_weights()
        unwanted = runner.unwanted_passes(dtype, **options)

        def loaded(program: Program, like: Executable | None = None) -> Executable:
            program = optimise(
                self._wanted(program), level=level, disable=unwanted, quant=quant
            ).program
            return runner.load(program, weights, dtype=dtype, like=like, **options)

        self.prefill = loaded(self.derived.prefill)
        self.chunk = loaded(self.derived.chunk, self.prefill)
        names = _names(self.derived.prefill.main)
        self.inputs = tuple(names if inputs is None else inputs)

    def _wanted(self, program: Program) -> Program:
        return last_row(program) if self.rows == "last" else program

    def __call__(
        self, state: State | None = None, /, **inputs: Any
    ) -> tuple[dict[str, Array], State]:
        """Outputs of the new rows, and the state after them.

        A first call is given all inputs and no state (or None), a later one those along the decoded
        axis; outputs that no row reaches, such as an encoder's, are the first call's only. Raises
        `CacheFull`, and what running the model raises.
        """
        program = self.derived.prefill if state is None else self.derived.chunk
        arrays = {n: np.asarray(a) for n, a in inputs.items() if self._is_read(program, n)}
        before = 0 if state is None else state.length
        rows = rows_of(program, arrays)
        if self.max_length is not None and before + rows > self.max_length:
            raise CacheFull(length=before + rows, max_length=self.max_length)
        if state is None:
            done = self.prefill.step(arrays, {}, {})
            return done.outputs, self._state(rows, done.states, done.sizes, {})
        values = {path: self._given(path, v, before, rows) for path, v in state.values.items()}
        held = {p: v.array if isinstance(v, Growing) else v for p, v in values.items()}
        done = self.chunk.step(arrays, held, {**state.sizes, self.derived.past: before})
        return done.outputs, self._state(before + rows, done.states, done.sizes, values)

    def arrays(self, state: State) -> dict[str, Array]:
        """What is kept, by path in the order of the text, as NumPy arrays without room for more."""
        return {
            path: self.chunk.array(self._filled(slot, state)) for path, slot in self.slots.items()
        }

    def _filled(self, slot: Slot, state: State) -> Any:
        value = state.values[slot.path]
        if not isinstance(value, Growing):
            return value
        assert slot.dim is not None
        return value.array[(slice(None),) * slot.dim + (slice(0, state.length),)]

    def _is_read(self, program: Program, name: str) -> bool:
        """Whether a run takes an input: also one that is unknown, which the run refuses."""
        return name in _names(program.main) or name not in self.inputs

    def _given(self, path: str, value: Any, length: int, rows: int) -> Any:
        """A state as the chunk is given it. One that grows has room, and nobody else's rows in it."""
        if not isinstance(value, Growing):
            return value
        if value.filled == length and value.room >= length + rows:
            return value
        slot = self.slots[path]
        assert slot.dim is not None
        room = self.max_length or max(2 * length, length + rows, FIRST_ROOM)
        stored = None if slot.fact else self.cache_dtype
        array = self.chunk.empty(value.array, slot.dim, room, stored)
        place = (slice(None),) * slot.dim + (slice(0, length),)
        array[place] = value.array[place]
        return Growing(array, length, room)

    def _state(
        self,
        length: int,
        left: Mapping[str, Any],
        sizes: Mapping[str, int],
        before: Mapping[str, Any],
    ) -> State:
        values: dict[str, Any] = {}
        for path, slot in self.slots.items():
            if not slot.grows:
                values[path] = left[path]
            elif isinstance(grown := before.get(path), Growing):
                grown.filled = length  # an older state no longer finds its rows the last
                values[path] = grown
            else:
                values[path] = Growing(left[path], length, length)
        kept = {n: size for n, size in sizes.items() if n not in self.derived.symbols}
        return State(length, values, kept)


def _names(main: Function) -> list[str]:
    return [node_name(main[i]) for i in main.inputs]


def rows_of(program: Program, arrays: Mapping[str, Array]) -> int:
    """How many rows the inputs have along the decoded axis; the run says what is misshapen."""
    for node_id in program.main.inputs:
        node, dim = program.main[node_id], along(program, node_id)
        array = arrays.get(node_name(node))
        if dim is not None and array is not None and array.ndim == len(node.axes):
            return int(array.shape[dim])
    return 0


def along(program: Program, node_id: int) -> int | None:
    """The dimension of a value of main that is the decoded axis; None where it has none."""
    names = [axis.name for axis in program.main[node_id].axes]
    return names.index(program.decode) if program.decode in names else None
