"""Bytes of a Llama-3-8B decoder layer's kernels: Inductor's plan for an H100 beside ours. No GPU.

    .venv/bin/python benchmarks/inductor_plan.py [--rows 4096] [--kernels] [--max-autotune]

Inductor lowers a plain PyTorch layer (bfloat16, flash attention, weights as they are) for CUDA on
fake tensors; its scheduler says which buffers each kernel reads and writes. Ours come from the
generated host module's launches, by the same rule: a kernel moves every array that it touches
once. Where it touches a part of an array, as a slice of a packed product, the part counts.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

D, HIDDEN, HEADS, KV_HEADS, HEAD = 4096, 14336, 32, 8, 128
COLUMNS = 128  # of a tile of a product
EXAMPLE = Path(__file__).parent.parent / "examples" / "llama.arch"
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132,
    total_memory=80 * 2**30, warp_size=32, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472, L2_cache_size=50 * 2**20,
    gcnArchName="", is_integrated=0, is_multi_gpu_board=0, uuid="0",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--kernels", action="store_true", help="list every kernel")
    parser.add_argument("--max-autotune", action="store_true", help="Inductor's GEMM templates")
    given = parser.parse_args()
    plans = {
        "archc": ours(given.rows),
        "Inductor": inductors(given.rows, given.max_autotune),
    }
    for name, kernels in plans.items():
        print(f"{name}: {len(kernels)} kernels, {sum(b for _, b in kernels) / 1e6:.1f} MB")
        if given.kernels:
            for kernel, count in kernels:
                print(f"  {count / 1e6:8.1f} MB  {kernel[:80]}")
    total = {name: sum(b for _, b in kernels) for name, kernels in plans.items()}
    print(f"archc / Inductor: {total['archc'] / total['Inductor']:.3f}")


# ------------------------------------------------------------------------------------- Inductor


def layer(x: Any, w: dict[str, Any]) -> Any:
    """A pre-norm decoder layer as it is usually written in PyTorch."""
    import torch
    from torch.nn import functional as F

    def norm(v: Any, gain: Any) -> Any:
        wide = v.float()
        return gain * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(v.dtype)

    def turned(v: Any) -> Any:
        first, second = v.chunk(2, -1)
        return v * w["cos"] + torch.cat((-second, first), -1) * w["sin"]

    def heads(v: Any) -> Any:
        return v.view(*v.shape[:2], -1, HEAD).transpose(1, 2)

    h = norm(x, w["norm1"])
    q, k, v = (heads(F.linear(h, w[n])) for n in ("q", "k", "v"))
    attend = torch.ops.aten._scaled_dot_product_flash_attention
    mixed = attend(turned(q), turned(k), v, 0.0, True)[0]
    x = x + F.linear(mixed.transpose(1, 2).reshape(x.shape), w["o"])
    h = norm(x, w["norm2"])
    return x + F.linear(F.silu(F.linear(h, w["gate"])) * F.linear(h, w["up"]), w["down"])


def inductors(rows: int, max_autotune: bool) -> list[tuple[str, int]]:
    """Kernels of Inductor's schedule and the bytes of the buffers that each reads and writes."""
    import torch
    from torch._inductor import config
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.joint_graph import joint_graph_passes
    from torch._inductor.fx_passes.post_grad import post_grad_passes
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    shapes = {
        "norm1": (D,), "norm2": (D,), "cos": (rows, HEAD), "sin": (rows, HEAD),
        "q": (HEADS * HEAD, D), "k": (KV_HEADS * HEAD, D), "v": (KV_HEADS * HEAD, D),
        "o": (D, D), "gate": (HIDDEN, D), "up": (HIDDEN, D), "down": (D, HIDDEN),
    }  # fmt: skip
    settings = {
        "max_autotune_gemm": max_autotune,
        "max_autotune_gemm_backends": "TRITON",
        "benchmark_epilogue_fusion": False,
    }
    with pretended(), config.patch(settings), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        x = torch.empty(1, rows, D, dtype=torch.bfloat16, device="cuda")
        w = {n: torch.empty(s, dtype=torch.bfloat16, device="cuda") for n, s in shapes.items()}
        traced = make_fx(layer, select_decomp_table(), tracing_mode="real")(x, w)
        with torch.no_grad(), V.set_fake_mode(fake):
            traced = joint_graph_passes(traced)
            post_grad_passes(traced, is_inference=True)
            graph = GraphLowering(traced, example_inputs=[x, *w.values()], is_inference=True)
            with V.set_graph_handler(graph), V.set_debug_handler(DebugContext()):
                graph.run(x, *w.values())
                graph._update_scheduler()
                return [kernel for kernel in map(scheduled, graph.scheduler.nodes) if kernel[1]]


def scheduled(node: Any) -> tuple[str, int]:
    origins = [o.name for n in node.get_nodes() if n.node for o in n.node.get_origins()]
    return ", ".join(dict.fromkeys(origins)), node.get_read_write_buffers_sizes()


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """PyTorch's questions about the GPU, answered; what would run something on it, left out."""
    import torch
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.fx_passes import joint_graph
    from torch._inductor.select_algorithm import AlgorithmSelectorCache
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: H100,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: H100.name,
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
            if hasattr(CudaInterface, name):
                stack.enter_context(mock.patch.object(CudaInterface, name, staticmethod(answer)))
        worker = CudaInterface.Worker
        stack.enter_context(mock.patch.object(worker, "get_device_properties", return_value=H100))
        stack.enter_context(mock.patch.object(joint_graph, "lazy_init"))
        stack.enter_context(
            mock.patch.object(AlgorithmSelectorCache, "do_autotuning", first_choice)
        )
        target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
        stack.enter_context(mock.patch.object(driver, "_active", target))
        yield


def first_choice(
    cache: Any,
    name: str,
    nodes: Any,
    layout: Any,
    gens: Any,
    key: Any,
    choices: Any,
    *_: Any,
    **__: Any,
) -> dict[Any, float]:
    """Any tile will do: which one is chosen does not change what a kernel touches."""
    return {choice: float(rank) for rank, choice in enumerate(choices)}


# ----------------------------------------------------------------------------------------- ours


def ours(rows: int) -> list[tuple[str, int]]:
    """The launches of the generated layer for a GPU, and the bytes of what each touches."""
    import archc
    from archc.backends.triton import TritonBackend
    from archc.backends.triton.begun import begun
    from archc.backends.triton.beside import beside
    from archc.backends.triton.kernel import build
    from archc.backends.triton.regions import FREE, HOST, region_of
    from archc.backends.triton.space import alike, only
    from archc.backends.triton.split import PARTS
    from archc.compiler.ir.graph import TensorType
    from archc.compiler.passes import optimise

    program = archc.load(EXAMPLE, preset="llama3_8b").program
    program = optimise(program, disable=TritonBackend().unwanted_passes("bf16")).program
    function = next(f for f in program.functions if f.name == "layers")
    sizes = {**program.sizes, "b": 1, "s": rows, str(PARTS.size): D // COLUMNS}
    starts, launches = begun(program, function), []
    joins = {made.follower: made.join for made in starts.values()}
    for node in function.nodes:
        if node.op not in FREE | HOST:
            region = joins.get(node.id) or region_of(program, function, node)
            left = [TensorType("f32", starts[node.id].axes)] if node.id in starts else []
            parts = [only(region, outputs) for outputs in alike(region)]
            kernels = [build(part, node.op) for part in parts]
            name = f"{node.op} ({', '.join(dict.fromkeys(o.region for o in region.origins))})"
            if beside(kernels) is not None:  # what several parts of a launch read is read once
                parts, kernels = [region], [beside(kernels)]
            for part, kernel in zip(parts, kernels, strict=True):
                read = {p.value for p in kernel.pointers if not p.is_result}
                moved = [touched(part, i, sizes) for i, v in part.leaves.items() if v in read]
                moved += [size(kind, sizes) for kind in left]
                moved += [size(part.nodes[i].type, sizes) for i in part.outputs]
                launches.append((name, sum(moved)))
    return launches


def size(kind: Any, sizes: dict[str, int]) -> int:
    """Bytes of a value where the model's floats have two."""
    from archc.compiler.passes.properties import bytes_of

    return int(bytes_of(kind).evaluate(sizes))


def touched(region: Any, leaf: int, sizes: dict[str, int]) -> int:
    """Bytes of the slices of an array that its readers see; of all of it where one sees all."""
    from archc.backends.triton.mapping import VIEWS

    pieces: dict[Any, int] = {}
    todo: list[tuple[int, tuple[Any, ...]]] = [(leaf, ())]
    while todo:
        current, cuts = todo.pop()
        readers = [n for n in region.nodes.values() if current in n.inputs]
        for reader in readers:
            if reader.op in VIEWS:
                cut = (reader.attrs,) if reader.op in ("slice", "pick") else ()
                todo.append((reader.id, (*cuts, *cut)))
        if not readers or any(r.op not in VIEWS for r in readers):
            pieces[cuts] = size(region.nodes[current].type, sizes)
    return min(sum(pieces.values()), size(region.nodes[leaf].type, sizes))


if __name__ == "__main__":
    main()
