"""Recurrent examples, against other texts of one function and torch modules written from formulas."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from bundled import FOLDER
from references import VOCAB, distance
from torch.nn import functional as F

import archc
from archc.api import Model

EPS, TOKENS, HEADS, WIDTH = 2e-3, 8, 4, 4
RUNS = [
    ("numpy", "f64", 0, 1e-12),
    ("numpy", "f64", 1, 1e-12),
    ("torch", "f32", 0, 1e-5),
    ("torch", "f32", 1, 1e-5),
    ("triton", "f32", 1, 1e-5),
]
IDS = np.random.default_rng(5).integers(0, VOCAB, (2, 2 * TOKENS))
Weights = Mapping[str, torch.Tensor]


@cache
def loud(name: str) -> Model:
    """A tiny model whose gains, biases and states are far from where they start."""
    source = FOLDER / f"{name}.arch"
    values = {} if name in ("rmt", "block_recurrent") else {"eps": EPS}
    made = archc.load(source, preset="tiny", **values).with_random_weights(3).given_weights()
    noise = np.random.default_rng(2)
    weights = {
        path: np.asarray(w + (0.3 if w.ndim <= 1 else 0.0) * noise.standard_normal(w.shape), "f")
        for path, w in made.items()
    }
    return archc.load(source, preset="tiny", weights=weights, **values)


@cache
def compiled(name: str, backend: str, dtype: str, level: int) -> archc.api.Compiled:
    return loud(name).compile(backend, dtype=dtype, level=level)


def doubles(name: str) -> Weights:
    return {path: torch.from_numpy(w).double() for path, w in loud(name).given_weights().items()}


def linear(w: Weights, path: str, x: torch.Tensor) -> torch.Tensor:
    bias = w[f"{path}.b"].reshape(-1) if f"{path}.b" in w else None
    return F.linear(x, w[f"{path}.w"].reshape(-1, x.shape[-1]), bias)


def norm(w: Weights, path: str, x: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{path}.gain"], w.get(f"{path}.b"), eps)


def heads(rows: torch.Tensor) -> torch.Tensor:
    """[b, s, heads * e] as [b, heads, s, e]."""
    return rows.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def joined(rows: torch.Tensor) -> torch.Tensor:
    return rows.transpose(1, 2).flatten(2)


# ------------------------------------------------------- one function, two texts

SCAN = """  scan s with state[..., heads, e, f] = 0 {
    state = gamma * state + f32(k) * f32(v)
    y = dot(f32(q), state, e)
  }
"""
PARALLEL = """  seen_k = k[s -> t]
  age[s, t] = slot(s) - slot(t)
  decay[heads, s, t] = where(0 <= age, gamma ** f32(max(age, 0)), 0)
  y[..., s, heads, f] = dot(decay * dot(q, seen_k, e), v[s -> t], t)
"""
OTHER_TEXTS = {
    "retnet": (SCAN, PARALLEL),
    "linear_transformer": ("recurrent_attention(heads)", "linear_attention(heads, mask = causal)"),
}


@pytest.mark.parametrize("name", OTHER_TEXTS)
def test_a_recurrence_is_its_parallel_form(name: str, tmp_path: Path) -> None:
    """With the same weights, and padding before the text of the second row."""
    text, (recurrent, parallel) = (FOLDER / f"{name}.arch").read_text(), OTHER_TEXTS[name]
    assert text.count(recurrent) == 1
    other = tmp_path / "parallel.arch"
    other.write_text(text.replace(recurrent, parallel))
    shapes = archc.load(other, preset="tiny").with_random_weights(0).given_weights()
    weights = {
        path: w.reshape(shapes[path].shape) for path, w in loud(name).given_weights().items()
    }
    expected = archc.load(other, preset="tiny", weights=weights, eps=EPS)
    mask = np.ones_like(IDS)
    mask[1, :3] = 0
    given = {"input_ids": IDS, "attention_mask": mask}
    found, wanted = (
        m.compile(dtype="f64", level=0)(**given)["logits"] for m in (loud(name), expected)
    )
    assert distance(found[mask == 1], wanted[mask == 1]) <= 1e-10


# ------------------------------------------------------- formulas


def retnet(w: Weights, ids: torch.Tensor) -> torch.Tensor:
    """The paper's parallel form, its rows divided by the root of their sums of powers."""
    x, n = w["embed.w"][ids], ids.shape[1]
    steps = torch.arange(n, dtype=torch.double)
    age = steps[:, None] - steps[None, :]
    gamma = (1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=torch.double)))[:, None, None]
    decay = torch.where(age >= 0, gamma ** age.clamp(min=0), 0)
    for i in range(3):
        at = f"layers[{i}]."
        y = rms(w, f"{at}norm1", x)
        q, k, v, g = (linear(w, f"{at}retention.{p}", y) for p in ("q", "k", "v", "gate"))
        q, k, v = heads(q), heads(k), heads(v)
        turn = torch.polar(
            torch.ones(n, q.shape[-1] // 2).double(),
            steps[:, None] * 10000.0 ** -torch.linspace(0, 1, q.shape[-1] // 2, dtype=torch.double),
        )
        q, k = (
            torch.view_as_real(torch.view_as_complex(z.unflatten(-1, (-1, 2)).contiguous()) * turn)
            for z in (q, k)
        )
        a = q.flatten(-2) @ k.flatten(-2).mT * k.flatten(-2).shape[-1] ** -0.5
        y = (a * decay) @ v
        y = joined(y * (y.square().mean(-1, keepdim=True) + EPS).rsqrt())
        x = x + linear(w, f"{at}retention.o", F.silu(g) * y)
        y = rms(w, f"{at}norm2", x)
        y = F.gelu(linear(w, f"{at}ffn.gate", y)) * linear(w, f"{at}ffn.up", y)
        x = x + linear(w, f"{at}ffn.down", y)
    return linear(w, "head", rms(w, "final_norm", x))


def rms(w: Weights, path: str, x: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * w[f"{path}.gain"]


@pytest.mark.parametrize(("backend", "dtype", "level", "bound"), RUNS)
def test_retention_agrees_with_the_formula(
    backend: str, dtype: str, level: int, bound: float
) -> None:
    found = compiled("retnet", backend, dtype, level)(input_ids=IDS[:, :TOKENS])["logits"]
    assert (
        distance(found, retnet(doubles("retnet"), torch.from_numpy(IDS[:, :TOKENS])).numpy())
        <= bound
    )


Carried = dict[str, torch.Tensor]


def transformer_xl(w: Weights, ids: torch.Tensor, carried: Carried) -> tuple[torch.Tensor, Carried]:
    """With the relative shift: a row of zeros before the columns, read one place on."""
    d, n = w["embed.w"].shape[1], ids.shape[1]
    x = d**0.5 * w["embed.w"][ids]
    memory = carried.get("memory", x.new_zeros(3, len(ids), 0, d))
    total = memory.shape[2] + n
    rates = 10000.0 ** (-torch.arange(0, d, 2).double() / d)
    angles = torch.arange(total - 1, -1, -1).double()[:, None] * rates
    far = torch.cat((angles.sin(), angles.cos()), -1)
    hidden = torch.ones(n, total, dtype=torch.bool).triu(1 + total - n)
    states = []
    for i in range(3):
        at = f"layers[{i}]."
        states.append(x)
        seen = torch.cat((memory[i], x), 1)
        q = linear(w, f"{at}attention.q", x).unflatten(-1, (HEADS, -1))
        k, v = (heads(linear(w, f"{at}attention.{p}", seen)) for p in "kv")
        r = linear(w, f"{at}attention.r", far).unflatten(-1, (HEADS, -1)).transpose(0, 1)
        content = (q + w["u"]).transpose(1, 2) @ k.mT
        place = (q + w["v"]).transpose(1, 2) @ r.mT
        padded = torch.cat((place.new_zeros(*place.shape[:-1], 1), place), -1)
        place = padded.view(*place.shape[:2], total + 1, n)[:, :, 1:].reshape_as(place)
        a = ((content + place) * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf)
        x = norm(w, f"{at}norm1", x + linear(w, f"{at}attention.o", joined(a.softmax(-1) @ v)))
        y = linear(w, f"{at}ffn.out", linear(w, f"{at}ffn.in", x).relu())
        x = norm(w, f"{at}norm2", x + y)
    return x @ w["embed.w"].T + w["vocab_bias"], {"memory": torch.stack(states)}


def unit(w: Weights, path: str, x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=-1) * w[f"{path}.gain"]


def read(w: Weights, path: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Rows of queries, split into heads, that share keys and values."""
    a = unit(w, f"{path}.q", heads(q)) @ unit(w, f"{path}.k", k)[:, None].mT
    return (a * k.shape[-1] ** -0.5).softmax(-1) @ v[:, None]


def xpos(x: torch.Tensor, at: torch.Tensor, sign: int) -> torch.Tensor:
    e = x.shape[-1]
    steps = torch.arange(0, e, 2).double()
    size = ((steps + 0.4 * e) / (1.4 * e)) ** (sign * at[:, None] / 512)
    turn = torch.polar(size, at[:, None] * 10000.0 ** (-steps / e))
    z = torch.complex(x[..., : e // 2], x[..., e // 2 :]) * turn
    return torch.cat((z.real, z.imag), -1)


def block_recurrent(
    w: Weights, ids: torch.Tensor, carried: Carried
) -> tuple[torch.Tensor, Carried]:
    """Blocks of WIDTH one after another; keys and values of all, of which the next call reads the last."""
    found, made = [], []
    for block in ids.split(WIDTH, 1):
        logits, carried = one_block(w, block, carried)
        found.append(logits)
        made.append(carried)
    all_of = {n: torch.cat([c[n] for c in made], 2) for n in ("past_keys", "past_values")}
    return torch.cat(found, 1), carried | all_of


def one_block(w: Weights, ids: torch.Tensor, carried: Carried) -> tuple[torch.Tensor, Carried]:
    """One block: layer 2 of 3 reads the states, and rewrites them."""
    x, n = w["embed.w"][ids], ids.shape[1]
    keys = carried.get("past_keys", x.new_zeros(3, len(ids), 0, 16))
    values = carried.get("past_values", keys)
    keys, values = keys[:, :, -WIDTH:], values[:, :, -WIDTH:]
    first = w["layers[1].first_states"].expand(len(ids), -1, -1)
    states = carried.get("past_states", first)
    past = keys.shape[2]
    at = torch.arange(-past, n).double()
    hidden = at[None, :] > at[past:, None]
    made: dict[str, list[torch.Tensor]] = {"past_keys": [], "past_values": []}
    for i in range(3):
        here = f"layers[{i}]."
        y = norm(w, f"{here}norm1", x, 1e-5)
        q, k, v = (linear(w, f"{here}{p}", y) for p in "qkv")
        made["past_keys"].append(k)
        made["past_values"].append(v)
        q, seen_k, seen_v = heads(q), torch.cat((keys[i], k), 1), torch.cat((values[i], v), 1)
        if i == 1:
            q, seen_k = unit(w, f"{here}q_unit", q), unit(w, f"{here}k_unit", seen_k)
        a = xpos(q, at[past:], 1) @ xpos(seen_k, at, -1)[:, None].mT * 16**-0.5
        mixed = joined(a.masked_fill(hidden, -torch.inf).softmax(-1) @ seen_v[:, None])
        if i == 1:
            seen = norm(w, f"{here}state_norm", states, 1e-5) + w[f"{here}state_places"]
            own_k, own_v = linear(w, f"{here}state_k", seen), linear(w, f"{here}state_v", seen)
            told = read(w, f"{here}state", linear(w, f"{here}state_q", y), own_k, own_v)
            mixed = torch.cat((mixed, joined(told)), -1)
            to = f"{here}rewrite."
            own = read(w, f"{to}own", linear(w, f"{to}q", seen), own_k, own_v)
            block = read(w, f"{to}block", linear(w, f"{to}block_q", seen), k, v)
            goal = linear(w, f"{to}o", joined(torch.cat((own, block), -1)))
            rate = w[f"{to}rate"].sigmoid()
            states = rate * linear(w, f"{to}gate", goal) + (1 - rate) * states
        x = x + linear(w, f"{here}o", mixed)
        y = norm(w, f"{here}norm2", x, 1e-5)
        y = F.gelu(linear(w, f"{here}ffn.gate", y)) * linear(w, f"{here}ffn.up", y)
        x = x + linear(w, f"{here}ffn.down", y)
    kept = {name: torch.stack(parts) for name, parts in made.items()}
    logits = linear(w, "head", norm(w, "final_norm", x, 1e-5))
    return logits, kept | {"past_states": states}


def rmt(w: Weights, ids: torch.Tensor, carried: Carried) -> tuple[torch.Tensor, Carried]:
    """Four residual streams, of which each layer reads one mixture and mixes the others."""
    eps, n, s = 2.0**-23, 3, ids.shape[1]
    words = w["embed.w"][ids] + w["positions.w"][:s]
    memory = carried.get("memory", words.new_zeros(len(ids), n, words.shape[-1]))
    written = w["writers"].expand_as(memory)
    x = torch.cat((memory + w["read_places"], words, written), 1)
    seen = torch.ones(n + s + n, 1 + n + s + n, dtype=torch.bool)
    seen[:n, 1 + n :] = False
    seen[n : n + s, 1 + n + s :] = False
    seen[n : n + s, 1 + n : 1 + n + s] = torch.ones(s, s, dtype=torch.bool).tril()
    x = x[:, :, None].expand(-1, -1, 4, -1)

    def taken(path: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        normed = F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * (1 + w[f"{path}.gain"])
        mix = (normed @ w[f"{path}.mix_by"]).tanh() * w[f"{path}.mix_scale"] + w[f"{path}.mix"]
        share = (normed @ w[f"{path}.share_by"]).tanh() * w[f"{path}.share_scale"]
        y = mix.mT @ x
        return y[..., 0, :], y[..., 1:, :], (share + w[f"{path}.share"])[..., None]

    first: torch.Tensor | None = None
    for i in range(3):
        at = f"layers[{i}]."
        h, rest, share = taken(f"{at}attention_streams")
        y = rms(w, f"{at}attention.norm", h, eps)
        q, k, v = (heads(linear(w, f"{at}attention.{p}", y)) for p in "qkv")
        if first is None:
            first = v
        else:
            blend = linear(w, f"{at}attention.blend", y).sigmoid().transpose(1, 2)[..., None]
            v = v + blend * (first - v)
        k, v = (
            torch.cat((w[f"{at}attention.null_{p}"][:, None].expand(len(ids), -1, -1, -1), z), 2)
            for p, z in (("k", k), ("v", v))
        )
        a = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
        y = linear(w, f"{at}attention.o", joined(a.softmax(-1) @ v))
        x = rest + share * y[:, :, None]
        h, rest, share = taken(f"{at}ffn_streams")
        y = rms(w, f"{at}norm", h, eps)
        y = F.gelu(linear(w, f"{at}ffn.gate", y)) * linear(w, f"{at}ffn.up", y)
        x = rest + share * linear(w, f"{at}ffn.down", y)[:, :, None]
    y = rms(w, "final_norm", x.sum(2), eps)
    return linear(w, "head", y[:, n : n + s]), {"memory": y[:, n + s :]}


# ------------------------------------------------------- states that calls hand on

CARRIED = {
    "transformer_xl": (transformer_xl, {"memory": "states"}),
    "block_recurrent": (
        block_recurrent,
        {"past_keys": "keys", "past_values": "values", "past_states": "states"},
    ),
    "rmt": (rmt, {"memory": "written"}),
}


@pytest.mark.parametrize(("backend", "dtype", "level", "bound"), RUNS)
@pytest.mark.parametrize("name", CARRIED)
def test_segments_agree_with_the_formula(
    name: str, backend: str, dtype: str, level: int, bound: float
) -> None:
    """What the first call returns is given to the second: logits and states of both are compared."""
    formula, fed = CARRIED[name]
    model, w = compiled(name, backend, dtype, level), doubles(name)
    given: dict[str, np.ndarray] = {}
    carried: Carried = {}
    for segment in np.split(IDS, 2, axis=1):
        found = model(input_ids=segment, **given)
        expected, carried = formula(w, torch.from_numpy(segment), carried)
        given = {into: found[output] for into, output in fed.items()}
        assert distance(found["logits"], expected.numpy()) <= bound
        for into, value in carried.items():
            assert distance(given[into], value.numpy()) <= bound


@pytest.mark.parametrize(
    ("backend", "dtype", "level", "bound", "size"),
    [
        *((*run, size) for run in (("numpy", "f64", 0, 1e-10), *RUNS[2:4]) for size in (16, 14)),
        (*RUNS[4], 14),
    ],
)
def test_blocks_of_one_call_are_calls_of_one_block(
    backend: str, dtype: str, level: int, bound: float, size: int
) -> None:
    """With padding before two of the rows, also of a whole block, and with a last block that is cut."""
    model = compiled("block_recurrent", backend, dtype, level)
    ids, mask = IDS[[0, 1, 1], :size], np.ones((3, size), bool)
    mask[1, :3] = mask[2, :5] = False
    whole = model(input_ids=ids, attention_mask=mask)
    given: dict[str, np.ndarray] = {}
    for start in range(0, size, WIDTH):
        here = slice(start, start + WIDTH)
        found = model(input_ids=ids[:, here], attention_mask=mask[:, here], **given)
        seen = mask[:, here]
        assert distance(found["logits"][seen], whole["logits"][:, here][seen]) <= bound
        given = {into: found[name] for into, name in CARRIED["block_recurrent"][1].items()}
        given["known"] = mask[:, here]
    assert distance(found["states"], whole["states"]) <= bound


def test_a_split_with_the_whole_memory_changes_nothing() -> None:
    """Transformer-XL hides nothing of its memory: one call, or two of which the second has it all."""
    model = compiled("transformer_xl", "numpy", "f64", 0)
    whole = model(input_ids=IDS)["logits"]
    start = model(input_ids=IDS[:, :5])
    rest = model(input_ids=IDS[:, 5:], memory=start["states"])["logits"]
    assert distance(np.concatenate((start["logits"], rest), 1), whole) <= 1e-12


@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_unknown_memory_is_no_memory(backend: str) -> None:
    """An empty axis, entries that are not known, and an input that is left out are one thing."""
    model = compiled("transformer_xl", backend, "f32", 1)
    ids = IDS[:, :TOKENS]
    left_out = model(input_ids=ids)["logits"]
    empty = model(input_ids=ids, memory=np.zeros((3, 2, 0, 64)), known=np.ones((2, 0), bool))[
        "logits"
    ]
    noise = np.random.default_rng(0).standard_normal((3, 2, 5, 64))
    unknown = model(input_ids=ids, memory=noise, known=np.zeros((2, 5), bool))["logits"]
    bare = loud("transformer_xl").compile(backend, inputs=["input_ids"])(input_ids=ids)["logits"]
    for other in (empty, unknown, bare):
        assert distance(other, left_out) <= 1e-6


NOTHING = """model Nothing {
  input x: float[b, m]
  input i: int[b, m]
  input c: bool[b, m]
  weight scale[] = ones
  output a[b] = scale * amax(x, m)
  output n[b] = amax(i, m)
  output some[b] = any(c, m)
  output total[b] = sum(softmax(x, m), m)
  output last[m] = amax(x, b)
}"""


@pytest.mark.parametrize("backend", ["numpy", "torch", "triton"])
def test_reductions_of_nothing(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "nothing.arch"
    path.write_text(NOTHING)
    model = archc.load(path, weights={"scale": np.array(2, "f")}).compile(backend)

    def found(size: int) -> dict[str, list[float]]:
        given = {
            "x": np.ones((2, size)),
            "i": np.ones((2, size), int),
            "c": np.ones((2, size), bool),
        }
        return {name: value.tolist() for name, value in model(**given).items()}

    some = {"a": 2.0, "n": 1, "some": True, "total": 1.0}
    assert found(3) == {name: [value] * 2 for name, value in some.items()} | {"last": [1.0] * 3}
    none = {"a": -np.inf, "n": -(2**31), "some": False, "total": 0.0}
    assert found(0) == {name: [value] * 2 for name, value in none.items()} | {"last": []}
