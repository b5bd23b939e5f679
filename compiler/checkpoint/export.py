"""Writing a Hugging Face directory: the tensor lines evaluated forwards, one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...dsl import syntax as syn
from ...dsl.errors import NotExportable
from ..ir.graph import Program
from .arrangement import Array, claims
from .huggingface import CONFIG, DTYPES, WEIGHTS
from .lines import Entry, expand
from .reader import Checkpoint

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save(
    program: Program,
    weights: Mapping[str, Array],
    checkpoint: syn.CheckpointDef,
    directory: str | Path,
    config: Mapping[str, Any],
    like: Checkpoint | None = None,
) -> None:
    """Write `weights` as the tensors and dtypes that `checkpoint`'s lines name, and `config`.

    `like` is the checkpoint the weights came from: its optional prefix and aliases are kept as
    found. Without it prefixes are written and aliases are not. `config_of` gives a config.
    """
    if checkpoint.format != "huggingface":
        raise NotExportable(format=checkpoint.format)
    names = None if like is None else like.tensors.names
    live = tuple(expand(checkpoint, program, names).live())
    entries = [e for e in live if not e.line.alias or (names is not None and e.name in names)]
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (directory / CONFIG).write_text(text, encoding="utf-8")
    with (directory / WEIGHTS).open("wb") as file:
        _write(file, entries, weights)


def _write(file: BinaryIO, entries: list[Entry], weights: Mapping[str, Array]) -> None:
    """The safetensors layout: length of the header, JSON header, tensors without gaps."""
    dtypes = {path: weights[path].dtype for path in weights}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        assert entry.tree is not None
        dtype = np.result_type(*(dtypes[claim.path] for claim in claims(entry.tree)))
        end = offset + math.prod(entry.tree.shape) * dtype.itemsize
        shape = list(entry.tree.shape)
        facts = {"dtype": _DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        header[entry.name], offset = facts, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)
    for entry in entries:
        assert entry.tree is not None
        dtype = DTYPES[header[entry.name]["dtype"]]
        file.write(np.ascontiguousarray(entry.tree.build(weights.__getitem__), dtype).tobytes())
