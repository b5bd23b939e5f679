"""How fast a model runs on this machine: a prompt is read, then tokens are decoded, in several ways.

    found = measure(partial(load, "llama.arch", weights=W), [Way("torch"), Way("torch", "bf16")], Work())

Each way is a process of its own, so that the peak of its memory is its own. The processes live through
all rounds and are asked in turn, every other round backwards: what else the machine does meets all of
them. Figures are medians over the rounds after a first one, in which compiling happens.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from .dsl.diagnostics import ArchError, Diagnostics
from .memory import keep_memory, peak_bytes

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from .api import Model
    from .compiler.ops import ModelDType
    from .compiler.passes.quantise import Quant
    from .decoder import Decoder, State
    from .generate.face import Face

Task = Literal["prefill", "decode"]
TASKS: tuple[Task, ...] = ("prefill", "decode")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SEED = 0  # of the tokens: which ones they are does not matter


@dataclass(frozen=True, slots=True)
class Way:
    """How a model is run."""

    backend: str = "torch"
    dtype: ModelDType = "f32"
    quant: Quant | None = None
    compiled: bool = False

    @property
    def eager(self) -> Way:
        """The same way, not compiled."""
        return replace(self, compiled=False)

    def __str__(self) -> str:
        words = f"{self.backend} {self.dtype}{f' {self.quant}' if self.quant else ''}"
        return f"{words}, compiled" if self.compiled else words


@dataclass(frozen=True, slots=True)
class Work:
    """A prompt of `prompt` tokens; and `tokens` steps of one token after a prompt of `context`.

    Batches have one sequence. `threads` are the machine's if none are given.
    """

    prompt: int = 512
    context: int = 32
    tokens: int = 128
    rounds: int = 5
    threads: int | None = None

    @property
    def longest(self) -> int:
        return max(self.prompt, self.context + self.tokens)

    def amount(self, task: Task) -> int:
        """How many tokens a task reads or makes."""
        return self.prompt if task == "prefill" else self.tokens


@dataclass(slots=True)
class Figures:
    """Of one way: seconds of loading, of each task in the first round and in those after, and bytes."""

    way: Way
    load: float
    peak: int
    first: dict[Task, float] = field(default_factory=dict)
    rounds: dict[Task, list[float]] = field(default_factory=dict)

    def seconds(self, task: Task) -> float:
        return statistics.median(self.rounds[task])


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured, and why the other ways could not be."""

    work: Work
    figures: tuple[Figures, ...]
    failed: dict[Way, str]

    def speed(self, figures: Figures, task: Task) -> float:
        """Tokens per second."""
        return self.work.amount(task) / figures.seconds(task)

    def shown(self) -> Iterator[tuple[Figures, float | None]]:
        """Each way once, eager or compiled, whichever takes less time for both tasks together.

        With it how many times as fast compiled is, where both were measured.
        """
        pairs: dict[Way, list[Figures]] = {}
        for figures in self.figures:
            pairs.setdefault(figures.way.eager, []).append(figures)
        for alone, *others in pairs.values():
            if not others:
                yield alone, None
                continue
            eager, compiled = sorted((alone, *others), key=lambda f: f.way.compiled)
            gain = _total(eager) / _total(compiled)
            yield (compiled if gain > 1 else eager), gain


def _total(figures: Figures) -> float:
    return sum(figures.seconds(task) for task in TASKS)


def measure(
    model: Callable[[], Model],
    ways: Sequence[Way],
    work: Work,
    tell: Callable[[str], None] = lambda words: None,
) -> Found:
    """Loads `model` in a process for each way and times it there; `model` is pickled.

    A way that fails leaves the others. `tell` is called with what is done next.
    """
    workers: dict[Way, Worker] = {}
    figures: dict[Way, Figures] = {}
    failed: dict[Way, str] = {}
    try:
        for way in ways:
            tell(f"{way}: loads")
            try:
                workers[way] = worker = Worker(model, way, work)
                figures[way] = Figures(way, *worker.answer())
            except Failed as reason:
                failed[way] = str(reason)
        for number in range(work.rounds + 1):
            tell(f"round {number} of {work.rounds}" if number else "first round")
            for way in list(figures)[:: -1 if number % 2 else 1]:
                try:
                    _round(workers[way], figures[way], first=number == 0)
                except Failed as reason:
                    failed[way] = str(reason)
                    del figures[way]
    finally:
        for worker in workers.values():
            worker.close()
    return Found(work, tuple(figures.values()), failed)


def _round(worker: Worker, figures: Figures, *, first: bool) -> None:
    for task in TASKS:
        seconds, figures.peak = worker.ask(task)
        if first:
            figures.first[task] = seconds
        else:
            figures.rounds.setdefault(task, []).append(seconds)


class Failed(Exception):
    """Why a way has no figures."""


class Worker:
    """A process that holds the model loaded in one way."""

    def __init__(self, model: Callable[[], Model], way: Way, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, model, way, work), daemon=True)
        with _threads(work.threads):
            self.process.start()
        theirs.close()

    def ask(self, task: Task) -> tuple[float, int]:
        self.pipe.send(task)
        return self.answer()

    def answer(self) -> tuple[float, int]:
        """Seconds, and the peak of memory so far. Raises Failed."""
        try:
            said = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise Failed(f"its process ended with {self.process.exitcode}") from None
        if isinstance(said, str):
            raise Failed(said)
        seconds, peak = said
        return float(seconds), int(peak)

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """The environment of a process that is to use so many threads."""
    before = {name: os.environ.get(name) for name in THREADS}
    try:
        if count is not None:
            os.environ.update(dict.fromkeys(THREADS, str(count)))
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def serve(pipe: Connection, model: Callable[[], Model], way: Way, work: Work) -> None:
    """What a worker's process does: loads, then answers each task with its seconds."""
    try:
        runner, seconds = _loaded(model, way, work)
        pipe.send((seconds, peak_bytes()))
        while True:
            task = pipe.recv()
            begun = time.perf_counter()
            begun = getattr(runner, task)() or begun
            pipe.send((time.perf_counter() - begun, peak_bytes()))
    except EOFError:
        return
    except (ArchError, Diagnostics) as error:
        errors = error.errors if isinstance(error, Diagnostics) else [error]
        pipe.send("; ".join(e.message for e in errors))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _loaded(model: Callable[[], Model], way: Way, work: Work) -> tuple[Runner, float]:
    """Imports are not loading: a program has them done."""
    from .api import backend
    from .generate.face import face_of

    keep_memory()
    backend(way.backend)
    if way.backend == "torch":
        import torch

        from .backends.torch import runtime  # noqa: F401

        if work.threads is not None:
            torch.set_num_threads(work.threads)
    begun = time.perf_counter()
    loaded = model()
    face = face_of(loaded)
    options: dict[str, Any] = {"compile": True} if way.compiled else {}
    decoder = loaded.decoder(
        way.backend,
        dtype=way.dtype,
        quant=way.quant,
        inputs=face.names(padded=False, given=()),
        rows="last",
        max_length=work.longest + 1,
        **options,
    )
    return Runner(decoder, face, work), time.perf_counter() - begun


@dataclass(slots=True)
class Runner:
    """The tasks. One returns when its time began, where that is not when it was called."""

    decoder: Decoder
    face: Face
    work: Work

    def prefill(self) -> None:
        self._next(None, self._ids(self.work.prompt))

    def decode(self) -> float:
        token, state = self._next(None, self._ids(self.work.context))
        begun = time.perf_counter()
        for _ in range(self.work.tokens):
            token, state = self._next(state, token)
        return begun

    def _ids(self, count: int) -> Any:
        import numpy as np

        return np.random.default_rng(SEED).integers(0, self.face.vocabulary, (1, count))

    def _next(self, state: State | None, ids: Any) -> tuple[Any, State]:
        """The likeliest token after `ids`, which is a row of one."""
        given = {self.face.text.ids: ids}
        if state is None and self.face.source is not None:
            given[self.face.source.ids] = self._ids(self.work.prompt)
        outputs, state = self.decoder(state, **given)
        return outputs[self.face.logits][:, -1].argmax(-1)[:, None], state
