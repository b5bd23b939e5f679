"""Decoding on Triton: chunks that go on from states give what the full sequence gives.

The programs run in Triton's interpreter; the reference is the NumPy backend in float64 on the whole
sequence, with padding on both sides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from bundled import FOLDER

import archc
from archc.backends.triton import TritonBackend, split
from archc.compiler.incremental import derive
from archc.compiler.ir.graph import Program
from archc.compiler.ops import Array
from archc.compiler.passes import optimise
from archc.decoder import Decoder
from archc.diff.inputs import random_cases

pytest.importorskip("triton")

LENGTH = 7  # rows of the sequence, of which the splits make chunks
LAW = 1e-5
# A state of each kind. Sizes are as small as the kind allows.
EXAMPLES: dict[str, dict[str, Any]] = {
    "llama": {"layers": 2},  # append
    "mistral": {"layers": 1, "window": 3},  # ring
    "t5": {"layers": 1, "decoder_layers": 1},  # constant: the encoder's keys and values
    "mamba": {"layers": 1},  # recurrent, and the last inputs of a convolution
    "deepseek_v2": {"layers": 1},  # append, of a latent
    "hyena": {},  # append, read by index
}


@dataclass(frozen=True)
class Sequence:
    """A model, inputs of a whole sequence, an output of it, and which rows of that are of tokens."""

    model: archc.Model
    inputs: dict[str, Array]
    name: str
    output: Array
    valid: Array

    @property
    def program(self) -> Program:
        return self.model.program_for(list(self.inputs))

    def decoder(self, **options: Any) -> Decoder:
        return self.model.decoder("triton", inputs=list(self.inputs), **options)

    def rows(self, start: int, stop: int) -> dict[str, Array]:
        """The inputs for some rows: for the first of them, all inputs."""
        given = {}
        for name, array in self.inputs.items():
            dims = [axis.name for axis in node_of(self.program, name).axes]
            if self.program.decode in dims:
                given[name] = array.take(range(start, stop), dims.index(self.program.decode))
            elif start == 0:
                given[name] = array
        return given

    def error(self, outputs: dict[str, Array], start: int) -> float:
        """By how much outputs of rows from `start` on differ from those of the whole: rel-L2."""
        got = outputs[self.name].astype("float64")
        rows = slice(start, start + got.shape[1])
        wanted, valid = self.output[:, rows], self.valid[:, rows]
        return float(np.linalg.norm((got - wanted)[valid]) / np.linalg.norm(wanted[valid]))


def decoded(program: Program, node_id: int) -> bool:
    """Whether a value has a row for each row of the decoded axis, after the batch's."""
    axes = program.main[node_id].axes
    return len(axes) > 1 and axes[1].name == program.decode


def node_of(program: Program, name: str) -> Any:
    main = program.main
    return next(main[i] for i in main.inputs if main[i].attrs["name"] == name)


@cache
def sequence(name: str) -> Sequence:
    model = archc.load(FOLDER / f"{name}.arch", preset="tiny", **EXAMPLES[name])
    model = model.with_random_weights(0)
    inputs = next(iter(random_cases(model.program, 1, {}))).inputs
    outputs = model.compile("numpy", dtype="f64", level=0, inputs=list(inputs))(**inputs)
    name, output = next(
        (n, outputs[n])
        for n, i in model.program.main.outputs
        if n in outputs and decoded(model.program, i)
    )
    masks = [inputs[n] for n in ("decoder_attention_mask", "attention_mask") if n in inputs]
    valid = next(
        (m.astype(bool) for m in masks if m.shape == output.shape[:2]),
        np.ones(output.shape[:2], bool),
    )
    return Sequence(model, inputs, name, output, valid)


@cache
def plain() -> Decoder:
    return sequence("llama").decoder()


@pytest.mark.parametrize("name", EXAMPLES)
def test_chunks_give_what_the_sequence_gives(name: str) -> None:
    whole = sequence(name)
    decoder, state = plain() if name == "llama" else whole.decoder(), None
    rows = whole.output.shape[1]
    for start, stop in ((0, 3), (3, 4), (4, rows)):
        outputs, state = decoder(state, **whole.rows(start, stop))
        assert whole.error(outputs, start) <= LAW
    assert state.length == rows


def test_chunks_in_parts_give_what_the_sequence_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reductions so short are cut only here: some parts have entries, some none."""
    monkeypatch.setattr(split, "LEAST", {True: 2, False: 16})
    whole = sequence("mistral")
    source = TritonBackend().emit(optimise(derive(whole.program).chunk).program)["model.py"]
    assert {"attend", "linear"} <= set(re.findall(r"kernels\.\w+_(attend|linear)_\w+_part", source))
    decoder, state = whole.decoder(), None
    for start, stop in ((0, 3), (3, 4), (4, whole.output.shape[1])):
        outputs, state = decoder(state, **whole.rows(start, stop))
        assert whole.error(outputs, start) <= LAW


def test_an_older_state_goes_on_after_a_newer_one_was_made_of_it() -> None:
    whole, decoder = sequence("llama"), plain()
    _, first = decoder(None, **whole.rows(0, 3))
    _, second = decoder(first, **whole.rows(3, 4))
    other = {name: array[:, ::-1] for name, array in whole.rows(3, 5).items()}
    decoder(first, **other)
    outputs, _ = decoder(second, **whole.rows(4, LENGTH))
    assert whole.error(outputs, 4) <= LAW


def test_a_cache_is_stored_in_the_dtype_asked_for() -> None:
    whole = sequence("llama")
    decoder, state = whole.decoder(cache_dtype="bf16", max_length=LENGTH), None
    for start, stop in ((0, 3), (3, LENGTH)):
        outputs, state = decoder(state, **whole.rows(start, stop))
    kept = state.values["layers[0].attention.k"].array
    assert (str(kept.dtype), kept.shape[1]) == ("torch.bfloat16", LENGTH)
    assert 1e-5 < whole.error(outputs, 3) < 1e-2


def test_only_programs_with_states_speak_of_them() -> None:
    program, runner = sequence("llama").program, TritonBackend()
    texts = [runner.emit(p)["model.py"] for p in (program, derive(program).chunk)]
    assert ["def append" in text for text in texts] == [False, True]
    assert "outputs = model.forward(input_ids, attention_mask)" in texts[0]
    assert (
        "outputs, states = model.forward(states, n_s_past, input_ids, attention_mask)" in texts[1]
    )
