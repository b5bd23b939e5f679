"""What a comparison found, as data, as a screen and as JSON.

One row per group of nodes, layers that agree folded into one; one column per candidate: the
greatest error relative to gold, and whether the group *introduces* an error or *inherits* it.
Below, for each candidate that differs, the node where it begins, with its line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from ..dsl.diagnostics import snippet
from ..dsl.span import Span
from ..equality import Comparison
from .conventions import Hint
from .quantising import Quantising
from .regions import folded, places

Status = Literal["agrees", "introduced", "inherited", "differs"]
ORDER: tuple[Status, ...] = ("agrees", "inherited", "differs", "introduced")  # by weight


@dataclass(frozen=True, slots=True)
class Cell:
    """A group's worst value on one candidate; its error is infinite where it must be exact."""

    status: Status
    error: float

    def worse(self, other: Cell) -> Cell:
        return max(self, other, key=lambda cell: (ORDER.index(cell.status), cell.error))

    def __str__(self) -> str:
        error = "not exact" if self.error == float("inf") else f"{self.error:.1e}"
        return error if self.status == "agrees" else f"{error} {self.status}"


@dataclass(frozen=True, slots=True)
class Row:
    """A group of nodes; a candidate has no cell where its program has no such group.

    `module` is the published class's part that it is compared with, if any.
    """

    region: str
    cells: dict[str, Cell] = field(default_factory=dict)
    module: str = ""

    @property
    def statuses(self) -> dict[str, Status]:
        return {name: cell.status for name, cell in self.cells.items()}


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a candidate first differs.

    `within` is the fused node that contains the node at fault, in words; `introduced` is false when
    the node is right on exact operands, so that the whole run must feed it something else.
    `reads` are the weights it reads, `at_load` says that it reads nothing else. `hints` are known
    conventions by which the reference would agree. `inherits` names the passes whose error it is:
    the candidate computes rightly what they made of the text.
    """

    candidate: str
    case: str
    region: str
    op: str
    value: str
    spans: tuple[Span, ...]
    comparison: Comparison
    introduced: bool
    within: str = ""
    reads: tuple[str, ...] = ()
    at_load: bool = False
    hints: tuple[Hint, ...] = ()
    inherits: str = ""

    def lines(self) -> list[str]:
        """The screen."""
        if self.inherits:
            return [
                f"{self.candidate} inherits the error of {self.inherits}",
                f"  {self.what_is_wrong()}",
            ]
        out = [f"{self.candidate} first differs at {self.what()}"]
        for mark, span in zip("^-", places(self.spans), strict=False):
            out += snippet(span, "", mark)
        hints = (f"  hint: {hint}" for hint in self.hints)
        return [*out, f"  {self.what_is_wrong()}", *self._advice(), *hints]

    def what(self) -> str:
        """The node, in words."""
        name = f"`{self.op}`" + (f" of `{self.value}`" if self.value else "")
        inside = f", inside {self.within}" if self.within else ""
        return f"{self.region}: {name}{inside}"

    def what_is_wrong(self) -> str:
        return f"{self.kind}: {stated(self.comparison)} ({self.case} inputs)"

    @property
    def kind(self) -> str:
        if self.inherits:
            return "error inherited"
        return "error introduced" if self.introduced else "error in the whole run only"

    def _advice(self) -> list[str]:
        weights = ", ".join(f"`{path}`" for path in self.reads)
        if self.op == "weight":
            return []
        if self.introduced:
            return [f"  this is computed at load from {weights}"] if self.at_load else []
        return [f"  on exact operands this node is right; look at what it reads: {weights}"]

    def to_json(self) -> dict[str, Any]:
        return {
            "candidate": self.candidate,
            "inputs": self.case,
            "region": self.region,
            "op": self.op,
            "value": self.value,
            "within": self.within,
            "places": located(self.spans),
            "introduced": self.introduced,
            "inherits": self.inherits,
            **judged(self.comparison),
            "reads": list(self.reads),
            "hints": [hint.words for hint in self.hints],
        }


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A region that is not compared with the module that has its tensors, and why."""

    region: str
    module: str
    why: str

    def alike(self) -> tuple[str, ...]:
        """What it has in common with the same of another layer."""
        return tuple(re.sub(r"\d+", "0", text) for text in (self.module, self.why))


class Finding(Protocol):
    """Where a candidate first differs, in whichever kind of comparison."""

    @property
    def candidate(self) -> str: ...

    @property
    def region(self) -> str: ...

    @property
    def spans(self) -> tuple[Span, ...]: ...

    @property
    def comparison(self) -> Comparison: ...

    def lines(self) -> list[str]:
        """The screen."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Report:
    """The whole comparison. `rows` are in the order in which groups run, outputs last."""

    model: str
    candidates: tuple[str, ...]
    cases: tuple[str, ...]
    rows: tuple[Row, ...]
    divergences: tuple[Finding, ...]
    quantising: tuple[Quantising, ...] = ()
    against: str = "the reference"
    left_out: tuple[LeftOut, ...] = ()

    @property
    def agree(self) -> bool:
        return not self.divergences

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "candidates": list(self.candidates),
            "inputs": list(self.cases),
            "agree": self.agree,
            "groups": [
                {
                    "region": row.region,
                    **({"module": row.module} if row.module else {}),
                    **{
                        name: {"status": cell.status, "error": _number(cell.error)}
                        for name, cell in row.cells.items()
                    },
                }
                for row in self.rows
            ],
            "divergences": [d.to_json() for d in self.divergences],
            **({"left_out": [asdict(x) for x in self.left_out]} if self.left_out else {}),
            **({"quantising": [q.to_json() for q in self.quantising]} if self.quantising else {}),
        }

    def __str__(self) -> str:
        head = [self.model, *(f"  inputs {case}" for case in self.cases), ""]
        titles = ("region", *(["module"] if self._has_modules else []), *self.candidates)
        table = _table(titles, [self._texts(row) for row in self._shown()])
        ends = [line for d in self.divergences for line in ("", *d.lines())]
        lossy = [line for q in self.quantising for line in ("", *self._lossy(q))]
        return "\n".join([*head, *table, *self._left_out(), *ends, *lossy, "", self.verdict()])

    def _left_out(self) -> list[str]:
        """What is not compared, layers folded into one."""
        found = folded([(x.region, x.alike()) for x in self.left_out])
        rows = [
            (label, *(_ranged(texts[0], texts[-1]) for texts in zip(*columns, strict=True)))
            for label, members in found
            for columns in [[(self.left_out[i].module, self.left_out[i].why) for i in members]]
        ]
        return ["", *_table(("not compared", "module", "why"), rows)] if rows else []

    def _lossy(self, found: Quantising) -> list[str]:
        """What quantising changed: a row for each group, layers folded into one, outputs last."""
        head = (f"{found.quant} against {found.dtype}", "introduced", "in the whole run")
        return _table(head, [(region, *map(str, loss.shown())) for region, loss in found.rows()])

    def verdict(self) -> str:
        wrong = dict.fromkeys(d.candidate for d in self.divergences)
        right = [name for name in self.candidates if name not in wrong]
        if not wrong:
            verb = "agree" if len(right) > 1 else "agrees"
            return f"{listed(right)} {verb} with {self.against}"
        first = self.divergences[0]
        span = next(places(first.spans), None)
        at = f" ({span.source.name}:{span.line})" if span else ""
        verb = "differ" if len(wrong) > 1 else "differs"
        return f"{listed(list(wrong))} {verb}: first at {first.region}{at}"

    def _shown(self) -> list[Row]:
        found = folded([(row.region, row.statuses) for row in self.rows])
        return [_merged(label, [self.rows[i] for i in members]) for label, members in found]

    def _texts(self, row: Row) -> tuple[str, ...]:
        cells = (str(row.cells[c]) if c in row.cells else "" for c in self.candidates)
        return (row.region, *([row.module] if self._has_modules else []), *cells)

    @property
    def _has_modules(self) -> bool:
        return any(row.module for row in self.rows)


def _merged(label: str, rows: Sequence[Row]) -> Row:
    cells: dict[str, Cell] = {}
    for row in rows:
        for name, cell in row.cells.items():
            cells[name] = cell.worse(cells.get(name, cell))
    return Row(label, cells, _ranged(rows[0].module, rows[-1].module))


def _ranged(first: str, last: str) -> str:
    """`h.0..2.attn` for `h.0.attn` and `h.2.attn`."""
    pairs = zip(*(re.split(r"(\d+)", text) for text in (first, last)), strict=False)
    return "".join(a if a == b else f"{a}..{b}" for a, b in pairs)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    texts = [head, tuple("-" * width for width in widths), *rows]
    return ["  ".join(t.ljust(w) for t, w in zip(r, widths, strict=True)).rstrip() for r in texts]


def stated(comparison: Comparison) -> str:
    """What breaks the rule, in words."""
    c = comparison
    return c.mismatch or f"{c.error:.1e}, where {c.allowed:.1e} is allowed"


def judged(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain data."""
    c = comparison
    return {"error": _number(c.error), "allowed": c.allowed, "mismatch": c.mismatch}


def located(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Where a value is written, as plain data."""
    return [
        {"file": s.source.name, "line": s.line, "column": s.column, "text": s.text}
        for s in places(spans)
    ]


def _number(error: float) -> float | None:
    """JSON has no infinity: an error without a size is null."""
    return None if error == float("inf") else error


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
