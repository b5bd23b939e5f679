"""Decoding on PyTorch: one copy of the weights, and few compiled programs for many layers and lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import archc
from archc.compiler.incremental import derive
from archc.compiler.passes import optimise

EXAMPLE = Path(__file__).parents[1] / "examples" / "llama.arch"
TOKENS = np.random.default_rng(0).integers(0, 128, (4, 40))


@pytest.fixture(scope="module")
def model():
    return archc.load(EXAMPLE, preset="tiny", layers=3).with_random_weights(0)


def kinds(decoder):
    return [*decoder.prefill.kinds.values(), *decoder.chunk.kinds.values()]


def decoded(decoder, ids, split):
    state, rows, start = None, [], 0
    for n in split:
        outputs, state = decoder(state, input_ids=ids[:, start : start + n])
        rows.append(outputs["logits"])
        start += n
    return np.concatenate(rows, 1)


def test_prefill_and_chunk_share_weights_and_what_is_derived(model) -> None:
    decoder = model.decoder("torch", inputs=["input_ids"])
    places = [
        {name: t.data_ptr() for name, t in program.module.state_dict(keep_vars=True).items()}
        | {name: t.data_ptr() for name, t in program.module.named_buffers()}
        for program in (decoder.prefill, decoder.chunk)
    ]
    assert any("packed" in name for name in places[0])
    assert places[0].keys() == places[1].keys()
    tables = {name for name in places[0] if name.endswith(".f")}
    assert all(places[0][name] == places[1][name] for name in places[0].keys() - tables)


def test_matrices_stay_as_they_are_stored_and_explain_says_why(model) -> None:
    derived = derive(archc.load(EXAMPLE, preset="smollm2_135m").program_for(["input_ids"]))
    for program in (derived.prefill, derived.chunk):
        sites = [s for s in optimise(program).sites if s.pass_name == "pack-weights"]
        assert sites
        assert all("stored" in s.reason for s in sites)


def test_programs_do_not_grow_with_layers_or_lengths(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    decoder = model.decoder("torch", inputs=["input_ids"], compile=True)
    plain = model.decoder("torch", inputs=["input_ids"])
    wanted = decoded(plain, TOKENS, [40])
    for batch, programs in ((1, 1), (2, 2), (3, 2), (4, 2)):  # alone, or of several sequences
        for split in ([9, *[1] * 31], [30, *[1] * 5]):
            got = decoded(decoder, TOKENS[:batch], split)
            np.testing.assert_allclose(got, wanted[:batch, : got.shape[1]], atol=2e-5)
        assert [kind.compilations for kind in kinds(decoder)] == [programs, programs]
    again = model.decoder("torch", inputs=["input_ids"], compile=True)
    got = decoded(again, TOKENS[:1], [12, *[1] * 9])
    np.testing.assert_allclose(got, wanted[:1, :21], atol=2e-5)
    assert [kind.compilations for kind in kinds(again)] == [0, 0]  # read from the folder
