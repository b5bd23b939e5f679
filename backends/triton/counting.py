"""Counting a program's launches: on real data as it runs, or at any sizes on arrays of zeros.

`counted` counts whole launches of what runs in this process's interpreter, and finds races between
their programs. `count` runs a program once at given sizes with a target's tiles: a few programs of
each launch, equal launches once. Token ids are all different there as far as the vocabulary goes, and
`topk` chooses all entries equally often; other numbers that the model computes are those of zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ...compiler.ir.graph import Axis, Node, Program, TensorType
from ...compiler.ir.walk import calls, join
from ...compiler.ops import Array, ModelDType, Precision
from ...dsl.errors import NoLowering
from . import require_packages
from .host import CONSTANTS, constant_key, result_key
from .launches import HostWork, Launch
from .regions import with_room
from .session import TORCH_TYPES, Worker, tensor, written
from .source import sources, unshown

Blank = tuple[str, tuple[int, ...], str]  # name, shape and torch type of an array of zeros
FLOATS = ("float", "f32", "f64")


@contextmanager
def counted() -> Iterator[list[Launch]]:
    """Launches in the interpreter inside the block; the list is filled at its end."""
    found: list[Launch] = []
    worker = Worker.shared()
    worker.ask(do="count", on=True)
    try:
        yield found
    finally:
        answer = worker.ask(do="count", on=False)
        found += map(Launch.from_json, answer["launches"])


def count(
    program: Program,
    at: Mapping[str, int],
    *,
    dtype: ModelDType = "bf16",
    target: str = "sm_90",
    whole: bool = False,
) -> tuple[list[Launch], HostWork]:
    """The launches of one run with run-time sizes `at`, and what the host moves beside them.

    States of a decoder are full: `at` has how many slots they hold. With `whole` every program of a
    launch runs, which is exact and takes time, and memory for marks on every element. Raises NoLowering,
    MissingPackage, and InternalError where a kernel leaves its operands.
    """
    from safetensors.torch import save_file

    require_packages("counting what kernels move")
    if dtype not in TORCH_TYPES:
        raise NoLowering(op=f"dtype {dtype}", backend="triton")
    files, made = sources(program)
    sizes, folder = {**program.sizes, **at}, written(files)
    path = str(Path(folder.name, "inputs.safetensors"))
    save_file({name: tensor(value) for name, value in _whole_numbers(program, sizes)}, path)
    answer = Worker.shared().ask(
        do="blank", folder=folder.name, dtype=dtype, target=target, inputs=path, whole=whole,
        floats=list(_floats(program, sizes, dtype)),
        weights=list(_weights(program, dtype)),
        states=list(_states(program, sizes, dtype)),
        sizes=[sizes[symbol] for symbol in unshown(made)],
    )  # fmt: skip
    return [Launch.from_json(launch) for launch in answer["launches"]], HostWork(**answer["host"])


def _inputs(program: Program, *, floats: bool) -> Iterator[Node]:
    nodes = (program.main[i] for i in program.main.inputs)
    return (node for node in nodes if (node.type.dtype in FLOATS) == floats)


def _floats(program: Program, sizes: Mapping[str, int], dtype: ModelDType) -> Iterator[Blank]:
    for node in _inputs(program, floats=True):
        yield _blank(node.attrs.string("name"), node.type, sizes, dtype)


def _whole_numbers(program: Program, sizes: Mapping[str, int]) -> Iterator[tuple[str, Array]]:
    """Ids count up; conditions and other numbers are their defaults."""
    for node in _inputs(program, floats=False):
        kind = Precision("f32").storage(node.type.dtype)
        made = np.full(node.type.shape(sizes), node.attrs.get("default", 0), kind)
        if node.attrs.get("kind") == "ids" and node.attrs.get("below"):
            entries = node.attrs.dim("below").evaluate(sizes)
            made = (np.arange(made.size) % entries).reshape(made.shape).astype(kind)
        yield node.attrs.string("name"), made


def _weights(program: Program, dtype: ModelDType) -> Iterator[Blank]:
    """What a run reads that depends on no input, under the names that generated classes ask for."""
    for path, function in calls(program):
        for node in function.nodes:
            if node.op in CONSTANTS:
                keys = [
                    constant_key(node),
                    *(result_key(node.id, i) for i in range(1, len(node.types))),
                ]
                for key, kind in zip(keys, node.types, strict=True):
                    name = key if node.op == "table" else join(path, key)
                    yield _blank(name, kind, program.sizes, dtype)


def _states(program: Program, sizes: Mapping[str, int], dtype: ModelDType) -> Iterator[Blank]:
    """With as much room for new slots as they hold, so that none is moved."""
    for path, function in calls(program):
        for node in function.states:
            axis = with_room(program, node)
            name, shape, kind = _blank(
                join(path, node.attrs.string("path")), node.type, sizes, dtype
            )
            yield name, _longer(node, axis, shape), kind


def _longer(node: Node, axis: Axis | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    place = None if axis is None else node.type.position(axis)
    return tuple(2 * n + 1 if i == place else n for i, n in enumerate(shape))


def _blank(name: str, kind: TensorType, sizes: Mapping[str, int], dtype: ModelDType) -> Blank:
    floats = {"float": TORCH_TYPES[dtype], "int": "int64", "i8": "int8", "bool": "bool"}
    return name, kind.shape(sizes), floats.get(kind.dtype, "float32")
