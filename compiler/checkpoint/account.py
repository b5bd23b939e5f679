"""What became of every config field and every tensor of a checkpoint: the rows that `import` shows.

The law is that each is used, takes a default, is ignored for a reason, or is refused. Rows are made
from the same readings that loading makes, so that the two cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ...dsl import syntax as syn
from ..ir.graph import Program
from .arrangement import claims
from .config import ConfigReading, ConfigStatement, Path, leaves, why_ignored
from .fold import show
from .lines import Entry, expand
from .reader import Checkpoint

USED, DEFAULTED, IGNORED, REFUSED = "used", "defaulted", "ignored", "refused"


@dataclass(frozen=True, slots=True)
class Row:
    """A field or a tensor: what it holds, what became of it, the lines it went to, or why not."""

    name: str
    holds: str
    fate: str
    to: tuple[str, ...] = ()
    reason: str = ""
    count: int = 1

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "holds": self.holds,
            "fate": self.fate,
            "to": list(self.to),
            "reason": self.reason,
            "count": self.count,
        }


def config_rows(block: syn.CheckpointDef, reading: ConfigReading) -> tuple[Row, ...]:
    """The fields of the config in its order, then the defaults in that of the lines."""
    defaulted = {default.paths[0] for default in reading.defaults}
    present = (
        _field(block, reading, path, value)
        for path, value in leaves(reading.config)
        if path not in defaulted  # there it is null, and its row comes below
    )
    absent = (
        Row(".".join(d.paths[0]), show_value(d.value), DEFAULTED, (_target(d.line),))
        for d in reading.defaults
    )
    return (*present, *absent, *_missing(reading))


def _field(block: syn.CheckpointDef, reading: ConfigReading, path: Path, value: Any) -> Row:
    name, holds = ".".join(path), show_value(value)
    lines = reading.mentions.get(path, [])
    refusals = {id(line): error for line, error in reading.errors if line is not None}
    for line in lines:
        if id(line) in refusals:
            return Row(name, holds, REFUSED, (_target(line),), refusals[id(line)].message)
    if value is not None and lines:
        return Row(name, holds, USED, tuple(map(_target, lines)))
    reason = (
        "null, as if it were absent"
        if value is None
        else why_ignored(reading.config, path, value, block)
    )
    if reason is not None:
        return Row(name, holds, IGNORED, (), reason)
    return Row(name, holds, REFUSED, (), "no line reads it")


def _missing(reading: ConfigReading) -> Iterator[Row]:
    """Fields that a failed line needs, and the config lacks."""
    present = {path for path, _ in leaves(reading.config)}
    for line, error in reading.errors:
        paths = [path for path, lines in reading.mentions.items() if line in lines]
        if line is not None and not present.intersection(paths):
            longest: Path = max(paths, key=len, default=())
            yield Row(".".join(longest), "", REFUSED, (_target(line),), error.message)


def _target(line: ConfigStatement) -> str:
    name = f"require {line.condition.span.text}" if isinstance(line, syn.RequireLine) else line.name
    return f"{name} (line {line.span.line})"


def show_value(value: Any) -> str:
    return value.span.text if isinstance(value, syn.Expr) else show(value)


def tensor_rows(block: syn.CheckpointDef, source: Checkpoint, program: Program) -> tuple[Row, ...]:
    """The tensors of the file, those of one line in all its layers as one row."""
    if source.tensors is None:
        return ()
    lines = expand(block, program, source.tensors.names)
    entries = {entry.name: entry for entry in lines.live()}
    groups: dict[object, list[Row]] = {}
    for name in source.tensors.names:
        holds, entry = str(list(source.tensors.shape(name))), entries.get(name)
        ignoring = lines.ignores(name)
        if entry is not None:
            row, key = _used(entry, holds), id(entry.line)
        elif ignoring is not None:
            reason = ignoring.reason or "listed by the checkpoint block"
            row, key = Row(name, holds, IGNORED, (), reason), id(ignoring)
        else:
            row, key = Row(name, holds, REFUSED, (), "no line reads it"), id(None)
        groups.setdefault((key, holds), []).append(row)
    return tuple(_folded(rows) for rows in groups.values())


def _used(entry: Entry, holds: str) -> Row:
    assert entry.tree is not None
    weights = tuple(dict.fromkeys(claim.path for claim in claims(entry.tree)))
    reason = "a second copy, which must be equal" if entry.line.alias else ""
    return Row(entry.name, holds, USED, weights, reason)


def _folded(rows: list[Row]) -> Row:
    first = rows[0]
    to = tuple(_pattern(paths) for paths in zip(*(row.to for row in rows), strict=True))
    name = _pattern([row.name for row in rows])
    return Row(name, first.holds, first.fate, to, first.reason, len(rows))


def _pattern(names: Iterable[str]) -> str:
    """One name for all: numbers that differ become `*`."""
    parts = [re.split(r"(\d+)", name) for name in names]
    if len({len(part) for part in parts}) > 1:
        return f"{''.join(parts[0])}, .."
    return "".join(a[0] if len(set(a)) == 1 else "*" for a in zip(*parts, strict=True))
