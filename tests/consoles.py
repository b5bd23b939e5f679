"""Pages that are walked through: their files written, their commands run, their outputs compared.

`arch NAME` and `python NAME` blocks are files; `diff FROM TO` makes a file of another; a `console`
block holds commands and what they print, where `...` stands for anything.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from click.testing import CliRunner
from snippets import Fence, rewrite

from archc.cli import main


def patched(text: str, diff: str) -> str:
    """`text` with the lines of a diff, whose context must be found once."""
    lines = diff.rstrip("\n").split("\n")
    before, after = (
        "".join(f"{line[1:]}\n" for line in lines if line[0] in kept) for kept in (" -", " +")
    )
    assert text.count(before) == 1, before
    return text.replace(before, after)


def printed(command: str, folder: Path) -> str:
    """What a command of a page prints, in a folder."""
    program, *arguments = shlex.split(command)
    with contextlib.chdir(folder):
        if program == "archc":
            return CliRunner().invoke(main, arguments).output
        if program != "python":
            found = subprocess.run([program, *arguments], capture_output=True, text=True)
            return found.stdout + found.stderr
        out = io.StringIO()
        with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(out):
            runpy.run_path(arguments[0], run_name="__main__")
    return out.getvalue()


def commands(fence: Fence) -> Iterator[tuple[str, str]]:
    """The commands of a console, each with the output it shows."""
    for part in re.split(r"^\$ ", fence.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def walk(page: Sequence[Fence], folder: Path) -> dict[int, list[str]]:
    """Does what a page says, in a folder: what each command of each console printed, by its number.

    A model may be shown whole after it was used.
    """
    results = {}
    for model in (fence for fence in page if fence.kind == "arch" and is_file(fence)):
        (folder / model.words[0]).write_text(model.text)
    for fence in page:
        if fence.kind == "console":
            results[fence.number] = [printed(command, folder) for command, _ in commands(fence)]
        elif fence.kind == "diff":
            source, target = fence.words
            (folder / target).write_text(patched((folder / source).read_text(), fence.text))
        elif fence.kind == "python" and is_file(fence):
            (folder / fence.words[0]).write_text(fence.text)
    return results


def is_file(fence: Fence) -> bool:
    return bool(fence.words) and "." in fence.words[0]


def pattern(shown: str) -> re.Pattern[str]:
    return re.compile(re.escape(shown.strip()).replace(r"\.\.\.", ".*"), re.DOTALL)


def check(console: Fence, got: Sequence[str], accept: bool = False) -> None:
    """Asserts that a console shows what was printed; with `accept` it is made to, where it has no `...`."""
    pairs = list(zip(commands(console), got, strict=True))
    if accept and "..." not in console.text:
        text = "".join(f"$ {command}\n{output.strip()}\n" for (command, _), output in pairs)
        rewrite(console, text.replace("\n\n$", "\n$"))
        return
    for (_, shown), output in pairs:
        assert pattern(shown).fullmatch(output.strip()), output
