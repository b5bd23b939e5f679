"""What a person sees for every error of the catalogue: `errors/<id>[.variant].golden`.

A golden holds `-- source`, a file `model.arch` that is checked, or `-- command`, a command line of
archc that is run among the files of its `-- file NAME` sections; and `-- error`, the exact screen.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import goldens
import pytest
from click.testing import CliRunner

from archc.cli import main
from archc.compiler.elaborate import elaborate, module_of, the_model
from archc.dsl import Source, parse
from archc.dsl.diagnostics import CATALOGUE, ArchError, Diagnostics, render

GOLDENS = sorted(Path(__file__).with_name("errors").glob("*.golden"))
MISTAKE, USAGE = 1, 2


def check(source: Source) -> None:
    module = module_of(parse(source))
    elaborate(module, the_model(module))


def screen_of(text: str) -> str:
    """The screen for a file with this text; empty when nothing is wrong with it."""
    try:
        check(Source("model.arch", text))
    except Diagnostics as found:
        return "\n\n".join(map(render, found.errors))
    except ArchError as error:
        return render(error)
    return ""


def screen_of_command(line: str, files: dict[str, str], directory: Path) -> str:
    """The screen of a command line of archc, run in `directory` among `files`."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
    program, *arguments = shlex.split(line)
    assert program == "archc"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (MISTAKE, USAGE), result.output
    return result.output


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_screen(path: Path, accept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = goldens.read(path)
    if "command" in sections:
        monkeypatch.chdir(tmp_path)
        prefix = "file "
        files = {n.removeprefix(prefix): t for n, t in sections.items() if n.startswith(prefix)}
        screen = screen_of_command(sections["command"], files, tmp_path)
    else:
        screen = screen_of(sections["source"])
    goldens.compare(path, sections, "error", screen, accept=accept)
    assert path.name.split(".")[0] in shown(screen)


def shown(screen: str) -> set[str]:
    return set(re.findall(r"^error\[([\w-]+)\]", screen, re.MULTILINE))


def test_every_error_has_a_golden() -> None:
    named = {path.name.split(".")[0] for path in GOLDENS}
    assert sorted(set(CATALOGUE) - named) == []


def test_every_golden_is_of_an_error() -> None:
    sections = {"source", "command", "error"}
    for path in GOLDENS:
        assert path.name.split(".")[0] in CATALOGUE
        extra = {n for n in goldens.read(path) if not n.startswith("file ")} - sections
        assert not extra, f"{path.name}: orphaned sections {extra}"
