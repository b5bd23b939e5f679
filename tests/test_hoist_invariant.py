"""What layers compute alike: once before the loop where that is sound, results unchanged, and said."""

from __future__ import annotations

import pytest
from bundled import example
from checks import only
from graphs import evaluate
from small_models import program

from archc.compiler.ir.verify import verify
from archc.compiler.passes import Optimised, optimise

HEAD = (
    "use std\nmodel M {{ d = 4; n = 3\n  input x: float[b, s, d]\n  input z: float[s]\n  {body}\n}}"
)


def hoisted(body: str) -> tuple[Optimised, list[tuple[bool, str]]]:
    """The program after this pass and canonicalisation, checked, and what the sites say."""
    found = program(HEAD.format(body=body))
    done = optimise(found, disable=only("hoist-invariant"), verify=evaluate)
    verify(done.program)
    sites = [s for s in done.sites if s.pass_name == "hoist-invariant"]
    return done, [(s.fired, s.reason) for s in sites]


ONCE = (True, "once for 3 layers")
CASES = {
    "of what is captured": ("y = x\n  repeat l[i: n] { y += cos(z) }", [ONCE]),
    "of slots": ("y = x\n  repeat l[i: n] { y += sin(position(s) * 1.0) }", [ONCE]),
    "through a view": (
        "y = x\n  repeat l[i: n] { c = exp(z); y += c[s -> (u: 1, s)][u: 0] }",
        [ONCE],
    ),
    "the last of a chain": ("y = x\n  repeat l[i: n] { y += cos(sin(exp(z))) }", [ONCE]),
    "two that share one": (
        "y = x\n  repeat l[i: n] { a = exp(z); y = y * cos(a) + sin(a) }",
        [ONCE, ONCE],
    ),
    "of what is carried": ("y = x\n  repeat l[i: n] { y = cos(y) }", []),
    "of the number of a layer": ("y = x\n  repeat l[i: n] { y += cos(z * i) }", []),
    "what a weight of a layer is applied to": (
        "y = x\n  repeat l[i: n] { y += exp(x) |> linear(d) }",
        [ONCE],
    ),
    "only a comparison": ("y = x\n  repeat l[i: n] { y = where(z > 0, y, -y) }", []),
    "larger than what is carried": (
        "y = 0.0\n  repeat l[i: n] { y += sum(exp(x) * y, b, s, d) }",
        [(False, "it is larger than what the loop carries")],
    ),
    "in some kinds": (
        "y = x\n  repeat l[i: n] { if i % 2 == 0 { y += cos(z) } else { y = exp(-y) } }",
        [(True, "once for 2 layers")],
    ),
    "in inner layers": (
        "y = x\n  repeat l[i: n] { repeat m[j: 2] { y += cos(z) } }",
        [(True, "once for 2 layers"), ONCE],
    ),
    "where layers may stop": (
        "y = x\n  repeat l[i: n] { y += cos(z) } until amax(y, b, s, d) > 9.0",
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_layers_compute_alike(case: str) -> None:
    body, expected = CASES[case]
    done, sites = hoisted(f"{body}\n  output r = y")
    assert sites == expected
    fired = any(f for f, _ in expected)
    assert ("cos" in {n.op for n in done.program.main.nodes}) == (fired and "cos" in body)


@pytest.mark.parametrize("program_of", ["full", "chunk"])
def test_angles_of_a_rotary_turn_are_computed_once(program_of: str) -> None:
    from archc.compiler.incremental import derive

    given = example("llama")
    given = given if program_of == "full" else derive(given).chunk
    done = optimise(given, disable=["fuse-pointwise", "fuse-linear"])
    for op in ("cos", "sin"):
        where = [f.name for f in done.program.functions for n in f.nodes if n.op == op]
        assert where == ["main"]
    (layers,) = (f for f in given.functions if f.name == "layers")
    for angle in (n for n in layers.nodes if n.op == "cos"):
        place = done.value_map.find("layers", angle.id)
        assert place is not None
        assert done.program.function("layers")[place.id].op == "input"
