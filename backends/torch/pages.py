"""Weights on huge pages: one mapping for all of a module's tensors.

A token reads every weight once. With pages of 4 KiB the processor looks up one page for each 4 KiB
that it reads; with pages of 2 MiB it seldom does, and reads further ahead.
"""

from __future__ import annotations

import mmap

import torch

PAGE = 2 << 20  # bytes
LINE = 64  # bytes of a cache line, where each tensor begins


def huge(size: int) -> torch.Tensor:
    """`size` bytes, uint8 and zero, from the start of a huge page on; ordinary ones where there are none.

    The mapping is private: shared anonymous memory takes its pages from another pool.
    """
    given = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        given.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(given, dtype=torch.uint8)  # keeps the mapping alive
    start = -whole.data_ptr() % PAGE
    return whole[start : start + size]


def gather(module: torch.nn.Module) -> None:
    """Moves the parameters and buffers of `module` to huge pages, one by one; shared ones stay shared.

    Tensors that are not plain memory of a CPU stay: those of another device, packed ones, views
    that are not contiguous.
    """
    tensors: dict[tuple[object, ...], list[torch.Tensor]] = {}
    for tensor in [*_distinct(module)]:
        tensors.setdefault((tensor.data_ptr(), tensor.shape, tensor.dtype), []).append(tensor)
    total = sum(_bytes(same[0]) for same in tensors.values())
    arena, start = huge(total), 0
    for same in tensors.values():
        first, size = same[0], same[0].numel() * same[0].element_size()
        place = arena[start : start + size].view(first.dtype).view(first.shape)
        place.copy_(first.detach())
        for tensor in same:
            tensor.data = place
        start += _bytes(first)


def _distinct(module: torch.nn.Module) -> list[torch.Tensor]:
    found = {id(t): t for t in (*module.parameters(), *module.buffers()) if _plain(t)}
    return list(found.values())


def _plain(tensor: torch.Tensor) -> bool:
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return dense and tensor.is_contiguous() and tensor.numel() > 0


def _bytes(tensor: torch.Tensor) -> int:
    """What the tensor takes up with what follows it to the next cache line."""
    return -(-tensor.numel() * tensor.element_size() // LINE) * LINE
