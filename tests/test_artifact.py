"""A layer compiled by itself: same results for every layer of its kind and every free integer."""

from __future__ import annotations

from pathlib import Path

import torch

from archc.backends.torch.artifact import Artifact, compiled


class Layer(torch.nn.Module):
    """A row of a running sum over what was seen: it writes to the cache and reads all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(6), requires_grad=False)

    def forward(self, x, past, cache):
        cache[past : past + x.shape[0]] = x
        return x + torch.tanh(cache[: past + x.shape[0]].sum(0)) * self.w, cache[past] * 2


def test_layers_of_a_kind_and_free_integers(tmp_path: Path) -> None:
    layers = [Layer(), Layer()]
    arguments = layers[0], torch.randn(1, 6), 3, torch.zeros(40, 6)
    made = compiled(Layer.forward, arguments, free=("past",))
    made.save(tmp_path / "layer.bin")
    for artifact in (made, Artifact.load(tmp_path / "layer.bin")):
        call = artifact.bind()
        ours, theirs = torch.zeros(40, 6), torch.zeros(40, 6)
        for past in (0, 1, 2, 7, 39):
            x = torch.randn(1, 6)
            for layer in layers:
                got, wanted = call(layer, x, past, ours), layer(x, past, theirs)
                torch.testing.assert_close(tuple(got), wanted)
        assert torch.equal(ours, theirs)
