"""Matrices packed for oneDNN: where, where not, and that no result changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checks import only, ops, ran, reason, sites
from graphs import Model, Value, b, d, hidden, layer, layernorm, rmsnorm, s, vocab
from references import REFERENCES, distance

import archc
from archc.backends.numpy import NumpyBackend
from archc.backends.torch import TorchBackend
from archc.compiler.ir.graph import Program
from archc.compiler.passes import optimise, pack_weights
from archc.compiler.weights import random_weights

torch = pytest.importorskip("torch")

EXAMPLES = Path(archc.__file__).parent.parent / "examples"
ONEDNN = torch.backends.mkldnn.is_available() and (
    torch.backends.cpu.get_cpu_capability().startswith("AVX")
)


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices are packed too, but where a test says otherwise."""
    monkeypatch.setattr(pack_weights, "LEAST", 1)


def program(build=layer) -> Program:
    m = Model()
    return m.program(y=build(m, m.input("x", b, s, d)))


def given() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).normal(size=(2, 5, 12))}


def loaded(source: Program, dtype: str = "f32", **options: object):
    unwanted = TorchBackend().unwanted_passes(dtype, **options)
    made = optimise(source, disable=unwanted).program
    return TorchBackend().load(made, random_weights(source), dtype=dtype, **options)


def stored_row_wise(m: Model, x: Value) -> Value:
    """Weights as [inputs, outputs], a bias, and a product that a norm was folded into."""
    n = layernorm(x, m.weight("g", d), m.weight("b", d))
    y = n.dot(m.weight("up", d, hidden), d) + m.weight("ub", hidden)
    return x + rmsnorm(y.op("tanh"), m.weight("g2", hidden), hidden).dot(
        m.weight("down", hidden, d), hidden
    )


# ------------------------------------------------------------------------------------- the pass


def test_every_matrix_of_a_layer_is_one_packed_parameter() -> None:
    done = ran(program(), disable=["fuse-linear"])
    assert [site.fired for site in sites(done, "pack-weights")] == [True] * 4
    assert ops(done.program)["derived"] == 4
    assert ops(done.program)["packed"] == 0  # each is inside a derived parameter


def test_a_matrix_read_before_a_product_begins_stays_plain(monkeypatch) -> None:
    monkeypatch.setattr(pack_weights, "LEAST", 12 * 10 + 1)
    done = ran(program(lambda m, x: x.dot(m.weight("w", hidden, d), d)), disable=["fuse-linear"])
    assert reason(done, "pack-weights") == "120 elements are read before a packed product has begun"
    assert ops(done.program)["derived"] == 0


def test_a_tied_table_is_not_stored_twice() -> None:
    m = Model()
    ids = m.input("ids", b, s, dtype="int", below=vocab.size)
    table = m.weight("table", vocab, d)
    done = ran(m.program(y=table.op("take", ids, axis=vocab, fill=None).dot(table, d)))
    assert reason(done, "pack-weights") == (
        "`table` is read at LINE too: folding would store it twice"
    )


def test_an_expression_that_shares_a_matrix_is_never_packed_at_every_call() -> None:
    def build(m: Model, x: Value) -> Value:
        w = m.weight("w", hidden, d)
        return x.dot(w + m.weight("v", hidden, d), d) + x.dot(w * 2.0, d)

    done = ran(program(build), disable=["pack-projections", "fuse-linear"])
    assert not any(site.fired for site in sites(done, "pack-weights"))


def test_products_with_no_matrix_are_left_alone() -> None:
    """A vector of weights, and a weight that shares an axis with the result."""

    def build(m: Model, x: Value) -> Value:
        return x.dot(m.weight("v", d), d) + (x * m.weight("u", d)).sum(d)

    done = ran(program(build), disable=only("pack-weights"))
    assert sites(done, "pack-weights") == []


# -------------------------------------------------------------------------------------- the text


@pytest.mark.parametrize("build", [layer, stored_row_wise])
@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 1e-5), ("bf16", 2e-2)])
def test_the_same_results(build, dtype, tolerance) -> None:
    source = program(build)
    gold = NumpyBackend().load(source, random_weights(source), dtype="f64").run(given())["y"]
    run = loaded(source, dtype)
    assert distance(run.run(given())["y"].astype(np.float64), gold) < tolerance
    _, values = run.trace(given())
    assert all(np.isfinite(v.astype(np.float64)).all() for v in values.values())


@pytest.mark.skipif(not ONEDNN, reason="this PyTorch has no oneDNN for this CPU")
def test_a_packed_matrix_replaces_the_weights_it_is_made_of() -> None:
    run = loaded(program())
    buffers = dict(run.module.named_buffers())
    assert {n for n, t in buffers.items() if t.is_mkldnn} == {
        "packed", "o_packed", "packed_2", "down_packed",
    }  # fmt: skip
    assert {n for n, _ in run.module.named_parameters()} == {"norm1", "norm2"}


def test_without_onednn_the_text_decides_for_plain_products(monkeypatch) -> None:
    source = program()
    packed = loaded(source).run(given())["y"]
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = loaded(source)
    assert not any(t.is_mkldnn for t in plain.module.buffers())
    np.testing.assert_allclose(plain.run(given())["y"], packed, 1e-4, 1e-5)


def test_gradients_reach_the_inputs_of_packed_products() -> None:
    source = program()
    x = torch.tensor(given()["x"], dtype=torch.float32)
    grads = []
    for pack in (True, False):
        leaf = x.clone().requires_grad_()
        loaded(source, pack_weights=pack).module(leaf)["y"].square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)
    assert grads[0].abs().max() > 0


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("f64", {}),
        ("f16", {}),
        ("f32", {"train": True}),
        ("f32", {"device": "cuda"}),
        ("bf16", {"pack_weights": False}),
    ],
)
def test_where_nothing_is_packed(dtype, options) -> None:
    assert "pack-weights" in TorchBackend().unwanted_passes(dtype, **options)
    assert "pack-weights" not in TorchBackend().unwanted_passes("bf16")


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_norms_are_folded_only_where_what_follows_is_joined(dtype) -> None:
    eager = TorchBackend().unwanted_passes(dtype)
    compiled = TorchBackend().unwanted_passes(dtype, compile=True)
    assert "fuse-norm-linear" in eager
    assert ("fuse-norm-linear" in compiled) == (dtype == "bf16")  # whose products are float32


def test_what_is_compiled_reads_packed_weights(tmp_path) -> None:
    """A tensor in oneDNN's order does not say so while a graph is traced."""
    path = tmp_path / "m.arch"
    path.write_text("""use std
model M {
  input x: float[b, d: 256]
  output y[b, e] = x |> linear(e: 256, bias = true) as l
}
""")
    made = archc.load(path).with_random_weights(seed=0)
    given = np.random.default_rng(0).standard_normal((3, 256))
    compiled = made.compile("torch", compile=True)
    assert any(n.op == "packed" for f in compiled.program.functions for n in f.nodes)
    expected = made.compile(dtype="f64", level=0)(x=given)["y"]
    assert distance(compiled(x=given)["y"], expected) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert-mlm"])
def test_published_models(name, tmp_path) -> None:
    reference = REFERENCES[name]
    model, inputs = reference.build(tmp_path), reference.inputs()
    found = archc.load(EXAMPLES / f"{reference.example}.arch", weights=tmp_path)
    compiled = found.compile("torch", inputs=inputs)
    assert any(n.op == "packed" for f in compiled.program.functions for n in f.nodes)
    seen = np.asarray(inputs["attention_mask"], bool)
    got = compiled(**inputs)[reference.output][seen]
    assert distance(got, reference.run(model, inputs)[seen]) < 1e-5
