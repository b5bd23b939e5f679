"""Decoding on Triton: chunks that go on from states give what the full sequence gives.

The programs run in Triton's interpreter; the law and its reference are those of `splits.py`.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
from small_models import continued, opened
from splits import Example, brief_law, declaring, example, smallest

from archc.backends.triton import TritonBackend, split
from archc.compiler.incremental import derive
from archc.compiler.passes import optimise
from archc.decoder import Decoder

pytest.importorskip("triton")

LAW = 1e-5


@cache
def plain() -> Decoder:
    return smallest("llama").decoder("triton")


@pytest.mark.parametrize("name", declaring())
def test_chunks_give_what_the_sequence_gives(name: str) -> None:
    decoder = plain() if name == "llama" else smallest(name).decoder("triton")
    assert brief_law(smallest(name), decoder) <= LAW


@pytest.mark.parametrize("name", declaring())
def test_the_smallest_example_has_all_ops_and_axes_of_one_length(name: str) -> None:
    found = smallest(name)
    assert ops(found) == ops(example(name))
    ragged, colliding = found.cases
    assert ragged.rows > colliding.rows == 4
    timed = found.program.main[found.program.main.outputs[0][1]]
    run_time = {str(a.size): 4 for a in timed.axes if a.name in ("b", found.axis)}
    sizes = {**found.program.sizes, **run_time}
    lengths = [
        [a.size.evaluate(sizes) for a in t.axes if a.size.symbols() <= sizes.keys()]
        for f in found.program.functions
        for node in f.nodes
        for t in node.types
    ]
    assert max(each.count(4) for each in lengths) >= 3


def ops(found: Example) -> set[str]:
    return {node.op for function in found.program.functions for node in function.nodes}


def test_chunks_in_parts_give_what_the_sequence_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reductions so short are cut only here: some parts have entries, some none."""
    monkeypatch.setattr(split, "LEAST", {True: 2, False: 8})
    found = smallest("mistral")
    source = TritonBackend().emit(optimise(derive(found.program).chunk).program)["model.py"]
    assert {"attend", "linear"} <= set(re.findall(r"kernels\.\w+_(attend|linear)_\w+_part", source))
    case = found.case("prompt", 2, 7, seed=0)
    outputs, _ = found.go_on(found.decoder("triton"), case, [3, 1, 3])
    assert found.error(outputs, found.whole(case)) <= LAW


def test_a_cache_is_stored_in_the_dtype_asked_for() -> None:
    found = smallest("llama")
    case, _ = found.cases
    decoder = found.decoder("triton", cache_dtype="bf16", max_length=case.rows)
    outputs, state = found.go_on(decoder, case, [3, case.rows - 3])
    kept = state.values["layers[0].attention.k"].array
    assert (str(kept.dtype), kept.shape[1]) == ("torch.bfloat16", case.rows)
    assert 1e-5 < found.error(outputs, found.whole(case)) < 1e-2


def test_only_programs_with_states_speak_of_them() -> None:
    program = smallest("llama").model.program_for(["input_ids", "attention_mask"])
    runner = TritonBackend()
    texts = [runner.emit(p)["model.py"] for p in (program, derive(program).chunk)]
    assert ["def append" in text for text in texts] == [False, True]
    assert "outputs = model.forward(input_ids, attention_mask)" in texts[0]
    assert (
        "outputs, states = model.forward(states, n_s_past, input_ids, attention_mask)" in texts[1]
    )


def test_a_mask_that_shows_no_key_keeps_nothing() -> None:
    """Earlier slots have a length, and no array."""
    text = """use std
model M {
  d = 4
  input x: float[b, s, d]
  decode s
  output y[b, s, d] = x |> linear_attention(2, mask = sliding(0)) as a
}"""
    model = opened(text)
    x = np.random.default_rng(0).standard_normal((1, 3, 4)).astype(np.float32)
    y = continued(model.decoder("triton"), {"x": x}, (1, 1, 1))
    whole = model.compile("numpy", level=0)(x=x)["y"]
    np.testing.assert_allclose(y, whole, atol=1e-6)
