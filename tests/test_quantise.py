"""Weights in few bits: how far they are off, and that all else is exact for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import archc
from archc.backends.numpy import NumpyBackend
from archc.cli import main
from archc.compiler.ir.graph import Attrs, Axis, Program
from archc.compiler.ops import Call, Precision, evaluate, infer
from archc.compiler.ops.quantise import Format, pieces
from archc.compiler.ops.registry import tensor
from archc.compiler.passes import optimise, pipeline
from archc.compiler.rewrite import Session, run_pass
from archc.diff import Candidate, diff
from archc.dsl.dims import Dim
from archc.dsl.errors import NoLowering

EXAMPLES = Path(__file__).parent.parent / "examples"
LLAMA = EXAMPLES / "llama.arch"
# Sizes that are equal where they can be: two heads of 32, 64 columns, 64 words.
SIZES = {"d": 64, "hidden": 96, "vocab": 64, "heads": 2, "kv_heads": 1}
BANK = {"d": 64, "hidden": 96, "vocab": 64, "heads": 2, "kv_heads": 1, "experts": 3}
IDS = np.random.default_rng(0).integers(0, 64, (2, 9))
QUANTS = ["int8", "int4"]


def llama(**sizes: object) -> archc.api.Model:
    model = archc.load(LLAMA, preset="tiny", **{**SIZES, "tied": True, **sizes})
    return model.with_random_weights(0)


@cache
def tied() -> archc.api.Model:
    return llama()


# ------------------------------------------------------------------------------------- the ops


def round_trip(w: np.ndarray, bits: int, group: int, dtype: str = "f64") -> tuple[np.ndarray, ...]:
    """What codes of w[rows, n] stand for, then the codes and the scales that were stored."""
    rows, n = Axis("rows", Dim.of(len(w))), Axis("n", Dim.of(w.shape[1]))
    packed = n if bits == 8 else Axis("packed", pieces(n, 2))
    attrs = Attrs(
        {
            "axis": n,
            "packed": packed,
            "groups": Axis("groups", pieces(n, group)),
            "bits": bits,
            "group": group,
        }
    )
    kinds = (tensor("float", rows, n),)
    stored = infer("quantise", attrs, kinds)
    precision = Precision(dtype)
    given = w.astype(precision.storage("float"))
    parts = evaluate("quantise", Call(attrs, kinds, stored, {}, precision), [given])
    result = infer("dequantise", attrs, stored)
    (back,) = evaluate("dequantise", Call(attrs, stored, result, {}, precision), parts)
    assert Format.of(attrs).bits == bits
    return (back, *parts)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("columns", [64, 37, 5])
def test_no_entry_is_off_by_more_than_half_a_scale(bits: int, columns: int) -> None:
    w = np.random.default_rng(1).normal(0.3, 2.0, (7, columns))
    w[0], w[1] = 0.0, -1.5  # nothing, and nothing but one number
    back, _, scales, *_ = round_trip(w, bits, 32)
    half = np.repeat(scales, 32, axis=1)[:, :columns] / 2
    assert (np.abs(back - w) <= half * (1 + 1e-9) + 1e-15).all()
    assert np.abs(back - w).max() > half.max() / 4  # it does round
    assert (back[0] == 0).all()
    np.testing.assert_allclose(back[1], -1.5, rtol=1e-6)


def test_scales_are_those_of_the_formula() -> None:
    w = np.random.default_rng(2).normal(0.0, 1.0, (3, 64))
    groups = w.reshape(3, 2, 32)
    _, _, scales = round_trip(w, 8, 32)
    np.testing.assert_allclose(scales, np.abs(groups).max(-1) / 127, rtol=1e-6)
    _, codes, scales, offsets = round_trip(w, 4, 32)
    np.testing.assert_allclose(scales, np.ptp(groups, -1) / 15, rtol=1e-6)
    np.testing.assert_allclose(offsets, groups.min(-1) + 8 * scales, rtol=0, atol=1e-6)
    assert codes.shape == (3, 32)
    assert codes.dtype == np.int8


@pytest.mark.parametrize("bits", [8, 4])
def test_what_codes_stand_for_has_the_same_codes(bits: int) -> None:
    w = np.random.default_rng(3).normal(0.0, 1.0, (4, 64))
    once, codes, *_ = round_trip(w, bits, 32)
    twice, again, *_ = round_trip(once, bits, 32)
    assert (codes == again).all()
    np.testing.assert_allclose(twice, once, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_scales_that_are_rounded_move_no_entry_out_of_range(bits: int) -> None:
    """In bf16 a scale may be rounded down: the greatest entry must not wrap around."""
    w = np.random.default_rng(4).normal(0.0, 1.0, (64, 32))
    back, _, scales, *_offsets = round_trip(w, bits, 32, "bf16")
    off = np.abs(back.astype(float) - w)
    size = np.abs(w).max(1, keepdims=True)
    assert (off <= scales.astype(float) + 3 * 2.0**-8 * size).all()


# ------------------------------------------------------------------------------------ the pass


def mapped(program: Program, quant: str) -> Program:
    """The program with other weights, and nothing else done since: what the rest must equal."""
    session = Session()
    for made in pipeline(quant):
        program = run_pass(made, program, session)[0]
        if made.name == "quantise":
            return program
    raise AssertionError("no such pass")


def run(program: Program, weights: Mapping, backend: str, dtype: str) -> np.ndarray:
    loaded = archc.api.backend(backend).load(program, weights, dtype=dtype)
    return loaded.run({"input_ids": IDS})["logits"].astype(np.float64)


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("tie", [True, False])
def test_all_that_follows_is_exact_for_the_mapped_weights(quant: str, tie: bool) -> None:
    model = llama(tied=tie)
    program = model.program_for(["input_ids"])
    exact = run(mapped(program, quant), model.weights, "numpy", "f64")
    scale = np.abs(exact).max()
    done = optimise(program, quant=quant).program
    for backend in ("numpy", "torch"):
        assert np.abs(run(done, model.weights, backend, "f64") - exact).max() <= 1e-12 * scale
    lossless = run(optimise(program).program, model.weights, "numpy", "f64")
    assert np.abs(lossless - exact).max() > 1e-3 * scale  # the map is not the identity


@pytest.mark.parametrize("quant", QUANTS)
def test_triton_agrees_on_the_mapped_weights(quant: str) -> None:
    pytest.importorskip("triton")
    model = tied()
    program = model.program_for(["input_ids"])
    unwanted = archc.api.backend("triton").unwanted_passes("f32")
    done = optimise(program, quant=quant, disable=unwanted).program
    exact = run(done, model.weights, "numpy", "f64")
    got = run(done, model.weights, "triton", "f32")
    assert np.abs(got - exact).max() <= 2e-5 * np.abs(exact).max()


@pytest.mark.parametrize("quant", QUANTS)
def test_verify_accepts_what_follows_the_map(quant: str) -> None:
    def check(program: Program, inputs: Mapping, weights: Mapping) -> Mapping:
        return NumpyBackend().load(program, weights, dtype="f64").run(inputs)

    sites = optimise(tied().program, quant=quant, verify=check).sites
    assert {s.pass_name for s in sites if s.fired} >= {"quantise", "read-codes"}


def test_nothing_is_quantised_unless_asked_for() -> None:
    done = optimise(tied().program).program
    assert not any(n.op == "dequantise" for f in done.functions for n in f.nodes)


def quantised_bytes(model: archc.api.Model, quant: str) -> int:
    """Bits of the matrices and their scales, in bytes: 4 bits have offsets, a tied table has 8."""
    small = {p.path: p.size(model.program.sizes) for p in model.program.parameters}
    total = 0
    for path, size in small.items():
        if "gain" in path:
            total += 4 * size
        else:
            four = quant == "int4" and not path.startswith("embed")
            total += size // 2 + size // 32 * 8 if four else size + size // 32 * 4
    return total


@pytest.mark.parametrize("quant", QUANTS)
def test_a_tied_table_is_held_once_and_in_few_bits(quant: str) -> None:
    model = tied()
    loaded = {b: model.compile(b, quant=quant, inputs=["input_ids"]) for b in ("numpy", "torch")}
    constants = loaded["numpy"].executable.shared.constants.values()
    arrays = (c if isinstance(c, tuple) else (c,) for c in constants)
    held = sum(a.nbytes for several in arrays for a in several)
    assert held <= quantised_bytes(model, quant)
    module = loaded["torch"].module
    tensors = [*module.parameters(), *module.buffers()]
    tables = 2 * 16 * 4 * 4  # angles of rotary embeddings, in each layer
    assert sum(t.nbytes for t in tensors) <= quantised_bytes(model, quant) + tables


def test_rows_of_a_tied_table_are_read_in_few_bits() -> None:
    functions = optimise(tied().program, quant="int8").program.functions
    read = [f[n.inputs[0]] for f in functions for n in f.nodes if n.op == "take"]
    assert [x.type.dtype for x in read] == ["i8", "float"]
    assert all(x.op != "dequantise" for x in read)


def test_declines_say_why() -> None:
    sites = optimise(llama(hidden=112).program, quant="int8").sites
    reasons = [s.reason for s in sites if s.pass_name == "quantise" and not s.fired]
    assert reasons == ["`ffn.down.w` is summed along `hidden` = 112: no multiple of 32"]
    sites = optimise(llama(hidden=32).program, quant="int8").sites
    reasons = [s.reason for s in sites if s.pass_name == "quantise" and not s.fired]
    assert reasons == ["`ffn.down.w` has 2,048 elements: too few to save anything"]


@pytest.mark.parametrize("quant", QUANTS)
def test_banks_that_rows_pick_from_are_quantised(quant: str) -> None:
    model = archc.load(EXAMPLES / "mixtral.arch", preset="tiny", **BANK).with_random_weights(0)
    given = model.program_for(["input_ids"])
    done = optimise(given, quant=quant)
    noted = [s.reason for s in done.sites if s.pass_name == "quantise" and s.fired]
    assert sum("`moe." in reason for reason in noted) == 3  # gate, up and down of all experts
    exact = run(mapped(given, quant), model.weights, "numpy", "f64")
    for backend in ("numpy", "torch"):
        got = run(done.program, model.weights, backend, "f64")
        assert np.abs(got - exact).max() <= 1e-12 * np.abs(exact).max()


def test_the_graph_as_written_can_be_quantised_too() -> None:
    model = tied()
    plain, few = (
        model.compile("numpy", level=0, quant=q, dtype="f64", inputs=["input_ids"])
        for q in (None, "int8")
    )
    a, b = (x(input_ids=IDS)["logits"] for x in (plain, few))
    assert 1e-4 < np.abs(a - b).max() / np.abs(a).max() < 0.2


def test_gradients_of_codes_are_refused() -> None:
    with pytest.raises(NoLowering, match="quantise with gradients"):
        tied().compile("torch", quant="int8", train=True)


# ----------------------------------------------------------------------------------- the report


def test_diff_reports_what_quantising_changes_without_calling_it_a_difference() -> None:
    pair = [Candidate("numpy"), Candidate("torch")]
    reports = {q: diff(tied(), pair, sizes={"b": 2, "s": 6}, quant=q) for q in QUANTS}
    found = {q: report.quantising[0] for q, report in reports.items()}
    assert all(report.agree for report in reports.values())
    assert 1e-4 < found["int8"].outputs["logits"].whole < 0.1
    assert found["int4"].outputs["logits"].whole > 4 * found["int8"].outputs["logits"].whole
    attention = found["int8"].groups["layers[0].attention"]
    assert attention.introduced is not None
    assert 1e-4 < attention.introduced < attention.whole
    assert found["int8"].groups["embed"].whole > 1e-4  # rows of the table
    text = str(reports["int8"])
    assert "int8 against f32" in text
    assert "introduced" in text
    assert text.endswith("numpy and torch agree with the reference")


def test_the_command_shows_it_and_ends_well() -> None:
    sizes = [part for k, v in SIZES.items() for part in ("--set", f"{k}={v}")]
    args = ["diff", str(LLAMA), "--preset", "tiny", *sizes, "--backends", "numpy", "--json"]
    args += ["--size", "b=1", "--size", "s=4", "--quant", "int4"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    (lossy,) = json.loads(result.stdout)["quantising"]
    assert lossy["quant"] == "int4"
    assert lossy["outputs"]["logits"] > 0.01
