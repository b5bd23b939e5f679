"""What compiling costs: .venv/bin/python benchmarks/compile_depth.py [--files DIR] [--json FILE]

Three questions, each answered by processes of its own:

depth     seconds from loading to the first result of a small Llama of 2 and of 80 layers, with an
          empty cache of torch.compile and with the one that this left (goal: at most 1.2 times)
lengths   how many graphs are compiled for lengths 1..512 in batches of 1..4
start     seconds from the start of a process to SmolLM2's first token, with a warm cache (goal: 3);
          needs the files of `lm_cpu.py --prepare DIR`

What is compiled is the decoder (a prompt, then a token) where this archc has one, and the forward
pass of the whole sequence.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parent.parent / "examples" / "llama.arch"
SMALL = {"vocab": 1000, "d": 256, "heads": 4, "kv_heads": 2, "hidden": 704}
SHALLOW, DEEP, LONGEST, BATCHES, PROMPT, THREADS = 2, 80, 512, 4, 64, 2
DEPTH_GOAL, START_GOAL = 1.2, 3.0


def small(layers: int) -> Any:
    import archc

    return archc.load(EXAMPLE, layers=layers, **SMALL).with_random_weights(0)


def forward(model: Any) -> Callable[[Any], None]:
    """The whole sequence at once, compiled."""
    compiled = model.compile("torch", compile=True, inputs=["input_ids"])
    return lambda ids: compiled(input_ids=ids)


def decoding(model: Any) -> Callable[[Any], None]:
    """The sequence but for its last token as a prompt, then that token."""
    decoder = model.decoder(
        backend="torch", compile=True, inputs=["input_ids"], rows="last", max_length=LONGEST + 1
    )

    def run(ids: Any) -> None:
        outputs, state = decoder(None, input_ids=ids[:, : max(1, ids.shape[1] - 1)])
        decoder(state, input_ids=outputs["logits"][:, -1].argmax(-1)[:, None])

    return run


PROGRAMS = {"forward": forward, "decoder": decoding}


def first_result(program: str, layers: int) -> dict[str, float]:
    """Seconds that loading and the first result took, without imports."""
    import torch

    from archc.backends.torch import runtime  # what would be imported in between  # noqa: F401

    model = small(layers)
    torch.set_num_threads(THREADS)
    begun = time.perf_counter()
    PROGRAMS[program](model)(_ids(1, PROMPT))
    return {"seconds": time.perf_counter() - begun, "graphs": _graphs()}


def lengths(program: str, every: int) -> dict[str, Any]:
    """Graphs compiled after the first call, and after all; and which call compiled one."""
    import torch

    torch.set_num_threads(THREADS)
    run, compiled_at, before = PROGRAMS[program](small(SHALLOW)), [], 0
    for rows in range(1, BATCHES + 1):
        for tokens in sorted({1, 2, *range(1, LONGEST + 1, every), LONGEST}):
            run(_ids(rows, tokens))
            if _graphs() > before:
                compiled_at.append(f"{rows}x{tokens}: {_graphs() - before}")
                before = _graphs()
    return {"graphs": before, "compiled at": compiled_at}


def start(program: str, files: str) -> dict[str, float]:
    """SmolLM2 from its directory to one token; the caller times the process."""
    import torch

    import archc

    torch.set_num_threads(THREADS)
    PROGRAMS[program](archc.load(EXAMPLE, weights=Path(files) / "hf-f32"))(_ids(1, PROMPT))
    return {"graphs": _graphs()}


def _ids(rows: int, tokens: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, SMALL["vocab"], (rows, tokens))


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def child(cache: str, question: str, *arguments: str | int) -> dict[str, Any]:
    """The answer of a new process with its compiled code in `cache`, and how long it lived."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": str(THREADS)}
    begun = time.perf_counter()
    command = [sys.executable, __file__, "--child", json.dumps([question, *arguments])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        words = [line for line in done.stderr.split("\n") if line.strip()]
        return {"failed": words[-1] if words else "without a word"}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"process": time.perf_counter() - begun} | answer


def depth(program: str, rounds: int) -> dict[str, Any]:
    """Interleaved rounds, each with an empty cache for each depth, then warm."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for layers in (SHALLOW, DEEP):
            with tempfile.TemporaryDirectory() as cache:
                for state in ("cold", "warm"):
                    answer = child(cache, "first_result", program, layers)
                    if "failed" in answer:
                        return answer
                    found.setdefault(f"{layers} {state}", []).append(answer["seconds"])
    for state in ("cold", "warm"):
        pairs = zip(found[f"{SHALLOW} {state}"], found[f"{DEEP} {state}"], strict=True)
        found[f"ratio {state}"] = [deep / shallow for shallow, deep in pairs]
    return found


def second_start(program: str, files: str, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        child(cache, "start", program, files)
        answers = [child(cache, "start", program, files) for _ in range(rounds)]
    failed = [answer for answer in answers if "failed" in answer]
    return failed[0] if failed else {"process": [answer["process"] for answer in answers]}


def available() -> list[str]:
    """The programs that this archc compiles."""
    import archc

    complete = "rows" in inspect.signature(archc.Model.decoder).parameters
    return list(PROGRAMS) if complete else ["forward"]


def report(program: str, found: dict[str, Any]) -> None:
    print(program)
    for question, answer in found.items():
        if "failed" in answer:
            print(f"  {question}: failed, {answer['failed']}")
        elif question == "lengths":
            print(f"  lengths: {answer['graphs']} graphs, at {', '.join(answer['compiled at'])}")
        else:
            goals = {f"ratio {s}": DEPTH_GOAL for s in ("cold", "warm")} | {"process": START_GOAL}
            for name, values in answer.items():
                goal = f"  goal: at most {goals[name]}" if name in goals else ""
                print(f"  {question}, {name}: {statistics.median(values):.2f}{goal}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    questions = ("depth", "lengths", "start")
    parser.add_argument("--only", choices=questions, action="append", help="of the questions")
    parser.add_argument("--program", choices=PROGRAMS, action="append")
    parser.add_argument("--files", type=Path, metavar="DIR", default=Path("build/lm"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="step between lengths")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        question, *arguments = json.loads(given.child)
        print(json.dumps({f.__name__: f for f in CHILDREN}[question](*arguments)))
        return
    everything = {}
    for program in given.program or available():
        found = {}
        if "depth" in (given.only or questions):
            found["depth"] = depth(program, given.rounds)
        if "lengths" in (given.only or questions):
            with tempfile.TemporaryDirectory() as cache:
                found["lengths"] = child(cache, "lengths", program, given.every)
        if "start" in (given.only or questions):
            found["start"] = second_start(program, str(given.files.resolve()), given.rounds)
        everything[program] = found
        report(program, found)
    if given.json:
        given.json.write_text(json.dumps(everything, indent=1))


CHILDREN = (first_result, lengths, start)

if __name__ == "__main__":
    main()
