"""Tile sizes, warps and pipeline stages per target: one small table per kind of kernel.

The kinds: `flat` (pointwise), `row` (reductions along columns), `product` and `attend`. The figures
keep every kernel within the target's registers (no spills) and shared memory; `interpreter` has
wide tiles, for it pays per statement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from .descriptors import DESCRIPTORS

Kind = Literal["flat", "row", "product", "attend", "steps", "chunks"]
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
INTERPRETER = "interpreter"
Tile = dict[str, int | str]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a kernel's tiles depend on."""

    kind: Kind
    width: int = 1  # columns held in one tile: the longest axis that a program covers at once
    products: int = 1  # accumulators of the main loop
    columns: int | None = None  # of the whole iteration space, if that is constant
    angles: bool = False  # sine or cosine: their range reduction takes many registers
    exact: bool = False  # a product of float32 values, whatever the model's type
    pieces: int = 1  # of the result that a program computes at once
    scores: int = 1  # of an attention's gradient: products in a tile, of which the sum is made
    running: bool = False  # a loop whose sums keep the columns: they meet a tile of what is summed
    stored: int = 1  # results


# (rows, columns, reduced), warps, stages; by bytes of an element
PRODUCTS: dict[str, dict[int, tuple[int, int, int, int, int]]] = {
    "sm_80": {2: (128, 64, 32, 4, 4), 4: (64, 64, 16, 8, 3)},
    "sm_90": {2: (128, 128, 64, 8, 3), 4: (64, 64, 16, 8, 3)},
    "sm_100": {2: (128, 128, 64, 8, 3), 4: (64, 64, 16, 8, 3)},
    "gfx942": {2: (128, 128, 32, 8, 2), 4: (64, 64, 16, 4, 2)},
    INTERPRETER: {2: (64, 64, 64, 4, 1), 4: (64, 64, 64, 4, 1)},
}

# (queries, keys), warps, stages; by head size: up to 64, 128, 256. A program's queries share the
# keys and values that it reads: all heads of a group, and as many places as registers hold.
ATTENTION: dict[str, dict[int, tuple[int, int, int, int]]] = {
    "sm_80": {64: (64, 64, 4, 3), 128: (128, 32, 8, 3), 256: (64, 32, 8, 2)},
    "sm_90": {64: (128, 64, 8, 3), 128: (256, 32, 16, 3), 256: (64, 32, 8, 2)},
    "sm_100": {64: (64, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 8, 2)},
    "gfx942": {64: (128, 64, 4, 2), 128: (128, 64, 4, 2), 256: (64, 32, 4, 1)},
    INTERPRETER: {64: (64, 64, 4, 1), 128: (64, 64, 4, 1), 256: (64, 64, 4, 1)},
}

# Triton 3.8 keeps the queries of the large tile in registers, where there is no room for them, and 3.7
# the scores of small heads: what they have instead, by version, target and head size.
OTHERWISE: dict[tuple[str, str, int], Tile] = {
    ("3.7", "sm_100", 64): {"BLOCK_N": 32},
    ("3.8", "sm_90", 128): {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, DESCRIPTORS: False},
    ("3.8", "gfx942", 128): {"BLOCK_N": 32},
}

# Where tiles are read through tensor descriptors. Older devices and AMD have no such instruction,
# float32 is for no tensor core, and with few rows a program ends before making one has paid. The
# interpreter so runs both ways.
DESCRIBED = ("sm_90", "sm_100", INTERPRETER)

# Those of a gradient, which has the scores and their derivative in a tile at once.
ATTENTION_GRADIENT: dict[str, dict[int, tuple[int, int, int, int]]] = {
    **ATTENTION,
    "sm_80": {64: (64, 64, 4, 2), 128: (64, 32, 4, 2), 256: (32, 32, 8, 1)},
    "sm_90": {64: (128, 64, 8, 3), 128: (128, 64, 8, 3), 256: (64, 32, 8, 2)},
    "gfx942": {64: (64, 64, 4, 2), 128: (64, 32, 4, 2), 256: (32, 32, 4, 1)},
}

# The same for 16 rows and fewer: a product waits for its weights, so many small tiles are on the way.
FEW_PRODUCTS: dict[str, dict[int, tuple[int, int, int, int, int]]] = {
    "sm_80": {2: (16, 64, 64, 4, 5), 4: (16, 64, 32, 4, 3)},
    "sm_90": {2: (16, 64, 64, 4, 5), 4: (16, 64, 32, 4, 3)},
    "sm_100": {2: (16, 64, 64, 4, 5), 4: (16, 64, 32, 4, 3)},
    "gfx942": {2: (16, 64, 64, 4, 2), 4: (16, 64, 32, 4, 2)},
    INTERPRETER: {2: (16, 64, 64, 4, 1), 4: (16, 64, 64, 4, 1)},
}

# Elements of a tile: by kind on NVIDIA, twice that on AMD, whose warps are twice as wide.
ELEMENTS: dict[Kind, int] = {"flat": 1024, "row": 2048}
INTERPRETED_ELEMENTS = 1 << 16
# Elements of a row's tile that a thread holds. With many results ptxas gives a thread of sm_90 fewer
# registers than 16 take, and spills.
MOST_HELD, HELD_OF_MANY, MANY = 16, 8, 4
RUNNING = 32  # columns, and summed entries, of such a tile

# An axis whose length is a multiple of this has no mask: every block along it ends where it ends.
UNMASKED = 128


def tile(facts: Facts, target: str, element_bytes: int, *, few: bool = False) -> Tile:
    """Block lengths and launch options of a kernel, or those for `few` rows."""
    if facts.exact:
        element_bytes = 4
    described: Tile = {DESCRIPTORS: element_bytes == 2 and target in DESCRIBED and not few}
    if facts.kind == "product":
        table = (FEW_PRODUCTS if few else PRODUCTS)[target]
        return _product(facts, table, element_bytes) | described
    if facts.kind == "attend":
        whole = _attend(facts, target, element_bytes, few) | described
        is_known = element_bytes == 2 and not few and facts.scores == 1
        other = OTHERWISE.get((_triton(), target, _head(facts))) if is_known else None
        return whole | (other or {})
    if facts.kind == "chunks":
        return _chunks(facts, target)
    if facts.kind == "steps":
        return _steps(facts, target)
    return _rows(facts, target)


def _product(
    facts: Facts, table: dict[int, tuple[int, int, int, int, int]], element_bytes: int
) -> Tile:
    m, n, k, warps, stages = table[min(4, element_bytes)]
    n //= _power_of_two(facts.products)
    if facts.angles and m > 16:
        m, n = m // 2, n // 2
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages}


def _attend(facts: Facts, target: str, element_bytes: int, few: bool) -> Tile:
    size, table = _head(facts), ATTENTION if facts.scores == 1 else ATTENTION_GRADIENT
    m, n, warps, stages = table[target][size]
    if element_bytes > 2 and target != INTERPRETER:
        m, n, warps, stages = 64, 32 if size < 256 else 16, 8, 1
    elif few and size < 256 and facts.scores == 1:
        n = 64
    if few:
        m, warps = 16, 4
    return {
        "BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": 32, "num_warps": warps, "num_stages": stages,
    }  # fmt: skip


def _head(facts: Facts) -> int:
    """The size of a head, of those in the table."""
    return next((size for size in (64, 128) if facts.width <= size), 256)


@cache
def _triton() -> str:
    """The installed version, or the one that tables are made for."""
    try:
        return ".".join(version("triton").split(".")[:2])
    except PackageNotFoundError:
        return "3.9"


def _rows(facts: Facts, target: str) -> Tile:
    """As many rows as the tile's elements allow for the widest index along columns."""
    share = facts.pieces * (4 if facts.angles else 1)
    elements = ELEMENTS[facts.kind] * (2 if target == "gfx942" else 1) // share
    if target == INTERPRETER:
        elements = INTERPRETED_ELEMENTS
    most = RUNNING if facts.running else 256 if facts.angles or facts.kind != "flat" else 1024
    columns = _column_block(facts.columns, most)
    width = max(facts.width, columns if facts.width == 1 else 1, 1 if facts.kind == "flat" else 128)
    rows = 1 << (max(1, min(64, elements // width)).bit_length() - 1)  # a power of two below
    lanes = 64 if target == "gfx942" else 32
    held = HELD_OF_MANY if facts.stored >= MANY else MOST_HELD
    warps = min(16, max(4, rows * width // (lanes * held)))
    return {
        "BLOCK_M": rows,
        "BLOCK_N": columns,
        "BLOCK_K": RUNNING if facts.running else 128,
        "num_warps": warps,
        "num_stages": 2,
    }


# Elements of the states that a warp of a scan holds.
CARRIED = 512


def _precision(target: str) -> str:
    """How a scan multiplies float32: where tensor cores have 10 bits of it, as three products."""
    return "tf32x3" if target.startswith("sm_") else "ieee"


def _steps(facts: Facts, target: str) -> Tile:
    """Few elements for each program: steps wait for one another, so that rows are what runs at once."""
    least = 16 if facts.products else 1
    rows = max(least, CARRIED // facts.width) if facts.width > 1 else 1
    if target == INTERPRETER:
        rows = max(least, INTERPRETED_ELEMENTS // max(facts.width, 128))
    warps = min(8, max(1, rows * max(facts.width, 64) // CARRIED))
    return {
        "BLOCK_M": rows, "BLOCK_N": 64, "PRECISION": _precision(target),
        "num_warps": warps, "num_stages": 2,
    }  # fmt: skip


def _chunks(facts: Facts, target: str) -> Tile:
    """Few columns of the states, beside the rows of a chunk and all that its products sum over."""
    return {
        "BLOCK_N": 64 if target == INTERPRETER else 16, "PRECISION": _precision(target),
        "num_warps": 8 if facts.width > 128 else 4, "num_stages": 1,
    }  # fmt: skip


def _column_block(columns: int | None, most: int) -> int:
    """A power of two up to `most`; one that divides the columns where a kernel has no mask for them."""
    if columns is not None and columns % UNMASKED == 0:
        return math.gcd(columns, most)
    return min(most, _power_of_two(columns or most))


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
