"""The cost report: what `cost` found, as text and as JSON.

A form is a size in the run-time sizes (`b`, `s`) and in named unknowns, counts that data decides. With the
sizes given it is also a number: with unknowns in it, the least, the most and what is expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..dsl.dims import Dim
from .state import State
from .unknowns import Unknown, between

ZERO = Dim()


@dataclass(frozen=True, slots=True)
class WeightRow:
    """Weights of one place in the text: `path` has `[]` where layers differ. Buffers are not trained.

    Of each, a token uses `active` elements: of a bank those of the entries picked for it, else all.
    """

    path: str
    count: int
    size: int
    trained: bool = True
    active: int = 0

    @property
    def total(self) -> int:
        return self.count * self.size


@dataclass(frozen=True, slots=True)
class Work:
    """Operations of one forward pass: flops of contractions, other scalar operations."""

    flops: Dim = ZERO
    elementwise: Dim = ZERO

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.elementwise + other.elementwise)

    def times(self, count: Dim) -> Work:
        return Work(self.flops * count, self.elementwise * count)


@dataclass(frozen=True, slots=True)
class CostReport:
    """`work` and the bytes are forms in the run-time sizes; `at` gives sizes for numbers.

    `weight_bytes` are read once in a call, however many tokens it has. `masked` says that some
    products are formed of which a mask hides a part: their flops are an upper bound.
    """

    name: str
    weights: tuple[WeightRow, ...]
    embedding: int
    work: Work
    regions: tuple[tuple[str, Work], ...]
    states: tuple[State, ...] = ()
    weight_bytes: Dim = ZERO
    unknowns: tuple[Unknown, ...] = ()
    masked: bool = False
    at: Mapping[str, int] = field(default_factory=dict)
    peak_bytes: int | None = None

    @property
    def parameters(self) -> int:
        return sum(row.total for row in self.weights if row.trained)

    @property
    def active(self) -> int:
        """Trained parameters that one token uses: those of a bank by the entries picked of all."""
        return sum(row.count * row.active for row in self.weights if row.trained)

    @property
    def buffers(self) -> int:
        """Elements that a checkpoint stores and no training changes."""
        return sum(row.total for row in self.weights if not row.trained)

    @property
    def non_embedding(self) -> int:
        """Without the token embedding; an untied head stays in."""
        return self.parameters - self.embedding

    @property
    def state_bytes(self) -> Dim:
        """Kept for each token, by a window only for the last ones."""
        return self._held("append", "ring")

    @property
    def recurrent_bytes(self) -> Dim:
        """Kept for a row of the batch, however many tokens it has: recurrences and last inputs."""
        return self._held("recurrent", "last")

    @property
    def constant_bytes(self) -> Dim:
        """Made once for a row of the batch: what is read of an encoder."""
        return self._held("constant")

    def _held(self, *kinds: str) -> Dim:
        return sum((s.total for s in self.states if s.kind in kinds), ZERO)

    # ------------------------------------------------------------------------------- JSON

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "parameters": self.parameters,
            "active_parameters": self.active,
            "non_embedding_parameters": self.non_embedding,
            "buffers": self.buffers,
            "weights": [asdict(r) | {"total": r.total} for r in self.weights],
            "weight_bytes_read": self._form(self.weight_bytes),
            "flops": self._form(self.work.flops),
            "flops_count_masked_pairs": self.masked,
            "elementwise_operations": self._form(self.work.elementwise),
            "regions": {name: self._form(work.flops) for name, work in self.regions},
            "state_bytes_per_token": self._form(self.state_bytes),
            "recurrent_state_bytes": self._form(self.recurrent_bytes),
            "constant_state_bytes": self._form(self.constant_bytes),
            "state": [self._state(state) for state in self.states],
            "unknowns": [self._unknown(unknown) for unknown in self.unknowns],
            "sizes": dict(self.at),
            "peak_activation_bytes": self.peak_bytes,
        }

    def _form(self, size: Dim) -> dict[str, Any]:
        found: dict[str, Any] = {"formula": str(size), "value": self._value(size)}
        if size.symbols() & self._known.keys():
            least, most, expected = between(size, self._known, self.at)
            found |= {
                "least": self._value(least),
                "most": self._value(most),
                "expected": expected,
            }
        return found

    def _state(self, state: State) -> dict[str, Any]:
        return {
            "kind": state.kind,
            "place": state.place,
            "function": state.function,
            "axes": [axis.name for axis in state.type.axes],
            "dtype": state.type.dtype,
            "count": state.count.constant,
            "bytes": self._form(state.bytes),
            "capacity": self._form(state.capacity) if state.capacity is not None else None,
            "line": _line(state),
        }

    def _unknown(self, unknown: Unknown) -> dict[str, Any]:
        expected = unknown.expected
        mean = between(unknown.symbol, {unknown.name: unknown}, self.at)[2]
        return {
            "name": unknown.name,
            "meaning": unknown.meaning,
            "least": self._form(unknown.least),
            "most": self._form(unknown.most),
            "expected": {"formula": expected, "value": mean} if expected is not None else None,
        }

    # ------------------------------------------------------------------------------- text

    def to_text(self) -> str:
        """Totals first, then a row per weight, per region, per state and per unknown."""
        lines = [self.name, *self._totals(), "", "  weights"]
        lines += [
            f"    {r.path:<32} {r.count:>5} x {r.size:>14,} = {r.total:>16,}"
            + ("" if r.trained else "  buffer")
            + ("" if r.active == r.size else f"  active {r.count * r.active:,}")
            for r in self.weights
        ]
        lines += ["", "  flops by region"]
        lines += [f"    {name or '(top)':<32} {self._shown(w.flops)}" for name, w in self.regions]
        if self.states:
            lines += ["", "  state"]
            lines += [f"    {row:<92} {line}".rstrip() for row, line in self._state_rows()]
        if self.unknowns:
            lines += ["", "  decided by data"]
            lines += [f"    {self._unknown_row(unknown)}" for unknown in self.unknowns]
        return "\n".join(lines)

    def _totals(self) -> Iterator[str]:
        yield f"  parameters           {self.parameters:>20,}"
        yield f"    without embedding  {self.non_embedding:>20,}"
        if self.active != self.parameters:
            yield f"    active             {self.active:>20,}"
        if self.buffers > 0:
            yield f"    with buffers       {self.parameters + self.buffers:>20,}"
        yield f"  weights read         {self._shown(self.weight_bytes)} bytes per call"
        bound = "  at most: masked pairs count" if self.masked else ""
        yield f"  flops, forward       {self._shown(self.work.flops)}{bound}"
        yield f"  other operations     {self._shown(self.work.elementwise)}"
        if self.state_bytes != ZERO:
            yield f"  state                {self._shown(self.state_bytes)} bytes per token"
        if self.recurrent_bytes != ZERO:
            yield f"  recurrent state      {self._shown(self.recurrent_bytes)} bytes per row"
        if self.constant_bytes != ZERO:
            yield f"  constant state       {self._shown(self.constant_bytes)} bytes per row"
        if self.peak_bytes is not None:
            yield f"  peak activations     {self.peak_bytes:,} bytes, op by op"

    def _state_rows(self) -> Iterator[tuple[str, str]]:
        """A row for each kind of state and place; layer kinds that keep the same share one."""
        counts: dict[tuple[str, str, str, str], Dim] = {}
        for state in self.states:
            held = _count(state.capacity) if state.capacity is not None else ""
            per = {
                "append": "per token",
                "ring": f"per token, the last {held}",
                "last": f"for each of the last {held} inputs",
            }.get(state.kind, "per row")
            size = f"{_count(state.bytes)} bytes {per}"
            axes = ", ".join(axis.name for axis in state.features)
            key = (state.kind, f"{state.place or '(top)'} [{axes}]", size, _line(state))
            counts[key] = counts.get(key, ZERO) + state.count
        for (kind, place, size, line), count in counts.items():
            yield f"{kind:<9} {place:<44} {_count(count):>5} x {size}", line

    def _unknown_row(self, unknown: Unknown) -> str:
        _, _, mean = between(unknown.symbol, {unknown.name: unknown}, self.at)
        range_ = f"{_count(unknown.least)} .. {self._shown(unknown.most)}"
        expected = ""
        if unknown.expected is not None:
            value = f" ({mean:,.2f})" if mean is not None else ""
            expected = f", expected {unknown.expected}{value}"
        return f"{unknown.name:<32} {range_}{expected}: {unknown.meaning}"

    def _shown(self, size: Dim) -> str:
        """A form, and what it comes to at the sizes given."""
        if size.constant is not None or not self.at:
            return _count(size)
        where = ", ".join(f"{name} = {n}" for name, n in sorted(self.at.items()))
        if size.symbols() & self._known.keys():
            least, most, expected = between(size, self._known, self.at)
            low, high = self._value(least), self._value(most)
            if low is None or high is None:
                return str(size)
            mean = f", expected {expected:,.0f}" if expected is not None else ""
            return f"{size}  ({low:,} to {high:,}{mean} at {where})"
        value = self._value(size)
        return f"{size}  ({value:,} at {where})" if value is not None else str(size)

    def _value(self, size: Dim) -> int | None:
        return size.substitute(self.at).constant

    @property
    def _known(self) -> dict[str, Unknown]:
        return {unknown.name: unknown for unknown in self.unknowns}


def _count(size: Dim) -> str:
    return f"{size.constant:,}" if size.constant is not None else str(size)


def _line(state: State) -> str:
    return f"{state.span.source.name}:{state.span.line}" if state.span is not None else ""
