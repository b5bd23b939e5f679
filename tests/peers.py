"""Kernels that are measured against those of other libraries, at the sizes that those publish."""

from __future__ import annotations

from dataclasses import replace

from graphs import Model, b, s, t

from archc.backends.triton import TritonBackend
from archc.backends.triton.host import plan
from archc.backends.triton.kernel import Kernel
from archc.compiler.ir.graph import Axis, Program
from archc.compiler.passes import optimise
from archc.dsl.dims import Dim


def sized(name: str, size: int) -> Axis:
    return Axis(name, Dim.of(size))


def rms_norm(size: int = 4096) -> Program:
    m, d = Model(), sized("d", size)
    wide = m.input("x", b, s, d).cast("f32")
    mean = (wide * wide).sum(d) / float(size)
    return m.program(y=(wide * (mean + 1e-5).op("rsqrt")).cast("float") * m.weight("gain", d))


def swiglu(size: int = 14336) -> Program:
    m, h = Model(), sized("h", size)
    gate = m.input("gate", b, s, h)
    return m.program(y=gate * gate.op("sigmoid") * m.input("up", b, s, h))


def rope(heads: int = 32, size: int = 128) -> Program:
    """The second half of the head turned against the first."""
    m, n, e, half = Model(), sized("n", heads), sized("e", size), sized("half", size // 2)
    x = m.input("x", b, s, n, e)
    cos, sin = m.input("cos", b, s, half), m.input("sin", b, s, half)
    low = x.op("slice", axis=e, into=half, start=Dim.of(0), step=1)
    high = x.op("slice", axis=e, into=half, start=Dim.of(size // 2), step=1)
    turned = low * cos - high * sin
    other = high * cos + low * sin
    return m.program(y=turned.op("concat", other, axis=e, parts=(half, half)))


def cross_entropy(size: int = 32000) -> Program:
    """log sum_v exp(x) - x[label], without an array of the size of x."""
    m, vocab = Model(), sized("vocab", size)
    x = m.input("x", b, s, vocab).cast("f32")
    label = m.input("label", b, s, dtype="int", below=vocab.size)
    high = x.op("amax", axes=(vocab,))
    total = (x - high).op("exp").sum(vocab).op("log") + high
    return m.program(loss=total - x.op("take", label, axis=vocab, fill=0.0))


def attention(heads: int = 8, group: int = 4, size: int = 128) -> Program:
    """Causal, four heads of queries to one of keys."""
    m = Model()
    g, r, e = sized("g", heads), sized("r", group), sized("e", size)
    q, k, v = m.input("q", b, s, g, r, e), m.input("k", b, t, g, e), m.input("v", b, t, g, e)
    shown = m.where(m.index(t) <= m.index(s), q.dot(k, e) * size**-0.5, float("-inf"))
    return m.program(y=shown.op("softmax", axis=t).dot(v, t))


def kernels(program: Program) -> list[Kernel]:
    unwanted = TritonBackend().unwanted_passes("bf16")
    return [*plan(optimise(program, disable=unwanted).program).kernels.values()]


def kernel(name: str) -> Kernel:
    """The one kernel of a program of this module, under the program's name."""
    (found,) = kernels(globals()[name]())
    return replace(found, name=name)
