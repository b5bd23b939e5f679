"""`scan` against plain NumPy loops, `lstm` against PyTorch's; its graph, its gradient, its cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np
import pytest
import torch
from bundled import example
from checks import NAMES, same
from small_models import inputs, mistakes, model, program, run, weights

import archc
from archc.backends.numpy import NumpyBackend
from archc.backends.torch import TorchBackend
from archc.backends.triton import TritonBackend
from archc.compiler.cost import cost
from archc.compiler.ir.graph import Program
from archc.compiler.ir.text import canonical, parse, show
from archc.compiler.passes import optimise
from archc.dsl.dims import Dim

Arrays = Mapping[str, np.ndarray]
B, S = Dim.symbol("b"), Dim.symbol("s")
EXACT = {"rtol": 0, "atol": 1e-12}
SINGLE = {"rtol": 1e-5, "atol": 1e-5}
NOISE = np.random.default_rng(7)
KEEP = np.array([[False, True, True, False, True], [True, True, True, False, False]])
START = np.array([[False, False, True, False, False], [True, False, False, False, True]])
GIVEN = inputs(keep=KEEP)
X, IDS = GIVEN["x"], GIVEN["ids"]


# ------------------------------------------------------------------- what a scan computes


def steps(reverse: bool = False) -> Iterator[int]:
    return reversed(range(X.shape[1])) if reverse else iter(range(X.shape[1]))


def running_sum() -> np.ndarray:
    return np.cumsum(X, 1)


def decayed(reverse: bool = False, start: np.ndarray | None = None) -> np.ndarray:
    made, h = np.zeros_like(X), np.zeros_like(X[:, 0])
    for s in steps(reverse):
        if start is not None:
            h = np.where(start[:, s, None], 0, h)
        made[:, s] = h = 0.9 * h + X[:, s]
    return made


def two_states() -> np.ndarray:
    """Fast and slow averages that read each other, and a product with what came in."""
    made, fast, slow = np.zeros_like(X), np.zeros_like(X[:, 0]), np.ones_like(X[:, 0])
    for s in steps():
        before = fast
        fast = 0.5 * fast + X[:, s] - slow
        slow = 0.9 * slow + 0.1 * fast
        made[:, s] = fast * before + slow
    return made


def held() -> np.ndarray:
    made, h = np.zeros_like(X), np.zeros_like(X[:, 0])
    for s in steps():
        h = np.where(KEEP[:, s, None], 0.9 * h + X[:, s], h)
        made[:, s] = h
    return made


def by_document(valid: np.ndarray) -> np.ndarray:
    """Starts again where the document of the last valid entry ends."""
    made = np.zeros_like(X)
    for row in range(X.shape[0]):
        h, last = np.zeros(X.shape[2]), None
        for s in steps():
            if valid[row, s]:
                h = 0.9 * (h if IDS[row, s] == last else 0) + X[row, s]
                last = IDS[row, s]
            made[row, s] = h
    return made


def counted() -> np.ndarray:
    """How many valid entries there have been, and the slot of the last of them."""
    count, at = np.zeros(2, int), np.full(2, -1)
    made = np.zeros((*X.shape[:2], 1))
    for s in steps():
        count, at = count + KEEP[:, s], np.where(KEEP[:, s], s, at)
        made[:, s, 0] = 10 * count + at
    return made


def outer_product() -> np.ndarray:
    """A matrix for a state, read with a vector."""
    made, h = np.zeros_like(X), np.zeros((2, 8, 8))
    for s in steps():
        h = 0.5 * h + X[:, s, :, None] * np.tanh(X[:, s])[:, None, :]
        made[:, s] = np.einsum("bde,be->bd", h, X[:, s])
    return made


OUTPUT = "\noutput y[b, s, d] = {}"
TIME = "time s: valid = keep"
EMA = "scan s with h[..., d] = 0 { h = 0.9 * h + x }"
SCANS: dict[str, tuple[str, Callable[[], np.ndarray]]] = {
    "a running sum": ("scan s with h[b, d] = 0 { h += x }" + OUTPUT.format("h"), running_sum),
    "no brackets": ("scan s with h = 0 { h = h + x }" + OUTPUT.format("h"), running_sum),
    "a decay": (EMA + OUTPUT.format("h"), decayed),
    "a fraction to start with": (
        "scan s with h = 0.0 { h = 0.9 * h + x }" + OUTPUT.format("h"),
        decayed,
    ),
    "in reverse": (
        EMA.replace("scan s", "scan s (reverse = true)") + OUTPUT.format("h"),
        lambda: decayed(reverse=True),
    ),
    "with reset": (
        EMA.replace("scan s", "scan s (reset = ids >= 6)") + OUTPUT.format("h"),
        lambda: decayed(start=IDS >= 6),
    ),
    "in reverse with reset": (
        EMA.replace("scan s", "scan s (reverse = true, reset = ids >= 6)") + OUTPUT.format("h"),
        lambda: decayed(reverse=True, start=IDS >= 6),
    ),
    "reset by a compile-time condition": (
        EMA.replace("scan s", "scan s (reset = d == 8)") + OUTPUT.format("h"),
        lambda: X,
    ),
    "never reset": (
        EMA.replace("scan s", "scan s (reset = none)") + OUTPUT.format("h"),
        decayed,
    ),
    "two states and prev": (
        "scan s with fast[..., d] = 0, slow = 1 {\n"
        "  fast = 0.5 * fast + x - slow\n  slow = 0.9 * slow\n"
        "  slow += 0.1 * fast\n  y = fast * prev(fast) + slow\n}\n"
        "output y2[b, s, d] = y" + OUTPUT.format("y"),
        two_states,
    ),
    "padding holds": (f"{TIME}\n{EMA}" + OUTPUT.format("h"), held),
    "documents": (
        f"time s: segment = ids\n{EMA}" + OUTPUT.format("h"),
        lambda: by_document(np.ones_like(KEEP)),
    ),
    "documents with padding between": (
        f"time s: segment = ids, valid = keep\n{EMA}" + OUTPUT.format("h"),
        lambda: by_document(KEEP),
    ),
    "whole numbers and facts of time": (
        f"{TIME}\nscan s with n = 0, at = -1 {{ n += 1; at = slot(s) }}\n"
        "output y[b, s, one] = (10 * n + at)[one: new]",
        counted,
    ),
    "a matrix state": (
        "scan s with h[..., d, e: 8] = 0 {\n  k = tanh(x)[d -> e]\n"
        "  h = 0.5 * h + x * k\n  y = dot(h, x[d -> e], e)\n}" + OUTPUT.format("y"),
        outer_product,
    ),
    "a matrix state along two names of one axis": (
        "k[b, s, e] = tanh(x)[d -> e]\nscan s with h[b, d, e] = 0 {\n"
        "  h = 0.5 * h + x * k\n  y = dot(h, x[d -> e], e)\n}" + OUTPUT.format("y"),
        outer_product,
    ),
    "a tensor to start with": (
        "first = x[s: 0]\nscan s with h = first { h = h - x }" + OUTPUT.format("h"),
        lambda: X[:, :1] - np.cumsum(X, 1),
    ),
    "truth values": (
        "scan s with seen = false { seen = seen or ids >= 6 }" + OUTPUT.format("where(seen, x, 0)"),
        lambda: np.where(np.maximum.accumulate(IDS >= 6, 1)[..., None], X, 0),
    ),
    "what is not a state": (
        "scan s with h = 0 { twice = 2 * x; h += twice; k = 3 }" + OUTPUT.format("twice + k"),
        lambda: 2 * X + 3,
    ),
    "one value for all steps": (
        "c = sum(x, s, d)\nscan s with h = 0 { h += x; u = c }" + OUTPUT.format("x + u"),
        lambda: X + X.sum((1, 2))[:, None, None],
    ),
    "another view of the sequence": (
        "seen = x[s -> t]\nscan s with h = 0 {\n"
        "  p = where(slot(t) <= slot(s), seen, 0)\n  h += sum(p, t)\n}" + OUTPUT.format("h"),
        lambda: np.cumsum(np.cumsum(X, 1), 1),
    ),
    "a view that keeps its axis": (
        "seen = x[s -> t]\nscan s with h = 0 { h += x; p[..., t, d] = seen * x }\n"
        + "output y[b, s, d] = sum(p, t)",
        lambda: X * X.sum(1, keepdims=True),
    ),
    "along features": (
        "scan d with h = 0 { h += x }" + OUTPUT.format("h"),
        lambda: np.cumsum(X, 2),
    ),
    "in a scan": (
        "scan s with h = 0 {\n  scan d with g = 0 { g += x }\n  h += g\n}" + OUTPUT.format("h"),
        lambda: np.cumsum(np.cumsum(X, 1), 2),
    ),
    "in a block, with a closure": (
        "f = (u[...]) -> u * ids\nz = x |> sums(f)" + OUTPUT.format("z"),
        lambda: np.cumsum(X * IDS[..., None], 1),
    ),
    "in a repeat": (
        "y = x\nrepeat layers[i: 2] { scan s with h = 0 { h += y }; y = h }" + OUTPUT.format("y"),
        lambda: np.cumsum(np.cumsum(X, 1), 1),
    ),
    "a table in the step": (
        "scan s with h = 0 { const f[d] = 1.0 * index(d); h += f * x }" + OUTPUT.format("h"),
        lambda: np.cumsum(X * np.arange(8.0), 1),
    ),
    "how many entries there are": (
        f"{TIME}\nscan s with h[b, d] = 0 {{ h += x }}\n"
        "scan s with g = 0 { g = h * 0 + count(s) + size(s) }" + OUTPUT.format("g + last(h) * 0"),
        lambda: np.broadcast_to(KEEP.sum(1)[:, None, None] + 5, X.shape),
    ),
}  # fmt: skip
BLOCK = """block sums(f)(x[..., s, d]) -> [..., s, d] {
  scan s with h[..., d] = 0 { h += f(x) }
  return h
}"""
# Two texts print what is only right at valid entries.
VALID_ONLY = {"how many entries there are"}


def text_of(name: str) -> str:
    return model(SCANS[name][0], above=BLOCK if "sums" in SCANS[name][0] else "")


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("name", SCANS)
def test_numpy(name: str, level: int) -> None:
    got = executed(NumpyBackend(), name, level, "f64")
    np.testing.assert_allclose(*compared(name, got), **EXACT)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("name", SCANS)
def test_torch(name: str, level: int) -> None:
    for dtype, distance in (("f64", EXACT), ("f32", SINGLE)):
        got = executed(TorchBackend(), name, level, dtype)
        np.testing.assert_allclose(*compared(name, got), **distance)


def test_triton() -> None:
    """One scan of each shape: the interpreter is slow to start."""
    for name in ("two states and prev", "documents with padding between", "in a scan"):
        got = executed(TritonBackend(), name, 1, "f32")
        np.testing.assert_allclose(*compared(name, got), **SINGLE)


def executed(backend: archc.backends.base.Backend, name: str, level: int, dtype: str) -> np.ndarray:
    found = optimise(program(text_of(name)), level=level).program
    wanted = {n.attrs["name"] for n in found.main.nodes if n.op == "input"}
    given = {k: v for k, v in GIVEN.items() if k in wanted}
    return backend.load(found, weights(found), dtype=dtype).run(given)["y"]


def compared(name: str, got: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    expected = SCANS[name][1]()
    assert got.shape == expected.shape
    return (got[KEEP], expected[KEEP]) if name in VALID_ONLY else (got, expected)


@pytest.mark.parametrize("name", SCANS)
def test_the_graph_prints_and_parses_back(name: str) -> None:
    found = program(text_of(name))
    assert parse(show(found)) == canonical(found)


@pytest.mark.parametrize("missing", ["", *NAMES])
def test_no_pass_changes_a_scan(missing: str) -> None:
    for name in ("two states and prev", "a matrix state", "another view of the sequence"):
        found = program(text_of(name))
        same(found, optimise(found, disable=[missing] if missing else []).program, tolerance=1e-10)


def test_a_sequence_without_entries() -> None:
    """Sequences are empty and the state is what it started from."""
    body = (
        "scan s with h[b, d] = 2 { h += x; k = h * x }\n"
        "output y[b, d] = last(h)\noutput z[b, s, d] = h + k"
    )
    found = optimise(program(of_x_alone(model(body)))).program
    for backend in (NumpyBackend(), TorchBackend()):
        got = backend.load(found, {}, dtype="f64").run({"x": X[:, :0]})
        assert np.array_equal(got["y"], np.full((2, 8), 2.0))
        assert got["z"].shape == (2, 0, 8)


def test_the_last_state_of_either_direction() -> None:
    body = (
        TIME + "\nscan s with h[b, d] = 0 { h = 0.9 * h + x }\n"
        "scan s (reverse = true) with g[b, d] = 0 { g = x }\n"
        "output y[b, d] = last(h)\noutput z[b, d] = g |> last"
    )
    got, _ = run(model(body), GIVEN)
    np.testing.assert_allclose(got["y"], held()[:, -1], **EXACT)
    first = KEEP.argmax(1)
    np.testing.assert_allclose(got["z"], X[[0, 1], first], **EXACT)


def test_weights_of_a_step_are_made_once() -> None:
    body = (
        "scan s with h[..., d] = 0 { h = tanh((x |> linear(d) as in) + (h |> linear(d) as own)) }"
        + OUTPUT.format("h")
    )
    got, made = run(model(body), GIVEN)
    assert list(made) == ["in.w", "own.w"]
    h, expected = np.zeros((2, 8)), np.zeros_like(X)
    for s in steps():
        expected[:, s] = h = np.tanh(X[:, s] @ made["in.w"].T + h @ made["own.w"].T)
    np.testing.assert_allclose(got["y"], expected, **EXACT)


def test_the_scanned_axis_stands_before_the_written_ones() -> None:
    body = (
        "scan s with h[..., d] = 0 { h += x }\n"
        "y = h |> attention(heads, mask = causal) as mix\noutput y2[b, s, d] = y"
    )
    assert mistakes(model(body)) == []
    named = "scan s with h[b, d] = 0 { h += x }\nz = h |> learned_positions(9) as p\n"
    (refused,) = mistakes(
        model("scan s with h = 0 { h += x }\ny = h |> rmsnorm" + OUTPUT.format("y"))
    )
    assert refused.id == "write-the-axes"
    found = program(model(named + "output y[s, b, d] = z"))
    assert next(p for p in found.parameters if p.path == "p.w").axes[-1].name == "d"


# ------------------------------------------------------------------------------ gradients


def of_x_alone(text: str) -> str:
    """The model without its other inputs, which a call of the module would have to give."""
    others = ("input ids", "input keep")
    return "\n".join(line for line in text.splitlines() if not line.strip().startswith(others))


def test_gradients_go_through_a_scan() -> None:
    text = model(
        "weight a[d] = ones\nscan s with h[..., d] = 0 { h = sigmoid(a) * h + x }\n"
        "output y[b, d] = last(h)\noutput all[b, s, d] = h"
    )
    found = optimise(program(of_x_alone(text))).program
    start = {"a": NOISE.standard_normal(8)}
    loaded = TorchBackend().load(found, start, dtype="f64", train=True)
    (weight,) = loaded.module.parameters()
    out = loaded.module(torch.from_numpy(X))
    (out["y"].sum() + out["all"].square().sum()).backward()

    def loss(a: np.ndarray) -> float:
        h, total = np.zeros((2, 8)), 0.0
        for s in steps():
            h = h / (1 + np.exp(-a)) + X[:, s]
            total += np.square(h).sum()
        return float(total + h.sum())

    for i in range(8):
        shift = np.eye(8)[i] * 1e-6
        numeric = (loss(start["a"] + shift) - loss(start["a"] - shift)) / 2e-6
        assert abs(numeric - float(weight.grad[i])) < 1e-5 * max(1, abs(numeric))


def test_a_scan_under_torch_compile() -> None:
    found = optimise(program(of_x_alone(text_of("two states and prev")))).program
    eager = TorchBackend().load(found, {}, dtype="f32")
    compiled = torch.compile(eager.module, backend="aot_eager", fullgraph=True)
    given = torch.from_numpy(X.astype(np.float32))
    torch.testing.assert_close(compiled(given)["y"], eager.module(given)["y"])


# ----------------------------------------------------------------------------------- cost


def test_flops_are_those_of_a_step_times_the_steps() -> None:
    report = cost(program(model(EMA + "\nz = x |> lstm(d) as cell\noutput y[b, s, d] = h + z")))
    assert report.work.flops == B * S * (2 * 2 * 4 * 8 * 8)
    assert dict(report.regions)["cell"].flops == report.work.flops


def test_recurrent_states_have_a_size_that_tokens_do_not_change() -> None:
    body = "decode s\nz = x |> lstm(d) as cell\noutput y[b, s, d] = z"
    report = cost(program(model(body)))
    assert (report.recurrent_bytes, report.state_bytes) == (Dim.of(2 * 8 * 2), Dim())
    assert "recurrent state" in report.to_text()
    without = cost(program(model(body.replace("decode s\n", ""))))
    assert without.recurrent_bytes == Dim()


# ----------------------------------------------------------------------------------- lstm

LSTM = (
    TIME + "\nforward = x |> lstm(n)\nbackward = x |> lstm(n, reverse = true)\n"
    "output y[b, s, n] = forward\noutput z[b, s, n] = backward"
)
CELL = {"in_w": "weight_ih", "state_w": "weight_hh", "in_b": "bias_ih", "state_b": "bias_hh"}


def torch_lstm(made: Arrays, forward: str, backward: str) -> torch.nn.LSTM:
    """PyTorch's layer in both directions, with these weights."""
    rows, width = made[f"{forward}.in_w"].shape[-2:]
    cell = torch.nn.LSTM(width, rows, batch_first=True, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for path, suffix in ((forward, "_l0"), (backward, "_l0_reverse")):
            for ours, theirs in CELL.items():
                target = getattr(cell, theirs + suffix)
                target.copy_(torch.from_numpy(made[f"{path}.{ours}"]).reshape(target.shape))
    return cell


@pytest.mark.parametrize("keep", [np.ones_like(KEEP), np.arange(5) < np.array([[3], [5]])])
def test_lstm_is_that_of_torch(keep: np.ndarray) -> None:
    """Padding holds the states, which is what a packed sequence means."""
    text = model(LSTM).replace("heads = 2", "heads = 2; n = 5")
    found = program(text)
    made = {k: NOISE.normal(0.3, 0.8, v.shape) for k, v in weights(found).items()}
    cell = torch_lstm(made, "forward", "backward")
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(X), torch.from_numpy(keep.sum(1)), batch_first=True, enforce_sorted=False
    )
    result, _ = torch.nn.utils.rnn.pad_packed_sequence(cell(packed)[0], True, total_length=5)
    expected = result.detach().numpy()
    for backend, level in ((NumpyBackend(), 0), (NumpyBackend(), 1), (TorchBackend(), 1)):
        done = optimise(found, level=level).program
        got = backend.load(done, made, dtype="f64").run({"x": X, "keep": keep})
        np.testing.assert_allclose(got["y"][keep], expected[..., :5][keep], **EXACT)
        np.testing.assert_allclose(got["z"][keep], expected[..., 5:][keep], **EXACT)


def test_rows_of_an_lstm_do_not_see_each_other() -> None:
    text = model("z = x |> lstm(d) as cell\noutput y[b, s, d] = z")
    before, _ = run(text, GIVEN)
    changed, _ = run(text, {**GIVEN, "x": X * np.array([1, 3])[:, None, None]})
    assert np.array_equal(before["y"][0], changed["y"][0])
    assert not np.allclose(before["y"][1], changed["y"][1])


# ------------------------------------------------------------------ the example with an LSTM


class Reference:
    """`ConditionedLLM` in PyTorch, written from its formulas."""

    def __init__(self, found: Program, made: Arrays) -> None:
        self.w = {k: torch.from_numpy(v) for k, v in made.items()}
        self.heads, self.width = found.sizes["heads"], found.sizes["d"] // found.sizes["heads"]
        self.layers = found.sizes["layers"]
        self.instruction = torch_lstm(made, "instruction.forward", "instruction.backward")

    def __call__(self, given: Arrays) -> np.ndarray:
        ids, words, style = (
            torch.from_numpy(given[name]) for name in ("input_ids", "instruction", "style")
        )
        lengths = torch.from_numpy(given["instruction_mask"].sum(1))
        x = self.decoder(ids) + self.condition(words, lengths)[:, None]
        return (x + self.w["style.w"][style][:, None]).detach().numpy()

    def condition(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            self.w["embed.w"][words], lengths, batch_first=True, enforce_sorted=False
        )
        states, _ = torch.nn.utils.rnn.pad_packed_sequence(self.instruction(packed)[0], True)
        return states.sum(1) / lengths[:, None]

    def decoder(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.w["embed.w"][ids]
        for i in range(self.layers):
            w = {k.split("].")[1]: v for k, v in self.w.items() if k.startswith(f"layers[{i}]")}
            x = x + self.attention(self.norm(x, w["norm1.gain"]), w)
            h = self.norm(x, w["norm2.gain"])
            gated = torch.nn.functional.silu(h @ w["ffn.gate.w"].T) * (h @ w["ffn.up.w"].T)
            x = x + gated @ w["ffn.down.w"].T
        return self.norm(x, self.w["final_norm.gain"])

    def norm(self, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * gain

    def attention(self, x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
        shape = (*x.shape[:2], self.heads, self.width)
        q, k, v = (
            (x @ w[f"attention.{n}.w"].reshape(-1, x.shape[-1]).T).reshape(shape).transpose(1, 2)
            for n in "qkv"
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(
            self.turned(q), self.turned(k), v, is_causal=True
        )
        return mixed.transpose(1, 2).reshape(x.shape) @ w["attention.o.w"].T

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        half = self.width // 2
        rate = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[2])[:, None] * rate
        a, b = x[..., :half], x[..., half:]
        cos, sin = torch.cos(angle), torch.sin(angle)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


@cache
def conditioned() -> tuple[Program, Arrays, Arrays]:
    found = example("conditioned_llm")
    made = {k: NOISE.normal(0.1, 0.5, v.shape) for k, v in weights(found).items()}
    given = {
        "input_ids": NOISE.integers(0, 101, (3, 6)),
        "instruction": NOISE.integers(0, 101, (3, 4)),
        "instruction_mask": np.arange(4) < np.array([[2], [4], [1]]),
        "style": np.array([2, 0, 1]),
        "attention_mask": np.ones((3, 6), bool),
    }
    return found, made, given


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize(
    ("backend", "dtype", "distance"),
    [(NumpyBackend(), "f64", 1e-12), (TorchBackend(), "f64", 1e-12), (TorchBackend(), "f32", 1e-5)],
    ids=["numpy", "torch", "torch-f32"],
)
def test_the_conditioned_decoder(
    backend: archc.backends.base.Backend, dtype: str, distance: float, level: int
) -> None:
    found, made, given = conditioned()
    expected = Reference(found, made)(given)
    done = optimise(found, level=level).program
    got = backend.load(done, made, dtype=dtype).run(given)["hidden_states"]
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < distance


def test_what_pads_an_instruction_does_not_matter() -> None:
    found, made, given = conditioned()
    loaded = NumpyBackend().load(found, made, dtype="f64")
    hidden = given["instruction_mask"]
    other = {**given, "instruction": np.where(hidden, given["instruction"], 100)}
    assert np.array_equal(loaded.run(given)["logits"], loaded.run(other)["logits"])
    seen = {**given, "instruction": np.where(hidden, 100, given["instruction"])}
    assert not np.allclose(loaded.run(given)["logits"], loaded.run(seen)["logits"])


def test_the_entry_before_is_of_the_same_segment() -> None:
    """Zero at the first entry, at the first of a segment, and where the one before is padding."""
    segment = np.array([[0, 0, 1, 1, 1], [2, 2, 2, 2, 3]])
    expected = np.zeros_like(X)
    for b in range(2):
        for s in range(1, X.shape[1]):
            if KEEP[b, s - 1] and segment[b, s] == segment[b, s - 1]:
                expected[b, s] = X[b, s - 1]
    text = """time s: valid = keep, segment = ids
      decode s
      output y[b, s, d] = previous(x, s)"""
    found = run(model(text), inputs(keep=KEEP, ids=segment))[0]["y"]
    assert np.array_equal(found[KEEP], expected[KEEP])
    plain = run(model("output y[b, s, d] = previous(x, s)"))[0]["y"]
    assert np.array_equal(plain, np.concatenate([np.zeros_like(X[:, :1]), X[:, :-1]], 1))
