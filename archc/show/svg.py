"""The flow of values as SVG: boxes are blocks, arrows values, frames what repeats and scans run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from ..compiler.passes.properties import VIEWS
from .layout import Layout, Point, layout
from .numbers import shape, short
from .picture import SOURCES, Block, Picture

CHAR, SMALL = 7.4, 6.0  # widths of characters, a little more than those of common fonts
LINE, PAD, TITLE = 15.0, 10.0, 26.0
LONGEST = 34
FRAMED = frozenset({"repeat", "layer", "scan"})
SIGNS = {"add": "+", "sub": "−", "mul": "×", "div": "÷"}


@dataclass(frozen=True, slots=True)
class Drawing:
    """Elements, and their width and height."""

    text: str
    width: float
    height: float


def show_svg(picture: Picture) -> str:
    """A file of its own: the whole model, with its colours for light and dark."""
    made = draw(picture.root)
    name = escape(picture.program.name)
    return _svg(made, f"<title>{name}</title><style>{style()}</style>", standalone=True)


def style() -> str:
    return files(__package__).joinpath("drawing.css").read_text(encoding="utf-8").strip()


def figure(block: Block) -> str:
    """The flow within a block, as an element of a page that has the style."""
    return _svg(draw(block), f"<title>{escape(block.label)}</title>")


def _svg(made: Drawing, head: str, standalone: bool = False) -> str:
    margin = 8
    width, height = made.width + 2 * margin, made.height + 2 * margin
    space = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    arrow = (
        '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="tip" d="M0 0.5L8 4L0 7.5z"/></marker>'
    )
    defs = f"<defs>{arrow}</defs>" if standalone else ""
    box = f"{-margin} {-margin} {width:.0f} {height:.0f}"
    return (
        f'<svg{space} class="drawing" role="img" viewBox="{box}" width="{width:.0f}" '
        f'height="{height:.0f}">{head}{defs}{made.text}</svg>'
    )


def draw(block: Block) -> Drawing:
    """What is inside a block."""
    used = {end for edge in block.flow for end in (edge.source, edge.target)}
    shown = [c for c in block.children if c.kind != "input" or c.number in used]
    inner = {child.number: _box(child) for child in shown}
    ends = dict.fromkeys(
        end for e in block.flow for end in (e.source, e.target) if isinstance(end, str)
    )
    boxes = {end: _border(end) for end in ends} | inner
    sizes = {key: (made.width, made.height) for key, made in boxes.items()}
    placed = layout(sizes, [(e.source, e.target) for e in block.flow])
    parts = [_arrows(block, placed)]
    for key, made in boxes.items():
        x, y = placed.tops[key]
        parts.append(_moved(made, x - made.width / 2, y))
    return Drawing("".join(parts), placed.width, placed.height)


def _moved(made: Drawing, x: float, y: float) -> str:
    return f'<g transform="translate({x:.1f} {y:.1f})">{made.text}</g>'


def _arrows(block: Block, placed: Layout) -> str:
    return "".join(
        f'<path class="edge" d="{_curve(route)}" marker-end="url(#arrow)">'
        f"<title>{escape(str(edge.type))}</title></path>"
        for edge, route in zip(block.flow, placed.routes, strict=True)
    )


def _curve(points: Sequence[Point]) -> str:
    (x, y), *rest = points
    text = f"M{x:.1f} {y:.1f}"
    for nx, ny in rest:
        if abs(nx - x) < 0.05:
            text += f"V{ny:.1f}"
        else:
            middle = (y + ny) / 2
            text += f"C{x:.1f} {middle:.1f} {nx:.1f} {middle:.1f} {nx:.1f} {ny:.1f}"
        x, y = nx, ny
    return text


def _border(end: str) -> Drawing:
    """What comes from outside, or goes there."""
    return _rounded("border", [(end, CHAR, "name")], radius=11)


def _box(block: Block) -> Drawing:
    if block.kind in FRAMED and block.children:
        made = _frame(block)
    elif block.kind == "line":
        made = _rounded("line", _line_rows(block), radius=10)
    else:
        made = _rounded(block.kind, _rows(block), radius=5)
    text = f'<g class="block" data-block="{block.number}">{made.text}</g>'
    return Drawing(text, made.width, made.height)


def _rows(block: Block) -> list[tuple[str, float, str]]:
    rows = [(block.label, CHAR, "name")]
    if block.calls and block.calls != block.label:
        rows.append((block.calls, SMALL, "calls"))
    if block.results:
        rows.append((shape(block.results[0]), SMALL, "shape"))
    if block.cost.parameters:
        rows.append((f"{short(block.cost.parameters)} parameters", SMALL, "cost"))
    return rows


def _line_rows(block: Block) -> list[tuple[str, float, str]]:
    ops = [SIGNS.get(op, op) for op in block.ops if op not in SOURCES | VIEWS | {"cast"}]
    words = " ".join(ops[:4]) + (" .." if len(ops) > 4 else "")
    moved = [op for op in block.ops if op not in SOURCES] or ["constant"]
    rows = [(words or moved[-1], CHAR, "name")]
    if len(ops) > 1 or block.cost.work.flops.terms:
        rows.append((block.label, SMALL, "calls"))
    if block.results:
        rows.append((shape(block.results[0]), SMALL, "shape"))
    return rows


def _rounded(kind: str, rows: Iterable[tuple[str, float, str]], radius: float) -> Drawing:
    cut = [(t if len(t) <= LONGEST else f"{t[: LONGEST - 1]}…", c, k) for t, c, k in rows]
    width = max(max(len(t) * c for t, c, _ in cut) + 2 * PAD, 34.0)
    height = LINE * len(cut) + 8
    body = "".join(
        f'<text class="{k}" x="{width / 2:.1f}" y="{LINE * (i + 1):.1f}">{escape(t)}</text>'
        for i, (t, _, k) in enumerate(cut)
    )
    box = f'<rect class="{kind}" width="{width:.1f}" height="{height:.1f}" rx="{radius}"/>'
    return Drawing(box + body, width, height)


def _frame(block: Block) -> Drawing:
    inside = draw(block)
    title = f"{block.label} × {block.times}"
    width = max(inside.width, len(title) * CHAR + 10) + 2 * PAD + 6
    height = inside.height + TITLE + 2 * PAD
    box = f'<rect class="{block.kind}" width="{width:.1f}" height="{height:.1f}" rx="9"/>'
    name = f'<text class="title" x="{PAD + 2:.0f}" y="18">{escape(title)}</text>'
    body = _moved(inside, (width - inside.width) / 2, TITLE + PAD / 2)
    return Drawing(box + name + body, width, height)
