"""A learned mixture of attentions and an early exit, against small torch models written here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import pytest
import torch
from bundled import FOLDER
from patterns import hashed
from references import distance
from small_models import ids
from torch.nn.functional import elu, embedding, gelu, layer_norm, linear

import archc
from archc.api import Compiled, Model

RUNS = [
    ("numpy", "f64", 0),
    ("numpy", "f64", 1),
    ("torch", "f32", 0),
    ("torch", "f32", 1),
    ("triton", "f32", 1),
]
TOLERANCE = {"f64": 1e-12, "f32": 1e-5}
EPS, SIZE = 2e-3, 9
LOUD = 6  # a seed whose confidences differ from row to row
PADDING = {  # which slots of a row exist
    "right": [1, 1, 1, 1, 1, 1, 0, 0, 0],
    "left": [0, 0, 1, 1, 1, 1, 1, 1, 1],
    "inner": [1, 0, 1, 1, 0, 0, 1, 1, 1],
}
Weights = Mapping[str, torch.Tensor]


def loud(name: str, **values: object) -> tuple[Model, Weights]:
    """An example with biases, gains and confidences that are far from equal, and its weights."""
    model = archc.load(FOLDER / f"{name}.arch", preset="tiny", eps=EPS, **values)
    made = model.with_random_weights(LOUD).weights
    assert made is not None
    noise = np.random.default_rng(2)
    moved = {
        path: (w * (30 if "confidence.w" in path else 1)
               + (0.3 if w.ndim == 1 else 0.0) * noise.standard_normal(w.shape)).astype("f")
        for path, w in made.items()
    }  # fmt: skip
    loaded = archc.load(FOLDER / f"{name}.arch", preset="tiny", weights=moved, eps=EPS, **values)
    return loaded, {path: torch.from_numpy(w).double() for path, w in moved.items()}


@cache
def compiled(name: str, backend: str, dtype: str, level: int, **values: object):
    model, w = loud(name, **values)
    return model.compile(backend, dtype=dtype, level=level), w


def batch(*padded: str) -> dict[str, np.ndarray]:
    """A row that is full, and one padded in each of these ways."""
    mask = np.array([[1] * SIZE, *(PADDING[name] for name in padded)])
    tokens = np.random.default_rng(5).integers(0, 131, mask.shape)
    return {"input_ids": tokens, "attention_mask": mask}


# ------------------------------------------------------------------------ layers, in torch


def affine(w: Weights, path: str, x: torch.Tensor) -> torch.Tensor:
    return linear(x, w[f"{path}.w"].reshape(-1, x.shape[-1]), w[f"{path}.b"].reshape(-1))


def norm(w: Weights, path: str, x: torch.Tensor) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], w[f"{path}.gain"], w[f"{path}.b"], EPS)


def ffn(w: Weights, path: str, x: torch.Tensor) -> torch.Tensor:
    return affine(w, f"{path}.out", gelu(affine(w, f"{path}.in", x)))


def attend(
    w: Weights, path: str, x: torch.Tensor, seen: torch.Tensor, kernel: bool = False
) -> torch.Tensor:
    """Of one row, x [s, d] and seen [s, s]; with `kernel`, elu + 1 in the place of exp."""

    def heads(part: str) -> torch.Tensor:
        return affine(w, f"{path}.{part}", x).reshape(len(x), 4, -1).transpose(0, 1)

    q, k, v = (heads(part) for part in "qkv")
    if kernel:
        a = ((elu(q) + 1) @ (elu(k) + 1).transpose(1, 2)) * seen
    else:
        a = torch.exp(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5) * seen
    p = torch.nan_to_num(a / a.sum(-1, keepdim=True))
    return affine(w, f"{path}.o", (p @ v).transpose(0, 1).reshape(x.shape))


def embedded(w: Weights, tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return embedding(tokens, w["tokens.w"]) + embedding(slots, w["positions.w"])


# ------------------------------------------------------------------------ the mixture

SEED, KEYS, OF, BLOCK = 3, 1, 3, 4  # those of the preset `tiny`


def mixture(w: Weights, tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """One row without its padding: `slots` are the places of its tokens."""
    x, places = embedded(w, tokens, slots), slots.tolist()
    every = torch.ones(len(places), len(places), dtype=torch.bool)
    chance = [[hashed(SEED, i, j) % OF < KEYS for j in places] for i in places]
    blocks = slots[:, None] // BLOCK == slots[None] // BLOCK
    for layer in ("layers[0]", "layers[1]"):
        at = f"{layer}.attention"
        n = norm(w, f"{layer}.norm1", x)
        kinds = torch.stack([
            attend(w, f"{at}.standard", n, every),
            attend(w, f"{at}.linear", n, every, kernel=True),
            attend(w, f"{at}.random", n, torch.tensor(chance)),
            attend(w, f"{at}.local", n, blocks),
        ])  # fmt: skip
        share = torch.softmax(affine(w, f"{at}.choice", n.mean(0)), -1)
        x = x + torch.einsum("k,ksd->sd", share, kinds)
        x = x + ffn(w, f"{layer}.ffn", norm(w, f"{layer}.norm2", x))
    return norm(w, "final_norm", x) @ w["tokens.w"].T


@pytest.mark.parametrize(("backend", "dtype", "level"), RUNS)
def test_a_mixture_of_attentions(backend: str, dtype: str, level: int) -> None:
    (run, w), given = compiled("next_gen_llm", backend, dtype, level), batch(*PADDING)
    got = run(**given)["logits"]
    for row, tokens in enumerate(given["input_ids"]):
        slots = np.flatnonzero(given["attention_mask"][row])
        expected = mixture(w, torch.from_numpy(tokens[slots]), torch.from_numpy(slots))
        assert distance(got[row, slots], expected.numpy()) <= TOLERANCE[dtype]


def test_the_mixture_hears_its_weights_and_its_seed() -> None:
    """Another seed, or other shares, is another result: none of the four is idle."""
    given = batch("right")
    model, w = loud("next_gen_llm")
    base = model.compile(dtype="f64")(**given)["logits"]
    other = loud("next_gen_llm", seed=4)[0].compile(dtype="f64")(**given)["logits"]
    assert distance(other, base) > 1e-3
    for kind in ("standard", "linear", "random", "local"):
        path = f"layers[0].attention.{kind}.o.b"
        changed = {p: v.numpy().astype("f") for p, v in w.items()}
        changed[path] = changed[path] * -2
        moved = archc.load(FOLDER / "next_gen_llm.arch", preset="tiny", weights=changed, eps=EPS)
        assert distance(moved.compile(dtype="f64")(**given)["logits"], base) > 1e-3


@pytest.mark.parametrize(
    ("name", "reason"), [("next_gen_llm", "looks-ahead"), ("adaptive_llm", "exit-in-decode")]
)
def test_it_cannot_decode(name: str, reason: str) -> None:
    text = (FOLDER / f"{name}.arch").read_text()
    promised = text.replace("  time s:", "  decode s\n  time s:")
    assert promised != text
    found = ids(promised.split("\npreset")[0], vocab=7, positions=9, d=8, heads=2, layers=2)
    assert set(found) == {reason}


# ------------------------------------------------------------------------ the early exit


def layer(w: Weights, i: int, x: torch.Tensor) -> torch.Tensor:
    path, seen = f"layers[{i}]", torch.ones(len(x), len(x)).tril()
    x = x + attend(w, f"{path}.attention", norm(w, f"{path}.norm1", x), seen)
    return x + ffn(w, f"{path}.ffn", norm(w, f"{path}.norm2", x))


def leave_early(
    w: Weights, rows: list[tuple[torch.Tensor, torch.Tensor]], layers: int, threshold: float
) -> tuple[list[torch.Tensor], int]:
    """A batch of rows without padding, as the class runs it: no layer after the exit."""
    x = [embedded(w, *row) for row in rows]
    depth = layers
    for i in range(layers):
        x = [layer(w, i, row) for row in x]
        if i > 0:
            means = torch.stack([row.mean(0) for row in x])
            if torch.sigmoid(affine(w, f"layers[{i}].confidence", means)).mean() > threshold:
                depth = i + 1
                break
    return [norm(w, "final_norm", row) @ w["tokens.w"].T for row in x], depth


THRESHOLDS = [0.1, 0.5, 0.9, 1.0]


@pytest.mark.parametrize(("backend", "dtype", "level"), RUNS)
@pytest.mark.parametrize("per_batch", [False, True], ids=["each row", "whole batch"])
def test_leaving_early(per_batch: bool, backend: str, dtype: str, level: int) -> None:
    given = batch(*PADDING)
    slots = [np.flatnonzero(row) for row in given["attention_mask"]]
    rows = [
        (torch.from_numpy(tokens[at]), torch.from_numpy(at))
        for tokens, at in zip(given["input_ids"], slots, strict=True)
    ]
    depths = set()
    for threshold in THRESHOLDS:
        switches = {"layers": 5, "threshold": threshold, "per_batch": per_batch}
        run, w = compiled("adaptive_llm", backend, dtype, level, **switches)
        got = run(**given)
        together = [rows] if per_batch else [[row] for row in rows]
        found = [leave_early(w, group, 5, threshold) for group in together]
        expected = [(y, depth) for group, depth in found for y in group]
        left = np.broadcast_to(got["depth"], len(rows))
        for row, (y, depth) in enumerate(expected):
            assert left[row] == depth
            assert distance(got["logits"][row, slots[row]], y.numpy()) <= TOLERANCE[dtype]
        depths |= {tuple(left.tolist())}
    assert len(depths) >= 2
    assert any(len(set(row)) > 1 for row in depths) != per_batch


def layer_calls(run: Compiled, given: dict[str, np.ndarray]) -> dict[int, int]:
    """How often each layer of a torch model runs, in rows."""
    calls: dict[int, int] = {}

    def count(i: int) -> Callable[..., None]:
        return lambda _, arguments: calls.update({i: calls.get(i, 0) + len(arguments[0])})

    layers = run.module.layers
    hooks = [layer.register_forward_pre_hook(count(i)) for i, layer in enumerate(layers)]
    run(**given)
    for hook in hooks:
        hook.remove()
    return calls


@pytest.mark.parametrize("per_batch", [False, True], ids=["each row", "whole batch"])
def test_a_layer_after_the_exit_is_not_run(per_batch: bool) -> None:
    given, saved = batch(*PADDING), 0
    for threshold in THRESHOLDS:
        switches = {"layers": 5, "threshold": threshold, "per_batch": per_batch}
        run, _ = compiled("adaptive_llm", "torch", "f32", 1, **switches)
        depth = np.broadcast_to(run(**given)["depth"], 4)
        wanted = {i: int((depth > i).sum()) for i in range(int(depth.max()))}
        assert layer_calls(run, given) == wanted
        saved += 5 * 4 - sum(wanted.values())
    assert saved > 0
