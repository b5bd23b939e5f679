"""What a person sees for every error of the catalogue: `errors/<id>[.variant].golden`.

A golden holds `-- error`, the exact screen, and what leads to it: `-- source`, a file `model.arch`
that is checked; or `-- command`, a command line of archc; or, for what no command can do,
`-- python`. The latter two run among the files of `goldens.lay_out`, with the variables of
`-- environment` set and without the package of `-- without NAME`. `-- fixed` is the source once the
help was followed, which has no mistake.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from functools import partial
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


FIXED = [path for path in GOLDENS if "fixed" in goldens.read(path)]


def check(text: str) -> None:
    module = module_of(parse(Source("model.arch", text)))
    elaborate(module, the_model(module))


def screen_of(run: Callable[[str], object], text: str) -> str:
    """The screen for what is wrong with `text`; empty when nothing is."""
    try:
        run(text)
    except Diagnostics as found:
        return "\n\n".join(map(render, found.errors))
    except ArchError as error:
        return render(error)
    return ""


def screen_of_command(line: str) -> str:
    """The screen of a command line of archc."""
    program, *arguments = shlex.split(line)
    assert program == "archc"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (MISTAKE, USAGE), result.output
    return result.output


def execute(text: str) -> None:
    exec(compile(text, "session.py", "exec"), {})


WAYS: dict[str, Callable[[str], str]] = {
    "source": partial(screen_of, check),
    "command": screen_of_command,
    "python": partial(screen_of, execute),
}


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_screen(path: Path, accept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = goldens.read(path)
    goldens.lay_out(sections, tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in sections.get("environment", "").splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    for name in (n.removeprefix("without ") for n in sections if n.startswith("without ")):
        monkeypatch.setitem(sys.modules, name, None)
    (way,) = WAYS.keys() & sections.keys()
    screen = WAYS[way](sections[way])
    goldens.compare(path, sections, "error", screen, accept=accept)
    assert path.name.split(".")[0] in shown(screen)


def shown(screen: str) -> set[str]:
    return set(re.findall(r"^error\[([\w-]+)\]", screen, re.MULTILINE))


@pytest.mark.parametrize("path", FIXED, ids=lambda path: path.stem)
def test_what_the_help_says_mends_the_file(path: Path) -> None:
    sections = goldens.read(path)
    assert sections["fixed"] != sections["source"]
    module = module_of(parse(Source("model.arch", sections["fixed"])))
    for name in module.models:
        elaborate(module, the_model(module, name))


def test_most_mistakes_in_a_file_are_shown_mended() -> None:
    assert len({path.name.split(".")[0] for path in FIXED}) > 100


SNIPPET = re.compile(r"^ *\d+ \| (?P<line>.*)\n *\| (?P<under> *[-^]+)", re.MULTILINE)
ONE = re.compile(r"[A-Za-z0-9_]+|.")


def test_every_caret_stands_under_whole_words() -> None:
    """And every mistake of a source has one, unless it is of the file as a whole."""
    without = set()
    for path in GOLDENS:
        screen = goldens.read(path)["error"]
        found = list(SNIPPET.finditer(screen))
        without |= set() if found or "source" not in goldens.read(path) else {path.stem}
        for snippet in found:
            line, under = snippet["line"], snippet["under"]
            start, end = len(under) - len(under.lstrip()), min(len(under), len(line))
            edges = {0, *(m.end() for m in ONE.finditer(line))}
            told = f"{path.stem}: {line[start:end]!r}"
            assert not line[start:end] or line[start:end].strip(" ") == line[start:end], told
            assert start in edges or start == len(line), told
            assert end in edges or '"' in line, told
    assert sorted(without) == []


def test_every_error_has_a_golden() -> None:
    named = {path.name.split(".")[0] for path in GOLDENS}
    assert sorted(set(CATALOGUE) - named) == []


def test_every_golden_is_of_an_error() -> None:
    kinds = {*WAYS, *goldens.FILES, "environment", "without", "error", "fixed"}
    for path in GOLDENS:
        assert path.name.split(".")[0] in CATALOGUE
        extra = {name for name in goldens.read(path) if name.split(" ")[0] not in kinds}
        assert not extra, f"{path.name}: orphaned sections {extra}"
