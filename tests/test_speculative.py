"""A draft changes how fast a text comes, not which, nor how likely it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from toys import Whole, alphabet, bigrams, letters

import archc
from archc.dsl.errors import GenerationSetting, OtherVocabulary
from archc.generate import Sampling, decoder_of, speculative
from archc.generate.batches import together
from archc.generate.rows import Row
from archc.generate.speculative import follower, speculate

EXAMPLES = Path(__file__).parent.parent / "examples"
VOCABULARY, PROMPT, LENGTH, TEXTS = 5, (2, 0), 3, 2500
SAMPLERS = [
    Sampling(1.0),
    Sampling(0.7, top_k=3, repetition_penalty=1.3),
    Sampling(1.4, top_p=0.8, min_p=0.05),
]


def row(sampling: Sampling, seed: int = 0, limit: int = LENGTH) -> Row:
    return Row(PROMPT, (), sampling, seed, limit, frozenset(), None)


def drafted(target: Whole, draft: Whole, one: Row, ahead: int) -> Row:
    sides = (follower(side, side.face, one, {}) for side in (target, draft))
    speculate(*sides, one, ahead)
    return one


def likelihoods(target: Whole, sampling: Sampling) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every text of the target with its probability."""
    for text in product(range(VOCABULARY), repeat=LENGTH):
        p = 1.0
        for n, token in enumerate(text):
            before = PROMPT + text[:n]
            p *= sampling.distribution(target.logits(before), before)[token]
        yield text, p


def chi_square(target: Whole, draft: Whole, sampling: Sampling, ahead: int) -> tuple[float, float]:
    """The statistic of `TEXTS` drafted texts against the target's, and its 1 - 1e-4 quantile."""
    rows = [drafted(target, draft, row(sampling, seed), ahead) for seed in range(TEXTS)]
    assert sum(r.accepted for r in rows) < sum(r.drafted for r in rows)
    counts = Counter(tuple(r.ids) for r in rows)
    expected = {text: TEXTS * p for text, p in likelihoods(target, sampling)}
    assert all(expected[text] > 0 for text in counts)
    cells = [(counts[t], e) for t, e in expected.items() if e >= 5]
    rest = [(counts[t], e) for t, e in expected.items() if 0 < e < 5]
    cells.append((sum(c for c, _ in rest), sum(e for _, e in rest)))
    statistic = sum((c - e) ** 2 / e for c, e in cells if e)
    freedom = len(cells) - 1
    # Wilson and Hilferty, 1931
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.719 * (2 / (9 * freedom)) ** 0.5) ** 3
    return statistic, quantile


@pytest.mark.parametrize("sampling", SAMPLERS, ids=str)
def test_texts_are_distributed_as_without_a_draft(sampling: Sampling) -> None:
    statistic, quantile = chi_square(Whole(VOCABULARY, 1), Whole(VOCABULARY, 2), sampling, 2)
    assert statistic < quantile


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("remainder", lambda p, q: p), ("remainder", lambda p, q: np.ones_like(p))],
)
def test_a_wrong_rule_is_noticed(name: str, wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculative, name, wrong)
    statistic, quantile = chi_square(Whole(VOCABULARY, 1), Whole(VOCABULARY, 2), Sampling(1.0), 2)
    assert statistic > quantile


@pytest.mark.parametrize("ahead", [1, 2, 3, 7])
@pytest.mark.parametrize("limit", [1, 2, 9, 40])
def test_greedy_text_is_the_one_without_a_draft(ahead: int, limit: int) -> None:
    for seed in range(4):
        target, draft = Whole(VOCABULARY, seed), Whole(VOCABULARY, seed + 50)
        plain = row(Sampling(), limit=limit)
        together(target, target.face, [plain], {})
        found = drafted(target, draft, row(Sampling(), limit=limit), ahead)
        assert (found.ids, found.reason) == (plain.ids, plain.reason)


def test_a_draft_that_is_right_saves_runs() -> None:
    target, draft = Whole(VOCABULARY, 1), Whole(VOCABULARY, 1)
    found = drafted(target, draft, row(Sampling(), limit=31), 5)
    assert found.drafted == found.accepted == 25
    assert target.calls == 1 + 5  # the prompt, then six tokens a run


def test_a_draft_that_is_wrong_costs_little() -> None:
    """What is read again is bounded: two runs of the target for a token at worst."""
    target, draft = Whole(VOCABULARY, 1), Whole(VOCABULARY, 1)
    draft.tables = -target.tables
    found = drafted(target, draft, row(Sampling(), limit=40), 4)
    assert found.accepted == 0
    assert target.calls <= 2 * 40


# --------------------------------------------------------------------------------- models


def test_a_model_drafts_for_a_model() -> None:
    """Float64, the draft a neighbour of the model: some tokens are refused, none is changed."""
    model = archc.load(EXAMPLES / "llama.arch", preset="tiny").with_random_weights(0)
    near = {p: np.asarray(w) * 1.02 for p, w in model.given_weights().items()}
    other = archc.load(EXAMPLES / "llama.arch", preset="tiny", weights=near)
    prompts, options = [[3, 1, 4, 1, 5], [9, 2]], {"backend": "numpy", "dtype": "f64"}
    plain = model.generate(prompts, max_tokens=24, **options)
    drafted = model.generate(prompts, max_tokens=24, draft=other, draft_tokens=3, **options)
    assert [r.ids for r in drafted] == [r.ids for r in plain]
    assert sum(r.accepted for r in drafted) > 0
    for result in drafted:
        assert result.accepted <= result.drafted


def test_a_stop_ends_a_drafted_text(tmp_path: Path) -> None:
    model = alphabet(tmp_path)
    options = {"tokenizer": letters("k"), "backend": "numpy", "draft": model, "draft_tokens": 5}
    (found,) = model.generate("a", stop="gh", **options)
    assert (found.text, found.reason) == ("bcdef", "stop")
    (found,) = model.generate("a", **options)
    assert (found.text, found.reason) == ("bcdefghij", "end")
    (found,) = model.generate("a", max_tokens=8, max_length=6, **options)
    assert (found.text, found.reason) == ("bcdef", "max_length")


def test_a_draft_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    model, other = alphabet(tmp_path), bigrams(tmp_path, np.zeros((9, 9)))
    with pytest.raises(OtherVocabulary, match="it has 9 tokens, not 27"):
        model.generate([[1]], draft=other, backend="numpy")


def test_a_decoder_of_last_rows_cannot_check_a_draft(tmp_path: Path) -> None:
    model = alphabet(tmp_path)
    decoder = decoder_of(model, backend="numpy")
    with pytest.raises(GenerationSetting, match="decoder"):
        model.generate([[1]], draft=model, decoder=decoder, backend="numpy")
    decoder = decoder_of(model, rows="all", backend="numpy")
    (found,) = model.generate([[1]], draft=decoder, decoder=decoder, max_tokens=3)
    assert found.ids == (2, 3, 4)
