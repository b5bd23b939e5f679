"""Kernels at or below the resources of other libraries' kernels, compiled for an H100.

The figures are of Liger 0.8.5 and, for attention, of FlexAttention's template of torch 2.13, compiled
by the same Triton for the same target.
"""

from __future__ import annotations

import peers
import pytest
from kernel_checks import check

from archc.backends.triton import aot

pytest.importorskip("triton")

# kernel -> registers of the peer, bytes of shared memory
PEERS = {
    "rms_norm": (39, 232448),
    "swiglu": (36, 232448),
    "rope": (32, 232448),
    "cross_entropy": (51, 232448),
    "attention": (192, 131072),
}


def test_registers_and_shared_memory() -> None:
    kernels = [peers.kernel(name) for name in PEERS]
    results = aot.compile_kernels(kernels, ["sm_90"], processes=1)
    assert [r.kernel for r in results] == [*PEERS]
    for result, (registers, shared) in zip(results, PEERS.values(), strict=True):
        assert result.failures == ()
        assert result.usage.registers <= registers, result
        assert result.usage.shared <= shared, result


@pytest.mark.parametrize(
    "program",
    [peers.rms_norm(48), peers.swiglu(48), peers.rope(2, 24), peers.rope(3, 16)],
    ids=["rms_norm", "swiglu", "rope", "rope of a power of two"],
)
def test_they_compute_what_they_are_named_for(program) -> None:
    check(program, levels=(1,), shapes=((1, 1), (2, 17)))


def test_joined_parts_are_stored_one_by_one() -> None:
    """No lane computes both halves and drops one."""
    (kernel,) = peers.kernels(peers.rope())
    assert not any("tl.where" in line for line in kernel.body)
    assert sum("tl.store" in line for line in kernel.body) == 2
    assert sum("tl.load" in line for line in kernel.body) == 4
