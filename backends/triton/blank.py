"""A dry run on arrays of zeros, in the worker: its launches counted, and what the host moves.

NumPy's zeros take memory only where they are written, and dry launches write no floats; so a model
of any size fits. What the host does itself (sorting, copying rows) runs on the zeros.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .launches import HostWork
from .session import GeneratedModel
from .traffic import TRAFFIC


def blank_run(request: dict[str, Any]) -> dict[str, Any]:
    """Answers `count` of `counting.py`."""
    from safetensors.torch import load_file

    weights, states, inputs = (
        {name: _zeros(*kind) for name, *kind in request[group]}
        for group in ("weights", "states", "floats")
    )
    model = GeneratedModel(
        request["folder"], weights, request["dtype"], "cpu", request["target"]
    ).model
    indexable = sys.modules[type(model).__module__].indexable

    def empty(kind: str, *shape: int) -> torch.Tensor:
        zeros = _zeros(shape, str(model.run.types[kind]).removeprefix("torch."))
        made: torch.Tensor = indexable(zeros)
        return made

    model.run.empty, model.run.topk = empty, _spread(model.run.topk)
    leading, inputs = (
        [*([states] if states else []), *request["sizes"]],
        inputs | load_file(request["inputs"]),
    )
    with TRAFFIC.on(sampled=not request["whole"], dry=True) as launches, HostBytes() as host:
        model.forward(*leading, *(inputs[name] for name in model.INPUTS))
    found = HostWork(host.operations, host.moved)
    return {"launches": [x.to_json() for x in launches.values()], "host": asdict(found)}


def _spread(topk: Callable[..., Any]) -> Callable[..., Any]:
    """Of zeros the first entries are the largest everywhere: here each is chosen equally often."""

    @wraps(topk)
    def chosen(x: torch.Tensor, dim: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = topk(x, dim, count)
        evenly = torch.arange(indices.numel()) % x.shape[dim]
        return values, evenly.view(indices.movedim(dim, -1).shape).movedim(-1, dim).contiguous()

    return chosen


def _zeros(shape: Any, kind: str) -> torch.Tensor:
    size = getattr(torch, kind).itemsize
    zeros = np.zeros((max(1, int(np.prod(shape))), size), np.uint8)  # no memory yet
    flat = torch.from_numpy(zeros).view(getattr(torch, kind)).view(-1)
    return flat[: int(np.prod(shape))].view(tuple(shape))


class HostBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's has no types
    """Bytes of operands and results of torch operations that are no views and allocate no array only.

    What runs inside a launch is the interpreter's.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.operations = self.moved = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if TRAFFIC.running is None and not _is_free(function):
            self.operations += 1
            self.moved += sum(map(_bytes, _tensors((args, kwargs, result))))
        return result


def _is_free(function: Any) -> bool:
    """A view, whose result shares its operand's memory unwritten, or an empty array."""
    returns = function._schema.returns
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return view or "empty" in function._schema.name


def _tensors(nested: Any) -> list[torch.Tensor]:
    """Each tensor once."""
    found: dict[int, torch.Tensor] = {}
    todo = [nested]
    while todo:
        current = todo.pop()
        if isinstance(current, torch.Tensor):
            found[id(current)] = current
        elif isinstance(current, dict):
            todo += current.values()
        elif isinstance(current, list | tuple):
            todo += current
    return list(found.values())


def _bytes(value: torch.Tensor) -> int:
    return value.numel() * value.element_size()
