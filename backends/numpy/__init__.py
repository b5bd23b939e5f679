"""The reference backend: it interprets the graph, and the other backends are held to it.

In float64 on primitive nodes it is the oracle; on an optimised graph its fused nodes run the tiled
algorithms that the other backends compile. A row's result does not depend on the rest of its batch
beyond what BLAS does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ...compiler.ir.graph import STATE, Program
from ...compiler.ops import Array, ModelDType, Precision
from ..base import (
    Backend,
    BoundInputs,
    Executable,
    Stepped,
    ValueKey,
    bind_inputs,
    check_prefix,
    node_name,
)
from .constants import load_constants
from .interpreter import Interpreter, Observer, Shared


def exact(
    program: Program, inputs: Mapping[str, Array], weights: Mapping[str, Array]
) -> dict[str, Array]:
    """What passes are checked with: outputs in float64, in tiles that short sequences cross."""
    return NumpyBackend().load(program, weights, dtype="f64", tile=4).run(inputs)


class NumpyBackend(Backend):
    """`tile` is the number of keys that `attend` visits at a time."""

    name: ClassVar[str] = "numpy"

    def emit(self, program: Program, **options: Any) -> dict[str, str]:
        return {}

    def load(
        self,
        program: Program,
        weights: Mapping[str, Array],
        *,
        dtype: ModelDType = "f32",
        tile: int | None = None,
        **options: Any,
    ) -> NumpyExecutable:
        shared = Shared(program, Precision(dtype), tile=tile)
        with np.errstate(all="ignore"):
            shared.constants = load_constants(shared, weights)
        return NumpyExecutable(shared)


class NumpyExecutable(Executable):
    def __init__(self, shared: Shared) -> None:
        self.shared = shared

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._run(inputs, None)

    def trace(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], dict[ValueKey, Array]]:
        seen: dict[ValueKey, Array] = {}
        return self._run(inputs, seen.__setitem__), seen

    def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array], sizes: Mapping[str, int]
    ) -> Stepped:
        return self._step(inputs, states, sizes, None)

    def trace_step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array], sizes: Mapping[str, int]
    ) -> tuple[Stepped, dict[ValueKey, Array]]:
        """As `step`, with every value of the program as loaded."""
        seen: dict[ValueKey, Array] = {}
        return self._step(inputs, states, sizes, seen.__setitem__), seen

    def _step(
        self,
        inputs: Mapping[str, Array],
        states: Mapping[str, Array],
        sizes: Mapping[str, int],
        observe: Observer | None,
    ) -> Stepped:
        bound = bind_inputs(self.shared.program, inputs, self.shared.precision, sizes)
        if not states:
            check_prefix(self.shared.program, bound)
        interpreter = Interpreter(self.shared, bound.sizes, observe, states=states)
        outputs = self._outputs(interpreter, bound)
        given = {id(array) for array in bound.arrays.values()}
        left = {p: x.copy() if id(x) in given else x for p, x in interpreter.left.items()}
        return Stepped(outputs, left, bound.sizes)

    def empty(self, like: Array, dim: int, length: int, dtype: ModelDType | None = None) -> Array:
        shape = (*like.shape[:dim], length, *like.shape[dim + 1 :])
        if dtype is None or like.dtype.kind in "biu":
            return np.empty(shape, like.dtype)
        return np.empty(shape, Precision(dtype).storage("float"))

    def _run(self, inputs: Mapping[str, Array], observe: Observer | None) -> dict[str, Array]:
        bound = bind_inputs(self.shared.program, inputs, self.shared.precision)
        return self._outputs(Interpreter(self.shared, bound.sizes, observe), bound)

    def _outputs(self, interpreter: Interpreter, bound: BoundInputs) -> dict[str, Array]:
        main, precision = self.shared.program.main, self.shared.precision
        arguments = [bound.arrays[node_name(main[i])] for i in main.inputs]
        with np.errstate(all="ignore"):  # -inf and 0/0 in masked rows are meant
            results = interpreter.run(main, arguments)
        interpreter.leave(main, results, "")
        return {
            name: result.astype(precision.storage(main[i].type.dtype), copy=False)
            for (name, i), result in zip(main.outputs, results, strict=True)
            if not name.startswith(STATE)
        }
