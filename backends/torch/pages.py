"""Weights on huge pages: a few mappings for the tensors of all of a model's modules.

A token reads every weight once. With pages of 4 KiB the processor looks up one page for each 4 KiB
that it reads; with pages of 2 MiB it seldom does, and reads further ahead.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import torch

PAGE = 2 << 20  # bytes
LINE = 64  # bytes of a cache line, where each tensor begins
CHUNK = 64 << 20  # bytes that are mapped at a time; they take no memory until they are written


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


@dataclass(slots=True)
class Arena:
    """Huge pages that are filled from front to back."""

    left: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def gather(self, tensors: Iterable[torch.Tensor], but: Collection[int] = ()) -> None:
        """Moves tensors to huge pages, one by one; those of the same memory stay so.

        Those stay that are not plain memory of a CPU: those of another device, packed ones, views that
        are not contiguous. So do those whose memory begins at one of the addresses `but`.
        """
        places: dict[tuple[object, ...], torch.Tensor] = {}
        moved = []
        for tensor in tensors:
            if _plain(tensor) and tensor.data_ptr() not in but:
                key = (tensor.data_ptr(), tensor.shape, tensor.dtype)
                if key not in places:
                    places[key] = self._copy(tensor.detach())
                moved.append((tensor, places[key]))
        for tensor, place in moved:  # only now, so that no freed memory is taken for another's
            tensor.data = place

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        size = tensor.numel() * tensor.element_size()
        taken = -(-size // LINE) * LINE
        if len(self.left) < taken:
            self.left = huge(max(taken, CHUNK))
        place = self.left[:size].view(tensor.dtype).view(tensor.shape)
        self.left = self.left[taken:]
        return place.copy_(tensor)


def _plain(tensor: torch.Tensor) -> bool:
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return dense and tensor.is_contiguous() and tensor.numel() > 0
