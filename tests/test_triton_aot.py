"""Kernels compiled for GPUs that are not there: resources within the device, tensor cores in
use."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphs import Model
from kernel_gates import kernels_of

from archc.backends.triton import aot
from archc.backends.triton.metrics import Usage
from archc.backends.triton.source import sources, tile_of
from archc.backends.triton.tiles import INTERPRETER, TARGETS, UNMASKED, Facts, Kind, tile
from archc.compiler.ir.graph import Axis, Program
from archc.compiler.passes import optimise
from archc.dsl.dims import Dim
from archc.dsl.errors import NoLowering

pytest.importorskip("triton")
GATED = ("sm_90", "gfx942")


def attention_of_llama() -> Program:
    """Causal attention of 32 heads of 128 and the projection of its result with the residual."""
    b, s, t = (Axis(n, Dim.symbol(n.replace("t", "s"))) for n in "bst")
    g, r, e, d = (Axis(n, Dim.of(size)) for n, size in zip("gred", (8, 4, 128, 4096), strict=True))
    h, m = Axis("h", Dim.of(4096)), Model()
    q, k, v = m.input("q", b, s, g, r, e), m.input("k", b, t, g, e), m.input("v", b, t, g, e)
    shown = m.where(m.index(t) <= m.index(s), q.dot(k, e) * 0.088, float("-inf"))
    mixed = shown.op("softmax", axis=t).dot(v, t).merge((g, r, e), h)
    return m.program(y=m.input("x", b, s, d) + mixed.dot(m.weight("o", d, h), h))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> tuple[list[aot.Compiled], Path]:
    """The attention and the output projection of a layer of Llama-2-7B's sizes."""
    program = optimise(attention_of_llama()).program
    folder = tmp_path_factory.mktemp("aot")
    return aot.compile_program(program, GATED, out=folder), folder


def test_kernels_fit_the_device_and_use_tensor_cores(compiled):
    results, _ = compiled
    assert {r.target for r in results} == set(GATED)
    assert sum(r.has_dot for r in results) >= 2 * len(GATED)
    for result in results:
        assert result.failures == (), result
        assert result.usage.vector_loads > 0


def test_products_with_picked_matrices_use_tensor_cores():
    """The gated hidden layers of Mixtral 8x7B's experts: each tile of rows has one gate and one up
    matrix, none is copied, and act(gate) * up is made of both in the one kernel."""
    b, s = (Axis(n, Dim.symbol(n)) for n in "bs")
    sizes = {"k": 2, "n": 8, "h": 14336, "d": 4096}
    k, n, h, d = (Axis(name, Dim.of(size)) for name, size in sizes.items())
    m = Model()
    ids = m.input("ids", b, s, k, dtype="int", below=n.size)
    x = m.input("x", b, s, d)
    gate, up = (
        x.dot(m.weight(name, n, h, d).op("take", ids, axis=n, fill=None), d)
        for name in ("gate", "up")
    )
    program = optimise(m.program(y=gate * gate.op("sigmoid") * up)).program
    results = aot.compile_program(program, GATED)
    assert [r.failures for r in results] == [()] * len(results)
    assert sum(r.has_dot for r in results) == len(GATED)


def test_artefacts_are_written(compiled):
    results, folder = compiled
    for result in results:
        ends = (".ttir", ".ptx", ".cubin") if result.target == "sm_90" else (".ttir", ".hsaco")
        for end in ends:
            assert (folder / result.target / f"{result.kernel}{end}").stat().st_size > 0


def test_the_table_has_a_line_for_each_result(compiled):
    results, _ = compiled
    lines = aot.table(results).splitlines()
    assert len(lines) == 1 + len(results)
    assert lines[0].split()[:3] == ["kernel", "target", "regs"]


def usage(**changes: int) -> Usage:
    given = {"registers": 9, "spills": 0, "shared": 0, "tensor_ops": 1, "vector_loads": 1}
    return Usage(vector_stores=1, **given | changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ()),
        ({"spills": 4}, ("4 spills",)),
        ({"shared": 232449}, ("232449 B of shared memory",)),
        ({"tensor_ops": 0}, ("no tensor-core instruction",)),
        ({"vector_loads": 0}, ("no vector load",)),
    ],
)
def test_gates(changes, reason):
    result = aot.Compiled("k", "sm_90", 0.1, True, True, usage(**changes))
    assert result.failures == reason
    assert "; ".join(reason) in aot.table([result])


@pytest.mark.parametrize(
    ("width", "step", "is_wide"), [(4096, 1, True), (4104, 1, False), (4096, 2, False)]
)
def test_wide_loads_are_expected_of_aligned_contiguous_rows(width, step, is_wide):
    """Of 16 bytes at once: not where rows begin between, nor of every other entry."""
    m, s, d = Model(), Axis("s", Dim.symbol("s")), Axis("d", Dim.of(width))
    part = Axis("part", Dim.of(width // step))
    x = m.input("x", s, d).op("slice", axis=d, into=part, start=Dim.of(0), step=step)
    _, made = sources(m.program(y=x.op("sigmoid")))
    (kernel,) = made.kernels.values()
    assert aot.job("", kernel, "sm_90", "bf16").has_wide == is_wide


def test_a_kernel_that_does_not_compile_is_reported(tmp_path):
    Path(tmp_path, "kernels.py").write_text(
        "import triton\nimport triton.language as tl\n\n"
        "@triton.jit\ndef k(x_ptr):\n    tl.nonsense(x_ptr)\n"
    )
    job = aot.Job(str(tmp_path), "k", "sm_90", (("x_ptr", "*fp32"),), (), (), False)
    result = aot.compile_job(job)
    assert result.usage is None
    assert "nonsense" in result.failures[0]


def test_functions_that_kernels_call_are_compiled_with_them():
    """The states of a scan of 256 numbers, at eight warps: none spills."""
    kernels = [k for k in kernels_of("retnet") if "wide_dot(" in "".join(k.body)]
    (result,) = aot.compile_kernels(kernels[:1], ["sm_90"], processes=1)
    assert result.failures == ()


def test_float64_is_refused():
    with pytest.raises(NoLowering, match="f64"):
        aot.compile_program(Program("P", ()), ["sm_90"], dtype="f64")


def test_every_target_has_tiles_for_every_kernel():
    model = Model()
    x = model.input("x", Axis("s", Dim.symbol("s")), Axis("d", Dim.of(96)))
    _, made = sources(model.program(y=x.op("softmax", axis=Axis("d", Dim.of(96)))))
    for kernel in made.kernels.values():
        for target in TARGETS:
            for size in (2, 4):
                assert set(kernel.blocks) <= set(tile_of(kernel, target, size))


@pytest.mark.parametrize("target", [*TARGETS, INTERPRETER])
@pytest.mark.parametrize("kind", ["flat", "row", "product", "attend"])
def test_blocks_end_where_an_axis_without_a_mask_ends(kind: Kind, target: str) -> None:
    if kind in ("flat", "row"):
        for columns in (1, 2, 16, 64, 4096):
            for running in (False, True):
                block = tile(Facts(kind, columns=columns, running=running), target, 2)["BLOCK_N"]
                assert columns % block == 0, (columns, block)
    for columns in range(UNMASKED, 20 * UNMASKED, UNMASKED):
        for element_bytes in (2, 4):
            block = tile(Facts(kind, columns=columns), target, element_bytes)["BLOCK_N"]
            assert isinstance(block, int)
            assert columns % block == 0, (columns, block)
