"""Writing files and directories so that they appear complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..dsl.errors import Unwritable


def reason_of(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def write_file(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename. Raises `Unwritable`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise Unwritable(path=str(path), reason=reason_of(error)) from None


def write_directory(directory: Path, files: Mapping[str, str | bytes]) -> None:
    """Put `files` (by path relative to `directory`) there. What else the directory holds stays.

    They are first written to a directory of their own next to it. Raises `Unwritable`.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            for name, content in files.items():
                _write(made / name, content)
            _move(made, directory, files)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise Unwritable(path=str(directory), reason=reason_of(error)) from None


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _move(made: Path, directory: Path, files: Mapping[str, str | bytes]) -> None:
    """One rename for a new directory, a rename per file for one that is there."""
    made.chmod(0o777 & ~_umask())  # mkdtemp makes it private
    if not directory.exists():
        made.rename(directory)
        return
    for name in files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).replace(directory / name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
