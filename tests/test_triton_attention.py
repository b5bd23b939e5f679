"""Attention kernels: every head size, the tiles that they visit, reductions cut into parts."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from graphs import Model, Value, b, s, t
from kernel_checks import check, inputs_of, weights_of

from archc.backends.triton import TritonBackend, host
from archc.backends.triton.tiles import INTERPRETER, Facts, tile
from archc.compiler.ir.graph import Axis, Program
from archc.compiler.passes import optimise
from archc.dsl.dims import Dim

pytest.importorskip("triton")


def sized(name: str, size: int) -> Axis:
    return Axis(name, Dim.of(size))


n, r = sized("n", 2), sized("r", 2)
u = Axis("u", Dim.symbol("u"))  # keys of another timeline


def mixed(m: Model, e: Axis, w: Axis, mask: Value | None, keys: Axis = t) -> Value:
    """Two query heads for each of two heads of keys, with `e` numbers, and of values, with `w`."""
    q = m.input("q", b, s, n, r, e)
    k, v = m.input("k", b, keys, n, e), m.input("v", b, keys, n, w)
    a = q.dot(k, e) * e.size.constant**-0.5
    shown = a if mask is None else m.where(mask, a, float("-inf"))
    return shown.op("softmax", axis=keys).dot(v, keys)


def causal(m: Model) -> Value:
    return m.index(t) <= m.index(s)


@pytest.mark.parametrize(
    ("key", "value"), [(16, 16), (24, 40), (80, 80), (96, 96), (128, 64), (192, 128), (256, 256)]
)
def test_heads_of_every_size(key: int, value: int) -> None:
    m = Model()
    program = m.program(y=mixed(m, sized("e", key), sized("w", value), causal(m)))
    check(program, levels=(1,), shapes=((1, 1), (1, 17), (1, 127)))


# -------------------------------------------------------------------------------------- tiles

BLOCK = tile(Facts("attend", 16), INTERPRETER, 4)["BLOCK_N"]
TILES = 3


def window(m: Model) -> Value:
    return causal(m) & (m.index(s) - m.index(t) < BLOCK // 2)


def blocks(m: Model) -> Value:
    return m.index(s).op("floordiv", BLOCK // 2).op("eq", m.index(t).op("floordiv", BLOCK // 2))


def documents(m: Model) -> Value:
    """Which queries and keys are of one document is data; that no key is later is proved."""
    mine, of_key = (
        m.input(name, b, axis, dtype="int") for name, axis in (("doc", s), ("doc_of_key", t))
    )
    return causal(m) & mine.op("eq", of_key)


def padded(m: Model) -> Value:
    return m.input("seen", b, t, dtype="bool")


def prefix(m: Model) -> Value:
    """A number of keys that all see, and those before."""
    return causal(m) | (m.index(t) < m.input("length", b, dtype="int"))


SLOTS = np.arange(3 * BLOCK)[None]
GIVEN = {
    "documents": {"doc": SLOTS // BLOCK, "doc_of_key": SLOTS // BLOCK},
    "one document": {"doc": 0 * SLOTS, "doc_of_key": 0 * SLOTS},
    "padded": {"seen": (BLOCK <= SLOTS) & (SLOTS < 2 * BLOCK)},
    "prefix": {"length": np.asarray([BLOCK + 1])},
}

# Mask -> how many tiles of keys a tile of queries visits. Queries are half a tile each: two heads
# share one.
VISITS = {
    "all": (lambda m: None, [3, 3, 3, 3, 3, 3]),
    "causal": (causal, [1, 1, 2, 2, 3, 3]),
    "window": (window, [1, 1, 2, 1, 2, 1]),
    "blocks": (blocks, [1, 1, 1, 1, 1, 1]),
    "documents": (documents, [1, 1, 1, 1, 1, 1]),
    "one document": (documents, [1, 1, 2, 2, 3, 3]),
    "padded": (padded, [1, 1, 1, 1, 1, 1]),
    "prefix": (prefix, [2, 2, 2, 2, 3, 3]),
}


def visited(program: Program, inputs: dict[str, np.ndarray]) -> list[int]:
    """Tiles of keys that reach each tile of queries: values that are no numbers show where.

    Times a weight of 0 they are still none, so one that is read is seen in the result.
    """
    run = TritonBackend().load(optimise(program).program, weights_of(program)).run
    counts = np.zeros(2 * TILES, int)
    for first in range(0, TILES * BLOCK, BLOCK):
        v = inputs["v"].copy()
        v[:, first : first + BLOCK] = np.nan
        y = run(inputs | {"v": v})["y"]
        by_tile = np.isnan(y).any(axis=(0, 2, 3, 4)).reshape(2 * TILES, BLOCK // 2)
        assert (by_tile.all(axis=1) == by_tile.any(axis=1)).all()
        counts += by_tile.any(axis=1)
    return counts.tolist()


@pytest.mark.parametrize("mask", VISITS)
def test_tiles_that_the_mask_excludes_are_not_visited(mask: str) -> None:
    make, expected = VISITS[mask]
    m = Model()
    one = sized("n", 1)
    e, w = sized("e", 8), sized("w", 8)
    q, k, v = m.input("q", b, s, one, r, e), m.input("k", b, t, one, e), m.input("v", b, t, one, w)
    a, shown = q.dot(k, e), make(m)
    a = a if shown is None else m.where(shown, a, float("-inf"))
    program = m.program(y=a.op("softmax", axis=t).dot(v, t))
    inputs = inputs_of(program, 1, TILES * BLOCK) | GIVEN.get(mask, {})
    assert visited(program, inputs) == expected


# -------------------------------------------------------------------------------------- parts


def seen(m: Model, keys: Axis) -> Value:
    return m.input("seen", b, keys, dtype="bool")


def late(m: Model, keys: Axis) -> Value:
    """Keys of the last part only, and none for the first row."""
    return (m.index(keys) < 520).op("not") & (m.index(s) < 1).op("not")


@pytest.mark.parametrize("mask", [lambda m, keys: None, seen, late])
@pytest.mark.parametrize("keys", [1, 513, 700])
def test_few_queries_share_many_keys(mask, keys: int) -> None:
    m = Model()
    e = sized("e", 16)
    y = mixed(m, e, e, mask(m, u), keys=u)
    check(m.program(y=(y * 2.0).op("tanh")), levels=(1,), shapes=((1, 3),), u=keys)


def test_pooling_of_many_entries_is_shared() -> None:
    """One query, the same for each batch, and values of several numbers or of one."""
    m, c = Model(), sized("c", 24)
    x, score = m.input("x", b, u, c), m.input("score", b, u)
    weights = score.op("softmax", axis=u)
    near = x.dot(m.weight("q", c), c).op("softmax", axis=u)
    program = m.program(y=near.dot(x, u), z=near.dot(score, u) + weights.dot(score, u))
    check(program, levels=(1,), shapes=((2, 1),), u=600)


def test_a_product_with_few_rows_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "continues", lambda program: True)
    m, c, wide = Model(), sized("c", 2100), sized("wide", 40)
    x, residual = m.input("x", b, s, c), m.input("residual", b, s, wide)
    y = x.dot(m.weight("w", wide, c), c)
    check(m.program(y=residual + y * y.op("sigmoid")), levels=(1,), shapes=((1, 1), (2, 17)))


def launches(program: Program, target: str, **inputs: np.ndarray) -> list[str]:
    """The kernels that a run of the generated host module launches."""
    import torch

    files = TritonBackend().emit(optimise(program).program)
    tables: dict[str, object] = {}
    exec(files["kernels.py"].split("@triton.jit")[0], tables)
    names: list[str] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.__name__ = name

        def __getitem__(self, grid: tuple[int, int, int]):
            return lambda *arguments, **options: names.append(self.__name__)

    stub = ModuleType("kernels")
    stub.__dict__.update(TILES=tables["TILES"], FEW=tables["FEW"])
    stub.__getattr__ = Recorder  # type: ignore[method-assign]
    module = SimpleNamespace()
    kept = sys.modules.get("kernels")
    sys.modules["kernels"] = stub
    try:
        exec(compile(files["model.py"], "model.py", "exec"), module.__dict__)
    finally:
        sys.modules.pop("kernels") if kept is None else sys.modules.update(kernels=kept)
    model = module.Model({}, torch.float32, "cpu", target)
    model.forward(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return names


@pytest.mark.parametrize(
    ("batch", "length", "keys", "parts"),
    [
        (1, 1, 511, False),
        (1, 1, 512, True),
        (8, 1, 512, False),
        (4, 16, 4096, True),
        (4, 64, 4096, False),
    ],
)
def test_parts_are_chosen_by_rows_and_keys(batch: int, length: int, keys: int, parts: bool) -> None:
    m = Model()
    e = sized("e", 16)
    program = m.program(y=mixed(m, e, e, None, keys=u))
    names = launches(program, INTERPRETER, **inputs_of(program, batch, length, u=keys))
    assert [name.rsplit("_", 1)[-1] for name in names] == (["part", "join"] if parts else ["bsnre"])
