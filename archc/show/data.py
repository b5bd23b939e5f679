"""The picture as plain data: for tools, and for the script of the page."""

from __future__ import annotations

from typing import Any

from ..compiler.unknowns import between
from ..dsl.dims import Atom, Dim
from .picture import Block, Lines, Picture


def record(picture: Picture) -> dict[str, Any]:
    """The whole tree. A form is its text, and its value where the sizes are known."""
    return {
        "model": picture.program.name,
        "preset": picture.preset or None,
        "file": picture.sources[0].name,
        "sizes": {**picture.program.sizes, **picture.at},
        "axes": [{"name": a.name, "size": str(a.size), "timeline": a.time} for a in picture.axes],
        "tree": _block(picture, picture.root),
    }


def _block(picture: Picture, block: Block) -> dict[str, Any]:
    cost = block.cost
    return {
        "number": block.number,
        "kind": block.kind,
        "label": block.label,
        "path": block.path,
        "definition": block.calls or None,
        "times": block.times or None,
        "runs": _form(picture, block.runs),
        "results": [str(kind) for kind in block.results],
        "parameters": cost.parameters,
        "active_parameters": cost.active,
        **{name: _form(picture, size) for name, size in cost.forms.items()},
        "site": [_lines(lines) for lines in block.site],
        "body": [_lines(lines) for lines in block.body],
        "ops": list(block.ops),
        "weights": [{"path": r.path, "count": r.count, "size": r.size} for r in block.weights],
        "flow": [{"from": e.source, "to": e.target, "type": str(e.type)} for e in block.flow],
        "children": [_block(picture, child) for child in block.children],
    }


def _form(picture: Picture, size: Dim) -> dict[str, Any]:
    return {"formula": str(size), "value": size.substitute(picture.at).constant}


def _lines(lines: Lines) -> dict[str, Any]:
    return {"file": lines.source, "first": lines.first, "last": lines.last}


def terms(picture: Picture, size: Dim) -> list[Any]:
    """A form as nested lists, with the most of what data decides: `[[2, ["b", ["min", .., ..]]]]`."""
    _, most, _ = between(size, {u.name: u for u in picture.report.unknowns}, {})
    return _terms(most)


def _terms(size: Dim) -> list[Any]:
    return [[factor, [_atom(a) for a in monomial]] for monomial, factor in size.terms]


def _atom(atom: Atom) -> Any:
    return [atom.name, *map(_terms, atom.args)] if atom.args else atom.name
