"""Scans: states, the scanned axis, what passes from step to step."""

from __future__ import annotations

from ..diagnostics import ArchError, did_you_mean
from .wording import listed


class ScanAxis(ArchError, id="scan-axis"):
    axis: str
    known: tuple[str, ...]
    title = "there is no axis `{axis}` to scan here"
    labels = {"span": "`{axis}` is no axis"}

    def help_text(self) -> str:
        return did_you_mean(self.axis, self.known)


class ScannedAxis(ArchError, id="scanned-axis"):
    name: str
    axis: str
    title = "`{name}` has axis `{axis}` in a scan along `{axis}`"
    labels = {"span": "a step stands at one entry of `{axis}`"}
    help = "to see other entries too, rename above the scan: `seen = x[{axis} -> other]`"


class StateAxes(ArchError, id="state-axes"):
    name: str
    written: str
    got: str
    what: str
    title = "state `{name}` is declared with axes {written}, but {what} has {got}"
    labels = {"span": "in this scan"}
    help = "write all its axes, or `...` for what the update brings: `{name}[..., d]`"


class IdleState(ArchError, id="idle-state"):
    name: str
    title = "state `{name}` never changes"
    labels = {"span": "no statement of this scan assigns `{name}`"}
    help = "assign it in the body: `{name} = ..`"


class NotCarried(ArchError, id="not-carried"):
    name: str
    axis: str
    title = "`{name}` is no state of this scan: every step would start from the same value"
    labels = {"span": "reads `{name}` from above the scan"}
    help = "make it a state: `scan {axis} with {name} = 0 {{ .. }}`, or give the inner value another name"


class NotAState(ArchError, id="not-a-state"):
    function: str
    name: str
    states: tuple[str, ...] = ()
    title = "`{function}` takes a state of a scan, and `{name}` is none here"
    labels = {"span": "not a state"}

    def help_text(self) -> str:
        if self.function == "last":
            return "`last(h)` is read after the scan, while `h` is what the scan left"
        known = f"the states here: {listed(self.states)}" if self.states else ""
        return (
            did_you_mean(self.name, self.states)
            or known
            or ("`prev(h)` is read inside the scan that has the state `h`")
        )
