"""The catalogue: every mistake a person can make, as facts and words. See `diagnostics.py`."""

from __future__ import annotations

from .diagnostics import ArchError, did_you_mean
from .span import Span


class UnknownName(ArchError, id="unknown-name"):
    name: str
    known: tuple[str, ...] = ()
    title = "`{name}` is not defined here"
    labels = {"span": "no such name"}

    def help_text(self) -> str:
        return did_you_mean(self.name, self.known)


class SyntaxMistake(ArchError, id="syntax"):
    found: str
    expected: str
    title = "unexpected {found}"
    labels = {"span": "expected {expected}"}


class SizeMismatch(ArchError, id="size-mismatch"):
    axis: str
    got: str
    expected: str
    bound_at: Span | None = None
    title = "axis `{axis}` is {got} here, but {expected} elsewhere"
    labels = {"span": "`{axis}` is {got}", "bound_at": "`{axis}` is {expected} here"}
    help = "operands align by axis name: rename one with `x[{axis} -> other]`, or make the sizes agree"
