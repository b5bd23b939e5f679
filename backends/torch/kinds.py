"""The layer kinds of a decoding's program, compiled: a few programs for each kind, however many layers.

    programs of a kind  <=  classes of shapes that are met  x  conditions that compiling takes for granted

A size that a call decides is 1 or it is not: one program each. What a program takes for granted of the
others (rows are few, or many) is asked once for all layers of a step. Programs are kept in a folder
of PyTorch's own cache, under what they were made from: the text, the shapes, the machine.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._inductor.cpu_vec_isa import pick_vec_isa

from .artifact import Artifact, compiled
from .folder import cache_folder

Call = Callable[..., tuple[Any, ...]]
KNOWN = 512  # calls that differ in sizes whose programs are remembered


class Kind:
    """`written` is `forward` of a class, `text` what it is read from.

    Whole numbers may differ by call, and of each argument the sizes along `dims`. Of `programs`,
    `compilations` were not in the folder.
    """

    def __init__(
        self, written: Callable[..., Any], text: str, dims: Sequence[Sequence[int]]
    ) -> None:
        self.written, self.dims = written, dims
        self.names = tuple(inspect.signature(written).parameters)[1:]
        self.name = f"{text}\n{written.__qualname__}\n{_machine()}"
        self.programs: dict[tuple[Any, ...], list[tuple[Artifact, Call]]] = {}
        self.compilations = 0
        self._known: dict[tuple[Any, ...], Call] = {}

    def __call__(self, layer: torch.nn.Module, *arguments: Any) -> Any:
        given = [_dense(a) for a in arguments]
        key = tuple(a.shape if isinstance(a, torch.Tensor) else a for a in given)
        call = self._known.get(key)
        if call is None:
            call = self._find(layer, given)
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[key] = call
        return call(layer, *given)

    def _find(self, layer: torch.nn.Module, given: Sequence[Any]) -> Call:
        shapes = tuple(_class(a, dims) for a, dims in zip(given, self.dims, strict=True))
        if any(0 in s for s in shapes if isinstance(s, tuple)):
            return self.written  # of nothing there is nothing to compile
        shapes = (*shapes, layer.dtype)
        found = self.programs.setdefault(shapes, [])
        for artifact, call in found:
            if artifact.condition()(layer, *given):
                return call
        digest = hashlib.sha256(f"{self.name}\n{shapes}".encode()).hexdigest()[:32]
        while True:
            path = cache_folder() / f"{digest}-{len(found)}.bin"
            kept = path.with_suffix(".json").exists()
            artifact = Artifact.load(path) if kept else self._compile(layer, given, path)
            found.append((artifact, artifact.bind()))
            if not kept or artifact.condition()(layer, *given):
                return found[-1][1]

    def _compile(self, layer: torch.nn.Module, given: Sequence[Any], path: Path) -> Artifact:
        self.compilations += 1
        examples = [_example(a, dims) for a, dims in zip(given, self.dims, strict=True)]
        numbers = [n for n, a in zip(self.names, given, strict=True) if isinstance(a, int)]
        artifact = compiled(self.written, (layer, *examples), numbers)
        path.parent.mkdir(parents=True, exist_ok=True)
        artifact.save(path)
        return artifact


@functools.cache
def _machine() -> str:
    """What a program is made for besides its arguments."""
    return f"{torch.__version__} {torch.get_num_threads()} {pick_vec_isa()}"


def _dense(argument: Any) -> Any:
    """Programs read tensors in the order of their dimensions. What they write to is so already."""
    if isinstance(argument, torch.Tensor) and not argument.is_contiguous():
        return argument.contiguous()
    return argument


def _class(argument: Any, dims: Sequence[int]) -> Any:
    """0, 1 or more along each dimension that may differ."""
    if isinstance(argument, torch.Tensor):
        return tuple(min(argument.shape[dim], 2) for dim in dims)
    return type(argument)


def _example(argument: Any, dims: Sequence[int]) -> Any:
    """A tensor that is no other one of the call, since those of another layer may differ."""
    if not isinstance(argument, torch.Tensor):
        return argument
    example = argument.detach()
    for dim in dims:
        if example.shape[dim] > 1:
            torch._dynamo.mark_dynamic(example, dim)
    return example
