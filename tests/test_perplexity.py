"""Perplexity: which tokens are scored, with what before them, and what the command prints."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from math import log
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from archc.cli import main
from archc.dsl.errors import TextTooShort
from archc.perplexity import own_text, perplexity, windows

TEXT = [3, 0, 4, 2, 5, 4, 6, 5, 0, 5, 0]
VOCABULARY = 7


def surprised_by_place(ids: Sequence[int]) -> np.ndarray:
    """Row r gives token r % 7 the odds 2 to 1 against any other: what it says shows where it is."""
    logits = np.zeros((len(ids), VOCABULARY), np.float32)
    logits[np.arange(len(ids)), np.arange(len(ids)) % VOCABULARY] = log(2)
    return logits


@pytest.mark.parametrize(("window", "stride"), [(4, 2), (4, 3), (5, 1), (11, 5), (100, 50), (2, 1)])
def test_each_token_but_the_first_is_scored_once(window: int, stride: int) -> None:
    scored = []
    for start, first, stop in windows(len(TEXT), window, stride):
        assert start < first <= stop <= start + window
        assert first - start >= min(window - stride, first)  # what it has before it
        scored += range(first, stop)
    assert scored == list(range(1, len(TEXT)))


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_long() -> None:
    found = perplexity(lambda ids: np.zeros((len(ids), VOCABULARY)), TEXT, window=4, stride=2)
    assert found.perplexity == pytest.approx(VOCABULARY)
    assert (found.tokens, found.scored) == (11, 10)


def test_rows_are_matched_with_the_tokens_after_them() -> None:
    found = perplexity(surprised_by_place, TEXT, window=50, stride=25)
    hits = sum(token == place % VOCABULARY for place, token in enumerate(TEXT[1:]))
    assert 0 < hits < 10
    assert found.nll == pytest.approx(log(8) - hits * log(2) / 10)


def test_windows_see_no_more_than_their_own_tokens() -> None:
    asked = []

    def seen(ids: Sequence[int]) -> np.ndarray:
        asked.append(list(ids))
        return np.zeros((len(ids), VOCABULARY))

    perplexity(seen, TEXT, window=6, stride=4)
    assert asked == [TEXT[0:5], TEXT[4:9], TEXT[8:10]]


def test_great_logits_do_not_overflow() -> None:
    found = perplexity(lambda ids: 1e5 * surprised_by_place(ids), [5, 0, 1], window=4, stride=2)
    assert found.nll == 0


def test_a_text_of_one_token_has_nothing_to_score() -> None:
    with pytest.raises(TextTooShort):
        perplexity(surprised_by_place, [1])


def test_the_text_that_comes_with_archc_is_plain_and_long() -> None:
    text = own_text()
    assert len(text.split()) >= 3000
    assert text.isascii()


NEXT = """model Next {
  input ids: ids[b, s] < 3
  weight table[v: 3, w: 3] = normal
  decode s
  output logits[b, s, w] = table[v: ids]
}
checkpoint huggingface "Next" for Next { "table" = table }
"""


def test_the_command(tmp_path: Path) -> None:
    """A table of pairs, whose perplexity can be had by hand."""
    pytest.importorskip("tokenizers")
    from safetensors.numpy import save_file

    table = np.array([[0, 1, 2], [3, 0, 1], [1, 1, 0]], np.float32)
    vocabulary = {
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"}
    }
    (tmp_path / "m").mkdir()
    (tmp_path / "next.arch").write_text(NEXT)
    (tmp_path / "text").write_text("a b b a c a")
    (tmp_path / "m" / "config.json").write_text(json.dumps({"architectures": ["Next"]}))
    whitespace = {"pre_tokenizer": {"type": "Whitespace"}}
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(vocabulary | whitespace))
    save_file({"table": table}, tmp_path / "m" / "model.safetensors")
    args = ["--weights", tmp_path / "m", "--text", tmp_path / "text", "--backend", "numpy"]
    line = ["perplexity", str(tmp_path / "next.arch"), *map(str, args), "--window", "3"]
    result = CliRunner().invoke(main, [*line, "--stride", "1"])
    assert result.exit_code == 0, result.output
    chances = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    ids = [0, 1, 1, 0, 2, 0]
    expected = np.prod([1 / chances[a, b] for a, b in itertools.pairwise(ids)]) ** (1 / 5)
    assert result.stdout.splitlines() == [
        "tokens      6 (5 scored)",
        f"mean nll    {log(expected):.5f} nats",
        f"perplexity  {expected:.4f}",
    ]
    again = CliRunner().invoke(main, [*line, "--json"])
    assert json.loads(again.stdout)["perplexity"] == pytest.approx(expected, rel=1e-6)
    wrong = CliRunner().invoke(main, [*line, "--stride", "3"])
    assert wrong.exit_code == 2
    assert "less than the window" in wrong.output
