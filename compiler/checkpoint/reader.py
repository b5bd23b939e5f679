"""What every kind of checkpoint is: a config, and tensors that stay in a mapped file until read.

Pages that were read count as memory of the process as long as the file is mapped. Who has copied an
array lets go of them.
"""

from __future__ import annotations

import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...dsl.errors import DamagedCheckpoint, NotACheckpoint, PickledCheckpoint
from .arrangement import Array, Shape

LFS_POINTER = b"version https://git-lfs.github.com/"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class TensorStore(ABC):
    """The tensors of a checkpoint, by name."""

    @property
    @abstractmethod
    def names(self) -> Collection[str]: ...

    @abstractmethod
    def shape(self, name: str) -> Shape: ...

    @abstractmethod
    def read(self, name: str) -> Array:
        """The tensor: a read-only view of the file, or a new array where the file packs it."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """An opened checkpoint. `class_name` is `architectures[0]`, for GGUF `general.architecture`.

    It is empty where a config.json has no `architectures`, as other packages than `transformers` write it.
    `tensors` is none where there is only a config, which is enough to count and to import.
    `metadata` is what a GGUF file says outside its architecture (tokenizer, name), else empty.
    """

    path: Path
    format: str
    class_name: str
    config: dict[str, Any]
    tensors: TensorStore | None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensor_names(self) -> Collection[str] | None:
        return None if self.tensors is None else self.tensors.names

    def weights_file(self) -> TensorStore:
        """The tensors. Raises an `ArchError` where there is only a config, or only pickles."""
        if self.tensors is not None:
            return self.tensors
        refuse_pickles(self.path)
        raise NotACheckpoint(path=str(self.path), reason="it has a config.json but no weights")


def refuse_pickles(directory: Path) -> None:
    """Raise when the only weights in `directory` are pickled ones."""
    pickles = sorted(p for p in directory.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise PickledCheckpoint(path=str(pickles[0]))


def map_file(path: Path) -> mmap.mmap:
    """The file's bytes, mapped read-only."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise DamagedCheckpoint(path=str(path), reason="it is empty") from None
    except OSError as problem:
        raise unreadable(path, problem) from None
    if data[: len(LFS_POINTER)] == LFS_POINTER:
        reason = "it is a Git LFS pointer, which `git lfs pull` replaces by the file"
        raise NotACheckpoint(path=str(path), reason=reason)
    return data


def is_array(shape: Shape) -> bool:
    """Whether arrays may have the shape: one of no elements may still have sizes beyond any other's."""
    return math.prod(size or 1 for size in shape) < 1 << 59


def is_mapped(array: Array) -> bool:
    """Whether the array is a view of a file that `map_file` mapped."""
    return _file_of(array) is not None


def let_go(array: Array) -> None:
    """Gives back the memory of a file's pages that the array shows; they are read again when needed.

    Arrays that are no views of a mapped file stay as they are.
    """
    file = _file_of(array)
    if file is None or not array.size or not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin = int(np.frombuffer(file, np.uint8).ctypes.data)
    low, high = np.lib.array_utils.byte_bounds(array)
    first = (low - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    file.madvise(mmap.MADV_DONTNEED, first, high - begin - first)


def _file_of(array: Array) -> mmap.mmap | None:
    """What could be written to is not a file's: its pages would be lost."""
    root: Any = array
    while isinstance(root, np.ndarray):
        root = root.base
    if isinstance(root, memoryview) and root.readonly:
        root = root.obj
        return root if isinstance(root, mmap.mmap) else None
    return None


def unreadable(path: Path, problem: OSError) -> NotACheckpoint:
    return NotACheckpoint(path=str(path), reason=(problem.strerror or str(problem)).lower())
