"""What kernels move, as the interpreter counts it: by hand, in samples, at the sizes of real models;
and what it finds wrong in kernels that were broken on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from graphs import Model, b, d, layer, s

from archc.backends.triton.counting import count, counted
from archc.backends.triton.launches import Launch
from archc.backends.triton.roofline import DEVICES, bound
from archc.backends.triton.sampling import Sampled
from archc.backends.triton.session import InterpreterSession
from archc.backends.triton.source import sources
from archc.commands import resources
from archc.compiler import knobs
from archc.compiler.ir.graph import Axis, Program
from archc.compiler.passes import optimise
from archc.dsl.diagnostics import InternalError
from archc.dsl.dims import Dim

pytest.importorskip("triton")


def sized(name: str, size: int) -> Axis:
    return Axis(name, Dim.of(size))


# -------------------------------------------------------------------------------- by hand


def product_of(rows: int, inner: int, columns: int) -> Program:
    m, k, n = Model(), sized("k", inner), sized("n", columns)
    return m.program(y=m.input("x", sized("m", rows), k).dot(m.weight("w", n, k), k))


def test_a_product_by_hand():
    """Tiles of 128 x 128 on sm_90: x is read for each of 3 tiles of columns, w for each of 2 of rows."""
    (launch,), host = count(product_of(256, 64, 384), {}, whole=True)
    assert launch.grid == (2, 3, 1)
    assert sorted(launch.reads.values()) == [3 * 2 * 256 * 64, 2 * 2 * 384 * 64]
    assert sorted(launch.unique_reads.values()) == [2 * 256 * 64, 2 * 384 * 64]
    assert list(launch.writes.values()) == list(launch.unique_writes.values()) == [2 * 256 * 384]
    assert launch.dot == 2 * 256 * 64 * 384
    assert launch.issued == launch.sectors
    assert host.moved == 0


def test_sectors_of_columns_are_whole():
    """Of a matrix whose rows have 100 floats one column is read: 4 bytes of each 32 fetched."""
    m, k = Model(), sized("k", 100)
    x = m.input("x", sized("m", 64), k)
    program = m.program(y=x.op("pick", axis=k, at=Dim.of(0)).op("exp"))
    (launch,), _ = count(program, {}, dtype="f32", whole=True)
    assert sum(launch.reads.values()) == 64 * 4
    assert launch.sectors == 64 * 32 + 64 * 4


# ----------------------------------------------------------------------------- in samples


@pytest.mark.parametrize(
    ("grid", "quantity", "most"),
    [
        ((7, 5, 3), lambda x, y, z: 3 + 2 * x + y * z, 48),
        ((90, 12, 1), lambda x, y, z: min(x, 9) * 5 + (x == 89), 80),  # a window, a last block
        ((128, 1, 8), lambda x, y, z: (x * 32 + 31) // 64 + 1, 48),  # tiles that blocks share
        ((1, 1, 1), lambda x, y, z: 4, 1),
    ],
)
def test_sums_from_samples(grid: tuple[int, ...], quantity: Callable[..., int], most: int):
    chosen = Sampled(grid, lambda index: {"bytes": quantity(*index)})
    whole = sum(quantity(*index) for index in product(*map(range, grid)))
    assert chosen.total() == {"bytes": whole}
    assert chosen.exact
    assert len(chosen.known) <= most


def test_what_is_no_formula_is_an_estimate():
    noise = np.random.default_rng(0).integers(0, 100, 1000)
    chosen = Sampled((1000, 1, 1), lambda index: {"bytes": int(noise[index[0]])})
    (found,) = chosen.total().values()
    assert not chosen.exact
    assert len(chosen.known) < 200
    assert abs(Fraction(found, int(noise.sum())) - 1) < 0.5


@pytest.fixture(scope="module")
def both_ways() -> list[tuple[Launch, Launch]]:
    """Launches of a layer counted whole and from samples, with sm_90's tiles, ragged here."""
    m = Model()
    program = optimise(m.program(y=layer(m, m.input("x", b, s, d)))).program
    whole, sampled = (count(program, {"b": 1, "s": 1100}, whole=w)[0] for w in (True, False))
    return list(zip(whole, sampled, strict=True))


def test_samples_sum_to_what_whole_launches_issue(both_ways):
    for whole, sampled in both_ways:
        assert sampled.exact
        assert (sampled.reads, sampled.writes) == (whole.reads, whole.writes)
        for name in ("sectors", "dot", "float_ops", "special"):
            assert getattr(sampled, name) == getattr(whole, name), (whole.kernel, name)
        assert whole.races == ()
    assert sum(sampled.ran for _, sampled in both_ways) < sum(w.ran for w, _ in both_ways)


def test_boxes_bound_the_distinct_bytes(both_ways):
    for whole, sampled in both_ways:
        assert sampled.unique_writes == whole.unique_writes
        for name, read in whole.unique_reads.items():
            assert read <= sampled.unique_reads[name] <= 1.01 * read, (whole.kernel, name)


def test_sizes_of_real_models_are_counted_from_a_few_programs():
    (launch,), _ = count(product_of(2**20, 512, 2**10), {})
    assert launch.exact
    assert launch.ran < 30 < launch.programs == 2**16
    assert launch.dot == 2 * 2**20 * 512 * 2**10
    assert launch.unique == 2 * (2**20 * 512 + 2**10 * 512 + 2**20 * 2**10)


# ------------------------------------------------------------------- kernels that are wrong


def broken(before: str, after: str) -> InterpreterSession:
    """The doubling of 300 rows of 12 with an edit of its kernel."""
    m = Model()
    program = optimise(m.program(y=m.input("x", s, d).op("exp"))).program
    files, _ = sources(program)
    kernels, edits = re.subn(before, after, files["kernels.py"])
    assert edits
    return InterpreterSession(files | {"kernels.py": kernels}, {}, "f32")


def test_rows_that_two_programs_write_are_a_race():
    session = broken(r"tl\.program_id\(0\) \* BLOCK_M", "tl.program_id(0) * (BLOCK_M // 2)")
    rows = {"x": np.ones((300, 12), np.float32)}
    with counted() as launches:
        session.run(rows)
    assert any("several programs write out_ptr" in race for x in launches for race in x.races)
    with knobs.scope(ARCHC_RACES="1"), pytest.raises(InternalError, match="several programs write"):
        session.run(rows)
    with counted() as launches:
        broken(r"tl\.store", "tl.store").run(rows)
    assert [x.races for x in launches] == [()]


def test_a_result_that_another_program_reads_is_a_race():
    session = broken(r"tl\.store\(out_ptr", "tl.store(x_ptr")
    with counted() as launches:
        session.run({"x": np.ones((300, 12), np.float32)})
    assert [x.races for x in launches] == [()]  # each program reads and writes its own rows
    session = broken(
        r"tl\.store\(out_ptr \+ ", "tl.store(x_ptr + (rows_M + 64) % 300 * 12 - rows_M * 12 + "
    )
    with counted() as launches:
        session.run({"x": np.ones((300, 12), np.float32)})
    assert any("writes and another reads x_ptr" in race for x in launches for race in x.races)


def test_a_load_outside_its_operand_is_found_before_memory_is_touched():
    session = broken(r"rows_in_M = rows_M < .*", "rows_in_M = rows_M < 1000")
    with counted(), pytest.raises(InternalError, match=r"program \(\d, 0, 0\) of .* leaves x_ptr"):
        session.run({"x": np.ones((300, 12), np.float32)})


# ------------------------------------------------------------------------------ the model


def test_the_command_offers_every_device():
    assert tuple(DEVICES) == resources.DEVICES


def test_the_bound_is_the_slowest_part():
    device = DEVICES["h100"]
    seconds, by = bound(Launch("k", (1,), 1, 1, True, {"x": 10**9}, {}, {"x": 10**9}, {}), device)
    assert (round(seconds * device.dram), by) == (10**9 + round(3e-6 * device.dram), "DRAM")
    again = {"x": 10**10}
    assert bound(Launch("k", (1,), 1, 1, True, again, {}, {"x": 10**9}, {}), device)[1] == "cache"
    assert bound(Launch("k", (1,), 1, 1, True, dot=10**12), device)[1] == "tensor cores"
    assert bound(Launch("k", (1,), 1, 1, True), device) == (device.launch, "launch")
