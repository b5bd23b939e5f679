"""A model with a loss: grouped, rotated, capped and windowed attention, both norms, a gate, a tied head."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import archc

LAYERS = """use std
fn log_sum_exp(x[...], a) {
  most = amax(x, a)
  return most + log(sum(exp(x - most), a))
}
model Small {
  vocab = 19; d = 16; window = 5; layers = 2; heads = 4; kv_heads = 2; hidden = 24
  input ids: ids[b, s] < vocab
  input keep: bool[b, s] = true
  input labels: ids[b, s] < vocab or -100 = -100
  time s: valid = keep
  decode s
  shared embed = embedding(vocab, d)
  x = embed(ids)
  repeat layers[i] {
    x += x |> rmsnorm as norm1 |> attention(heads, kv_heads, mask = sliding(window), rotate = rope(),
      score = (a[...], s, t) -> a |> softcap(2.0)) as attention
    x += x |> layernorm as norm2 |> gated_ffn(hidden) as ffn
  }
  z = f32(x |> rmsnorm as last |> unembed(embed.w))
  output logits[b, s, vocab] = z
  picked = (z - log_sum_exp(z, vocab))[vocab: max(labels, 0)]
  loss = -sum(where(labels != -100, picked, 0), b, s)
}
preset large = Small(
  vocab = 32000, d = 4096, window = 4096, layers = 32, heads = 32, kv_heads = 8, hidden = 14336)
"""


def small(folder: Path, preset: str | None = None, **values: int) -> archc.Model:
    path = folder / "small.arch"
    path.write_text(LAYERS)
    return archc.load(path, preset=preset, loss=True, **values)


def batch(length: int) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(length)
    keep = np.ones((2, length), bool)
    keep[1, : length // 3] = False
    labels = noise.integers(0, 19, (2, length))
    labels[0, -1:] = -100
    return {"ids": noise.integers(0, 19, (2, length)), "keep": keep, "labels": labels}
