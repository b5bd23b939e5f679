"""Freed memory is kept by a process that asks for it, and only by that one."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
import archc

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = archc.keep_memory() if sys.argv[1] == "keep" else False
faults()
print(int(kept), faults())
"""


def run(how: str) -> tuple[int, int]:
    command = [sys.executable, "-c", PROGRAM, how]
    kept, faults = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    return int(kept), int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc keeps memory")
def test_a_second_array_needs_no_new_pages() -> None:
    kept, faults = run("keep")
    assert kept
    assert faults < 100 < run("leave")[1]
