"""Runs the C++ text of a step: built once for a machine, given the addresses of what it reads and writes.

One call runs all layers, so what a token takes beside its products does not grow with them. Where a
program has no such text, or no compiler builds it, its emitted module runs instead.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ....compiler.ir.graph import Node, Program, TensorType
from ....compiler.ir.walk import calls, join
from ...base import Array, BoundInputs
from .. import few_rows
from ..emit import Emitted
from .frame import Kept, Refused, Slot
from .text import Text, step_text

FEW = 8  # rows from which on products are worth a matrix library
TYPES = {
    torch.float32: "float",
    torch.bfloat16: "uint16_t",
    torch.int64: "int64_t",
    torch.bool: "bool",
    torch.int8: "int8_t",
}
FLAGS = ("-O3", "-std=c++20", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-pthread")
LINE = 64  # bytes of a cache line, where scratch begins

Tensors = dict[str, torch.Tensor]


def is_few(program: Program, bound: BoundInputs) -> bool:
    """Whether a call has few rows: along the decoded axis and all others whose size a call decides."""
    fixed = program.sizes.keys()

    def rows(node: Node) -> int:
        sizes = (a.size for a in node.axes if not a.size.symbols() <= fixed)
        return math.prod(size.evaluate(bound.sizes) for size in sizes)

    nodes = [program.main[i] for i in program.main.inputs]
    decoded = [n for n in nodes if program.decode in (a.name for a in n.axes)]
    return all(0 < rows(node) < FEW for node in decoded)


@dataclass(slots=True)
class Step:
    """A loaded text. `addresses` are those of `held`, the tensors of its model, and gaps for the rest.

    A gap is described by its place, what belongs there, and the name or complete path of that.
    """

    text: Text
    library: ctypes.CDLL
    dtype: torch.dtype
    addresses: list[int]
    gaps: list[tuple[int, Slot, str]]
    held: list[torch.Tensor]
    memory: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def __call__(
        self, bound: BoundInputs, states: Mapping[str, torch.Tensor]
    ) -> tuple[Tensors, Tensors] | None:
        """Outputs, and the states that are not written where they are; None if an index was outside."""
        addresses = np.array(self.addresses, np.int64)
        made: dict[str, Tensors] = {"output": {}, "left": {}}
        alive: list[Array | torch.Tensor] = []
        for place, slot, path in self.gaps:
            if slot.of == "state":
                state = states[path].contiguous()  # one that is written to is so already
                addresses[place] = state.data_ptr()
                addresses[place + 1 : place + 1 + state.ndim] = state.stride()
                alive.append(state)
            elif slot.of == "input":
                array = np.ascontiguousarray(bound.arrays[path])
                addresses[place] = array.ctypes.data
                alive.append(array)
            else:
                made[slot.of][path] = result = self._empty(slot, bound.sizes)
                addresses[place] = result.data_ptr()
        sizes = np.array([bound.sizes[name] for name in self.text.symbols], np.int64)
        given = (sizes.ctypes.data, addresses.ctypes.data, self._scratch(sizes))
        outside = self.library.step(*map(ctypes.c_void_p, given), torch.get_num_threads())
        return None if outside else (made["output"], made["left"])

    def _empty(self, slot: Slot, sizes: Mapping[str, int]) -> torch.Tensor:
        return torch.empty(slot.type.shape(sizes), dtype=_dtype(slot.type, self.dtype))

    def _scratch(self, sizes: Array) -> int:
        needed = LINE + self.library.scratch(ctypes.c_void_p(sizes.ctypes.data))
        if len(self.memory) < needed:
            self.memory = torch.empty(2 * needed, dtype=torch.uint8)
        return -(-self.memory.data_ptr() // LINE) * LINE


def loaded(
    program: Program,
    emitted: Emitted,
    model: torch.nn.Module,
    states: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> Step | None:
    """The step of a program whose emitted `model` has its weights; None where there is none."""
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    try:
        return _Loading(program, emitted, model, states, dtype).step()
    except Refused:
        return None


@dataclass(frozen=True, slots=True)
class _Loading:
    """A text asks once for what a function reads; each call of it has a module with tensors alike."""

    program: Program
    emitted: Emitted
    model: torch.nn.Module
    states: Mapping[str, torch.Tensor]
    dtype: torch.dtype

    def step(self) -> Step | None:
        text = step_text(self.program, self.kept, self.type, self.type_of_state)
        path = few_rows.library("step", text.text, FLAGS)
        if path is None:
            return None
        library = ctypes.CDLL(str(path))
        library.scratch.restype, library.step.restype = ctypes.c_int64, ctypes.c_bool
        found = Step(text, library, self.dtype, [], [], [])
        modules = self._modules()
        for call, function in calls(self.program):
            for slot in text.slots[function.name]:
                self._place(found, slot, call, modules[call])
        return found

    def _place(self, step: Step, slot: Slot, call: str, module: torch.nn.Module) -> None:
        if slot.of == "tensor":
            tensor = getattr(module, slot.name)
            if not tensor.is_contiguous() or _type(tensor) != slot.ctype:
                raise Refused("a tensor that another layer has otherwise")
            step.held.append(tensor)
            step.addresses.append(tensor.data_ptr())
            return
        path = join(call, slot.name) if slot.of in ("state", "left") else slot.name
        step.gaps.append((len(step.addresses), slot, path))
        strides = len(slot.type.axes) if slot.of == "state" else 0
        step.addresses += [0] * (1 + strides)

    def kept(self, function: str, node_id: int) -> tuple[Kept, ...]:
        """What a module of the function keeps of a weight, a table or what is derived."""
        if node_id not in self.emitted.stored[function]:
            raise Refused("a weight in another library's order")
        module = self._modules()[self._first(function)]
        found = self.emitted.stored[function][node_id]
        return tuple(Kept(name, _type(getattr(module, name)), layout) for name, layout in found)

    def type(self, kind: TensorType) -> str:
        return TYPES[_dtype(kind, self.dtype)]

    def type_of_state(self, function: str, path: str) -> str:
        return _type(self.states[join(self._first(function), path)])

    def _first(self, function: str) -> str:
        return next(path for path, called in calls(self.program) if called.name == function)

    def _modules(self) -> dict[str, Any]:
        parts: Iterator[Any] = (m for m in self.model.modules() if hasattr(m, "prefix"))
        return {part.prefix.removesuffix("."): part for part in parts}


def _dtype(kind: TensorType, model: torch.dtype) -> torch.dtype:
    words: Iterator[tuple[str, torch.dtype]] = zip(
        ("float", "f32", "int", "bool"),
        (model, torch.float32, torch.int64, torch.bool),
        strict=True,
    )
    found = dict(words).get(kind.dtype)
    if found is None:
        raise Refused(f"values of {kind.dtype}")
    return found


def _type(tensor: torch.Tensor) -> str:
    if tensor.layout != torch.strided or tensor.dtype not in TYPES:
        raise Refused(f"a tensor of {tensor.dtype}")
    return TYPES[tensor.dtype]
