"""A model that goes on from where it stopped: prefill once, then only new rows.

decoder = model.decoder(backend="torch")
outputs, state = decoder(None, input_ids=prompt)     # arrays [b, n]
outputs, state = decoder(state, input_ids=next)      # only what has the decoded axis

A state is a value: an older one may be continued, also after a newer one was made from it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .backends.base import node_name
from .dsl.errors import CacheFull

if TYPE_CHECKING:
    from .api import Compiled, Model
    from .backends.base import Array
    from .compiler.ir.graph import Node
    from .compiler.ops import ModelDType

Rows = Literal["all", "last"]


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What is kept of `length` slots. This one keeps the inputs."""

    inputs: Mapping[str, Array]
    length: int

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.inputs.values())


class Decoder:
    """`model` loaded for decoding. `inputs` names what calls supply, `rows` what outputs hold.

    Every call runs the whole sequence again.
    """

    def __init__(
        self,
        model: Model,
        backend: str = "torch",
        *,
        dtype: ModelDType = "f32",
        cache_dtype: ModelDType | None = None,
        max_length: int | None = None,
        inputs: Collection[str] | None = None,
        rows: Rows = "all",
        **options: Any,
    ) -> None:
        self.model, self.rows, self.max_length = model, rows, max_length
        self.cache_dtype = cache_dtype  # no cache is kept, so nothing is rounded to it
        self._compiled: Compiled = model.compile(backend, dtype=dtype, inputs=inputs, **options)
        self.time = self._compiled.program.decode
        main = model.program_for(inputs).main
        self._nodes = {node_name(main[i]): main[i] for i in main.inputs}
        self._outputs = {name: main[i] for name, i in main.outputs}
        self.inputs = tuple(self._nodes) if inputs is None else tuple(inputs)

    def __call__(self, state: State | None, **inputs: Any) -> tuple[dict[str, Array], State]:
        """Outputs of the new rows (with `rows="last"`, of the last one) and the state after them.

        Raises `CacheFull`, and what running the model raises.
        """
        given = {name: np.asarray(array) for name, array in inputs.items()}
        before = 0 if state is None else state.length
        held = given if state is None else self._joined(state, given)
        length = self._length(held)
        if self.max_length is not None and length > self.max_length:
            raise CacheFull(length=length, max_length=self.max_length)
        outputs = self._compiled(**held)
        first = length - 1 if self.rows == "last" else before
        kept = {name: self._since(self._outputs[name], a, first) for name, a in outputs.items()}
        return kept, State(held, length)

    def _along(self, node: Node) -> int | None:
        """Where the decoded axis lies in a value's layout."""
        return next((i for i, axis in enumerate(node.axes) if axis.name == self.time), None)

    def _length(self, held: Mapping[str, Array]) -> int:
        along = {name: self._along(self._nodes[name]) for name in held if name in self._nodes}
        return next((held[n].shape[a] for n, a in along.items() if a is not None), 0)

    def _joined(self, state: State, given: Mapping[str, Array]) -> dict[str, Array]:
        """All slots of every input: those held, then the new ones."""
        new = self._length(given)
        joined = dict(state.inputs)
        for name, before in state.inputs.items():
            axis = self._along(self._nodes[name])
            if axis is None:
                continue
            rows = given[name] if name in given else self._default(name, before, axis, new)
            joined[name] = np.concatenate((before, rows), axis)
        return joined

    def _default(self, name: str, before: Array, axis: int, count: int) -> Array:
        """`count` rows of an input left out: its default."""
        shape = (*before.shape[:axis], count, *before.shape[axis + 1 :])
        return np.full(shape, self._nodes[name].attrs.get("default", 0), before.dtype)

    def _since(self, node: Node, output: Array, first: int) -> Array:
        axis = self._along(node)
        if axis is None:
            return output
        return output[(slice(None),) * axis + (slice(first, None),)]
