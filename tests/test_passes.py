"""Each pass on its example: what fires, what declines and why, and that no result changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from bundled import example
from checks import NAMES, heads_of, model_of, ops, ran, reason, same, sites
from graphs import (
    Model,
    Value,
    attention,
    b,
    causal,
    d,
    e,
    evaluate,
    hidden,
    layer,
    layernorm,
    r,
    rmsnorm,
    s,
    scores,
    t,
    vocab,
)

from archc.compiler import knobs
from archc.compiler.ir.graph import Constraint, Program
from archc.compiler.passes import PIPELINE, optimise
from archc.compiler.passes.explain import explain_json
from archc.compiler.passes.verify import Arrays, cases
from archc.compiler.rewrite import Pass, Rule
from archc.dsl.diagnostics import InternalError
from archc.dsl.dims import Dim
from archc.dsl.errors import BadKnob, UnknownPass

# ------------------------------------------------------------------------ the pipeline


def test_a_layer_becomes_its_kernels() -> None:
    done = ran(model_of(layer))
    found = ops(done.program)
    assert (found["attend"], found["linear"], found["pointwise"]) == (1, 4, 0)
    assert found["dot"] == found["softmax"] == found["sum"] == 0


@pytest.mark.parametrize("missing", NAMES)
def test_removing_a_pass_changes_no_result(missing: str) -> None:
    program = model_of(layer)
    same(program, optimise(program, disable=[missing]).program)


def test_level_0_leaves_the_program_alone() -> None:
    program = model_of(layer)
    done = optimise(program, level=0)
    assert done.program is program
    assert done.sites == ()


def test_optimising_is_deterministic() -> None:
    assert optimise(model_of(layer)).program == optimise(model_of(layer)).program


def test_an_unknown_pass_is_refused() -> None:
    with pytest.raises(UnknownPass, match="did you mean `tile-attention`"):
        optimise(model_of(layer), disable=["tile-atention"])


def test_values_are_found_or_inside() -> None:
    program = model_of(layer)
    done = optimise(program)
    softmax = next(n.id for n in program.main.nodes if n.op == "softmax")
    place = done.value_map.find("main", softmax)
    assert place is not None
    assert place.inside
    assert done.program.main[place.id].op == "attend"
    output = program.main.output_ids[0]
    assert done.value_map.pairs()["main", output] == ("main", done.program.main.output_ids[0])


# ------------------------------------------------------------------------- canonicalize


def canonical(build: Callable[[Model, Value], Value]) -> list[str]:
    """The ops that remain of a program, without sources of weights and inputs."""
    program = model_of(build)
    done = ran(program, disable=[n for n in NAMES if n != "canonicalize"])
    return [n.op for n in done.program.main.nodes if n.op not in ("input", "weight")]


CANONICAL: dict[str, tuple[Callable[[Model, Value], Value], list[str]]] = {
    "neutral": (lambda m, x: ((x + 0.0) * 1.0) / 1.0 - 0.0, []),
    "constants": (lambda m, x: x * (m.value(2.0) + 3.0), ["const", "mul"]),
    "sizes": (lambda m, x: x * (m.value(d.size) + 1).op("to_float"), ["const", "to_float", "mul"]),
    "where": (lambda m, x: m.where(m.value(True) & m.value(True), x, x + 1.0), []),
    "not not": (lambda m, x: m.where((x <= 0.0).op("not").op("not"), x, 0.0),
                ["const", "le", "where"]),
    "casts": (lambda m, x: x.cast("f32").cast("f32").cast("float"), []),
    "renames": (lambda m, x: x.rename((s, t)).rename((t, s)), []),
    "index": (lambda m, x: x * (m.index(s) * 2).rename((s, t)).rename((t, s)),
              ["const", "index", "mul", "mul"]),
    "transposes": (lambda m, x: x.op("transpose", order=(d, s, b)).op("transpose", order=(b, s, d)),
                   []),
    "whole slice": (lambda m, x: x.op("slice", axis=d, into=d, start=Dim(), step=1), []),
    "one part": (lambda m, x: x.op("concat", axis=d, parts=(d,)), []),
    "relabel": (lambda m, x: x.split(d, (r, e)).merge((r, e), d), []),
    "equal": (lambda m, x: x.op("exp") + x.op("exp"), ["exp", "add"]),
    "constant right": (lambda m, x: m.value(2.0) * x + x * 2.0, ["const", "mul", "add"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CANONICAL)
def test_canonical_form(case: str) -> None:
    build, expected = CANONICAL[case]
    assert canonical(build) == expected


def test_a_merge_sinks_to_the_split_that_undoes_it() -> None:
    def build(m: Model, x: Value) -> Value:
        merged = x.split(d, (r, e)).merge((r, e), d)
        return (merged * m.weight("w", d)).op("softmax", axis=s).split(d, (r, e)).sum(e)

    done = ran(model_of(build), disable=[n for n in NAMES if n != "sink-merges"])
    assert ops(done.program)["merge"] == 0


def test_round_to_is_never_dropped() -> None:
    def build(m: Model, x: Value) -> Value:
        return x.op("round_to", format="bf16").op("round_to", format="f16")

    assert canonical(build) == ["round_to", "round_to"]


# -------------------------------------------------------------------- pack-projections


def test_projections_of_one_value_are_packed() -> None:
    def build(m: Model, x: Value) -> Value:
        q, k, v = heads_of(m, x)
        return attention(q, k, v, scores(q, k), causal(m))

    done = ran(model_of(build), disable=["fuse-linear"])
    assert ops(done.program)["dot"] == 1
    assert ops(done.program)["derived"] == 1


def test_biases_are_packed_when_all_have_one() -> None:
    def build(m: Model, x: Value) -> Value:
        first = x.dot(m.weight("a", hidden, d), d) + m.weight("ab", hidden)
        second = x.dot(m.weight("c", hidden, d), d) + m.weight("cb", hidden)
        return first * second

    done = ran(model_of(build))
    assert ops(done.program)["derived"] == 2
    (site,) = sites(done, "pack-projections")
    assert site.reason.endswith("with biases")


def test_a_bias_of_one_member_stays_outside() -> None:
    def build(m: Model, x: Value) -> Value:
        first = x.dot(m.weight("a", hidden, d), d) + m.weight("ab", hidden)
        return first * x.dot(m.weight("c", hidden, d), d)

    (site,) = sites(ran(model_of(build)), "pack-projections")
    assert not site.reason.endswith("with biases")


def test_a_tied_weight_is_not_packed() -> None:
    m = Model()
    ids = m.input("ids", b, s, dtype="int", below=vocab.size)
    table = m.weight("table", vocab, d)
    x = table.op("take", ids, axis=vocab, fill=None)
    program = m.program(y=x.dot(table, d), z=x.dot(m.weight("w", hidden, d), d))
    done = ran(program)
    assert reason(done, "pack-projections") == (
        "`table` is read at LINE too: folding would store it twice"
    )


def test_products_with_other_values_are_not_packed() -> None:
    def build(m: Model, x: Value) -> Value:
        other = m.input("z", hidden, d)
        return x.dot(other, d) + x.dot(other * 2.0, d)

    assert sites(ran(model_of(build)), "pack-projections") == []


# -------------------------------------------------------------------- fuse-norm-linear


def normed(norm: Callable[[Model, Value], Value]) -> Program:
    return model_of(lambda m, x: norm(m, x).dot(m.weight("w", hidden, d), d))


NORMS: dict[str, Callable[[Model, Value], Value]] = {
    "rms": lambda m, x: rmsnorm(x, m.weight("gain", d)),
    "layer": lambda m, x: layernorm(x, m.weight("gain", d), m.weight("bias", d)),
    "one plus gain": lambda m, x: rmsnorm(x, m.weight("gain", d) + 1.0),
    "gain first": lambda m, x: m.weight("gain", d) * rmsnorm(x, m.weight("other", d)),
    "unit length": lambda m, x: x / ((x * x).sum(d) + 1e-6).op("sqrt"),
    "mean absolute": lambda m, x: x / (x.op("abs").sum(d) + 1e-6),
}


@pytest.mark.parametrize("case", NORMS)
@pytest.mark.parametrize("more", [[], ["pack-projections", "fuse-linear"]])
def test_any_norm_folds_into_the_product(case: str, more: list[str]) -> None:
    done = ran(normed(NORMS[case]), disable=more)
    assert [x.fired for x in sites(done, "fuse-norm-linear", "fold-norm")] == [True]


def test_the_norm_of_several_products_folds_into_each() -> None:
    def build(m: Model, x: Value) -> Value:
        n = rmsnorm(x, m.weight("gain", d))
        return n.dot(m.weight("a", hidden, d), d) * n.dot(m.weight("c", hidden, d), d)

    done = ran(model_of(build), disable=["pack-projections"])
    assert len(sites(done, "fuse-norm-linear", "fold-norm")) == 2


def test_a_norm_with_other_readers_is_kept() -> None:
    def build(m: Model, x: Value) -> Value:
        n = rmsnorm(x, m.weight("gain", d))
        return n + n.dot(m.weight("a", d, hidden), d).dot(m.weight("c", hidden, d), hidden)

    done = ran(model_of(build))
    assert reason(done, "fuse-norm-linear") == (
        "the normalised value is read at LINE too, so it is stored anyway"
    )


def test_a_tied_weight_is_not_folded() -> None:
    m = Model()
    ids = m.input("ids", b, s, dtype="int", below=vocab.size)
    table = m.weight("table", vocab, d)
    x = rmsnorm(table.op("take", ids, axis=vocab, fill=None), m.weight("gain", d))
    done = ran(m.program(y=x.dot(table, d)))
    assert "folding would store it twice" in reason(done, "fuse-norm-linear")


def test_round_to_is_not_crossed() -> None:
    def rounded(m: Model, x: Value) -> Value:
        return rmsnorm(x, m.weight("gain", d)).op("round_to", format="bf16")

    done = ran(normed(rounded))
    assert sites(done, "fuse-norm-linear", "fold-norm") == []


def test_a_scale_that_is_no_statistic_is_no_norm() -> None:
    done = ran(normed(lambda m, x: x * m.input("scale", b, s)))
    assert sites(done, "fuse-norm-linear", "fold-norm") == []


# ------------------------------------------------------------------ derived parameters


def test_expressions_of_weights_are_derived() -> None:
    done = ran(model_of(lambda m, x: x * (m.weight("w", d).op("exp") + 1.0)))
    assert ops(done.program)["derived"] == 1
    assert ops(done.program)["exp"] == 0


def test_a_larger_result_is_not_derived() -> None:
    def build(m: Model, x: Value) -> Value:
        return x.dot(m.weight("a", d) * m.weight("c", hidden), d)

    done = ran(model_of(build))
    assert reason(done, "derive-parameters") == (
        "the result is larger than the weights it is made of"
    )


# ----------------------------------------------------------------- linear and pointwise


def test_bias_activation_and_residual_join_the_product() -> None:
    def build(m: Model, x: Value) -> Value:
        up = x.dot(m.weight("up", hidden, d), d) + m.weight("b", hidden)
        return x + (up * up.op("sigmoid")).dot(m.weight("down", d, hidden), hidden)

    done = ran(model_of(build))
    assert ops(done.program)["linear"] == 2
    assert ops(done.program)["pointwise"] == 0


@pytest.mark.parametrize(("columns", "strategy"), [(64, "in-loop"), (16384, "row-statistic")])
def test_the_statistic_moves_out_of_the_loop_when_it_repeats_often(
    columns: int, strategy: str
) -> None:
    program = normed(NORMS["rms"])
    sizes = {**program.sizes, "hidden": columns, "d": 4096}
    program = replace(program, bindings=tuple(sizes.items()))
    done = optimise(program)
    (node,) = [n for n in done.program.main.nodes if n.op == "linear"]
    assert node.attrs["strategy"] == strategy
    same(program, done.program)


def test_a_residual_and_the_statistic_of_its_sum_share_a_kernel() -> None:
    def build(m: Model, x: Value) -> Value:
        y = x + m.input("z", b, s, d)
        return y + rmsnorm(y, m.weight("gain", d))

    assert ops(ran(model_of(build)).program)["pointwise"] == 1


def test_a_region_does_not_surround_what_it_feeds() -> None:
    def build(m: Model, x: Value) -> Value:
        y = x.op("exp")
        z = y.op("cumsum", axis=s)
        return y + z

    assert ops(ran(model_of(build)).program)["pointwise"] == 2


def test_reductions_of_different_rows_are_different_kernels() -> None:
    def build(m: Model, x: Value) -> Value:
        return x.op("softmax", axis=d).op("softmax", axis=s)

    assert ops(ran(model_of(build)).program)["pointwise"] == 2


def test_a_gathered_value_is_stored_first() -> None:
    def build(m: Model, x: Value) -> Value:
        shift = (m.index(s) - 1).op("max", 0)
        return x.op("exp").op("take", shift, axis=s, fill=None)

    assert ops(ran(model_of(build)).program)["pointwise"] == 2


def test_views_alone_are_no_kernel() -> None:
    done = ran(model_of(lambda m, x: x.split(d, (r, e)).rename((s, t))))
    assert ops(done.program)["pointwise"] == 0


# ------------------------------------------------------------- verify, explain, knobs


def broken_pass() -> Pass:
    """Drops the factor of a product with a constant."""
    return Pass("broken", "c x = x", (Rule("drop", lambda e, n: n.inputs[0], ("mul",)),))


def test_verify_catches_a_pass_that_changes_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archc.compiler.passes.PIPELINE", (broken_pass(),))
    program = model_of(lambda m, x: x * 2.0)
    with pytest.raises(InternalError, match="broken changed `y` of Hand"):
        optimise(program, verify=evaluate)


def test_verify_accepts_the_pipeline_and_runs_each_program_once() -> None:
    seen: list[tuple[Program, tuple[int, ...]]] = []

    def watched(program: Program, inputs: Arrays, weights: Arrays) -> Arrays:
        seen.append((program, inputs["x"].shape))
        return evaluate(program, inputs, weights)

    optimise(model_of(layer), verify=watched)
    assert len(seen) == len(set(seen)) > 4


def test_verify_finds_the_smallest_sizes_that_satisfy_the_constraints() -> None:
    m = Model()
    program = m.program(y=m.input("x", b, s, d))
    constraint = Constraint(d.size // 4 * 4, "==", d.size)
    program = replace(program, bindings=(("d", 512), ("w", 128)), constraints=(constraint,))
    distinct, equal = (dict(c.sizes) for c in cases(program))
    assert distinct == {"d": 4, "w": 3}
    assert equal == {"d": 4, "w": 2}


def test_verify_chooses_no_more_entries_than_there_are() -> None:
    program = example("gpt4_speculated")
    found = [dict(c.sizes) for c in cases(program)]
    assert program.sizes not in found
    assert all(sizes["used"] <= sizes["experts"] for sizes in found)
    optimise(program, verify=evaluate)


def test_the_rule_limit_bisects() -> None:
    program = model_of(layer)
    with knobs.scope(ARCHC_RULE_LIMIT="3"):
        done = optimise(program)
    assert sum(x.fired for x in done.sites) == 3
    same(program, done.program)


def test_stopping_after_a_pass() -> None:
    with knobs.scope(ARCHC_STOP_AFTER="tile-attention"):
        done = optimise(model_of(layer))
    assert {x.pass_name for x in done.sites} <= {"canonicalize", "sink-merges", "tile-attention"}


def test_instruments_report() -> None:
    said: list[str] = []
    with knobs.scope(ARCHC_TIME="1", ARCHC_EXPLAIN="tile-attention", ARCHC_DUMP="canonicalize"):
        optimise(model_of(layer), report=said.append)
    text = "\n".join(said)
    assert "tile-attention in main\n  fired    attend hand.arch" in text
    assert "after canonicalize\nprogram Hand" in text
    assert len(re.findall(r"ms$", text, re.MULTILINE)) == len(PIPELINE)


def test_a_knob_that_does_not_parse_is_the_users_mistake() -> None:
    with knobs.scope(ARCHC_RULE_LIMIT="many"), pytest.raises(BadKnob, match="many"):
        optimise(model_of(layer))


def test_explain_names_rule_line_region_and_bytes() -> None:
    done = optimise(model_of(layer))
    entries = explain_json(done.sites, {**done.program.sizes, "b": 1, "s": 8})
    attend = next(x for x in entries if x["rule"] == "attend")
    assert attend["fired"]
    assert attend["lines"][0].startswith("hand.arch:")
    assert attend["bytes_before"] > attend["bytes_after"] > 0
