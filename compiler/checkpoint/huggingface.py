"""Hugging Face directories: config.json and safetensors, in one file or in shards with an index."""

from __future__ import annotations

import json
import mmap
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from ...dsl.errors import (
    DamagedCheckpoint,
    MissingShard,
    NotACheckpoint,
    TensorDtype,
    UnsafeShard,
)
from .arrangement import Array, Shape
from .reader import Checkpoint, TensorStore, is_array, map_file, unreadable

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True, slots=True)
class _Tensor:
    file: mmap.mmap
    dtype: str
    shape: Shape
    offset: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class SafetensorStore(TensorStore):
    """Tensors of any number of safetensors files; reading one copies nothing."""

    table: dict[str, _Tensor] = field(default_factory=dict)

    @property
    def names(self) -> Collection[str]:
        return self.table.keys()

    def shape(self, name: str) -> Shape:
        return self.table[name].shape

    def read(self, name: str) -> Array:
        tensor = self.table[name]
        if tensor.dtype not in DTYPES:
            raise TensorDtype(tensor=name, dtype=tensor.dtype)
        count = int(np.prod(tensor.shape, dtype=np.int64))
        flat = np.frombuffer(tensor.file, DTYPES[tensor.dtype], count, tensor.offset)
        return flat.reshape(tensor.shape)

    def raw(self, name: str) -> memoryview:
        """What the file holds for `name`, of whatever dtype."""
        tensor = self.table[name]
        return memoryview(tensor.file)[tensor.offset : tensor.end]


def open_directory(directory: Path, only: Path | None = None) -> Checkpoint:
    """A directory with config.json; `only` picks one of its safetensors files, which may be none."""
    config = _read_json(directory / CONFIG)
    files = tuple(_files(directory, only))
    table: dict[str, _Tensor] = {}
    for file, shown in files:
        table.update(_tensors(file, shown))
    store = SafetensorStore(table) if files else None
    match config.get("architectures"):
        case [str() as class_name, *_]:
            return Checkpoint(directory, "huggingface", class_name, config, store)
        case None:
            return Checkpoint(directory, "huggingface", "", config, store)
    reason = "`architectures` in its config.json is no list of names"
    raise NotACheckpoint(path=str(directory), reason=reason)


def _files(directory: Path, only: Path | None) -> Iterator[tuple[Path, tuple[str, ...] | None]]:
    """Each safetensors file, with the tensors an index promises in it (none: no index)."""
    if only is not None or (directory / WEIGHTS).is_file():
        yield only or directory / WEIGHTS, None
        return
    index = directory / INDEX
    if not index.is_file():
        return
    shards: dict[str, list[str]] = {}
    for tensor, shard in _weight_map(index).items():
        shards.setdefault(shard, []).append(tensor)
    for shard, promised in shards.items():
        yield _shard(index, shard), tuple(promised)


def _weight_map(index: Path) -> dict[str, str]:
    found = _read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(f, str) for f in found.values()):
        raise DamagedCheckpoint(path=str(index), reason="it has no weight_map of file names")
    return found


def _shard(index: Path, shard: str) -> Path:
    if Path(shard).name != shard or "\\" in shard or shard in ("", ".", ".."):
        raise UnsafeShard(path=str(index), shard=shard)
    path = index.parent / shard
    if not path.is_file():
        raise MissingShard(path=str(index), shard=shard)
    return path


def _tensors(path: Path, promised: tuple[str, ...] | None) -> dict[str, _Tensor]:
    file = map_file(path)
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # checks the header: sizes, no gaps, no overlap, nothing beyond the end
    except safetensors.SafetensorError as problem:
        raise DamagedCheckpoint(path=str(path), reason=str(problem)) from None
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    header.pop("__metadata__", None)
    for name in promised or ():
        if name not in header:
            raise DamagedCheckpoint(path=str(path), reason=f"the index promises `{name}` in it")
    for name, info in header.items():
        if not is_array(info["shape"]):
            reason = f"tensor `{name}` has sizes that no array has"
            raise DamagedCheckpoint(path=str(path), reason=reason)
    return {name: _tensor(file, start, info) for name, info in header.items()}


def _tensor(file: mmap.mmap, start: int, info: dict[str, Any]) -> _Tensor:
    first, end = (start + offset for offset in info["data_offsets"])
    return _Tensor(file, info["dtype"], tuple(info["shape"]), first, end)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotACheckpoint(path=str(path.parent), reason=f"it has no {path.name}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise unreadable(path, problem) from None
    except (ValueError, RecursionError) as problem:
        raise DamagedCheckpoint(path=str(path), reason=f"no JSON: {problem}") from None
    if not isinstance(found, dict):
        raise DamagedCheckpoint(path=str(path), reason="it holds no JSON object")
    return found
