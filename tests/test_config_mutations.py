"""No config field is silently without effect: each is changed in turn, against `transformers`.

With the same weights and one field changed, loading refuses, or the hyperparameters change and the
output follows that of `transformers`, or they do not and neither does that of `transformers`. What
has no effect here is changed all at once there, and by halves where that has an effect.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
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


def enough(mutation: Mutation) -> int:
    """How many values of a field are compared; that of a part, which has its own test, is once."""
    return 1 if len(mutation.path) > 1 else 2


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


def at_once(found: Sequence[Mutation]) -> Iterator[list[Mutation]]:
    """Groups in which no field is changed twice: the first change of each, the second, and so on."""
    turns = Counter[tuple[str, ...]]()
    groups: dict[int, list[Mutation]] = {}
    for mutation in found:
        groups.setdefault(turns[mutation.path], []).append(mutation)
        turns[mutation.path] += 1
    yield from groups.values()


def with_effect(
    group: Sequence[Mutation], keeps: Callable[[Sequence[Mutation]], bool | None]
) -> Iterator[Mutation]:
    """Those that alone do not keep the output; `keeps` is None where `transformers` refuses."""
    kept = keeps(group)
    if kept or (kept is None and len(group) == 1):
        return
    if len(group) == 1:
        yield group[0]
        return
    for half in (group[: len(group) // 2], group[len(group) // 2 :]):
        yield from with_effect(half, keeps)


@pytest.mark.parametrize("name", REFERENCES)
def test_no_field_is_silently_ignored(name: str, tmp_path: Path) -> None:
    reference = REFERENCES[name]
    before = reference.run(reference.build(tmp_path / "read"), reference.inputs())
    ours = Ours(reference, tmp_path / "read")
    config = json.loads((tmp_path / "read" / "config.json").read_text())

    def after(*found: Mutation) -> np.ndarray | None:
        changed = reduce(lambda made, mutation: mutation.applied(made), found, config)
        return theirs(reference, tmp_path / "read", changed, tmp_path / "changed")

    def keeps(group: Sequence[Mutation]) -> bool | None:
        got = after(*group)
        return None if got is None else same(reference, before, got, 1e-6)

    ignored, wrong, compared = [], [], Counter[tuple[str, ...]]()
    for mutation in changes(name, config):
        values = ours.read(mutation.applied(config))
        if values is None or exempt(reference.example, mutation):
            continue
        if values == ours.values:
            ignored.append(mutation)
            continue
        if compared[mutation.path] >= enough(mutation):
            continue
        value = ours.output(values)
        got = None if value is None else after(mutation)
        if got is not None:
            compared[mutation.path] += 1
            if not same(reference, value, got, 1e-4):
                wrong.append(str(mutation))
    silent = [str(m) for group in at_once(ignored) for m in with_effect(group, keeps)]
    assert (silent, wrong) == ([], [])


def test_a_mutation_is_one_field() -> None:
    config = {"n": 3, "on": True, "act": "silu", "rope": {"theta": 1.5}, "kinds": ["a", "b"]}
    found = [str(m) for m in mutations(config)]
    assert found[:4] == ["n = 4", "n = 6", "n = null", "n removed"]
    assert "rope.theta = 3.0" in found
    assert 'kinds = ["b", "a"]' in found
    assert Mutation(("rope", "theta"), 2).applied(config)["rope"] == {"theta": 2}
    assert config["rope"] == {"theta": 1.5}


def test_halves_find_what_has_an_effect() -> None:
    found = list(mutations({"a": 1, "b": "w", "c": True, "refused": False, "d": 2.0}))
    loud = {"a = 2", "d removed"}

    def keeps(group: Sequence[Mutation]) -> bool | None:
        if any("refused" in m.path for m in group):
            return None
        return not any(str(m) in loud for m in group)

    groups = list(at_once(found))
    assert all(len({m.path for m in group}) == len(group) for group in groups)
    assert sorted(str(m) for group in groups for m in group) == sorted(map(str, found))
    assert {str(m) for group in groups for m in with_effect(group, keeps)} == loud


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
