"""A checkpoint run by its class of `transformers`, with what its modules are given and return.

The class is the one that config.json names, in eager attention, from local files. Every module is
watched; a module can be run again with other inputs, to tell what it makes of them from what came
to it wrong.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends.base import Array
from ..compiler.ops import ModelDType
from ..dsl.errors import MissingPackage, PeerFails, UnknownClass

if TYPE_CHECKING:
    import torch

DTYPES = {"f64": "float64", "f32": "float32", "bf16": "bfloat16", "f16": "float16"}
OPTIONS = {  # experts one by one: the grouped product that is the default has no float64
    "attn_implementation": "eager",
    "experts_implementation": "eager",
    "local_files_only": True,
    "dtype": "float32",
}


@dataclass(slots=True)
class Call:
    """One call of a module: its arguments, and the tensors that it returned.

    They are copies: a class may go on to add to them in place.
    """

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    results: tuple[torch.Tensor, ...] = ()

    @property
    def main(self) -> int | str | None:
        """The argument that is the value to transform: the first tensor of fractions."""
        given: list[tuple[int | str, Any]] = [*enumerate(self.arguments), *self.named.items()]
        for key, value in given:
            if hasattr(value, "is_floating_point") and value.is_floating_point():
                return key
        return None

    def given(self) -> Array | None:
        """That argument's value."""
        key = self.main
        if key is None:
            return None
        return array(self.arguments[key] if isinstance(key, int) else self.named[key])


@dataclass(frozen=True, slots=True)
class PeerRun:
    """The outputs of the class by name, and the calls of each module."""

    outputs: dict[str, Array]
    calls: dict[str, list[Call]]

    def returned(self, module: str, call: int = -1) -> Array | None:
        results = self.calls[module][call].results
        return array(results[0]) if results else None

    def counted(self, module: str) -> list[Array]:
        """The tensors of whole numbers that the one call of a module returned."""
        calls = self.calls.get(module, ())
        results = calls[0].results if len(calls) == 1 else ()
        return [array(r) for r in results if not r.is_floating_point()]


@dataclass
class Peer:
    """The class with its weights, from a directory or a file in one.

    Raises MissingPackage, UnknownClass, PeerFails when made.
    """

    directory: Path
    class_name: str
    _models: dict[ModelDType, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found: Any = getattr(_transformers(), self.class_name, None)
        if not hasattr(found, "from_pretrained"):
            raise UnknownClass(name=self.class_name or "", path=str(self.directory))
        with _failing(self.class_name):
            self._models["f32"] = found.from_pretrained(self.directory, **OPTIONS).eval()

    @property
    def base(self) -> str:
        """The prefix that some files have and others lack."""
        return str(getattr(self._models["f32"], "base_model_prefix", ""))

    @property
    def padding(self) -> int | None:
        """The id that stands where nothing is."""
        found = getattr(self._models["f32"].config, "pad_token_id", None)
        return found if isinstance(found, int) else None

    @property
    def accepts(self) -> frozenset[str]:
        """The names of its inputs."""
        return frozenset(inspect.signature(self._models["f32"].forward).parameters)

    def parameters(self) -> dict[str, Array]:
        """Views of its parameters in float32, by name; one that is tied under each of its names."""
        named = self._models["f32"].named_parameters(remove_duplicate=False)
        return {name: array(parameter) for name, parameter in named}

    def run(self, inputs: Mapping[str, Array], dtype: ModelDType) -> PeerRun:
        """Runs the class in `dtype`. Raises PeerFails."""
        import torch

        model, calls = self._in(dtype), dict[str, list[Call]]()
        hooks = [h for name, m in model.named_modules() for h in _watch(m, calls, name)]
        given = {name: _tensor(value, DTYPES[dtype]) for name, value in inputs.items()}
        given |= {"use_cache": False} if "use_cache" in self.accepts else {}
        try:
            with torch.no_grad(), _failing(self.class_name):
                result = model(**given, return_dict=True)
        finally:
            for hook in hooks:
                hook.remove()
        tensors = {k: v for k, v in result.items() if isinstance(v, torch.Tensor)}
        return PeerRun({name: array(value) for name, value in tensors.items()}, calls)

    def again(self, module: str, call: Call, given: Array) -> Array | None:
        """What a module of the float64 model makes of another value; None where it does not run."""
        import torch

        key, arguments, named = call.main, list(call.arguments), dict(call.named)
        value = _tensor(given, "float64")
        if isinstance(key, int):
            arguments[key] = value
        else:
            named[str(key)] = value
        try:
            with torch.no_grad():
                results = _tensors(self._in("f64").get_submodule(module)(*arguments, **named))
        except Exception:  # it may want more than its arguments
            return None
        return array(results[0]) if results else None

    def _in(self, dtype: ModelDType) -> Any:
        if dtype not in self._models:
            import torch

            made = copy.deepcopy(self._models["f32"])
            self._models[dtype] = made.to(getattr(torch, DTYPES[dtype]))
        return self._models[dtype]


def _transformers() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    purpose = "a comparison with it"
    for package in ("torch", "transformers"):
        try:
            found = import_module(package)
        except ImportError:
            raise MissingPackage(package=package, purpose=purpose, extra="transformers") from None
    found.utils.logging.set_verbosity_error()
    found.utils.logging.disable_progress_bar()
    return found


@contextmanager
def _failing(name: str) -> Iterator[None]:
    """Around what a class does. Raises PeerFails for any error."""
    try:
        yield
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        raise PeerFails(name=name, reason=f"{type(error).__name__}: {text}") from error


def _watch(module: Any, calls: dict[str, list[Call]], name: str) -> list[Any]:
    def before(_: Any, arguments: Any, named: Any) -> None:
        copies = tuple(map(_copy, arguments)), {k: _copy(v) for k, v in named.items()}
        calls.setdefault(name, []).append(Call(*copies))

    def after(_: Any, __: Any, result: Any) -> None:
        calls[name][-1].results = tuple(map(_copy, _tensors(result)))

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]


def _tensors(result: Any) -> list[Any]:
    """The tensors of what a module returns."""
    if hasattr(result, "is_floating_point"):
        return [result]
    parts = result.values() if hasattr(result, "values") else result
    return [p for p in parts or () if hasattr(p, "is_floating_point")]


def _copy(value: Any) -> Any:
    return value.clone() if hasattr(value, "is_floating_point") else value


def _tensor(value: Array, dtype: str) -> Any:
    import torch

    if value.dtype == np.bool_:
        return torch.from_numpy(value.astype(np.int64))
    made = torch.from_numpy(np.ascontiguousarray(value))
    return made.to(getattr(torch, dtype)) if made.is_floating_point() else made


def array(value: Any) -> Array:
    """A tensor as an array; in a half format as float32, which holds the same numbers."""
    value = value.detach()
    wide = value.is_floating_point() and value.element_size() < 4
    found: Array = (value.float() if wide else value).numpy()
    return found
