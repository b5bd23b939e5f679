"""What a node is called in a report: its region of the model, and its place in the text.

A region is a path such as `layers[3].attention.q`; nodes are grouped by its part down to the first
block below the call path, and a node that a pass fused from several blocks is in `a+b`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from ..compiler.ir.graph import Node, Origin, Program
from ..compiler.ir.walk import join
from ..dsl.span import Span

UNPLACED = frozenset({"const", "index", "size", "input"})  # shared by whoever needs the same one
MODEL = "(model)"


def computing_nodes(program: Program, node: Node) -> tuple[Node, ...]:
    """The nodes that a fused node stands for; of another node, itself."""
    if "body" not in node.attrs:
        return (node,)
    inside = tuple(n for n in program.body(node).nodes if n.op not in UNPLACED)
    return inside or (node,)


def blocks(program: Program, node: Node) -> tuple[str, ...]:
    """The blocks that a node belongs to, in the order of its parts; none at the top of a path."""
    parts = computing_nodes(program, node)
    found = (o.region.split(".")[0] for part in parts for o in part.origins)
    return tuple(dict.fromkeys(block for block in found if block))


def group(program: Program, path: str, node: Node) -> str:
    """The group of a node at a call path."""
    label = "+".join(blocks(program, node))
    return join(path, label) if label else path or MODEL


def origin(program: Program, node: Node, within: Sequence[str] = ()) -> Origin:
    """Where a node was written. Of several places, one in the blocks `within`, if there is one.

    A fused node was written where its result was.
    """
    if "body" in node.attrs:
        body = program.body(node)
        node = body[body.output_ids[0]]
    ours = [o for o in node.origins if o.region.split(".")[0] in within]
    return (ours or list(node.origins) or [Origin()])[0]


def main_block(program: Program, node: Node) -> tuple[str, ...]:
    """The block that most parts of a node come from, in a tuple; empty when there is none."""
    parts = computing_nodes(program, node)
    counts = Counter(b for part in parts for b in blocks(program, part))
    return tuple(block for block, _ in counts.most_common(1))


def in_std(span: Span) -> bool:
    return span.source.name.startswith("std/")


def places(spans: Sequence[Span]) -> Iterator[Span]:
    """The innermost span of a text that is the user's, then the innermost one of all."""
    users = [span for span in spans if not in_std(span)]
    yield from users[:1]
    yield from [span for span in spans[:1] if span not in users[:1]]


INDEX = re.compile(r"\[(\d+)\]")


def folded(labels: Sequence[tuple[str, object]]) -> list[tuple[str, list[int]]]:
    """Rows to show for labelled contents: label, and which of the given rows it stands for.

    Rows that differ in the first index alone are one `layers[0..2]` while their contents agree.
    """
    rows: dict[tuple[str, int], list[int]] = {}
    numbers: list[int | None] = []
    runs: Counter[str] = Counter()
    for position, (label, content) in enumerate(labels):
        match = INDEX.search(label)
        numbers.append(int(match[1]) if match else None)
        stem = label if match is None else f"{label[: match.start()]}[*]{label[match.end() :]}"
        before = rows.get((stem, runs[stem]))
        if before is not None and not _continues(labels, numbers, before[-1], position, content):
            runs[stem] += 1
        rows.setdefault((stem, runs[stem]), []).append(position)
    return [(_span_label(labels, members), members) for members in rows.values()]


def _continues(
    labels: Sequence[tuple[str, object]],
    numbers: Sequence[int | None],
    last: int,
    position: int,
    content: object,
) -> bool:
    a, b = numbers[last], numbers[position]
    return a is not None and b is not None and b == a + 1 and labels[last][1] == content


def _span_label(labels: Sequence[tuple[str, object]], members: Sequence[int]) -> str:
    first, last = (INDEX.search(labels[i][0]) for i in (members[0], members[-1]))
    label = labels[members[0]][0]
    if first is None or last is None or first[1] == last[1]:
        return label
    return f"{label[: first.start()]}[{first[1]}..{last[1]}]{label[first.end() :]}"
