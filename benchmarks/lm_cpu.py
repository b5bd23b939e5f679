"""SmolLM2-135M and MiniLM on a CPU against the programs that a user would pick instead.

    .venv/bin/python benchmarks/lm_cpu.py --prepare build/lm --peers PYTHON
    .venv/bin/python benchmarks/lm_cpu.py --files build/lm --peers PYTHON --json build/lm.json

PYTHON is the interpreter of an environment with the peers in it (default: this one, or
ARCHC_BENCH_PEERS): transformers, llama-cpp-python (built from source with
CMAKE_ARGS=-DGGML_NATIVE=ON), openvino, openvino-genai, openvino-tokenizers, onnxruntime,
onnxruntime-genai, onnx, onnx-ir, gguf. Those that are not there are skipped, and the table says so.

Batch 1. Prefill is a prompt of 512 tokens up to the choice of the next one; decoding is 128 greedy
steps after a prompt of 32. Each engine is a process that lives through all rounds and is stopped
(SIGSTOP) while another is asked. Engines of one precision are asked in turn, and only their ratios
within a round are compared: medians are of rounds, ratios are medians of each round's ratio. Peak is
the process's resident memory, mapped weights included, after both. MiniLM is 32 sentences of 64 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_prepare
import numpy as np

HERE = Path(__file__).parent
MB = 1e6


@dataclass(frozen=True)
class Variant:
    """An engine of lm_engines.py with its options; `ours` is run by this interpreter."""

    name: str
    engine: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.name.startswith("archc")


def archc_variants(weights: str, **options: Any) -> tuple[Variant, ...]:
    given = {"weights": weights, "backend": "torch", **options}
    return (
        Variant("archc torch", "Archc", given),
        Variant("archc torch, compiled", "Archc", given | {"compile": True}),
    )


def transformers_variants(engine: str, dtype: str) -> tuple[Variant, ...]:
    return (
        Variant("transformers", engine, {"dtype": dtype}),
        Variant("transformers, compiled", engine, {"dtype": dtype, "compiled": True}),
    )


def openvino_variants(model: str, dtype: str) -> tuple[Variant, ...]:
    return tuple(
        Variant(
            f"OpenVINO GenAI {way}", "OpenVino", {"model": model, "dtype": dtype, "attention": way}
        )
        for way in ("PA", "SDPA")
    )


GROUPS: dict[str, tuple[Variant, ...]] = {
    "f32": (
        *archc_variants("hf-f32", dtype="f32"),
        Variant("archc numpy", "Archc", {"weights": "hf-f32", "backend": "numpy", "dtype": "f32"}),
        *transformers_variants("Transformers", "float32"),
        Variant("llama.cpp F32", "LlamaCpp", {"file": "f32.gguf"}),
        *openvino_variants("openvino-f32", "f32"),
        Variant("onnxruntime-genai fp32", "OnnxGenAI", {"model": "onnx-f32"}),
    ),
    "bf16": (
        *archc_variants("hf-bf16", dtype="bf16"),
        *transformers_variants("Transformers", "bfloat16"),
        Variant("llama.cpp BF16", "LlamaCpp", {"file": "bf16.gguf"}),
        *openvino_variants("openvino-f16", "bf16"),
    ),
    "int8": (
        *archc_variants("hf-bf16", dtype="f32", quant="int8"),
        Variant("llama.cpp Q8_0", "LlamaCpp", {"file": "q8_0.gguf"}),
    ),
    "int4": (
        *archc_variants("hf-bf16", dtype="f32", quant="int4"),
        Variant("llama.cpp Q4_0", "LlamaCpp", {"file": "q4_0.gguf"}),
        Variant("onnxruntime-genai int4", "OnnxGenAI", {"model": "onnx-int4"}),
    ),
    "MiniLM f32": (
        Variant("archc torch", "ArchcEncoder", {"backend": "torch"}),
        Variant("archc torch, compiled", "ArchcEncoder", {"backend": "torch", "compile": True}),
        Variant("archc numpy", "ArchcEncoder", {"backend": "numpy"}),
        *transformers_variants("TransformersEncoder", "float32"),
        Variant("OpenVINO", "OpenVinoEncoder", {"dtype": "f32"}),
        Variant("onnxruntime", "OnnxEncoder"),
    ),
    "MiniLM bf16": (
        Variant("archc torch", "ArchcEncoder", {"backend": "torch", "dtype": "bf16"}),
        Variant(
            "archc torch, compiled",
            "ArchcEncoder",
            {"backend": "torch", "dtype": "bf16", "compile": True},
        ),
        *transformers_variants("TransformersEncoder", "bfloat16"),
        Variant("OpenVINO", "OpenVinoEncoder", {"dtype": "bf16"}),
    ),
}


@dataclass(frozen=True)
class Goal:
    """archc's fastest on torch over the fastest peer whose name starts with `peer`."""

    group: str
    task: str
    peer: str
    at_least: float


GOALS = (
    Goal("f32", "prefill", "OpenVINO", 1.0),
    Goal("f32", "prefill", "transformers", 1.4),
    Goal("bf16", "prefill", "OpenVINO", 1.0),
    Goal("bf16", "prefill", "transformers", 1.4),
    Goal("f32", "decode", "llama.cpp", 1.0),
    Goal("f32", "decode", "transformers", 2.5),
    Goal("bf16", "decode", "llama.cpp", 1.0),
    Goal("int8", "decode", "llama.cpp", 1.0),
    Goal("int4", "decode", "llama.cpp", 1.0),
    Goal("MiniLM f32", "encode", "OpenVINO", 1.0),
    Goal("MiniLM bf16", "encode", "OpenVINO", 1.0),
)
EXACTLY = {"transformers"}  # the goal is against its eager form, whatever torch.compile makes of it
MEMORY_ABOVE_LLAMA_CPP = 250  # MB
LOAD_SECONDS = 1.0


class Worker:
    """A process of lm_engines.py. `said` is what it answered to being started."""

    def __init__(self, variant: Variant, given: argparse.Namespace, capacity: int) -> None:
        self.variant = variant
        specification = {
            "engine": variant.engine,
            "folder": str(given.files.resolve()),
            "threads": given.threads,
            "capacity": capacity,
            "options": variant.options,
        }
        python = sys.executable if variant.ours else given.peers
        self.log = given.files / "logs" / f"{re.sub('[^a-z0-9]+', '-', variant.name.lower())}.log"
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("w") as words:
            self.process = subprocess.Popen(
                [python, str(HERE / "lm_engines.py"), json.dumps(specification)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                env=environment(given.threads),
            )
        self.said = self._answer()
        if "unavailable" in self.said:
            self.close()
            raise Skipped(self.said["unavailable"])
        self._pause()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self._pause()
        return answer

    def _pause(self) -> None:
        """Threads that spin while they wait would slow the others."""
        self.process.send_signal(signal.SIGSTOP)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            words = [w for w in self.log.read_text(errors="replace").split("\n") if w.strip()]
            raise Skipped(f"failed: {words[-1] if words else 'without a word'} ({self.log})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Skipped(Exception):
    """Why a variant has no figures."""


def environment(threads: int) -> dict[str, str]:
    """This one, with the number of threads, and without a choice of kernels for another processor."""
    dropped = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return kept | dict.fromkeys(counts, str(threads)) | {"HF_HUB_OFFLINE": "1"}


@dataclass
class Result:
    """Of one variant: per task the first call's seconds and those of each round; tokens/s or
    sentences/s follow from `work`."""

    variant: Variant
    said: dict[str, Any]
    work: dict[str, int]
    first: dict[str, float] = field(default_factory=dict)
    rounds: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    peak: int = 0

    def note(self, task: str, answer: dict[str, Any], *, first: bool) -> None:
        if first:
            self.first[task] = answer["seconds"]
            self.answers[task] = answer.get("tokens") or answer.get("sample")
        else:
            self.rounds.setdefault(task, []).append(answer["seconds"])
        self.peak = max(self.peak, answer["peak"])

    def speed(self, task: str) -> float:
        """Of the median round, per second."""
        return self.work[task] / statistics.median(self.rounds[task])

    def record(self) -> dict[str, Any]:
        return {
            "name": self.variant.name,
            "speeds": {task: self.speed(task) for task in self.rounds},
            "rounds": self.rounds,
            "first": self.first,
            "load": self.said["load"],
            "import": self.said["import"],
            "versions": self.said["versions"],
            "peak MB": self.peak / MB,
            "answers": self.answers,
        }


@dataclass
class Group:
    name: str
    results: list[Result]
    skipped: dict[str, str]
    limits: list[dict[str, float]]

    def fastest(self, task: str, names: Sequence[str]) -> Result | None:
        able = [r for r in self.results if r.variant.name in names and task in r.rounds]
        return max(able, key=lambda r: r.speed(task), default=None)

    def names(self, start: str) -> list[str]:
        names = [r.variant.name for r in self.results if r.variant.name.startswith(start)]
        return [n for n in names if n == start] if start in EXACTLY else names


def measure(name: str, variants: Sequence[Variant], given: argparse.Namespace) -> Group:
    """One warm-up and `rounds` interleaved rounds; every other one runs backwards."""
    tasks, work = tasks_of(name, given)
    capacity = max(given.prompt, given.context + given.tokens) + 1
    group = Group(name, [], {}, [])
    workers: list[tuple[Worker, Result | None]] = []
    try:
        for variant in (Variant("limits", "Limits"), *variants):
            tell(f"{name}: {variant.name} loads")
            try:
                worker = Worker(variant, given, capacity)
                result = None if variant.engine == "Limits" else Result(variant, worker.said, work)
                workers.append((worker, result))
            except Skipped as reason:
                group.skipped[variant.name] = str(reason)
        for number in range(given.rounds + 1):
            tell(f"{name}: round {number} of {given.rounds}")
            for entry in list(workers)[:: -1 if number % 2 else 1]:
                one_round(group, workers, entry, tasks(number), first=number == 0)
    finally:
        for worker, _ in workers:
            worker.close()
    group.results = [result for _, result in workers if result is not None]
    return group


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def one_round(
    group: Group,
    workers: list[tuple[Worker, Result | None]],
    entry: tuple[Worker, Result | None],
    tasks: dict[str, dict[str, Any]],
    *,
    first: bool,
) -> None:
    """Asks one worker for its tasks. One that fails leaves the others' run."""
    worker, result = entry
    try:
        if result is None:
            group.limits.append(worker.ask("limits"))
            return
        for task, arguments in tasks.items():
            result.note(task, worker.ask(task, **arguments), first=first)
    except Skipped as reason:
        workers.remove(entry)
        group.skipped[worker.variant.name] = str(reason)


def tasks_of(name: str, given: argparse.Namespace) -> tuple[Any, dict[str, int]]:
    """From a round's number to what is asked in it, and how many tokens or sentences that is."""
    if name.startswith("MiniLM"):
        return lambda _: {"encode": {"rows": 32, "columns": 64}}, {"encode": 32}
    text = np.load(given.files / "text.npy")

    def tasks(number: int) -> dict[str, dict[str, Any]]:
        """Another piece of the text each round, so that nothing can be remembered."""
        begin = number * given.prompt % (len(text) - given.prompt)
        ids = text[begin : begin + given.prompt].tolist()
        return {
            "prefill": {"ids": ids},
            "decode": {"ids": ids[: given.context], "count": given.tokens},
        }

    return tasks, {"prefill": given.prompt, "decode": given.tokens}


def show(group: Group) -> None:
    """The table of one group."""
    tasks = ["encode"] if group.name.startswith("MiniLM") else ["prefill", "decode"]
    unit = "sentences/s" if tasks == ["encode"] else "tokens/s"
    print(f"\n{group.name}, {unit}: median [slowest-fastest round]")
    heads = "".join(f"{task:>24}" for task in tasks)
    print(f"{'':28}{heads}{'first call s':>16}{'load s':>8}{'peak MB':>9}")
    for result in sorted(group.results, key=lambda r: not r.variant.ours):
        cells = "".join(f"{spread(result, task):>24}" for task in tasks)
        first = "/".join(f"{result.first[task]:.1f}" for task in tasks)
        last = f"{first:>16}{result.said['load']:>8.1f}{result.peak / MB:>9.0f}"
        print(f"{result.variant.name:28}{cells}{last}")
    for name, reason in group.skipped.items():
        print(f"{name:28}  skipped: {reason}")
    for limit in group.limits[:1]:
        medians = {
            key: statistics.median(g[key] for g in group.limits) for key in limit if key != "peak"
        }
        print("this machine meanwhile: " + ", ".join(f"{v:.0f} {k}" for k, v in medians.items()))


def spread(result: Result, task: str) -> str:
    speeds = sorted(result.work[task] / seconds for seconds in result.rounds[task])
    return f"{result.speed(task):.1f} [{speeds[0]:.1f}-{speeds[-1]:.1f}]"


def judge(groups: dict[str, Group]) -> list[dict[str, Any]]:
    """Each goal with its ratio, or with none where a side is missing."""
    found = [judged(goal, groups[goal.group]) for goal in GOALS if goal.group in groups]
    for group in groups.values():
        found += memory(group)
    return found


def judged(goal: Goal, group: Group) -> dict[str, Any]:
    words = f"{goal.group} {goal.task} >= {goal.at_least}x {goal.peer}"
    ours = group.fastest(goal.task, group.names("archc torch"))
    peer = group.fastest(goal.task, group.names(goal.peer))
    if ours is None or peer is None:
        return {"goal": words, "ratio": None, "met": None}
    pairs = zip(peer.rounds[goal.task], ours.rounds[goal.task], strict=True)
    ratio = statistics.median(theirs / mine for theirs, mine in pairs)
    sides = f"{ours.variant.name} / {peer.variant.name}"
    return {"goal": words, "ratio": ratio, "met": ratio >= goal.at_least, "sides": sides}


def memory(group: Group) -> list[dict[str, Any]]:
    """Peak memory against llama.cpp's at the same precision, and the time to load in float32."""
    ours = group.fastest("decode", group.names("archc torch"))
    peer = group.fastest("decode", group.names("llama.cpp"))
    judged = []
    if ours is not None and peer is not None:
        above = (ours.peak - peer.peak) / MB
        words = f"{group.name} peak <= llama.cpp + {MEMORY_ABOVE_LLAMA_CPP} MB"
        met = above <= MEMORY_ABOVE_LLAMA_CPP
        judged.append({"goal": words, "ratio": above, "met": met, "sides": "MB above"})
    if ours is not None and group.name == "f32":
        load = ours.said["load"]
        words = f"{group.name} load <= {LOAD_SECONDS} s"
        met = load <= LOAD_SECONDS
        judged.append({"goal": words, "ratio": load, "met": met, "sides": "seconds"})
    return judged


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    default = os.environ.get("ARCHC_BENCH_PEERS", sys.executable)
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="make the files, and stop")
    parser.add_argument("--files", type=Path, metavar="DIR", default=Path("build/lm"))
    parser.add_argument(
        "--peers", metavar="PYTHON", default=default, help="interpreter of the peers"
    )
    parser.add_argument("--groups", metavar="REGEX", default="", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--only", metavar="REGEX", default="", help="of the names in the tables")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of prefill")
    parser.add_argument("--context", type=int, default=32, help="tokens before decoding")
    parser.add_argument("--tokens", type=int, default=128, help="tokens decoded")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    given = parser.parse_args()
    if given.prepare:
        lm_prepare.prepare(given.prepare, given.peers)
        return
    if not (given.files / "text.npy").exists():
        parser.error(f"nothing prepared in {given.files}: --prepare {given.files}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that stopped workers are ended too
    groups = {}
    for name, variants in GROUPS.items():
        chosen = [v for v in variants if re.search(given.only, v.name)]
        if re.search(given.groups, name) and chosen:
            groups[name] = measure(name, chosen, given)
            show(groups[name])
    goals = judge(groups)
    print("\ngoals")
    for goal in goals:
        verdict = {True: "met", False: "missed", None: "not measured"}[goal["met"]]
        figure = "" if goal["ratio"] is None else f"{goal['ratio']:.2f}"
        print(f"{goal['goal']:42}{figure:>9}  {verdict:13}{goal.get('sides', '')}")
    if given.json:
        given.json.write_text(json.dumps(record(groups, goals, given), indent=1))


def record(groups: dict[str, Group], goals: list[Any], given: argparse.Namespace) -> dict[str, Any]:
    return {
        "settings": {
            k: getattr(given, k) for k in ("rounds", "threads", "prompt", "context", "tokens")
        },
        "groups": {
            name: {
                "results": [result.record() for result in group.results],
                "skipped": group.skipped,
                "limits": group.limits,
            }
            for name, group in groups.items()
        },
        "goals": goals,
    }


if __name__ == "__main__":
    main()
