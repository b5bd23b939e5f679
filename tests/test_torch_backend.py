"""The torch backend: every op, attention, layers and whole programs against the numpy backend."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace

import numpy as np
import pytest
import small_models

from archc.backends.numpy import NumpyBackend
from archc.backends.torch import TorchBackend
from archc.compiler import passes
from archc.compiler.ir.graph import Axis, Builder, Function, Parameter, Program, TensorType
from archc.compiler.ops import OPS, Sample
from archc.compiler.ops.registry import SAMPLE_SIZES
from archc.dsl.dims import Dim
from archc.dsl.errors import IndexOutOfRange, MissingPackage, MissingWeight, NoLowering, WeightShape

torch = pytest.importorskip("torch")

from archc.backends.torch.emit import emit_model  # noqa: E402
from archc.backends.torch.module import TAKEN  # noqa: E402
from archc.backends.torch.source import identifier  # noqa: E402

TOLERANCE = {"f64": 1e-12, "f32": 1e-5}
b, s = Axis("b", Dim.symbol("b")), Axis("s", Dim.symbol("s"))
t = Axis("t", Dim.symbol("s"), time="s")


def floats(*axes: Axis) -> TensorType:
    return TensorType("float", axes)


def agree(program: Program, weights: dict, given: dict, dtype: str = "f64", **options: object):
    """Runs and traces both backends; every output and value must be equal. Returns torch's."""
    outputs, values = NumpyBackend().load(program, weights, dtype=dtype).trace(given)
    run = TorchBackend().load(program, weights, dtype=dtype, **options)
    for name, value in run.run(given).items():
        assert value.dtype == outputs[name].dtype
        np.testing.assert_allclose(value, outputs[name], TOLERANCE[dtype], TOLERANCE[dtype])
    _, traced = run.trace(given)
    assert set(values) <= set(traced)
    for key, value in values.items():
        np.testing.assert_allclose(
            traced[key], value, TOLERANCE[dtype], TOLERANCE[dtype], err_msg=str(key)
        )
    return run


# ------------------------------------------------------------------------------------ single ops


def cases() -> list:
    return [
        pytest.param(name, sample, id=f"{name}-{i}")
        for name, op in OPS.items()
        for i, sample in enumerate(op.samples)
        if name != "result"
    ]


def one_op(name: str, sample: Sample) -> Program:
    """The op on inputs, preceded by one more that gives run-time sizes a source."""
    build = Builder("main")
    n = Axis("n", Dim.symbol("n"))
    build.add("input", (), {"name": "sizes", "kind": "float"}, (floats(n),))
    ids = tuple(
        build.add("input", (), {"name": f"x{i}", "kind": kind_of(x)}, (x,))
        for i, x in enumerate(sample.inputs)
    )
    node = build.add(name, ids, sample.attrs)
    outputs = [("y", node)]
    count = len(build[node].types)
    if count > 1:
        outputs = [(f"y{i}", build.add("result", (node,), {"index": i})) for i in range(count)]
    return Program("Op", (build.finish(outputs),))


def kind_of(x: TensorType) -> str:
    return {"int": "int", "i8": "int", "bool": "bool"}.get(x.dtype, "float")


def operands(sample: Sample, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    low, high = sample.domain
    given = {"sizes": np.zeros(SAMPLE_SIZES["n"])}
    for i, x in enumerate(sample.inputs):
        values = rng.uniform(low, high, x.shape(SAMPLE_SIZES))
        whole = np.floor(values).astype(np.int64)
        kinds = {"int": whole, "i8": whole, "bool": values > (low + high) / 2}
        given[f"x{i}"] = kinds.get(x.dtype, values)
    return given


@pytest.mark.parametrize(("name", "sample"), cases())
def test_every_op_means_what_numpy_says(name, sample):
    for dtype in TOLERANCE:
        agree(one_op(name, sample), {}, operands(sample), dtype)


def test_every_primitive_has_a_lowering():
    missing = {name for name, op in OPS.items() if "torch" not in op.lowerings}
    assert missing == {"input", "result"}


def test_precision_is_that_of_the_type():
    """A number or a 0-d float32 meets bfloat16: PyTorch alone would stay in bfloat16."""
    build = Builder("main")
    x = build.add("input", (), {"name": "x", "kind": "float"}, (floats(s),))
    wide = build.add("cast", (x,), {"dtype": "f32"})
    total = build.add("sum", (wide,), {"axes": (s,)})
    y = build.add("mul", (x, total))
    one = build.add("cast", (build.add("const", (), {"value": 0.1}),), {"dtype": "f32"})
    z = build.add("add", (x, one))
    count = build.add("size", (), {"axis": s})
    mean = build.add("div", (build.add("index", (), {"axis": s}), count))
    main = build.finish([("y", y), ("z", z), ("mean", mean)])
    given = {"x": np.linspace(-1, 1, 7)}
    program = Program("P", (main,))
    for dtype in ("bf16", "f16", "f32", "f64"):
        expected = NumpyBackend().load(program, {}, dtype=dtype).run(given)
        found = TorchBackend().load(program, {}, dtype=dtype).run(given)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_allclose(
                found[name].astype(float), value.astype(float), rtol=1e-2, atol=1e-3
            )


# ------------------------------------------------------------------------------------- attention

SIZES = {"v": 11, "d": 12, "g": 2, "r": 3, "e": 2, "h": 12}
v, d, g, r, e, h = (Axis(name, Dim.symbol(name)) for name in SIZES)


def attention(
    *, rows: tuple[Axis, ...] = (g, r), shared: tuple[Axis, ...] = (g,), **parts: object
) -> Program:
    """One `attend` node on inputs; `parts` choose causal, padding, bias, softcap."""
    build = Builder("body")
    kinds = {"q": floats(b, s, *rows, e), "k": floats(b, t, *shared, e)}
    kinds |= {"v": floats(b, t, *shared, d)}
    kinds |= {"present": TensorType("bool", (b, t))} if parts.get("padding") else {}
    kinds |= {"bias": floats(*rows, s, t)} if parts.get("bias") else {}
    ids = {n: build.add("input", (), {"name": n}, (k,)) for n, k in kinds.items()}
    a = build.add("dot", (ids["q"], ids["k"]), {"axes": (e,)})
    a = build.add("mul", (a, build.add("const", (), {"value": 0.3})))
    if parts.get("softcap"):
        a = build.add("tanh", (a,))
    if parts.get("bias"):
        a = build.add("add", (a, ids["bias"]))
    hidden = build.add("const", (), {"value": float("-inf")})
    if parts.get("causal"):
        i, j = build.add("index", (), {"axis": s}), build.add("index", (), {"axis": t})
        a = build.add("where", (build.add("le", (j, i)), a, hidden))
    if parts.get("padding"):
        a = build.add("where", (ids["present"], a, hidden))
    p = build.add("softmax", (build.add("cast", (a,), {"dtype": "f32"}),), {"axis": t})
    out = build.add("dot", (build.add("cast", (p,), {"dtype": "float"}), ids["v"]), {"axes": (t,)})
    body = build.finish([("out", out)])
    main = Builder("main")
    outer = [main.add("input", (), {"name": n, "kind": kind_of(k)}, (k,)) for n, k in kinds.items()]
    node = main.add("attend", tuple(outer), {"body": "body", "keys": t}, (body[out].type,))
    return Program("A", (main.finish([("y", node)]), body), tuple(SIZES.items()))


def draw(program: Program, sizes: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    given = {}
    for node in (program.main[i] for i in program.main.inputs):
        values = rng.normal(size=node.type.shape({**program.sizes, **sizes}))
        if node.type.dtype == "int":
            given[node.attrs["name"]] = rng.integers(0, 5, values.shape)
        else:
            given[node.attrs["name"]] = values > -0.3 if node.type.dtype == "bool" else values
    return given


FORMS = [
    ({"causal": True}, "is_causal=True"),
    ({"padding": True}, "attn_mask=present"),
    ({"causal": True, "padding": True, "bias": True}, "torch.where("),
    ({"bias": True}, "attn_mask=bias"),
    ({"causal": True, "rows": (r,), "shared": ()}, "enable_gqa=True"),
    ({"padding": True, "rows": (g,), "shared": (g,)}, "scale=0.3"),
    ({"rows": (), "shared": ()}, "scale=0.3"),
]


@pytest.mark.parametrize(("parts", "idiom"), FORMS)
def test_attention_is_one_call_and_a_row_that_sees_nothing_gives_zeros(parts, idiom):
    program = attention(**parts)
    text = emit_model(program).text
    assert "F.scaled_dot_product_attention(" in text
    assert idiom in text
    given = draw(program, {"b": 2, "s": 5})
    if "present" in given:
        given["present"][0] = False
        given["present"][1, :2] = False
    for dtype in TOLERANCE:
        run = agree(program, {}, given, dtype)
    if "present" in given:
        assert not run.run(given)["y"][0].any()


def test_no_gradient_is_lost_to_a_row_that_sees_nothing():
    program = attention(padding=True, causal=True)
    given = draw(program, {"b": 2, "s": 4})
    given["present"][:, :2] = False
    for softcap in (False, True):
        program = attention(padding=True, causal=True, softcap=softcap)
        module = TorchBackend().load(program, {}, train=True).module
        tensors = [torch.tensor(x) for x in given.values()]
        tensors[:3] = [x.float().requires_grad_() for x in tensors[:3]]
        module(*tensors)["y"].sum().backward()
        assert all(x.grad.isfinite().all() for x in tensors[:3])


def test_another_score_body_is_written_out():
    program = attention(causal=True, softcap=True)
    text = emit_model(program).text
    assert "scaled_dot_product" not in text
    assert "softmax(" in text
    agree(program, {}, draw(program, {"b": 2, "s": 5}))


def test_equal_sizes_are_not_confused():
    """tokens == batch == heads == head size: only names tell the axes apart."""
    sizes = dict.fromkeys(SIZES, 3)
    program = replace(attention(causal=True, padding=True), bindings=tuple(sizes.items()))
    agree(program, {}, draw(program, {"b": 3, "s": 3}))


# ---------------------------------------------------------------------------------------- layers

WEIGHTS = {"q.w": ((g, r, e), (d,)), "down.w": ((d,), (g, r, e)), "gain": ((d,),)}


def flat(groups: tuple[tuple[Axis, ...], ...]) -> tuple[Axis, ...]:
    return tuple(axis for group in groups for axis in group)


def kind(name: str, squared: bool) -> Function:
    """x + scale * down(q(x) * gain), masked; one of two structures."""
    build = Builder(name)
    x = build.add("input", (), {"name": "x"}, (floats(b, s, d),), hint="x")
    mask = build.add("input", (), {"name": "captured.0"}, (TensorType("bool", (b, s)),))
    scale = build.add("input", (), {"name": "scalar.0"}, (floats(),), hint="scale")
    w = {
        path: build.add("weight", (), {"path": path}, (floats(*flat(groups)),))
        for path, groups in WEIGHTS.items()
    }
    q = build.add("dot", (build.add("mul", (x, w["gain"])), w["q.w"]), {"axes": (d,)}, hint="q")
    q = build.add("mul", (q, q)) if squared else q
    y = build.add("dot", (q, w["down.w"]), {"axes": (g, r, e)})
    zero = build.add("const", (), {"value": 0.0})
    y = build.add("where", (mask, build.add("mul", (y, scale)), zero))
    return build.finish([("x", build.add("add", (x, y), hint="x"))])


def layered(kinds: tuple[str, ...] = ("plain", "square", "plain")) -> Program:
    build = Builder("main")
    tokens = build.add(
        "input",
        (),
        {"name": "tokens", "kind": "ids", "below": v.size},
        (TensorType("int", (b, s)),),
    )
    present = build.add(
        "input", (), {"name": "present", "kind": "bool"}, (TensorType("bool", (b, s)),)
    )
    embed = build.add("weight", (), {"path": "embed.w"}, (floats(v, d),))
    x = build.add("take", (embed, tokens), {"axis": v, "fill": None}, hint="x")
    attrs = {
        "path": "layers",
        "kinds": kinds,
        "indices": tuple(range(len(kinds))),
        "scalars": (tuple(0.5 + i for i in range(len(kinds))),),
    }
    loop = build.add("repeat", (x, present), attrs, (floats(b, s, d),))
    x = build.add("result", (loop,), {"index": 0}, hint="x")
    main = build.finish([("logits", build.add("dot", (x, embed), {"axes": (d,)}, hint="logits"))])
    parameters = [Parameter("embed.w", (v, d), ((v,), (d,)))]
    for i in range(len(kinds)):
        for path, groups in WEIGHTS.items():
            parameters.append(Parameter(f"layers[{i}].{path}", flat(groups), groups))
    functions = (main, *(kind(name, name == "square") for name in dict.fromkeys(kinds)))
    return Program("Layered", functions, tuple(SIZES.items()), tuple(parameters))


def draw_weights(program: Program, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        p.path: rng.normal(0, 0.4, [a.size.evaluate(program.sizes) for a in p.axes])
        for p in program.parameters
    }


def nested() -> Program:
    """Two groups of two layers: a repeat in a repeat, whose mask stays known to be causal."""
    inner = Builder("inner")
    x = inner.add("input", (), {"name": "x"}, (floats(b, s, d),), hint="x")
    mask = inner.add("input", (), {"name": "captured.0"}, (TensorType("bool", (s, t)),))
    w = inner.add("weight", (), {"path": "w"}, (floats(d, Axis("d2", d.size)),))
    y = inner.add(
        "rename", (inner.add("dot", (x, w), {"axes": (d,)}),), {"pairs": ((w_axis(), d),)}
    )
    k = inner.add("rename", (y,), {"pairs": ((s, t),)})
    scores = inner.add("dot", (y, k), {"axes": (d,)})
    hidden = inner.add("const", (), {"value": float("-inf")})
    p = inner.add("softmax", (inner.add("where", (mask, scores, hidden)),), {"axis": t})
    inner_function = inner.finish([("x", inner.add("dot", (p, k), {"axes": (t,)}))])
    outer = Builder("outer")
    x = outer.add("input", (), {"name": "x"}, (floats(b, s, d),), hint="x")
    mask = outer.add("input", (), {"name": "captured.0"}, (TensorType("bool", (s, t)),))
    attrs = {"path": "mix", "kinds": ("inner",) * 2, "indices": (0, 1), "scalars": ()}
    loop = outer.add("repeat", (x, mask), attrs, (floats(b, s, d),))
    outer_function = outer.finish([("x", outer.add("result", (loop,), {"index": 0}))])
    main = Builder("main")
    x = main.add("input", (), {"name": "x", "kind": "float"}, (floats(b, s, d),))
    i, j = (main.add("index", (), {"axis": axis}) for axis in (s, t))
    attrs = {"path": "groups", "kinds": ("outer",) * 2, "indices": (0, 1), "scalars": ()}
    mask = main.add("transpose", (main.add("le", (j, i)),), {"order": (s, t)})
    loop = main.add("repeat", (x, mask), attrs, (floats(b, s, d),))
    y = main.add("result", (loop,), {"index": 0})
    paths = [f"groups[{i}].mix[{j}].w" for i in range(2) for j in range(2)]
    parameters = tuple(Parameter(p, (d, w_axis()), ((d,), (w_axis(),))) for p in paths)
    functions = (main.finish([("y", y)]), outer_function, inner_function)
    return Program("Nested", functions, tuple(SIZES.items()), parameters)


def w_axis() -> Axis:
    return Axis("d2", d.size)


def test_layers_within_layers():
    program = nested()
    run = agree(program, draw_weights(program), draw(program, {"b": 2, "s": 4}))
    text = emit_model(program).text
    assert 'f"{prefix}mix[{i}]."' in text
    assert "x @ self.w" in text  # stored inputs first
    _, values = run.trace(draw(program, {"b": 2, "s": 4}))
    assert ("groups[1].mix[0]", 2) in values


@pytest.fixture(scope="module")
def model():
    program = layered()
    return program, draw_weights(program), draw(program, {"b": 2, "s": 7})


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_layers_of_two_kinds_with_scalars(model, dtype):
    agree(*model, dtype)


def test_the_text_reads_like_a_model(model):
    text = TorchBackend().emit(model[0], source="tiny.arch", preset="two")["model.py"]
    ast.parse(text)
    assert text == TorchBackend().emit(model[0], source="tiny.arch", preset="two")["model.py"]
    assert "archc" not in text.replace("Written by archc", "")
    assert text.startswith('"""Layered, preset two, from tiny.arch.')
    assert max(map(len, text.split("\n"))) <= 100
    assert "x = F.embedding(tokens, self.embed_w)" in text
    assert "for layer, scale in zip(self.layers, self.layers_scale):" in text
    assert "        x = layer(x, present, scale)" in text
    assert "F.linear(x * self.gain, self.q_w).unflatten(-1, (G, R, E))" in text
    assert '"q_w": "q.w",' in text


def test_weights_are_listed_by_path_and_share_memory(model):
    program, _, given = model
    weights = {k: x.astype(np.float32) for k, x in draw_weights(program).items()}
    run = TorchBackend().load(program, weights)
    file = sys.modules[type(run.module).__module__]
    found = {path: getattr(part, name) for path, part, name in file.weights(run.module)}
    assert set(found) == set(weights)
    assert all(p.data_ptr() == weights[path].ctypes.data for path, p in found.items())
    assert len(run.module.state_dict()) == len(weights)
    assert run.run(given)["logits"].shape == (2, 7, SIZES["v"])


def test_gradients_reach_every_weight_and_never_the_callers_arrays(model):
    program, weights, given = model
    run = TorchBackend().load(program, weights, dtype="f64", train=True)
    before = {path: array.copy() for path, array in weights.items()}
    logits = run.module(*(torch.tensor(given[n]) for n in ("tokens", "present")))["logits"]
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in run.module.parameters())
    with torch.no_grad():
        for p in run.module.parameters():
            p.sub_(1)
    assert all((weights[path] == before[path]).all() for path in weights)


@pytest.mark.parametrize("train", [False, True])
def test_weights_on_huge_pages_lie_together(model, train):
    program, weights, given = model
    run = agree(program, weights, given, train=train, huge_pages=True)
    places = sorted(p.data_ptr() for p in run.module.parameters())
    assert places[-1] - places[0] < sum(-(-w.nbytes // 64) * 64 for w in weights.values())
    assert not {w.ctypes.data for w in weights.values()} & {*places}


@pytest.mark.parametrize("train", [False, True])
def test_a_buffer_is_stored_and_not_trained(model, train):
    program, weights, given = model
    parameters = (replace(program.parameters[0], trained=False), *program.parameters[1:])
    run = agree(replace(program, parameters=parameters), weights, given, train=train)
    buffer = dict(run.module.named_buffers())["embed_w"]
    assert not buffer.requires_grad
    assert "embed_w" in run.module.state_dict()
    assert len(list(run.module.parameters())) == len(weights) - 1


def test_export(model):
    program, weights, given = model
    run = TorchBackend().load(program, weights)
    tensors = tuple(torch.tensor(given[n]) for n in ("tokens", "present"))
    exported = torch.export.export(run.module, tensors).module()
    assert torch.equal(exported(*tensors)["logits"], run.module(*tensors)["logits"])


def test_a_folder_keeps_the_text(model, tmp_path):
    program, weights, _ = model
    TorchBackend().load(program, weights, out=tmp_path)
    assert "class Model(nn.Module)" in (tmp_path / "model.py").read_text()


@pytest.mark.parametrize("train", [False, True])
def test_optimised_programs_with_derived_weights(train):
    """Packing and folding replace the originals at load, and only there."""
    from graphs import SIZES as GRAPH_SIZES
    from graphs import Model, d, layer, s

    m = Model()
    before = m.program(y=layer(m, m.input("x", Axis("b", Dim.symbol("b")), s, d)))
    program = passes.optimise(before).program
    weights = {k: x * 0.5 for k, x in draw_weights(before).items()}
    given = {"x": np.random.default_rng(0).normal(size=(2, 5, GRAPH_SIZES["d"]))}
    run = agree(program, weights, given, train=train)
    expected = NumpyBackend().load(before, weights, dtype="f64").run(given)["y"]
    np.testing.assert_allclose(run.run(given)["y"], expected, 1e-10, 1e-12)
    assert (len(list(run.module.parameters())) == len(weights)) == train


# -------------------------------------------------------------------------------------- compiling


@pytest.fixture(scope="session")
def compiled():
    """Eight layers of two kinds: the program, eager and compiled. Made once, as it takes long."""
    program = layered(("plain", "square") + ("plain",) * 6)
    weights = draw_weights(program)
    backend = TorchBackend()
    return program, backend.load(program, weights), backend.load(program, weights, compile=True)


def test_each_layer_kind_is_compiled_once_for_all_layers_and_sizes(compiled):
    program, eager, fast = compiled
    counters = torch._dynamo.utils.counters
    counters.clear()
    for batch, length in ((6, 6), (6, 9), (2, 5)):
        given = draw(program, {"b": batch, "s": length})
        expected = eager.run(given)["logits"]
        np.testing.assert_allclose(fast.run(given)["logits"], expected, 1e-4, 1e-4)
    assert counters["stats"]["unique_graphs"] == 2


# ----------------------------------------------------------------------------------------- errors


def test_an_op_without_lowering_is_an_error(monkeypatch):
    monkeypatch.delitem(OPS["tanh"].lowerings, "torch")
    with pytest.raises(NoLowering, match="torch backend cannot express `tanh`"):
        emit_model(attention(softcap=True))


def test_weights_must_be_there_and_fit(model):
    program, weights, _ = model
    with pytest.raises(MissingWeight):
        TorchBackend().load(program, {k: x for k, x in weights.items() if k != "embed.w"})
    with pytest.raises(WeightShape):
        TorchBackend().load(program, weights | {"embed.w": np.zeros((2, 2))})


@pytest.mark.parametrize("bad", [-1, 5])
def test_an_index_outside_names_the_axis(bad):
    """PyTorch says `index out of range in self`; the traced text says which."""
    build = Builder("main")
    x = build.add("input", (), {"name": "x", "kind": "float"}, (floats(s, d),))
    i = build.add("input", (), {"name": "i", "kind": "int"}, (TensorType("int", (b,)),))
    y = build.add("take", (x, i), {"axis": s, "fill": None})
    program = Program("P", (build.finish([("y", y)]),), tuple(SIZES.items()))
    run = TorchBackend().load(program, {})
    given = {"x": np.zeros((5, SIZES["d"])), "i": np.array([4, bad])}
    for call in (run.run, run.trace):
        with pytest.raises(IndexOutOfRange, match=f"index {bad} is outside axis `s` of size 5"):
            call(given)


def test_without_torch_one_line_says_what_to_install(model, monkeypatch):
    monkeypatch.setattr("archc.backends.torch.find_spec", lambda name: None)
    assert "class Model" in TorchBackend().emit(model[0])["model.py"]
    with pytest.raises(MissingPackage) as error:
        TorchBackend().load(model[0], {})
    assert 'pip install "archc[torch]"' in str(error.value)


def test_names_of_a_text_cannot_break_the_python():
    assert identifier("class", ()) == "class_2"
    assert identifier("import os; 1", ()) == "import_os_1"
    assert identifier("2é", ()).isidentifier()
    build = Builder("main")
    x = build.add("input", (), {"name": "lambda", "kind": "float"}, (floats(s),), hint="\n")
    y = build.add("weight", (), {"path": "forward"}, (floats(s),), hint='"""')
    z = build.add("mul", (x, y), hint="self")
    program = Program('M"""', (build.finish([('o"\n', z)]),), (("s", 3),))
    program = replace(program, parameters=(Parameter("forward", (s,), ((s,),)),))
    agree(program, {"forward": np.ones(3)}, {"lambda": np.ones(3)})


def test_no_weight_hides_an_attribute_of_nn_module():
    def is_torchs(name: str) -> bool:  # transformers, imported by other tests, adds some of its own
        found = getattr(torch.nn.Module, name, None)
        return not str(getattr(found, "__module__", "")).startswith("transformers")

    public = {name for name in dir(torch.nn.Module()) if not name.startswith("_")}
    assert set(filter(is_torchs, public)) <= TAKEN


@pytest.mark.parametrize(
    "text", ["size(s) % 3", "size(s) // 2", "size(s) ** 2", "2 * size(s) - 7", "max(size(s), 4)"]
)
def test_arithmetic_on_the_size_of_an_axis(text: str) -> None:
    """A size is a Python number in the text, which not every function of torch takes."""
    body = f"output y = {text}\noutput z = x * ({text})"
    found = small_models.program(small_models.model(body))
    agree(found, {}, small_models.inputs())


def test_a_repeat_in_a_repeat_leaves_the_outer_ones_scalar_alone() -> None:
    body = """y = x
  repeat outer[i: 2] {
    z = y
    repeat inner[i: 3] { z = (i + 0.5) * z }
    y = (i + 2) * z
  }
  output z = y"""
    found = small_models.program(small_models.model(body))
    agree(found, {}, small_models.inputs())
