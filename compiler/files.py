"""Writing files and directories so that they appear complete or not at all, whoever is killed when.

Everything is made beside its place and then renamed. A directory that is there is exchanged as a
whole. The lock of the folder around it is held for moments only: to begin, and to put in place.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from ..dsl.errors import Unwritable

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)


def reason_of(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A path to write to; afterwards what was written is at `path`. Raises `Unwritable`."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise Unwritable(path=str(path), reason=reason_of(error)) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename. Raises `Unwritable`."""
    with beside(path) as part:
        part.write_bytes(content)


@contextmanager
def new_directory(directory: Path, *, only: bool = False) -> Iterator[Path]:
    """A directory to fill; afterwards its files are at `directory`. What else is there stays.

    With `only` nothing else may be there. Nothing appears when the body raises or is killed, and
    what a killed one left is removed by the next. Raises `Unwritable`.
    """
    place = Path(os.path.abspath(directory))
    try:
        if os.path.lexists(place):
            place.mkdir(exist_ok=True)  # refuses what is no directory
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place.parent):
            _sweep(place)
            made = Path(tempfile.mkdtemp(prefix=_prefix(place), dir=place.parent))
            held = os.open(made, os.O_RDONLY)
            flock(held, LOCK_EX)  # says that its process lives
        try:
            yield made
            with _locked(place.parent):
                if only:
                    require_empty(directory)
                _place(made, place)
        finally:
            os.close(held)
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise Unwritable(path=str(directory), reason=reason_of(error)) from None


def files_in(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file())


def _prefix(directory: Path) -> str:
    return f".{directory.name}.part-"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for other processes that begin or end writing in `folder`."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        flock(opened, LOCK_EX)
        yield
    finally:
        os.close(opened)


def _sweep(directory: Path) -> None:
    """Remove what killed processes were filling for `directory`."""
    for left in directory.parent.glob(f"{_prefix(directory)}*"):
        opened = os.open(left, os.O_RDONLY)
        try:
            flock(opened, LOCK_EX | LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            continue  # its process lives
        finally:
            os.close(opened)


def require_empty(directory: Path) -> None:
    """Raises `Unwritable` where something is at `directory`, unless it is a folder without files."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise Unwritable(path=str(directory), reason="it exists and is not an empty directory")


def _place(made: Path, directory: Path) -> None:
    """One rename. A folder that processes stand in, such as the current one, is filled instead."""
    made.chmod(0o777 & ~_umask())  # mkdtemp makes it private
    if not directory.exists():
        made.rename(directory)
    elif Path.cwd().is_relative_to(directory) or not _swapped(made, directory):
        for path in files_in(made):
            target = directory / path.relative_to(made)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)


def _swapped(made: Path, directory: Path) -> bool:
    """Exchanges the two, after `made` has what else was in `directory`; false where that cannot be."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None)
    if exchange is None or directory.is_symlink() or os.path.ismount(directory):
        return False
    try:
        for path in sorted(directory.rglob("*")):
            kept = made / path.relative_to(directory)
            if path.is_dir() and not path.is_symlink():
                kept.mkdir(exist_ok=True)
            elif not os.path.lexists(kept):
                os.link(path, kept, follow_symlinks=False)
    except OSError:  # a file system without hard links, or a file where a folder is to be
        return False
    shutil.copymode(directory, made)
    return exchange(_HERE, os.fsencode(made), _HERE, os.fsencode(directory), _EXCHANGE) == 0  # type: ignore[no-any-return]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
