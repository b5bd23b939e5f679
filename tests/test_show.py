"""The picture of a model: its sums, its drawings, and the page as a browser shows it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import browser
import pytest
from bundled import FOLDER
from click.testing import CliRunner
from goldens import compare, read
from rich.console import Console

import archc
from archc.cli import main
from archc.compiler.cost import cost
from archc.dsl.dims import Dim, minimum
from archc.show.data import record
from archc.show.layout import layout
from archc.show.numbers import form, short
from archc.show.page import show_page
from archc.show.picture import Block, Picture, picture
from archc.show.stages import Stages, pieces_of, stages_of
from archc.show.svg import show_svg
from archc.show.text import show_text

GOLDEN = Path(__file__).parent / "golden" / "show.golden"
# A tied embedding, two kinds of layer and a bank, a scan, two repeats, an early exit, a shared block
# that is applied again, layers that nobody reads.
EXAMPLES = ("llama", "deepseek_v2", "mamba", "t5", "adaptive_llm", "rmt", "llava")
VOID = {"meta", "link", "input", "br", "hr", "img"}


@cache
def pictured(name: str, preset: str = "tiny") -> Picture:
    """Sizes of the model may be set; file names are the same wherever the tests run."""
    path = FOLDER / f"{name}.arch"
    return picture(archc.load(path, preset=preset), {}, preset)


@cache
def page_of(name: str, preset: str = "tiny") -> str:
    return show_page(pictured(name, preset), stages_of(pictured(name, preset).program, None))


def plain(found: Picture, lines: bool = False) -> str:
    console = Console(file=StringIO(), width=100, color_system=None)
    show_text(found, console, lines)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r" +$", "", text, flags=re.MULTILINE).replace(f"{FOLDER}/", "examples/")


# ---------------------------------------------------------------------------------- sums


@pytest.mark.parametrize("name", EXAMPLES)
def test_blocks_add_up_to_the_cost(name: str) -> None:
    found = pictured(name)
    report, total = cost(found.program, {}), found.root.cost
    assert (total.parameters, total.active) == (report.parameters, report.active)
    assert total.work == report.work
    assert total.weight_bytes == report.weight_bytes
    assert total.held("state") == report.state_bytes
    assert total.held("recurrent") == report.recurrent_bytes
    assert total.held("constant") == report.constant_bytes
    assert Counter(s.place for s in total.states) == Counter(s.place for s in report.states)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_block_costs_what_its_children_cost_and_its_weights(name: str) -> None:
    for block in pictured(name).blocks:
        if block.children:
            work = [child.cost.work for child in block.children]
            assert sum((w.flops for w in work), Dim()) == block.cost.work.flops
            own = sum(r.total for r in block.weights if r.trained)
            inner = sum(child.cost.parameters for child in block.children)
            if block.kind != "model":
                assert inner + own == block.cost.parameters, block.path


@pytest.mark.parametrize("name", EXAMPLES)
def test_regions_cost_what_the_report_says_of_them(name: str) -> None:
    """`archc cost` has them by the outermost label of each function, here they are blocks."""
    found = pictured(name)
    regions = {path: work.flops for path, work in found.report.regions if work.flops.terms}
    sums: dict[str, Dim] = {}
    for path, block in outermost(found.root):
        sums[path] = sums.get(path, Dim()) + block.cost.work.flops
    assert {p: f for p, f in sums.items() if f.terms} == regions


def outermost(block: Block, path: str = "") -> Iterator[tuple[str, Block]]:
    for child in block.children:
        if child.kind in ("repeat", "layer", "scan"):
            yield from outermost(child, child.path)
        else:
            yield child.path or path, child


def test_a_repeat_is_one_block() -> None:
    found = pictured("llama", "llama2_70b")
    (layers,) = (b for b in found.blocks if b.kind == "repeat")
    assert (layers.label, layers.times, layers.path) == ("layers", "80", "layers[]")
    attention = next(b for b in layers.children if b.label == "attention")
    assert attention.calls == "attention"
    assert str(attention.results[0]) == "float[b, s, d]"
    assert attention.runs == Dim.of(80)
    assert [b.label for b in attention.children if b.kind == "block"] == ["q", "k", "v", "o"]
    assert len(found.blocks) < 60


def test_kinds_of_layers_are_told_apart() -> None:
    kinds = [b for b in pictured("deepseek_v2").blocks if b.kind == "layer"]
    assert [(b.label, b.times) for b in kinds] == [("layers[0]", "1"), ("layers[1..2]", "2")]
    assert [any(c.label == "mixture" for c in b.children) for b in kinds] == [False, True]


def test_lines_lead_to_the_text() -> None:
    found = pictured("llama")
    by_path = {b.path: b for b in found.blocks}
    text = found.sources[0]
    attention = by_path["layers[].attention"]
    assert "attention(heads" in text.line(attention.site[-1].first)
    q = by_path["layers[].attention.q"]
    assert q.place is not None
    assert q.place.source == "std/attention.arch"
    assert {lines.source for lines in q.body} == {"std/linear.arch"}


def test_numbers_and_forms() -> None:
    b, s = Dim.symbol("b"), Dim.symbol("s")
    assert [short(n) for n in (0, 999, 1000, 999_999, 6_738_415_616)] == [
        "0", "999", "1.00 k", "1.00 M", "6.74 G",
    ]  # fmt: skip
    assert form(b * s * s * 2_621_440 + b * s * 137_426_370_560) == "2.62 M·b·s² + 137 G·b·s"
    assert form(b * s * 2 - 1, {"b": 3, "s": 4}) == "23"
    assert form(minimum(131, b * s) * 128 - s) == "128·min(131, b*s) - s"


# ------------------------------------------------------------------------------- drawings


@pytest.mark.parametrize("name", EXAMPLES)
def test_arrows_point_down_and_boxes_do_not_touch(name: str) -> None:
    for block in pictured(name).blocks:
        arrows = [(e.source, e.target) for e in block.flow]
        sizes = {end: (60.0, 30.0) for arrow in arrows for end in arrow}
        made = layout(sizes, arrows)
        assert all(made.tops[a][1] + 30 < made.tops[b][1] for a, b in arrows)
        places = sorted((y, x) for x, y in made.tops.values())
        assert all(y != below or after - x >= 60 for (y, x), (below, after) in pairwise(places))


@pytest.mark.parametrize("name", ["deepseek_v2", "t5"])
def test_a_drawing_is_well_formed_and_the_same_each_time(name: str) -> None:
    text = show_svg(pictured(name))
    root = ElementTree.fromstring(text)
    shown = {g.get("data-block") for g in root.iter() if g.get("data-block")}
    assert len(shown) > 10
    again = picture(archc.load(FOLDER / f"{name}.arch", preset="tiny"), {}, "tiny")
    assert show_svg(again) == text


# ----------------------------------------------------------------------------------- text


@pytest.mark.parametrize("name", ["llama", "deepseek_v2", "mamba"])
def test_the_text_tree(name: str, accept: bool) -> None:
    text = plain(pictured(name))
    assert max(map(len, text.splitlines())) <= 100
    compare(GOLDEN, read(GOLDEN), name, text, accept=accept)


def test_json_has_the_same_tree() -> None:
    shown = CliRunner().invoke(main, ["show", str(FOLDER / "llama.arch"), "--json", "--set", "b=2"])
    data = json.loads(shown.stdout)
    assert data["tree"]["parameters"] == 6_738_415_616
    assert data["sizes"]["b"] == 2
    assert record(pictured("llama"))["tree"]["children"][3]["label"] == "embed"


# ----------------------------------------------------------------------------------- page


class Checker(HTMLParser):
    """Elements that are not closed, ids, and what attributes refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} {name}"
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "action", "srcset"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"line {self.getpos()[0]}"


def checked(text: str) -> Checker:
    found = Checker()
    found.feed(text)
    found.close()
    assert not found.open
    assert len(set(found.ids)) == len(found.ids)
    for link in found.links:
        assert link == "data:," or link.removeprefix("#") in found.ids, link
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", text)
    return found


@pytest.mark.parametrize("name", ["deepseek_v2", "mamba"])
def test_the_page_is_whole_and_needs_nothing(name: str) -> None:
    found = pictured(name)
    ids = set(checked(page_of(name)).ids)
    assert {f"b{block.number}" for block in found.blocks} <= ids
    assert {"panel-tree", "panel-flow", "panel-passes", "panel-kernels"} <= ids


NASTY = '''"""<script>alert("a & b")</script> \u2028 \u202e é"""
use std
model M {
  d = 4
  input x: float[b, d]
  # </script><img src=x onerror=alert(1)> "quoted" 'both'
  output y[b, d] = x |> linear(d) as a
}
checkpoint huggingface "</pre><b>\\"" for M { d = config.d; "<i>&amp;" = a.w }
'''


def test_what_a_file_says_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "a\"<b>&'.arch"
    path.write_text(NASTY.replace('\\"', "'"), encoding="utf-8")
    model = archc.load(path)
    text = show_page(picture(model, {}), stages_of(model.program, None))
    checked(text)
    assert "<img" not in text
    assert "<b>&" not in text
    ElementTree.fromstring(show_svg(picture(model, {})))


def test_passes_show_what_they_changed() -> None:
    stages = stages_of(pictured("llama").program, None)
    by_name = {stage.name: stage for stage in stages.passes}
    attention = by_name["tile-attention"]
    assert attention.fired == 1
    (name, lines) = attention.diffs[0]
    assert name == "layers"
    assert any(line.startswith("-") and "softmax" in line for line in lines)
    assert any(line.startswith("+") and "= attend(" in line for line in lines)
    assert by_name["chunk-scan"].diffs == ()
    assert stages.pieces == ()


KERNELS = '''"""Doc."""
import x

# what it computes
# m.arch:7 (layers, a.q)
@x.jit
def one(p):
    return p


class Two:
    pass  # m.arch:9
'''


def test_a_generated_file_falls_into_pieces() -> None:
    pieces = list(pieces_of("kernels.py", KERNELS))
    assert [p.name for p in pieces] == ["(head)", "one", "Two"]
    assert pieces[1].text.startswith("# what it computes")
    assert pieces[1].places == (("m.arch", 7, ("layers", "a.q")),)
    assert pieces[2].places == (("m.arch", 9, ()),)
    assert "\n".join(p.text for p in pieces).count("\n") == KERNELS.count("\n") - 4


@pytest.mark.parametrize("backend", ["numpy", "triton"])
def test_a_page_has_the_source_of_a_backend(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "t.html"
    arguments = ["show", str(FOLDER / "llama.arch"), "--preset", "tiny", "-o", str(path)]
    done = CliRunner().invoke(main, [*arguments, "--backend", backend])
    assert done.exit_code == 0, done.output
    text = path.read_text(encoding="utf-8")
    checked(text)
    assert ("@triton.jit" in text) == (backend == "triton")
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    attention = next(b for b in data["blocks"] if b["path"] == "layers[].attention")
    named = [data["kernels"][k] for k in attention["kernels"]]
    assert any("attend" in name for name in named) == (backend == "triton")


# -------------------------------------------------------------------------------- browser

needs_browser = pytest.mark.skipif(
    browser.found() is None, reason=f"no browser: none of {', '.join(browser.NAMES)} is on PATH"
)


@needs_browser
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    """A page of 80 layers: its script runs without a complaint and asks for nothing, and what is
    chosen in one part is marked in the others."""
    found, path = pictured("llama", "llama2_70b"), tmp_path / "llama.html"
    site = next(b.site[0] for b in found.blocks if b.path == "layers[].attention")
    text = KERNELS.replace("m.arch:7 (layers, a.q)", f"{site.source}:{site.first} (attention.q)")
    passes = stages_of(found.program, None).passes
    pieces = tuple(pieces_of("kernels.py", text))
    path.write_text(show_page(found, Stages(passes, "triton", pieces)), encoding="utf-8")
    with browser.page(str(browser.found()), tmp_path / "profile") as shown:
        shown.resize(1400, 900)
        shown.open(path)
        look_at(shown)
        for width in (1400, 1000, 400):
            shown.resize(width, 800)
            assert shown.run("document.documentElement.scrollWidth") <= width
        pictures = []
        for scheme in ("light", "dark"):
            shown.scheme(scheme)
            pictures.append(shown.screenshot())
        assert pictures[0] != pictures[1]
        complaints = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        assert shown.reported(*complaints) == []
        asked = [e["params"]["request"]["url"] for e in shown.reported("Network.requestWillBeSent")]
        assert asked == [path.as_uri()]


def look_at(shown: browser.Page) -> None:
    def text(selector: str) -> str:
        return str(shown.run(f"document.querySelector({json.dumps(selector)}).textContent"))

    def count(selector: str) -> int:
        return int(shown.run(f"document.querySelectorAll({json.dumps(selector)}).length"))

    assert shown.run("document.body.classList.contains('live')")
    assert "layers × 80" in text("header")
    assert text(".tree .repeat > summary .label") == "layers × 80"
    height = shown.run("document.querySelector('.tree').getBoundingClientRect().height")
    assert height < 900  # 80 layers on one screen
    whole = text(".tree .model .flops")
    shown.run("(i => { i.value = 4096; i.dispatchEvent(new Event('input')) })(document.forms[0].s)")
    assert text(".tree .model .flops") != whole

    number = shown.run(
        "JSON.parse(document.getElementById('data').textContent).blocks"
        ".find(b => b.path === 'layers[].attention').n"
    )
    shown.click(f"#b{number} > summary .label")
    assert "attention(heads" in text(".l.site")
    assert shown.run("document.querySelector('.l.site').getBoundingClientRect().height") > 0
    assert "layers[].attention" in text("#details")
    assert "12,079,595,520" in text("#details")
    shown.click('nav a[data-tab="flow"]')
    assert count(".flow.shown .block.picked") == 1
    shown.click("#details a[href^='#flow-']")
    assert count(".flow.shown") == 1
    assert "softmax" in text(".flow.shown")
    shown.click("#details a[href^='#k']")
    assert "def one(p):" in text(".panel.shown .piece[open]")

    line = shown.run("document.querySelector('.l.site').id")
    above = f"{line.split('l')[0]}l{int(line.split('l')[1]) - 1}"
    shown.click(f"#{above} > i")
    assert "norm1" in text("#details h3")
    assert shown.run("document.querySelector('#panel-tree').classList.contains('shown')")

    shown.click("#search")
    shown.type("ffn.gate")
    assert text("#found") == "1 found"
    shown.press("Enter")
    assert "gate" in text("#details h3")
    assert count(".tree .hit") == 1
    shown.press("Escape")
    assert count(".tree .hidden") == 0
