"""Golden files: named sections of text, inputs and expected outputs in one reviewable file.

-- source
model M { .. }
-- error
error[..]: ..

Sections may describe files (`lay_out`): `-- file NAME` is its text, `-- tensors NAME` and
`-- gguf NAME` are binary. Their lines are `name dtype sizes..`, in GGUF also `key = JSON`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

_HEADER = re.compile(r"^-- (.+)\n", re.MULTILINE)


def read(path: Path) -> dict[str, str]:
    """The sections of a file by name, in order. Each ends with a newline, or is empty."""
    before, *rest = _HEADER.split(path.read_text(encoding="utf-8"))
    names, texts = rest[::2], rest[1::2]
    if before or len(set(names)) < len(names):
        raise ValueError(f"{path.name}: text before the first section, or a name twice")
    return dict(zip(names, texts, strict=True))


def compare(path: Path, sections: dict[str, str], name: str, text: str, *, accept: bool) -> None:
    """Assert that section `name` is `text`, or make it so."""
    text = f"{text}\n" if text and not text.endswith("\n") else text
    if accept:
        updated = sections | {name: text}
        path.write_text("".join(f"-- {n}\n{t}" for n, t in updated.items()), encoding="utf-8")
    else:
        assert sections.get(name) == text, f"{path.name}: `pytest --accept` would change it"


def lay_out(sections: dict[str, str], directory: Path) -> None:
    """Write the files that `sections` describe below `directory`."""
    for section, text in sections.items():
        kind, _, name = section.partition(" ")
        if kind in FILES:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            FILES[kind](path, text)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_tensors(path: Path, text: str) -> None:
    from safetensors.numpy import save_file

    save_file(dict(_tensors(text.splitlines())), path)


def _write_gguf(path: Path, text: str) -> None:
    import gguf

    pairs = [line.partition(" = ") for line in text.splitlines()]
    metadata = {key: json.loads(value) for key, equals, value in pairs if equals}
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture"))
    for key, value in metadata.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name, array in _tensors(line for line, equals, _ in pairs if not equals):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(lines: Iterable[str]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Arrays by name. Their elements count on from one to the next, so that no two are equal."""
    numbers = count()
    for line in lines:
        name, dtype, *sizes = line.split()
        shape = tuple(map(int, sizes))
        yield name, np.fromiter(islice(numbers, int(np.prod(shape))), dtype).reshape(shape)


FILES: dict[str, Callable[[Path, str], None]] = {
    "file": _write_text,
    "tensors": _write_tensors,
    "gguf": _write_gguf,
}
