"""Text made to crash, hang or fill the memory is refused with a screen that a person can read."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from clock import in_time

from archc.compiler.elaborate import elaborate, module_of, the_model
from archc.dsl import Source, parse
from archc.dsl.diagnostics import ArchError, Diagnostics, render
from archc.dsl.lexer import LARGEST_FILE, LONGEST_NAME, MOST_ERRORS

SECONDS, SCREEN = 6.0, 25_000  # of the processor, and characters


def body(text: str, above: str = "") -> str:
    return f"use std\n{above}\nmodel M {{\nd = 8\ninput x: float[b, s, d]\n{text}\noutput y = x\n}}"


def fill(piece: str, room: int = LARGEST_FILE - 2000) -> str:
    return piece * (room // len(piece))


LONG = "n" * (LARGEST_FILE - 2000)
DOUBLED = "\n".join(f"fn f{i}(x[...]) = f{i + 1}(x) + f{i + 1}(x)" for i in range(30))
MANY_AXES = ", ".join(f"a{i}" for i in range(20_000))
MANY_INPUTS = "\n".join(f"input x{i}: float[a{i}]" for i in range(7000))
TEXTS = {
    # of one kind of character or word
    "brackets": (fill("("), "nested-too-deep"),
    "pairs on a line": (fill("()"), "syntax"),
    "closing brackets": (fill(")"), "unopened-bracket"),
    "quotes": ('"' * 99_999, "unclosed-string"),
    "strays": (fill("$"), "stray-character"),
    "strays on lines": (fill("$\n"), "stray-character"),
    "operators of others": (fill("&& "), "foreign-operator"),
    "open definitions": (fill("model M {\n"), "unclosed-bracket"),
    "too much": ("[" * 10_000_000, "source-unreadable"),
    # long rows and deep trees
    "a long sum": (body(f"n = {fill('1 + ')}1"), "nested-too-deep"),
    "a long list": (body(f"n = [{fill('1, ')}1]"), ""),
    "many mistakes": (body(fill("x = q + 1\n")), "unknown-name"),
    "many inputs": (body(MANY_INPUTS), ""),
    "many axes": (body(f"input z: float[{MANY_AXES}]"), "too-many-axes"),
    # long words
    "a long name": (body(f"{LONG} = 1"), "name-too-long"),
    "a long string": (body(f'n = 1 + "{LONG}"'), "not-a-number"),
    "a long number": (body(f"n = {'9' * 9000}"), "number-too-large"),
    # what grows
    "a power": (body("n = 10**10**10"), "number-out-of-range"),
    "a repeat": (body("repeat l[i: 10**9] { x += 1 }"), "repeat-count"),
    "repeats": (
        body("repeat l[i: 10000] { repeat k[j: 10000] { x += x |> linear(d) } }"),
        "too-many-weights",
    ),
    "kinds": (body("repeat l[i: 10000] { x += x |> linear(i + 1) }"), "unnamed-axis"),
    "a bank": (body("bank f[n: 10**9] = linear(d)\nx = x |> f[1]"), ""),
    "a bank of too much": (body("bank f[n: 10**19] = linear(d)\nx = x |> f[1]"), "number-out-of-range"),
    "functions": (body("x = f0(x)", f"{DOUBLED}\nfn f30(x[...]) = x"), "too-large"),
    "each calls the other": (
        body("x = f(x)", "fn f(x[...]) = g(x)\nfn g(x[...]) = f(x)"),
        "too-deep",
    ),
    "lists of lists": (body("n = [[i for i in 10000] for j in 10000]"), "too-large"),
}  # fmt: skip


def screens(text: str) -> list[str]:
    try:
        module = module_of(parse(Source("t.arch", text)))
        if module.models:
            elaborate(module, the_model(module))
    except Diagnostics as found:
        return list(map(render, found.errors))
    except ArchError as error:
        return [render(error)]
    return []


@pytest.mark.parametrize("case", TEXTS)
def test_what_is_too_much_is_said_soon_and_shortly(case: str) -> None:
    text, expected = TEXTS[case]
    started = time.process_time()
    shown = screens(text)
    assert in_time(time.process_time() - started, SECONDS)
    assert len(shown) <= MOST_ERRORS
    assert sum(map(len, shown)) < SCREEN
    assert {s.split("[")[1].split("]")[0] for s in shown} == ({expected} if expected else set())


def test_names_may_be_long() -> None:
    assert screens(body(f"{'n' * LONGEST_NAME} = 1")) == []


def test_a_screen_of_a_wide_line_shows_where_the_mistake_is() -> None:
    (shown,) = screens(body(f"x = x{' + 1' * 60} + wrong{' + 1' * 60}"))
    line, under = shown.split("\n")[3:5]
    assert line.index("wrong") == under.index("^")
    assert under.count("^") == len("wrong")
    assert len(line) < 200


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    for text in (body('n = 1 + "\x1b[2J"'), body("n = \x1b]0;title\x07"), body("n = q # \u202e")):
        assert screens(text)
        assert all(c.isprintable() or c == "\n" for shown in screens(text) for c in shown)


TRILLIONS = """use std
model Huge {
  d = 262144
  input x: float[b, s, d]
  repeat layers[i: 100] { x += x |> rmsnorm |> attention(512) }
  output y = x
}
"""
CHECK = """
import sys, resource
from archc.cli import main
try:
    main(["check", sys.argv[1]])
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    (peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print("used", used.ru_utime + used.ru_stime, int(peak.split()[1]) / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ten_trillion_parameters_are_checked_in_a_second(tmp_path) -> None:
    file = tmp_path / "huge.arch"
    file.write_text(TRILLIONS)
    command = [sys.executable, "-c", CHECK, str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parameters = int(said.split(" parameters")[0].split(" ")[-1].replace(",", ""))
    seconds, megabytes = map(float, said.split("used ")[1].split())
    assert parameters > 10**13
    assert seconds < 1.0
    assert megabytes < 300


USES = (
    '"/etc/passwd"',
    "/etc/passwd",
    "../secret",
    "std/../../secret",
    "secret",
    "std.secret",
    '"std"',
)


@pytest.mark.parametrize("name", USES)
def test_use_reads_no_file(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one library is part of the package: nothing beside the file is looked for."""
    for file in ("secret", "secret.arch", "std.arch"):
        (tmp_path / file).write_text("fn mine(x[...]) = x")
    (tmp_path / "link.arch").symlink_to("/etc/passwd")
    monkeypatch.chdir(tmp_path)
    shown = screens(f"use {name}\nmodel M {{ input x: float[b]\noutput y = mine(x) }}")
    assert shown
    assert "secret.arch" not in "".join(shown)
    (mine,) = screens("use std\nmodel M { input x: float[b]\noutput y = mine(x) }")
    assert "unknown-name" in mine


def test_a_check_runs_nothing_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is never handed to Python: neither evaluated nor imported."""
    for name in ("eval", "exec", "compile"):
        monkeypatch.setattr(f"builtins.{name}", lambda *_: pytest.fail("text was run"))
    text = body("n = \"__import__('os').abort()\"\nx = x + eval(n)")
    assert [s.split("]")[0] for s in screens(text)] == ["error[unknown-name"]
