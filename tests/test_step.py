"""A step of few rows in C++: it keeps the law, and leaves to PyTorch what it has no text for."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch
from splits import Example, example, law
from test_ops import POINTWISE, SIGNED, call_of, operands

from archc.backends.torch import few_rows, step
from archc.backends.torch.step.frame import TYPES
from archc.compiler.ops import OPS, Precision, align, evaluate
from archc.decoder import Decoder

EXACT = 2e-6  # relative, of float32


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    assert few_rows.built(), "a step needs a C++ compiler"


def decoder(found: Example, **options: object) -> Decoder:
    return found.decoder("torch", step_in_cpp=True, **options)


def steps(made: Decoder) -> list[step.Step | None]:
    return list(made.chunk._steps.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_the_law(name: str) -> None:
    """Caches and rings, padding, sizes that are equal, and an older state that is continued."""
    made = decoder(example(name))
    assert law(example(name), made) <= EXACT
    assert all(steps(made))


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"quant": "int8"}, 1e-5),
        ({"quant": "int4", "cache_dtype": "bf16"}, 1e-5),
        ({"dtype": "bf16"}, 2e-2),
    ],
    ids=["int8", "int4", "bf16"],
)
def test_a_step_gives_what_the_module_gives(options: dict[str, str], bound: float) -> None:
    """With as many threads as there are, and with one; of bf16 what rounding leaves."""
    found = Example("llama", tied=True)  # a table of which rows are taken, and products with it
    case = found.cases[0]
    results = []
    for in_cpp, threads in ((False, 1), (True, 1), (True, 3)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        made = found.decoder("torch", step_in_cpp=in_cpp, **options)
        outputs, _ = found.go_on(made, case, [case.rows - 3, 1, 2])
        torch.set_num_threads(before)
        assert bool(steps(made)) == in_cpp
        assert all(steps(made))
        results.append(found.joined(outputs)["logits"].astype(np.float64))
    wanted, *others = results
    for result in others:
        assert np.abs(result - wanted).max() <= bound * np.abs(wanted).max()


def test_many_rows_are_left_to_pytorch() -> None:
    found = example("llama")
    made = decoder(found)
    ids = np.arange(2 * 8).reshape(2, 8) % 7
    _, state = made(None, input_ids=ids[:, :4])
    made(state, input_ids=ids[:, 4:])
    assert not steps(made)
    made(state, input_ids=ids[:, 4:7])
    assert all(steps(made))


def test_what_has_no_text_runs_as_it_is_emitted() -> None:
    found = example("mamba")
    made, case = decoder(found), found.cases[0]
    outputs, _ = found.go_on(made, case, [case.rows - 2, 1, 1])
    wanted, _ = found.go_on(found.decoder("torch"), case, [case.rows - 2, 1, 1])
    assert steps(made) == [None]
    for name, value in found.joined(outputs).items():
        np.testing.assert_array_equal(value, found.joined(wanted)[name])


def test_by_default_small_models_are_not_worth_a_text() -> None:
    found = example("llama")
    made = found.decoder("torch")
    _, state = made(None, input_ids=np.ones((1, 3), int))
    made(state, input_ids=np.ones((1, 1), int))
    assert not steps(made)


F64 = Precision("f64")
CALLS = [(c.values[0], c.values[1], call_of(*c.values, F64)) for c in POINTWISE]
EXPRESSIONS = [
    (name, sample, call, OPS[name].operands(tuple(t.dtype for t in sample.inputs)))
    for name, sample, call in CALLS
    if OPS[name].cpp and {t.dtype for t in (*sample.inputs, *call.outputs)} <= TYPES.keys()
]
NUMPY = {"float": np.float32, "int64_t": np.int64, "int8_t": np.int8, "bool": np.bool_}


@pytest.fixture(scope="module")
def expressions(compiler: None) -> ctypes.CDLL:
    """A function for each of `EXPRESSIONS`, over `n` elements of each operand and of the result."""
    text = '#include "step.h"\n'
    for index, (name, _, call, kinds) in enumerate(EXPRESSIONS):
        template = OPS[name].template("cpp", kinds[-1])
        assert template is not None
        types = zip(kinds, "xyz", strict=False)
        given = [f"const {TYPES[kind]}* {x}" for kind, x in types]
        given.append(f"{TYPES[call.outputs[0].dtype]}* r")
        text += f'extern "C" void f{index}(int64_t n, {", ".join(given)}) {{\n'
        text += "  for (int64_t i = 0; i < n; i++) "
        text += f"r[i] = {template.format('x[i]', 'y[i]', 'z[i]')};\n}}\n"
    path = few_rows.library("expressions", text, ("-O1", "-std=c++20"))
    assert path is not None
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize("index", range(len(EXPRESSIONS)), ids=lambda i: EXPRESSIONS[i][0])
def test_cpp_expressions_equal_the_meaning(expressions: ctypes.CDLL, index: int) -> None:
    name, sample, call, kinds = EXPRESSIONS[index]
    sample = replace(sample, domain=SIGNED.get(name, sample.domain))
    arrays = operands(sample, Precision("f32"))
    if name in ("floordiv", "mod"):
        arrays[1][arrays[1] == 0] = 2
    if name == "pow":
        arrays[1] = np.round(arrays[1])
    (wanted,) = evaluate(name, call, arrays)
    given = []
    for x, t, kind in zip(arrays, sample.inputs, kinds, strict=True):
        aligned = np.broadcast_to(align(x, t.axes, call.outputs[0].axes), wanted.shape)
        given.append(np.ascontiguousarray(aligned, NUMPY[TYPES[kind]]))
    result = np.empty(wanted.shape, NUMPY[TYPES[call.outputs[0].dtype]])
    addresses = [ctypes.c_void_p(x.ctypes.data) for x in (*given, result)]
    getattr(expressions, f"f{index}")(ctypes.c_int64(result.size), *addresses)
    np.testing.assert_allclose(result, wanted, rtol=EXACT, atol=1e-12)


def test_every_elementwise_op_has_its_text() -> None:
    """`round_to` has none: a step that rounds to a format runs as it is emitted."""
    assert {n for n, op in OPS.items() if op.pointwise and op.cpp is None} == {"round_to"}
