"""Prefill on a CPU against transformers and OpenVINO: .venv/bin/python benchmarks/prefill_cpu.py

    [--model smollm2|minilm] [--dtype f32|bf16] [--compile] [--threads N] [--runs N] [--openvino DIR]

SmolLM2-135M: one prompt of 512 tokens, logits of the last row. MiniLM: 32 sentences of 64 tokens, hidden
states. All have the same weights: archc exports them to a folder that the others read. Runs are
interleaved; medians and their ratios are printed, with how long archc took to load, and its peak memory.
A peer that is not installed is named. `--openvino` is a folder for `sys.path` that has it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
SHAPES = {"smollm2": (1, 512), "minilm": (32, 64)}
EXAMPLES = {"smollm2": "llama", "minilm": "bert"}
Run = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="smollm2")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--openvino", default="")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if given.openvino:
        sys.path.append(given.openvino)
    with tempfile.TemporaryDirectory() as folder:
        compare(given, Path(folder))


def compare(given: argparse.Namespace, folder: Path) -> None:
    import numpy as np
    import torch

    import archc

    archc.keep_memory()  # for all: they are one process
    torch.set_num_threads(given.threads)
    exported(given, folder)
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 30000, SHAPES[given.model])
    ours, loading = ours_of(given, folder, ids)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    runs = {"archc": ours, **dict(peers(given, folder, ids))}
    with torch.no_grad():
        results = {name: np.asarray(run(), np.float32) for name, run in runs.items()}
        times = interleaved(runs, given.runs)
    report(given, times, results)
    print(
        f"{loading:8.3f} s  to load (weights in the page cache), peak {megabytes:,.0f} MB with one run"
    )


def exported(given: argparse.Namespace, folder: Path) -> None:
    """The checkpoint as safetensors in the dtype asked for."""
    import shipped
    import torch
    from safetensors.torch import load_file, save_file

    import archc

    source = getattr(shipped, given.model)()
    archc.load(ROOT / "examples" / f"{EXAMPLES[given.model]}.arch", weights=source).export(folder)
    config = folder / "config.json"  # that of a GGUF file names no class of transformers
    named = {"model_type": EXAMPLES[given.model], **json.loads(config.read_text())}
    config.write_text(json.dumps(named))
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[given.dtype]
    for path in folder.glob("*.safetensors"):
        tensors = {
            n: t.to(kind) if t.is_floating_point() else t for n, t in load_file(path).items()
        }
        save_file(tensors, path, {"format": "pt"})


def ours_of(given: argparse.Namespace, folder: Path, ids: Any) -> tuple[Run, float]:
    """archc's run, warmed up, and the seconds it took to load."""
    import torch

    import archc

    start = time.perf_counter()
    model = archc.load(ROOT / "examples" / f"{EXAMPLES[given.model]}.arch", weights=folder)
    inputs = ["input_ids"] + ["attention_mask"] * (given.model == "minilm")
    loaded = model.compile("torch", dtype=given.dtype, inputs=inputs, compile=given.compile)
    loading = time.perf_counter() - start
    tokens, valid = torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.bool)

    def minilm() -> Any:
        return loaded.module(tokens, valid)["hidden"].float().numpy()

    def smollm2() -> Any:
        return last_row(loaded.module, tokens).float().numpy()

    run: Run = {"minilm": minilm, "smollm2": smollm2}[given.model]
    with torch.no_grad():
        run()
    return run, loading


def last_row(model: Any, tokens: Any) -> Any:
    """The layers as archc runs them; the last norm and the head by hand, on one row."""
    import torch.nn.functional as F

    x = F.embedding(tokens, model.embed_w)
    for layer in model.layers:
        x = layer(x)
    row = F.rms_norm(x[:, -1].to(model.wide), x.shape[-1:], eps=1e-5).to(x.dtype)
    return F.linear(row * model.final_norm_gain, model.embed_w)


def peers(given: argparse.Namespace, folder: Path, ids: Any) -> Iterator[tuple[str, Run]]:
    """transformers' model of the same folder, eager, and what OpenVINO makes of it."""
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed")
        return
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[given.dtype]
    causal = given.model == "smollm2"
    made = (
        (AutoModelForCausalLM if causal else AutoModel).from_pretrained(folder, dtype=kind).eval()
    )
    tokens, valid = torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.int64)

    def run() -> Any:
        if causal:
            return made(tokens, use_cache=True, logits_to_keep=1).logits[:, -1].float().numpy()
        return made(tokens, attention_mask=valid).last_hidden_state.float().numpy()

    yield "transformers", run
    if importlib.util.find_spec("openvino") is None:
        print("openvino is not installed")
        return
    yield "openvino", openvino(given, made, tokens, valid, causal)


def openvino(given: argparse.Namespace, made: Any, tokens: Any, valid: Any, causal: bool) -> Run:
    """The same call, traced and compiled; keys and values are not kept."""
    import openvino as ov
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = made.float()

        def forward(self, tokens: Any, valid: Any) -> Any:
            if causal:
                return self.inner(
                    tokens, attention_mask=valid, use_cache=False, logits_to_keep=1
                ).logits
            return self.inner(tokens, attention_mask=valid).last_hidden_state

    example = {"tokens": tokens, "valid": valid}
    converted = ov.convert_model(Wrapped(), example_input=example)
    made.to({"f32": torch.float32, "bf16": torch.bfloat16}[given.dtype])
    settings = {"INFERENCE_PRECISION_HINT": given.dtype, "INFERENCE_NUM_THREADS": given.threads}
    compiled = ov.Core().compile_model(converted, "CPU", settings)
    request = compiled.create_infer_request()
    arrays = [tokens.numpy(), valid.numpy()]

    def run() -> Any:
        result = request.infer(arrays)[0]
        return result[:, -1] if causal else result

    return run


def interleaved(runs: dict[str, Run], count: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def report(
    given: argparse.Namespace, times: dict[str, list[float]], results: dict[str, Any]
) -> None:
    batch, length = SHAPES[given.model]
    how = "compiled" if given.compile else "eager"
    print(
        f"{given.model}, {batch} x {length} tokens, {given.dtype}, {given.threads} threads, archc {how}"
    )
    ours = statistics.median(times["archc"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        apart = abs(results[name] - results["archc"]).max()
        print(
            f"{median:8.3f} s [{min(seconds):.3f}-{max(seconds):.3f}]"
            f"  {batch * length / median:7.0f} tokens/s  {name:<14}"
            f" archc is {median / ours:.2f} times as fast, largest difference {apart:.1e}"
        )


if __name__ == "__main__":
    main()
