"""How long the quick commands take as whole processes: .venv/bin/python benchmarks/startup.py

The budget is half a second each for an 80-layer model. Prints the fastest and the median of `RUNS`
processes, after one that leaves bytecode behind.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 9
BUDGET = 0.5
LLAMA = str(Path(__file__).parent.parent / "examples" / "llama.arch")
COMMANDS = (
    ("check", LLAMA, "--preset", "llama2_70b"),
    ("check", LLAMA),
    ("fmt", "--check", LLAMA),
    ("cost", LLAMA, "--preset", "llama2_70b"),
)


def seconds(command: tuple[str, ...]) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "archc.cli", *command], stdout=subprocess.DEVNULL, check=False
    )
    return time.perf_counter() - start


def main() -> None:
    print(f"{'fastest':>8} {'median':>8}  command")
    for command in COMMANDS:
        times = [seconds(command) for _ in range(RUNS + 1)][1:]
        shown = " ".join(Path(word).name for word in command)
        over = "  over budget" if statistics.median(times) > BUDGET else ""
        print(f"{min(times):8.3f} {statistics.median(times):8.3f}  archc {shown}{over}")


if __name__ == "__main__":
    main()
