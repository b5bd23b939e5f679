"""Memory of the process: freed blocks kept, so that the next run's results need no fresh pages; and
the most that it has had."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
LARGEST = 2**31 - 1


def keep_memory() -> bool:
    """Asks the C library to keep what is freed; whether it does. For this process, until it ends.

    A large tensor is otherwise mapped and given back at each use, and its pages are filled with
    zeros each time. That is for a program to decide, so no model does it when it is loaded: the
    commands do. Only glibc can (Linux); elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST))


def peak_bytes() -> int:
    """The most memory that this process has had resident, mapped files included.

    Linux counts it for the program (`VmHWM`); what other systems say may include what the process was
    before it became this program.
    """
    if sys.platform.startswith("linux"):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        (line,) = (line for line in status.split("\n") if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
