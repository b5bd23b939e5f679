"""Ops for a few rows of x: the weights are read once, as fast as memory gives them.

    few_rows::product(x, w)                        F.linear(x, w), float32 or bfloat16 each
    few_rows::coded(x, codes, scales, offsets)     w in groups of 32 codes of 8 or of 4 bits
    few_rows::decoded(codes, scales, offsets)      that w, for products of many rows
    few_rows::encode(w, codes, scales, offsets)    writes the nearest codes of w to those given

The loops are in `few_rows.cpp` and `rows.h`, which lie beside this file: the three stand alone. A
C++ compiler builds them once for a machine, into the folder of PyTorch's own compiled code. That is
done without PyTorch's builder, which takes longer to import than a small model to load. An emitted
text uses the ops if they are there when it is imported; where there is no compiler PyTorch's own
product runs. `library` builds other texts in the same way.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from .folder import cache_folder

# Sums of products are contracted where the loops say so, and nowhere else.
FLAGS = ("-O3", "-std=c++20", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno")
# What `torch.backends.cpu.get_cpu_capability()` says of a processor, as options of the compiler.
INSTRUCTIONS = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
}


@cache
def built() -> bool:
    """Builds and registers the ops if there is a compiler. Takes some seconds, once for a machine."""
    here = Path(torch.__file__).parent
    version = "".join(f"{int(part):02x}" for part in re.findall(r"\d+", torch.__version__)[:2])
    options = [
        *FLAGS,
        f"-DTORCH_TARGET_VERSION=0x{version}000000000000",
        *(f"-I{here / 'include' / part}" for part in ("", "torch/csrc/api/include")),
    ]
    text = Path(__file__).with_name("few_rows.cpp").read_text(encoding="utf-8")
    path = library("few_rows", text, options, [f"-L{here / 'lib'}", "-ltorch_cpu", "-lc10"])
    if path is None:
        return False
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]  # torch's has no types
    except OSError as problem:
        warnings.warn(f"few_rows.cpp is not used: {problem}", stacklevel=2)
        return False
    torch.library.register_fake("few_rows::product", _like)
    torch.library.register_fake("few_rows::coded", _like)
    torch.library.register_fake("few_rows::decoded", _whole)
    return True


def library(
    name: str, text: str, options: Sequence[str], libraries: Sequence[str] = ()
) -> Path | None:
    """The path of the library that a text is built to, under what it is made from and for.

    None, with a warning, where there is no compiler that builds it.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    headers = sorted(Path(__file__).parent.rglob("*.h"))
    options = [*options, "-shared", "-fPIC", "-Wno-ignored-attributes"]
    options += sorted({f"-I{path.parent}" for path in headers})
    options += INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ())
    included = (path.read_text(encoding="utf-8") for path in headers)
    made_from = (text, *included, compiler, torch.__version__, *options)
    digest = hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:32]
    path = cache_folder() / f"{name}-{digest}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    source = part.with_name(f"{part.name}.cpp")  # of this process: others build the same
    source.write_text(text, encoding="utf-8")
    command = [compiler, str(source), "-o", str(part), *options, *libraries]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        words = getattr(problem, "stderr", "") or str(problem)
        warnings.warn(f"the C++ of {name} is not used: {words.strip()}", stacklevel=2)
        return None
    finally:
        source.unlink(missing_ok=True)
    part.replace(path)  # all at once: another process may be looking
    return path


def _like(
    x: torch.Tensor, w: torch.Tensor, scales: object = None, offsets: object = None
) -> torch.Tensor:
    return x.new_empty(x.shape[0], w.shape[0])


def _whole(
    codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None = None
) -> torch.Tensor:
    return scales.new_empty(codes.shape[0], scales.shape[1] * 32)
