"""A sequence in chunks gives what the whole gives: every example that declares `decode`, each backend.

What the law compares is told in `splits.py`; here are the runs it holds for, what it catches, what is
refused, and how many bytes are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bundled
import numpy as np
import pytest
from decode_faults import FAULTS
from small_models import inputs as given
from small_models import model as small
from small_models import opened
from splits import FOLDER, Example, brief_law, declaring, distance, example, law, smallest

import archc
from archc.compiler.cost import cost
from archc.compiler.incremental import Slot, derive
from archc.decoder import Decoder, Growing, State
from archc.diff.reference import Reference
from archc.dsl.errors import CacheFull, NeedsWholeSequence, NoDecode, ShortPrefix
from archc.equality import compare

EXAMPLES = declaring()
EXACT = 1e-10
RUNS = {
    ("numpy", "f64", 0): EXACT,
    ("numpy", "f32", 1): 1e-5,
    ("torch", "f32", 1): 1e-5,
}
FEW = ("llama", "mistral", "hybrid", "t5", "deepseek_v2")  # each kind of state is in one of them


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small products are slower with more."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --------------------------------------------------------------------------------- the law


def test_the_examples_that_decode_are_found() -> None:
    assert {"llama", "mamba", "prefix_lm", "llava", "s4", "glam"} <= set(EXAMPLES)
    others = {path.stem for path in FOLDER.glob("*.arch")} - set(EXAMPLES)
    assert "bert" in others
    assert not any(bundled.example(name).decode for name in others)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("run", RUNS, ids=lambda run: "-".join(map(str, run)))
def test_the_law(name: str, run: tuple[str, Any, int]) -> None:
    backend, dtype, level = run
    decoder = example(name).decoder(backend, dtype=dtype, level=level)
    assert law(example(name), decoder, thorough=dtype == "f64") <= RUNS[run]


@pytest.mark.parametrize("name", FEW)
def test_the_law_on_torch_in_float64(name: str) -> None:
    decoder = example(name).decoder("torch", dtype="f64", level=1)
    assert law(example(name), decoder) <= EXACT


@pytest.mark.parametrize(
    ("backend", "name"),
    [*(("torch", name) for name in EXAMPLES), ("triton", "mistral"), ("triton", "mamba")],
)
def test_in_bf16_chunks_are_as_near_as_careful_arithmetic(backend: str, name: str) -> None:
    pytest.importorskip(backend)
    found = smallest(name)
    case = found.cases[0]
    truth = Reference(found.program, found.model.given_weights(), "bf16").truth(case.inputs)
    decoder = found.decoder(backend, dtype="bf16", level=1)
    outputs, _ = found.go_on(decoder, case, [case.first + 1, 1, case.rows - case.first - 2])
    joined, gold, base = found.joined(outputs), truth.gold.outputs, truth.base.outputs
    compared = {n: compare(x, gold[n], base[n], "bf16") for n, x in joined.items()}
    assert compared
    assert all(c.passed for c in compared.values())


def test_sequences_are_longer_than_the_windows_and_padded_on_all_sides() -> None:
    rings = 0
    for name in EXAMPLES:
        found = example(name)
        ragged, _ = found.cases
        slots = derive(found.program).slots
        held = [
            s.capacity.evaluate(found.program.sizes) for s in slots if s.capacity and not s.fact
        ]
        assert all(capacity + 2 < ragged.rows for capacity in held)
        rings += bool(held)
        masks = [x for n, x in ragged.inputs.items() if n in found.places and x.dtype == bool]
        for mask in masks:
            ends = [(row[0], row[-1], all(row)) for row in mask.tolist()]
            assert ends == [
                (False, True, False),
                (True, False, False),
                (True, True, False),
                (True, True, True),
            ]
    assert rings > 5


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_tokens_heads_head_size_and_batch_are_one_number(backend: str) -> None:
    found = Example("llama", d=16, heads=4, kv_heads=4, hidden=4, vocab=16)
    assert found.program.sizes["head_dim"] == found.cases[1].rows == 4
    assert law(found, found.decoder(backend, dtype="f64")) <= EXACT


# ----------------------------------------------------------------------------- what it catches


@pytest.mark.parametrize(("backend", "kind"), [(b, kind) for b in FAULTS for kind in FAULTS[b]])
def test_the_law_fails_where_decoding_is_wrong(backend: str, kind: str) -> None:
    pytest.importorskip(backend)
    broken = FAULTS[backend][kind]
    with broken.fault():
        if backend == "triton":
            found = smallest(broken.example)
            error = brief_law(found, found.decoder(backend))
        else:
            found = example(broken.example)
            error = law(found, found.decoder(backend, dtype="f64", level=0))
    assert error > 1e-4


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["bert", "vit", "roberta", "deberta"])
def test_an_encoder_is_not_decoded(name: str) -> None:
    model = archc.load(FOLDER / f"{name}.arch", preset="tiny").with_random_weights(0)
    with pytest.raises(NoDecode, match="it has no line `decode`"):
        model.decoder("numpy")


def test_the_first_chunk_has_the_whole_prefix() -> None:
    found = example("prefix_lm")
    case = found.cases[0]
    decoder = found.decoder("numpy", dtype="f64", level=0)
    found.go_on(decoder, case, [case.first])
    with pytest.raises(ShortPrefix) as caught:
        found.go_on(decoder, case, [case.first - 1])
    assert (caught.value.needed, caught.value.rows) == (case.first, case.first - 1)


def test_a_default_that_sums_over_the_sequence_must_be_given() -> None:
    """What llava's `earlier` is computed as the whole run finds; the law has it given."""
    found = example("llava")
    with pytest.raises(NeedsWholeSequence) as caught:
        found.model.decoder("numpy")
    assert caught.value.span is not None
    line = caught.value.span.source.line(caught.value.span.line)
    assert "input earlier" in line
    case = found.cases[0]
    inputs = {name: array for name, array in case.inputs.items() if name != "earlier"}
    computed = found.model.compile("numpy", dtype="f64", level=0)(**inputs)
    assert case.inputs["earlier"].any()
    assert distance(found.whole(case)["logits"], computed["logits"]) <= EXACT


# ------------------------------------------------------------------------------------- bytes


def held(value: Any) -> Any:
    return value.array if isinstance(value, Growing) else value


def bytes_of(state: State, slots: Any, *kinds: str, facts: bool = False) -> int:
    """What is held of the kinds of slots."""
    found = [s.path for s in slots if s.kind in kinds and s.fact == facts]
    return sum(int(held(state.values[path]).nbytes) for path in found)


def slots_of(decoder: Decoder) -> tuple[Slot, ...]:
    return tuple(decoder.slots.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_the_cost_report_says_is_allocated(name: str) -> None:
    """The report has two bytes for a number whose dtype the run decides, here it is four."""
    found = example(name)
    case = found.cases[0]
    decoder = found.decoder("numpy", level=0)
    _, state = found.go_on(decoder, case, [case.rows])
    batch = state.sizes["b"]
    sizes = {**found.program.sizes, **state.sizes}
    expected = dict.fromkeys(("append", "ring", "constant", "recurrent"), 0)
    for kept in cost(found.program).states:
        entry = (kept.bytes * kept.count).evaluate(sizes) * (2 if kept.type.dtype == "float" else 1)
        window = 0 if kept.capacity is None else kept.capacity.evaluate(sizes)
        entries = {"append": case.rows, "ring": window - 1, "last": window}.get(kept.kind, 1)
        kind = "ring" if kept.kind == "last" else kept.kind
        rows = batch if "b" in (axis.name for axis in kept.type.axes) else 1
        expected[kind] += entry * entries * rows
    slots = slots_of(decoder)
    assert {kind: bytes_of(state, slots, kind) for kind in expected} == expected
    facts = bytes_of(state, slots, *expected, facts=True)
    assert state.bytes == sum(expected.values()) + facts


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["llama", "hybrid", "deepseek_v2"])
def test_a_greatest_length_is_what_is_allocated(name: str, backend: str) -> None:
    pytest.importorskip(backend)
    found = example(name)
    case, most = found.cases[0], 23
    decoder = found.decoder(backend, level=0, max_length=most)
    _, state = found.go_on(decoder, case, [4, 1])
    slots, report = slots_of(decoder), cost(found.program)
    per_token = sum(s.total.evaluate({}) for s in report.states if s.kind == "append")
    assert bytes_of(state, slots, "append") == 2 * per_token * most * len(case.inputs["input_ids"])
    kinds = "append", "ring", "constant", "recurrent"
    assert state.bytes == sum(bytes_of(state, slots, *kinds, facts=f) for f in (False, True))
    _, later = found.go_on(decoder, case, [1, 2], 5, state)
    assert later.bytes == state.bytes


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_no_more_than_the_greatest_length(backend: str) -> None:
    found = example("llama")
    case = found.cases[0]
    decoder = found.decoder(backend, level=0, max_length=7)
    _, state = found.go_on(decoder, case, [4, 3])
    with pytest.raises(CacheFull) as caught:
        found.go_on(decoder, case, [1], 7, state)
    assert (caught.value.length, caught.value.max_length) == (8, 7)
    with pytest.raises(CacheFull):
        found.go_on(decoder, case, [8])


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_cache_of_another_dtype(backend: str) -> None:
    """Half of the bytes; what is read from it is off by the rounding, once for each key and value."""
    found = example("llama")
    case = found.cases[0]
    exact, half = (
        found.decoder(backend, level=0, max_length=9, cache_dtype=dtype) for dtype in (None, "bf16")
    )
    outputs, state = found.go_on(half, case, [4] + [1] * 5)
    _, full = found.go_on(exact, case, [4] + [1] * 5)
    assert 2 * bytes_of(state, slots_of(half), "append") == bytes_of(
        full, slots_of(exact), "append"
    )
    assert 1e-5 < found.error(outputs, found.whole(case)) < 4 * 2.0**-8


SMALL = {
    "nothing is kept": "output y[b, s, d] = 2 * x; output z[b, s, d] = x * x",
    "nothing but slots": "weight w[rows: 9, d] = normal; output y[b, s, d] = x + w[rows: slot(s)]",
    "slots in a layer": (
        "y = x; repeat layers[i: 2] { y += float(slot(s)) * y }; output z[b, s, d] = y"
    ),
    "a layer that keeps beside one that does not": (
        "y = x; repeat layers[i: 3] { if i % 2 == 0 { y = 0.9 * y } else"
        " { scan s with h[b, d] = 0 { h = 0.5 * h + y }; y = h } }; output z[b, s, d] = y"
    ),
    "layers that keep inside layers": (
        "y = x; repeat outer[i: 2] { u = y; repeat inner[j: 2]"
        " { scan s with h[b, d] = 0 { h = 0.5 * h + u }; u = h }; y += u }; output z[b, s, d] = y"
    ),
    "a near window beside a far one": (
        "near = x |> linear_attention(heads, mask = sliding(2));"
        " far = x |> attention(heads, mask = causal); output y[b, s, d] = near + far"
    ),
}


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", SMALL)
def test_small_models_in_two_chunks(name: str, backend: str, level: int) -> None:
    model = opened(small(f"decode s; {SMALL[name]}"))
    x = given()["x"]
    decoder = model.decoder(backend, dtype="f64", level=level)
    first, state = decoder(None, x=x[:, :3])
    second, _ = decoder(state, x=x[:, 3:])
    for output, whole in model.compile("numpy", dtype="f64", level=0)(x=x).items():
        joined = np.concatenate([first[output], second[output]], 1)
        np.testing.assert_allclose(joined, whole, rtol=1e-12, atol=1e-12)
