"""Program after program until a count or a time is reached; each failure is made small.

What a find is about goes into a folder of its own: the small program, the one it came from, and in
both what went wrong and the commands that show it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compiler.files import new_directory, write_file
from ..diff import Candidate
from .draft import Sample, compose
from .judge import Failure, Trial
from .reduce import reduced
from .workers import TIMEOUT, Worker, spread

TINY = 9  # the greatest size of what Triton's interpreter is given

Specs = Sequence[str]
Reader = Callable[[str, Any], Candidate]


@dataclass(frozen=True, slots=True)
class Find:
    """A program that fails, as it was made and made small."""

    sample: Sample
    failure: Failure
    smallest: Trial

    def commands(self) -> list[str]:
        """What shows it: the program again from its seed, and the small one."""
        sizes = " ".join(f"--size {name}={size}" for name, size in self.smallest.sizes.items())
        candidate = (
            self.failure.candidate if self.failure.candidate[:1] not in ("", "-") else "numpy"
        )
        seed = self.smallest.seed
        return [
            f"archc fuzz --seed {self.sample.seed} --count 1",
            f"archc diff reduced.arch --backends {candidate} --dtype {self.sample.dtype}"
            f" --random {seed} {sizes}".strip(),
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "seed": self.sample.seed,
            "kind": self.failure.kind,
            "candidate": self.failure.candidate,
            "words": self.failure.words,
            "dtype": self.sample.dtype,
            "sizes": dict(self.smallest.sizes),
            "program": self.smallest.text,
            "commands": self.commands(),
        }

    def write(self, directory: Path) -> Path:
        """The folder of this find. Raises `Unwritable`."""
        folder = directory / f"seed-{self.sample.seed}"
        head = "".join(f"# {line}\n" for line in (str(self.failure), *self.commands()))
        with new_directory(folder) as made:
            write_file(made / "reduced.arch", f"{head}{self.smallest.text}".encode())
            write_file(made / "original.arch", self.sample.text.encode())
            write_file(made / "find.json", json.dumps(self.to_json(), indent=2).encode())
        return folder


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, and how long."""

    specs: Specs
    read: Reader
    seed: int = 0
    count: int | None = None
    minutes: float | None = None
    jobs: int = 1
    timeout: float = TIMEOUT
    questions: int = 1000  # to make a find small

    def samples(self) -> Iterator[Sample]:
        """As they are asked for."""
        end = time.monotonic() + 60 * self.minutes if self.minutes is not None else None
        seed = self.seed
        while self.count is None or seed < self.seed + self.count:
            if end is not None and time.monotonic() >= end:
                return
            yield compose(seed)
            seed += 1

    def candidates(self, sample: Sample) -> tuple[Candidate, ...]:
        """Those that run a sample: triton has no float64, and its interpreter is slow."""
        found = [self.read(spec, sample.dtype) for spec in self.specs]
        slow = max(sample.sizes.values()) > TINY
        return tuple(c for c in found if c.backend != "triton" or not (slow or c.dtype == "f64"))


def hunt(plan: Plan) -> Iterator[tuple[Sample, Find | None]]:
    """Each program that was run, with the find where it fails."""

    def tried(worker: Worker, sample: Sample) -> Find | None:
        trial, candidates = Trial(sample.text, sample.sizes, sample.seed), plan.candidates(sample)
        failure = worker.judged((trial, candidates))
        if failure is None:
            return None
        return Find(sample, failure, shrunk(worker, trial, candidates, failure, plan.questions))

    yield from spread(plan.samples(), tried, plan.jobs, plan.timeout)


def shrunk(
    worker: Worker,
    trial: Trial,
    candidates: Sequence[Candidate],
    failure: Failure,
    questions: int,
    progress: Callable[[int, int], Any] = lambda asked, characters: None,
) -> Trial:
    """The smallest program that fails in the same way, on the candidate that failed alone."""
    alone = tuple(c for c in candidates if str(c) == failure.candidate) or tuple(candidates)

    def fails(smaller: Trial) -> bool:
        found = worker.judged((smaller, alone))
        return found is not None and found.signature == failure.signature

    return reduced(trial, fails, limit=questions, progress=progress)
