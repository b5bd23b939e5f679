"""The two runs that others are judged by: exact (float64), and careful (in the run's dtype).

Both see the same weights and inputs, rounded to that dtype, and both run in NumPy as the graph is
defined, so a fault in a tiled algorithm or in a lowering is never in both sides of a comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..backends.base import Array, ValueKey
from ..backends.numpy import NumpyBackend
from ..compiler.ir.graph import Program
from ..compiler.ops import ModelDType, Precision
from .values import by_definition


@dataclass(frozen=True, slots=True)
class Rounded(Mapping[str, Array]):
    """Weights as a run in `dtype` holds them."""

    weights: Mapping[str, Array]
    dtype: ModelDType

    def __getitem__(self, path: str) -> Array:
        return self.weights[path].astype(Precision(self.dtype).storage("float"), copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave: outputs by name, values by call path and node."""

    outputs: Mapping[str, Array]
    values: Mapping[ValueKey, Array]


@dataclass(frozen=True, slots=True)
class Truth:
    """The exact run and the careful one."""

    gold: Run
    base: Run


class Reference:
    """A program with its weights, to be run both ways."""

    def __init__(self, program: Program, weights: Mapping[str, Array], dtype: ModelDType) -> None:
        self.program, self.precision = program, Precision(dtype)
        plain, rounded = by_definition(program), Rounded(weights, dtype)
        self._gold = NumpyBackend().load(plain, rounded, dtype="f64")
        same = dtype == "f64"
        self._base = self._gold if same else NumpyBackend().load(plain, rounded, dtype=dtype)

    def truth(self, inputs: Mapping[str, Array]) -> Truth:
        """Both runs; floating-point inputs are rounded first."""
        given = self.rounded(inputs)
        gold = Run(*self._gold.trace(given))
        return Truth(gold, gold if self._base is self._gold else Run(*self._base.trace(given)))

    def rounded(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """`inputs` as a run in this dtype holds them."""
        main = self.program.main
        types = {main[i].attrs.string("name"): main[i].type.dtype for i in main.inputs}
        with np.errstate(over="ignore"):  # what is beyond the dtype is infinite in it
            return {
                name: array.astype(self.precision.storage(types[name]), copy=False)
                for name, array in inputs.items()
            }

    def stepped(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array], sizes: Mapping[str, int]
    ) -> tuple[dict[ValueKey, Array], dict[str, int]]:
        """Every value of an exact step from `states`, and all its sizes."""
        done, values = self._gold.trace_step(self.rounded(inputs), states, sizes)
        return values, done.sizes
