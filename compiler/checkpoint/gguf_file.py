"""GGUF files: metadata as a config, block-quantised tensors unpacked when read.

The header is read here, in one pass over the mapped file (the `gguf` package makes several objects
of every token: 160 MB for a vocabulary of 49152); the block formats are the package's.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ...dsl.errors import DamagedCheckpoint, MissingPackage, NotACheckpoint, TensorDtype
from .arrangement import Array, Shape
from .reader import Checkpoint, TensorStore, is_array, map_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
UNPACKED_AT_ONCE = 1 << 18  # elements whose intermediate values stay in a processor's cache
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_MOST_DIMS = 8


class _Bad(Exception):
    """The header cannot be what the format says."""


@dataclass(slots=True)
class _Cursor:
    """A position in the mapped header."""

    data: mmap.mmap
    at: int = 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise _Bad("it ends within its header")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise _Bad("a string of its header is no UTF-8") from None

    def strings(self, count: int) -> list[str]:
        """A vocabulary and its merges are a hundred thousand of them: read without a call for each."""
        data, at, length, found = self.data, self.at, struct.Struct("<Q").unpack_from, []
        try:
            for _ in range(count):
                start = at + 8
                at = start + length(data, at)[0]
                found.append(data[start:at].decode("utf-8"))
        except (struct.error, OverflowError):
            raise _Bad("it ends within its header") from None
        except UnicodeDecodeError:
            raise _Bad("a string of its header is no UTF-8") from None
        self.at = at
        self.take(0)  # the last one must end in the file, too
        return found

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(self.number("I"), self.number("Q"))
        if kind not in _SCALARS:
            raise _Bad(f"its header has a value of unknown kind {kind}")
        number = self.number(_SCALARS[kind])
        return _shortest(number) if kind == _FLOAT32 else number

    def array(self, kind: int, count: int) -> list[Any]:
        if kind == _ARRAY:
            raise _Bad("its header has an array of arrays")
        if kind == _STRING:
            return self.strings(count)
        if kind not in _SCALARS:
            return [self.value(kind) for _ in range(count)]
        code = _SCALARS[kind]
        raw = self.take(count * struct.calcsize(f"<{code}"))
        numbers = list(struct.unpack(f"<{count}{code}", raw))
        return list(map(_shortest, numbers)) if kind == _FLOAT32 else numbers


@dataclass(frozen=True, slots=True)
class _Tensor:
    kind: int
    shape: Shape
    offset: int
    end: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class GgufStore(TensorStore):
    """Tensors of one GGUF file. Floats are views of it, block formats become float32."""

    file: mmap.mmap
    table: dict[str, _Tensor]

    @property
    def names(self) -> Collection[str]:
        return self.table.keys()

    def shape(self, name: str) -> Shape:
        return self.table[name].shape

    def read(self, name: str) -> Array:
        import gguf

        tensor = self.table[name]
        kind = gguf.GGMLQuantizationType(tensor.kind)
        plain = {"F64": np.float64, "F32": np.float32, "F16": np.float16}.get(kind.name)
        count = int(np.prod(tensor.shape, dtype=np.int64))
        if plain is not None:
            return np.frombuffer(self.file, plain, count, tensor.offset).reshape(tensor.shape)
        try:
            return self._unpack(kind, tensor, count)
        except NotImplementedError:
            raise TensorDtype(tensor=name, dtype=kind.name) from None

    def _unpack(self, kind: Any, tensor: _Tensor, count: int) -> Array:
        from gguf import GGML_QUANT_SIZES, dequantize

        elements, size = GGML_QUANT_SIZES[kind]
        packed = np.frombuffer(self.file, np.uint8, count // elements * size, tensor.offset)
        result = np.empty(count, np.float32)

        def unpack(start: int) -> None:
            stop = min(start + UNPACKED_AT_ONCE, count)
            blocks = packed[start // elements * size : stop // elements * size]
            result[start:stop] = dequantize(blocks[None], kind)[0]

        starts = range(0, count, UNPACKED_AT_ONCE)
        if len(starts) > 1:
            with ThreadPoolExecutor(os.cpu_count()) as threads:  # NumPy lets others run
                list(threads.map(unpack, starts))
        elif count:  # not worth a thread
            unpack(0)
        _release(self.file, tensor.offset, packed.nbytes)
        return result.reshape(tensor.shape)


def _release(file: mmap.mmap, offset: int, size: int) -> None:
    """Let the system drop mapped pages that were unpacked: they are not needed a second time."""
    start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (offset + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED, start, end - start)


def open_file(path: Path) -> Checkpoint:
    """Open a GGUF file. Its config is the metadata of its architecture, as nested fields."""
    if find_spec("gguf") is None:
        raise MissingPackage(package="gguf", purpose="reading GGUF files", extra="checkpoints")
    data = map_file(path)
    if data[:4] != MAGIC:
        raise NotACheckpoint(path=str(path), reason="it does not start as a GGUF file")
    try:
        metadata, table = _header(_Cursor(data, len(MAGIC)))
    except _Bad as problem:
        raise DamagedCheckpoint(path=str(path), reason=str(problem)) from None
    name = str(metadata.get("general.architecture", ""))
    prefix = f"{name}."
    fields = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    rest = {k: v for k, v in metadata.items() if not k.startswith(prefix)}
    return Checkpoint(path, "gguf", name, _nested(fields), GgufStore(data, table), rest)


def _header(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    version = cursor.number("I")
    if version not in VERSIONS:
        raise _Bad(f"version {version} is none of {', '.join(map(str, VERSIONS))}")
    tensors, fields = cursor.number("Q"), cursor.number("Q")
    metadata = {}
    for _ in range(fields):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.number("I"))
    table = dict(_tensor(cursor) for _ in range(tensors))
    if len(table) != tensors:
        raise _Bad("two tensors have one name")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Bad(f"its alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    placed = {name: _placed(name, t, start, cursor) for name, t in table.items()}
    return metadata, _no_overlap(placed)


def _tensor(cursor: _Cursor) -> tuple[str, _Tensor]:
    name, dims = cursor.string(), cursor.number("I")
    if dims > _MOST_DIMS:
        raise _Bad(f"tensor `{name}` has {dims} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dims))
    kind = cursor.number("I")
    return name, _Tensor(kind, shape[::-1], cursor.number("Q"))  # the file names the fastest first


def _placed(name: str, tensor: _Tensor, start: int, cursor: _Cursor) -> _Tensor:
    """`tensor` with its offset in the file. Its bytes must be there, in whole blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if tensor.kind not in [kind.value for kind in GGMLQuantizationType]:
        raise _Bad(f"tensor `{name}` has the unknown format {tensor.kind}")
    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
    count = int(np.prod(tensor.shape, dtype=object))
    if count % elements:
        raise _Bad(f"tensor `{name}` is no whole number of blocks")
    if not is_array(tensor.shape):
        raise _Bad(f"tensor `{name}` has sizes that no array has")
    first = start + tensor.offset
    end = first + count // elements * size
    if end > len(cursor.data):
        raise _Bad(f"it ends within tensor `{name}`")
    return _Tensor(tensor.kind, tensor.shape, first, end)


def _no_overlap(table: dict[str, _Tensor]) -> dict[str, _Tensor]:
    reached = 0
    for name, tensor in sorted(table.items(), key=lambda item: item[1].offset):
        if tensor.end > tensor.offset < reached:
            raise _Bad(f"tensor `{name}` overlaps another")
        reached = max(reached, tensor.end)
    return table


def _shortest(number: float) -> float:
    """The shortest decimal that is this float32: 1e-05, where widening shows 9.999999747e-06."""
    return float(str(np.float32(number)))


def _nested(fields: dict[str, Any]) -> dict[str, Any]:
    """`a.b` = 1 becomes a: {b: 1}. A field that is also a group keeps its dotted name."""
    config: dict[str, Any] = {}
    for key, value in fields.items():
        *groups, last = key.split(".")
        place: Any = config
        for group in groups:
            place = place.setdefault(group, {}) if isinstance(place, dict) else None
        if isinstance(place, dict) and last not in place:
            place[last] = value
        else:
            config[key] = value
    return config
