"""Generated kernels against the NumPy backend in float64: every template, ragged sizes, half
floats."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace

import numpy as np
import pytest
import small_models
from graphs import (
    SIZES,
    Model,
    Value,
    attention,
    b,
    causal,
    d,
    e,
    g,
    h,
    heads,
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
from kernel_checks import check, inputs_of, weights_of

from archc.backends.numpy import NumpyBackend
from archc.backends.triton import TritonBackend
from archc.backends.triton.host import RESERVED
from archc.compiler.ir.graph import (
    Attrs,
    Axis,
    Builder,
    Function,
    Node,
    Parameter,
    Program,
    TensorType,
)
from archc.compiler.passes import optimise
from archc.dsl.dims import Dim
from archc.dsl.errors import MissingPackage, NoLowering

pytest.importorskip("triton")


def model_with_x() -> tuple[Model, Value]:
    m = Model()
    return m, m.input("x", b, s, d)


def test_transformer_layer():
    m, x = model_with_x()
    check(m.program(y=layer(m, x)))


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_transformer_layer_in_half_floats(dtype):
    m, x = model_with_x()
    check(m.program(y=layer(m, x)), shapes=((2, 17),), dtype=dtype)


def heads_of(m: Model) -> tuple[Value, Value, Value]:
    return m.input("q", b, s, g, r, e), m.input("k", b, s, g, e), m.input("v", b, s, g, e)


def masks(m: Model) -> dict[str, Value]:
    near = m.index(s) - m.index(t)
    present = m.input("present", b, s, dtype="bool").rename((s, t))
    return {
        "causal": causal(m),
        "window": causal(m) & near.op("lt", m.value(3)),
        "data": causal(m) & present,
        "none visible": present & (m.index(t) <= -1),
    }


@pytest.mark.parametrize("mask", ["causal", "window", "data", "none visible"])
def test_attention_under_masks(mask):
    m = Model()
    q, k, v = heads_of(m)
    check(m.program(y=attention(q, k, v, scores(q, k), masks(m)[mask])), shapes=((2, 5), (1, 70)))


def test_attention_with_a_changed_score():
    m = Model()
    q, k, v = heads_of(m)
    slope = m.input("slope", heads)
    capped = (scores(q, k) / 5.0).op("tanh") * 5.0
    biased = capped + (m.index(t) - m.index(s)).op("to_float") * slope
    check(m.program(y=attention(q, k, v, biased, causal(m))), shapes=((2, 17),))


def sized(name: str, size: int) -> Axis:
    return Axis(name, Dim.of(size))


@pytest.mark.parametrize(("content", "value"), [(20, 40), (300, 12)])
def test_attention_with_two_products_in_the_score(content, value):
    m, n, c, p, w = Model(), sized("n", 3), sized("c", content), sized("p", 12), sized("w", value)
    q, k, v = m.input("q", b, s, n, c), m.input("k", b, t, n, c), m.input("v", b, t, n, w)
    a = q.dot(k, c) * 0.1 + m.input("q2", b, s, n, p).dot(m.input("k2", b, t, p), p) * 0.2
    weights = m.where(causal(m), a, float("-inf")).op("softmax", axis=t)
    program = m.program(y=weights.dot(v, t))
    assert [n.op for n in optimise(program).program.main.nodes].count("attend") == 1
    check(program, levels=(1,), shapes=((1, 1), (2, 17)))


def test_difference_of_two_attentions():
    m, c = Model(), sized("c", 8)
    v, weights = m.input("v", b, t, c), []
    for i in "12":
        a = m.input(f"q{i}", b, s, c).dot(m.input(f"k{i}", b, t, c), c)
        weights.append(m.where(causal(m), a, float("-inf")).op("softmax", axis=t))
    check(m.program(y=(weights[0] - weights[1] * 0.3).dot(v, t)), shapes=((1, 17),))


def test_pooling_by_attention():
    m, x = model_with_x()
    check(m.program(y=x.dot(m.weight("q", d), d).op("softmax", axis=s).dot(x, s)))


def test_norm_folded_into_a_product():
    m, x = model_with_x()
    gain, bias = m.weight("gain", d), m.weight("bias", d)
    check(m.program(y=layernorm(x, gain, bias).dot(m.weight("w", hidden, d), d)))


def test_only_proved_tiles_are_visited():
    m = Model()
    q, k, v = heads_of(m)
    window = causal(m) & (m.index(s) - m.index(t)).op("lt", m.value(3))
    program = optimise(m.program(y=attention(q, k, v, scores(q, k), window))).program
    source = TritonBackend().emit(program)["kernels.py"]
    assert re.search(r"for \w+ in range\(first, stop, BLOCK_N\)", source)
    m = Model()
    q, k, v = heads_of(m)
    present = m.input("present", b, s, dtype="bool").rename((s, t))
    padded = m.program(y=attention(q, k, v, scores(q, k), present))
    program = optimise(padded, disable=["visible-keys"]).program
    source = TritonBackend().emit(program)["kernels.py"]
    assert re.search(r"for \w+ in range\(0, n_s, BLOCK_N\)", source)


@pytest.mark.parametrize("norm", [rmsnorm, layernorm])
def test_norm_is_one_kernel(norm):
    m, x = model_with_x()
    weights = [m.weight(name, d) for name in ("gain", "bias")][: 1 if norm is rmsnorm else 2]
    program = m.program(y=norm(x, *weights))
    check(program)
    assert kernel_count(optimise(program).program) == 1


def kernel_count(program: Program) -> int:
    return TritonBackend().emit(program)["kernels.py"].count("@triton.jit")


def test_pooled_and_normalised():
    m, x = model_with_x()
    present = m.input("present", b, s, dtype="bool").op("to_float")
    mean = (x * present).sum(s) / (present.sum(s) + 1e-3)
    norm = (mean * mean).sum(d).op("sqrt").op("max", m.value(1e-6))
    check(m.program(y=mean / norm))


def test_embedding_and_tied_head():
    m = Model()
    ids, table = m.input("ids", b, s, dtype="int"), m.weight("embed", vocab, d)
    x = table.op("take", ids, axis=vocab, fill=None)
    check(m.program(x=x, logits=x.dot(table, d)))


def test_gather_that_leaves_the_axis():
    m, x = model_with_x()
    before = x.op("take", (m.index(s) - 2).rename((s, t)), axis=s, fill=0.0)
    check(m.program(y=before))


@pytest.mark.parametrize("order", [(g, r, e), (e, g, r)])
def test_merged_and_split_axes(order):
    m = Model()
    x, w = m.input("x", b, s, g, r, e), m.weight("w", d, h)
    check(m.program(y=x.merge(order, h).dot(w, h), z=x.merge(order, h)))


def test_products_of_every_shape():
    m, x = model_with_x()
    y, w = x.rename((s, t)), m.weight("w", d)
    gram, row = x.dot(y, d), x.dot(w, d)
    outer = row.dot(m.input("z", hidden), ())
    program = m.program(gram=gram, row=row, outer=outer, all=x.dot(x, (b, s, d)))
    check(program)


def test_products_over_one_entry():
    """Neither operand depends on the summed axis: its tile has more entries than there are."""
    m, x = model_with_x()
    one = sized("one", 1)
    q = x.split(d, (sized("twelve", 12), one))
    check(m.program(y=q.dot(q.rename((s, t)), one)))


def test_heads_of_no_width():
    """What lies along an axis without elements is empty, and a sum over it is zero."""
    text = """use std
model M {
  d = 8; heads = 2; n = 0
  input x: float[b, s, d]
  narrow = x |> linear(heads, n)
  x += narrow[(heads, n) -> all] |> linear(d)
  output y[b, s, d] = x |> attention(heads, heads, n, scale = 1)
}
"""
    check(small_models.program(text), shapes=((2, 5),))


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_names_of_the_written_methods(name):
    """A weight or a repeat that is called as something in `model.py` is called otherwise there."""
    text = f"""use std
model M {{
  d = 4
  input x: float[b, d]
  weight {name}_[d] = normal
  x += x * {name}_
  repeat {name}[i: 2] {{ x += x |> linear(d) }}
  output y[b, d] = x
}}
"""
    found = small_models.program(text)
    (source,) = (t for n, t in TritonBackend().emit(found).items() if n == "model.py")
    assert not re.search(rf"self\.{name} = (weights|\[)", source)


def test_a_weight_called_forward():
    text = """model M {
  d = 4
  input x: float[b, d]
  weight forward[d] = normal
  output y[b, d] = x * forward
}
"""
    program = small_models.program(text)
    weights = weights_of(program)
    x = np.ones((2, 4), np.float32)
    (y,) = TritonBackend().load(program, weights).run({"x": x}).values()
    assert np.allclose(y, weights["forward"])


def counting(line: str) -> Program:
    return small_models.program(
        f"model M {{\n  input i: ids[b] < 100\n  input j: int[b]\n  output y[b] = {line}\n}}\n"
    )


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("factor", [2**25, -(2**25)])
def test_whole_numbers_beyond_32_bits_are_refused(level, factor):
    inputs = {"i": np.array([99]), "j": np.array([1])}
    wide = optimise(counting(f"j + i * {factor}"), level=level).program
    with pytest.raises(NoLowering, match="more than 32 bits"):
        TritonBackend().emit(wide)
    program = optimise(counting(f"j + i * {factor // 4}"), level=level).program
    executable = TritonBackend().load(program, {})
    assert executable.run(inputs)["y"] == 1 + 99 * (factor // 4)
    with pytest.raises(NoLowering, match="4294967296, a whole number of more than 32 bits"):
        executable.run(inputs | {"j": np.array([2**32])})


def test_long_rows_run_in_a_loop():
    m = Model()
    x = m.input("x", b, s, d)
    check(
        m.program(y=x.op("softmax", axis=s), z=x.op("amax", axes=(s,))), shapes=((2, 5), (1, 300))
    )


def test_results_along_several_axes():
    m, x = model_with_x()
    mean = x.sum(d) / 12.0
    check(m.program(y=x - mean, mean=mean, flat=(x * 2.0).split(d, (g, r, sized("two", 2)))))


def moved(program: Program, prefix: str) -> list[Parameter]:
    return [replace(p, path=prefix + p.path) for p in program.parameters]


def stacked(program: Program, count: int, first: Function) -> Program:
    """`count` layers of kind `first`, as a repeat with a scalar that differs."""
    main = Builder("main")
    kind = TensorType("float", (b, s, d))
    x = main.add("input", (), {"name": "x", "kind": "float"}, (kind,))
    attrs = {
        "path": "layers", "kinds": (first.name,) * count, "indices": tuple(range(count)),
        "scalars": (tuple(0.5 + i for i in range(count)),),
    }  # fmt: skip
    repeat = main.append(Node(1, "repeat", (x,), Attrs(attrs), (kind,)))
    y = main.add("rename", (repeat,), {"pairs": ()})
    functions = (main.finish([("y", y)]), first)
    paths = [p for i in range(count) for p in moved(program, f"layers[{i}].")]
    return Program("Stack", functions, program.bindings, tuple(paths))


def test_layers_share_one_kind():
    m = Model("block")
    x, scale = m.input("x", b, s, d), m.input("scale")
    one = m.program(
        x=x + x.dot(m.weight("w", hidden, d), d).dot(m.weight("v", hidden, d), hidden) * scale
    )
    program = stacked(one, 3, one.main if one.main_name == "block" else one.functions[0])
    check(program, levels=(0,))
    source = TritonBackend().emit(program)["model.py"]
    assert source.count("class Block:") == 1
    assert source.count(", Block, ") == 3


def test_trace_has_every_value():
    m, x = model_with_x()
    program = optimise(m.program(y=layer(m, x))).program
    weights, inputs = weights_of(program), inputs_of(program, 2, 5)
    _, expected = NumpyBackend().load(program, weights, dtype="f64").trace(inputs)
    outputs, values = TritonBackend().load(program, weights).trace(inputs)
    sources = {n.id for n in program.main.nodes if n.op in ("weight", "derived", "table")}
    assert set(values) == {key for key in expected if key[1] not in sources}
    assert outputs["y"].shape == (2, 5, SIZES["d"])
    for key, value in values.items():
        assert value.shape == expected[key].shape
        assert np.allclose(value, expected[key], atol=1e-4), program.main[key[1]]


def test_equal_kernels_are_emitted_once():
    m, x = model_with_x()
    y = x.op("sigmoid").op("sigmoid")
    assert kernel_count(m.program(y=y)) == 1


def test_kernels_say_where_they_come_from():
    m, x = model_with_x()
    m.region = "block.act"
    source = TritonBackend().emit(m.program(y=x.op("sigmoid")))["kernels.py"]
    assert "hand.arch:2" in source
    assert "block.act" in source
    assert "def block_act_sigmoid_bsd(" in source


def bound_of(program: Program) -> str:
    source = TritonBackend().emit(program)["kernels.py"]
    (line,) = re.findall(r"# bytes in bf16, at least: (.*)", source)
    return line


def test_kernels_say_what_they_move_at_least():
    m, c, wide = Model(), sized("c", 64), sized("wide", 96)
    x, w = m.input("x", b, s, c), m.weight("w", wide, c)
    product = bound_of(m.program(y=x.dot(w, c)))
    assert product == f"{2 * 64 + 2 * 96}*b*s + {2 * 64 * 96}"
    m, half = Model(), sized("half", 32)
    x = m.input("x", b, s, c).op("slice", axis=c, into=half, start=Dim.of(32), step=1)
    assert bound_of(m.program(y=x.op("sigmoid"))) == f"{2 * 32 + 2 * 32}*b*s"
    m = Model()
    ids, table = m.input("ids", b, s, dtype="int"), m.weight("table", wide, c)
    found = table.op("take", ids, axis=wide, fill=None)
    assert bound_of(m.program(y=found)) == f"{8 + 2 * 64}*b*s"


def test_packages_that_are_not_installed_are_named(monkeypatch):
    m, x = model_with_x()
    program, found = m.program(y=x.op("sigmoid")), importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "triton" else found(name)
    )
    with pytest.raises(MissingPackage, match=r"archc\[triton\]"):
        TritonBackend().load(program, {})
    assert "@triton.jit" in TritonBackend().emit(program)["kernels.py"]


def test_float64_is_refused():
    m, x = model_with_x()
    with pytest.raises(NoLowering, match="f64"):
        TritonBackend().load(m.program(y=x.op("sigmoid")), {}, dtype="f64")
    with pytest.raises(NoLowering, match="f64"):
        TritonBackend().emit(m.program(y=x.cast("f64").op("exp")))
