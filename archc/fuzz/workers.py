"""Judges in processes of their own, so that one that hangs or dies is a find and not the end.

A worker answers one question at a time. One that takes too long is stopped, and a new one started for
the next question.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TypeVar

from ..diff import Candidate
from .judge import Failure, Trial, judge

TIMEOUT = 120.0  # seconds for one program on all candidates
Question = tuple[Trial, tuple[Candidate, ...]]
T = TypeVar("T")
Answer = TypeVar("Answer")


def _serve(connection: Connection) -> None:
    """Answers questions until the other end closes."""
    while True:
        try:
            trial, candidates = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        connection.send(judge(trial, candidates))


@dataclass(slots=True)
class Worker:
    """`deadline` is none while nothing is asked."""

    timeout: float = TIMEOUT
    process: BaseProcess | None = None
    connection: Connection | None = None
    deadline: float | None = None

    def ask(self, question: Question) -> None:
        if self.process is None:
            os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers stand side by side
            context = get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        assert self.connection is not None
        self.connection.send(question)
        self.deadline = time.monotonic() + self.timeout

    def answer(self) -> Failure | None:
        """What came of the question, waiting for it up to the deadline."""
        assert self.connection is not None
        assert self.deadline is not None
        left = max(0.0, self.deadline - time.monotonic())
        self.deadline = None
        try:
            if self.connection.poll(left):
                found: Failure | None = self.connection.recv()
                return found
        except (EOFError, ConnectionResetError):
            status = self.stop()
            return Failure("dies", "", f"the process ended with status {status}")
        self.stop()
        return Failure("times out", "", f"no result after {self.timeout:g} seconds")

    def judged(self, question: Question) -> Failure | None:
        self.ask(question)
        return self.answer()

    def stop(self) -> int | None:
        """Ends the process. Returns its exit status."""
        if self.process is None:
            return None
        assert self.connection is not None
        self.connection.close()
        self.process.join(1)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        status = self.process.exitcode
        self.process = self.connection = None
        return status


def spread(
    questions: Iterable[T], ask: Callable[[Worker, T], Answer], jobs: int, timeout: float = TIMEOUT
) -> Iterator[tuple[T, Answer]]:
    """`ask(worker, question)` for each, by several workers at once; answers as they come."""
    waiting, lock = iter(questions), Lock()
    answers: SimpleQueue[tuple[T, Answer] | BaseException | None] = SimpleQueue()
    workers = [Worker(timeout) for _ in range(jobs)]

    def work(worker: Worker) -> None:
        try:
            while True:
                with lock:
                    question = next(waiting)
                answers.put((question, ask(worker, question)))
        except StopIteration:
            answers.put(None)
        except BaseException as error:  # raised again where the answers are read
            answers.put(error)

    threads = [Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    try:
        for thread in threads:
            thread.start()
        ended = 0
        while ended < jobs:
            found = answers.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                ended += 1
            else:
                yield found
    finally:
        for worker in workers:
            worker.stop()
