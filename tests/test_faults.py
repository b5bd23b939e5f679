"""Faults are found and named: the region of the node, its op, its line of the text.

They are faults of lowerings, of each backend; of weights that are looked up wrongly; of rewrites; of
what decoding keeps. Those of a checkpoint's lines are in `test_diff_against.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import decode_faults
import pytest
from faults import FAULTS, PASSES, Faulty, continues

import archc
from archc import api
from archc.diff import Candidate, diff, diff_chunks
from archc.diff.regions import places
from archc.dsl.span import Span

EXAMPLES = Path(archc.__file__).parent.parent / "examples"


@dataclass(frozen=True)
class Expected:
    """Of a fault: the model that shows it, what is said, with `line` and `std` parts of lines."""

    model: str
    region: str
    ops: str
    line: str
    std: str
    level: int = 1
    length: int = 5  # more keys than a tile has on numpy
    hint: str = ""


ATTENTION, NORM = "layers[0].attention", "layers[0].norm1"
EXPECTED = {
    "scale dropped": Expected(
        "llama",
        ATTENTION,
        "dot mul const",
        "attention(heads",
        "dot(q, k, e)",
        hint="scores not multiplied by 16 ** -0.5",
    ),
    "mask bound": Expected(
        "llama",
        ATTENTION,
        "le",
        "attention(heads",
        "slot(t) <= slot(s)",
        hint="`<` in place of `<=`",
    ),
    "rope pairing": Expected("llama", ATTENTION, "split pick", "turn(x, t, length)", "pair"),
    "epsilon": Expected(
        "llama", NORM, "const", "rmsnorm(eps) as norm1", "+ eps", hint="1e-06 in place of 1e-05"
    ),
    "gain dropped": Expected("bert", "embedding_norm", "mul", "layernorm(eps)", "* gain"),
    "difference swapped": Expected(
        "llama", ATTENTION, "sub", "turn(x, t, length)", "z[pair: 0] * c -"
    ),
    "quotient swapped": Expected(
        "bert", "embedding_norm", "div", "layernorm(eps)", "sum(x, a) / count"
    ),
    "wrong axis": Expected("bert", "embedding_norm", "sum", "layernorm(eps)", "sum(x, a) / count"),
    "bias dropped": Expected("bert", "embedding_norm", "add", "layernorm(eps)", "y += b"),
    "GELU flavour": Expected("bert", "layers[0].ffn", "erf", "as ffn", "erf("),
    "softmax axis": Expected("gpt2", ATTENTION, "softmax", "attention(heads", "softmax(", level=0),
    "cast to half": Expected("llama", NORM, "cast", "rmsnorm(eps) as norm1", "f32(x)", level=0),
    "sum not divided": Expected("llama", ATTENTION, "softmax", "attention(heads", "softmax("),
    "last tile skipped": Expected("llama", ATTENTION, "softmax", "attention(heads", "softmax("),
    "tiles not rescaled": Expected(
        "llama", ATTENTION, "softmax", "attention(heads", "softmax(", length=70
    ),
}
CASES = [(backend, kind) for backend, faults in FAULTS.items() for kind in faults]
real = api.backend


@cache
def model(name: str, **sizes: int) -> api.Model:
    """An example, elaborated once."""
    made = archc.load(EXAMPLES / f"{name}.arch", preset="tiny", **sizes)
    return made.with_random_weights(0)


@pytest.mark.parametrize(("backend", "kind"), CASES)
def test_fault(backend: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    monkeypatch.setattr(api, "backend", lambda name: Faulty(real(name), FAULTS[backend][kind]))
    check(backend, EXPECTED[kind])


def exchanged(a: str, b: str) -> Callable[[str], str]:
    """Each of two labels is looked up under the other one."""
    return lambda path: path.replace(a, "?").replace(b, a).replace("?", b)


def another(a: str, b: str) -> Callable[[str], str]:
    return lambda path: path.replace(a, b)


FFN, WEIGHT = "layers[1].ffn", "weight w["
WEIGHTS = {  # which path is read for a path, and where that is told; one is packed, one is not
    "stale": (another(f"{FFN}.down", "layers[0].ffn.down"), f"{FFN}.down", "as ffn", WEIGHT),
    "stale and packed": (another(f"{FFN}.up", "layers[0].ffn.up"), f"{FFN}.up", "as ffn", WEIGHT),
    "gate and up": (exchanged(f"{FFN}.gate", f"{FFN}.up"), f"{FFN}.gate", "as ffn", WEIGHT),
    "k and v": (
        exchanged("layers[0].attention.k", "layers[0].attention.v"),
        f"{ATTENTION}.k",
        "attention(heads",
        WEIGHT,
    ),
    "another gain": (
        another("layers[1].norm2", "layers[1].norm1"),
        "layers[1].norm2",
        "as norm2",
        "weight gain[",
    ),
}


LOOKED_UP = [(b, kind) for b in FAULTS for kind in WEIGHTS if b != "triton" or "stale" in kind]


@pytest.mark.parametrize(("backend", "kind"), LOOKED_UP)
def test_wrong_weight(backend: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    reads, region, line, std = WEIGHTS[kind]
    monkeypatch.setattr(api, "backend", lambda name: Faulty(real(name), reads=reads))
    check(backend, Expected("llama", region, "weight", line, std))


REWRITES = {
    "gain not folded": ("llama", "head", "fold-norm", "linear(vocab) as head", "dot(x, w, in)"),
    "gain folded twice": ("llama", "head", "fold-norm", "linear(vocab) as head", "dot(x, w, in)"),
    "shift dropped": ("gpt2", f"{ATTENTION}.q", "fold-norm", "attention(heads", "y += b"),
    "columns of the first part": ("bert", f"{ATTENTION}.q", "pack", "attention(heads", "y += b"),
    "first matrix for all": ("llama", "layers[0].ffn.gate", "pack", "gated_ffn(", "dot(x, w, in)"),
    "scale taken for one": ("llama", ATTENTION, "drop-neutral", "attention(heads", "* scale"),
    "one taken for nothing": ("gemma", "final_norm", "drop-neutral", "1 + f32(gain)", ""),
}


@pytest.mark.parametrize("kind", PASSES)
def test_fault_of_a_pass(kind: str) -> None:
    """The rewrite is named, at what it rewrote, before the backend that runs what it made."""
    example, region, rule, line, std = REWRITES[kind]
    with PASSES[kind]():
        report = diff(model(example, layers=2), [Candidate("numpy")], sizes={"b": 1, "s": 5})
    found = report.divergences[0]
    assert (found.candidate, found.region, found.op) == ("-O1", region, rule)
    at_line(found.spans, f"{example}.arch", line, std)


KEYS = f"{ATTENTION}.k"
STATES = {  # the first state that is wrong, its kind, a part of its line, the length that shows it
    "slot one early": ("attention_mask", "append", "input attention_mask", 8),
    "slot one late": ("attention_mask", "append", "input attention_mask", 8),
    "window one narrower": ("layers[1].attention.k", "ring", "attention(heads", 8),
    "ring one late": ("attention_mask", "ring", "input attention_mask", 8),
    "no causal mask": ("layers[1].attention.k", "append", "attention(heads", 8),
    "mask by row": ("layers[1].attention.k", "append", "attention(heads", 8),
    "rotation not advanced": (KEYS, "append", "attention(heads", 8),
    "position not advanced": (KEYS, "append", "attention(heads", 8),
    "wrong tail of a convolution": ("layers[0].mixer.in", "ring", "causal_conv(width", 8),
    "wrong tail of a window": (KEYS, "ring", "attention(heads", 20),
    "recurrence not carried": ("layers[0].retention", "recurrent", "scan s with state", 8),
    "scan not carried": ("layers[0].mixer", "recurrent", "scan s with h", 8),
    "running sum not carried": ("cumsum", "recurrent", "cumsum(int(", 8),
}
# a fault of the derivation is every backend's; one of the op that writes into a cache is its own
CACHES = [*(("numpy", kind) for kind in STATES), ("torch", "slot one early")]


@pytest.mark.parametrize(("backend", "kind"), CACHES)
def test_fault_of_a_cache(backend: str, kind: str) -> None:
    pytest.importorskip(backend)
    broken, (path, sort, line, length) = decode_faults.FAULTS[backend][kind], STATES[kind]
    with broken.fault():
        chosen = [Candidate(backend, 0, "f64")]
        report = diff_chunks(model(broken.example), chosen, sizes={"b": 1, "s": length})
    (found,) = report.divergences
    assert found.stale is not None
    assert (found.stale.slot.path, found.stale.slot.kind) == (path, sort)
    at_line(found.spans, f"{broken.example}.arch", line)


STEPS = [
    *(("numpy", kind) for kind in ("scale dropped", "epsilon")),
    *((b, k) for b in ("numpy", "torch") for k in ("mask bound", "rope pairing")),
    ("torch", "difference swapped"),
]


@pytest.mark.parametrize(("backend", "kind"), STEPS)
def test_fault_of_a_step(backend: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a lowering that is wrong in the program of a step alone: the node, not the state it spoils."""
    pytest.importorskip(backend)
    broken = Faulty(real(backend), FAULTS[backend][kind], strikes=continues)
    monkeypatch.setattr(api, "backend", lambda name: broken if name == backend else real(name))
    expected = EXPECTED[kind]
    chosen = [Candidate(backend, 0)]
    report = diff_chunks(model(expected.model, layers=2), chosen, sizes={"b": 1, "s": 6})
    (found,) = report.divergences
    assert not found.split.whole
    assert found.stale is not None
    assert found.node is not None
    assert found.node.op in expected.ops.split()
    assert found.region.startswith(expected.region)
    assert any(f"  at fault is {found.region}: `{found.node.op}`" in x for x in found.lines())
    at_line(found.spans, f"{expected.model}.arch", expected.line, expected.std)


def check(backend: str, expected: Expected) -> None:
    report = diff(
        model(expected.model, layers=2),
        [Candidate(backend, expected.level)],
        sizes={"b": 1, "s": expected.length},
    )

    (found,) = report.divergences
    assert found.region.startswith(expected.region)
    assert found.op in expected.ops.split()
    at_line(found.spans, f"{expected.model}.arch", expected.line, expected.std)
    assert expected.hint in [hint.words for hint in found.hints] or not expected.hint
    assert not report.agree


def at_line(spans: Sequence[Span], file: str, line: str, std: str = "") -> None:
    """The places of a finding: a line of the user's file, and one of std where `std` is part of it."""
    users, *others = places(spans)
    assert users.source.name.endswith(file)
    assert line in users.source.line(users.line)
    assert not std or [std in other.source.line(other.line) for other in others] == [True]
