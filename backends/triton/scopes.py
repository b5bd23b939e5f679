"""The text of a kernel as a tree of scopes: its body and the loops in it.

A statement goes into the outermost scope in which what it reads is defined, so whatever does not
depend on a loop is hoisted by construction. A loop's lines reach its parent when the loop is
closed: statements hoisted meanwhile stand before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Scope:
    parent: Scope | None = None
    lines: list[str] = field(default_factory=list)
    closed: bool = False

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1

    def add(self, line: str) -> None:
        self.lines.append(line)

    def close(self, header: str) -> None:
        """Puts the loop into its parent."""
        assert self.parent is not None
        self.closed = True
        self.parent.lines += [header, *("    " + line for line in self.lines)]


ROOT = Scope()  # of names that are valid everywhere: sizes and literals


def deepest(scopes: Iterable[Scope]) -> Scope:
    """The innermost of scopes that lie inside each other."""
    return max(scopes, key=lambda scope: scope.depth, default=ROOT)
