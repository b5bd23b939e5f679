"""Where the host lets go of an array: behind the last statement that reads it.

PyTorch's allocator gives freed memory out again, so arrays whose lives do not meet share it, and what
a call needs is what is alive at once rather than all it computes (`compiler/buffers.py`). A loop is
one statement: what is made before it and read in it lives until its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

NAME = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
ASSIGNED = re.compile(r"((?:\w+, )*\w+),? = ")


def released(lines: Sequence[str]) -> list[str]:
    """The lines of a function, each local name deleted behind its last use; none behind the last."""
    statements = list(_statements(lines))
    last = {name: i for i, s in enumerate(statements) for name in NAME.findall("\n".join(s))}
    made = dict.fromkeys(name for s in statements for name in _assigned(s[0]))
    done: list[str] = []
    for number, statement in enumerate(statements):
        done += statement
        over = [name for name in made if last[name] == number]
        if over and number + 1 < len(statements):
            done.append(f"del {', '.join(over)}")
    return done


def _statements(lines: Sequence[str]) -> Iterator[list[str]]:
    """Each line with the indented ones behind it, what closes its brackets, and its `else`."""
    statement: list[str] = []
    for line in lines:
        if statement and not line.startswith((" ", ")", "]", "else:")):
            yield statement
            statement = []
        statement.append(line)
    if statement:
        yield statement


def _assigned(line: str) -> list[str]:
    found = ASSIGNED.match(line)
    return [name for name in found[1].split(", ") if name != "_"] if found else []
