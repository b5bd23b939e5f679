"""The host of generated kernels lets go of arrays, so that their memory is had again."""

from __future__ import annotations

import sys
import types
import weakref
from collections import defaultdict

import pytest
from checks import model_of
from graphs import layer

from archc.backends.triton import TritonBackend
from archc.backends.triton.lifetimes import released
from archc.compiler.buffers import Memory
from archc.compiler.ir.graph import Program
from archc.compiler.passes import optimise
from archc.compiler.passes.properties import ELEMENT_BYTES

CALL = {"b": 2, "s": 6}
LINES = {
    "after its last use": (["a = f()", "b = g(a)", "return b,"],
                           ["a = f()", "b = g(a)", "del a", "return b,"]),
    "several at once": (["a, c = f()", "run.h(a, c)", "return x,"],
                        ["a, c = f()", "run.h(a, c)", "del a, c", "return x,"]),
    "what is never read": (["a, _ = f()", "return x,"], ["a, _ = f()", "del a", "return x,"]),
    "behind a loop": (["a = f()", "for layer in y:", "    a = g(a, b)", "return x,"],
                      ["a = f()", "for layer in y:", "    a = g(a, b)", "del a", "return x,"]),
    "an attribute is no name": (["a = f()", "b = self.a", "return b,"],
                                ["a = f()", "del a", "b = self.a", "return b,"]),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_names_are_deleted(case: str) -> None:
    lines, expected = LINES[case]
    assert released(lines) == expected


class Array:
    """Stands for a tensor of so many bytes."""


class Run:
    """Counts the bytes of arrays that someone still holds."""

    def __init__(self) -> None:
        self.alive = self.most = 0

    def empty(self, kind: str, *shape: int) -> Array:
        size = ELEMENT_BYTES[kind]
        for extent in shape:
            size *= extent
        made = Array()
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(made, self._freed, size)
        return made

    def _freed(self, size: int) -> None:
        self.alive -= size

    def launch(self, *arguments: object) -> None: ...


def most_alive(text: str, program: Program, monkeypatch: pytest.MonkeyPatch) -> int:
    """The bytes that a call of the generated `Main` holds at most."""
    kernels = types.ModuleType("kernels")
    kernels.__getattr__ = lambda name: name  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    space: dict[str, object] = {}
    exec(text, space)
    run = Run()
    main = space["Main"](run, defaultdict(Array), "")  # type: ignore[operator]
    main.forward(*CALL.values(), *(Array() for _ in program.main.inputs))
    return run.most


def test_a_call_holds_no_more_than_is_alive_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    program = optimise(model_of(layer)).program
    text = TritonBackend().emit(program)["model.py"]
    memory = Memory(program, CALL)
    assert most_alive(text, program, monkeypatch) <= memory.peak(program.main)
    kept = "\n".join(line for line in text.splitlines() if not line.strip().startswith("del "))
    assert most_alive(kept, program, monkeypatch) > memory.peak(program.main)
