"""Ops for a few rows of x: the weights are read once, as fast as memory gives them.

    few_rows::product(x, w)                        F.linear(x, w), float32 or bfloat16 each
    few_rows::coded(x, codes, scales, offsets)     w in groups of 32 codes of 8 or of 4 bits

The loops are in `few_rows.cpp`, which lies beside this file: the two stand alone. A C++ compiler
builds them once for a machine and PyTorch keeps what it built. An emitted text uses the ops if they
are there when it is imported; where there is no compiler PyTorch's own product runs.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path

import torch


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


def _like(
    x: torch.Tensor, w: torch.Tensor, scales: object = None, offsets: object = None
) -> torch.Tensor:
    return x.new_empty(x.shape[0], w.shape[0])
