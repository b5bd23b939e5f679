"""Finds the rewrite that changes a result: n firings are wrong, and n - 1 are right.

Passes stop once `limit` rules have fired, so a pipeline can be cut after any rewrite; at each cut
every exact pass is checked by running the program before and after it (`verify.py`). The limit is
doubled until the check fails, then the interval is halved. What a pass over the whole program does
counts as one rewrite.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...dsl.diagnostics import InternalError
from ..ir.graph import Program
from ..rewrite import Session, Site, run_pass
from . import chosen
from .quantise import Quant
from .verify import Evaluate, Verifier


@dataclass(frozen=True, slots=True)
class Cut:
    """The pipeline up to its first `fired` rewrites: the last of them, and what is wrong after it.

    `error` is empty where every pass keeps the results. There is no site where a rewrite could not
    even be made.
    """

    fired: int
    error: str = ""
    pass_name: str = ""
    site: Site | None = None


def cut(program: Program, evaluate: Evaluate, quant: Quant | None, limit: int | None) -> Cut:
    """Runs the passes until `limit` rules have fired, each checked."""
    session, verifier = Session(limit), Verifier(evaluate)
    for made in chosen(quant=quant):
        try:
            after, _ = run_pass(made, program, session)
            if made.exact and after != program:
                verifier.check(made.name, program, after)
        except InternalError as error:
            sites = [s for s in session.sites if s.fired]
            site = sites[-1] if len(sites) == session.fired else None
            return Cut(session.fired, str(error), made.name, site)
        program = after
    return Cut(session.fired)


def bisect(program: Program, evaluate: Evaluate, quant: Quant | None = None) -> Cut:
    """The shortest wrong cut whose predecessor is right; the whole pipeline where it is right."""
    whole = cut(program, evaluate, quant, None)
    if not whole.error:
        return whole
    right, wrong = 0, 1
    while not (found := cut(program, evaluate, quant, wrong)).error:
        right, wrong = wrong, 2 * wrong
    while wrong - right > 1:
        middle = (right + wrong) // 2
        tried = cut(program, evaluate, quant, middle)
        right, wrong = (right, middle) if tried.error else (middle, wrong)
        found = tried if tried.error else found
    return found
