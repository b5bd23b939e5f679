"""The reference backend on small programs built by hand."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from archc.backends.numpy import NumpyBackend, interpreter, tiles
from archc.compiler.ir.graph import Axis, Builder, Function, Parameter, Program, TensorType
from archc.compiler.ir.walk import calls
from archc.compiler.ops.attend import NotTileable, plan_attend
from archc.dsl.dims import Dim
from archc.dsl.errors import (
    IndexOutOfRange,
    InputDtype,
    InputRange,
    InputShape,
    MissingInput,
    MissingWeight,
    UnknownInput,
    WeightShape,
)

SIZES = {"v": 11, "d": 12, "g": 2, "r": 3, "e": 2}
b, s = Axis("b", Dim.symbol("b")), Axis("s", Dim.symbol("s"))
t = Axis("t", Dim.symbol("s"), time="s")
v, d, g, r, e = (Axis(name, Dim.symbol(name)) for name in SIZES)
h = Axis("h", Dim.symbol("g") * Dim.symbol("r") * Dim.symbol("e"))
LAYERS = 2
WEIGHTS = {"q": (g, r, e, d), "k": (g, e, d), "v": (g, e, d), "o": (d, h)}


def floats(*axes: Axis) -> TensorType:
    return TensorType("float", axes)


def source(build: Builder, name: str, *axes: Axis, dtype: str = "float", **attrs: object) -> int:
    kind = {"float": "float", "int": "int", "bool": "bool"}[dtype]
    attrs = {"name": name, "kind": kind, **attrs}
    return build.add("input", (), attrs, (TensorType(dtype, axes),))


def attention_body(window: int | None = None, split_late: bool = False) -> Function:
    """Grouped causal attention with `scale` and a padding mask; rows with no key are possible."""
    build = Builder("attention")
    q, k, values = (
        source(build, "q", b, s, g, r, e),
        source(build, "k", b, t, g, e),
        source(build, "v", b, t, g, e),
    )
    present = source(build, "present", b, t, dtype="bool")
    scores = build.add("dot", (q, k), {"axes": (e,)})
    scale = build.add("const", (), {"value": 0.7})
    scores = build.add("mul", (scores, scale))
    i, j = build.add("index", (), {"axis": s}), build.add("index", (), {"axis": t})
    mask = build.add("min", (build.add("le", (j, i)), present))
    if window is not None:
        gap = build.add("sub", (i, j))
        near = build.add("lt", (gap, build.add("const", (), {"value": window})))
        mask = build.add("min", (mask, near))
    hidden = build.add("const", (), {"value": float("-inf")})
    if split_late:
        heads = Axis("heads", Dim.of(6))
        scores = build.add("merge", (scores,), {"axes": (g, r), "into": heads})
    scores = build.add("where", (mask, scores, hidden))
    weights = build.add("softmax", (scores,), {"axis": t})
    if split_late:
        weights = build.add("split", (weights,), {"axis": heads, "into": (g, r)})
    out = build.add("dot", (weights, values), {"axes": (t,)})
    out = build.add("merge", (out,), {"axes": (g, r, e), "into": h})
    out = build.add("transpose", (out,), {"order": (b, s, h)})
    return build.finish([("out", out)])


def layer(op: str) -> Function:
    """x + scalar * o(attention(x)), the attention as one node of kind `op`."""
    build = Builder(f"layer_{op}")
    x, present = source(build, "x", b, s, d), source(build, "present", b, s, dtype="bool")
    gain = source(build, "gain")
    w = {n: build.add("weight", (), {"path": n}, (floats(*axes),)) for n, axes in WEIGHTS.items()}
    q = build.add("dot", (x, w["q"]), {"axes": (d,)})
    k, value = (build.add("dot", (x, w[n]), {"axes": (d,)}) for n in "kv")
    k, value, present = (
        build.add("rename", (n,), {"pairs": ((s, t),)}) for n in (k, value, present)
    )
    a = build.add(op, (q, k, value, present), {"body": "attention"}, (floats(b, s, h),))
    y = build.add("mul", (build.add("dot", (a, w["o"]), {"axes": (h,)}), gain))
    return build.finish([("x", build.add("add", (x, y)))])


def parameters() -> tuple[Parameter, ...]:
    made = [Parameter("embed.w", (v, d), ((v,), (d,)))]
    for i in range(LAYERS):
        for name, axes in WEIGHTS.items():
            made.append(Parameter(f"layers[{i}].{name}", axes, tuple((a,) for a in axes)))
    return tuple(made)


def tiny(op: str = "attend", **body: object) -> Program:
    build = Builder("main")
    ids = build.add(
        "input",
        (),
        {"name": "tokens", "kind": "ids", "below": v.size, "extra": -100},
        (TensorType("int", (b, s)),),
    )
    present = source(build, "present", b, s, dtype="bool")
    embed = build.add("weight", (), {"path": "embed.w"}, (floats(v, d),))
    x = build.add("take", (embed, ids), {"axis": v, "fill": 0.0})
    attrs = {
        "path": "layers",
        "kinds": (f"layer_{op}",) * LAYERS,
        "indices": tuple(range(LAYERS)),
        "scalars": ((1.0, 0.5),),
    }
    loop = build.add("repeat", (x, present), attrs, (floats(b, s, d),))
    x = build.add("result", (loop,), {"index": 0})
    logits = build.add("dot", (x, embed), {"axes": (d,)})
    main = build.finish([("logits", logits)])
    functions = (main, layer(op), attention_body(**body))
    return Program("Tiny", functions, tuple(SIZES.items()), parameters())


def weights(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        p.path: rng.normal(0, 0.5, [a.size.evaluate(program.sizes) for a in p.axes])
        for p in program.parameters
    }


def inputs(length: int, batch: int = 2, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    present = rng.random((batch, length)) < 0.7
    present[0, : length // 3] = False  # left padding: the first rows see no key
    return {"tokens": rng.integers(0, SIZES["v"], (batch, length)), "present": present}


def by_hand(params: dict[str, np.ndarray], given: dict[str, np.ndarray], window: int | None = None):
    """The model of `tiny` in einsum and loops over rows, sharing nothing with the backend."""
    present, length = given["present"], given["tokens"].shape[1]
    x = params["embed.w"][given["tokens"]]
    seen = np.tril(np.ones((length, length), bool)) & present[:, None, :]
    if window is not None:
        seen &= ~np.tril(np.ones((length, length), bool), -window)
    for i, gain in enumerate((1.0, 0.5)):
        q, k, value, o = (params[f"layers[{i}].{n}"] for n in WEIGHTS)
        q, k, value = (
            np.einsum("bsd,gred->bgrse", x, q),
            np.einsum("bsd,ged->bgse", x, k),
            np.einsum("bsd,ged->bgse", x, value),
        )
        weight = np.exp(np.einsum("bgrse,bgte->bgrst", q, k) * 0.7) * seen[:, None, None]
        total = weight.sum(-1, keepdims=True)
        weight = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
        y = np.einsum("bgrst,bgte->bsgre", weight, value).reshape(*x.shape[:2], -1)
        x = x + gain * (y @ o.T)
    return x @ params["embed.w"].T


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("op", ["pointwise", "attend"])
@pytest.mark.parametrize("length", [1, 17, 127])
def test_a_small_decoder_equals_einsum(op, length, window):
    program = tiny(op, window=window)
    params, given = weights(program), inputs(length)
    run = NumpyBackend().load(program, params, dtype="f64", tile=16).run(given)
    np.testing.assert_allclose(run["logits"], by_hand(params, given, window), atol=1e-12)


def attend_arguments(length: int) -> tuple[dict[str, np.ndarray], Program]:
    """Attention alone, as a program of one node."""
    rng = np.random.default_rng(length)
    shape = {"q": (2, length, 2, 3, 2), "k": (2, length, 2, 2), "v": (2, length, 2, 2)}
    given = {name: rng.normal(0, 2, size) for name, size in shape.items()}
    given["present"] = rng.random((2, length)) < 0.5
    given["present"][0, : length // 2] = False
    return given, tiny()


def alone(op: str, body: Function) -> Program:
    build = Builder("main")
    ids = [build.append(body[i]) for i in body.inputs]
    types = (body[body.output_ids[0]].type,)
    out = build.add(op, tuple(ids), {"body": body.name}, types)
    return Program("Alone", (build.finish([("out", out)]), body), tuple(SIZES.items()))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("tile", [1, 7, 64, 1000])
@pytest.mark.parametrize("length", [1, 17, 127])
def test_tiles_do_not_change_attention(length, tile, late):
    given, _ = attend_arguments(length)
    body = attention_body(window=9, split_late=late)
    plan_attend(body)  # it is tiled, not run as it is
    plain = NumpyBackend().load(alone("pointwise", body), {}, dtype="f64").run(given)
    tiled = NumpyBackend().load(alone("attend", body), {}, dtype="f64", tile=tile).run(given)
    np.testing.assert_allclose(tiled["out"], plain["out"], atol=1e-13)
    assert not tiled["out"][0, 0].any(), "the first row sees no key"


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_tiled_attention_in_other_dtypes(dtype):
    given, _ = attend_arguments(33)
    body = attention_body()
    gold = NumpyBackend().load(alone("pointwise", body), {}, dtype="f64").run(given)["out"]
    tiled = NumpyBackend().load(alone("attend", body), {}, dtype=dtype, tile=8).run(given)["out"]
    tolerance = {"f32": 1e-5, "bf16": 0.1, "f16": 0.02}[dtype]
    np.testing.assert_allclose(tiled.astype(np.float64), gold, atol=tolerance)


def noting(visited: list[tuple[int, int]]):
    """`TiledRun.visit` that notes the keys of each tile."""
    visit = tiles.TiledRun.visit

    def noted(run, values, windows):
        visited.append(windows[run.plan.keys])
        visit(run, values, windows)

    return noted


def test_tiles_without_a_visible_key_are_not_computed(monkeypatch):
    visited = []
    monkeypatch.setattr(tiles.TiledRun, "visit", noting(visited))
    given, _ = attend_arguments(40)
    given["present"][:, 8:24] = False
    NumpyBackend().load(alone("attend", attention_body()), {}, tile=8).run(given)
    assert visited == [(0, 8), (24, 32), (32, 40)]


def peak_bytes(run) -> int:
    """The most that NumPy held at once while `run` ran."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def one_head(length: int, window: int | None = None) -> tuple[Program, dict[str, np.ndarray]]:
    """Causal attention with proved bounds, as tile-attention leaves it, and its inputs."""
    program = alone("attend", attention_body(window))
    last = program.main.nodes[-1]
    lower = None if window is None else Dim.of(window - 1)
    seen = {"keys": t, "query": s, "upper": Dim(), "lower": lower}
    node = replace(last, attrs=type(last.attrs)({**last.attrs, **seen}))
    main = replace(program.main, nodes=(*program.main.nodes[:-1], node))
    rng = np.random.default_rng(0)
    shape = {"q": (1, length, 2, 3, 2), "k": (1, length, 2, 2), "v": (1, length, 2, 2)}
    given = {n: rng.normal(size=size).astype(np.float32) for n, size in shape.items()}
    return program.with_functions([main]), given | {"present": np.ones((1, length), bool)}


def test_memory_of_attention_grows_with_tokens_not_with_pairs():
    def peak(length: int) -> int:
        program, given = one_head(length)
        loaded = NumpyBackend().load(program, {})
        return peak_bytes(lambda: loaded.run(given))

    short, long = peak(2048), peak(4096)
    assert long < 2.2 * short
    assert long < 4096 * 4096, "a byte for each score of one head"


@pytest.mark.parametrize("window", [None, 9])
def test_queries_look_at_no_tile_beyond_the_bounds_of_the_mask(window, monkeypatch):
    visited = []
    monkeypatch.setattr(tiles.TiledRun, "visit", noting(visited))
    program, given = one_head(40, window)
    tiled = NumpyBackend().load(program, {}, dtype="f64", tile=8).run(given)
    blocks = range(0, 40, 8)
    if window is None:
        assert visited == [(j, j + 8) for i in blocks for j in range(0, i + 8, 8)]
    else:
        assert visited == [w for i in blocks for w in ([(i - 8, i)] if i else []) + [(i, i + 8)]]
    body = attention_body(window)
    plain = NumpyBackend().load(alone("pointwise", body), {}, dtype="f64").run(given)
    np.testing.assert_allclose(tiled["out"], plain["out"], atol=1e-13)


def test_a_row_does_not_depend_on_its_batch_or_what_comes_after():
    program, given = one_head(700)
    loaded = NumpyBackend().load(program, {})
    once = loaded.run(given)
    twice = loaded.run({n: np.concatenate([x, x]) for n, x in given.items()})
    np.testing.assert_array_equal(twice["out"][:1], once["out"])


def test_values_made_once_for_all_layers_are_not_overwritten():
    """A second run, one of other sizes and one that is watched find them as they were."""
    program = tiny()
    loaded, given = NumpyBackend().load(program, weights(program)), inputs(5)
    first = loaded.run(given)["logits"]
    loaded.run(inputs(9))
    np.testing.assert_array_equal(loaded.trace(given)[0]["logits"], first)
    np.testing.assert_array_equal(loaded.run(given)["logits"], first)


def test_what_nodes_run_is_kept_where_their_sizes_stay():
    """A longer sequence makes again nothing but what is as long as the sequence."""
    program = tiny()
    loaded = NumpyBackend().load(program, weights(program))
    loaded.run(inputs(5))
    shared = loaded.shared
    before = {key: run for key, (_, run) in shared.runs.items()}
    loaded.run(inputs(9))
    kept = {key for key, (_, run) in shared.runs.items() if before.get(key) is run}

    def grows(name: str, node_id: int) -> bool:
        symbols = shared.structures[name].symbols[node_id]
        return s.size.symbols() & set(symbols) != set()

    lasting = {key for key in before if not grows(*key[:2])}
    assert lasting
    assert lasting <= kept
    assert before.keys() - kept, "a slice or a mask is of one length"


def test_sizes_met_lately_are_not_prepared_again(monkeypatch):
    """Chunks of a sequence of two lengths in turn, as a loop over layers meets them."""
    made = []
    make = interpreter.make_ready

    def noted(function, *rest):
        made.append(function.name)
        return make(function, *rest)

    monkeypatch.setattr(interpreter, "make_ready", noted)
    program = tiny()
    loaded = NumpyBackend().load(program, weights(program))
    for length in (5, 9):
        loaded.run(inputs(length))
    count = len(made)
    for length in (5, 9, 5):
        loaded.run(inputs(length))
    assert len(made) == count > 0


def test_what_is_not_linear_in_the_weights_is_not_tiled():
    build = Builder("body")
    x, y = source(build, "x", s, t), source(build, "y", t, e)
    p = build.add("exp", (build.add("softmax", (x,), {"axis": t}),))
    body = build.finish([("out", build.add("dot", (p, y), {"axes": (t,)}))])
    with pytest.raises(NotTileable, match="exp"):
        plan_attend(body)
    given = {"x": np.ones((4, 4)), "y": np.ones((4, 2))}
    result = NumpyBackend().load(alone("attend", body), {}, dtype="f64").run(given)
    np.testing.assert_allclose(result["out"], 4 * np.exp(0.25))


def test_trace_names_values_by_call_path():
    program = tiny()
    outputs, values = NumpyBackend().load(program, weights(program)).trace(inputs(5))
    kind = program.function("layer_attend")
    for i in range(LAYERS):
        assert {(f"layers[{i}]", n.id) for n in kind.nodes} <= set(values)
    np.testing.assert_array_equal(outputs["logits"], values["", program.main.output_ids[0]])
    assert len(values) == sum(len(f.nodes) for _, f in calls(program))


def test_calls_lists_main_and_each_iteration():
    assert [(path, f.name) for path, f in calls(tiny())] == [
        ("", "main"),
        ("layers[0]", "layer_attend"),
        ("layers[1]", "layer_attend"),
    ]


def test_derived_parameters_are_made_once_and_their_weights_are_dropped():
    build = Builder("double")
    w = source(build, "w", d, h)
    body = build.finish([("w", build.add("add", (w, w)))])
    build = Builder("main")
    x = source(build, "x", s, h)
    w = build.add("weight", (), {"path": "o"}, (floats(d, h),))
    twice = build.add("derived", (w,), {"body": "double"}, (floats(d, h),))
    main = build.finish([("y", build.add("dot", (x, twice), {"axes": (h,)}))])
    parameter = Parameter("o", (d, h), ((d,), (h,)))
    program = Program("P", (main, body), tuple(SIZES.items()), (parameter,))
    loaded = NumpyBackend().load(program, {"o": np.ones((12, 12))}, dtype="f64")
    assert set(loaded.shared.constants) == {("", twice)}
    y = loaded.run({"x": np.ones((1, 12))})["y"]
    np.testing.assert_array_equal(y, np.full((1, 12), 24.0))


def test_tables_are_computed_in_float64_and_rounded_once():
    build = Builder("table")
    index = build.add("to_float", (build.add("index", (), {"axis": d}),))
    third = build.add("div", (index, build.add("const", (), {"value": 3.0})))
    body = build.finish([("f", third)])
    build = Builder("main")
    x = source(build, "x", d)
    table = build.add("table", (), {"body": "table"}, (TensorType("f32", (d,)),))
    main = build.finish([("y", build.add("add", (x, table)))])
    program = Program("P", (main, body), tuple(SIZES.items()))
    result = NumpyBackend().load(program, {}, dtype="bf16").run({"x": np.zeros(12)})["y"]
    np.testing.assert_array_equal(result, (np.arange(12) / 3).astype(np.float32))


BAD_INPUTS = [
    (MissingInput, lambda i: i.pop("present")),
    (UnknownInput, lambda i: i.update(presnt=i["present"])),
    (InputDtype, lambda i: i.update(tokens=i["tokens"] * 1.0)),
    (InputShape, lambda i: i.update(tokens=i["tokens"][0])),
    (InputShape, lambda i: i.update(present=i["present"][:, :-1])),
    (InputRange, lambda i: i["tokens"].__setitem__((0, 0), SIZES["v"])),
    (InputRange, lambda i: i["tokens"].__setitem__((0, 0), -1)),
]


@pytest.mark.parametrize(("error", "spoil"), BAD_INPUTS)
def test_inputs_are_checked(error, spoil):
    program, given = tiny(), inputs(4)
    loaded = NumpyBackend().load(program, weights(program))
    spoil(given)
    with pytest.raises(error):
        loaded.run(given)


def test_the_extra_id_is_allowed():
    program, given = tiny(), inputs(4)
    given["tokens"][0, 0] = -100
    NumpyBackend().load(program, weights(program)).run(given)


def test_a_read_outside_without_fill_is_an_error():
    program, given = tiny(), inputs(4)
    main = program.main
    take = next(n for n in main.nodes if n.op == "take")
    strict = replace(take, attrs=type(take.attrs)({**take.attrs, "fill": None}))
    nodes = tuple(strict if n is take else n for n in main.nodes)
    program = program.with_functions([replace(main, nodes=nodes)])
    given["tokens"][0, 0] = -100
    with pytest.raises(IndexOutOfRange):
        NumpyBackend().load(program, weights(program)).run(given)


def test_weights_are_checked():
    program = tiny()
    params = weights(program)
    with pytest.raises(WeightShape):
        NumpyBackend().load(program, params | {"layers[1].o": np.zeros((2, 2))})
    del params["layers[1].o"]
    with pytest.raises(MissingWeight):
        NumpyBackend().load(program, params)


# ---------------------------------------------------------------- bodies beyond plain attention


def score_body(finish) -> Function:
    """q, k, v, m -> finish(build, scores, mask, values, m): m is bool[s, t]."""
    build = Builder("body")
    q, k, values = (
        source(build, "q", b, s, g, e),
        source(build, "k", b, t, g, e),
        source(build, "v", b, t, g, e),
    )
    m = source(build, "m", s, t, dtype="bool")
    scores = build.add("dot", (q, k), {"axes": (e,)})
    return build.finish([("out", finish(build, scores, values, m))])


def number(build: Builder, value: float) -> int:
    return build.add("const", (), {"value": value})


def over_keys(build: Builder, weights: int, values: int) -> int:
    return build.add("dot", (weights, values), {"axes": (t,)})


def masked_after(build, scores, values, m):
    p = build.add("softmax", (scores,), {"axis": t})
    p = build.add("where", (m, p, number(build, 0.0)))
    return over_keys(build, build.add("mul", (p, number(build, 3.0))), values)


def all_keys_where_none_is_visible(build, scores, values, m):
    none = build.add("not", (build.add("amax", (m,), {"axes": (t,)}),))
    seen = build.add("max", (m, none))
    scores = build.add("where", (seen, scores, number(build, float("-inf"))))
    return over_keys(build, build.add("softmax", (scores,), {"axis": t}), values)


def difference_of_two(build, scores, values, m):
    masked = build.add("where", (m, scores, number(build, float("-inf"))))
    p = [build.add("softmax", (x,), {"axis": t}) for x in (masked, scores)]
    return build.add("sub", tuple(over_keys(build, x, values) for x in p))


def without_softmax(build, scores, values, m):
    p = build.add("where", (m, build.add("sigmoid", (scores,)), number(build, 0.0)))
    total = build.add("sum", (p,), {"axes": (t,)})
    total = build.add("max", (build.add("abs", (total,)), number(build, 1.0)))
    return build.add("div", (over_keys(build, p, values), total))


def renamed_rows(build, scores, values, m):
    p = build.add("softmax", (scores,), {"axis": t})
    half = Axis("half", Dim.of(1))
    p = build.add("split", (p,), {"axis": g, "into": (half, Axis("g2", Dim.symbol("g")))})
    p = build.add("pick", (p,), {"axis": half, "at": Dim.of(0)})
    p = build.add("rename", (p,), {"pairs": ((Axis("g2", Dim.symbol("g")), g),)})
    return over_keys(build, p, values)


BODIES = (
    masked_after,
    all_keys_where_none_is_visible,
    difference_of_two,
    without_softmax,
    renamed_rows,
)


@pytest.mark.parametrize("finish", BODIES)
@pytest.mark.parametrize("length", [1, 17, 70])
def test_other_bodies_are_tiled_too(finish, length):
    body = score_body(finish)
    assert plan_attend(body, t).contractions
    rng = np.random.default_rng(length)
    shape = {"q": (2, length, 2, 2), "k": (2, length, 2, 2), "v": (2, length, 2, 2)}
    given = {name: rng.normal(0, 3, size) for name, size in shape.items()}
    given["m"] = rng.random((length, length)) < 0.3
    given["m"][length // 2] = False
    plain = NumpyBackend().load(alone("pointwise", body), {}, dtype="f64").run(given)
    program = alone("attend", body)
    node = program.main.nodes[-1]
    keyed = replace(node, attrs=type(node.attrs)({**node.attrs, "keys": t}))
    main = replace(program.main, nodes=(*program.main.nodes[:-1], keyed))
    tiled = NumpyBackend().load(program.with_functions([main]), {}, dtype="f64", tile=16).run(given)
    np.testing.assert_allclose(tiled["out"], plain["out"], atol=1e-13)


def weights_that_escape(build, scores, values, m):
    p = build.add("softmax", (scores,), {"axis": t})
    over_keys(build, p, values)
    return p


def squared_weights(build, scores, values, m):
    p = build.add("softmax", (scores,), {"axis": t})
    return over_keys(build, build.add("mul", (p, p)), values)


def rows_summed_away(build, scores, values, m):
    p = build.add("softmax", (scores,), {"axis": t})
    return build.add("dot", (p, values), {"axes": (t, g)})


def totals_in_a_tile(build, scores, values, m):
    total = build.add("sum", (scores,), {"axes": (t,)})
    return over_keys(build, build.add("mul", (scores, total)), values)


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        (weights_that_escape, "leaves the region"),
        (squared_weights, "`mul` stands between"),
        (rows_summed_away, "sums over rows"),
        (totals_in_a_tile, "all tiles make"),
    ],
)
def test_bodies_that_no_tile_can_compute(finish, reason):
    with pytest.raises(NotTileable, match=reason):
        plan_attend(score_body(finish), t)
