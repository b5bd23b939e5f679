"""State spaces and long convolutions against plain NumPy, written here from their equations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from references import REFERENCES, distance
from safetensors.numpy import load_file, save_file

import archc

EXAMPLES = Path(__file__).parent.parent / "examples"
Weights = Mapping[str, np.ndarray]
erf = np.vectorize(math.erf)
RUNS = [
    ("numpy", "f64", 0, 1e-12),
    ("numpy", "f64", 1, 1e-12),
    ("numpy", "f32", 1, 1e-5),
    ("torch", "f32", 1, 1e-5),
    ("triton", "f32", 1, 1e-5),
]


NAMES = ("weight", "bias")
PLACES = (("in", "in"), ("short", "short"), ("f0", "first"), ("out", "out"))


def loaded(name: str, preset: str = "tiny", **settings: object) -> archc.api.Model:
    return archc.load(EXAMPLES / f"{name}.arch", preset=preset, **settings).with_random_weights(3)


def given(width: int, length: int = 11) -> dict[str, np.ndarray]:
    """Two rows, padded on the left and on the right."""
    x = np.random.default_rng(1).standard_normal((2, length, width))
    mask = np.ones((2, length), bool)
    mask[0, :2] = mask[1, -3:] = False
    return {"x": x, "attention_mask": mask}


def found(model: archc.api.Model, inputs: Weights, backend: str, dtype: str, level: int):
    compiled = model.compile(backend, dtype=dtype, level=level)
    x = inputs["x"].astype(np.float64 if dtype == "f64" else np.float32)
    return compiled(x=x, attention_mask=inputs["attention_mask"])["hidden"]


def rows(inputs: Weights) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each row without its padding."""
    for i, kept in enumerate(inputs["attention_mask"]):
        yield i, inputs["x"][i, kept], kept


def closed(y: np.ndarray, w: Weights) -> np.ndarray:
    """GELU, a linear map, and half of its result gated by the other half."""
    y = y * (1 + erf(y / 2**0.5)) / 2
    z = np.einsum("sd,ped->spe", y, w["out.w"]) + w["out.b"]
    return z[:, 0] / (1 + np.exp(-z[:, 1]))


def pairs(value: np.ndarray) -> np.ndarray:
    return value[..., 0] + 1j * value[..., 1]


def s4d(w: Weights, u: np.ndarray) -> np.ndarray:
    """The state space held for a step, one complex number for each conjugate pair."""
    dt = np.exp(w["ssm.log_dt"])[:, None]
    a = -np.exp(w["ssm.log_a_real"]) + 1j * w["ssm.a_imag"]
    c = pairs(w["ssm.c"]) * (np.exp(dt * a) - 1) / a
    h, steps = np.zeros_like(a), []
    for x in u:
        h = np.exp(dt * a) * h + x[:, None]
        steps.append(2 * (c * h).sum(-1).real + w["ssm.skip"] * x)
    return closed(np.array(steps), w)


def s4(w: Weights, u: np.ndarray) -> np.ndarray:
    """Dense matrices: the states and their conjugates, and the bilinear rule with an inverse."""
    steps = [dense(w, u[:, channel], channel) for channel in range(u.shape[1])]
    return closed(np.stack(steps, 1) + w["ssm.skip"] * u, w)


def dense(w: Weights, u: np.ndarray, channel: int) -> np.ndarray:
    def both(name: str) -> np.ndarray:
        value = pairs(w[f"ssm.{name}"][channel])
        return np.concatenate([value, value.conj()])

    half = -np.exp(w["ssm.log_a_real"][channel]) + 1j * w["ssm.a_imag"][channel]
    p = both("p")
    a = np.diag(np.concatenate([half, half.conj()])) - np.outer(p, p.conj())
    dt = np.exp(w["ssm.log_dt"][channel])
    return simulated(a, both("b"), both("c"), dt, u)


def simulated(a: np.ndarray, b: np.ndarray, c: np.ndarray, dt: float, u: np.ndarray) -> np.ndarray:
    """(1 - dt/2 A) h' = (1 + dt/2 A) h + dt b u, y = c h."""
    one = np.eye(len(a))
    ahead = np.linalg.inv(one - dt / 2 * a)
    h, steps = np.zeros(len(a), a.dtype), []
    for x in u:
        h = ahead @ ((one + dt / 2 * a) @ h + dt * b * x)
        steps.append((c @ h).real)
    return np.array(steps)


def hyena(w: Weights, x: np.ndarray, order: int, inner: int, l_max: int = 16) -> np.ndarray:
    """Sums over every earlier entry, with kernels that are tables over l_max distances."""
    length, d = x.shape
    u = x @ w["mixer.in.w"].T + w["mixer.in.b"]
    short = w["mixer.short.w"]
    lagged = np.concatenate([np.zeros((short.shape[1] - 1, u.shape[1])), u])
    u = sum(short[:, j] * lagged[j : j + length] for j in range(short.shape[1]))
    u = (u + w["mixer.short.b"]).reshape(length, order + 1, d)

    t, f = np.linspace(0, 1, l_max)[:, None], np.linspace(1e-4, 1, 2)
    angle = 2 * np.pi * np.arange(l_max)[:, None] / l_max * f
    h = np.concatenate([t, np.cos(angle), -np.sin(angle)], 1)
    layers = ["first", *(f"inner[{i}].layer" for i in range(inner))]
    for name in layers:
        h = np.sin(w["mixer.freq"] * (h @ w[f"mixer.{name}.w"].T + w[f"mixer.{name}.b"]))
    delta = np.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, d * (order - 1))
    last = w["mixer.last.w"].reshape(d * (order - 1), -1)
    kernel = (h @ last.T * np.exp(-t * abs(delta))).reshape(l_max, d, order - 1)

    *gates, v = u.swapaxes(0, 1)
    for stage, gate in enumerate(reversed(gates[1:])):
        v = v * gate
        mixed = [sum(kernel[i - j, :, stage] * v[j] for j in range(i + 1)) for i in range(length)]
        v = np.array(mixed) + w["mixer.bias"].reshape(d, order - 1)[:, stage] * v
    return (v * gates[0]) @ w["mixer.out.w"].T + w["mixer.out.b"]


CASES = {
    "s4": ("s4", "tiny", 16, s4),
    "s4d": ("s4d", "tiny", 16, s4d),
    "s4d-convolution": ("s4d", "tiny_convolution", 16, s4d),
    "hyena": ("hyena", "tiny", 12, lambda w, x: hyena(w, x, 2, 2)),
    "hyena-third": ("hyena", "tiny_third", 12, lambda w, x: hyena(w, x, 3, 1)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("backend", "dtype", "level", "bound"), RUNS)
def test_agrees_with_the_equations(
    name: str, backend: str, dtype: str, level: int, bound: float
) -> None:
    example, preset, width, formula = CASES[name]
    model, inputs = loaded(example, preset), given(width)
    weights = {path: np.array(value, np.float64) for path, value in model.weights.items()}
    got = found(model, inputs, backend, dtype, level)
    for i, x, kept in rows(inputs):
        assert distance(got[i, kept], formula(weights, x)) <= bound


def test_recurrence_and_convolution_are_one() -> None:
    model, inputs = loaded("s4d"), given(16, 40)
    other = loaded("s4d", "tiny_convolution")
    assert other.weights.keys() == model.weights.keys()
    for level in (0, 1):
        one, two = (found(m, inputs, "numpy", "f64", level) for m in (model, other))
        assert distance(one[inputs["attention_mask"]], two[inputs["attention_mask"]]) <= 1e-12


def test_s4_is_hippo() -> None:
    """HiPPO-LegS as a real dense matrix, and the same taken to eigenvectors as the text says."""
    state, width, steps = 8, 3, 20
    n = np.arange(state)
    a = -np.tril(np.sqrt(np.outer(2 * n + 1, 2 * n + 1)), -1) - np.diag(n + 1.0)
    b, p = np.sqrt(2 * n + 1), np.sqrt(n + 0.5)
    values, vectors = np.linalg.eig(a + np.outer(p, p))
    assert np.allclose(values.real, -0.5)
    upper = values.imag > 0
    to = vectors[:, upper].conj().T  # unitary: the matrix is normal
    c = np.random.default_rng(2).standard_normal((width, state))

    model = loaded("s4", d=width, state=state)
    rates = np.array([0.5, 0.05, 0.2])
    repeated = {"p": to @ p, "b": to @ b}
    weights = dict(model.weights) | {
        "ssm.log_dt": np.log(rates),
        "ssm.log_a_real": np.full((width, state // 2), np.log(0.5)),
        "ssm.a_imag": np.tile(values.imag[upper], (width, 1)),
        "ssm.c": parts(c @ vectors[:, upper]),
        **{f"ssm.{k}": np.tile(parts(v), (width, 1, 1)) for k, v in repeated.items()},
    }
    inputs = given(width, steps)
    inputs["attention_mask"][:] = True
    got = found(
        archc.load(EXAMPLES / "s4.arch", d=width, state=state, weights=weights),
        inputs,
        "numpy",
        "f64",
        0,
    )
    for i in range(2):
        u = inputs["x"][i]
        y = np.stack([simulated(a, b, c[k], rates[k], u[:, k]) for k in range(width)], 1)
        expected = closed(y + weights["ssm.skip"] * u, weights)
        assert distance(got[i], expected) <= 1e-10


STORED = {
    "s4d": (
        {"d_model": 16, "d_state": 8},
        {"log_dt": "ssm.log_dt", "log_A_real": "ssm.log_a_real", "A_imag": "ssm.a_imag"}
        | {"C": "ssm.c", "D": "ssm.skip", "out_weight": "out.w", "out_bias": "out.b"},
    ),
    "hyena": (
        {"d_model": 12, "order": 2, "l_max": 16, "emb_dim": 5, "filter_order": 10, "shift": 0.0}
        | {"fast_decay_pct": 0.3, "slow_decay_pct": 1.5, "target": 1e-2},
        {f"f{i + 1}_{n}": f"mixer.inner[{i}].layer.{n[0]}" for i in (0, 1) for n in NAMES}
        | {f"{a}_{n}": f"mixer.{b}.{n[0]}" for a, b in PLACES for n in NAMES}
        | {"freq": "mixer.freq", "f3_weight": "mixer.last.w", "bias": "mixer.bias"},
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_a_checkpoint_has_the_names_of_the_equations(name: str, tmp_path: Path) -> None:
    config, names = STORED[name]
    example, preset, width, formula = CASES[name]
    weights = {k: np.array(v, np.float32) for k, v in loaded(example, preset).weights.items()}
    wide = {k: v.astype(np.float64) for k, v in weights.items()}
    assert set(names.values()) == weights.keys()
    tensors = {stored: as_stored(stored, weights[path]) for stored, path in names.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, inputs = archc.load(EXAMPLES / f"{name}.arch", weights=tmp_path), given(width)
    got = found(model, inputs, "numpy", "f64", 0)
    for i, x, kept in rows(inputs):
        assert distance(got[i, kept], formula(wide, x)) <= 1e-12
    model.export(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[k], v) for k, v in tensors.items())


def as_stored(name: str, value: np.ndarray) -> np.ndarray:
    """Rows and columns, or one vector of a bias."""
    if name in ("out_weight", "f3_weight"):
        return value.reshape(-1, value.shape[-1])
    return value.reshape(-1) if name.endswith("bias") else value


def parts(value: np.ndarray) -> np.ndarray:
    return np.stack([value.real, value.imag], -1)


# ---------------------------------------------------------------------------- Mamba's padding


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_padding_on_the_left_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    reference = REFERENCES[name]
    model, inputs = reference.build(tmp_path).double(), reference.inputs()
    inputs["attention_mask"] = inputs["attention_mask"][:, ::-1].copy()
    expected = reference.run(model, inputs)
    compiled = archc.load(EXAMPLES / f"{name}.arch", weights=tmp_path).compile(dtype="f64")
    seen = inputs["attention_mask"].astype(bool)
    assert distance(compiled(**inputs)["logits"][seen], expected[seen]) <= 1e-6


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_states_hold_over_padding(name: str) -> None:
    """With a convolution of one tap, padding anywhere is as if it were not there."""
    model = loaded(name, width=1)
    compiled = model.compile(dtype="f64")
    ids = np.random.default_rng(0).integers(0, 131, (1, 9))
    mask = np.array([[1, 1, 0, 1, 0, 0, 1, 1, 1]], bool)
    whole = compiled(input_ids=ids, attention_mask=mask)["logits"]
    alone = compiled(input_ids=ids[mask][None])["logits"]
    assert distance(whole[mask], alone[0]) <= 1e-12
