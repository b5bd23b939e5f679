"""Configs with one field changed, and what `transformers` makes of them with the same weights."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from references import Reference

from archc.compiler.checkpoint.config import STANDARD_IGNORES

Names = tuple[str, ...]
WORDS = ("other",)
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
REMOVED = object()
SPLITS = {"pretraining_tp": 2, "chunk_size_feed_forward": 4}  # how many parts, how long a part


@dataclass(frozen=True)
class Mutation:
    """Field `path` set to `value`, or taken away."""

    path: Names
    value: Any

    def __str__(self) -> str:
        said = "removed" if self.value is REMOVED else f"= {json.dumps(self.value)}"
        return f"{'.'.join(self.path)} {said}"

    def applied(self, config: Mapping[str, Any]) -> dict[str, Any]:
        changed = copy.deepcopy(dict(config))
        group = changed
        for name in self.path[:-1]:
            group = group[name]
        if self.value is REMOVED:
            del group[self.path[-1]]
        else:
            group[self.path[-1]] = self.value
        return changed


def mutations(config: Mapping[str, Any], lead: Names = ()) -> Iterator[Mutation]:
    """Each field in turn: another number, the other truth, another word, null, and absent."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from mutations(value, (*lead, name))
            continue
        for other in (*_others(value), None, REMOVED):
            if other is REMOVED or other != value:
                yield Mutation((*lead, name), other)


def additions(config: Mapping[str, Any]) -> Iterator[Mutation]:
    """Each field that is ignored for every checkpoint, where a config does not have it yet."""
    for name in (n for names in STANDARD_IGNORES.values() for n in names):
        if "*" not in name and name not in config:
            yield Mutation((name,), SPLITS.get(name, True))


def _others(value: Any) -> tuple[Any, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int | float):
        return (value + 1, value * 2)
    if isinstance(value, str):
        return (*WORDS, *(ACTIVATIONS if value in ACTIVATIONS else ()))
    if isinstance(value, list) and len(value) > 1:
        return (value[::-1],)
    return ()


def theirs(
    reference: Reference, directory: Path, config: Mapping[str, Any], scratch: Path
) -> np.ndarray | None:
    """The output of `transformers` for the weights of `directory` under another config.

    None where it refuses the config, or finds that the weights do not fit it.
    """
    scratch.mkdir(exist_ok=True)
    for file in directory.glob("*.safetensors"):
        if not (scratch / file.name).exists():
            os.link(file, scratch / file.name)
    (scratch / "config.json").write_text(json.dumps(config))
    try:
        model, found = getattr(transformers, reference.class_name).from_pretrained(
            scratch, output_loading_info=True
        )
        if found["missing_keys"] or found["unexpected_keys"] or found["mismatched_keys"]:
            return None
        return reference.run(model.eval(), reference.inputs())
    except Exception:  # whatever it raises for a config that it cannot build
        return None
