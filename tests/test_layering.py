"""Imports run one way, fast commands stay light, and nothing names a place on one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("dsl", "compiler", "backends", "archc")  # each may import those before it
HEAVY = {"torch", "triton", "transformers", "gguf", "tokenizers"}
SOURCES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]
TEXTS = (".py", ".arch", ".md", ".toml", ".txt", ".lark", ".yaml", ".golden", ".json")


def installed_name(path: Path) -> tuple[str, ...]:
    """The dotted name of a source file as it is installed: `dsl/span.py` is archc.dsl.span."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts if parts[0] == "archc" else ("archc", *parts)


def imports(path: Path) -> Iterator[tuple[ast.stmt, tuple[str, ...]]]:
    """Every import statement of a file with the absolute dotted name it imports."""
    name = installed_name(path)
    package = name[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node, tuple(alias.name.split("."))) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            whole = (*base, *(node.module.split(".") if node.module else ()))
            yield from ((node, (*whole, alias.name)) for alias in node.names)


def layer_of(name: tuple[str, ...]) -> str | None:
    """The layer an archc module belongs to; none for other packages."""
    if name[:1] != ("archc",):
        return None
    return name[1] if len(name) > 1 and name[1] in LAYERS else "archc"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    own = LAYERS.index(path.relative_to(ROOT).parts[0])
    upwards = [
        f"line {node.lineno}: {'.'.join(name)}"
        for node, name in imports(path)
        if (layer := layer_of(name)) is not None and LAYERS.index(layer) > own
    ]
    assert not upwards


@pytest.mark.parametrize("layer", ["dsl", "compiler"])
def test_the_compiler_needs_no_torch(layer: str) -> None:
    heavy = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {name[0]}"
        for path in SOURCES
        if path.is_relative_to(ROOT / layer)
        for node, name in imports(path)
        if name[0] in HEAVY - {"gguf", "tokenizers"}
    ]
    assert not heavy


def loaded_by(code: str) -> set[str]:
    """The top-level packages in memory after a fresh interpreter ran `code`."""
    report = "print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    program = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\n{report}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.rpartition("LOADED")[2].split())


def test_elaborating_loads_no_torch() -> None:
    loaded = loaded_by("import archc; archc.load('examples/llama.arch', preset='tiny').program")
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [["check"], ["fmt", "--check"], ["cost"], ["show"]],
    ids=lambda arguments: arguments[0],
)
def test_fast_commands_load_no_torch(arguments: list[str]) -> None:
    line = [*arguments, "examples/llama.arch"]
    assert not loaded_by(f"from archc.cli import main; main({line!r})") & HEAVY


@pytest.mark.parametrize("layer", LAYERS)
def test_every_package_is_installed(layer: str) -> None:
    """A folder that pyproject.toml does not list is missing from the wheel."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(setup["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in SOURCES if path.is_relative_to(ROOT / layer)}
    mapped = {"archc.dsl.std": "archc.std"}
    names = {".".join(installed_name(folder)) for folder in folders}
    assert {mapped.get(name, name) for name in names} <= listed


def tracked_texts() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    names = listed.stdout.split() if listed.returncode == 0 else []
    return [ROOT / n for n in names if n.endswith(TEXTS) and (ROOT / n).is_file()]


def test_no_text_names_a_place_on_one_machine() -> None:
    place = re.compile(r"(?<![\w.~$/:-])/(?:home|Users|work|root|mnt|tmp)/\w")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked_texts()
        for match in place.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found
