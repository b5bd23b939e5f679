"""The picture as one HTML page: no network, nothing but itself.

The tree, the drawings, the text, the passes and the kernels stand in the page and can be read without
its script, which ties them together: what is chosen in one is marked in the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from typing import Any

from ..compiler.cost import run_time_symbols
from ..dsl import grammar, lexer
from ..dsl.span import Source
from .data import terms
from .numbers import form, percent, shape, short
from .picture import Block, Lines, Picture
from .stages import Piece, Stage, Stages
from .svg import figure, style
from .text import facts, heading, legend

TABS = (("tree", "Tree"), ("flow", "Data flow"), ("passes", "Passes"), ("kernels", "Kernels"))
KINDS = {lexer.COMMENT: "c", grammar.DOC: "s", grammar.STRING: "s", grammar.NUMBER: "n"}
WORDS = frozenset(
    "input output repeat until scan time decode valid shared weight bank loss at alias ignore".split()
)
LENGTH = 1024  # of a sequence, until one is given in the page


def show_page(picture: Picture, stages: Stages) -> str:
    """The page as text."""
    title = escape(heading(picture))
    panels = {
        "tree": _tree(picture),
        "flow": _flows(picture),
        "passes": _passes(stages),
        "kernels": _kernels(picture, stages),
    }
    sections = "".join(
        f'<section class="panel" id="panel-{key}" aria-label="{name}"><h2>{name}</h2>'
        f"{panels[key]}</section>"
        for key, name in TABS
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{title}</title>'
        f"<style>\n{style()}\n{_asset('page.css')}</style></head>\n<body>\n"
        f'{_header(picture)}<main><div class="left">{_arrow()}{sections}</div>\n'
        f'<aside class="right"><div id="details" aria-live="polite"></div>{_sources(picture)}</aside>'
        f'</main>\n<script type="application/json" id="data">{_data(picture, stages)}</script>\n'
        f"<script>\n{_asset('page.js')}</script>\n</body></html>\n"
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _arrow() -> str:
    """The tip of arrows, once for all drawings."""
    return (
        '<svg width="0" height="0" class="drawing tips" aria-hidden="true"><defs><marker id="arrow" '
        'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0.5L8 4L0 7.5z"/></marker></defs></svg>'
    )


def _header(picture: Picture) -> str:
    name, preset = escape(picture.program.name), escape(picture.preset)
    shown = f' <span class="preset">{preset}</span>' if preset else ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in facts(picture))
    tabs = "".join(f'<a href="#panel-{key}" data-tab="{key}">{word}</a>' for key, word in TABS)
    return (
        f"<header><h1>{name}{shown} <small>{escape(picture.sources[0].name)}</small></h1>"
        f'<ul class="facts">{lines}</ul><div class="bar"><nav>{tabs}</nav>'
        '<form id="sizes" class="js" aria-label="Run-time sizes"></form>'
        '<input id="search" class="js" type="search" placeholder="Search blocks ( / )" '
        'aria-label="Search blocks"><output id="found" class="js"></output></div></header>\n'
    )


# ---------------------------------------------------------------------------------- tree


def _tree(picture: Picture) -> str:
    head = (
        '<div class="row head" aria-hidden="true"><span>block</span><span>result</span>'
        '<span class="num">parameters</span><span class="num">flops</span>'
        '<span class="share">share of flops</span><span>line</span></div>'
    )
    axes = "".join(f"<li>{escape(line)}</li>" for line in legend(picture))
    return f'<div class="tree">{head}{_branch(picture, picture.root)}</div><ul class="axes">{axes}</ul>'


def _branch(picture: Picture, block: Block) -> str:
    row, ids = _row(picture, block), f'id="b{block.number}" data-block="{block.number}"'
    if not block.children:
        return f'<div class="leaf {block.kind}" {ids}>{row}</div>'
    opened = " open" if block.kind != "block" else ""
    inner = "".join(_branch(picture, child) for child in block.children)
    return (
        f'<details class="{block.kind}" {ids}{opened}>'
        f'<summary>{row}</summary><div class="inner">{inner}</div></details>'
    )


def _row(picture: Picture, block: Block) -> str:
    times = f' <b class="times">× {escape(block.times)}</b>' if block.times else ""
    calls = block.calls if block.calls != block.label else ""
    called = f' <span class="calls">{escape(calls)}</span>' if calls else ""
    kind = escape(shape(block.results[0])) if block.results else ""
    parameters, whole = block.cost.parameters, picture.report.parameters
    flops = block.cost.work.flops
    shown = form(flops, picture.at) if flops.terms else ""
    count = short(parameters) if parameters else ""
    return (
        f'<span class="row"><span class="label">{escape(block.label)}{times}{called}</span>'
        f'<span class="shape">{kind}</span>'
        f'<span class="num" title="{percent(parameters, whole)}">{count}</span>'
        f'<span class="num flops" title="{escape(str(flops))}">{escape(shown)}</span>'
        f'<span class="share"></span>{_link(picture, block.place)}</span>'
    )


def _link(picture: Picture, place: Lines | None) -> str:
    number = _number(picture, place)
    if place is None or number is None:
        return "<span></span>"
    name = "" if number == 0 else place.source.rpartition("/")[2].removesuffix(".arch")
    title = escape(f"{place.source}:{place.first}")
    href = f"#s{number}l{place.first}"
    return f'<a class="at" href="{href}" title="{title}">{escape(name)}:{place.first}</a>'


def _number(picture: Picture, place: Lines | None) -> int | None:
    names = [source.name for source in picture.sources]
    return names.index(place.source) if place is not None and place.source in names else None


# ------------------------------------------------------------------------------ data flow


def _flows(picture: Picture) -> str:
    """The model with its repeats unrolled once, then each block that has a flow of its own."""
    parts = [_figure(picture.root, "the whole model")]
    parts += [_figure(b, b.path or b.label) for b in picture.blocks if _has_flow(b)]
    return "".join(parts)


def _has_flow(block: Block) -> bool:
    return block.kind == "block" and len(block.children) > 1


def _figure(block: Block, caption: str) -> str:
    return (
        f'<figure class="flow" id="flow-{block.number}" data-flow="{block.number}">'
        f"<figcaption>{escape(caption)}</figcaption>"
        f'<div class="canvas" tabindex="0">{figure(block)}</div></figure>'
    )


# ------------------------------------------------------------------------- passes, kernels


def _passes(stages: Stages) -> str:
    if not stages.passes:
        return "<p>No pass ran.</p>"
    return "".join(map(_stage, stages.passes))


def _stage(stage: Stage) -> str:
    quiet = sum(n for _, n in stage.quiet)
    words = [f"{stage.fired} fired"] if stage.fired else []
    words += [f"{n} declined"] if (n := len(stage.sites) - stage.fired) else []
    words += [f"{quiet} simplified"] if quiet else []
    head = f"<b>{escape(stage.name)}</b> <span>{', '.join(words) or 'nothing to do'}</span>"
    if not words and not stage.diffs:
        return f'<p class="stage idle">{head}</p>'
    rules = ", ".join(f"{escape(rule)} ×{n}" for rule, n in stage.quiet)
    sites = "".join(map(_site, stage.sites))
    diffs = "".join(_diff(name, lines) for name, lines in stage.diffs)
    return (
        f'<details class="stage"><summary>{head}</summary>'
        f'<p class="equation">{escape(stage.equation)}</p>'
        f"{f'<p>{rules}</p>' if rules else ''}{f'<ul class=sites>{sites}</ul>' if sites else ''}"
        f"{diffs}</details>"
    )


def _site(site: dict[str, Any]) -> str:
    word = "fired" if site["fired"] else "declined"
    lines = ", ".join(site["lines"])
    where = f"{lines} ({site['region']})" if site["region"] else lines
    reason = f": {site['reason']}" if site["reason"] else ""
    moved = ""
    if site["bytes_before"] is not None:
        moved = f" [{_bytes(site['bytes_before'])} → {_bytes(site['bytes_after'])}]"
    text = f"{site['rule']}, {where}{reason}{moved}"
    return (
        f'<li class="{word}"><b>{word}</b> {escape(text)} <i>in {escape(site["function"])}</i></li>'
    )


def _bytes(count: int | str | None) -> str:
    return f"{short(count)}B" if isinstance(count, int) else f"{count} B"


def _diff(name: str, lines: Iterable[str]) -> str:
    marks = {"+": "ins", "-": "del", "@": "at"}
    body = "\n".join(
        f'<span class="{marks[line[0]]}">{escape(line)}</span>'
        if line[:1] in marks
        else escape(line)
        for line in lines
    )
    summary = f"<summary>{escape(name)}</summary>"
    return f'<details class="diff">{summary}<pre tabindex="0">{body}</pre></details>'


def _kernels(picture: Picture, stages: Stages) -> str:
    if not stages.backend:
        file = escape(picture.sources[0].name)
        return (
            "<p>This page was made without a backend. To see generated kernels here:</p>"
            f"<pre>archc show {file} --backend triton -o OUT.html</pre>"
        )
    if not stages.pieces:
        return (
            f"<p>The {stages.backend} backend runs the graph itself: its source is the graph.</p>"
        )
    return "".join(_piece(i, piece) for i, piece in enumerate(stages.pieces))


def _piece(number: int, piece: Piece) -> str:
    places = ", ".join(f"{name}:{line}" for name, line, _ in piece.places)
    return (
        f'<details class="piece" id="k{number}"><summary><b>{escape(piece.name)}</b> '
        f"<span>{escape(piece.file)}{escape(f', from {places}') if places else ''}</span></summary>"
        f'<pre tabindex="0">{escape(piece.text)}</pre></details>'
    )


def _of(block: Block, pieces: Iterable[Piece]) -> Iterator[int]:
    """The pieces that name a block: a line that applies it, with its label among the regions."""
    path = block.path.rpartition("[].")[2]
    site = {(lines.source, n) for lines in block.site for n in range(lines.first, lines.last + 1)}
    for number, piece in enumerate(pieces):
        for name, line, regions in piece.places:
            named = any(f"{r}.".startswith(f"{path}.") for r in regions)
            if (name, line) in site and (named or block.kind == "line"):
                yield number
                break


# ------------------------------------------------------------------------------- sources


def _sources(picture: Picture) -> str:
    options = "".join(
        f'<option value="{i}">{escape(source.name)}</option>'
        for i, source in enumerate(picture.sources)
    )
    texts = "".join(_source(i, source) for i, source in enumerate(picture.sources))
    return (
        f'<label class="js files">text <select id="file">{options}</select></label>'
        f'<div id="sources" tabindex="0">{texts}</div>'
    )


def _source(number: int, source: Source) -> str:
    lines = _coloured(source).split("\n")
    body = "".join(
        f'<span class="l" id="s{number}l{i}" data-at="{number}:{i}"><i>{i}</i>{line}\n</span>'
        for i, line in enumerate(lines, 1)
    )
    return (
        f'<section class="source" data-source="{number}"><h3>{escape(source.name)}</h3>'
        f"<pre>{body}</pre></section>"
    )


def _coloured(source: Source) -> str:
    """The text with its words marked; a mark ends at each end of a line."""
    parts, place = list[str](), 0
    for kind, text, start, end in lexer.scan(source, []):
        known = KINDS.get(kind)
        if known is None and (text in lexer.RESERVED | lexer.DEFINING | WORDS):
            known = "k"
        if known is None or source.text[start:end] != text:
            continue
        parts.append(escape(source.text[place:start]))
        parts.append("\n".join(f'<em class="{known}">{escape(t)}</em>' for t in text.split("\n")))
        place = end
    return "".join([*parts, escape(source.text[place:])])


# ---------------------------------------------------------------------------------- data


def _data(picture: Picture, stages: Stages) -> str:
    symbols = sorted(run_time_symbols(picture.program))
    data = {
        "sizes": {s: picture.at.get(s, 1 if s == symbols[0] else LENGTH) for s in symbols},
        "blocks": [_entry(picture, block, stages) for block in picture.blocks],
        "kernels": [piece.name for piece in stages.pieces],
    }
    return json.dumps(data, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")


def _entry(picture: Picture, block: Block, stages: Stages) -> dict[str, Any]:
    def known(places: Iterable[Lines]) -> list[list[int]]:
        found = ((_number(picture, p), p) for p in places)
        return [[n, p.first, p.last] for n, p in found if n is not None]

    forms = {name: size for name, size in block.cost.forms.items() if size.terms}
    return {
        "n": block.number,
        "kind": block.kind,
        "label": block.label,
        "path": block.path,
        "calls": block.calls,
        "times": block.times,
        "runs": terms(picture, block.runs),
        "results": [str(kind) for kind in block.results],
        "parameters": block.cost.parameters,
        "active": block.cost.active,
        "forms": {name: [form(s), terms(picture, s)] for name, s in forms.items()},
        "site": known(block.site),
        "body": known(block.body),
        "ops": list(block.ops),
        "weights": [[r.path, r.count, r.size] for r in block.weights],
        "flow": _has_flow(block),
        "kernels": list(_of(block, stages.pieces)),
    }
