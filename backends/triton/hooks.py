"""Hooks on Triton's interpreter: every load, store, product and launch tells `traffic.py`.

They stand on the class that runs a kernel's statements. Arguments that differ between Triton 3.7 and
3.9 are passed on unread; tests run with the version that is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .traffic import Traffic

Handle = Any  # triton.runtime.interpreter.TensorHandle
SPECIAL = (np.exp, np.exp2, np.log, np.log2, np.sqrt, np.sin, np.cos)


def install(traffic: Traffic) -> None:
    """Once per process and after `repairs.apply`."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    for names, hook in HOOKS.items():
        for name in names:
            setattr(builder, name, hook(getattr(builder, name), traffic))
    interpreter.GridExecutor.__call__ = _launching(interpreter.GridExecutor.__call__, traffic)


def _launching(original: Callable[..., None], traffic: Traffic) -> Callable[..., None]:
    @wraps(original)
    def call(self: Any, *arguments: Any, **options: Any) -> None:
        if not traffic.counting:
            return original(self, *arguments, **options)
        # Arguments are in this process's memory: the interpreter would copy each storage onto itself.
        self._init_args_hst = lambda given, named: (given, named)
        self._restore_args_dev = lambda *given: None
        named = [*zip(self.arg_names, arguments, strict=False), *options.items()]
        named = [(n, v) for n, v in (*named, ("grid", self.grid))]
        return traffic.launch(self, lambda: original(self, *arguments, **options), named)

    return call


def _loading(original: Callable[..., Handle], traffic: Traffic) -> Callable[..., Handle]:
    @wraps(original)
    def load(self: Any, pointers: Handle, mask: Handle, *rest: Any, **more: Any) -> Handle:
        running = traffic.running
        if running is None:
            return original(self, pointers, mask, *rest, **more)
        running.access("load", pointers, mask)
        if running.dry and pointers.get_element_ty().is_floating():
            return _zeros(pointers)
        return original(self, pointers, mask, *rest, **more)

    return load


def _zeros(pointers: Handle) -> Handle:
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype

    kind = pointers.get_element_ty()
    return TensorHandle(np.zeros(pointers.data.shape, _get_np_dtype(kind)), kind)


def _storing(original: Callable[..., Any], traffic: Traffic) -> Callable[..., Any]:
    @wraps(original)
    def store(
        self: Any, pointers: Handle, value: Handle, mask: Handle, *rest: Any, **more: Any
    ) -> Any:
        running = traffic.running
        if running is not None:
            running.access("store", pointers, mask)
            kind = pointers.get_element_ty()
            running.stores_numbers |= kind.is_int() and kind.primitive_bitwidth > 8
            if running.dry and kind.is_floating():
                return None
        return original(self, pointers, value, mask, *rest, **more)

    return store


def _changing(original: Callable[..., Handle], traffic: Traffic) -> Callable[..., Handle]:
    """Atomic read-modify-write: (op, pointers, value, mask, ...) or (pointers, compared, value, ...)."""

    @wraps(original)
    def change(self: Any, *arguments: Any) -> Handle:
        running = traffic.running
        if running is not None:
            handles = [a for a in arguments if hasattr(a, "get_element_ty")]
            mask = handles[2] if handles[2].data.dtype == np.bool_ else None
            running.access("atomic", handles[0], mask)
            if running.dry:
                return _zeros(handles[0])
        return original(self, *arguments)

    return change


def _moving(original: Callable[..., Handle], traffic: Traffic) -> Callable[..., Handle]:
    """Pointer arithmetic and spreading: the result points into the operand that the argument does."""

    @wraps(original)
    def move(self: Any, *arguments: Any) -> Handle:
        made = original(self, *arguments)
        running = traffic.running
        if running is not None:
            for pointers in (a for a in arguments if _points(a)):
                found = getattr(pointers, "operand", None)
                made.operand = found or running.at(int(pointers.data.flat[0]))
        return made

    return move


def _points(argument: Any) -> bool:
    return hasattr(argument, "data") and hasattr(getattr(argument, "dtype", None), "element_ty")


def _multiplying(original: Callable[..., Handle], traffic: Traffic) -> Callable[..., Handle]:
    @wraps(original)
    def dot(self: Any, a: Handle, b: Handle, accumulator: Handle, *rest: Any) -> Handle:
        running = traffic.running
        if running is not None:
            running.counts["dot"] += 2 * a.data.size * b.data.shape[-1]
            if running.dry:
                return accumulator
        return original(self, a, b, accumulator, *rest)

    return dot


def _computing(original: Callable[..., Handle], traffic: Traffic) -> Callable[..., Handle]:
    """Elementwise arithmetic: counted by the elements of a float result."""

    @wraps(original)
    def compute(self: Any, *arguments: Any) -> Handle:
        made = original(self, *arguments)
        running = traffic.running
        if running is not None and any(a.dtype.is_floating() for a in arguments if _is_handle(a)):
            special = any(a is op for a in arguments for op in (*SPECIAL, np.divide))
            running.counts["special" if special else "float"] += made.data.size
        return made

    return compute


def _special(original: Callable[..., Handle], traffic: Traffic) -> Callable[..., Handle]:
    @wraps(original)
    def compute(self: Any, *arguments: Any) -> Handle:
        made = original(self, *arguments)
        if traffic.running is not None:
            traffic.running.counts["special"] += made.data.size
        return made

    return compute


def _is_handle(argument: Any) -> bool:
    return hasattr(argument, "data") and hasattr(argument, "dtype")


Hook = Callable[[Callable[..., Any], "Traffic"], Callable[..., Any]]
HOOKS: dict[tuple[str, ...], Hook] = {
    ("create_masked_load",): _loading,
    ("create_masked_store",): _storing,
    ("create_atomic_rmw", "create_atomic_cas"): _changing,
    ("create_addptr", "create_splat", "create_broadcast", "create_expand_dims"): _moving,
    ("create_dot",): _multiplying,
    ("binary_op", "unary_op", "create_fma"): _computing,
    ("create_rsqrt", "create_erf"): _special,
}
