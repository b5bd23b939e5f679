"""Opening checkpoints: a Hugging Face directory or a GGUF file, and the block that reads it.

Whatever is wrong with the files is an `ArchError` that names the file. Pickles are refused unread.
"""

from __future__ import annotations

from pathlib import Path

from ...dsl import syntax as syn
from ...dsl.errors import NoCheckpointBlock, NotACheckpoint, PickledCheckpoint, UnnamedClass
from . import gguf_file, huggingface
from .reader import PICKLES, Checkpoint, refuse_pickles


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a directory, a `.gguf` file, or a `.safetensors` file next to its config.json.

    Raises an `ArchError` of the catalogue's section on checkpoints.
    """
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
    if (path / huggingface.CONFIG).is_file():
        return huggingface.open_directory(path)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return gguf_file.open_file(ggufs[0])
    if ggufs:
        raise NotACheckpoint(path=str(path), reason=f"it holds {len(ggufs)} GGUF files; name one")
    refuse_pickles(path)
    raise NotACheckpoint(path=str(path), reason="it has no config.json")


def checkpoint_block(file: syn.File, name: str, checkpoint: Checkpoint) -> syn.CheckpointDef:
    """The block of `file` (called `name` in errors) that reads `checkpoint`.

    A checkpoint that names no class is read by the file's only block of its format.
    """
    blocks = [item for item in file.items if isinstance(item, syn.CheckpointDef)]
    same = [block for block in blocks if block.format == checkpoint.format]
    known = tuple(name for block in same for name in block.class_names)
    if not checkpoint.class_name and same:
        if len(same) > 1:
            raise UnnamedClass(path=str(checkpoint.path), file=name, known=known)
        return same[0]
    for block in same:
        if checkpoint.class_name in block.class_names:
            return block
    raise NoCheckpointBlock(
        file=name,
        format=checkpoint.format,
        class_name=checkpoint.class_name or "NAME",
        known=known,
    )
