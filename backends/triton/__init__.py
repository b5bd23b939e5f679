"""The Triton backend: kernels generated from regions of the graph, and a host module around
them.

With a GPU the model runs there. Without one it runs in Triton's interpreter, in a worker process,
and says so; `aot.py` compiles the same kernels for named targets on any machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ...compiler.ir.graph import Program
from ...compiler.ir.walk import calls, join
from ...compiler.ops import Array, ModelDType, Precision
from ...dsl.errors import MissingPackage, NoLowering
from ..base import Backend, BoundInputs, Executable, Stepped, ValueKey, bind_inputs, check_prefix
from .whole import check_inputs


class TritonBackend(Backend):
    name: ClassVar[str] = "triton"

    def unwanted_passes(self, dtype: ModelDType, **options: Any) -> tuple[str, ...]:
        """A kernel has no Fourier transform. One kernel runs all steps of a scan with its states in
        registers: part of it done at once would only pass through memory."""
        return ("pack-weights", "fft-convolution", "chunk-scan")

    def emit(self, program: Program, **options: Any) -> dict[str, str]:
        """`kernels.py` and `model.py`. Raises NoLowering."""
        from .source import sources

        return sources(program)[0]

    def load(
        self,
        program: Program,
        weights: Mapping[str, Array],
        *,
        dtype: ModelDType = "f32",
        **options: Any,
    ) -> TritonExecutable:
        """Raises NoLowering, MissingPackage, MissingWeight, WeightShape."""
        require_packages("running on the triton backend")
        if dtype == "f64":
            raise NoLowering(op="dtype f64", backend="triton")
        return TritonExecutable(program, constants(program, weights, dtype), dtype)


def require_packages(purpose: str) -> None:
    """Raises MissingPackage."""
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackage(package=package, purpose=purpose, extra="triton")


def constants(
    program: Program, weights: Mapping[str, Array], dtype: ModelDType
) -> dict[str, Array]:
    """What a run reads that depends on no input, named as the generated classes ask for it."""
    from ..numpy.constants import load_constants
    from ..numpy.interpreter import Interpreter, Shared
    from .host import constant_key, result_key

    shared = Shared(program, Precision(dtype))
    named: dict[str, Array] = {}
    with np.errstate(all="ignore"):
        loaded = load_constants(shared, weights)
        interpreter = Interpreter(shared, program.sizes)
        for path, function in calls(program):
            for node in function.nodes:
                if node.op == "table":
                    named[constant_key(node)] = interpreter.table(node)
                elif (path, node.id) in loaded:
                    made = loaded.pop((path, node.id))
                    several = made if isinstance(made, tuple) else (made,)
                    for index, value in enumerate(several):
                        key = constant_key(node) if not index else result_key(node.id, index)
                        named[join(path, key)] = value
    return named


class TritonExecutable(Executable):
    """Loaded once; the model that keeps every value is loaded when a trace is first asked for."""

    def __init__(self, program: Program, named: dict[str, Array], dtype: ModelDType) -> None:
        self.program, self.dtype, self.named = program, dtype, named
        self.session, self.unshown = self._open(traced=False)
        self.tracing: Any = None
        called = list(calls(program))
        self.read = [join(path, n.attrs.string("path")) for path, f in called for n in f.states]
        self.grown = [
            join(path, name) for path, f in called for name, i in f.left if f[i].op == "append"
        ]

    def _open(self, *, traced: bool) -> tuple[Any, list[str]]:
        """The loaded model, and the sizes that it is told."""
        import torch

        from .session import DeviceSession, InterpreterSession
        from .source import sources, unshown

        kind = DeviceSession if torch.cuda.is_available() else InterpreterSession
        files, made = sources(self.program, traced=traced)
        return kind(files, self.named, self.dtype), unshown(made)

    def bind(
        self, inputs: Mapping[str, Array], sizes: Mapping[str, int] = MappingProxyType({})
    ) -> BoundInputs:
        """Checked inputs and all sizes. Raises NoLowering for whole numbers of more than 32 bits."""
        bound = bind_inputs(self.program, inputs, Precision(self.dtype), sizes)
        check_inputs(self.program, bound.arrays)
        return bound

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        bound = self.bind(inputs)
        return _outputs(self.session.run(bound.arrays))

    def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Any], sizes: Mapping[str, int]
    ) -> Stepped:
        """States are tensors on the device. Of one that grows the array has room for the new rows."""
        from .session import named_as

        bound = self.bind(inputs, sizes)
        if not states:
            check_prefix(self.program, bound)
        read = {path: states[path] for path in self.read}
        unshown = [bound.sizes[symbol] for symbol in self.unshown]
        results = self.session.run(bound.arrays, read, unshown, self.grown)
        left = named_as("state", results)
        left.update((path, states[path]) for path in self.grown)
        return Stepped(_outputs(results), left, bound.sizes)

    def empty(self, like: Any, dim: int, length: int, dtype: ModelDType | None = None) -> Any:
        import torch

        from .session import TORCH_TYPES

        half = dtype is not None and like.dtype.is_floating_point
        kind = getattr(torch, TORCH_TYPES[dtype]) if dtype and half else like.dtype
        return like.new_empty((*like.shape[:dim], length, *like.shape[dim + 1 :]), dtype=kind)

    def array(self, state: Any) -> Array:
        from .session import array

        return array(state)

    def trace(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], dict[ValueKey, Array]]:
        from .session import array, named_as

        self.tracing = self.tracing or self._open(traced=True)[0]
        bound = self.bind(inputs)
        results = self.tracing.run(bound.arrays)
        values: dict[ValueKey, Array] = {}
        for key, value in named_as("value", results).items():
            node, _, path = key.partition(" ")
            values[path, int(node)] = array(value)
        return _outputs(results), values


def _outputs(results: Mapping[str, Any]) -> dict[str, Array]:
    from .session import array, named_as

    return {name: array(value) for name, value in named_as("output", results).items()}
