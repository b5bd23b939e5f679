"""What is proved of whole numbers made of slots holds for every pair of slots."""

from __future__ import annotations

import random

import numpy as np

from archc.backends.numpy import NumpyBackend
from archc.compiler.elaborate import elaborate, module_of, the_model
from archc.compiler.ir.graph import Program
from archc.compiler.passes.bounds import Slot, Visibility
from archc.compiler.rewrite import Edit, Session
from archc.dsl import Source, parse

S, K, COUNT = 7, 3, 120
LEAVES = ("slot(s)", "slot(s)", "slot(u)", "index(k)", "ids", "0", "1", "3")
SHAPES = ("{} + {}", "{} - {}", "max({}, {})", "min({}, {})", "where(ids < 2, {}, {})")


def expression(noise: random.Random, depth: int) -> str:
    if depth == 0:
        return noise.choice(LEAVES)
    if noise.random() < 0.3:
        return f"({expression(noise, depth - 1)}) {noise.choice(('* 2', '// 2', '// 3'))}"
    sides = (expression(noise, depth - noise.choice((1, 1, depth))) for _ in range(2))
    return f"({noise.choice(SHAPES).format(*sides)})"


def program(expressions: list[str]) -> Program:
    lines = "".join(
        f"  output y{i}[s, u, k] = {text} + (slot(s) + slot(u) + index(k)) * 0\n"
        for i, text in enumerate(expressions)
    )
    text = f"""use std
model Numbers {{
  input ids: int[s]
  input x: float[s, k: {K}]
  a[s, u] = sum(x, k) * sum(x, k)[s -> u]
{lines}  output z = a
}}
"""
    module = module_of(parse(Source("model.arch", text)))
    return elaborate(module, the_model(module))


def holds(slot: Slot, value: np.ndarray, i: np.ndarray, j: np.ndarray) -> bool:
    """value = floor((keys j + queries i + rest) / divisor), with the rest between its bounds."""
    divisor = slot.divisor.evaluate({})
    indices = slot.keys * j + slot.queries * i
    low = slot.low is None or (indices + slot.low.evaluate({"s": S})) // divisor <= value
    high = slot.high is None or (indices + slot.high.evaluate({"s": S})) // divisor >= value
    return bool(np.all(low) and np.all(high))


def test_bounds_hold_and_some_are_known() -> None:
    noise = random.Random(3)
    expressions = [expression(noise, noise.choice((1, 2, 3))) for _ in range(COUNT)]
    made = program(expressions)
    ids = np.random.default_rng(0).integers(-4, 5, S)
    found = NumpyBackend().load(made, {}, dtype="f64").run({"ids": ids, "x": np.ones((S, K))})
    edit = Edit(made, made.main, Session())
    axes = {axis.name: axis for node in made.main.nodes for axis in node.axes}
    sight = Visibility(edit, axes["u"], axes["s"])
    i, j = np.arange(S)[:, None, None], np.arange(S)[None, :, None]
    known = 0
    for name, node in made.main.outputs:
        if name.startswith("y"):
            slot = sight.slot(node)
            known += any(slot.counts) and None not in (slot.low, slot.high)
            assert holds(slot, found[name], i, j), (expressions[int(name[1:])], slot)
    assert known > COUNT // 8
