"""The config side of a checkpoint block: fields in, hyperparameters out, nothing unread.

A line's value is folded over the config (`fold.py`); `tensors["name"]` says whether the file has that
tensor, for what only the presence of a tensor tells, and is none where there is no file yet. Every
leaf field that is not null must be mentioned by some line, be listed by an `ignore config`, or stand
in the one table of fields which cannot change the forward pass (`STANDARD_IGNORES`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ...dsl import syntax as syn
from ...dsl.errors import ConfigRefused, UnreadConfig, UnusedConfigLine
from .fold import Fold, Value, missing, show

Path = tuple[str, ...]

STANDARD_IGNORES: dict[str, tuple[str, ...]] = {
    "names the class; the checkpoint block is chosen by it": ("architectures", "model_type"),
    "which program wrote the file": (
        "_name_or_path",
        "name_or_path",
        "transformers_version",
        "_commit_hash",
        "auto_map",
        "transformers.js_config",
        "is_llama_config",
    ),
    "how the file stores numbers; every tensor says its own dtype": ("torch_dtype", "dtype"),
    "training only": (
        "*dropout*",
        "*_pdrop",
        "initializer_*",
        "init_std",
        "gradient_checkpointing",
        "*layerdrop",
        "problem_type",
        "router_aux_loss_coef",
        "z_loss_coefficient",
    ),
    "what a call returns besides the output": (
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "output_scores",
        "return_dict",
        "return_dict_in_generate",
        "use_return_dict",
        "torchscript",
    ),
    "how the same values are computed": (
        "use_cache",
        "pretraining_tp",
        "chunk_size_feed_forward",
        "use_bfloat16",
        "_attn_implementation*",
        "attn_implementation",
        "cache_implementation",
    ),
    "token ids with a meaning only to the tokenizer and the sampler": (
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "cls_token_id",
        "unk_token_id",
        "mask_token_id",
        "decoder_start_token_id",
        "forced_*_token_id",
    ),
    "sampling": (
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "do_sample",
        "num_beams",
        "num_beam_groups",
        "num_return_sequences",
        "diversity_penalty",
        "early_stopping",
        "length_penalty",
        "repetition_penalty",
        "encoder_no_repeat_ngram_size",
        "no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "remove_invalid_values",
        "bad_words_ids",
        "suppress_tokens",
        "begin_suppress_tokens",
        "max_length",
        "min_length",
        "max_new_tokens",
    ),
    "labels of a task's head, not its weights": (
        "id2label",
        "label2id",
        "num_labels",
        "finetuning_task",
        "task_specific_params",
        "tokenizer_class",
    ),
    "heads of other classes of the family": ("summary_*", "tf_legacy_loss", "is_encoder_decoder"),
}

# Switches that change the forward pass when on, and are written even when off.
OFF: dict[str, Any] = {
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
}


class Present(dict[str, Any]):
    """`tensors` as lines see it: every name is there, as whether the file has it."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(dict.fromkeys(names, True))

    def get(self, name: str, default: Any = None) -> Any:
        return name in self


@dataclass(slots=True)
class _Reading:
    """The lines read so far: their values, and which config paths they mention."""

    config: Mapping[str, Any]
    tensors: Collection[str] | None = None
    values: dict[str, Value] = field(default_factory=dict)
    denotes: dict[str, frozenset[Path]] = field(default_factory=dict)
    mentioned: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.values["config"] = dict(self.config)
        self.values["tensors"] = None if self.tensors is None else Present(self.tensors)
        self.denotes["config"] = frozenset({()})

    def mention(self, expr: syn.Expr) -> frozenset[Path]:
        """Note every config path in `expr`; the result is what `expr` itself may denote."""
        for node in syn.walk(expr):
            if isinstance(node, syn.Expr):
                self.mentioned |= denoted(node, self.denotes)
        return denoted(expr, self.denotes)


def evaluate_config(
    checkpoint: syn.CheckpointDef,
    config: Mapping[str, Any],
    hypers: Iterable[str],
    tensors: Collection[str] | None = None,
) -> dict[str, Value]:
    """Values of the model's hyperparameters, by the config lines of `checkpoint`.

    `hypers` are the names the model has; a line that sets another name is a local. `tensors` are
    the names of the file's tensors, none without a file. A value is a number, string, boolean, none
    or list, or a syntax expression to evaluate in the file's scope.
    Raises an `ArchError` for a field that is missing, refused, or read by no line.
    """
    reading, known = _Reading(config, tensors), tuple(hypers)
    lines = tuple(config_lines(checkpoint.lines))
    for line in lines:
        if isinstance(line, syn.RequireLine):
            _require(line, reading)
        else:
            _assign(line, reading, known)
    _check_locals(lines, checkpoint, known)
    _check_complete(checkpoint, reading)
    return {name: value for name, value in reading.values.items() if name in known}


def denoted(expr: syn.Expr, names: Mapping[str, frozenset[Path]]) -> frozenset[Path]:
    """The config paths whose value `expr` may be."""
    if isinstance(expr, syn.Name):
        return names.get(expr.name, frozenset())
    if isinstance(expr, syn.Attribute):
        return frozenset((*path, expr.name) for path in denoted(expr.value, names))
    if isinstance(expr, syn.Index) and isinstance(expr.items[0], syn.AxisRef):
        key = expr.items[0].value
        if isinstance(key, syn.String):
            return frozenset((*path, key.value) for path in denoted(expr.value, names))
        return denoted(expr.value, names)
    if isinstance(expr, syn.Binary) and expr.op == "??":
        return denoted(expr.left, names) | denoted(expr.right, names)
    if isinstance(expr, syn.Conditional):
        return denoted(expr.then, names) | denoted(expr.otherwise, names)
    return frozenset()


def config_lines(
    lines: Iterable[syn.CheckpointLine],
) -> Iterator[syn.ConfigLine | syn.RequireLine]:
    return (line for line in lines if isinstance(line, syn.ConfigLine | syn.RequireLine))


def _assign(line: syn.ConfigLine, reading: _Reading, hypers: tuple[str, ...]) -> None:
    paths = reading.mention(line.value)
    value = Fold(reading.values)(line.value)
    if value is None and line.name in hypers and isinstance(line.value, syn.Attribute):
        raise missing(line.value)
    reading.values[line.name] = value
    reading.denotes[line.name] = paths


def _require(line: syn.RequireLine, reading: _Reading) -> None:
    reading.mention(line.condition)
    if Fold(reading.values)(line.condition) is True:
        return
    nodes = (node for node in syn.walk(line.condition) if isinstance(node, syn.Expr))
    paths = sorted({path for node in nodes for path in denoted(node, reading.denotes)})
    found = {".".join(path): _lookup(reading.config, path) for path in paths}
    values = [f"`{n}` = {show(v)}" for n, v in found.items() if not isinstance(v, dict | None)]
    said = ", ".join(values) or f"nothing of {', '.join(f'`{n}`' for n in found)}"
    raise ConfigRefused(span=line.span, condition=line.condition.span.text, values=said)


def _lookup(config: Any, path: Path) -> Any:
    for name in path:
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _check_locals(
    lines: tuple[syn.ConfigLine | syn.RequireLine, ...],
    checkpoint: syn.CheckpointDef,
    hypers: tuple[str, ...],
) -> None:
    for position, line in enumerate(lines):
        if isinstance(line, syn.RequireLine) or line.name in hypers:
            continue
        later = (node for other in lines[position + 1 :] for node in syn.walk(other))
        if not any(isinstance(n, syn.Name) and n.name == line.name for n in later):
            model = checkpoint.model
            raise UnusedConfigLine(span=line.span, name=line.name, model=model, known=hypers)


def _check_complete(checkpoint: syn.CheckpointDef, reading: _Reading) -> None:
    ignored = [p for names in STANDARD_IGNORES.values() for p in names]
    for line in checkpoint.lines:
        if isinstance(line, syn.IgnoreLine) and line.config:
            ignored += line.patterns
    unread = tuple(
        f"{'.'.join(path)} = {show(value)}"
        for path, value in _leaves(reading.config)
        if not (value is None or path in reading.mentioned or _harmless(path, value, ignored))
    )
    if unread:
        raise UnreadConfig(fields=unread)


def _leaves(config: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _harmless(path: Path, value: Any, patterns: list[str]) -> bool:
    """Switched off, or matched by a pattern; a pattern for a group of fields covers all of them."""
    if path[0] in OFF and value == OFF[path[0]]:
        return True
    heads = [".".join(path[: n + 1]) for n in range(len(path))]
    return any(fnmatchcase(head, pattern) for head in heads for pattern in patterns)
