"""Writing files and directories so that they appear complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .dsl.errors import Unwritable


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


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A directory to fill; afterwards its files are at `directory`. What else is there stays.

    Nothing appears when the body raises. Raises `Unwritable`.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            yield made
            _move(made, directory)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise Unwritable(path=str(directory), reason=reason_of(error)) from None


def _move(made: Path, directory: Path) -> None:
    """One rename for a new directory, a rename per file for one that is there."""
    made.chmod(0o777 & ~_umask())  # mkdtemp makes it private
    if not directory.exists():
        made.rename(directory)
        return
    for path in files_in(made):
        target = directory / path.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def files_in(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
