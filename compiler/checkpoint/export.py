"""Writing a Hugging Face directory: the tensor lines evaluated forwards, one tensor at a time.

Tensors are planned first, by name, dtype and shape: that gives headers and shards. Then each is
built and written, so that no more than one is in memory. Tensors that the lines ignore are copied.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...dsl import syntax as syn
from ...dsl.errors import NotExportable
from ..ir.graph import Program
from .arrangement import Array, Read, Shape, claims
from .binding import parts_of
from .huggingface import CONFIG, DTYPES, INDEX, WEIGHTS, SafetensorStore
from .lines import Entry, Lines, expand
from .reader import Checkpoint

SHARD_BYTES = 5 * 10**9  # what Hugging Face writes by default
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor to write; `data` makes its bytes."""

    name: str
    dtype: str
    shape: Shape
    size: int
    data: Callable[[], bytes | memoryview]


def save(
    program: Program,
    weights: Mapping[str, Array],
    checkpoint: syn.CheckpointDef,
    directory: str | Path,
    config: Mapping[str, Any],
    like: Checkpoint | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[str, ...]:
    """Write `weights` as the tensors and dtypes that `checkpoint`'s lines name, and `config`.

    `like` is the checkpoint the weights came from: its optional prefix, its aliases and the tensors
    that no line reads are kept as found. Without it prefixes are written and aliases are not. More
    than `shard_bytes` are written as shards with an index. Returns the names of the files.
    """
    if checkpoint.format != "huggingface":
        raise NotExportable(format=checkpoint.format)
    lines = expand(checkpoint, program, None if like is None else like.tensor_names)
    read = parts_of(weights)
    tensors = [_made(entry, read) for entry in _entries(lines, like)]
    tensors += _copied(lines, like)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files = _named(_shards(tensors, shard_bytes))
    _write_json(directory / CONFIG, config)
    for name, shard in files.items():
        with (directory / name).open("wb") as file:
            _write(file, shard)
    if len(files) == 1:
        return (CONFIG, *files)
    _write_json(directory / INDEX, _index(files))
    return (CONFIG, *files, INDEX)


def written_names(checkpoint: syn.CheckpointDef, program: Program) -> tuple[str, ...]:
    """The tensors that `save` writes without a checkpoint to be like."""
    return tuple(entry.name for entry in _entries(expand(checkpoint, program), None))


def _entries(lines: Lines, like: Checkpoint | None) -> Iterator[Entry]:
    found = (like.tensor_names if like else None) or ()
    return (entry for entry in lines.live() if not entry.line.alias or entry.name in found)


def _made(entry: Entry, read: Read) -> _Tensor:
    tree = entry.tree
    assert tree is not None
    dtype = np.result_type(*{read(claim.path, claim.box).dtype for claim in claims(tree)})

    def data() -> bytes:
        return np.ascontiguousarray(tree.build(read), dtype).tobytes()

    size = math.prod(tree.shape) * dtype.itemsize
    return _Tensor(entry.name, _DTYPE_NAMES[dtype], tree.shape, size, data)


def _copied(lines: Lines, like: Checkpoint | None) -> Iterator[_Tensor]:
    """Tensors that no line reads, a buffer or the head of another task, byte for byte."""
    store = like.tensors if like is not None else None
    if not isinstance(store, SafetensorStore):
        return
    named = {entry.name for entry in lines.live()}
    for name in store.names:
        if name not in named:
            shape, dtype = store.shape(name), store.table[name].dtype
            yield _Tensor(name, dtype, shape, len(store.raw(name)), partial(store.raw, name))


def _shards(tensors: Iterable[_Tensor], limit: int) -> list[list[_Tensor]]:
    """In order, each as full as `limit` allows; a tensor above it has a shard to itself."""
    shards: list[list[_Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size
    return shards


def _named(shards: list[list[_Tensor]]) -> dict[str, list[_Tensor]]:
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    stem, suffix = WEIGHTS.split(".", 1)
    count = len(shards)
    return {f"{stem}-{k:05}-of-{count:05}.{suffix}": s for k, s in enumerate(shards, 1)}


def _index(files: Mapping[str, list[_Tensor]]) -> dict[str, Any]:
    total = sum(tensor.size for shard in files.values() for tensor in shard)
    names = {tensor.name: file for file, shard in files.items() for tensor in shard}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}


def _write(file: BinaryIO, tensors: list[_Tensor]) -> None:
    """The safetensors layout: length of the header, JSON header, tensors without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size
        facts = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        header[tensor.name], offset = facts, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        file.write(tensor.data())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
