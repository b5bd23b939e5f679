"""What a compiled kernel uses, read off the compiler's output with the tools inside Triton's
wheel."""

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
    """Registers per thread; spilled bytes (NVIDIA) or registers (AMD); bytes of shared memory;
    tensor memory columns; counts of instructions in the program text."""

    registers: int
    spills: int
    shared: int
    tensor_ops: int
    vector_loads: int
    vector_stores: int
    tmem: int = 0


TENSOR_OPS = r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\b"
COPIES = r"\bcp\.async\.(?:[\w.]*shared\.global[^;]*\b(?:16|0x10)\b|bulk\.tensor\.[\w.]*shared)"


def nvidia_usage(asm: Mapping[str, Any], metadata: Any) -> Usage:
    """From PTX; registers and spills are known to its assembler only, which runs once more."""
    ptx = asm["ptx"]
    log = _assembled(ptx)
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    return Usage(
        int(re.findall(r"Used (\d+) registers", log)[0]),
        sum(map(int, spilled)),
        metadata.shared,
        len(re.findall(TENSOR_OPS, ptx)),
        len(re.findall(r"\bld\.global[.\w:]*\.v[48]", ptx)) + len(re.findall(COPIES, ptx)),
        len(re.findall(r"\bst\.global[.\w:]*\.v[48]", ptx)),
        getattr(metadata, "tmem_size", None) or 0,
    )


def _assembled(ptx: str) -> str:
    """What ptxas says with the flags that Triton gives it, except those for debugging."""
    from triton import knobs

    (arch,) = re.findall(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    blackwell = getattr(knobs.nvidia, "ptxas_blackwell", knobs.nvidia.ptxas)
    tools = (knobs.nvidia.ptxas, blackwell) if arch == "sm_80" else (blackwell, knobs.nvidia.ptxas)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        for tool in tools:
            made = subprocess.run(
                [tool.path, "-v", "--regAllocOptLevel=2", f"--gpu-name={arch}", str(path),
                 "-o", f"{folder}/kernel.cubin"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if made.returncode == 0:
                break
    made.check_returncode()
    return made.stderr + made.stdout


def amd_usage(asm: Mapping[str, Any], metadata: Any) -> Usage:
    """From the annotated assembly. Shared memory is allocated at launch, so metadata has its size.
    Scalar registers spill to lanes of vector registers, not to memory, and are not counted.
    """
    text = asm["amdgcn"]

    def figure(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        return int(found[1]) if found else 0

    return Usage(
        figure("vgpr_count"),
        figure("vgpr_spill_count"),
        metadata.shared,
        len(re.findall(r"\bv_mfma\w*", text)),
        len(re.findall(r"\b(?:global|buffer)_load_dwordx[34]", text)),
        len(re.findall(r"\b(?:global|buffer)_store_dwordx[34]", text)),
    )
