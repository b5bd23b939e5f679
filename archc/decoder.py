"""A model run chunk by chunk: `prefill` for the first rows of a sequence, `chunk` for those that follow.

    decoder = model.decoder(backend="torch")
    outputs, state = decoder(None, input_ids=ids)      # [b, n]
    outputs, state = decoder(state, input_ids=more)    # [b, m], m >= 1

A state is a value: what was made from an older one does not change it, so a sequence can be taken up
again at an earlier position. Slots are common to the rows of a batch; shorter rows are padded, on
whichever side, and say so by the input that declares what is valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .compiler.incremental import Incremental, Slot
from .dsl.errors import CacheFull

if TYPE_CHECKING:
    from .api import Model
    from .backends.base import Array, Executable
    from .compiler.ops import ModelDType


@dataclass(slots=True)
class Growing:
    """An array with room for later slots. `filled` slots are written, for the newest of its states."""

    array: Any
    filled: int
    room: int


@dataclass(frozen=True, slots=True)
class State:
    """What is kept of the first `length` slots, by path."""

    length: int
    values: Mapping[str, Any]
    sizes: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """The bytes that are held, with the room for later slots."""
        held = (v.array if isinstance(v, Growing) else v for v in self.values.values())
        return sum(int(array.nbytes) for array in held)


@dataclass(frozen=True)
class Decoder:
    """The two derived programs of a model, loaded with its weights."""

    derived: Incremental
    prefill: Executable
    chunk: Executable
    cache_dtype: ModelDType | None = None
    max_length: int | None = None
    slots: Mapping[str, Slot] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", {slot.path: slot for slot in self.derived.slots})

    def __call__(self, state: State | None, /, **inputs: Any) -> tuple[dict[str, Array], State]:
        """Outputs of the new rows, and the state after them.

        Of a first chunk all inputs are given, of a later one those along the decoded axis. Raises
        `CacheFull`, and what a run raises.
        """
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        program = self.derived.prefill if state is None else self.derived.chunk
        rows = self._rows(program.main, program.decode, arrays)
        if state is None:
            self._check_length(rows)
            done = self.prefill.step(arrays, {}, {})
            return done.outputs, self._state(rows, done.states, done.sizes, {})
        self._check_length(state.length + rows)
        values = {path: self._given(path, value, state, rows) for path, value in state.values.items()}
        held = {p: v.array if isinstance(v, Growing) else v for p, v in values.items()}
        done = self.chunk.step(arrays, held, {**state.sizes, self.derived.past: state.length})
        return done.outputs, self._state(state.length + rows, done.states, done.sizes, values)

    def _rows(self, main: Any, axis: str, arrays: Mapping[str, Array]) -> int:
        """How many rows the inputs have along the decoded axis."""
        for node in (main[i] for i in main.inputs):
            names = [a.name for a in node.axes]
            name = node.attrs.string("name")
            if axis in names and name in arrays and arrays[name].ndim == len(names):
                return arrays[name].shape[names.index(axis)]
        return 0  # the run says what is missing or misshapen

    def _check_length(self, length: int) -> None:
        if self.max_length is not None and length > self.max_length:
            raise CacheFull(length=length, room=self.max_length)

    def _given(self, path: str, value: Any, state: State, rows: int) -> Any:
        """A state as the chunk is given it. One that grows has room, and nobody else's rows in it."""
        if not isinstance(value, Growing):
            return value
        dim, length = self.slots[path].dim, state.length + rows
        assert dim is not None
        if value.filled == state.length and value.room >= length:
            return value
        room = self.max_length or max(2 * state.length, length, 64)
        array = self.chunk.empty(value.array, dim, room, self._stored(path))
        place = (slice(None),) * dim + (slice(0, state.length),)
        array[place] = value.array[place]
        return Growing(array, state.length, room)

    def _stored(self, path: str) -> ModelDType | None:
        return None if self.slots[path].fact else self.cache_dtype

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
