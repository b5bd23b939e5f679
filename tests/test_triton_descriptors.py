"""Tiles read through tensor descriptors: where that is legal, that it reads the same, what it costs."""

from __future__ import annotations

import re
from collections.abc import Callable

import ml_dtypes
import numpy as np
import peers
import pytest
from graphs import Model, Value, b, s
from kernel_checks import inputs_of, weights_of
from kernel_gates import kernels_of

from archc.backends.triton import aot, tiles
from archc.backends.triton.session import InterpreterSession, array
from archc.backends.triton.source import sources
from archc.compiler.ir.graph import Axis, Program
from archc.compiler.passes import optimise
from archc.dsl.dims import Dim

pytest.importorskip("triton")


def sized(name: str, size: int) -> Axis:
    return Axis(name, Dim.of(size))


k, n, half, odd = sized("k", 64), sized("n", 80), sized("half", 32), sized("odd", 20)


def part(start: int, step: int) -> Callable[[Model], Value]:
    def cut(m: Model) -> Value:
        w = m.weight("w", n, k)
        return w.op("slice", axis=k, into=half, start=Dim.of(start), step=step)

    return cut


def paired(m: Model) -> Value:
    """Of each 128 rows the first 64."""
    heads, e, low = sized("heads", 2), sized("e", 128), sized("low", 64)
    w = m.weight("w", heads, e, k)
    return w.op("slice", axis=e, into=low, start=Dim.of(0), step=1)


# name -> a matrix, the axis summed, and what keeps its tiles from being read through descriptors
MATRICES: dict[str, tuple[Callable[[Model], Value], Axis, str]] = {
    "rows": (lambda m: m.weight("w", n, k), k, ""),
    "columns": (lambda m: m.weight("w", k, n), k, ""),
    "a part": (part(32, 1), half, ""),
    "rows in blocks": (paired, k, ""),
    "a part that begins between": (part(4, 1), half, "rows begin between multiples of 16 bytes"),
    "every other": (part(0, 2), half, "entries are not side by side"),
    "short rows": (lambda m: m.weight("w", n, odd), odd, "rows begin between multiples of 16 bytes"),
}  # fmt: skip


def times(case: str) -> Program:
    change, summed, _ = MATRICES[case]
    m = Model()
    return m.program(y=m.input("x", b, s, summed).dot(change(m), summed))


@pytest.mark.parametrize("case", MATRICES)
def test_which_tiles_are_read_through_descriptors(case: str) -> None:
    _, _, reason = MATRICES[case]
    files, made = sources(optimise(times(case)).program)
    (kernel,) = (found for found in made.kernels.values() if found.has_dot)
    assert dict(kernel.described)["w_ptr"] == reason
    assert (f"# through pointers: w_ptr, {reason}" in files["kernels.py"]) == bool(reason)
    assert ("w_tiles.load(" in files["kernels.py"]) != bool(reason)


def test_rows_picked_by_data_are_read_through_pointers() -> None:
    """The matrix that a tile of them picks is one: it only begins elsewhere."""
    m, c, e = Model(), sized("c", 1), sized("e", 4)
    ids = m.input("ids", b, s, c, dtype="int", below=e.size)
    w = m.weight("w", e, n, k).op("take", ids, axis=e, fill=None)
    _, made = sources(optimise(m.program(y=m.input("x", b, s, k).dot(w, k))).program)
    (kernel,) = (found for found in made.kernels.values() if found.has_dot)
    assert dict(kernel.described) == {"x_ptr": "rows are gathered", "w_ptr": ""}


def bf16(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    floats = (name for name, x in values.items() if x.dtype == np.float32)
    return values | {name: values[name].astype(ml_dtypes.bfloat16) for name in floats}


def results(program: Program, shape: tuple[int, int], *, described: bool) -> dict[str, np.ndarray]:
    """In bf16, with no way but through descriptors or with none through them."""
    files, _ = sources(optimise(program).program)
    kernels, edits = files["kernels.py"], 1
    if described:
        kernels, edits = re.subn(r"(else:\n +\w+ = )tl\.load", r"\1no_pointer", kernels)
    else:
        kernels = kernels.replace("'DESCRIPTORS': True", "'DESCRIPTORS': False")
    assert edits
    session = InterpreterSession(files | {"kernels.py": kernels}, bf16(weights_of(program)), "bf16")
    found = session.run(bf16(inputs_of(program, *shape)))
    return {key: array(value) for key, value in found.items()}


@pytest.mark.parametrize(
    "program",
    [*(times(case) for case in ("rows", "columns", "a part", "rows in blocks")), peers.attention(2, 2, 24)],
    ids=["rows", "columns", "a part", "rows in blocks", "attention"],
)  # fmt: skip
def test_they_read_what_pointers_read(program: Program) -> None:
    """Edges of rows, of columns and of keys lie inside tiles."""
    found = [results(program, (2, 37), described=way) for way in (True, False)]
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert np.array_equal(value.view(np.uint16), found[1][key].view(np.uint16))


@pytest.mark.parametrize(("kind", "target"), [("attend", "sm_100"), ("product", "sm_90")])
def test_registers_are_those_of_pointers_or_fewer(
    kind: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of attention and of a product with two accumulators, or a tenth more."""
    kernels = [k for k in kernels_of("llama") if k.facts.kind == kind and not k.parts]
    found = [max(kernels, key=lambda k: k.facts.products)]
    assert "" in dict(found[0].described).values()
    (through,) = aot.compile_kernels(found, [target], processes=1)
    monkeypatch.setattr(tiles, "DESCRIBED", ())
    (pointers,) = aot.compile_kernels(found, [target], processes=1)
    assert through.failures == ()
    assert through.usage.registers <= 1.1 * pointers.usage.registers
