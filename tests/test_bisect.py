"""A bad rewrite among good ones is found, named and left out."""

from __future__ import annotations

import pytest
from checks import model_of
from click.testing import CliRunner
from graphs import Model, Value, evaluate, layer

from archc.cli import main
from archc.compiler import knobs
from archc.compiler.ir.graph import Node, Program
from archc.compiler.passes import PIPELINE, optimise
from archc.compiler.passes.bisect import bisect
from archc.compiler.rewrite import Edit, Outcome, Pass, Rule
from archc.dsl.diagnostics import InternalError

BLUNT = (
    "model M {\n  d = 4\n  input x: float[b, s, d]\n  output y[b, s, d] = exp(tanh(x)) + sin(x)\n}"
)


def blunt(edit: Edit, node: Node) -> Outcome:
    """Right for a product with a number, which it only turns round; wrong for an exponential."""
    if node.op == "exp":
        return node.inputs[0]
    is_turned = edit[node.inputs[0]].op == "const"
    return None if is_turned else edit.add("mul", node.inputs[::-1])


@pytest.fixture
def injected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass with a wrong rule after the first two."""
    wrong = Pass("inject", "e^x = x", (Rule("blunt", blunt, ("exp", "mul")),))
    monkeypatch.setattr("archc.compiler.passes.PIPELINE", (*PIPELINE[:2], wrong, *PIPELINE[2:]))


def gated(m: Model, x: Value) -> Value:
    return layer(m, x) * (x * 1.0).op("exp") + x * 0.5


def fired(program: Program, limit: int) -> list[str]:
    with knobs.scope(ARCHC_RULE_LIMIT=str(limit)):
        done = optimise(program, verify=evaluate)
    return [x.rule for x in done.sites if x.fired]


@pytest.mark.usefixtures("injected")
def test_the_first_wrong_rewrite_is_found() -> None:
    program = model_of(gated)
    found = bisect(program, evaluate)
    assert found.site is not None
    assert (found.pass_name, found.site.rule) == ("inject", "blunt")
    assert "inject changed `y`" in found.error
    assert "blunt" in fired(program, found.fired - 1)  # right ones, and no error
    with pytest.raises(InternalError, match="inject changed"):
        fired(program, found.fired)


def test_a_right_pipeline_has_none() -> None:
    program = model_of(layer)
    found = bisect(program, evaluate)
    assert (found.error, found.site) == ("", None)
    assert found.fired == sum(x.fired for x in optimise(program).sites)


@pytest.mark.usefixtures("injected")
def test_a_rewrite_that_makes_no_graph_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistyped(edit: Edit, node: Node) -> int:
        return edit.add("size", (), {"axis": node.axes[0]})

    worse = Pass("worse", "x = |x|", (Rule("mistyped", mistyped, ("mul",)),))
    monkeypatch.setattr("archc.compiler.passes.PIPELINE", (PIPELINE[0], worse))
    found = bisect(model_of(gated), evaluate)
    assert (found.pass_name, found.site) == ("worse", None)
    assert "replaces" in found.error


@pytest.mark.usefixtures("injected")
def test_the_command_names_it(tmp_path) -> None:
    file = tmp_path / "model.arch"
    file.write_text(BLUNT)
    result = CliRunner().invoke(main, ["explain", str(file), "--bisect"])
    assert result.exit_code == 70
    assert "rewrite 1 is wrong; ARCHC_RULE_LIMIT=0 leaves it out" in result.output
    assert "inject in main\n  fired    blunt" in result.output
    assert "model.arch:4" in result.output


def test_the_command_says_that_all_is_well(tmp_path) -> None:
    file = tmp_path / "model.arch"
    file.write_text(BLUNT)
    result = CliRunner().invoke(main, ["explain", str(file), "--bisect"])
    assert result.exit_code == 0
    assert "none changes a result beyond rounding" in result.output
