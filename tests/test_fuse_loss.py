"""A loss over a vocabulary that is never stored whole: a loop over columns of the head's matrix."""

from __future__ import annotations

import numpy as np
import pytest
from checks import same
from graphs import evaluate

import archc
from archc.backends.numpy import NumpyBackend
from archc.compiler.elaborate import Request, elaborate, module_of, the_model
from archc.compiler.ir.graph import Program
from archc.compiler.passes import Optimised, fuse_loss, optimise
from archc.compiler.passes.verify import RandomWeights
from archc.dsl.diagnostics import ArchError
from archc.dsl.parse import parse
from archc.dsl.span import Source

TEXT = """use std
fn log_sum_exp(x[...], a) {
  most = amax(x, a)
  return most + log(sum(exp(x - most), a))
}
model Head {
  d = 8; vocab = 19; bias = false; cap = 0.0; tied = false; more = 3
  input ids: ids[b, s] < vocab
  input labels: ids[b, s] < vocab or -100 = -100
  input others: ids[b, s, more] < vocab
  shared embed = embedding(vocab, d)
  h = embed(ids) |> rmsnorm(1e-5) as norm
  y = (h |> unembed(embed.w)) if tied else (h |> linear(vocab, bias = bias) as head)
  z = f32(y)
  z = tanh(z / cap) * cap if cap > 0.0 else z
  log_p[b, s, vocab] = z - log_sum_exp(z, vocab)
  target = max(labels, 0)
  %s
}
"""
LOSS = "output logits[b, s, vocab] = y\n  loss = -sum(where(labels != -100, log_p[vocab: target], 0), b, s)"
COLUMNS = 5  # of a tile here: four tiles, the last one of four


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_loss, "COLUMNS", COLUMNS)


def model(end: str = LOSS, outputs: tuple[str, ...] = ("loss",), **values: object) -> Program:
    module = module_of(parse(Source("head.arch", TEXT % end)))
    program = elaborate(module, the_model(module, None), Request(values, loss=True))
    return program.returning(outputs)


def optimised(program: Program) -> Optimised:
    return optimise(program, disable=["pack-weights"])


def losses(done: Optimised) -> list[tuple[bool, str]]:
    return [(x.fired, x.reason) for x in done.sites if x.rule == "loss"]


@pytest.mark.parametrize("values", [{}, {"bias": True}, {"cap": 3.0}, {"tied": True}], ids=str)
def test_logits_are_never_whole(values: dict[str, object]) -> None:
    program = model(**values)
    done = optimised(program)
    assert [fired for fired, _ in losses(done)] == [True]
    computed = [
        n for n in done.program.main.nodes if n.op not in ("weight", "derived", "broadcast")
    ]
    assert not [n for n in computed if any(a.name == "vocab" for a in n.axes) and len(n.axes) > 1]
    same(program, done.program)
    assert optimised(done.program).program == done.program


def test_each_rule_is_verified() -> None:
    optimise(model(), disable=["pack-weights"], verify=evaluate)


LOGITS = "output logits[b, s, vocab] = y\n  "
SEVERAL = LOGITS + "loss = -sum(log_p[vocab: others], b, s, more)"
REVERSED = LOGITS + "loss = sum(z[vocab: size(vocab) - 1 - index(vocab)] * log_p, b, s, vocab)"
DECLINED = {
    "the logits are an output": (LOSS, ("loss", "logits")),
    "reads the logits too": (LOSS + "\n  output doubled[b, s, vocab] = z * 2", ("loss", "doubled")),
    "reads the logits": (REVERSED, ("loss",)),
}


@pytest.mark.parametrize("why", DECLINED)
def test_logits_that_are_read_otherwise_are_stored(why: str) -> None:
    text, outputs = DECLINED[why]
    program = model(text, outputs)
    done = optimised(program)
    ((fired, reason),) = losses(done)
    assert not fired
    assert why in reason
    same(program, done.program)


def test_several_columns_of_a_row_may_be_picked() -> None:
    program = model(SEVERAL)
    done = optimised(program)
    assert [fired for fired, _ in losses(done)] == [True]
    same(program, done.program)


def test_a_sum_of_other_axes_too_is_no_loss() -> None:
    program = model(LOGITS + "most = amax(z, vocab)\n  loss = sum(exp(z - most), b, s, vocab)")
    assert losses(optimised(program)) == []


def test_what_is_stored_anyway_is_picked_from() -> None:
    program = model(LOSS + "\n  output scores[b, s, vocab] = log_p", ("loss", "scores"))
    assert not [x for x in optimised(program).sites if x.rule == "pick-first"]


def test_few_columns_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_loss, "COLUMNS", 19)
    assert losses(optimised(model())) == []


def ran(program: Program, outputs: str = "loss", **values: np.ndarray) -> list[np.ndarray]:
    """The loss as the text has it and optimised."""
    weights = RandomWeights(program)
    programs = program, optimised(program).program
    loaded = [NumpyBackend().load(p, weights, dtype="f64", tile=4) for p in programs]
    return [executable.run(values)[outputs] for executable in loaded]


def given(labels: list[list[int]]) -> dict[str, np.ndarray]:
    return {
        "ids": np.array([[3, 0, 18]]),
        "labels": np.array(labels),
        "others": np.zeros((1, 3, 3), int),
    }


@pytest.mark.parametrize(("kept", "finite"), [(0, False), (1, True), (7, True)])
def test_a_row_of_nothing_is_as_it_was(kept: int, finite: bool) -> None:
    """A row of minus infinity alone has no log-probabilities; one whose first tile is has."""
    masked = f"w = where(index(vocab) > 18 - {kept}, z, -inf)\n  "
    masked += "masked[b, s, vocab] = w - log_sum_exp(w, vocab)\n  "
    program = model(masked + LOSS.replace("log_p", "masked"))
    assert [fired for fired, _ in losses(optimised(program))] == [True]
    before, after = ran(program, **given([[18, -100, 18]]))
    assert np.isfinite(before) == finite
    np.testing.assert_allclose(after, before, rtol=1e-12)


def test_a_column_that_is_not_there_is_an_error_still() -> None:
    program = model(LOSS.replace("target]", "target + 1]"))
    for level in (0, 1):
        executable = NumpyBackend().load(
            optimise(program, level=level).program, RandomWeights(program)
        )
        with pytest.raises(ArchError, match="index 19 is outside"):
            executable.run(given([[18, 0, 1]]))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_backends_run_the_loop(backend: str) -> None:
    program = model(bias=True)
    runner, weights = archc.backend(backend), RandomWeights(program)
    done = optimise(program, disable=runner.unwanted_passes("f32"))
    assert [fired for fired, _ in losses(done)] == [True]
    values = given([[4, -100, 18]])
    (gold,) = NumpyBackend().load(program, weights, dtype="f64").run(values).values()
    (loss,) = runner.load(done.program, weights).run(values).values()
    np.testing.assert_allclose(loss, gold, rtol=1e-5)


def test_gradients_are_those_of_the_text() -> None:
    import torch

    program, runner = model(), archc.backend("torch")
    weights, found = RandomWeights(program), []
    for disabled in ((), ("fuse-loss",)):
        done = optimise(program, disable=(*runner.unwanted_passes("f64", train=True), *disabled))
        loaded = runner.load(done.program, weights, dtype="f64", train=True)
        module = loaded.module
        module(**{k: torch.from_numpy(v) for k, v in given([[4, -100, 18]]).items()})[
            "loss"
        ].backward()
        found.append({name: p.grad.numpy() for name, p in module.named_parameters()})
    for name, gradient in found[1].items():
        np.testing.assert_allclose(found[0][name], gradient, rtol=1e-9, atol=1e-12)
