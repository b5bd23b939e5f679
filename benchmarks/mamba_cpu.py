"""Mamba on a CPU against transformers: .venv/bin/python benchmarks/mamba_cpu.py [--eager] [--layers N]

Layers of the published 130M size with random weights and a small vocabulary, so that it is layers
that are timed; batch 1, float32, two threads. Both models have the same weights. Runs are
interleaved; medians are printed, the largest difference of the results, and what twice the length
costs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RUNS, THREADS, TOKENS, VOCAB = 3, 2, 2048, 512
EXAMPLE = Path(__file__).parent.parent / "examples" / "mamba.arch"
CONFIG = {"hidden_size": 768, "state_size": 16, "vocab_size": VOCAB}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--layers", type=int, default=2)
    given = parser.parse_args()
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed: nothing to compare with")
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    compare(given.layers, compiled=not given.eager)


def compare(layers: int, *, compiled: bool) -> None:
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    import archc

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    other = MambaForCausalLM(MambaConfig(num_hidden_layers=layers, **CONFIG)).eval()
    with tempfile.TemporaryDirectory() as folder:
        other.save_pretrained(folder)
        model = archc.load(EXAMPLE, weights=folder)
        ours = model.compile("torch", compile=compiled, inputs=["input_ids"])
    ids = {n: torch.randint(VOCAB, (1, n)) for n in (TOKENS, 2 * TOKENS)}
    runs = {
        "archc": lambda: ours(input_ids=ids[TOKENS].numpy())["logits"],
        "transformers": lambda: other(ids[TOKENS], use_cache=False).logits.numpy(),
        "archc, twice the length": lambda: ours(input_ids=ids[2 * TOKENS].numpy()),
    }
    with torch.no_grad():
        apart = abs(runs["archc"]() - runs["transformers"]()).max()
        runs["archc, twice the length"]()
        times = {name: [] for name in runs}
        for _ in range(RUNS):
            for name, run in runs.items():
                times[name].append(seconds(run))
    medians = {name: statistics.median(t) for name, t in times.items()}
    how = "compiled" if compiled else "eager"
    print(f"{layers} layers, {TOKENS} tokens, {torch.get_num_threads()} threads, archc {how}")
    for name, median in medians.items():
        print(f"{median:8.3f} s  {name}")
    ours_once, theirs, ours_twice = medians.values()
    print(f"{theirs / ours_once:8.2f}    times faster than transformers")
    print(f"{ours_twice / ours_once:8.2f}    times as long for twice the length")
    print(f"{apart:8.1e}    largest difference of the logits")


if __name__ == "__main__":
    main()
