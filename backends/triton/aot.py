"""Ahead-of-time compilation of generated kernels for named targets, on a machine with no GPU.

Each kernel is compiled to machine code and its resources are read off. Compiling alone proves
little: too much shared memory is found only at launch, so `Compiled.failures` holds the figures
against the device. Run-time sizes are taken to be multiples of 16, as those of long sequences are.
"""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...compiler.ir.graph import Program
from ...compiler.ops import ModelDType
from ...dsl.errors import NoLowering
from . import require_packages
from .host import plan
from .kernel import Kernel
from .metrics import Usage, amd_usage, nvidia_usage
from .source import module, tile_of
from .tiles import Tile


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU architecture: what Triton calls it and the limits of one program."""

    name: str
    backend: str
    arch: int | str
    warp: int
    shared: int
    tmem: int = 0


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("sm_80", "cuda", 80, 32, 166912),
        Target("sm_90", "cuda", 90, 32, 232448),
        Target("sm_100", "cuda", 100, 32, 232448, 512),
        Target("gfx942", "hip", "gfx942", 64, 65536),
    )
}
ARTEFACTS = ("ttir", "ptx", "cubin", "amdgcn", "hsaco")
POINTERS: dict[str, tuple[str, int]] = {
    "f32": ("*fp32", 4),
    "bf16": ("*bf16", 2),
    "f16": ("*fp16", 2),
}
KINDS = {"f32": "*fp32", "int": "*i64", "i8": "*i8", "bool": "*i1"}


@dataclass(frozen=True, slots=True)
class Job:
    """One kernel for one target, with everything that a process needs to compile it."""

    folder: str
    kernel: str
    target: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int | str], ...]
    options: tuple[tuple[str, int | str], ...]
    has_dot: bool
    has_wide: bool = False
    out: str | None = None


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel for a target: its resources, or why it does not compile."""

    kernel: str
    target: str
    seconds: float
    has_dot: bool
    has_wide: bool = False
    usage: Usage | None = None
    error: str = ""

    @property
    def failures(self) -> tuple[str, ...]:
        """What keeps the kernel from launching, or from running as it should."""
        if self.usage is None:
            return (self.error,)
        limits, usage = TARGETS[self.target], self.usage
        return tuple(
            reason
            for failed, reason in (
                (usage.shared > limits.shared, f"{usage.shared} B of shared memory"),
                (usage.tmem > limits.tmem, f"{usage.tmem} columns of tensor memory"),
                (usage.spills > 0, f"{usage.spills} spills"),
                (self.has_dot and not usage.tensor_ops, "no tensor-core instruction"),
                (self.has_wide and not usage.vector_loads, "no vector load"),
            )
            if failed
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel,
            "target": self.target,
            "seconds": self.seconds,
            "usage": None if self.usage is None else asdict(self.usage),
            "failures": list(self.failures),
        }


def compile_program(
    program: Program,
    targets: Sequence[str],
    *,
    dtype: ModelDType = "bf16",
    out: str | Path | None = None,
    cache: str | Path | None = None,
    processes: int = 2,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> list[Compiled]:
    """Every kernel of a program for every target, in that order.

    `out` receives TARGET/KERNEL.ptx, .cubin, .hsaco and so on; `cache` is Triton's cache directory;
    `on_done` is told how many of how many are compiled. Raises NoLowering, MissingPackage.
    """
    if dtype not in POINTERS:
        raise NoLowering(op=f"dtype {dtype}", backend="triton")
    kernels = [*plan(program).kernels.values()]
    return compile_kernels(
        kernels, targets, dtype=dtype, out=out, cache=cache, processes=processes, on_done=on_done
    )


def compile_kernels(
    kernels: Sequence[Kernel],
    targets: Sequence[str],
    *,
    dtype: ModelDType = "bf16",
    few: bool = False,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    processes: int = 2,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> list[Compiled]:
    """As `compile_program`, of kernels with different names; with the tiles for `few` rows."""
    require_packages("compiling kernels")
    with tempfile.TemporaryDirectory(prefix="archc-aot-") as folder:
        Path(folder, "kernels.py").write_text(module(kernels))
        jobs = [job(folder, k, target, dtype, out, few=few) for k in kernels for target in targets]
        return compile_jobs(jobs, processes, cache, on_done)


def job(
    folder: str,
    kernel: Kernel,
    target: str,
    dtype: ModelDType,
    out: str | Path | None = None,
    *,
    few: bool = False,
) -> Job:
    pointer, size = POINTERS[dtype]
    tile = tile_of(kernel, target, size, few=few)
    kinds = KINDS | {"float": pointer}
    signature = [(p.name, kinds[p.dtype]) for p in kernel.pointers]
    signature += [(name, "i32") for _, name in kernel.sizes]
    signature += [(block, "constexpr") for block in kernel.blocks]
    lanes = 16 // size * TARGETS[target].warp * int(tile["num_warps"])
    return Job(
        folder, kernel.name, target, tuple(signature),
        tuple((k, v) for k, v in tile.items() if k in kernel.blocks),
        tuple((k, v) for k, v in tile.items() if k not in kernel.blocks),
        kernel.has_dot and size == 2 and not kernel.facts.exact,
        any(_elements(lengths, tile) >= lanes for lengths in kernel.wide),
        None if out is None else str(out),
    )  # fmt: skip


def _elements(lengths: tuple[str, ...], tile: Tile) -> int:
    return math.prod(int(n if n.isdigit() else tile[n]) for n in lengths)


def compile_jobs(
    jobs: Sequence[Job],
    processes: int = 2,
    cache: str | Path | None = None,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> list[Compiled]:
    """Runs jobs in fresh processes: the interpreter's setting must not reach the compiler."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _prepare, (str(cache or ""),)) as pool:
        results = []
        for result in pool.map(compile_job, jobs, chunksize=1):
            results.append(result)
            on_done(len(results), len(jobs))
        return results


def _prepare(cache: str) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    if cache:
        os.environ["TRITON_CACHE_DIR"] = cache


def compile_job(job: Job) -> Compiled:
    start = time.perf_counter()
    usage, error = None, ""
    try:
        usage = _compile(job)
    except Exception as failure:  # whatever the compiler raises is this kernel's result
        error = f"{type(failure).__name__}: {str(failure).strip().splitlines()[-1:] or ''}"
    seconds = time.perf_counter() - start
    return Compiled(job.kernel, job.target, seconds, job.has_dot, job.has_wide, usage, error)


def _compile(job: Job) -> Usage:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = TARGETS[job.target]
    known = {
        (i,): _facts(kind, target)
        for i, (_, kind) in enumerate(job.signature)
        if kind != "constexpr"
    }
    function = getattr(_kernels(job.folder), job.kernel)
    source = ASTSource(function, dict(job.signature), dict(job.constants), known)
    options = {**dict(job.options), "enable_fp_fusion": True}
    made = triton.compile(source, GPUTarget(target.backend, target.arch, target.warp), options)
    if job.out is not None:
        _write(Path(job.out) / job.target, job.kernel, made.asm)
    measure = nvidia_usage if target.backend == "cuda" else amd_usage
    return measure(made.asm, made.metadata)


def _facts(kind: str, target: Target) -> list[list[Any]]:
    """What a launch finds out about an argument; on AMD also that an array is below 2 GiB."""
    small = kind.startswith("*") and target.backend == "hip"
    return [["tt.divisibility", 16], *([["tt.pointer_range", 32]] if small else [])]


def _kernels(folder: str) -> Any:
    """The generated module, loaded once per process."""
    name = f"archc_aot_{Path(folder).name}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(folder, "kernels.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _write(folder: Path, kernel: str, asm: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ARTEFACTS:
        if kind in asm:
            content = asm[kind]
            path = folder / f"{kernel}.{kind}"
            path.write_bytes(content if isinstance(content, bytes) else str(content).encode())


COLUMNS = ("kernel", "target", "regs", "spills", "shared B", "tensor ops", "vec ld", "vec st", "s")


def table(results: Iterable[Compiled]) -> str:
    """One line per kernel and target; a failed gate is named at its end."""
    rows = [COLUMNS, *(_row(r) for r in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = []
    for row in rows:
        cells = [row[i].ljust(widths[i]) if i < 2 else row[i].rjust(widths[i]) for i in range(9)]
        lines.append("  ".join([*cells, *row[9:]]).rstrip())
    return "\n".join(lines)


def _row(result: Compiled) -> tuple[str, ...]:
    usage = result.usage
    figures = ("-",) * 6
    if usage is not None:
        shared = f"{usage.shared}" + (f"+{usage.tmem}t" if usage.tmem else "")
        figures = (
            str(usage.registers), str(usage.spills), shared, str(usage.tensor_ops),
            str(usage.vector_loads), str(usage.vector_stores),
        )  # fmt: skip
    seconds = f"{result.seconds:.1f}"
    return (result.kernel, result.target, *figures, seconds, "; ".join(result.failures))
