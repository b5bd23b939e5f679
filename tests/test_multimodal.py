"""The multimodal example against a small PyTorch model of the same layers, written here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from references import distance
from torch import nn

import archc
from archc.dsl.diagnostics import Diagnostics

EXAMPLE = Path(__file__).parent.parent / "examples" / "multimodal_gpt4.arch"
D, HEADS, HIDDEN, VOCAB, POSITIONS, CHANNELS, PATCH, COUNT = 64, 4, 112, 131, 40, 2, 6, 17
LAYERS = {"text_encoder": 2, "image_encoder": 3, "cross": 2}
EPSILON = 2e-3


class Reference(nn.Module):
    """A text encoder beside an image encoder; what is given of the two goes through cross layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.text_positions = nn.Embedding(VOCAB, D), nn.Embedding(POSITIONS, D)
        self.patch_map = nn.Conv2d(CHANNELS, D, PATCH, stride=PATCH)
        self.start, self.image_positions = nn.Parameter(torch.empty(D)), nn.Embedding(COUNT, D)
        for name, count in LAYERS.items():
            setattr(self, name, nn.ModuleList(layer() for _ in range(count)))
        for name in ("text_norm", "image_norm", "final_norm"):
            setattr(self, name, nn.LayerNorm(D, EPSILON))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        parts, hidden = [], []
        if input_ids is not None and attention_mask is not None:
            words = self.tokens(input_ids) + self.text_positions.weight[: input_ids.shape[1]]
            hidden.append(~attention_mask)
            for block in self.text_encoder:
                words = block(words, src_key_padding_mask=hidden[0])
            parts.append(self.text_norm(words))
        if pixel_values is not None:
            patches = self.patch_map(pixel_values).flatten(2).mT
            start = self.start.expand(len(patches), 1, D)
            patches = torch.cat([start, patches], 1) + self.image_positions.weight
            for block in self.image_encoder:
                patches = block(patches)
            parts.append(self.image_norm(patches))
            hidden.append(torch.zeros(patches.shape[:2], dtype=torch.bool))
        x, hides = torch.cat(parts, 1), torch.cat(hidden, 1)
        for block in self.cross:
            x = block(x, src_key_padding_mask=hides)
        return self.final_norm(x)


def layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        D, HEADS, HIDDEN, 0.0, "gelu", EPSILON, batch_first=True, norm_first=True
    )


def reference(weights: Mapping[str, np.ndarray]) -> Reference:
    """The PyTorch model in float64 with the weights of the example; those it lacks stay random."""
    made = Reference().double().eval()
    state = made.state_dict()
    for name in state:
        value = taken(name, weights)
        if value is not None:
            state[name] = torch.from_numpy(value.reshape(tuple(state[name].shape)).copy())
    made.load_state_dict(state)
    return made


NAMES = {
    "norm1.": "norm1.", "norm2.": "norm2.", "linear1.": "ffn.in.", "linear2.": "ffn.out.",
    "self_attn.out_proj.": "attention.o.",
}  # fmt: skip


def taken(name: str, weights: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The example's weight for an entry of the PyTorch state."""
    head, _, kind = name.rpartition(".")
    if name == "start" or (kind in ("weight", "bias") and head.count(".") == 0):
        names = [name, f"{head}.w", f"{head}.gain"] if kind != "bias" else [f"{head}.b"]
        return next((weights[n] for n in names if n in weights), None)
    stack, number, inner = name.split(".", 2)
    path = f"{stack}[{number}].layer."
    if inner.startswith("self_attn.in_proj_"):
        end = inner.removeprefix("self_attn.in_proj_")[0]
        parts = [weights.get(f"{path}attention.{n}.{end}") for n in "qkv"]
        rows = [p.reshape(D, -1) for p in parts if p is not None]
        return np.concatenate(rows) if rows else None
    short = next(short for long, short in NAMES.items() if inner.startswith(long))
    end = ".b" if kind == "bias" else ".gain" if short.startswith("norm") else ".w"
    return weights.get(path + short.removesuffix(".") + end)


def arrays() -> dict[str, np.ndarray]:
    noise = np.random.default_rng(3)
    mask = np.ones((2, 9), bool)
    mask[0, 6:], mask[1, 2] = False, False
    return {
        "input_ids": noise.integers(0, VOCAB, (2, 9)),
        "attention_mask": mask,
        "pixel_values": noise.standard_normal((2, CHANNELS, 24, 24)),
    }


CASES = {
    "both": ({}, ("input_ids", "attention_mask", "pixel_values")),
    "text": ({"images": False}, ("input_ids", "attention_mask")),
    "images": ({"text": False}, ("pixel_values",)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[archc.api.Model, dict[str, np.ndarray]]:
    switches, names = CASES[request.param]
    model = archc.load(EXAMPLE, preset="tiny", eps=EPSILON, **switches).with_random_weights(5)
    return model, {n: a for n, a in arrays().items() if n in names}


@pytest.mark.parametrize(
    ("backend", "dtype", "bound"),
    [("numpy", "f64", 1e-12), ("torch", "f32", 1e-5), ("triton", "f32", 1e-5)],
)
def test_agrees_with_pytorch(case, backend: str, dtype: str, bound: float) -> None:
    model, inputs = case
    with torch.no_grad():
        expected = reference(model.weights)(**{n: torch.from_numpy(a) for n, a in inputs.items()})
    found = model.compile(backend, dtype=dtype)(**inputs)["hidden"]
    seen = np.ones(found.shape[:2], bool)
    if "attention_mask" in inputs:
        seen[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
    assert found.shape == tuple(expected.shape)
    assert distance(found[seen], expected.numpy()[seen]) <= bound


def test_one_modality_has_to_be_there() -> None:
    with pytest.raises(Diagnostics) as caught:
        _ = archc.load(EXAMPLE, preset="tiny", text=False, images=False).program
    assert [error.id for error in caught.value.errors] == ["unknown-name"]
