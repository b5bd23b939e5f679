"""From the full-sequence program: `prefill` that also gives states, and `chunk` that goes on from them.

    f(x[0 : p + n])[p :]  =  chunk(x[p : p + n], states of prefill(x[0 : p]))

for every split of a sequence, where f is proved causal (`causality.py`). A chunk of one row is a decode
step. What is kept is the plan of `state.py`; nothing of it is decided here. In a chunk the decoded axis
`s` has the new rows, `past` slots came before them, and an axis of keys has all slots, or the last that a
window sees. A value stands in a chunk for its new rows, or for its *history*:

    history(v) = state of v, then the new rows of v    if v is kept
               = op(history of its operands)           if it is made again
    v[s -> t]  = history(v)[all -> t]                  where positions meet
    x[i - c]   = history(x)[i - c - start]             slots count from the first that is kept
    scan       = scan from the last state;   cumsum = last sum + cumsum

Values without the decoded axis, such as an encoder's, are states as they are, and so are inputs without
it: a chunk is given the inputs that have rows, and gives the outputs that rows reach. Facts of time whose
earlier values are read (validity, declared positions) are kept beside the values of the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...dsl.errors import NoDecode
from ...dsl.span import Span
from ..ir.graph import Program
from ..ir.walk import iterations, join
from ..key_axes import with_key_axes
from ..passes.canonicalize import CANONICALIZE
from ..passes.drop_unread import DROP_UNREAD
from ..rewrite import Session, run_pass
from ..state import plan_of
from .chunk import chunk_of
from .derivation import Derivation, Part, Slot
from .last_row import last_row
from .prefill import prefilled

__all__ = ["Incremental", "Slot", "derive", "last_row"]


@dataclass(frozen=True, slots=True)
class Incremental:
    """The derived programs. States go in at nodes `state`, out at the outputs whose names have `STATE`.

    `past` is the symbol for how many slots came before, in sizes of `chunk`.
    """

    prefill: Program
    chunk: Program
    slots: tuple[Slot, ...]
    past: str

    @property
    def symbols(self) -> frozenset[str]:
        """The sizes that are of one chunk."""
        main, axis = self.prefill.main, self.prefill.decode
        axes = (a for i in main.inputs for a in main[i].axes if a.name == axis)
        return frozenset({self.past}).union(*(a.size.symbols() for a in axes))


def derive(program: Program, text: Span | None = None) -> Incremental:
    """The incremental programs of one that declares `decode` and is proved causal.

    `text` is where the model is written, for errors. Raises `NoDecode`, and `NeedsWholeSequence` where a
    value depends on the length of the sequence or positions meet in the steps of a scan.
    """
    if not program.decode:
        raise NoDecode(model=program.name, span=text)
    session = Session()
    canonical, _ = run_pass(CANONICALIZE, _without_loss(program), session)
    canonical, _ = run_pass(DROP_UNREAD, canonical, session)
    canonical = with_key_axes(canonical)
    session.learn(canonical)
    derivation = Derivation(canonical, session, chunk_of)
    main = derivation.main(plan_of(canonical))
    slots = tuple(_slots(derivation, main, ""))
    return Incremental(
        prefilled(derivation), derivation.chunk_program(), slots, derivation.past_name
    )


def _without_loss(program: Program) -> Program:
    """A loss is of the whole sequence."""
    main = program.main
    outputs = tuple((name, i) for name, i in main.outputs if name != "loss")
    return program.with_functions([replace(main, outputs=outputs)])


def _slots(derivation: Derivation, part: Part, path: str) -> Iterator[Slot]:
    """The states of a part called at `path` and of its loops, with complete paths, as they run."""
    for node in part.plan.values.function.nodes:
        for kept in (k for k in part.kept if k.node.id == node.id):
            yield kept.slot(derivation, join(path, kept.path))
        if node.id in part.loops:
            for inner, kind in iterations(node, path):
                yield from _slots(derivation, part.loops[node.id][kind], inner)
