"""Is this program right? It is checked, formatted, run on every candidate and held to the reference.

The comparison is that of `archc diff`: each value of each run by the rule of `equality.py`, and where
the model decodes, runs in chunks against one run of the whole. What comes back is the first `Failure`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ..api import Model
from ..compiler.elaborate import module_of, the_model
from ..compiler.ir import text as graph_text
from ..diff import Candidate, Report, diff, diff_chunks
from ..diff.localise import CandidateFailed
from ..dsl import Source, format_file, parse
from ..dsl.diagnostics import ArchError, Diagnostics
from ..dsl.errors import NeedsWholeSequence, UnjoinedOutput

NAME = "fuzz.arch"
AGAIN = 2  # seeds of other weights and inputs on which a difference must show as well


@dataclass(frozen=True, slots=True)
class Failure:
    """`kind` is what went wrong, `candidate` where, `words` what is said of it.

    The first two are its signature: a smaller program with the same one fails in the same way.
    """

    kind: str
    candidate: str
    words: str

    @property
    def signature(self) -> tuple[str, str]:
        return self.kind, self.candidate

    def __str__(self) -> str:
        return f"{self.kind}{f' on {self.candidate}' if self.candidate else ''}: {self.words}"


@dataclass(frozen=True, slots=True)
class Trial:
    """A program and how it is run. `preset` and `settings` fix its hyperparameters."""

    text: str
    sizes: Mapping[str, int]
    seed: int = 0
    model: str | None = None
    overrides: Mapping[str, Any] | None = None


def judge(trial: Trial, candidates: Sequence[Candidate]) -> Failure | None:
    """How a program fails, if it does. A difference counts where other weights show it too."""
    found = _judged(trial, candidates)
    if found is None or found.kind not in _ROUNDED:
        return found
    only = [c for c in candidates if str(c) == found.candidate] or candidates
    for more in range(1, AGAIN + 1):
        again = _judged(replace(trial, seed=trial.seed + 7919 * more), only)
        if again is None or again.signature != found.signature:
            return None
    return found


# What rounding may explain once, by bad luck with cancelling values: the rest is never luck.
_ROUNDED = ("differs", "chunks differ", "passes differ")


def _judged(trial: Trial, candidates: Sequence[Candidate]) -> Failure | None:
    running = [""]
    try:
        model = _checked(trial)
        if isinstance(model, Failure):
            return model
    except Exception as error:  # whatever it is, it is the find
        return _raised("refused", "", error)
    try:
        return _compared(model, trial, candidates, running)
    except Exception as error:  # as above
        return _raised("cannot run", running[0], error)


def _raised(refusal: str, candidate: str, error: Exception) -> Failure:
    """A mistake that was found in the text, or a bug."""
    if isinstance(error, Diagnostics):
        return _raised(refusal, candidate, error.errors[0])
    if isinstance(error, ArchError):
        return Failure(f"{refusal}: {error.id}", candidate, error.message)
    if isinstance(error, CandidateFailed):
        return Failure(f"fails: {str(error).partition(':')[0]}", candidate, str(error))
    words = str(error).strip().partition("\n")[0]
    return Failure(f"crashes: {type(error).__name__}", candidate, words)


def _checked(trial: Trial) -> Model | Failure:
    """The model, unless its text or its graph does not survive being printed."""
    file = parse(Source(NAME, trial.text))
    formatted = format_file(file)
    again = parse(Source(NAME, formatted))
    if again != file or format_file(again) != formatted:
        return Failure("format", "", "the formatted text is another program, or is formatted again")
    module = module_of(file)
    model = Model(module, the_model(module, trial.model), trial.overrides or {})
    shown = graph_text.show(model.program)
    if graph_text.show(graph_text.parse(shown)) != shown:
        return Failure("graph text", "", "the printed graph is read as another")
    return model.with_random_weights(trial.seed)


def _compared(
    model: Model, trial: Trial, candidates: Sequence[Candidate], running: list[str]
) -> Failure | None:
    def progress(message: str) -> None:
        running[0] = message.partition(" on ")[0]

    options: dict[str, Any] = {"seed": trial.seed, "sizes": trial.sizes, "progress": progress}
    found = _difference("differs", diff(model, candidates, **options))
    if found is None and model.program.decode:
        with suppress(NeedsWholeSequence, UnjoinedOutput):
            found = _difference("chunks differ", diff_chunks(model, candidates, **options))
    return found


def _difference(kind: str, report: Report) -> Failure | None:
    """The first divergence. One that no rounding explains is of another kind."""
    if not report.divergences:
        return None
    first = report.divergences[0]
    mismatch = first.comparison.mismatch
    if mismatch:
        kind = (
            f"fails: {mismatch.partition(':')[0]}" if "Error: " in mismatch else f"{kind} exactly"
        )
    elif first.candidate.startswith("-O"):
        kind = "passes differ"
    return Failure(kind, first.candidate, " ".join((*first.lines()[0].split(), mismatch)).strip())
