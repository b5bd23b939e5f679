"""No config field is silently without effect: each is changed in turn, against `transformers`.

With the same weights and one field changed, loading refuses, or the hyperparameters change and the
output follows that of `transformers`, or they do not and neither does that of `transformers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundled import FOLDER
from mutations import Mutation, additions, mutations, theirs
from references import REFERENCES, Reference, distance, seen

import archc
from archc.backends.numpy import NumpyBackend
from archc.compiler.checkpoint import bind, checkpoint_block, evaluate_config, open_checkpoint
from archc.compiler.checkpoint.reader import Checkpoint
from archc.compiler.elaborate import Request, elaborate, hyperparameters
from archc.dsl.diagnostics import ArchError, Diagnostics

# Where the output of `transformers` changes, and should not have an effect here.
NO_NULL = {  # null is absent here, the default; there it is a switch that is off
    "scale_decoder_outputs",
    "truncate",
}
DEFECTS = {
    (
        "falcon",
        "output_attentions",
    ): "there it adds a mask of booleans to the scores, so hides nothing",
    ("mamba", "rescale_prenorm_residual"): "there reading a checkpoint rescales its weights again",
    ("mamba2", "rescale_prenorm_residual"): "there reading a checkpoint rescales its weights again",
}
FIRST = {r.example: name for name, r in reversed(REFERENCES.items())}


def changes(name: str, config: dict[str, Any]) -> Iterator[Mutation]:
    """All for the first reference of an example; for the others only where their configs differ."""
    example = REFERENCES[name].example
    first = REFERENCES[FIRST[example]]
    if first is REFERENCES[name] or first.class_name != REFERENCES[name].class_name:
        yield from mutations(config)
    else:
        known = [str(m) for m in mutations(first.config)]
        yield from (m for m in mutations(REFERENCES[name].config) if str(m) not in known)
    if first is REFERENCES[name]:
        yield from additions(config)


def exempt(example: str, mutation: Mutation) -> bool:
    field = mutation.path[-1]
    return (example, field) in DEFECTS or (mutation.value is None and field in NO_NULL)


class Ours:
    """A reference's checkpoint, opened once and read under other configs."""

    def __init__(self, reference: Reference, directory: Path) -> None:
        self.reference = reference
        self.model = archc.load(FOLDER / f"{reference.example}.arch", weights=directory)
        self.opened = open_checkpoint(directory)
        self.values = self.read(self.opened.config)

    def read(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """The hyperparameters by a config, none where it is refused."""
        classes = config.get("architectures") or [""]
        source = Checkpoint(
            self.opened.path, "huggingface", classes[0], config, self.opened.tensors
        )
        names = source.tensor_names
        try:
            block = checkpoint_block(self.model.module.file, "", source)
            return evaluate_config(block, config, hyperparameters(self.model.definition), names)
        except ArchError:
            return None

    def output(self, values: dict[str, Any]) -> np.ndarray | None:
        """The output under other hyperparameters, none where the weights do not fit them.

        Of the graph as written: what passes and backends make of it is compared elsewhere.
        """
        inputs = {name: np.asarray(value) for name, value in self.reference.inputs().items()}
        module, definition = self.model.module, self.model.definition
        try:
            weights = bind(
                self.model.block, self.opened, elaborate(module, definition, Request(values))
            )
            program = elaborate(module, definition, Request(values, inputs.keys()))
            run = NumpyBackend().load(program, weights, dtype="f32").run
            return run(inputs)[self.reference.output]
        except (ArchError, Diagnostics):
            return None  # such as ids beyond a smaller vocabulary


def same(reference: Reference, a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    present = seen(reference.inputs())
    if a.shape == b.shape and a.ndim > 2 and present is not None:
        a, b = a[present], b[present]
    return a.shape == b.shape and distance(a, b) <= tolerance


@pytest.mark.parametrize("name", REFERENCES)
def test_no_field_is_silently_ignored(name: str, tmp_path: Path) -> None:
    reference = REFERENCES[name]
    before = reference.run(reference.build(tmp_path / "read"), reference.inputs())
    ours = Ours(reference, tmp_path / "read")
    config = json.loads((tmp_path / "read" / "config.json").read_text())
    silent, wrong = [], []
    for mutation in changes(name, config):
        changed = mutation.applied(config)
        values = ours.read(changed)
        if values is None or exempt(reference.example, mutation):
            continue
        same_model = values == ours.values
        value = before if same_model else ours.output(values)
        if value is None:
            continue
        after = theirs(reference, tmp_path / "read", changed, tmp_path / "changed")
        if after is not None and not same(reference, value, after, 1e-6 if same_model else 1e-4):
            (silent if same_model else wrong).append(str(mutation))
    assert (silent, wrong) == ([], [])


def test_a_mutation_is_one_field() -> None:
    config = {"n": 3, "on": True, "act": "silu", "rope": {"theta": 1.5}, "kinds": ["a", "b"]}
    found = [str(m) for m in mutations(config)]
    assert found[:4] == ["n = 4", "n = 6", "n = null", "n removed"]
    assert "rope.theta = 3.0" in found
    assert 'kinds = ["b", "a"]' in found
    assert Mutation(("rope", "theta"), 2).applied(config)["rope"] == {"theta": 2}
    assert config["rope"] == {"theta": 1.5}


def test_transformers_sees_a_change_of_the_config(tmp_path: Path) -> None:
    """Else nothing could fail above."""
    reference = REFERENCES["mistral-window"]
    before = reference.run(reference.build(tmp_path / "read"), reference.inputs())
    config = json.loads((tmp_path / "read" / "config.json").read_text())
    again = theirs(reference, tmp_path / "read", config, tmp_path / "changed")
    changed = config | {"sliding_window": 3}
    after = theirs(reference, tmp_path / "read", changed, tmp_path / "changed")
    assert again is not None
    assert same(reference, again, before, 0.0)
    assert after is not None
    assert not same(reference, after, before, 1e-3)
