"""The passes, in order, and `optimise`, which runs them.

Each pass is one file that opens with its equation over the reals and its legality. Removing any
of them from the list changes no result beyond rounding.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...dsl.errors import UnknownPass
from .. import knobs
from ..ir.graph import Program
from ..ir.text import show
from ..rewrite import Moves, Pass, Session, Site, ValueMap, run_pass
from .canonicalize import CANONICALIZE
from .chunk_scan import CHUNK_PRODUCTS, CHUNK_SCAN
from .drop_unread import DROP_UNREAD
from .explain import explain_text
from .fft_convolution import FFT_CONVOLUTION
from .fuse_linear import FUSE_LINEAR
from .fuse_loss import FUSE_LOSS
from .fuse_norm_linear import FUSE_NORM_LINEAR
from .fuse_pointwise import FUSE_POINTWISE
from .group_experts import GROUP_EXPERTS
from .hoist_invariant import HOIST_INVARIANT
from .pack_projections import PACK_PROJECTIONS
from .pack_weights import PACK_WEIGHTS
from .parameters import DERIVE_PARAMETERS
from .quantise import LEFT_OUT, Quant, quantise_to
from .sink_merges import SINK_MERGES
from .split_sink import SPLIT_SINK
from .tile_attention import TILE_ATTENTION
from .visible_keys import VISIBLE_KEYS

if TYPE_CHECKING:
    from .verify import Evaluate, Verifier

PIPELINE: tuple[Pass, ...] = (
    CANONICALIZE,
    DROP_UNREAD,
    CHUNK_PRODUCTS,
    CHUNK_SCAN,
    SINK_MERGES,
    GROUP_EXPERTS,
    FFT_CONVOLUTION,
    SPLIT_SINK,
    TILE_ATTENTION,
    VISIBLE_KEYS,
    HOIST_INVARIANT,
    PACK_PROJECTIONS,
    FUSE_NORM_LINEAR,
    FUSE_LOSS,
    PACK_WEIGHTS,
    DERIVE_PARAMETERS,
    FUSE_LINEAR,
    FUSE_POINTWISE,
)


@dataclass(frozen=True, slots=True)
class Optimised:
    """The program after the passes, every site they met, and where each value went."""

    program: Program
    sites: tuple[Site, ...]
    value_map: ValueMap


def optimise(
    program: Program,
    *,
    level: int = 1,
    disable: Collection[str] = (),
    quant: Quant | None = None,
    verify: Evaluate | None = None,
    report: Callable[[str], None] | None = None,
) -> Optimised:
    """Runs the `pipeline` (level 1) or nothing (level 0), without the passes named in `disable`.

    With `quant` weights are quantised, at either level. `verify` evaluates a program in float64
    (`verify.py`); with it each exact pass is checked by running the program before and after: those
    after `quantise` on the weights that it made. `report` receives what the knobs ask for (stderr
    by default). Raises UnknownPass, and InternalError when a pass changed a result.
    """
    session = Session(limit=knobs.RULE_LIMIT.value)
    values = ValueMap(program, program)
    verifier = _verifier(verify) if verify is not None else None
    say = report or _say
    start = time.perf_counter()
    for made, before, after, moved in steps(
        program, chosen(disable, quant) if level else weights_only(quant), session
    ):
        seconds = time.perf_counter() - start
        if verifier is not None and made.exact and after != before:
            verifier.check(made.name, before, after)
        _instruments(made, after, session.sites, seconds, say)
        program, values = after, values.then(after, moved)
        start = time.perf_counter()
    return Optimised(program, tuple(session.sites), values)


def steps(
    program: Program, passes: Iterable[Pass], session: Session
) -> Iterator[tuple[Pass, Program, Program, Moves]]:
    """Each pass with the program before and after it, and where values went."""
    for made in passes:
        after, moved = run_pass(made, program, session)
        yield made, program, after, moved
        program = after


def _verifier(evaluate: Evaluate) -> Verifier:
    from .verify import Verifier  # loads NumPy

    return Verifier(evaluate)


def pipeline(quant: Quant | None = None) -> tuple[Pass, ...]:
    """`PIPELINE`; with `quant` weights are quantised once they are folded and packed."""
    if quant is None:
        return PIPELINE
    derive = PIPELINE.index(DERIVE_PARAMETERS)
    before = (made for made in PIPELINE[:derive] if made.name not in LEFT_OUT)
    return (*before, *quantise_to(quant), *PIPELINE[derive:])


def weights_only(quant: Quant | None) -> tuple[Pass, ...]:
    """The passes of a graph as it was written: none, or those that keep its weights in few bits."""
    return () if quant is None else (*quantise_to(quant), DERIVE_PARAMETERS)


def chosen(disable: Collection[str] = (), quant: Quant | None = None) -> tuple[Pass, ...]:
    """The pipeline without disabled passes, up to the one ARCHC_STOP_AFTER names."""
    passes = pipeline(quant)
    known = tuple(p.name for p in (*PIPELINE, *passes))
    last = knobs.STOP_AFTER.value
    shown = [knob.value for knob in (knobs.EXPLAIN, knobs.DUMP) if knob.value != "all"]
    for name in filter(None, (*disable, last, *shown)):
        if name not in known:
            raise UnknownPass(name=name, known=known)
    names = [p.name for p in passes]
    kept = passes[: names.index(last) + 1] if last in names else passes
    return tuple(p for p in kept if p.name not in disable)


def _instruments(
    made: Pass, program: Program, sites: list[Site], seconds: float, say: Callable[[str], None]
) -> None:
    """What ARCHC_TIME, ARCHC_EXPLAIN and ARCHC_DUMP ask to see after a pass."""
    if knobs.TIME.value:
        say(f"{made.name}: {seconds * 1e3:.1f} ms")
    if knobs.EXPLAIN.value in ("all", made.name):
        say(explain_text([s for s in sites if s.pass_name == made.name], program.sizes))
    if knobs.DUMP.value in ("all", made.name):
        say(f"after {made.name}\n{show(program)}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
