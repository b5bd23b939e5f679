"""What nobody reads of a loop: dropped where it is sound, results unchanged, and said in the report."""

from __future__ import annotations

import pytest
from bundled import example
from checks import only
from graphs import evaluate
from small_models import program

from archc.compiler.ir.verify import verify
from archc.compiler.passes import Optimised, optimise

HEAD = "model M {{ d = 4; n = 4\n  input x: float[b, s, d]\n  {body}\n}}"


def dropped(body: str) -> tuple[Optimised, list[str]]:
    """The program after this pass and canonicalisation, checked, and what the sites say."""
    done = optimise(program(HEAD.format(body=body)), disable=only("drop-unread"), verify=evaluate)
    verify(done.program)
    return done, [s.reason for s in done.sites if s.pass_name == "drop-unread"]


CASES = {
    "feeds only itself": (
        "y = x; l = 0.0\n  repeat layers[i: n] { y = exp(y); l += sum(y, b, s, d) }\n"
        "  output z[b, s, d] = y",
        ["nobody reads `l`"],
    ),
    "is read by what is read": (
        "y = x; l = 0.0\n  repeat layers[i: n] { l += 1.0; y = y * l }\n  output z[b, s, d] = y",
        [],
    ),
    "kinds differ": (
        "y = x; l = 0.0\n"
        "  repeat layers[i: n] { y = exp(-y); if i % 2 == 0 { l += sum(y, b, s, d) } }\n"
        "  output z[b, s, d] = y",
        ["nobody reads `l`"],
    ),
    "last layers": (
        "y = x; z = x\n  repeat layers[i: n] { y = exp(-y); if i == 1 { z = y } }\n"
        "  output z[b, s, d] = z",
        ["nobody reads 2 of 4 layers, the last"],
    ),
    "no layer": (
        "y = x; z = x\n  repeat layers[i: n] { y = exp(-y); if i == 7 { z = y } }\n"
        "  output z[b, s, d] = z * 2",
        ["nobody reads `y`, 4 of 4 layers, the last"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_nobody_reads(case: str) -> None:
    body, expected = CASES[case]
    _, reasons = dropped(body)
    assert reasons == expected


def test_layers_of_a_tower_behind_what_is_read_do_not_run() -> None:
    done = optimise(example("llava"), verify=evaluate)
    loops = {n.attrs.string("path"): n for n in done.program.main.nodes if n.op == "repeat"}
    assert loops["tower"].attrs["indices"] == (0, 1)
    assert len(example("llava").parameters) == len(done.program.parameters)


def test_router_losses_run_only_when_they_are_read() -> None:
    done = optimise(example("switch"))
    loops = [n for n in done.program.main.nodes if n.op == "repeat"]
    assert [len(n.types) for n in loops] == [1, 1]
    assert optimise(done.program).program == done.program
