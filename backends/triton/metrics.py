"""What a compiled kernel uses, read off the compiler's output with the tools inside Triton's wheel."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Usage:
    """Registers per thread; spill instructions; bytes of shared memory; counts of instructions."""

    registers: int
    spills: int
    shared: int
    tensor_ops: int
    vector_loads: int
    vector_stores: int
    tmem: int = 0


TENSOR_OPS = r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\b"
COPIES = r"\bcp\.async\.[\w.]*shared\.global[^;]*\b(?:16|0x10)\b"


def nvidia_usage(asm: Mapping[str, Any], metadata: Any) -> Usage:
    """From PTX and the cubin's own figures: the PTX is before register allocation."""
    ptx = asm["ptx"]
    registers, spills = _cubin_figures(asm["cubin"])
    return Usage(
        registers,
        spills,
        metadata.shared,
        len(re.findall(TENSOR_OPS, ptx)),
        len(re.findall(r"\bld\.global[.\w:]*\.v[48]", ptx)) + len(re.findall(COPIES, ptx)),
        len(re.findall(r"\bst\.global[.\w:]*\.v[48]", ptx)),
        getattr(metadata, "tmem_size", None) or 0,
    )


def _cubin_figures(cubin: bytes) -> tuple[int, int]:
    """Registers, and the loads and stores of local memory in the machine code."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        used = _output(knobs.nvidia.cuobjdump.path, "-res-usage", str(path))
        code = _output(knobs.nvidia.nvdisasm.path, "-c", str(path))
    return int(re.findall(r"REG:(\d+)", used)[0]), len(re.findall(r"\b(?:STL|LDL)\b", code))


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def amd_usage(asm: Mapping[str, Any], metadata: Any) -> Usage:
    """From the annotated assembly; local memory is allocated at launch, so metadata has its size."""
    text = asm["amdgcn"]

    def figure(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        return int(found[1]) if found else 0

    return Usage(
        figure("vgpr_count"),
        figure("vgpr_spill_count") + figure("sgpr_spill_count"),
        metadata.shared,
        len(re.findall(r"\bv_mfma\w*", text)),
        len(re.findall(r"\b(?:global|buffer)_load_dwordx[34]", text)),
        len(re.findall(r"\b(?:global|buffer)_store_dwordx[34]", text)),
    )
