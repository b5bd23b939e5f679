"""Bounds on time, in seconds of an ordinary machine: on a slow or a busy one they are longer."""

from __future__ import annotations

import time

STEPS = 2_000_000
ORDINARY = 0.1  # seconds that an ordinary machine takes for so many additions in a loop


def slowness() -> float:
    """How much slower than an ordinary machine this one is, now."""
    started, total = time.process_time(), 0
    for i in range(STEPS):
        total += i
    return max(1.0, (time.process_time() - started) / ORDINARY)


def in_time(took: float, seconds: float) -> bool:
    """Whether `took` seconds are less than an ordinary machine's `seconds`."""
    return took < seconds or took < seconds * slowness()
