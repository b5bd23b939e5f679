"""Repairs of Triton's interpreter, which is silently wrong for bfloat16.

It keeps bf16 as raw uint16 bits: conversion from float32 truncates, `tl.dot` and arithmetic use the
bits as integers. Here bf16 operands are widened to float32, the original runs, and a result that is
bf16 is rounded to nearest even. `apply()` once per process; only where TRITON_INTERPRET is set.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint16]
Handle = Any  # triton.runtime.interpreter.TensorHandle


def widen_bits(bits: Bits) -> NDArray[np.float32]:
    """bf16 bits as float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def round_bits(x: NDArray[np.float32]) -> Bits:
    """float32 to bf16 bits, to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    bias = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    with np.errstate(over="ignore"):
        rounded = ((bits + bias) >> np.uint32(16)).astype(np.uint16)
    quiet = ((bits >> np.uint32(16)) | np.uint32(0x40)).astype(np.uint16)
    return np.where(np.isnan(x), quiet, rounded).reshape(np.shape(x))


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


def _is_bf16(handle: object) -> bool:
    import triton.language as tl

    kind = getattr(handle, "dtype", None)
    return getattr(kind, "scalar", kind) == tl.bfloat16


def _widened(handle: Handle) -> Handle:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    return TensorHandle(widen_bits(handle.data), tl.float32) if _is_bf16(handle) else handle


def _rounded(handle: Handle) -> Handle:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    return TensorHandle(round_bits(handle.data.astype(np.float32)), tl.bfloat16)


def _converting(original: Callable[..., Handle]) -> Callable[..., Handle]:
    """A conversion: through float32 where either side is bf16."""
    import triton.language as tl

    @wraps(original)
    def convert(self: Any, source: Handle, target: Any, *rest: Any) -> Handle:
        to_bf16 = target.scalar == tl.bfloat16
        if not to_bf16 and not _is_bf16(source):
            return original(self, source, target, *rest)
        source = _widened(source)
        if to_bf16:
            return _rounded(source)
        return source if target.scalar == tl.float32 else self.cast_impl(source, target)

    return convert


def _in_float32(original: Callable[..., Handle]) -> Callable[..., Handle]:
    """Arithmetic: bf16 operands widened, a bf16 result rounded. Comparisons stay bool."""

    @wraps(original)
    def compute(self: Any, *operands: Any) -> Handle:
        if not any(map(_is_bf16, operands)):
            return original(self, *operands)
        handles = [o for o in operands if hasattr(o, "dtype")]
        result = original(self, *map(_widened, operands))
        floats = result.data.dtype == np.float32 and _is_bf16(handles[-1])
        return _rounded(result) if floats else result

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
        wide = tuple(tl.core.tensor(_widened(o.handle), o.type.with_element_ty(tl.float32))
                     for o in operands)  # fmt: skip
        found = original(self, wide)
        results = found if isinstance(found, (list, tuple)) else [found]
        return [tl.core.tensor(_rounded(r.handle), r.type.with_element_ty(tl.bfloat16))
                if r.dtype == tl.float32 else r for r in results]  # fmt: skip

    return reduce
