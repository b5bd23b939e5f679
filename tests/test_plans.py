"""What a plan of kernels moves by its graph alone, against bytes written out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphs import SIZES, Model, b, d, hidden, s, vocab

import archc
from archc.compiler.ir.graph import Axis
from archc.compiler.passes import optimise
from archc.compiler.plans import lower_bound, plan
from archc.dsl.dims import Dim

LLAMA = Path(__file__).parent.parent / "examples" / "llama.arch"
AT = {"b": 2, "s": 5}
ROWS, D, HIDDEN = 10, SIZES["d"], SIZES["hidden"]


def bytes_of(program) -> tuple[int | None, int | None]:
    made = plan(program)
    return made.kernels.constant, made.moved.substitute(AT).constant


def test_each_primitive_reads_its_operands_and_writes_its_result_once():
    m = Model()
    x = m.input("x", b, s, d)
    y = x.dot(m.weight("w", hidden, d), d)  # x, w, y
    program = m.program(y=(y * y).op("exp"))  # y once, y * y; that, its exponential
    assert bytes_of(program) == (3, 2 * (ROWS * D + D * HIDDEN + 5 * ROWS * HIDDEN))
    assert lower_bound(program, AT) == 2 * (ROWS * D + D * HIDDEN + ROWS * HIDDEN)
    fused = optimise(program).program
    assert bytes_of(fused) == (1, 2 * (ROWS * D + D * HIDDEN + ROWS * HIDDEN))


def test_views_and_constants_are_free():
    m = Model()
    x, part = m.input("x", b, s, d), Axis("p", Dim.of(3))
    first = x.op("slice", axis=d, into=part, start=Dim.of(0), step=1)
    assert bytes_of(m.program(y=first * 2.0)) == (1, 2 * 2 * ROWS * 3)
    m = Model()
    x, scale = m.input("x", b, s, d), m.input("scale", d)
    wide = scale.op("broadcast", axes=(b, s))
    assert bytes_of(m.program(y=x * wide)) == (1, 2 * (2 * ROWS * D + D))


def test_a_wider_type_has_its_own_size():
    m = Model()
    program = m.program(y=m.input("x", b, s, d).cast("f32"))
    assert bytes_of(program) == (1, (2 + 4) * ROWS * D)


@pytest.mark.parametrize("level", [0, 1])
def test_a_lookup_reads_rows_of_its_table(level):
    m = Model()
    ids, table = m.input("ids", b, s, dtype="int"), m.weight("embed", vocab, d)
    program = m.program(x=table.op("take", ids, axis=vocab, fill=None))
    kernels, moved = bytes_of(optimise(program, level=level).program)
    assert (kernels, moved) == (1, 2 * 2 * ROWS * D + 8 * ROWS)
    few = plan(program).moved.substitute({"b": 4, "s": 5}).constant  # more rows than entries
    assert few == 2 * (SIZES["vocab"] + 20) * D + 8 * 20


def test_the_least_of_a_chunk_has_every_layers_state():
    """Keys and values of 7 earlier tokens in each of 3 layers, beside weights, input and logits."""
    model = archc.load(LLAMA, preset="tiny")
    chunk = model.incremental().chunk
    at = {"b": 1, "s": 1, chunk.past: 7}
    longer = {**at, chunk.past: 8}
    kept, mask = 3 * 2 * 2 * 16, 1  # layers, keys and values, heads, size; a byte for validity
    more = lower_bound(chunk, longer) - lower_bound(chunk, at)
    assert 2 * kept <= more <= 2 * kept + 3 * mask
