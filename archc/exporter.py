"""`Model.export`: a model with weights as a Hugging Face directory.

The config read is written back where it still says the model; else one is made by turning the config
lines round. Either is read again by those lines before anything is written, and must give the same
program: a config that says another model is never written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compiler.checkpoint import (
    SHARD_BYTES,
    config_of,
    evaluate_config,
    save,
    values_of,
    written_names,
)
from .compiler.elaborate import Request, elaborate, hyperparameters
from .compiler.files import new_directory, require_empty
from .dsl.diagnostics import ArchError, Diagnostics
from .dsl.errors import NoExportBlock, NotExportable, UnsaidModel
from .dsl.syntax import CheckpointDef

if TYPE_CHECKING:
    from .api import Model
    from .compiler.checkpoint import Checkpoint

FORMAT = "huggingface"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A block and a config to export by; `like` is the checkpoint read, where it is of the block."""

    block: CheckpointDef
    config: dict[str, Any]
    unsaid: tuple[str, ...] = ()
    like: Checkpoint | None = None


def export(model: Model, directory: Path, shard_bytes: int = SHARD_BYTES) -> tuple[str, ...]:
    """Write config.json and safetensors to `directory`, which appears complete or not at all.

    Raises `NoWeights`, `NoExportBlock`, `UnsaidModel` or `Unwritable`. Returns the files' names.
    """
    weights = model.given_weights()
    require_empty(directory)
    chosen = _chosen(model)
    with new_directory(directory, only=True) as made:
        return save(
            model.program, weights, chosen.block, made, chosen.config, chosen.like, shard_bytes
        )


def _chosen(model: Model) -> Candidate:
    """The first candidate that says the model."""
    refused: list[Candidate] = []
    for candidate in _candidates(model):
        if _says(candidate, model):
            return candidate
        refused.append(candidate)
    nearest = min(refused, key=lambda candidate: len(candidate.unsaid))
    raise UnsaidModel(model=model.definition.name, names=nearest.unsaid, span=nearest.block.span)


def _candidates(model: Model) -> Iterator[Candidate]:
    if model.checkpoint is not None and model.block is not None and model.block.format == FORMAT:
        yield Candidate(model.block, model.checkpoint.config, (), model.checkpoint)
    blocks = [
        item
        for item in model.module.file.items
        if isinstance(item, CheckpointDef) and item.model == model.definition.name
    ]
    written = [block for block in blocks if block.format == FORMAT]
    if blocks and not written:
        raise NotExportable(format=blocks[0].format)
    if not written:
        raise NoExportBlock(model=model.definition.name, span=model.definition.span)
    values = values_of(hyperparameters(model.definition), model.overrides)
    for block in written:
        names = written_names(block, model.program)
        for class_name in block.class_names:
            derived = config_of(block, values, class_name, names)
            yield Candidate(block, derived.config, derived.unsaid)


def _says(candidate: Candidate, model: Model) -> bool:
    """Whether the block's lines, given the config, make the model's own program."""
    names = written_names(candidate.block, model.program)
    if candidate.like is not None and candidate.like.tensor_names is not None:
        names = tuple(candidate.like.tensor_names)
    try:
        values = evaluate_config(
            candidate.block, candidate.config, hyperparameters(model.definition), names
        )
        again = elaborate(model.module, model.definition, Request(values, None, model.loss))
    except (ArchError, Diagnostics):
        return False
    # constraints are how sizes were written (`divide(d, heads)`), and hold for the sizes of both
    return replace(again, constraints=()) == replace(model.program, constraints=())
