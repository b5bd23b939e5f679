"""A fault in one lowering is found and named: the node's region, its op, its line of the text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import FAULTS, Faulty

import archc
from archc import api
from archc.diff import Candidate, diff
from archc.diff.regions import places

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


ATTENTION, NORM = "layers[0].attention", "layers[0].norm1"
EXPECTED = {
    "scale dropped": Expected(
        "llama", ATTENTION, "dot mul const", "attention(heads", "dot(q, k, e)"
    ),
    "mask bound": Expected("llama", ATTENTION, "le", "attention(heads", "slot(t) <= slot(s)"),
    "rope pairing": Expected("llama", ATTENTION, "split pick", "turn(x, t, length)", "pair"),
    "epsilon": Expected("llama", NORM, "const", "rmsnorm(eps) as norm1", "+ eps"),
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


@pytest.mark.parametrize(("backend", "kind"), CASES)
def test_fault(backend: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    monkeypatch.setattr(api, "backend", lambda name: Faulty(real(name), FAULTS[backend][kind]))
    check(backend, EXPECTED[kind])


@pytest.mark.parametrize("backend", FAULTS)
@pytest.mark.parametrize("part", ["down", "up"])
def test_stale_weight(backend: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight of a layer is another layer's: one read as it is, one packed with others."""
    pytest.importorskip(backend)

    def reads(path: str) -> str:
        return path.replace(f"layers[1].ffn.{part}", f"layers[0].ffn.{part}")

    monkeypatch.setattr(api, "backend", lambda name: Faulty(real(name), reads=reads))
    check(backend, Expected("llama", f"layers[1].ffn.{part}", "weight", "as ffn", "weight w["))


def check(backend: str, expected: Expected) -> None:
    model = archc.load(EXAMPLES / f"{expected.model}.arch", preset="tiny", layers=2)
    report = diff(
        model.with_random_weights(0),
        [Candidate(backend, expected.level)],
        sizes={"b": 1, "s": expected.length},
    )

    (found,) = report.divergences
    users, std = places(found.spans)
    assert found.region.startswith(expected.region)
    assert found.op in expected.ops.split()
    assert users.source.name.endswith(f"{expected.model}.arch")
    assert expected.line in users.source.line(users.line)
    assert expected.std in std.source.line(std.line)
    assert not report.agree
