"""The picture as a text tree: a line per block, its shape and cost in columns beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .numbers import form, percent, shape, short
from .picture import Block, Picture

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod
    from rich.table import Table
    from rich.text import Text
    from rich.tree import Tree

HEAD = ("block", "result", "params", "", "flops, forward", "line")
WIDTHS = (15, 8, 7, 23, 7)  # of all columns but the first


def show_text(picture: Picture, console: Console, lines: bool = False) -> None:
    """Print the tree. Without `lines` a line of the text is left out where it has no products."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text(heading(picture), style="bold"), soft_wrap=True)
    for line in facts(picture):
        console.print(Padding(Text(line, style="dim"), (0, 0, 0, 2)))
    console.print()
    console.print(_table(picture, console, lines))
    console.print()
    for line in legend(picture):
        console.print(Text(line, style="dim"))


def heading(picture: Picture) -> str:
    preset = f", preset {picture.preset}" if picture.preset else ""
    return f"{picture.program.name}{preset}, {picture.sources[0].name}"


def facts(picture: Picture) -> Iterator[str]:
    """The totals of `archc cost`, in short."""
    report, at = picture.report, picture.at
    active = f", {report.active:,} active" if report.active != report.parameters else ""
    yield f"{report.parameters:,} parameters{active}"
    yield layers(picture)
    most = " at most" if report.masked or report.unknowns else ""
    yield f"flops {form(report.work.flops, at)}{most}"
    yield f"weights read {form(report.weight_bytes, at)} bytes"
    held = [
        f"{form(size, at)} bytes {per}"
        for size, per in (
            (report.state_bytes, "per token"),
            (report.recurrent_bytes, "per row"),
            (report.constant_bytes, "made once for a row"),
        )
        if size.terms
    ]
    if held:
        yield f"kept when decoding: {', '.join(held)}"


def layers(picture: Picture) -> str:
    """`layers × 80`; of several kinds of layer how many."""
    repeats = [b for b in picture.blocks if b.kind == "repeat"]
    words = []
    for block in repeats:
        kinds = sum(child.kind == "layer" for child in block.children)
        words.append(f"{block.label} × {block.times}{f' of {kinds} kinds' if kinds else ''}")
    return ", ".join(words) or "no repeat"


def legend(picture: Picture) -> Iterator[str]:
    """What the axes of the shapes are: their sizes as written, and as numbers where they are known."""
    known, runtime, rows = picture.program.sizes, [], []
    for axis in picture.axes:
        value = axis.size.substitute({**known, **picture.at}).constant
        written = str(axis.size)
        if written == axis.name and value is None:
            runtime.append(axis.name)
        else:
            words = [axis.name, written, f"{value:,}" if value is not None else ""]
            rows.append(" = ".join(dict.fromkeys(filter(None, words))))
    if runtime:
        yield f"given by a call: {', '.join(runtime)}"
    line = ""
    for row in rows:
        if line and len(line) + len(row) > 96:
            yield line
            line = ""
        line = f"{line}; {row}" if line else row
    yield from filter(None, [line])


def _table(picture: Picture, console: Console, lines: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    blocks, tree = list[Block](), _tree(picture.root, lines)
    _ordered(picture.root, lines, blocks)
    width = min(console.width, 120)
    wide = max(24, width - sum(WIDTHS) - len(WIDTHS))
    drawn = console.render_lines(tree, console.options.update(width=wide, no_wrap=True))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for title, size in zip(HEAD, (wide, *WIDTHS), strict=True):
        side: JustifyMethod = "right" if title in ("params", "") else "left"
        table.add_column(title, justify=side, no_wrap=True, overflow="ellipsis", width=size)
    for block, row in zip(blocks, drawn, strict=True):
        cell = Text.assemble(*((s.text, s.style or "") for s in row))
        cell.rstrip()
        table.add_row(cell, *map(Text, _cells(picture, block)))
    return table


def _tree(block: Block, lines: bool) -> Tree:
    from rich.tree import Tree

    tree = Tree(_label(block), guide_style="dim")
    for child in _shown(block, lines):
        tree.add(_tree(child, lines))
    return tree


def _ordered(block: Block, lines: bool, found: list[Block]) -> None:
    found.append(block)
    for child in _shown(block, lines):
        _ordered(child, lines, found)


def _shown(block: Block, lines: bool) -> list[Block]:
    """The children to show: blocks, and lines that have products or that are asked for."""
    found = [c for c in block.children if lines or c.kind != "line" or c.cost.work.flops.terms]
    alone = len(found) == 1 and found[0].kind == "line"
    return [] if alone and not lines else found


STYLES = {"repeat": "bold cyan", "layer": "cyan", "scan": "cyan", "line": "dim", "model": "bold"}


def _label(block: Block) -> Text:
    from rich.text import Text

    text = Text(block.label, style=STYLES.get(block.kind, ""), no_wrap=True, overflow="ellipsis")
    if block.times:
        text.append(f" × {block.times}", style="bold")
    if block.calls and block.calls != block.label:
        text.append(f"  {block.calls}", style="green")
    return text


def _cells(picture: Picture, block: Block) -> tuple[str, ...]:
    whole = picture.report.parameters
    parameters = block.cost.parameters
    place = block.place
    own = place is not None and place.source == picture.sources[0].name
    return (
        shape(block.results[0]) if block.results else "",
        short(parameters) if parameters else "",
        percent(parameters, whole),
        form(block.cost.work.flops, picture.at) if block.cost.work.flops.terms else "",
        f"{'' if own else 'std'}:{place.first}" if place is not None else "",
    )
