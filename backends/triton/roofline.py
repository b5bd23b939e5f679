"""A bound on the time of a launch from what was counted of it: a model, checked on no device.

    time >= launch + max(unique / DRAM, issued / L2, dot / tensor cores, float / ALUs, special / SFUs)

Each term is the work over the device's peak rate. The parts overlap perfectly, every tile is full
speed, nothing waits: so a kernel takes longer. Rates are published peaks of dense bf16; those of
caches are no published figures but assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from .launches import Launch


@dataclass(frozen=True, slots=True)
class Device:
    """Bytes and operations per second; seconds per launch. `target` has the tiles that it runs."""

    name: str
    target: str
    dram: float
    cache: float
    tensor: float
    float_ops: float
    special: float
    launch: float


DEVICES = {
    d.name: d
    for d in (
        # 108 multiprocessors at 1.41 GHz, 16 special operations each; 80 GB SXM
        Device("a100", "sm_80", 2.039e12, 4.4e12, 312e12, 19.5e12, 108 * 16 * 1.41e9, 3e-6),
        # 132 multiprocessors at 1.83 GHz; SXM
        Device("h100", "sm_90", 3.35e12, 5.5e12, 989e12, 67e12, 132 * 16 * 1.83e9, 3e-6),
        # 304 compute units at 2.1 GHz; a special operation at a quarter of the rate of 64 lanes
        Device("mi300x", "gfx942", 5.3e12, 17.2e12, 1307e12, 163.4e12, 304 * 16 * 2.1e9, 3e-6),
    )
}


def bound(launch: Launch, device: Device) -> tuple[float, str]:
    """Seconds of one launch at least, and what takes them."""
    terms = {
        "DRAM": launch.unique / device.dram,
        "cache": launch.issued / device.cache,
        "tensor cores": launch.dot / device.tensor,
        "float": launch.float_ops / device.float_ops,
        "special": launch.special / device.special,
        "launch": device.launch,
    }
    most = max(terms, key=lambda name: terms[name])
    return device.launch + max(t for name, t in terms.items() if name != "launch"), most
