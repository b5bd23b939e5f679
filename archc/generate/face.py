"""What of a model takes token ids and gives the logits of the next: found in its graph, once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..dsl.dims import Dim
from ..dsl.errors import NotGenerative
from ..dsl.syntax import Name, TimeStmt, walk

if TYPE_CHECKING:
    from ..api import Model
    from ..compiler.ir.graph import Node


@dataclass(frozen=True, slots=True)
class Lane:
    """An input of token ids `[b, n]`, and the bool input that says which of them are there."""

    ids: str
    valid: str | None
    valid_needed: bool = False

    def names(self, padded: bool) -> tuple[str, ...]:
        """The inputs to supply, for rows that are padded or not."""
        if self.valid is None or not (padded or self.valid_needed):
            return (self.ids,)
        return (self.ids, self.valid)


@dataclass(frozen=True, slots=True)
class Face:
    """`text` is decoded, `source` is read whole by an encoder.

    `logits` is an output `[b, s, vocabulary]`.
    """

    text: Lane
    source: Lane | None
    logits: str
    vocabulary: int

    def names(self, padded: bool, given: Collection[str]) -> tuple[str, ...]:
        """All inputs to supply, those `given` last."""
        source = self.source.names(padded) if self.source is not None else ()
        return tuple(dict.fromkeys((*self.text.names(padded), *source, *given)))


def face_of(model: Model) -> Face:
    """Raises `NotGenerative` for a model that does not continue a text token by token."""
    program = model.program
    main, time = program.main, program.decode
    if not time:
        raise refuse(model, "it has no line `decode`")
    nodes = {main[i].attrs.string("name"): main[i] for i in main.inputs}
    needed = {n: node for n, node in nodes.items() if not node.attrs.get("optional")}
    valid = _validity(model, nodes)
    decoded = [n for n, node in needed.items() if time in _names(node) and n not in valid.values()]
    if (
        len(decoded) != 1
        or not _is_ids(nodes[decoded[0]])
        or nodes[decoded[0]].axes[1].name != time
    ):
        raise refuse(model, f"its inputs along `{time}` are {', '.join(decoded) or 'none'}")
    text = _lane(decoded[0], valid.get(time), needed)
    logits = _logits(model, nodes[text.ids])
    sources = [n for n in needed if n != text.ids and _is_ids(nodes[n])]
    source = None
    if len(sources) == 1:
        along = nodes[sources[0]].axes[1].name
        source = _lane(sources[0], valid.get(along), needed)
    size = main[dict(main.outputs)[logits]].axes[2].size.evaluate(program.sizes)
    return Face(text, source, logits, size)


def refuse(model: Model, reason: str) -> NotGenerative:
    definition = model.definition
    return NotGenerative(model=definition.name, reason=reason, span=definition.span)


def _names(node: Node) -> Sequence[str]:
    return [axis.name for axis in node.axes]


def _is_ids(node: Node) -> bool:
    return node.attrs["kind"] == "ids" and len(node.axes) == 2


def _lane(ids: str, valid: str | None, needed: dict[str, Node]) -> Lane:
    return Lane(ids, valid, valid in needed)


def _validity(model: Model, nodes: dict[str, Node]) -> dict[str, str]:
    """For each timeline the input `[b, n]` that a `time` line declares as its `valid`."""
    found = {}
    for statement in walk(model.definition):
        if isinstance(statement, TimeStmt):
            value = dict(statement.facts).get("valid")
            name = value.name if isinstance(value, Name) else ""
            axes = _names(nodes[name]) if name in nodes else ()
            if len(axes) == 2 and axes[1] == statement.axis:
                found[statement.axis] = name
    return found


def _logits(model: Model, ids: Node) -> str:
    """The output with a number for each id in each row along the decoded axis."""
    main, time = model.program.main, model.program.decode
    below, sizes = ids.attrs.get("below"), model.program.sizes
    found = []
    for name, i in main.outputs:
        axes = main[i].axes
        if len(axes) == 3 and axes[1].name == time and axes[2].size.symbols() <= sizes.keys():
            same = isinstance(below, int | Dim) and Dim.of(below).evaluate(sizes)
            if same == axes[2].size.evaluate(sizes):
                found.append(name)
    if not found:
        raise refuse(model, f"no output has a number for each id and position along `{time}`")
    return "logits" if "logits" in found else found[0]
