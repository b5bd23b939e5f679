"""A step of few rows in C++: it keeps the law, and leaves to PyTorch what it has no text for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from splits import Example, example, law

from archc.backends.torch import few_rows, step
from archc.decoder import Decoder

EXACT = 2e-6  # relative, of float32


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    assert few_rows.built(), "a step needs a C++ compiler"


def decoder(found: Example, **options: object) -> Decoder:
    return found.decoder("torch", step_in_cpp=True, **options)


def steps(made: Decoder) -> list[step.Step | None]:
    return list(made.chunk._steps.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_the_law(name: str) -> None:
    """Caches and rings, padding, sizes that are equal, and an older state that is continued."""
    made = decoder(example(name))
    assert law(example(name), made) <= EXACT
    assert all(steps(made))


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"quant": "int8"}, 1e-5),
        ({"quant": "int4", "cache_dtype": "bf16"}, 1e-5),
        ({"dtype": "bf16"}, 2e-2),
    ],
    ids=["int8", "int4", "bf16"],
)
def test_a_step_gives_what_the_module_gives(options: dict[str, str], bound: float) -> None:
    """With as many threads as there are, and with one; of bf16 what rounding leaves."""
    found = Example("llama", tied=True)  # a table of which rows are taken, and products with it
    case = found.cases[0]
    results = []
    for in_cpp, threads in ((False, 1), (True, 1), (True, 3)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        made = found.decoder("torch", step_in_cpp=in_cpp, **options)
        outputs, _ = found.go_on(made, case, [case.rows - 3, 1, 2])
        torch.set_num_threads(before)
        assert bool(steps(made)) == in_cpp
        assert all(steps(made))
        results.append(found.joined(outputs)["logits"].astype(np.float64))
    wanted, *others = results
    for result in others:
        assert np.abs(result - wanted).max() <= bound * np.abs(wanted).max()


def test_many_rows_are_left_to_pytorch() -> None:
    found = example("llama")
    made = decoder(found)
    ids = np.arange(2 * 8).reshape(2, 8) % 7
    _, state = made(None, input_ids=ids[:, :4])
    made(state, input_ids=ids[:, 4:])
    assert not steps(made)
    made(state, input_ids=ids[:, 4:7])
    assert all(steps(made))


def test_what_has_no_text_runs_as_it_is_emitted() -> None:
    found = example("mamba")
    made, case = decoder(found), found.cases[0]
    outputs, _ = found.go_on(made, case, [case.rows - 2, 1, 1])
    wanted, _ = found.go_on(found.decoder("torch"), case, [case.rows - 2, 1, 1])
    assert steps(made) == [None]
    for name, value in found.joined(outputs).items():
        np.testing.assert_array_equal(value, found.joined(wanted)[name])


def test_by_default_small_models_are_not_worth_a_text() -> None:
    found = example("llama")
    made = found.decoder("torch")
    _, state = made(None, input_ids=np.ones((1, 3), int))
    made(state, input_ids=np.ones((1, 1), int))
    assert not steps(made)
