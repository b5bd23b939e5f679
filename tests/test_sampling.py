"""The distribution of the next token: filters against transformers, draws against the distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as reference

from archc.dsl.diagnostics import ArchError
from archc.dsl.errors import GenerationSetting, LogitsNotNumbers
from archc.generate import Sampling
from archc.generate.sampling import draw

SEEN = [3, 3, 17, 40]
CASES = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 0.8, "top_p": 0.7},
    {"temperature": 1.0, "top_p": 0.0001},
    {"temperature": 1.5, "min_p": 0.2},
    {"temperature": 1.0, "repetition_penalty": 1.7},
    {"temperature": 1.0, "repetition_penalty": 0.5},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.2},
]


def processors(
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
) -> list[reference.LogitsProcessor]:
    found: list[reference.LogitsProcessor] = []
    if repetition_penalty != 1:
        found.append(reference.RepetitionPenaltyLogitsProcessor(repetition_penalty))
    found.append(reference.TemperatureLogitsWarper(temperature))
    if top_k is not None:
        found.append(reference.TopKLogitsWarper(top_k))
    if top_p is not None:
        found.append(reference.TopPLogitsWarper(top_p))
    if min_p is not None:
        found.append(reference.MinPLogitsWarper(min_p))
    return found


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_filters_are_those_of_transformers(options: dict[str, float], seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, 50)
    scores = torch.from_numpy(logits)[None].clone()
    for process in processors(**options):
        scores = process(torch.tensor([SEEN]), scores)
    expected = torch.softmax(scores, -1)[0].numpy()
    np.testing.assert_allclose(Sampling(**options).distribution(logits, SEEN), expected, atol=1e-12)


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    p = Sampling().distribution(np.array([1.0, 5.0, 5.0, -np.inf]), [])
    assert p.tolist() == [0, 1, 0, 0]
    p = Sampling(repetition_penalty=2.0).distribution(np.array([1.0, 5.0, 4.0, -1.0]), [1])
    assert p.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.5}], ids=str)
def test_of_equal_tokens_the_first_stay(options: dict[str, float]) -> None:
    p = Sampling(temperature=1.0, **options).distribution(np.zeros(4), [])
    assert p.tolist() == [0.5, 0.5, 0, 0]


def test_a_cold_sample_is_greedy() -> None:
    logits = np.array([1.0, 5.0, 4.9, -np.inf])
    for temperature in (1e-3, 1e-310):
        assert Sampling(temperature).distribution(logits, []).argmax() == 1
        assert Sampling(temperature).distribution(logits, []).max() == 1


def test_draws_follow_the_distribution() -> None:
    p = np.array([0.1, 0.0, 0.6, 0.3])
    random = np.random.default_rng(0)
    drawn = np.bincount([draw(p, random) for _ in range(4000)], minlength=4) / 4000
    assert drawn[1] == 0
    np.testing.assert_allclose(drawn, p, atol=0.03)


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(bad: list[float], temperature: float) -> None:
    with pytest.raises(LogitsNotNumbers):
        Sampling(temperature).distribution(np.array(bad), [])


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(GenerationSetting) as caught:
        Sampling(**options)
    assert isinstance(caught.value, ArchError)
    assert caught.value.name in options
