"""From a program with a loss: programs that give the loss and its gradient for each weight.

    x[i + 1] = f_i(x[i], w_i)        forward   keeps x[i], what enters layer i
    dx[i]    = (df_i/dx)^T dx[i+1]   backward  starts from x[i], which it is given, and makes what is
    dw_i     = (df_i/dw)^T dx[i+1]             inside layer i again

`forward` runs the loops over layers and leaves what enters each layer as states. `backward` is given
them, computes the loss, runs the loops from their ends and leaves the gradients as states too. Within a
function a value's gradient is the sum of what the rules of its readers give (`ops/gradient.py`); a `scan`
becomes a scan from its end. Nothing here is about one model: what has no rule is refused with its line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ...dsl.errors import LossShape
from ..ir.graph import Program, callees
from ..ir.walk import calls, join
from ..ops import SCANS
from ..passes.canonicalize import CANONICALIZE
from ..passes.drop_unread import DROP_UNREAD
from ..passes.sink_merges import SINK_MERGES
from ..passes.tile_attention import TILE_ATTENTION
from ..rewrite import Pass, Session, run_pass
from .columns import LOG_SUM_EXP, in_columns
from .derivation import Derivation
from .reverse import GRADIENT

__all__ = ["Differentiated", "derive"]


@dataclass(frozen=True, slots=True)
class Differentiated:
    """The derived programs, and for each weight the state of `backward` that is its gradient.

    A model without loops over layers has no `forward`.
    """

    forward: Program | None
    backward: Program
    gradients: dict[str, str]


def derive(
    program: Program, loss: str, weights: Collection[str], *, tiled: bool = True
) -> Differentiated:
    """The gradient of the output `loss`, one number, for each of `weights`.

    Unless they are not `tiled`, attention is differentiated as tiles (`attention.py`), and what has a
    long vocabulary for each token is made again in tiles of it (`columns.py`). Outputs other than the
    loss stay outputs of `backward`. Raises `LossShape` and `NoGradient`.
    """
    value = program.main[dict(program.main.outputs)[loss]]
    if value.axes or value.type.dtype not in ("float", "f32", "f64"):
        spans = value.spans or (None,)
        raise LossShape(name=loss, got=str(value.type), span=spans[0], calls=spans[1:])
    session = Session()
    canonical = _after(program, (CANONICALIZE, DROP_UNREAD), session)
    if tiled:
        canonical = _tiled(canonical, session)
    session.learn(canonical)
    derivation = Derivation(canonical, session, frozenset(weights))
    backward = derivation.backward(loss)
    if tiled:
        backward = in_columns(_after(backward, (CANONICALIZE,), session), session)
    gradients = {
        join(path, name.removeprefix(GRADIENT)): join(path, name)
        for path, function in calls(backward)
        for name, _ in function.left
        if name.startswith(GRADIENT)
    }
    return Differentiated(
        derivation.forward(), backward, {path: gradients[path] for path in weights}
    )


def _after(program: Program, passes: Iterable[Pass], session: Session) -> Program:
    for made in passes:
        program, _ = run_pass(made, program, session)
    return program


def _tiled(program: Program, session: Session) -> Program:
    """With attentions as tiles; not in the steps of scans, of which chunks are yet to be made."""
    nodes = (n for function in program.functions for n in function.nodes if n.op in SCANS)
    steps = {name: program.function(name) for node in nodes for name in callees(node)}
    return _after(program, (SINK_MERGES, TILE_ATTENTION, LOG_SUM_EXP), session).with_functions(
        steps.values()
    )
