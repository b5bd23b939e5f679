"""fuse-loss: logits that are stored anyway, and those that are few."""

from __future__ import annotations

from dataclasses import replace

from graphs import Model, Value, b, d, s, vocab

from archc.compiler.passes import Optimised

from .base import Caught, computes_no_more, main_nodes

LONG = {"vocab": 4096}  # two tiles of columns


def targets(m: Model) -> Value:
    return m.input("ids", b, s, dtype="int", below=vocab.size)


def picked(m: Model, x: Value) -> Value:
    return (logits(m, x) * 0.5).op("take", targets(m), axis=vocab, fill=None)


def logits(m: Model, x: Value) -> Value:
    return x.dot(m.weight("head", vocab, d), d).cast("f32")


def nll(m: Model, z: Value) -> Value:
    """log(sum(exp(z))) - z[target]."""
    most = z.op("amax", axes=(vocab,))
    total = (z - most).op("exp").sum(vocab)
    return most + total.op("log") - z.op("take", targets(m), axis=vocab, fill=None)


def unlikely(m: Model, x: Value) -> Value:
    return nll(m, logits(m, x))


def multiplies_once(done: Optimised) -> str:
    """What the loop computes tile by tile is not computed as a whole as well."""
    loops, products = (main_nodes(done, op) for op in ("chunked_scan", "dot"))
    return "the logits are computed twice" if loops and products else ""


def loops_over_many(done: Optimised) -> str:
    return "a loop over one tile" if main_nodes(done, "chunked_scan") else ""


def case(*, scale: float | None = None, output: bool = False) -> Caught:
    m = Model()
    z = logits(m, m.input("x", b, s, d))
    outputs = {"y": nll(m, z)}
    if scale is not None:
        outputs["scaled"] = (z * scale).op("softmax", axis=vocab)
    if output:
        outputs["logits"] = z
    program = m.program(**outputs)
    bindings = tuple({**program.sizes, **LONG}.items())
    program = replace(program, bindings=bindings)
    return Caught(program, "computed twice", multiplies_once)


def read_twice() -> Caught:
    m = Model()
    z = logits(m, m.input("x", b, s, d)) * 0.5
    picked = z.op("take", targets(m), axis=vocab, fill=None)
    return Caught(m.program(y=picked, z=z), "more is computed", computes_no_more)


def few() -> Caught:
    m = Model()
    program = m.program(y=unlikely(m, m.input("x", b, s, d)))
    return Caught(program, "one tile", loops_over_many)


PICK = {"read-once": read_twice()}
LOSS = {
    "long": few(),
    "no-output": case(output=True),
    "read-here": case(scale=0.5),
}
