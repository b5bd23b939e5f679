"""Every snippet of the documentation does what the text beside it says."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import snippets
from checks import EVERY_PASS
from click.testing import CliRunner
from small_models import program
from snippets import FENCE, Snippet

import archc
from archc.cli import main
from archc.compiler.checkpoint import (
    bind,
    checkpoint_block,
    evaluate_config,
    open_checkpoint,
    save,
)
from archc.compiler.cost import cost
from archc.compiler.elaborate import Request, builtins, elaborate, hyperparameters
from archc.compiler.elaborate.module import standard_library
from archc.compiler.ops import FUSED, OPS
from archc.compiler.ops.registry import Op
from archc.compiler.rewrite import Rule
from archc.compiler.weights import random_weights
from archc.dsl.describe import signature, summary

ROOT = Path(__file__).parent.parent
LANGUAGE = ROOT / "docs" / "language.md"
COST = ROOT / "docs" / "cost.md"
SHOW = ROOT / "docs" / "show.md"
PASSES = ROOT / "docs" / "passes.md"
OPS_PAGE = ROOT / "docs" / "ops.md"
PAGES = [
    LANGUAGE,
    ROOT / "docs" / "porting.md",
    ROOT / "docs" / "decode.md",
    COST,
    SHOW,
    PASSES,
    OPS_PAGE,
    ROOT / "docs" / "tour.md",
    ROOT / "README.md",
]
SNIPPETS = [snippet for page in PAGES for snippet in snippets.snippets(page)]
RIGHT = [s for s in SNIPPETS if not s.error]
WRONG = [s for s in SNIPPETS if s.error]


@pytest.mark.parametrize("snippet", RIGHT, ids=str)
def test_snippet_runs(snippet: Snippet) -> None:
    source = snippet.source
    found = snippets.run(source)
    traces = {name: snippets.execute(p) for name, p in found.programs.items()}
    for line, remark in snippets.remarks(source):
        seen = {
            snippets.described(value, program, traces[program.name], remark)
            for at, value, program in found.named
            if at == line
        }
        assert snippets.normal(remark) in seen, source.line(line)
    made = {p.path for program in found.programs.values() for p in program.parameters}
    for promised in snippets.MAKES.findall(source.text):
        assert set(promised.split(", ")) <= made


@pytest.mark.parametrize("snippet", WRONG, ids=str)
def test_snippet_gives_the_error_it_shows(snippet: Snippet, accept: bool) -> None:
    errors = snippets.mistakes(snippet.source)
    assert [e.id for e in errors] == [snippet.error]
    if snippet.shown is None:
        return
    if accept:
        snippets.rewrite(snippet.shown, snippets.brief(errors[0]))
    else:
        assert snippet.shown.text == snippets.brief(errors[0])


@pytest.mark.parametrize("snippet", [s for s in RIGHT if s.config], ids=str)
def test_checkpoint_block_reads_what_it_writes(snippet: Snippet, tmp_path: Path) -> None:
    """Random weights, written by the block's lines, come back by the same lines."""
    module = snippets.run(snippet.source).module
    config = json.loads(snippet.config)
    (block,) = (b for b in module.checkpoints if config["architectures"][0] in b.class_names)
    model = module.models[block.model]
    values = evaluate_config(block, config, hyperparameters(model))
    program = elaborate(module, model, Request(values))
    weights = random_weights(program)
    save(program, weights, block, tmp_path, config)
    opened = open_checkpoint(tmp_path)
    assert checkpoint_block(module.file, "model.arch", opened) is block
    found = bind(block, opened, program)
    assert set(found) == set(weights)
    for path, value in weights.items():
        np.testing.assert_array_equal(found[path], value)


# ------------------------------------------------------------------------------ tables


def between(page: str, name: str) -> str:
    return page.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- end of {name} -->")[0]


def std_table() -> str:
    rows = ["| definition | meaning |", "|---|---|"]
    for definition in standard_library().values():
        cell = signature(definition).replace("|", "\\|")
        rows.append(f"| `{cell}` | {summary(definition).replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def test_the_table_of_the_standard_library_is_fresh(accept: bool) -> None:
    assert_fresh(LANGUAGE, "std", std_table(), accept)


def assert_fresh(page: Path, name: str, text: str, accept: bool) -> None:
    """The generated part of a page is `text`, or is made so."""
    if accept:
        head, mark, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
        tail = rest[rest.index(f"<!-- end of {name} -->") :]
        page.write_text(head + mark + text + tail, encoding="utf-8")
    else:
        assert between(page.read_text(encoding="utf-8"), name) == text


def passes_text() -> str:
    """Of each pass the docstring of its file, equation and legality, and a table of its rules."""
    parts, told = list[str](), set[str]()
    for made in EVERY_PASS:
        parts += [f"### `{made.name}`", f"    {made.equation}"]
        module = (made.whole or made.rules[0].apply).__module__
        if module not in told:
            told.add(module)
            text = inspect.getdoc(sys.modules[module])
            assert text is not None
            parts.append("\n".join(f"> {line}".rstrip() for line in text.splitlines()))
        if made.rules:
            parts.append(rules_table(made.rules))
    return "\n\n".join(parts) + "\n"


def rules_table(rules: Sequence[Rule]) -> str:
    rows = ["| rule | equation | fires where |", "|---|---|---|"]
    for rule in rules:
        guards = "; ".join(f"{g.holds} (`{g.name}`)" for g in rule.conditions)
        cells = (f"`{rule.name}`", f"`{rule.equation}`", guards or "wherever it matches")
        rows.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(rows)


def test_the_tables_of_passes_are_fresh(accept: bool) -> None:
    assert_fresh(PASSES, "passes", passes_text(), accept)


TIMES = {"S": "source", "P": "pointwise", "A": "shifted", "M": "mixed", "C": "running"}
FAMILIES: dict[str, Callable[[Op], bool]] = {  # of each op the first that holds
    "Sources": lambda op: op.time == "S",
    "Elementwise": lambda op: op.pointwise,
    "Axes": lambda op: op.time == "P" and op.name != "result",
    "Sums, products and lookups": lambda op: op.infer is not None and op.name != "result",
    "Functions": lambda op: op.name not in FUSED,
    "Fused by passes": lambda op: True,
}


def ops_text() -> str:
    """A table for each family, ops in the order in which they are declared."""
    families: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for found in OPS.values():
        family = next(name for name, holds in FAMILIES.items() if holds(found))
        doc = found.doc.replace("|", "\\|")
        families[family].append(f"| `{found.name}` | {doc} | {TIMES[found.time]} |")
    head = "| op | result | in time |\n|---|---|---|\n"
    parts = (f"## {name}\n\n{head}" + "\n".join(rows) for name, rows in families.items())
    return "\n\n".join(parts) + "\n"


def test_the_tables_of_ops_are_fresh(accept: bool) -> None:
    assert_fresh(OPS_PAGE, "ops", ops_text(), accept)


def test_every_rule_has_an_equation() -> None:
    bare = [f"{p.name}/{r.name}" for p in EVERY_PASS for r in p.rules if not r.equation]
    assert not bare


def test_the_cost_report_on_its_page_is_fresh(accept: bool) -> None:
    (snippet,) = (s for s in SNIPPETS if s.fence.page == COST)
    assert snippet.shown is not None
    found = cost(program(snippet.source.text), {"b": 1, "s": 64}).to_text() + "\n"
    if accept:
        snippets.rewrite(snippet.shown, found)
    else:
        assert snippet.shown.text == found


def test_the_tree_on_its_page_is_fresh(accept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    line = "show examples/llama.arch --preset llama2_70b --set b=1 --set s=4096"
    assert f"    archc {line}\n" in SHOW.read_text(encoding="utf-8")
    printed = CliRunner().invoke(main, line.split()).stdout
    shown = "".join(f"    {text}".rstrip() + "\n" for text in printed.splitlines())
    assert_fresh(SHOW, "tree", shown, accept)


def test_every_built_in_function_is_in_its_table() -> None:
    section = LANGUAGE.read_text(encoding="utf-8").partition("## Built-in functions\n")[2]
    cells = re.findall(r"`(\w+)[(`]", section.partition("\n## ")[0])
    assert set(cells) >= builtins.NAMES


def test_the_parameter_counts_of_the_readme() -> None:
    rows = re.findall(
        r"^\| `(\w+\.arch)` \| `(\w+)` \| ([\d,]+) \|$",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert rows
    for file, preset, count in rows:
        model = archc.load(ROOT / "examples" / file, preset=preset)
        assert f"{model.parameter_count():,}" == count


def test_every_link_leads_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
            name, _, anchor = target.partition("#")
            if not name.startswith("http"):
                assert not name or (page.parent / name).exists(), f"{page.name}: {target}"
                assert name or anchor in anchors(text), f"{page.name}: #{anchor}"


def anchors(text: str) -> set[str]:
    """The anchors GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
