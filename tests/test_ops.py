"""Every op of the table, swept over its samples in every model dtype."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archc.compiler.ir.graph import Attrs, Axis, TensorType
from archc.compiler.ops import FORMATS, OPS, Call, Precision, Sample, align, evaluate, infer
from archc.compiler.ops.erf import erf
from archc.compiler.ops.reduce import _matrices
from archc.compiler.ops.registry import SAMPLE_SIZES, N, no_count, prepared, tensor
from archc.dsl.diagnostics import InternalError
from archc.dsl.dims import Dim
from archc.dsl.errors import IndexOutOfRange

MODELS = ("f64", "f32", "bf16", "f16")
CASES = [
    pytest.param(name, sample, id=f"{name}-{i}")
    for name, op in OPS.items()
    if op.prepare is not None
    for i, sample in enumerate(op.samples)
]


def operands(sample: Sample, precision: Precision, seed: int = 0) -> list[np.ndarray]:
    """Random arrays of the sample's types within its domain."""
    rng = np.random.default_rng(seed)
    low, high = sample.domain
    arrays = []
    for t in sample.inputs:
        shape = t.shape(SAMPLE_SIZES)
        values = rng.uniform(low, high, shape)
        if t.dtype in ("int", "i8"):
            values = rng.integers(math.ceil(low), math.floor(high), shape, endpoint=True)
        if t.dtype == "bool":
            values = values > (low + high) / 2
        arrays.append(np.asarray(values).astype(precision.storage(t.dtype)))
    return arrays


def call_of(name: str, sample: Sample, precision: Precision) -> Call:
    attrs = Attrs(sample.attrs)
    return Call(attrs, sample.inputs, infer(name, attrs, sample.inputs), SAMPLE_SIZES, precision)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "sample"), CASES)
def test_result_has_the_inferred_type(name, sample, model):
    precision = Precision(model)
    call = call_of(name, sample, precision)
    results = evaluate(name, call, operands(sample, precision))
    assert len(results) == len(call.outputs)
    for result, type_ in zip(results, call.outputs, strict=True):
        assert result.shape == type_.shape(SAMPLE_SIZES)
        if OPS[name].time != "S":
            assert result.dtype == precision.storage(type_.dtype)


@pytest.mark.parametrize(("name", "sample"), CASES)
def test_layout_has_no_meaning(name, sample):
    """Operands laid out in reverse give the same elements."""
    precision = Precision("f64")
    plain = call_of(name, sample, precision)
    reversed_types = tuple(TensorType(t.dtype, t.axes[::-1]) for t in sample.inputs)
    turned = call_of(name, Sample(reversed_types, sample.attrs), precision)
    arrays = operands(sample, precision)
    expected = evaluate(name, plain, arrays)
    got = evaluate(name, turned, [x.T for x in arrays])
    for a, b, to, have in zip(expected, got, plain.outputs, turned.outputs, strict=True):
        b = b.transpose([have.position(axis) for axis in to.axes])
        np.testing.assert_allclose(b, a, rtol=1e-14, atol=1e-14)


COMPUTING = [case for case in CASES if OPS[case.values[0]].elementwise is not no_count]


@pytest.mark.parametrize(("name", "sample"), COMPUTING)
def test_half_formats_round_the_float32_result(name, sample):
    """bf16 computes as float32 does, on the same rounded operands, then rounds once."""
    half, single = Precision("bf16"), Precision("f32")
    call, exact = call_of(name, sample, half), call_of(name, sample, single)
    rounded = operands(sample, half)
    wide = [x.astype(single.storage(t.dtype)) for x, t in zip(rounded, sample.inputs, strict=True)]
    got, reference = evaluate(name, call, rounded), evaluate(name, exact, wide)
    for g, r, t in zip(got, reference, call.outputs, strict=True):
        np.testing.assert_array_equal(g, r.astype(half.storage(t.dtype)))


# ------------------------------------------------------------------------------ what ops mean

A, B, C = (Axis(name, Dim.of(n)) for name, n in (("a", 2), ("b", 3), ("c", 4)))
BC = Axis("bc", Dim.of(12))


def run(name: str, attrs: dict, *operands: tuple[tuple[Axis, ...], object], model: str = "f64"):
    """One op on (axes, numbers) pairs; element kinds follow from the numbers."""
    kinds = {"b": "bool", "i": "int", "f": "float"}
    arrays = [np.asarray(x) for _, x in operands]
    types = tuple(
        TensorType(kinds[x.dtype.kind], axes) for (axes, _), x in zip(operands, arrays, strict=True)
    )
    frozen = Attrs(attrs)
    call = Call(frozen, types, infer(name, frozen, types), {}, Precision(model))
    results = evaluate(name, call, arrays)
    return results if len(results) > 1 else results[0]


X_ABC = np.arange(24.0).reshape(2, 3, 4)


def test_erf_is_exact_to_one_unit():
    x = np.concatenate([np.linspace(-7, 7, 4001), [0.0, 1e-300, np.inf, -np.inf]])
    exact = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(erf(x), exact, rtol=3e-16, atol=0)
    assert np.isnan(erf(np.array(np.nan)))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("exp", math.exp),
        ("log", math.log),
        ("log1p", math.log1p),
        ("sqrt", math.sqrt),
        ("rsqrt", lambda x: x**-0.5),
        ("sin", math.sin),
        ("cos", math.cos),
        ("tanh", math.tanh),
        ("sigmoid", lambda x: 1 / (1 + math.exp(-x))),
        ("erf", math.erf),
        ("round", round),
        ("floor", math.floor),
        ("abs", abs),
        ("to_int", int),
    ],
)
def test_unary_functions(name, reference):
    x = np.array([0.5, 1.5, 2.5, 0.1])
    np.testing.assert_allclose(run(name, {}, ((C,), x)), [reference(v) for v in x], rtol=1e-15)


@pytest.mark.parametrize(
    ("name", "sample"), [case for case in CASES if OPS[case.values[0]].pointwise]
)
def test_what_is_known_of_operands_changes_no_result(name, sample):
    """That they are stored as their types say, and that one of them may be overwritten."""
    for precision in map(Precision, MODELS):
        call, arrays = call_of(name, sample, precision), operands(sample, precision)
        (plain,) = evaluate(name, call, arrays)
        exact = replace(call, exact=frozenset(range(len(arrays))))
        for reuse in (None, *range(len(arrays))):
            copies = [x.copy() for x in arrays]
            (got,) = evaluate(name, replace(exact, reuse=reuse), copies)
            assert got.dtype == plain.dtype
            np.testing.assert_array_equal(got, plain)
            for place, (x, copy) in enumerate(zip(arrays, copies, strict=True)):
                assert place == reuse or np.array_equal(x, copy)


def test_exact_operands_of_a_ufunc_are_given_to_it_as_they_are():
    sample = Sample((tensor("float", A, N), tensor("float", A, N)))
    call = call_of("mul", sample, Precision("f32"))
    assert prepared("mul", replace(call, exact=frozenset((0, 1)))) is np.multiply
    (made,) = evaluate("mul", call, [np.ones((2, 5), np.float32), np.ones((2, 5))])
    assert made.dtype == np.float32


def test_sigmoid_does_not_overflow():
    with np.errstate(all="raise", under="ignore"):
        got = run("sigmoid", {}, ((A,), [-1000.0, 1000.0]))
    np.testing.assert_array_equal(got, [0, 1])


def test_division_floors_and_mod_has_the_sign_of_the_divisor():
    a, b = [7, -7, 7, -7], [3, 3, -3, -3]
    assert run("floordiv", {}, ((C,), a), ((C,), b)).tolist() == [2, -3, -3, 2]
    assert run("mod", {}, ((C,), a), ((C,), b)).tolist() == [1, 2, -2, -1]
    np.testing.assert_allclose(run("div", {}, ((C,), a), ((C,), b))[0], 7 / 3)


def test_minimum_of_bools_is_and():
    a, b = [[True], [False]], [True, False, True]
    got = run("min", {}, ((A,), np.array(a)[:, 0]), ((B,), b))
    assert got.tolist() == [[True, False, True], [False] * 3]


def test_cast_is_a_floor():
    t = {"dtype": "f32"}
    assert infer("cast", Attrs(t), (tensor("float"),))[0].dtype == "f32"
    assert infer("cast", Attrs(t), (tensor("f64"),))[0].dtype == "f64"
    assert infer("cast", Attrs({"dtype": "float"}), (tensor("f64"),))[0].dtype == "float"


def test_round_to_rounds_in_float64_too():
    assert run("round_to", {"format": "bf16"}, ((), 1.01)) == 1.0078125


def test_merge_and_split_are_row_major_in_the_order_given():
    merged = run("merge", {"axes": (C, B), "into": BC}, ((A, B, C), X_ABC))
    np.testing.assert_array_equal(merged, X_ABC.transpose(0, 2, 1).reshape(2, 12))
    split = run("split", {"axis": BC, "into": (C, B)}, ((A, BC), merged))
    np.testing.assert_array_equal(split, X_ABC.transpose(0, 2, 1))


def test_take_gathers_along_shared_axes():
    index = np.array([[0, 3, 9], [2, -1, 1]])
    got = run("take", {"axis": C, "fill": -5.0}, ((A, B, C), X_ABC), ((A, B), index))
    expected = [
        [X_ABC[a, b, i] if 0 <= i < 4 else -5 for b, i in enumerate(row)]
        for a, row in enumerate(index)
    ]
    np.testing.assert_array_equal(got, expected)


def test_take_shifts_along_its_own_axis():
    shifted = run(
        "take", {"axis": C, "fill": 0.0}, ((C,), [1.0, 2, 3, 4]), ((C,), np.arange(-1, 3))
    )
    np.testing.assert_array_equal(shifted, [0, 1, 2, 3])


def test_take_without_fill_refuses_to_read_outside():
    with pytest.raises(IndexOutOfRange, match="index -1"):
        run("take", {"axis": C, "fill": None}, ((C,), np.ones(4)), ((A,), [0, -1]))


@pytest.mark.parametrize("model", MODELS)
def test_softmax_of_nothing_visible_is_zero(model):
    x = np.array([[-np.inf] * 3, [-np.inf, 0.0, 0.0]])
    got = run("softmax", {"axis": B}, ((A, B), x), model=model)
    np.testing.assert_array_equal(got.astype(float), [[0, 0, 0], [0, 0.5, 0.5]])


def test_topk_keeps_the_lower_index_first():
    values, indices = run("topk", {"axis": C, "k": B}, ((C,), [1.0, 5.0, 1.0, 5.0]))
    assert values.tolist() == [5, 5, 1]
    assert indices.tolist() == [1, 3, 0]


def test_sums_of_halves_accumulate_in_float32():
    long = Axis("long", Dim.of(4096))
    got = run("sum", {"axes": (long,)}, ((long,), np.ones(4096)), model="bf16")
    assert float(got) == 4096


def test_dot_reads_weights_in_place():
    """A projection is one BLAS call on views of its operands, whatever order the weight has."""
    x, w, call = np.ones((2, 3, 4)), np.ones((3, 4, 2)), Call(Attrs(), (), (), {})
    for weight, axes in ((w, (B, C, A)), (np.ascontiguousarray(w.T), (A, C, B))):
        inner = (B, C) if axes[0] is B else (C, B)
        matrix = _matrices(call, axes, (), (A,), inner)(weight)
        assert np.shares_memory(matrix, weight)
    assert np.shares_memory(_matrices(call, (A, B, C), (), (A, B), (C,))(x), x)


def test_dot_counts_a_multiplication_and_an_addition_per_product():
    s = Axis("s", Dim.symbol("s"))
    types = (tensor("float", s, A, B), tensor("float", C, B))
    out = infer("dot", Attrs({"axes": (B,)}), types)
    assert OPS["dot"].flops(Attrs({"axes": (B,)}), types, out) == Dim.symbol("s") * (2 * 2 * 3 * 4)
    assert OPS["exp"].elementwise(Attrs(), types[1:], types[1:]) == Dim.of(12)


@pytest.mark.parametrize(
    ("name", "attrs", "types", "reason"),
    [
        ("add", {}, [("bool", A), ("bool", A)], "arithmetic on bool"),
        ("add", {}, [("int", A)], "needs 2 operands"),
        ("where", {}, [("int", A), ("int", A), ("int", A)], "condition is not bool"),
        ("cast", {"dtype": "int"}, [("float",)], "cannot cast"),
        ("round_to", {"format": "f7"}, [("float",)], "no format"),
        ("split", {"axis": C, "into": (A, B)}, [("float", C)], "do not multiply"),
        ("concat", {"axis": C, "parts": (A, B)}, [("int", A), ("int", B)], "do not add up"),
        ("sum", {"axes": (B,)}, [("float", A)], "not there"),
        ("softmax", {"axis": B}, [("float", A)], "malformed"),
        ("rename", {"pairs": ((A, B),)}, [("float", A)], "keeps the size"),
        ("take", {"axis": C, "fill": None}, [("float", C), ("float", A)], "not an integer"),
        ("const", {"value": "x"}, [], "not a constant"),
        ("repeat", {}, [], "declared, not inferred"),
        ("nonesuch", {}, [], "no op"),
    ],
)
def test_shape_rules_say_why(name, attrs, types, reason):
    with pytest.raises(InternalError, match=reason):
        infer(name, Attrs(attrs), tuple(tensor(*t) for t in types))


# ------------------------------------------------------------------- expressions of other backends


class TritonWords:
    """The words of `triton.language` that templates use, in NumPy."""

    exp, log, sqrt, sin, cos, floor, abs, where = (
        np.exp, np.log, np.sqrt, np.sin, np.cos, np.floor, np.abs, np.where,
    )  # fmt: skip
    exp2, log2 = np.exp2, np.log2
    erf = staticmethod(erf)
    PropagateNan = SimpleNamespace(ALL="all", NONE="none")

    @staticmethod
    def cast(x, dtype):
        return x.astype(dtype)

    @staticmethod
    def minimum(x, y, propagate_nan="none"):
        return (np.minimum if propagate_nan == "all" else np.fmin)(x, y)

    @staticmethod
    def maximum(x, y, propagate_nan="none"):
        return (np.maximum if propagate_nan == "all" else np.fmax)(x, y)

    @staticmethod
    def rsqrt(x):
        return 1 / np.sqrt(x)

    @staticmethod
    def sigmoid(x):
        return 1 / (1 + np.exp(-x))


class CValue(np.ndarray):
    """Integers that divide as C does, and arrays that convert by `.to`."""

    def to(self, dtype):
        return self.astype(dtype)

    def __floordiv__(self, other):
        return np.trunc(np.true_divide(self, other)).astype(self.dtype).view(CValue)

    def __mod__(self, other):
        return np.fmod(self, other)


SIGNED = {"floordiv": (-9, 9), "mod": (-9, 9), "pow": (-3, 3), "log1p": (-1e-9, 1e-9)}
POINTWISE = [case for case in CASES if OPS[case.values[0]].pointwise]


@pytest.mark.parametrize(("name", "sample"), POINTWISE)
def test_triton_expressions_equal_the_meaning(name, sample):
    domain = SIGNED.get(name, sample.domain)
    sample = Sample(sample.inputs, sample.attrs, domain)
    call = call_of(name, sample, Precision("f64"))
    arrays = operands(sample, Precision("f64"))
    if name in ("floordiv", "mod"):
        arrays[1][arrays[1] == 0] = 2
    if name == "pow":
        arrays[1] = np.round(arrays[1])
    (expected,) = evaluate(name, call, arrays)
    kind = OPS[name].operands(tuple(t.dtype for t in sample.inputs))[-1]
    text = OPS[name].template("triton", kind)
    aligned = [
        align(x, t.axes, call.outputs[0].axes).view(CValue)
        for x, t in zip(arrays, sample.inputs, strict=True)
    ]
    words = {"dtype": "dtype", "format": "format"}
    names = {
        "tl": TritonWords,
        "dtype": expected.dtype,
        "format": FORMATS.get(sample.attrs.get("format")),
    }
    got = eval(text.format("x", "y", "z", **words), names | dict(zip("xyz", aligned, strict=False)))
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize(("name", "sample"), POINTWISE)
def test_torch_expressions_equal_the_meaning(name, sample):
    torch = pytest.importorskip("torch")
    call = call_of(name, sample, Precision("f64"))
    arrays = operands(sample, Precision("f64"))
    (expected,) = evaluate(name, call, arrays)
    kinds = OPS[name].operands(tuple(t.dtype for t in sample.inputs))
    to = {"float": torch.float64, "f32": torch.float64, "f64": torch.float64}
    to |= {"int": torch.int64, "bool": torch.bool}
    formats = {"f8_e4m3": torch.float8_e4m3fn, "f8_e5m2": torch.float8_e5m2}
    formats |= {"f64": torch.float64, "f32": torch.float32}
    formats |= {"bf16": torch.bfloat16, "f16": torch.float16}
    aligned = [
        torch.from_numpy(align(x, t.axes, call.outputs[0].axes).copy()).to(to[kind])
        for x, t, kind in zip(arrays, sample.inputs, kinds, strict=True)
    ]
    names = {"torch": torch, "dtype": to[call.outputs[0].dtype]}
    names["format"] = formats.get(sample.attrs.get("format"))
    text = OPS[name].template("torch", kinds[-1])
    text = text.format("x", "y", "z", dtype="dtype", format="format")
    got = eval(text, names | dict(zip("xyz", aligned, strict=False)))
    assert got.dtype == names["dtype"]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


AXES = tuple(Axis(name, Dim.of(i + 1)) for i, name in enumerate("vwxyz"))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_dot_equals_einsum(data):
    """Any mix of batch, contracted and lone axes, in any layout."""
    left, right = (
        tuple(data.draw(st.lists(st.sampled_from(AXES), unique=True, max_size=4))) for _ in "ab"
    )
    union = tuple(dict.fromkeys((*left, *right)))
    summed = tuple(axis for axis in union if data.draw(st.booleans()))
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=[axis.size.constant for axis in axes]) for axes in (left, right))
    got = run("dot", {"axes": summed}, (left, a), (right, b))
    letters = ["".join(x.name for x in axes) for axes in (left, right)]
    result = "".join(x.name for x in union if x not in summed)
    expected = np.einsum(f"{letters[0]},{letters[1]}->{result}", a, b)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_take_equals_a_loop(data):
    """Any indexed axis, any axes shared with the index, indices outside reading the fill."""
    axes = tuple(data.draw(st.lists(st.sampled_from(AXES), unique=True, min_size=1, max_size=3)))
    axis = data.draw(st.sampled_from(axes))
    by = tuple(data.draw(st.lists(st.sampled_from(AXES), unique=True, max_size=3)))
    rng = np.random.default_rng(0)
    x = rng.normal(size=[a.size.constant for a in axes])
    index = rng.integers(-2, axis.size.constant + 2, [a.size.constant for a in by])
    attrs = Attrs({"axis": axis, "fill": 7.0})
    types = tensor("float", *axes), tensor("int", *by)
    (to,) = infer("take", attrs, types)
    got = run("take", dict(attrs), (axes, x), (by, index))
    for place in np.ndindex(got.shape):
        at = dict(zip(to.axes, place, strict=True))
        i = index[tuple(at[a] for a in by)]
        inside = 0 <= i < axis.size.constant
        expected = x[tuple(i if a == axis else at[a] for a in axes)] if inside else 7.0
        assert got[place] == expected
