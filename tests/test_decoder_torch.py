"""Decoding on PyTorch: one copy of the weights, and few compiled programs for many layers and lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from splits import Example

import archc
from archc.backends.torch import pages
from archc.compiler.incremental import derive
from archc.compiler.passes import optimise

EXAMPLE = Path(__file__).parents[1] / "examples" / "llama.arch"


@pytest.fixture(scope="module")
def model():
    return archc.load(EXAMPLE, preset="tiny", layers=3).with_random_weights(0)


def kinds(decoder):
    return [*decoder.prefill.kinds.values(), *decoder.chunk.kinds.values()]


def test_prefill_and_chunk_share_weights_and_what_is_derived(model) -> None:
    decoder = model.decoder("torch", inputs=["input_ids"])
    places = [
        {name: t.data_ptr() for name, t in program.module.state_dict(keep_vars=True).items()}
        | {name: t.data_ptr() for name, t in program.module.named_buffers()}
        for program in (decoder.prefill, decoder.chunk)
    ]
    assert any("packed" in name for name in places[0])
    assert places[0].keys() == places[1].keys()
    tables = {name for name in places[0] if name.split(".")[-1] == "f"}
    assert all(places[0][name] == places[1][name] for name in places[0].keys() - tables)


def test_a_decoding_keeps_nothing_of_the_file_and_leaves_arrays_that_are_given(
    model, tmp_path: Path
) -> None:
    model.export(tmp_path)
    read = archc.load(EXAMPLE, weights=tmp_path)
    decoder = read.decoder("torch", inputs=["input_ids"])
    ids = np.arange(9)[None]
    outputs, _ = decoder(input_ids=ids)
    wanted, _ = model.decoder("torch", inputs=["input_ids"])(None, input_ids=ids)
    np.testing.assert_array_equal(outputs["logits"], wanted["logits"])
    places = sorted(t.data_ptr() for t in decoder.prefill.module.parameters())
    assert places[-1] - places[0] < pages.CHUNK
    assert not {a.ctypes.data for a in read.weights.values()} & {*places}
    arrays = {path: np.asarray(model.weights[path]) for path in model.weights}
    own = {
        moves: model.with_weights(arrays)
        .decoder("torch", inputs=["input_ids"], huge_pages=moves)
        .prefill.module.embed_w.data_ptr()
        == arrays["embed.w"].ctypes.data
        for moves in (None, False, True)
    }
    assert own == {None: True, False: True, True: False}


def test_matrices_stay_as_they_are_stored_and_explain_says_why(model) -> None:
    derived = derive(archc.load(EXAMPLE, preset="smollm2_135m").program_for(["input_ids"]))
    for program in (derived.prefill, derived.chunk):
        sites = [s for s in optimise(program).sites if s.pass_name == "pack-weights"]
        assert sites
        assert all("stored" in s.reason for s in sites)


def test_programs_do_not_grow_with_layers_or_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of several lengths, padded, by one compiled decoder: each as the whole gives."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = Example("llama", d=16, layers=3, hidden=24)
    decoder = found.decoder("torch", compile=True)
    for batch, programs in ((1, 1), (2, 2), (3, 2), (4, 2)):  # alone, or of several sequences
        for rows, split in ((20, [9, *[1] * 11]), (17, [12, *[1] * 5])):
            case = found.case("prompt", batch, rows, seed=batch)
            outputs, _ = found.go_on(decoder, case, split)
            assert found.error(outputs, found.whole(case)) <= 1e-5
        assert [kind.compilations for kind in kinds(decoder)] == [programs, programs]
    again = found.decoder("torch", compile=True)
    case = found.case("prompt", 1, 19, seed=9)
    outputs, _ = found.go_on(again, case, [12, *[1] * 7])
    assert found.error(outputs, found.whole(case)) <= 1e-5
    assert [kind.compilations for kind in kinds(again)] == [0, 0]  # read from the folder
