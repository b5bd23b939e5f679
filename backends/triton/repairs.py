"""Repairs of Triton's interpreter, which is silently wrong for bfloat16, rounds float8 half up, and
takes three times as long as it need.

It keeps these formats as raw bits: conversion from float32 truncates, `tl.dot` and arithmetic use
the bits of bf16 as integers. Here bf16 operands are widened to float32, the original runs, and
results are rounded to nearest even. `apply()` once per process; only where TRITON_INTERPRET is set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Handle = Any  # triton.runtime.interpreter.TensorHandle

# Formats kept as bits, by Triton's name.
FORMATS: dict[str, np.dtype[Any]] = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp8e4nv": np.dtype(ml_dtypes.float8_e4m3fn),
    "fp8e5": np.dtype(ml_dtypes.float8_e5m2),
}


def widen_bits(bits: NDArray[Any], name: str = "bf16") -> NDArray[np.float32]:
    """Bits of a format as float32, exactly."""
    return np.ascontiguousarray(bits).view(FORMATS[name]).astype(np.float32)


def round_bits(x: NDArray[Any], name: str = "bf16") -> NDArray[Any]:
    """float32 to the bits of a format, to nearest even."""
    rounded = np.asarray(x, np.float32).astype(FORMATS[name])
    return rounded.view(np.uint16 if rounded.dtype.itemsize == 2 else np.uint8)


def apply() -> None:
    """Patches `triton.runtime.interpreter` in place."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    for name in ("cast_impl", "create_fp_to_fp"):
        setattr(builder, name, _converting(getattr(builder, name)))
    for name in ("binary_op", "ternary_op", "unary_op", "create_fma", "create_dot", "create_rsqrt"):
        setattr(builder, name, _in_float32(getattr(builder, name)))
    builder.create_erf = _in_float32(_erf)
    interpreter.ReduceOps.apply_impl = _reducing(interpreter.ReduceOps.apply_impl)
    # Whether integers overflow is computed at each of their operations, and told to nobody.
    shared = interpreter.interpreter_builder
    shared.options = replace(shared.options, sanitize_overflow=False)
    interpreter._patch_lang = _patched_once(interpreter._patch_lang)
    interpreter._get_np_dtype = _remembered(interpreter._get_np_dtype)


class _Lasting:
    """What a patch of the language is undone by: it is not."""

    def restore(self) -> None:
        return


def _patched_once(original: Callable[..., Any]) -> Callable[..., _Lasting]:
    """The language is patched for each module that names it once, instead of at every call."""
    import triton.language as tl

    patched: set[frozenset[str]] = set()

    @wraps(original)
    def patch(function: Any) -> _Lasting:
        seen = function.__globals__.values()
        named = frozenset(m.__name__ for m in (tl, tl.core) if any(m is value for value in seen))
        if named not in patched:
            original(function)
            patched.add(named)
        return _Lasting()

    return patch


def _remembered(original: Callable[[Any], np.dtype[Any]]) -> Callable[[Any], np.dtype[Any]]:
    """NumPy's name for a Triton type: a table of all types is made to look up each."""
    known: dict[str, np.dtype[Any]] = {}

    @wraps(original)
    def look_up(kind: Any) -> np.dtype[Any]:
        name = str(kind)
        if name not in known:
            known[name] = original(kind)
        return known[name]

    return look_up


def _format(kind: Any) -> str:
    """The name of a Triton type, or of its elements."""
    return str(getattr(kind, "scalar", kind))


def _is_bf16(operand: object) -> bool:
    return _format(getattr(operand, "dtype", None)) == "bf16"


def _widened(handle: Handle) -> Handle:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    name = _format(getattr(handle, "dtype", None))
    return TensorHandle(widen_bits(handle.data, name), tl.float32) if name in FORMATS else handle


def _rounded(handle: Handle, kind: Any) -> Handle:
    from triton.runtime.interpreter import TensorHandle

    return TensorHandle(round_bits(handle.data, _format(kind)), kind.scalar)


def _converting(original: Callable[..., Handle]) -> Callable[..., Handle]:
    """A conversion: through float32 where either side is kept as bits."""
    import triton.language as tl

    @wraps(original)
    def convert(self: Any, source: Handle, target: Any, *rest: Any) -> Handle:
        if FORMATS.keys().isdisjoint((_format(source.dtype), _format(target))):
            return original(self, source, target, *rest)
        source = _widened(source)
        if _format(target) in FORMATS:
            return _rounded(source, target)
        return source if target.scalar == tl.float32 else self.cast_impl(source, target)

    return convert


def _in_float32(original: Callable[..., Handle]) -> Callable[..., Handle]:
    """Arithmetic: bf16 operands widened, a bf16 result rounded. Comparisons stay bool."""

    import triton.language as tl

    @wraps(original)
    def compute(self: Any, *operands: Any) -> Handle:
        if not any(map(_is_bf16, operands)):
            return original(self, *operands)
        handles = [o for o in operands if hasattr(o, "dtype")]
        result = original(self, *map(_widened, operands))
        floats = result.data.dtype == np.float32 and _is_bf16(handles[-1])
        return _rounded(result, tl.bfloat16) if floats else result

    return compute


def _erf(self: Any, argument: Handle) -> Handle:
    """Vectorised: the original calls Python once per element."""
    import torch
    from triton.runtime.interpreter import TensorHandle

    exact = torch.erf(torch.from_numpy(np.ascontiguousarray(argument.data)).double()).numpy()
    return TensorHandle(exact.astype(argument.data.dtype), argument.dtype.scalar)


def _reducing(original: Callable[..., Any]) -> Callable[..., Any]:
    """Sums and maxima of bf16 run in float32 and round once."""
    import triton.language as tl

    @wraps(original)
    def reduce(self: Any, operands: Any) -> Any:
        if not any(_is_bf16(o.handle) for o in operands):
            return original(self, operands)
        found = original(self, tuple(o.to(tl.float32) for o in operands))
        results = found if isinstance(found, (list, tuple)) else [found]
        return [r.to(tl.bfloat16) if r.dtype == tl.float32 else r for r in results]

    return reduce
