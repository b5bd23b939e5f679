"""Small things that generate: a tokenizer of letters, and models whose next letter is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

import archc
from archc.generate.face import Face, Lane
from archc.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz?"
TABLE = """model Next {
  vocab = 27
  input ids: ids[b, s] < vocab
  weight table[v: vocab, w: vocab] = normal
  decode s
  output logits[b, s, w] = table[v: ids]
}
"""


def letters(ends: str = "", **options: Any) -> Tokenizer:
    """A tokenizer of one id per letter."""
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    model.decoder = tokenizers.decoders.Fuse()
    return Tokenizer(model, (), frozenset(map(LETTERS.index, ends)), **options)


def bigrams(folder: Path, table: np.ndarray) -> archc.Model:
    """A model whose logits are the row of `table[v, v]` for the last token."""
    path = folder / "next.arch"
    path.write_text(TABLE)
    return archc.load(path, weights={"table": table}, vocab=len(table))


def alphabet(folder: Path) -> archc.Model:
    """The next letter is the likeliest, the one after it half as likely."""
    table = np.full((27, 27), -np.inf)
    for i in range(27):
        table[i, (i + 1) % 27], table[i, (i + 2) % 27] = 0.0, -np.log(2)
    return bigrams(folder, table)


class Whole:
    """A decoder whose logits depend on every token before, in their order; it counts its calls."""

    rows, max_length, inputs = "all", None, ("ids",)

    def __init__(self, vocabulary: int, seed: int, loudness: float = 1.0) -> None:
        self.tables = np.random.default_rng(seed).normal(0, loudness, (7, vocabulary))
        self.face = Face(Lane("ids", None), None, "logits", vocabulary)
        self.calls = 0

    def logits(self, tokens: tuple[int, ...]) -> np.ndarray:
        mixed = 0
        for token in tokens:
            mixed = (3 * mixed + token + 1) % 7
        return self.tables[mixed]

    def __call__(self, state: Any, ids: np.ndarray) -> tuple[dict[str, np.ndarray], Any]:
        self.calls += 1
        before = () if state is None else state
        (new,) = ids.tolist()
        tokens = (*before, *new)
        ends = range(len(before) + 1, len(tokens) + 1)
        return {"logits": np.stack([self.logits(tokens[:n]) for n in ends])[None]}, tokens
