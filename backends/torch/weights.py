"""The weights of an emitted module: given to it one module at a time, so that a model is in memory once.

They share memory with the arrays they come from where dtype and layout allow, or are moved to huge
pages; what was read of a file and is no longer needed is let go of.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np
import torch

from ...compiler.checkpoint.reader import is_mapped, let_go
from ...compiler.ir.graph import Parameter, Program
from ...dsl.errors import MissingWeight, WeightShape
from ..base import Array
from .pages import Arena

Moved = Literal["all", "made", "none"]  # to huge pages: "made" are all but the caller's own arrays


def taken_over(model: torch.nn.Module, source: torch.nn.Module) -> set[torch.nn.Module]:
    """Gives modules of `model` the tensors of those of `source` that prepare the same by the same text.

    Returns the modules that have theirs now.
    """
    owners = _emitted(source)
    pairs = [(part, owners[p]) for p, part in _emitted(model).items() if p in owners]
    text = {kind: _text(kind) for pair in pairs for kind in map(type, pair)}
    done = set()
    for part, owner in pairs:
        if _prepared(part, text) == _prepared(owner, text):
            _take(part, owner, text[type(part)])
            done.add(part)
    return done


def _emitted(model: torch.nn.Module) -> dict[str, Any]:
    """The modules of emitted classes, which have PATHS and a dtype, by prefix."""
    return {str(m.prefix): m for m in model.modules() if hasattr(m, "prefix")}


def _text(kind: type[torch.nn.Module]) -> str:
    """What a kind of module prepares, as it is written."""
    return inspect.getsource(kind.prepare) if hasattr(kind, "prepare") else ""


def _prepared(part: Any, text: Mapping[type[torch.nn.Module], str]) -> tuple[object, ...]:
    """What decides the weights and derived tensors of a module."""
    return part.PATHS, part.dtype, text[type(part)]


def _take(part: Any, owner: Any, written: str) -> None:
    """Weights that the owner dropped are dropped; tables that only the owner reads are left."""
    for name in part.PATHS:
        delattr(part, name)
        if name in owner._parameters:
            part.register_parameter(name, owner._parameters[name])
    for name, tensor in owner._buffers.items():
        if name in owner.PATHS or f'"{name}"' in written:
            part.register_buffer(name, tensor, persistent=name in owner.PATHS)


def assign(
    model: torch.nn.Module,
    program: Program,
    weights: Mapping[str, Array],
    *,
    train: bool,
    moved: Moved,
    done: Collection[torch.nn.Module] = (),
) -> None:
    """Module by module: its weights, then what is derived from them, so that few exist twice.

    Raises MissingWeight, WeightShape.
    """
    parameters, arena = {p.path: p for p in program.parameters}, Arena()
    for module in (m for m in model.modules() if m not in done):
        given = []
        for attribute, relative in getattr(module, "PATHS", {}).items():
            parameter = parameters[f"{module.prefix}{relative}"]
            array = _checked(parameter, weights, program.sizes)
            given.append(array)
            declared = getattr(module, attribute)
            tensor = to_torch(array).to(declared.dtype).reshape(declared.shape)
            if train and tensor.data_ptr() == array.ctypes.data:
                tensor = tensor.clone()  # an optimiser will write to it
            if parameter.trained:
                tensor = torch.nn.Parameter(tensor, requires_grad=train)
            setattr(module, attribute, tensor)
        prepare = getattr(module, "prepare", None)
        if prepare is not None:
            prepare()
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if moved != "none":
            others = (a for a in given if moved == "made" and not is_mapped(a))
            arena.gather(tensors, {array.ctypes.data for array in others})
        read = {tensor.data_ptr() for tensor in tensors if tensor.layout == torch.strided}
        for array in given:
            if array.ctypes.data not in read:
                let_go(array)


def _checked(parameter: Parameter, weights: Mapping[str, Array], sizes: Mapping[str, int]) -> Array:
    """The array of a parameter, read once. Raises MissingWeight, WeightShape."""
    try:
        array = np.asarray(weights[parameter.path])
    except KeyError:
        known = tuple(weights)
        raise MissingWeight(path=parameter.path, known=known, span=parameter.span) from None
    expected = tuple(axis.size.evaluate(sizes) for axis in parameter.axes)
    if array.shape != expected:
        words = [", ".join(map(str, shape)) for shape in (array.shape, expected)]
        raise WeightShape(path=parameter.path, got=words[0], expected=words[1], span=parameter.span)
    return array


def share(source: torch.nn.Module, twin: torch.nn.Module) -> None:
    """Gives `twin` the parameters and buffers of `source`, whose class has the same attributes."""
    for part, other in zip(source.modules(), twin.modules(), strict=True):
        other._parameters = part._parameters
        other._buffers = part._buffers


def to_torch(array: Array) -> torch.Tensor:
    """A tensor that shares the array's memory where it can, also when that must not be written."""
    array = np.ascontiguousarray(array) if any(s < 0 for s in array.strides) else array
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
