"""Weights without a checkpoint: seeded random arrays, made when they are asked for.

They are loud on purpose: gains and biases far from 1 and 0, so that a backend which drops or swaps
one is seen. An array depends on its path and the seed alone, not on the order of reading.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .ir.graph import Parameter, Program

Array = np.ndarray[Any, Any]

_LOUDNESS = {"ones": (1.0, 0.25), "zeros": (0.0, 0.15)}  # initialiser: mean, standard deviation


class RandomWeights(Mapping[str, Array]):
    """float32 arrays by path, shaped per `Parameter.axes`."""

    def __init__(self, program: Program, seed: int) -> None:
        self._parameters = {p.path: p for p in program.parameters}
        self._sizes = program.sizes
        self._seed = seed

    def __getitem__(self, path: str) -> Array:
        parameter = self._parameters[path]
        shape = tuple(axis.size.evaluate(self._sizes) for axis in parameter.axes)
        mean, deviation = _LOUDNESS.get(parameter.init) or (0.0, self._fan_in(parameter) ** -0.5)
        noise = _generator(path, self._seed).standard_normal(shape, dtype=np.float32)
        noise *= np.float32(deviation)
        noise += np.float32(mean)
        return noise

    def __contains__(self, path: object) -> bool:
        return path in self._parameters  # the inherited test would make the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def _fan_in(self, parameter: Parameter) -> int:
        """How many inputs one output sums: the size of the last stored dimension."""
        last = parameter.grouping[-1] if parameter.grouping else ()
        return max(1, math.prod(axis.size.evaluate(self._sizes) for axis in last))


def random_weights(program: Program, seed: int = 0) -> RandomWeights:
    """N(0, 1/fan_in), but N(1, 1/16) for the initialiser `ones` and N(0, 0.15²) for `zeros`."""
    return RandomWeights(program, seed)


def _generator(path: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
