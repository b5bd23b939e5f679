"""group-experts: products with the matrices that an index picks, on every backend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from checks import only, ops, ran, sites
from graphs import Model, Value, b, d, e, hidden, r, s, t, vocab
from references import distance
from small_models import inputs, model, program, weights

from archc.backends.numpy import NumpyBackend
from archc.backends.torch import TorchBackend
from archc.backends.triton import TritonBackend
from archc.compiler.ir.graph import Axis, Program
from archc.compiler.passes import optimise
from archc.dsl.dims import Dim

k = Axis("k", Dim.of(2))

# ------------------------------------------------------------------------ where it fires


def chosen(m: Model, *axes: Axis, below: Axis = vocab) -> Value:
    return m.input("ids", *axes, dtype="int", below=below.size)


def picked(w: Value, ids: Value, axis: Axis = vocab, fill: float | None = None) -> Value:
    return w.op("take", ids, axis=axis, fill=fill)


def fired(m: Model, y: Value) -> bool:
    done = ran(m.program(y=y), disable=only("group-experts"))
    assert ops(done.program)["grouped"] == len([x for x in sites(done, "group-experts") if x.fired])
    return ops(done.program)["grouped"] == 1


MATRICES = {  # axes of x, of the index, of the weight, the summed ones
    "one matrix a row": ((b, s, d), (b, s), (vocab, hidden, d), (d,)),
    "several a row": ((b, s, d), (b, s, k), (vocab, hidden, d), (d,)),
    "one a sequence": ((b, s, d), (b,), (vocab, hidden, d), (d,)),
    "the index has other axes": ((s, d), (b, k), (vocab, hidden, d), (d,)),
    "stored the other way": ((b, s, d), (s,), (d, vocab, hidden), (d,)),
    "several axes on both sides": ((b, r, e), (s, b), (r, hidden, vocab, e, d), (e, r)),
    "the index runs along the entries": ((b, s, d), (vocab,), (vocab, hidden, d), (d,)),
}


@pytest.mark.parametrize("case", MATRICES)
@pytest.mark.parametrize("swapped", [False, True])
def test_products_with_picked_matrices_are_grouped(case: str, swapped: bool) -> None:
    x_axes, i_axes, w_axes, summed = MATRICES[case]
    m = Model()
    x, ids = m.input("x", *x_axes), chosen(m, *i_axes)
    w = picked(m.weight("w", *w_axes), ids)
    assert fired(m, w.dot(x, *summed) if swapped else x.dot(w, *summed))


def test_a_view_of_a_weight_and_one_made_of_weights_count() -> None:
    m = Model()
    w = m.weight("w", vocab, r, e, hidden) * m.weight("gain", e)
    product = m.input("x", b, d).split(d, (r, e)).dot(picked(w, chosen(m, b)), r, e)
    assert fired(m, product)


PLAIN = {
    "vectors": lambda m, x, i: x.dot(picked(m.weight("w", vocab, d), i), d),
    "a fill": lambda m, x, i: x.dot(picked(m.weight("w", vocab, hidden, d), i, fill=0.0), d),
    "of a sequence": lambda m, x, i: x.dot(picked(m.input("w", t, hidden, d), i, axis=t), d),
    "a shared axis": lambda m, x, i: x.dot(picked(m.weight("w", vocab, hidden, d), i), hidden),
    "a sum over the index": lambda m, x, i: x.dot(picked(m.weight("w", vocab, hidden, d), i), d, s),
    "a vector of one side": lambda m, x, i: x.sum(d).dot(
        picked(m.weight("w", vocab, hidden, d), i), d
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLAIN)
def test_other_products_stay(case: str) -> None:
    m = Model()
    x, ids = m.input("x", b, s, d), chosen(m, b, s)
    assert not fired(m, PLAIN[case](m, x, ids))


def test_the_order_of_rows_is_found_once() -> None:
    """Gate, up and down of one choice share it in the emitted text."""
    text = model("output y = x |> mixture(4, gated_ffn(6), top_softmax(2)) as moe")
    emitted = TorchBackend().emit(optimise(program(text)).program)["model.py"]
    forward = emitted[emitted.index("class Model") :]
    assert forward.count("rows_by_index(") == 1
    assert forward.count("grouped_linear(") == 3
    host = TritonBackend().emit(optimise(program(text)).program)["model.py"]
    assert host.count("run.group_rows(") == 1
    assert host.count(", picked, rows, ") == 2  # gate, up and what is made of both; down


# ------------------------------------------------------------------------ what it computes

MIX = """block mix(n, expert, used)(x[..., d], score[..., m]) -> [..., d] {
  bank f[n] = expert
  best, chosen = topk(score[m: 0..n], m, k: used)
  y[..., d] = dot(f[chosen](x), 1 + best, k)
  return y
}"""
SCORES = {
    "spread": lambda noise, shape: noise.standard_normal(shape),
    "all on one": lambda noise, shape: np.broadcast_to(np.arange(shape[-1], 0, -1.0), shape),
    "ties": lambda noise, shape: noise.integers(0, 2, shape).astype(float),
    "all equal": lambda noise, shape: np.zeros(shape),
}
SHAPES = {  # experts, used, hidden, rows, tokens
    "few": (3, 2, 6, 2, 5),
    "one token": (4, 2, 6, 1, 1),
    "more experts than rows": (8, 1, 6, 1, 3),
    "everything collides": (2, 2, 2, 2, 2),
    "all experts": (5, 5, 8, 2, 5),
}
EXPERTS = {
    "gated": "gated_ffn({h})",
    "biased": "ffn({h}, act = gelu, bias = true)",
    "gated with biases": "gated_ffn({h}, bias = true)",
}
PLACED = {
    "once": "output y = x |> mix({n}, {e}, {k}, score = z) as m",
    "in a repeat": "repeat layers[i: 2] {{ x += x |> mix({n}, {e}, {k}, score = z) as m }}\noutput y = x",
    "in a scan": (
        "scan s with h[b, d] = 0 {{ h = 0.5 * h + ((x + h) |> mix({n}, {e}, {k}, score = z) as m) }}"
        "\noutput y[b, s, d] = h"
    ),
}


def routed(shape: str, expert: str = "gated", placed: str = "once") -> Program:
    n, used, h, _, _ = SHAPES[shape]
    body = PLACED[placed].format(n=n, k=used, e=EXPERTS[expert].format(h=h))
    return program(model(f"input z: float[b, s, m: 8]\n{body}", MIX))


def values(shape: str, kind: str = "spread") -> dict[str, np.ndarray]:
    *_, rows, tokens = SHAPES[shape]
    noise = np.random.default_rng(5)
    return {
        "x": noise.standard_normal((rows, tokens, 8)),
        "z": np.ascontiguousarray(SCORES[kind](noise, (rows, tokens, 8))),
    }


def both(plain: Program, given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The output in float64 without passes, and with them."""
    made, w = optimise(plain), weights(plain)
    assert any(n.op == "grouped" for f in made.program.functions for n in f.nodes)
    runs = (NumpyBackend().load(p, w, dtype="f64").run(given) for p in (plain, made.program))
    first, second = (run["y"] for run in runs)
    return first, second


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", SCORES)
def test_grouped_rows_are_the_plain_ones(shape: str, kind: str) -> None:
    expected, got = both(routed(shape), values(shape, kind))
    assert distance(got, expected) <= 1e-12


@pytest.mark.parametrize("expert", EXPERTS)
@pytest.mark.parametrize("placed", PLACED)
def test_experts_and_where_they_stand(expert: str, placed: str) -> None:
    expected, got = both(routed("few", expert, placed), values("few"))
    assert distance(got, expected) <= 1e-12


def test_of_equal_scores_the_first_is_chosen() -> None:
    plain = routed("few")
    expected, _ = both(plain, values("few", "all equal"))
    sure = values("few", "all equal")
    sure["z"] = sure["z"] + np.where(np.arange(8) < 2, 1e-9, 0)
    assert distance(both(plain, sure)[0], expected) <= 1e-8


@pytest.mark.parametrize("placed", PLACED)
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_agrees(shape: str, placed: str) -> None:
    plain, given = routed(shape, "gated with biases", placed), values(shape, "ties")
    expected, _ = both(plain, given)
    w = weights(plain)
    for dtype, tolerance in (("f64", 1e-12), ("f32", 1e-5)):
        got = TorchBackend().load(optimise(plain).program, w, dtype=dtype).run(given)["y"]
        assert distance(got, expected) <= tolerance


def test_no_rows_at_all() -> None:
    plain = routed("few")
    given = {name: value[:, :0] for name, value in values("few").items()}
    made = optimise(plain).program
    assert NumpyBackend().load(made, weights(plain)).run(given)["y"].shape == (2, 0, 8)
    assert TorchBackend().load(made, weights(plain)).run(given)["y"].shape == (2, 0, 8)


def module_of(found: Program, plain: Program, dtype: str = "f64", **options: bool) -> Callable:
    """The emitted module, called with the values of its inputs by name."""
    loaded = TorchBackend().load(found, weights(plain), dtype=dtype, train=True, **options)
    names = [str(found.main[i].attrs["name"]) for i in found.main.inputs]

    def call(given: dict[str, torch.Tensor]) -> torch.Tensor:
        unread = torch.zeros(given["x"].shape[:2])
        return loaded.module(*(given.get(name, unread) for name in names))["y"]

    call.parameters = dict(loaded.module.named_parameters())
    return call


def gradients(call: Callable, given: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Of the sum of squares of y, by every weight and by x; and y."""
    tensors = {name: torch.from_numpy(value).requires_grad_() for name, value in given.items()}
    found = {**call.parameters, "x": tensors["x"]}
    y = call(tensors)
    grads = torch.autograd.grad(y.square().sum(), list(found.values()))
    return {"y": y.detach(), **dict(zip(found, grads, strict=True))}


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(got[name], value, rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("tokens", [5, 0])
@pytest.mark.parametrize("placed", ["once", "in a repeat"])
def test_gradients_are_those_of_the_plain_form(placed: str, tokens: int) -> None:
    """Of an expert without rows too, where they are zero, and where there are no rows at all."""
    plain = routed("few", "gated with biases", placed)
    given = {name: value[:, :tokens] for name, value in values("few", "all on one").items()}
    expected, got = (
        gradients(module_of(made, plain), given) for made in (plain, optimise(plain).program)
    )
    assert_close(got, expected)
    assert any((grad[2] == 0).all() for name, grad in got.items() if "gate" in name)


def test_second_derivatives_are_those_of_the_plain_form() -> None:
    plain = routed("few")
    found = []
    for made in (plain, optimise(plain).program):
        call = module_of(made, plain)
        given = {name: torch.from_numpy(v).requires_grad_() for name, v in values("few").items()}
        leaves = [*call.parameters.values(), given["x"]]
        first = torch.autograd.grad(call(given).pow(3).sum(), leaves, create_graph=True)
        total = sum(grad.square().sum() for grad in first)
        found.append(dict(enumerate(torch.autograd.grad(total, leaves))))
    assert_close(found[1], found[0])


def test_bfloat16_in_torch() -> None:
    plain, given = routed("few"), values("few")
    expected, _ = both(plain, given)
    made = optimise(plain, disable=TorchBackend().unwanted_passes("bf16")).program
    got = TorchBackend().load(made, weights(plain), dtype="bf16").run(given)["y"]
    assert distance(got.astype(np.float64), expected) <= 0.05


def test_two_texts_under_one_name_both_run() -> None:
    """The ops of the first stay as they are."""
    programs = [routed(shape) for shape in ("few", "all experts")]
    models = []
    for plain in programs:
        text = TorchBackend().emit(optimise(plain).program)["model.py"]
        space = {"__name__": "my-models.mixture"}
        exec(text, space)
        model = space["Model"](dtype=torch.float64)
        for path, module, name in space["weights"](model):
            getattr(module, name).data = torch.from_numpy(weights(plain)[path])
        models.append(model)
    for plain, model, shape in zip(programs, models, ("few", "all experts"), strict=True):
        given = values(shape)
        names = [str(plain.main[i].attrs["name"]) for i in plain.main.inputs]
        tensors = (torch.from_numpy(given[n]) if n in given else None for n in names)
        got = model(*tensors)["y"].detach().numpy()
        assert distance(got, both(plain, given)[0]) <= 1e-12


def test_a_weight_may_have_the_name_of_a_helper() -> None:
    text = MIX.replace("y[..., d]", "grouped_linear[..., d]").replace(
        "return y", "return grouped_linear"
    )
    text = text.replace("best, chosen", "best, rows_by_index").replace(
        "f[chosen]", "f[rows_by_index]"
    )
    body = "output y = x |> mix(4, gated_ffn(6), 2, score = z) as OPS"
    plain = program(model(f"input z: float[b, s, m: 8]\n{body}", text))
    expected, _ = both(plain, values("few"))
    got = TorchBackend().load(optimise(plain).program, weights(plain), dtype="f64")
    assert distance(got.run(values("few"))["y"], expected) <= 1e-12


def test_compiled_experts_run_on_their_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for every length, forward and backward; an expert without rows does nothing."""
    plain = routed("few", "gated with biases")
    eager, fast = module_of(plain, plain), module_of(optimise(plain).program, plain, compile=True)
    counters = torch._dynamo.utils.counters
    counters.clear()
    for kind, tokens in (("spread", 5), ("ties", 3), ("all on one", 4)):
        given = {name: value[:, :tokens].copy() for name, value in values("few", kind).items()}
        assert_close(gradients(fast, given), gradients(eager, given))
    assert counters["stats"]["unique_graphs"] == 1
    products, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda x, w, out: products.append(len(x)) or mm(x, w, out=out))
    fast({name: torch.from_numpy(value) for name, value in given.items()})
    assert products == [8] * 6  # 2 * 4 tokens; gate, up and down of the two experts chosen


@pytest.mark.parametrize(("shape", "placed"), [("few", "in a repeat"), ("one token", "in a scan")])
def test_triton_agrees(shape: str, placed: str) -> None:
    pytest.importorskip("triton")
    plain, given = routed(shape, "gated with biases", placed), values(shape, "ties")
    expected, _ = both(plain, given)
    got = (
        TritonBackend()
        .load(optimise(plain).program, weights(plain))
        .run({name: value.astype(np.float32) for name, value in given.items()})
    )
    assert distance(got["y"], expected) <= 1e-5


def test_more_rows_than_a_tile_holds_in_triton() -> None:
    pytest.importorskip("triton")
    plain = program(model("output y = x |> mixture(3, ffn(6), top_softmax(2)) as moe"))
    noise = np.random.default_rng(1)
    given = {"x": noise.standard_normal((2, 70, 8)).astype(np.float32)}
    made, w = optimise(plain).program, weights(plain)
    expected = NumpyBackend().load(plain, w, dtype="f64").run(given)["y"]
    assert distance(TritonBackend().load(made, w).run(given)["y"], expected) <= 1e-5


@pytest.mark.parametrize("backend", [NumpyBackend, TorchBackend])
def test_an_index_outside_names_its_line(backend: type) -> None:
    plain = program(model("bank f[n: 3] = linear(d)\noutput y = f[ids](x)"))
    given = {name: inputs()[name] for name in ("x", "ids")}
    with pytest.raises(Exception, match="index") as caught:
        backend().load(optimise(plain).program, weights(plain)).run(given)
    assert caught.value.id == "index-range"
    assert caught.value.span is not None
