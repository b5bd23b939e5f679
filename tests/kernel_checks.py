"""Generated kernels in Triton's interpreter against the NumPy backend in float64."""

from __future__ import annotations

import numpy as np
from graphs import SIZES

from archc.backends.numpy import NumpyBackend
from archc.backends.triton import TritonBackend
from archc.compiler.ir.graph import Program
from archc.compiler.passes import optimise


def weights_of(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        p.path: (random.normal(size=[a.size.evaluate(program.sizes) for a in p.axes]) / 3).astype(
            np.float32
        )
        for p in program.parameters
    }


def inputs_of(
    program: Program, batch: int, length: int, seed: int = 1, **more: int
) -> dict[str, np.ndarray]:
    """Inputs of `batch` rows of `length`; `more` are other run-time sizes."""
    random = np.random.default_rng(seed)
    sizes = {**program.sizes, "b": batch, "s": length, **more}
    made = {}
    for node in (program.main[i] for i in program.main.inputs):
        shape = node.type.shape(sizes)
        made[str(node.attrs["name"])] = {
            "bool": lambda shape=shape: random.random(shape) < 0.7,
            "int": lambda shape=shape: random.integers(0, SIZES["vocab"], shape),
            "float": lambda shape=shape: random.normal(size=shape).astype(np.float32),
        }[node.type.dtype]()
    return made


def distance(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float(np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30))


def check(
    program: Program, *, levels=(0, 1), shapes=((1, 1), (2, 5), (1, 17)), dtype="f32", **more: int
):
    """Compares the program as it is and optimised; half floats are held to NumPy's own rounding."""
    weights = weights_of(program)
    gold = NumpyBackend().load(program, weights, dtype="f64")
    base = NumpyBackend().load(program, weights, dtype=dtype)
    for level in levels:
        executable = TritonBackend().load(
            optimise(program, level=level).program, weights, dtype=dtype
        )
        for shape in shapes:
            inputs = inputs_of(program, *shape, **more)
            results, exact = executable.run(inputs), gold.run(inputs)
            for name, rounded in base.run(inputs).items():
                allowed = 1e-5 if dtype == "f32" else 3 * distance(rounded, exact[name]) + 1e-6
                assert results[name].dtype == rounded.dtype
                assert distance(results[name], exact[name]) <= allowed, (level, shape, name)
