"""Models of a few lines: elaborated, proved causal, verified, and run in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from archc.api import Model
from archc.backends.numpy import NumpyBackend
from archc.compiler.causality import elaborate_proved
from archc.compiler.elaborate import Request, module_of, the_model
from archc.compiler.ir.graph import Program
from archc.compiler.ir.verify import verify
from archc.compiler.weights import random_weights
from archc.decoder import Decoder
from archc.dsl import Source, parse
from archc.dsl.diagnostics import ArchError, Diagnostics

SIZES = {"b": 2, "s": 5, "t": 7, "d": 8}


def model(body: str, above: str = "") -> str:
    """A file with one model: 8 features along s, their ids, and which of them exist."""
    return f"""use std
{above}
model M {{
  d = 8; heads = 2
  input x: float[b, s, d]
  input ids: ids[b, s] < d
  input keep: bool[b, s] = true
  {body}
}}
"""


def program(text: str, given: Any = None, loss: bool = False, **overrides: Any) -> Program:
    module = module_of(parse(Source("model.arch", text)))
    found = elaborate_proved(module, the_model(module), Request(overrides, given, loss))
    verify(found)
    return found


def opened(text: str, seed: int = 0, loss: bool = False) -> Model:
    """The only model of a file, with random weights."""
    module = module_of(parse(Source("model.arch", text)))
    return Model(module, the_model(module), {}, loss=loss).with_random_weights(seed)


def continued(
    decoder: Decoder, inputs: Mapping[str, np.ndarray], lengths: Sequence[int]
) -> np.ndarray:
    """Output `y` of runs of so many rows, each of which goes on from the one before."""
    state, rows, start = None, [], 0
    for length in lengths:
        run = {name: array[:, start : start + length] for name, array in inputs.items()}
        outputs, state = decoder(state, **run)
        rows.append(outputs["y"])
        start += length
    return np.concatenate(rows, 1)


def inputs(seed: int = 0, **others: np.ndarray) -> dict[str, np.ndarray]:
    """Values for the inputs of `model`; `keep` is true unless given."""
    noise = np.random.default_rng(seed)
    b, s, d = SIZES["b"], SIZES["s"], SIZES["d"]
    made = {
        "x": noise.standard_normal((b, s, d)),
        "ids": noise.integers(0, d, (b, s)),
        "keep": np.ones((b, s), bool),
    }
    return made | others


def weights(found: Program) -> Mapping[str, np.ndarray]:
    return {k: v.astype(np.float64) for k, v in random_weights(found).items()}


def run(
    text: str,
    values: dict[str, np.ndarray] | None = None,
    **overrides: Any,
) -> tuple[dict[str, np.ndarray], Mapping[str, np.ndarray]]:
    """The outputs of a model on `values` (those of `inputs` by default), and its weights."""
    found = program(text, **overrides)
    made = weights(found)
    executable = NumpyBackend().load(found, made, dtype="f64")
    given = values if values is not None else inputs()
    wanted = {n.attrs["name"] for n in found.main.nodes if n.op == "input"}
    return executable.run({k: v for k, v in given.items() if k in wanted}), made


def value(body: str, above: str = "", values: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """What output `y` of `model(body)` is."""
    return run(model(body, above), values)[0]["y"]


def paths(text: str, **overrides: Any) -> list[str]:
    return [p.path for p in program(text, **overrides).parameters]


def mistakes(text: str, **overrides: Any) -> list[ArchError]:
    """Everything that is wrong with a text, in order."""
    try:
        program(text, **overrides)
    except Diagnostics as found:
        return list(found.errors)
    except ArchError as error:
        return [error]
    return []


def ids(text: str, **overrides: Any) -> list[str]:
    return [error.id for error in mistakes(text, **overrides)]
