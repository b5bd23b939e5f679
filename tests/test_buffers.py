"""Shared buffers: no value is overwritten before its last reader, and what sharing saves."""

from __future__ import annotations

import pytest
from bundled import example
from checks import model_of
from graphs import SIZES, Model, Value, b, d, layer, s

from archc.compiler.buffers import VIEWS, Memory, peak, shared_buffers
from archc.compiler.ir.graph import Function, Program
from archc.compiler.passes import optimise
from archc.compiler.rewrite import code

CALL = {"b": 2, "s": 6}


def at(program: Program) -> dict[str, int]:
    """Run-time sizes, and those of the chunks of scans."""
    types = (t for f in program.functions for n in f.nodes for t in n.types)
    symbols = {symbol for t in types for axis in t.axes for symbol in axis.size.symbols()}
    return {name: CALL.get(name, 5) for name in symbols - program.sizes.keys()}


def looked_at(function: Function, value: int) -> set[int]:
    """The value, or what it is views of."""
    node = function[value]
    if node.op not in VIEWS:
        return {value}
    return {base for source in node.inputs for base in looked_at(function, source)}


def overwritten(memory: Memory, function: Function) -> list[str]:
    """Values that are read after another took their buffer, when the function runs in order."""
    place = {
        life.id: number
        for number, buffer in enumerate(shared_buffers(memory.lives(function)))
        for life in buffer.lives
    }
    holds: dict[int, int] = {}
    wrong = []
    for node in function.nodes:
        for value in {v for i in node.inputs for v in looked_at(function, i)} & place.keys():
            if holds.get(place[value]) != value:
                wrong.append(f"%{value} is gone where %{node.id} reads it")
        if node.id in place:
            holds[place[node.id]] = node.id
    results = {v for i in function.output_ids for v in looked_at(function, i)} & place.keys()
    return wrong + [f"%{v} is gone at the end" for v in results if holds[place[v]] != v]


@pytest.mark.parametrize("name", ["llama", "mamba", "mixtral"])
def test_no_value_is_overwritten_before_it_is_read(name: str) -> None:
    before = example(name)
    for program in (before, optimise(before).program):
        memory = Memory(program, at(program))
        assert [overwritten(memory, f) for f in code(program)] == [[] for _ in code(program)]
        least, shared, apart = (
            m(program.main) for m in (memory.peak, memory.shared, memory.separate)
        )
        assert 0 < least <= shared <= apart


def test_values_of_a_chain_take_turns() -> None:
    program = model_of(lambda m, x: x.op("exp").op("tanh").op("sin").op("cos"))
    lives = Memory(program, CALL).lives(program.main)
    size = 2 * CALL["b"] * CALL["s"] * SIZES["d"]
    buffers = shared_buffers(lives)
    assert [x.size for x in buffers] == [size, size]
    assert sum(life.size for life in lives) == 5 * size
    assert peak(lives) == 2 * size


def test_a_view_keeps_what_it_looks_at() -> None:
    def build(m: Model, x: Value) -> Value:
        turned = x.op("exp").op("transpose", order=(d, s, b))
        return turned + x.op("tanh").op("sin")

    program = model_of(build)
    memory = Memory(program, CALL)
    (exp,) = (n.id for n in program.main.nodes if n.op == "exp")
    (life,) = (x for x in memory.lives(program.main) if x.id == exp)
    assert program.main.nodes[life.last].op == "add"
    assert overwritten(memory, program.main) == []


def test_fusion_needs_less_memory() -> None:
    program = model_of(layer)
    done = optimise(program).program
    before, after = Memory(program, CALL), Memory(done, CALL)
    assert after.separate(done.main) < before.separate(program.main) / 2
    assert after.shared(done.main) < before.shared(program.main)
