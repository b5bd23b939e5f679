"""chunk-scan and chunk-products: recurrences that gain nothing by chunks."""

from __future__ import annotations

from small_models import program

from archc.compiler.passes import Optimised
from archc.compiler.passes.properties import SOURCES, VIEWS

from .base import Caught, Promise, main_nodes


def computes_at_once(done: Optimised) -> str:
    """A chunk computes something for all its steps: it is more than a loop."""
    idle = VIEWS | SOURCES | {"scan", "result", "cast"}
    for node in main_nodes(done, "chunked_scan"):
        if all(n.op in idle for n in done.program.body(node).nodes):
            return "a chunk is a loop and nothing else"
    return ""


def steps_in_forms(done: Optimised) -> str:
    """The step of some state is left with a sum of factors times states."""
    affine = VIEWS | SOURCES | {"add", "mul", "cast"}
    for node in main_nodes(done, "chunked_scan"):
        chunk = done.program.body(node)
        steps = [done.program.body(n) for n in chunk.nodes if n.op == "scan"]
        if not any(all(n.op in affine for n in step.nodes) for step in steps):
            return "every step waits for the one before"
    return ""


def recurrence(update: str, notice: str, promise: Promise = computes_at_once) -> Caught:
    text = (
        "model M {\n  d = 4\n  input x: float[b, s, d]\n"
        f"  scan s with h[..., d] = 0 {{ h = {update} }}\n  output y[b, s, d] = h\n}}"
    )
    return Caught(program(text), notice, promise)


PRODUCTS = {"contracted": recurrence("tanh(h + x)", "a loop and nothing else")}
LOOPS = {
    "affine": recurrence("tanh(h) + exp(x)", "every step waits", steps_in_forms),
    "at-once": recurrence("h + x", "a loop and nothing else"),
}
