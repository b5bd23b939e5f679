"""Walks over a program as it runs: every function with every call path that reaches it.

A call path is what stands before a weight's relative path: "" in main, `layers[3]` in iteration 3
of a `repeat` at path `layers`, `layers[3].mix[0]` in a repeat inside it. Bodies of fused nodes and
tables hold no weights and have no call path; reach them through `Program.body`. `cone` walks up within
one function.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from .graph import Function, Node, Program


def calls(program: Program) -> Iterator[tuple[str, Function]]:
    """Every (call path, function), main first, then iterations in the order they run."""
    yield from _calls(program, "", program.main)


def _calls(program: Program, path: str, function: Function) -> Iterator[tuple[str, Function]]:
    yield path, function
    for node in function.nodes:
        if node.op == "repeat":
            for inner, kind in iterations(node, path):
                yield from _calls(program, inner, program.function(kind))


def iterations(node: Node, path: str) -> Iterator[tuple[str, str]]:
    """(call path, function name) of each iteration of a `repeat` node in a function at `path`."""
    kinds, indices = node.attrs["kinds"], node.attrs["indices"]
    assert isinstance(kinds, tuple)
    assert isinstance(indices, tuple)
    for index, kind in zip(indices, kinds, strict=True):
        yield join(path, f"{node.attrs.string('path')}[{index}]"), str(kind)


def join(path: str, relative: str) -> str:
    """The complete path of a weight or call `relative` to the call path `path`."""
    return f"{path}.{relative}" if path else relative


class Nodes(Protocol):
    """Values by id: a function, or one that is being rewritten."""

    def __getitem__(self, node_id: int, /) -> Node: ...


def cone(function: Nodes, roots: Collection[int], stop: Collection[int] = ()) -> set[int]:
    """The values that `roots` depend on, themselves included, as far as those of `stop`."""
    found, todo = set(roots), list(roots)
    while todo:
        current = todo.pop()
        if current not in stop:
            new = set(function[current].inputs) - found
            found |= new
            todo += new
    return found


def ranges(numbers: Sequence[int]) -> str:
    """Iterations of a loop in words: `0..3, 5`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{r[0]}..{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
