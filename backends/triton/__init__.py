"""The Triton backend: kernels generated from regions of the graph, and a host module around
them.

With a GPU the model runs there. Without one it runs in Triton's interpreter, in a worker process,
and says so; `aot.py` compiles the same kernels for named targets on any machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ...compiler.ir.graph import Program
from ...compiler.ir.walk import calls, join
from ...compiler.ops import Array, ModelDType, Precision
from ...dsl.errors import MissingPackage, NoLowering
from ..base import Backend, Executable, ValueKey, bind_inputs


class TritonBackend(Backend):
    name: ClassVar[str] = "triton"

    def unwanted_passes(self, dtype: ModelDType, **options: Any) -> tuple[str, ...]:
        """A kernel has no Fourier transform. One kernel runs most of a step of a scan: there is little
        to gain from doing part of it at once."""
        return (*super().unwanted_passes(dtype), "fft-convolution", "chunk-scan")

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
        self.session = self._open(traced=False)
        self.tracing: Any = None

    def _open(self, *, traced: bool) -> Any:
        import torch

        from .session import DeviceSession, InterpreterSession
        from .source import sources

        kind = DeviceSession if torch.cuda.is_available() else InterpreterSession
        return kind(sources(self.program, traced=traced)[0], self.named, self.dtype)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._results(self.session, inputs)[0]

    def trace(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], dict[ValueKey, Array]]:
        self.tracing = self.tracing or self._open(traced=True)
        return self._results(self.tracing, inputs)

    def _results(
        self, session: Any, inputs: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[ValueKey, Array]]:
        bound = bind_inputs(self.program, inputs, Precision(self.dtype))
        outputs: dict[str, Array] = {}
        values: dict[ValueKey, Array] = {}
        for key, value in session.run(bound.arrays).items():
            what, _, rest = key.partition(" ")
            if what == "output":
                outputs[rest] = value
            else:
                node, _, path = rest.partition(" ")
                values[path, int(node)] = value
        return outputs, values
