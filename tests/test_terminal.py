"""What all commands share: `--json`, bars and colours on terminals only, shell completion."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import click
import consoles
import numpy as np
import pytest
from commands import SMALL, invoke
from safetensors.numpy import save_file
from snippets import fences

from archc.cli import COMMANDS, main
from archc.commands.progress import bar, steps

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "commands.md"
LLAMA = str(ROOT / "examples" / "llama.arch")
GPT2 = str(ROOT / "examples" / "gpt2.arch")
WRONG = SMALL.replace("x * w", "x * v")


def as_json(*args: object, code: int = 0) -> Any:
    """The one object that a command prints with --json."""
    result = invoke(*args, "--json")
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    assert set(found) <= documented(str(args[0])), "docs/commands.md has other keys"
    return found


def documented(command: str) -> set[str]:
    """The words in backquotes of a command's row of the page, and that of errors."""
    (row,) = re.findall(rf"^\| `{command}` \|(.*)$", PAGE.read_text(), re.MULTILINE)
    return {"errors", *re.findall(r"`([^`]+)`", row)}


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.arch"
    path.write_text(WRONG)
    return path


# ------------------------------------------------------------------------------------- --json


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "lsp"])
def test_every_report_has_json(name: str) -> None:
    command: click.Command = import_module(f"archc.commands.{COMMANDS[name]}").command
    (option,) = (p for p in command.params if "--json" in p.opts)
    assert option.name == "as_json"


def test_check_says_as_json_what_it_says_in_words(small: Path) -> None:
    shown = {"name": "model Small", "parameters": 4, "layers": 0, "kinds": 0, "presets": ["tiny"]}
    assert as_json("check", small) == {"file": str(small), "items": 2, "programs": [shown]}


def test_errors_are_the_object_too(wrong: Path) -> None:
    (error, *others) = as_json("check", wrong, code=1)["errors"]
    assert not others
    column = WRONG.split("\n")[4].rindex("v") + 1
    assert (error["line"], error["column"]) == (5, column)
    assert error["end"] == {"line": 5, "column": column + 1}
    assert error["file"] == str(wrong)
    assert error["labels"][0]["line"] == 5
    said = invoke("check", wrong, "--json").stderr
    assert f"error[{error['id']}]: {error['message']}" in said
    assert error["help"] in said
    assert all(note in said for note in error["notes"])


def test_an_error_without_a_place_has_nulls(tmp_path: Path) -> None:
    (error,) = as_json("cost", tmp_path / "missing.arch", code=1)["errors"]
    assert error["id"] == "source-unreadable"
    assert error["file"] is error["line"] is error["end"] is None
    assert error["labels"] == []


def test_without_json_errors_leave_standard_output_empty(wrong: Path) -> None:
    assert invoke("check", wrong).stdout == ""


def test_fmt_as_json(small: Path, tmp_path: Path) -> None:
    ugly = tmp_path / "ugly.arch"
    ugly.write_text(SMALL.replace(" = ", "="))
    files = {"changed": [str(ugly)], "unchanged": [str(small)]}
    assert as_json("fmt", "--check", ugly, small, code=1) == {"written": False, **files}
    assert as_json("fmt", ugly, small) == {"written": True, **files}
    assert ugly.read_text() == SMALL


def test_explain_as_json() -> None:
    sizes = ("--preset", "tiny", "--set", "b=1", "--set", "s=64")
    found = as_json("explain", LLAMA, *sizes)
    said = invoke("explain", LLAMA, *sizes).stdout
    fired = [site for site in found["sites"] if site["fired"]]
    assert len(fired) == sum(row["fired"] for row in found["passes"]) == said.count("\n  fired ")
    for row in found["passes"]:
        assert re.search(rf"^  {row['pass']} +{row['fired']} fired", said, re.MULTILINE)
    for row in found["canonical"]:
        assert f"{row['rule']} x{row['fired']}" in said
    assert f"{found['activations']['peak']['after']:,} bytes" in said


def test_bisect_as_json(small: Path) -> None:
    found = as_json("explain", small, "--bisect")
    assert (found["error"], found["site"]) == (None, None)
    assert f"{found['rewrites']} rewrites" in invoke("explain", small, "--bisect").stdout


def test_compile_as_json(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = as_json("compile", small, "--backend", "torch", "-o", out)
    (file,) = found["wrote"]
    assert file["path"] == str(out / "model.py")
    assert file["bytes"] == (out / "model.py").stat().st_size
    assert list(found["programs"]) == ["model"]
    assert {"canonicalize", "fuse-pointwise"} <= {
        row["pass"] for row in found["programs"]["model"]["passes"]
    }
    assert found["verified"] is False


def test_run_and_export_as_json(small: Path, tmp_path: Path) -> None:
    given, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"x": np.ones((3, 4), np.float32)}, given)
    made = as_json("run", small, "--random", "0", "--inputs", given, "--output", out)
    assert made == {"wrote": str(out), "outputs": {"y": {"shape": [3, 4], "dtype": "float32"}}}
    folder = tmp_path / "hf"
    made = as_json("export", GPT2, "--preset", "tiny", "--random", "0", "-o", folder)
    assert made["wrote"] == str(folder)
    assert sorted(made["files"]) == sorted(p.name for p in folder.iterdir())


def test_fuzz_prints_and_reduce_returns_json(wrong: Path) -> None:
    (program,) = as_json("fuzz", "--count", 1, "--seed", 3, "--print")["programs"]
    assert invoke("fuzz", "--count", 1, "--seed", 3, "--print").stdout == (
        f"# seed 3\n{program['text']}"
    )
    found = as_json("reduce", wrong, "--check", "grep -q weight")
    assert "weight" in found["program"]
    assert found["lines_after"] == len(found["program"].splitlines()) < found["lines_before"]


def test_json_has_no_word_for_infinity(monkeypatch: pytest.MonkeyPatch, small: Path) -> None:
    row = {"a": float("inf"), "b": [float("nan"), 1.5]}
    monkeypatch.setattr("archc.commands.check._row", lambda *_: row)
    assert as_json("check", small)["programs"] == [{"a": None, "b": [None, 1.5]}]


def test_the_page_shows_what_is_printed(tmp_path: Path) -> None:
    page = list(fences(PAGE))
    results = consoles.walk(page, tmp_path)
    for console in (fence for fence in page if fence.kind == "console"):
        consoles.check(console, results[console.number])


# ---------------------------------------------------------------------------------- terminals


DECIDING = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


class Screen:
    """What a terminal gets, read as it comes: one that nobody reads blocks its writer."""

    def __init__(self, ours: int) -> None:
        self.ours, self.text = ours, ""

    def read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(self.ours, 1 << 16):
                self.text += part.decode()


@contextlib.contextmanager
def terminal(**environment: str) -> Iterator[Screen]:
    """Standard error is a terminal within; afterwards the screen has all that was written."""
    ours, theirs = pty.openpty()
    screen = Screen(ours)
    reader = threading.Thread(target=screen.read)
    reader.start()
    with (
        os.fdopen(theirs, "w") as stream,
        mock.patch.object(sys, "stderr", stream),
        mock.patch.dict(os.environ),
    ):
        for name in DECIDING:
            os.environ.pop(name, None)
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "100"} | environment
        yield screen
    reader.join()
    os.close(ours)


def run(*args: object) -> None:
    with pytest.raises(SystemExit):
        main([str(a) for a in args], prog_name="archc")


def test_errors_are_coloured_on_a_terminal(wrong: Path) -> None:
    with terminal() as screen:
        run("check", wrong)
    assert "\033[1;31merror[" in screen.text


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_may_want_no_colour(wrong: Path, environment: dict[str, str]) -> None:
    with terminal(**environment) as screen:
        run("check", wrong)
    assert screen.text.startswith("error[")
    assert "\033" not in screen.text


def test_show_is_plain_where_it_goes_to_no_terminal() -> None:
    assert "\033" not in invoke("show", LLAMA, "--preset", "tiny").output


def test_bars_go_to_a_terminal_and_are_gone_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal() as screen:
        run("export", GPT2, "--preset", "tiny", "--random", "0", "-o", tmp_path / "hf", "--json")
    assert "loading weights" in screen.text
    assert "\033[2K" in screen.text.rpartition("loading weights")[2]  # the line is cleared
    json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("made", [bar, steps])
def test_a_bar_leaves_standard_output_alone(capsys: pytest.CaptureFixture[str], made: Any) -> None:
    with terminal() as screen, made("working"):
        click.echo("a find")
    assert "working" in screen.text
    assert "a find" not in screen.text
    assert capsys.readouterr().out == "a find\n"


def test_steps_are_named_on_a_terminal() -> None:
    with terminal() as screen, steps("comparing") as tell:
        tell("torch on padded inputs")
    assert "torch on padded inputs" in screen.text


def test_there_is_no_bar_where_no_line_can_be_cleared() -> None:
    with terminal(TERM="dumb") as screen, bar("working") as on_done:
        on_done(1, 2)
    assert screen.text == ""


def test_there_is_no_bar_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("working") as on_done, steps("comparing") as tell:
        on_done(1, 2)
        tell("torch")
    assert capsys.readouterr() == ("", "")


# --------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        (f"archc check {LLAMA} --preset llama3_", ["llama3_8b", "llama3_70b"]),
        (f"archc diff {LLAMA} {GPT2} --preset tiny,gpt2_x", ["tiny,gpt2_xl"]),
        (f"archc cost {LLAMA} --model ", ["Llama"]),
        (f"archc cost {LLAMA} --preset tiny --set kv", ["kv_heads="]),
        (f"archc compile {LLAMA} --backend t", ["torch", "triton"]),
        ("archc compile --target sm_90,s", ["sm_90,sm_80", "sm_90,sm_100"]),
        (f"archc diff {LLAMA} --backends torch,", ["torch,numpy", "torch,triton"]),
        ("archc import --class Llama", ["LlamaForCausalLM"]),
        ("archc check --preset ", []),
        ("archc check missing.arch --preset ", []),
        (f"archc check {__file__} --preset ", []),
    ],
)
def test_shells_complete(line: str, completed: list[str]) -> None:
    if "--target" in line:
        pytest.importorskip("triton")
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    result = invoke(_ARCHC_COMPLETE="bash_complete", **words)
    assert result.output.split() == [f"plain,{word}" for word in completed]


def test_help_says_whole_sentences() -> None:
    assert "..." not in invoke("--help").output.replace("[ARGS]...", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_help_says_how_shells_learn_it(shell: str) -> None:
    assert f"_ARCHC_COMPLETE={shell}_source archc" in invoke("--help").output
