"""What is written is complete or not there, however many writers are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from archc.compiler.files import new_directory, write_file
from archc.dsl.errors import Unwritable

KILLS = 200
NAMES = ("model.py", "kernels/a.ptx", "kernels/b.ptx", "report.json")
LENGTH = 20_000


def write_folder(place: Path, number: int) -> None:
    with new_directory(place) as folder:
        for name in NAMES:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(f"{number} " * LENGTH)


def write_one(place: Path, number: int) -> None:
    write_file(place, f"{number} ".encode() * LENGTH)


def killed_after(
    seconds: float, write: Callable[[Path, int], None], place: Path, at: int, *, once: bool
) -> None:
    """A process that writes again and again until it is killed; with `once` after it has written."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            while True:
                at += 1
                write(place, at)
                os.write(tell, b".")
        finally:
            os._exit(1)
    if once:
        os.read(told, 1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(told)
    os.close(tell)
    assert os.WIFSIGNALED(status)


def number_in(path: Path) -> int:
    """The number that a whole file consists of."""
    words = path.read_text().split(" ")[:-1]
    assert len(words) == LENGTH
    (number,) = set(words)
    return int(number)


def kill_writers_of_a_folder(tmp_path: Path) -> None:
    noise, place = random.Random(5), tmp_path / "out"
    seen = set()
    for k in range(KILLS):
        killed_after(noise.uniform(0, 0.006), write_folder, place, 1000 * k, once=k % 2 == 0)
        if place.exists():
            (number,) = {number_in(place / name) for name in NAMES}
            seen.add(number)
            (place / "notes.txt").write_text("mine")
            assert {str(p.relative_to(place)) for p in place.rglob("*.*")} == {*NAMES, "notes.txt"}
    assert len(seen) >= KILLS // 2
    write_folder(place, 1)
    assert (place / "notes.txt").read_text() == "mine"  # what else is there stays
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # what the killed left is gone


def kill_writers_of_a_file(tmp_path: Path) -> None:
    noise, place = random.Random(6), tmp_path / "out.arch"
    for k in range(KILLS // 4):
        killed_after(noise.uniform(0, 0.002), write_one, place, 1000 * k, once=k % 2 == 0)
        assert not place.exists() or number_in(place) >= 0


@pytest.mark.parametrize("loop", [kill_writers_of_a_folder, kill_writers_of_a_file])
def test_what_is_there_is_whole_whenever_its_writer_is_killed(
    loop: Callable[[Path], None], tmp_path: Path
) -> None:
    """In a process of its own: a small one forks at once."""
    command = [sys.executable, __file__, loop.__name__, str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def test_two_writers_at_once_leave_the_folder_of_one(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with new_directory(place) as first:
        (first / "a").write_text("first")
        (first / "b").write_text("first")
        with new_directory(place) as second:  # is not taken for one that was killed
            (second / "a").write_text("second")
            (second / "b").write_text("second")
    assert {p.name: p.read_text() for p in place.iterdir()} == {"a": "first", "b": "first"}


def test_a_folder_for_one_writer_only_is_refused_to_the_second(tmp_path: Path) -> None:
    place = tmp_path / "out"
    slow = new_directory(place, only=True)
    (slow.__enter__() / "a").write_text("first")
    with new_directory(place, only=True) as second:
        (second / "a").write_text("second")
    with pytest.raises(Unwritable):
        slow.__exit__(None, None, None)
    assert {p.name: p.read_text() for p in place.iterdir()} == {"a": "second"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_current_folder_is_filled_and_stays_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = os.stat(".").st_ino
    write_folder(Path(), 7)
    assert {number_in(Path(name)) for name in NAMES} == {7}
    assert os.stat(".").st_ino == os.stat(tmp_path).st_ino == before


def test_nothing_appears_where_the_writer_fails(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), new_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("half")
        raise ZeroDivisionError
    with pytest.raises(Unwritable):
        write_file(tmp_path / "none" / "file", b"")
    assert not any(tmp_path.iterdir())


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
