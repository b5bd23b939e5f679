"""A model's loss and its gradient for each weight, on any backend.

gradient = model.gradient("triton")
outputs, gradients = gradient(input_ids=ids, labels=labels)
gradients["layers[3].attention.q.w"]

The programs are derived from the graph (`compiler/gradient`), so what a backend runs is checked as
the model itself is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .compiler.gradient import derive
from .compiler.passes import optimise
from .dsl.errors import UntrainedWeight

if TYPE_CHECKING:
    from .api import Model
    from .backends.base import Array, Executable
    from .compiler.ir.graph import Program
    from .compiler.ops import ModelDType


class Gradient:
    """`model` loaded to give the output `loss` and its gradient for `weights` (default: all trained).

    `inputs` names what calls supply, `outputs` what they give beside the loss. Raises `UnknownOutput`,
    `UntrainedWeight`, `LossShape`, `NoGradient`, and what `Model.compile` raises.
    """

    def __init__(
        self,
        model: Model,
        backend: str = "numpy",
        *,
        loss: str = "loss",
        weights: Collection[str] | None = None,
        dtype: ModelDType = "f32",
        level: int = 1,
        inputs: Collection[str] | None = None,
        outputs: Collection[str] = (),
        **options: Any,
    ) -> None:
        from .api import backend as backend_called
        from .api import returning

        program = model.program_for(inputs)
        self.wanted = _trained(program, weights)
        self.derived = derive(
            returning(program, (loss, *outputs)), loss, self.wanted, tiled=level > 0
        )
        runner, arrays = backend_called(backend), model.given_weights()
        unwanted = runner.unwanted_passes(dtype, **options)

        def loaded(part: Program, like: Executable | None = None) -> Executable:
            part = optimise(part, level=level, disable=unwanted).program
            return runner.load(part, arrays, dtype=dtype, like=like, **options)

        forward = self.derived.forward
        self.forward = None if forward is None else loaded(forward)
        self.backward = loaded(self.derived.backward, self.forward)

    def __call__(self, /, **inputs: Any) -> tuple[dict[str, Array], dict[str, Array]]:
        """The loss and the other outputs by name, and the gradients by the weights' paths."""
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        states: Mapping[str, Any] = {}
        if self.forward is not None:
            states = self.forward.step(arrays, {}, {}).states
        # no slots come before these: what only decoding has is empty
        done = self.backward.step(arrays, states, {self.derived.backward.past: 0})
        gradients = {
            path: self.backward.array(done.states[state])
            for path, state in self.derived.gradients.items()
        }
        return done.outputs, gradients


def _trained(program: Program, weights: Collection[str] | None) -> tuple[str, ...]:
    known = tuple(p.path for p in program.parameters if p.trained)
    for path in weights or ():
        if path not in known:
            raise UntrainedWeight(path=path, known=known)
    return known if weights is None else tuple(weights)
