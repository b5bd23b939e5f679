"""Opening checkpoints: a config, and tensors that stay in the mapped file until they are read.

`open_checkpoint` takes a Hugging Face directory or a GGUF file. Whatever is wrong with the files is
an `ArchError` that names the file. Pickles are refused unread.
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...dsl import syntax as syn
from ...dsl.errors import DamagedCheckpoint, NoCheckpointBlock, NotACheckpoint, PickledCheckpoint
from .arrangement import Array, Shape

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

    `metadata` is what a GGUF file says outside its architecture (tokenizer, name), else empty.
    """

    path: Path
    format: str
    class_name: str
    config: dict[str, Any]
    tensors: TensorStore
    metadata: Mapping[str, Any] = field(default_factory=dict)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a directory, a `.gguf` file, or a `.safetensors` file next to its config.json.

    Raises an `ArchError` of the catalogue's section on checkpoints.
    """
    from . import gguf_file, huggingface  # both import this module

    path = Path(path)
    if path.suffix in PICKLES:
        raise PickledCheckpoint(path=str(path))
    if path.suffix == ".gguf" and path.is_file():
        return gguf_file.open_file(path)
    if path.suffix == ".safetensors" and path.is_file():
        return huggingface.open_directory(path.parent, only=path)
    if not path.is_dir():
        reason = "no such file or directory" if not path.exists() else "unknown kind of file"
        raise NotACheckpoint(path=str(path), reason=reason)
    return _open_directory(path)


def _open_directory(path: Path) -> Checkpoint:
    from . import gguf_file, huggingface

    if (path / huggingface.CONFIG).is_file():
        return huggingface.open_directory(path)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return gguf_file.open_file(ggufs[0])
    if ggufs:
        raise NotACheckpoint(path=str(path), reason=f"it holds {len(ggufs)} GGUF files; name one")
    refuse_pickles(path)
    raise NotACheckpoint(path=str(path), reason="it has no config.json")


def refuse_pickles(directory: Path) -> None:
    """Raise when the only weights in `directory` are pickled ones."""
    pickles = sorted(p for p in directory.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise PickledCheckpoint(path=str(pickles[0]))


def checkpoint_block(file: syn.File, name: str, checkpoint: Checkpoint) -> syn.CheckpointDef:
    """The block of `file` (called `name` in errors) that reads `checkpoint`."""
    blocks = [item for item in file.items if isinstance(item, syn.CheckpointDef)]
    same = [block for block in blocks if block.format == checkpoint.format]
    for block in same:
        if block.class_name == checkpoint.class_name:
            return block
    raise NoCheckpointBlock(
        file=name,
        format=checkpoint.format,
        class_name=checkpoint.class_name,
        known=tuple(block.class_name for block in same),
    )


def map_file(path: Path) -> mmap.mmap:
    """The file's bytes, mapped read-only."""
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise DamagedCheckpoint(path=str(path), reason="it is empty") from None
