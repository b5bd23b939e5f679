"""`linear` and `coded_linear` for a few rows of x: the weights are read once, as fast as memory gives them.

The loops are in `few_rows.cpp`, which lies beside this file: the two stand alone, beside an emitted
text too. A C++ compiler builds them once for a machine and PyTorch keeps what it built. Where there
is none, or there are many rows, PyTorch's own product runs.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

MANY = 8  # rows from which on a product is bound by arithmetic
GROUP = 32  # codes that share a scale, in `few_rows.cpp`
DTYPES = (torch.float32, torch.bfloat16)


@cache
def built() -> bool:
    """Builds and registers the ops if there is a compiler. Takes some seconds, once for a machine."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return False
    from torch._inductor.codecache import CppCodeCache

    source = Path(__file__).with_name("few_rows.cpp").read_text(encoding="utf-8")
    CppCodeCache.load(source, needs_vec_isa=True)
    torch.library.register_fake("few_rows::product", _like)
    torch.library.register_fake("few_rows::coded", _like)
    return True


def linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """F.linear(x, w) of x [.., k] and w [n, k], both float32 or bfloat16; summed in float32."""
    if not _few(x) or w.dtype not in DTYPES or not w.is_contiguous():
        return F.linear(x, w.to(x.dtype))
    rows = torch.ops.few_rows.product(_rows(x), w)
    return rows.view(*x.shape[:-1], w.shape[0])


def coded_linear(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None = None
) -> torch.Tensor | None:
    """F.linear(x, w) with w in groups of 32 codes, or None where rows are many or groups not whole.

    w = scale * code of int8 [n, k], or w = scale * (code - 8) + offset with two codes to a byte, the
    first in its low half. Scales and offsets are [n, k / 32].
    """
    whole = x.shape[-1] == scales.shape[-1] * GROUP and scales.dtype in DTYPES
    if not _few(x) or not whole:
        return None
    rows = torch.ops.few_rows.coded(_rows(x), codes, scales, offsets)
    return rows.view(*x.shape[:-1], codes.shape[0])


def _few(x: torch.Tensor) -> bool:
    """Whether these ops take x: no gradients, a dtype and a device of theirs, rows enough and few."""
    if x.device.type != "cpu" or x.dtype not in DTYPES or x.requires_grad:
        return False
    return 0 < x.numel() < MANY * x.shape[-1] and built()


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _like(
    x: torch.Tensor, w: torch.Tensor, scales: object = None, offsets: object = None
) -> torch.Tensor:
    return x.new_empty(x.shape[0], w.shape[0])
