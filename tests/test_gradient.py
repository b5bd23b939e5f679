"""Gradients derived from the graph: against differences, against torch's autograd, on each backend."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
from trained import batch, small

import archc
from archc.api import backend
from archc.backends.base import Executable, bind_inputs
from archc.compiler.gradient import Differentiated, columns, derive
from archc.compiler.ir.graph import Attrs, Axis, Builder, Parameter, Program, TensorType
from archc.compiler.ir.verify import verify
from archc.compiler.ops import FUSED, LOOPS, OPS
from archc.compiler.ops.registry import SAMPLE_SIZES, Sample
from archc.compiler.passes import optimise
from archc.compiler.weights import random_weights
from archc.dsl.errors import NoGradient

torch = pytest.importorskip("torch")

EXAMPLES = Path(archc.__file__).parent.parent / "examples"
FLOATS = ("float", "f32", "f64")
Arrays = Mapping[str, np.ndarray]


class Run:
    """Both programs of a derivation, loaded. `tile` is short, so that sequences have several."""

    def __init__(
        self, derived: Differentiated, weights: Arrays, name: str = "numpy", dtype: str = "f64",
        level: int = 1, **options: Any,
    ) -> None:  # fmt: skip
        runner = backend(name)
        self.derived = derived

        def loaded(program: Program | None) -> Executable | None:
            if program is None:
                return None
            unwanted = runner.unwanted_passes(dtype)
            done = optimise(verify(program), level=level, disable=unwanted).program
            return runner.load(verify(done), weights, dtype=dtype, **options)

        self.forward, self.backward = loaded(derived.forward), loaded(derived.backward)

    def __call__(self, inputs: Arrays) -> tuple[float, dict[str, np.ndarray]]:
        states = self.forward.step(inputs, {}, {}).states if self.forward else {}
        done = self.backward.step(inputs, states, {self.derived.backward.past: 0})
        paths = self.derived.gradients.items()
        found = {path: self.backward.array(done.states[state]) for path, state in paths}
        return float(done.outputs["loss"]), found


def trained(program: Program) -> tuple[str, ...]:
    return tuple(p.path for p in program.parameters if p.trained)


# ------------------------------------------------------------------------------ each op alone

WITHOUT = {
    "of a program or of loops, which are differentiated as such": {
        "input", "state", "weight", "const", "table", "index", "size", "result", *LOOPS, *FUSED,
    },
    "made by passes alone, which come later": {
        "append", "convolve", "cumprod", "group_rows", "dequantise", "quantise", "substitute",
    },
}  # fmt: skip


def test_every_op_has_a_gradient_or_none_by_design() -> None:
    missing = {name for name, op in OPS.items() if op.gradient is None}
    assert missing == set().union(*WITHOUT.values()) & set(OPS)


def samples() -> Iterator[Any]:
    for name, op in OPS.items():
        for i, sample in enumerate(op.samples):
            floating = any(t.dtype in FLOATS for t in sample.inputs)
            if op.gradient is not None and floating and name != "packed":
                yield pytest.param(name, sample, id=f"{name}-{i}")


def program_of(name: str, sample: Sample) -> Program:
    """sum(c * op(weights)), with an input c; operands that are no floats are inputs too."""
    builder, parameters = Builder("main"), []
    operands = []
    for k, kind in enumerate(sample.inputs):
        if kind.dtype in FLOATS:
            grouping = tuple((axis,) for axis in kind.axes)
            parameters.append(Parameter(f"w{k}", kind.axes, grouping))
            weight = TensorType("float", kind.axes)
            node = builder.add("weight", (), {"path": f"w{k}"}, (weight,))
            raised = kind.dtype != "float"
            operands.append(builder.add("cast", (node,), {"dtype": kind.dtype}) if raised else node)
        else:
            given = {"name": f"x{k}", "kind": kind.dtype}
            operands.append(builder.add("input", (), given, (kind,)))
    made = builder.add(name, tuple(operands), sample.attrs)
    if len(builder[made].types) > 1:
        made = builder.add("result", (made,), {"index": 0})
    kind = TensorType("float", builder[made].axes)
    c = builder.add("input", (), {"name": "c", "kind": "float"}, (kind,))
    if builder[made].type.dtype not in FLOATS:
        made = builder.add("to_float", (made,))
    product = builder.add("mul", (made, c))
    loss = builder.add("sum", (product,), {"axes": kind.axes}) if kind.axes else product
    function = builder.finish([("loss", loss)])
    return Program("one", (function,), tuple(SAMPLE_SIZES.items()), tuple(parameters))


def drawn(noise: np.random.Generator, kind: TensorType, domain: tuple[float, float]) -> np.ndarray:
    if kind.dtype == "bool":
        return noise.random(shape(kind.axes)) > 0.5
    if kind.dtype == "int":
        return np.floor(noise.uniform(*domain, shape(kind.axes))).astype(np.int64)
    return noise.standard_normal(shape(kind.axes))


STOPPED = {"stop_gradient": 0.0}


def shape(axes: Sequence[Axis]) -> tuple[int, ...]:
    return tuple(axis.size.evaluate(SAMPLE_SIZES) for axis in axes)


@pytest.mark.parametrize(("name", "sample"), [*samples()])
def test_an_op_alone_changes_as_its_gradient_says(name: str, sample: Sample) -> None:
    program, noise = program_of(name, sample), np.random.default_rng(0)
    low, high = sample.domain
    weights = {p.path: noise.uniform(low, high, shape(p.axes)) for p in program.parameters}
    inputs = {
        node.attrs["name"]: drawn(noise, node.type, sample.domain)
        for node in map(program.main.__getitem__, program.main.inputs)
    }
    derived = derive(program, "loss", trained(program), tiled=False)
    _, found = Run(derived, weights, level=0)(inputs)
    slope = {k: noise.standard_normal(w.shape) for k, w in weights.items()}
    step, ends = 1e-6, []
    for sign in (1, -1):
        moved = {k: w + sign * step * slope[k] for k, w in weights.items()}
        ends.append(backend("numpy").load(program, moved, dtype="f64").run(inputs)["loss"])
    got = sum((found[k] * slope[k]).sum() for k in weights)
    expected = STOPPED.get(name, (ends[0] - ends[1]) / (2 * step))
    if name != "round_to":  # as if it rounded nothing
        assert got == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


# ------------------------------------------------------------------------------ whole models


def with_loss(program: Program) -> Program:
    """The same model with one number for all its outputs: sum(y^2 + y)."""
    main = program.main
    builder, total = Builder(main.name), None
    for node in main.nodes:
        builder.append(node)
    for _, i in main.outputs:
        if main[i].type.dtype in FLOATS:
            value = builder.add("add", (builder.add("mul", (i, i)), i))
            value = builder.add("sum", (value,), {"axes": main[i].axes})
            total = value if total is None else builder.add("add", (total, value))
    assert total is not None
    return program.with_functions([replace(builder.finish([("loss", total)]), inputs=main.inputs)])


def tokens(program: Program, length: int = 7) -> dict[str, np.ndarray]:
    """Ids for every input that takes some, the last two of the first row padding."""
    noise, found = np.random.default_rng(0), {}
    for node in (program.main[i] for i in program.main.inputs):
        size = [{"b": 2, "s": length}.get(str(a.size), 6) for a in node.axes]
        found[node.attrs["name"]] = noise.integers(1, 90, size)
        if node.type.dtype == "bool":
            found[node.attrs["name"]] = np.ones(size, bool)
            found[node.attrs["name"]][0, -2:] = False
    return found


def by_autograd(program: Program, weights: Arrays, inputs: Arrays) -> dict[str, np.ndarray]:
    run: Any = backend("torch").load(program, weights, dtype="f64", train=True)
    loss = run.module(*run._given(bind_inputs(program, inputs, run.precision)))["loss"]
    loss.backward()
    file = sys.modules[type(run.module).__module__]
    found = {path: getattr(part, name) for path, part, name in file.weights(run.module)}
    return {
        path: np.zeros(tuple(w.shape)) if w.grad is None else w.grad.numpy()
        for path, w in found.items()
        if isinstance(w, torch.nn.Parameter)
    }


def distance(got: Arrays, expected: Arrays, least: float = 1e-5) -> float:
    """The largest relative error of a weight's gradient; one counts for `least` of the largest."""
    scale = max(np.abs(x).max() for x in expected.values())
    return max(
        float(np.abs(got[k] - x).max() / max(np.abs(x).max(), least * scale))
        for k, x in expected.items()
    )


# grouped heads and rotary; a soft cap; learned positions; relative bias and two stacks; experts; scans
MODELS = (
    "llama",
    "gpt2",
    "gemma",
    "t5",
    "mixtral",
    "mamba",
    "rwkv4",
)


def example(name: str) -> tuple[Program, dict[str, np.ndarray]]:
    model = archc.load(EXAMPLES / f"{name}.arch", preset="tiny")
    given = {"input_ids", "decoder_input_ids", "attention_mask"}.intersection(model.inputs)
    program = with_loss(model.program_for(sorted(given)))
    weights = {k: x.astype(np.float64) for k, x in random_weights(program, 0).items()}
    return program, weights


@pytest.mark.parametrize("name", MODELS)
def test_examples_have_the_gradients_that_autograd_gives(name: str) -> None:
    program, weights = example(name)
    inputs, wanted = tokens(program), trained(program)
    expected = by_autograd(program, weights, inputs)
    for level in (0, 1):
        derived = derive(program, "loss", wanted, tiled=level > 0)
        _, found = Run(derived, weights, level=level, tile=3)(inputs)
        assert found.keys() == set(wanted)
        expected = {path: x.reshape(found[path].shape) for path, x in expected.items()}
        assert distance(found, expected) < 1e-9


@pytest.mark.parametrize(
    ("name", "dtype", "lengths", "tolerance"),
    [
        ("torch", "f32", (1, 17), 1e-4),
        ("triton", "f32", (17,), 1e-4),
        ("triton", "bf16", (1,), 0.1),
    ],
)
def test_backends_agree_at_ragged_lengths(
    name: str,
    dtype: str,
    lengths: tuple[int, ...],
    tolerance: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(columns, "COLUMNS", 8)  # of 19: three tiles
    model = small(tmp_path, layers=1).with_random_weights(0)
    exact = model.gradient("numpy", dtype="f64", level=0)
    fast = model.gradient(name, dtype=dtype)
    for length in lengths:
        (outputs, expected), (got, found) = (g(**batch(length)) for g in (exact, fast))
        assert got["loss"] == pytest.approx(outputs["loss"], rel=0.1 * tolerance)
        assert distance(found, expected, 1e-2) < tolerance


def test_some_weights_and_other_outputs(tmp_path: Path) -> None:
    model, path = small(tmp_path).with_random_weights(0), "layers[1].ffn.up.w"
    (outputs, found) = model.gradient("numpy", weights=[path], outputs=["logits"])(**batch(6))
    _, every = model.gradient("numpy")(**batch(6))
    assert outputs.keys() == {"loss", "logits"}
    assert found.keys() == {path}
    assert np.allclose(found[path], every[path], atol=1e-5)
    # a layer's gradient at float32 rounding of the loss: one step along it lowers the loss
    lower = {**model.given_weights(), path: model.given_weights()[path] - 1e-3 * found[path]}
    changed, _ = model.with_weights(lower).gradient("numpy", weights=[path])(**batch(6))
    assert changed["loss"] < outputs["loss"]


def test_no_scores_are_stored(tmp_path: Path) -> None:
    """Neither program has a value of rows and keys outside the body of an attention."""
    program = small(tmp_path).program
    derived = derive(program, "loss", trained(program))
    assert derived.forward is not None
    for part in (derived.forward, derived.backward):
        done = optimise(part, disable=["pack-weights"]).program
        bodies = {n.attrs["body"] for f in done.functions for n in f.nodes if n.op == "attend"}
        assert len(bodies) == (4 if part is derived.backward else 1)
        for function in (f for f in done.functions if f.name not in bodies):
            for node in function.nodes:
                names = {axis.name for axis in node.axes}
                assert not names >= {"s", "t"}, (function.name, node.op)


def test_no_logits_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the loss nor the embedding has a value of the vocabulary for each token."""
    monkeypatch.setattr(columns, "COLUMNS", 8)
    program = small(tmp_path).program
    weights = {k: x.astype(np.float64) for k, x in random_weights(program, 0).items()}
    found = []
    for outputs, loops in ((["loss"], 3), (["loss", "logits"], 1)):
        derived = derive(program.returning(outputs), "loss", trained(program))
        main = derived.backward.main
        assert sum(node.op == "chunked_scan" for node in main.nodes) == loops
        wide = [n for n in main.nodes if {"s", "vocab"} <= {axis.name for axis in n.axes}]
        assert bool(wide) == ("logits" in outputs)
        found.append(Run(derived, weights, tile=3)(batch(9))[1])
    assert distance(*found) < 1e-9


def test_a_layer_run_twice_is_refused() -> None:
    text = """model Deep {
  input x: float[b, d: 4]
  weight w[d, e: 4] = fan_in
  repeat layers[i: 2] { x = tanh(dot(x, w, d))[e -> d] }
  output y[b, d] = x
  loss = sum(x, b, d)
}"""
    program = small_models.program(text, loss=True)
    node = next(n for n in program.main.nodes if n.op == "repeat")
    again = replace(node, attrs=Attrs({**node.attrs, "indices": (0, 0)}))
    nodes = tuple(again if n.id == node.id else n for n in program.main.nodes)
    twice = program.with_functions([replace(program.main, nodes=nodes)])
    with pytest.raises(NoGradient, match="the same layer again"):
        derive(twice, "loss", trained(twice))
