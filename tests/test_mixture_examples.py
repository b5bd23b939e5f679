"""What mixtures promise beyond their logits: losses, dropping, and either order of a product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bundled import FOLDER
from references import REFERENCES, SWITCH, Reference, batch, distance

import archc

SWITCH_CLASS = "SwitchTransformersForConditionalGeneration"


def test_the_loss_of_switch_is_that_of_the_class(tmp_path: Path) -> None:
    """With one sparse layer in each stack: over several, the class takes one balance of them all."""
    coefficients = {"router_z_loss_coef": 0.02, "router_aux_loss_coef": 0.03}
    reference = Reference(
        "switch", SWITCH_CLASS, SWITCH | coefficients | {"num_layers": 3, "num_decoder_layers": 2}
    )
    theirs = reference.build(tmp_path).double()
    inputs = {k: v for k, v in batch("switch").items() if "mask" not in k}
    given = {k: torch.from_numpy(v) for k, v in inputs.items()}
    with torch.no_grad():
        made = theirs(**given, output_router_logits=True)
    z = made.encoder_z_loss + made.decoder_z_loss
    balance = made.encoder_aux_loss + made.decoder_aux_loss
    model = archc.load(FOLDER / "switch.arch", weights=tmp_path, loss=True)
    found = model.compile("numpy", dtype="f64", level=0)(**inputs)["loss"]
    assert np.isclose(found, 0.02 * z + 0.03 * balance, rtol=1e-6)


@pytest.mark.parametrize("capacity", [1, 3])
def test_a_text_in_parts_drops_what_the_whole_text_drops(capacity: int) -> None:
    """Capacity counts all earlier tokens: the last position is one and the same at any length."""
    model = archc.load(
        FOLDER / "switch.arch", preset="tiny", capacity=capacity
    ).with_random_weights(3)
    compiled = model.compile("numpy", dtype="f64", level=0)
    given = {k: v for k, v in batch("switch").items() if "mask" not in k}
    whole = compiled(**given)["logits"]
    for length in (1, 4, 7):
        part = given | {"decoder_input_ids": given["decoder_input_ids"][:, :length]}
        assert distance(compiled(**part)["logits"], whole[:, :length]) <= 1e-12
    free = archc.load(FOLDER / "switch.arch", preset="tiny", capacity=64).with_random_weights(3)
    assert distance(free.compile("numpy", dtype="f64")(**given)["logits"], whole) > 1e-3


ABSORBED = """  latent = joint[c: 0..rank] |> rmsnorm(1e-6) as kv_norm
  near = rotate(joint[c: rank..][c -> e], s)
  shared kv = linear(heads, e: plain + value)
  expanded = latent |> kv  # read by nothing: it gives the weight its axes
  asked[..., s, heads, c] = dot(q[e: 0..plain], kv.w[e: 0..plain], e)
  own[..., s, heads, t] = dot(asked, latent[s -> t], c)
  a = scale * (own + dot(rotate(q[e: plain..], s), near[s -> t], e))
  p = float(softmax(where(causal(s, t), f32(a), -inf), t))
  seen[..., s, heads, c] = dot(p, latent[s -> t], t)
  y[..., s, h] = dot(seen, kv.w[e: plain..], c)[(heads, e) -> h]
"""


def test_deepseek_attention_in_either_order_of_its_product(tmp_path: Path) -> None:
    """q (W c) = (W^T q) c and p (W c) = W (p c): against the latent, with no key or value expanded."""
    REFERENCES["deepseek-v2"].build(tmp_path)
    inputs = batch("deepseek_v2")
    text = (FOLDER / "deepseek_v2.arch").read_text()
    start, end = text.index("  kv = joint"), text.index("  return y |> linear(d, bias = bias) as o")
    other = tmp_path / "absorbed.arch"
    other.write_text(text[:start] + ABSORBED + text[end:])
    results = [
        archc.load(path, weights=tmp_path).compile("numpy", dtype="f64", level=0)(**inputs)
        for path in (FOLDER / "deepseek_v2.arch", other)
    ]
    kept = inputs["attention_mask"].astype(bool)
    expanded, absorbed = (r["logits"][kept] for r in results)
    assert 0 < distance(absorbed, expanded) <= 1e-12


def test_experts_without_a_token_are_no_special_case() -> None:
    """One token for eight experts: six are idle, and every backend gives the same."""
    model = archc.load(FOLDER / "deepseek_v2.arch", preset="tiny").with_random_weights(1)
    given = {"input_ids": np.array([[7]])}
    expected = model.compile("numpy", dtype="f64", level=0)(**given)["logits"]
    for backend in ("numpy", "torch", "triton"):
        found = model.compile(backend, dtype="f32")(**given)["logits"]
        assert distance(found, expected) <= 1e-5
