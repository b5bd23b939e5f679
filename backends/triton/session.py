"""Where a generated model runs: here on a GPU, or in the interpreter of a worker process."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ...compiler import knobs
from ...compiler.ops import Array
from ...dsl.diagnostics import InternalError

if TYPE_CHECKING:
    import torch

TORCH_TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
Tensors = Mapping[str, "torch.Tensor"]
NONE: Tensors = MappingProxyType({})


def tensor(array: Array) -> torch.Tensor:
    """A tensor over an array's memory; bfloat16 passes as bits."""
    import torch

    array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array(value: torch.Tensor) -> Array:
    """The inverse of `tensor`."""
    import ml_dtypes
    import torch

    value = value.detach().cpu().contiguous()
    if value.dtype == torch.bfloat16:
        return np.asarray(value.view(torch.uint16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(value.numpy())


class GeneratedModel:
    """The modules of a folder of generated sources, instantiated with weights.

    Results are keyed `output NAME`, `state PATH` for what is left to the next run, and
    `value NODE PATH` for what a traced model keeps.
    """

    def __init__(self, folder: str, weights: Tensors, dtype: str, device: str, target: str | None):
        import torch

        kernels = _module(Path(folder) / "kernels.py", "kernels")
        sys.modules["kernels"] = kernels
        module = _module(Path(folder) / "model.py", "model")
        self.trace: dict[tuple[str, int], Any] = {}
        self.device = device
        kind = getattr(torch, TORCH_TYPES[dtype])
        moved = {name: aligned(value.to(device)) for name, value in weights.items()}
        self.model = module.Model(moved, kind, device, target, self.trace)

    def run(self, inputs: Tensors, states: Tensors = NONE, sizes: Sequence[int] = ()) -> Tensors:
        """`states` by path and `sizes` that no input shows are given to a chunk."""
        given = {name: aligned(value.to(self.device)) for name, value in inputs.items()}
        self.trace.clear()
        leading = [*([states] if states else []), *sizes]
        results = self.model.forward(*leading, *(given[name] for name in self.model.INPUTS))
        outputs, left = results if isinstance(results, tuple) else (results, {})
        kept = {f"value {node} {path}": v for (path, node), v in self.trace.items()}
        named = named_with("output", outputs)
        found = {name: value.contiguous().clone() for name, value in (kept | named).items()}
        return found | named_with("state", left)


def aligned(value: torch.Tensor) -> torch.Tensor:
    """At an address that a tensor descriptor may have; what is read from a file may lie anywhere."""
    return value if value.data_ptr() % 16 == 0 else value.clone()


def named_with(kind: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    return {f"{kind} {name}": value for name, value in tensors.items()}


def named_as(kind: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    """The inverse of `named_with`, of what is of that kind."""
    whole = f"{kind} "
    return {n.removeprefix(whole): v for n, v in tensors.items() if n.startswith(whole)}


def apart(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Each with memory of its own, as a file holds them."""
    return {name: value.contiguous().clone() for name, value in tensors.items()}


_loaded = itertools.count()


def _module(path: Path, name: str) -> ModuleType:
    """The module in a file, under a name of its own: two models may be loaded at once."""
    spec = importlib.util.spec_from_file_location(f"archc_generated_{name}_{next(_loaded)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Session(ABC):
    """A loaded model."""

    @abstractmethod
    def run(
        self,
        inputs: Mapping[str, Array],
        states: Tensors = NONE,
        sizes: Sequence[int] = (),
        grown: Collection[str] = (),
    ) -> Tensors:
        """As `GeneratedModel.run`. Rows are written into the tensors of the states `grown`."""


class DeviceSession(Session):
    """On this process's GPU."""

    def __init__(self, sources: Mapping[str, str], weights: Mapping[str, Array], dtype: str):
        self.folder = written(sources)
        tensors = {name: tensor(value) for name, value in weights.items()}
        self.model = GeneratedModel(self.folder.name, tensors, dtype, "cuda", None)

    def run(
        self,
        inputs: Mapping[str, Array],
        states: Tensors = NONE,
        sizes: Sequence[int] = (),
        grown: Collection[str] = (),
    ) -> Tensors:
        given = {name: tensor(value) for name, value in inputs.items()}
        return self.model.run(given, states, sizes)


class InterpreterSession(Session):
    """In the worker process, which all sessions of this process share."""

    def __init__(self, sources: Mapping[str, str], weights: Mapping[str, Array], dtype: str):
        from safetensors.torch import save_file

        self.folder, self.worker = written(sources), Worker.shared()
        path = f"{self.folder.name}/weights.safetensors"
        save_file(apart({name: tensor(value) for name, value in weights.items()}), path)
        self.key = self.worker.load(self.folder.name, path, dtype)
        weakref.finalize(self, self.worker.drop, self.key)

    def run(
        self,
        inputs: Mapping[str, Array],
        states: Tensors = NONE,
        sizes: Sequence[int] = (),
        grown: Collection[str] = (),
    ) -> Tensors:
        from safetensors.torch import load_file, save_file

        given, results = (f"{self.folder.name}/{n}.safetensors" for n in ("inputs", "outputs"))
        arrays = named_with("input", {name: tensor(value) for name, value in inputs.items()})
        save_file(apart(arrays | named_with("state", states)), given)
        self.worker.ask(
            do="run", model=self.key, inputs=given, sizes=[*sizes], outputs=results,
            races=knobs.RACES.value,
        )  # fmt: skip
        found = load_file(results)
        for path in grown:
            rows = found[f"state {path}"]
            states[path][tuple(map(slice, rows.shape))].copy_(rows)
        return found


def written(sources: Mapping[str, str]) -> tempfile.TemporaryDirectory[str]:
    """A folder with files of these texts, as long as it is referred to."""
    folder = tempfile.TemporaryDirectory(prefix="archc-triton-")
    for name, text in sources.items():
        Path(folder.name, name).write_text(text)
    return folder


class Worker:
    """The one interpreter process of this process, started on first use."""

    _shared: Worker | None = None

    def __init__(self) -> None:
        print("no GPU: running in Triton's interpreter", file=sys.stderr)
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "archc.backends.triton.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.keys, self.lock = itertools.count(), threading.Lock()
        atexit.register(self.close)

    @classmethod
    def shared(cls) -> Worker:
        if cls._shared is None or cls._shared.process.poll() is not None:
            cls._shared = cls()
        return cls._shared

    def load(self, folder: str, weights: str, dtype: str) -> int:
        key = next(self.keys)
        self.ask(do="load", model=key, folder=folder, weights=weights, dtype=dtype)
        return key

    def drop(self, key: int) -> None:
        """Forgets a model, unless the process has ended with all of them."""
        if self.process.poll() is None and not self.process.stdin.closed:  # type: ignore[union-attr]
            self.ask(do="drop", model=key)

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request. Raises InternalError with what went wrong in the worker."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            try:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
                line = self.process.stdout.readline()
            except OSError:
                line = ""
        if not line:
            raise InternalError("Triton's interpreter process ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raised = answer["error"].strip().rpartition("\n")[2]
            raise InternalError(f"{raised}, in Triton's interpreter\n{answer['error']}")
        return answer

    def close(self) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self.process.wait(timeout=10)
