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
from ...dsl.diagnostics import ArchError
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
        "output_past",
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
        "_num_labels",
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


ConfigStatement = syn.ConfigLine | syn.RequireLine


@dataclass(frozen=True, slots=True)
class Default:
    """A default that was taken: no field of `paths` is there, and `line` got `value` instead."""

    paths: tuple[Path, ...]
    line: ConfigStatement
    value: Value


@dataclass(slots=True)
class ConfigReading:
    """The lines read so far: their values, the config paths they mention, and what went wrong."""

    config: Mapping[str, Any]
    hypers: tuple[str, ...]
    tensors: Collection[str] | None = None
    known: dict[str, Value] = field(default_factory=dict)
    denotes: dict[str, frozenset[Path]] = field(default_factory=dict)
    mentions: dict[Path, list[ConfigStatement]] = field(default_factory=dict)
    defaults: list[Default] = field(default_factory=list)
    failed: dict[str, ArchError] = field(default_factory=dict)
    errors: list[tuple[ConfigStatement | None, ArchError]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known["config"] = dict(self.config)
        self.known["tensors"] = None if self.tensors is None else Present(self.tensors)
        self.denotes["config"] = frozenset({()})

    @property
    def values(self) -> dict[str, Value]:
        """The hyperparameters that lines set."""
        return {name: value for name, value in self.known.items() if name in self.hypers}

    def read(self, line: ConfigStatement) -> None:
        """Evaluate a line. One that fails is noted, and so are the lines that would need it."""
        expr = line.condition if isinstance(line, syn.RequireLine) else line.value
        paths = self.mention(expr, line)
        name = line.name if isinstance(line, syn.ConfigLine) else ""
        needed = {node.name for node in syn.walk(expr) if isinstance(node, syn.Name)}
        cause = next((self.failed[n] for n in needed if n in self.failed), None)
        if cause is not None:
            self.failed[name] = cause
            return
        try:
            self.evaluate(line, expr)
        except ArchError as error:
            self.failed[name] = error
            self.errors.append((line, error))
        self.denotes[name] = paths

    def evaluate(self, line: ConfigStatement, expr: syn.Expr) -> None:
        fold = Fold(self.known)
        value = fold(expr)
        self.defaults += self.taken(line, fold.taken)
        if isinstance(line, syn.RequireLine):
            if value is not True:
                raise _refused(line, self)
            return
        if value is None and line.name in self.hypers and isinstance(expr, syn.Attribute):
            raise missing(expr)
        self.known[line.name] = value

    def mention(self, expr: syn.Expr, line: ConfigStatement) -> frozenset[Path]:
        """Note every config path in `expr`; the result is what `expr` itself may denote."""
        for node in syn.walk(expr):
            if isinstance(node, syn.Expr):
                for path in denoted(node, self.denotes):
                    lines = self.mentions.setdefault(path, [])
                    if line not in lines:
                        lines.append(line)
        return denoted(expr, self.denotes)

    def taken(
        self, line: ConfigStatement, chains: list[tuple[syn.Binary, Value]]
    ) -> Iterator[Default]:
        """The whole chains `a ?? b ?? c` among those taken, where they stand for config fields."""
        inner = {id(chain.left) for chain, _ in chains}
        for chain, value in chains:
            sides = () if id(chain) in inner else _alternatives(chain)
            paths = tuple(p for side in sides for p in sorted(denoted(side, self.denotes)))
            if paths and all(_lookup(self.config, path) is None for path in paths):
                yield Default(paths, line, value)


def read_config(
    checkpoint: syn.CheckpointDef,
    config: Mapping[str, Any],
    hypers: Iterable[str],
    tensors: Collection[str] | None = None,
) -> ConfigReading:
    """What the config lines of `checkpoint` make of `config`, mistakes included."""
    config = _numbers(config)
    reading = ConfigReading(config, tuple(hypers), tensors)
    lines = tuple(config_lines(checkpoint.lines))
    for line in lines:
        reading.read(line)
    reading.errors += _idle_locals(lines, checkpoint, reading.hypers)
    unread = tuple(
        f"{'.'.join(path)} = {show(value)}"
        for path, value in leaves(config)
        if not (
            value is None
            or path in reading.mentions
            or why_ignored(config, path, value, checkpoint)
        )
    )
    if unread:
        reading.errors.append((None, UnreadConfig(fields=unread)))
    return reading


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
    reading = read_config(checkpoint, config, hypers, tensors)
    for _, error in reading.errors:
        raise error
    return reading.values


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
) -> Iterator[ConfigStatement]:
    return (line for line in lines if isinstance(line, syn.ConfigLine | syn.RequireLine))


def _alternatives(expr: syn.Expr) -> Iterator[syn.Expr]:
    if isinstance(expr, syn.Binary) and expr.op == "??":
        yield from _alternatives(expr.left)
        yield from _alternatives(expr.right)
    else:
        yield expr


def _refused(line: syn.RequireLine, reading: ConfigReading) -> ConfigRefused:
    nodes = (node for node in syn.walk(line.condition) if isinstance(node, syn.Expr))
    paths = sorted({path for node in nodes for path in denoted(node, reading.denotes)})
    found = {".".join(path): _lookup(reading.config, path) for path in paths}
    values = [f"`{n}` = {show(v)}" for n, v in found.items() if not isinstance(v, dict | None)]
    said = ", ".join(values) or f"nothing of {', '.join(f'`{n}`' for n in found)}"
    return ConfigRefused(span=line.span, condition=line.condition.span.text, values=said)


def _numbers(value: Any) -> Any:
    """A config with its infinities, which `transformers` writes as `{"__float__": "Infinity"}`."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity"):
        return float(value["__float__"])
    return {name: _numbers(item) for name, item in value.items()}


def _lookup(config: Any, path: Path) -> Any:
    for name in path:
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _idle_locals(
    lines: tuple[ConfigStatement, ...], checkpoint: syn.CheckpointDef, hypers: tuple[str, ...]
) -> Iterator[tuple[ConfigStatement, ArchError]]:
    for position, line in enumerate(lines):
        if isinstance(line, syn.RequireLine) or line.name in hypers:
            continue
        later = (node for other in lines[position + 1 :] for node in syn.walk(other))
        if not any(isinstance(n, syn.Name) and n.name == line.name for n in later):
            model = checkpoint.model
            yield line, UnusedConfigLine(span=line.span, name=line.name, model=model, known=hypers)


def leaves(config: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every field that is no group, with its value."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def why_ignored(
    config: Mapping[str, Any], path: Path, value: Any, checkpoint: syn.CheckpointDef
) -> str | None:
    """The reason why a field need not be read; a pattern for a group covers all of its fields.

    A group that says its `model_type` is the config of a part of the model: what can be ignored in
    any config can be ignored there.
    """
    inner = _within_part(config, path)
    if inner[0] in OFF and value == OFF[inner[0]]:
        return "switched off"
    for reason, patterns in _listed(checkpoint):
        if _matches(path, patterns):
            return reason
    return next((why for why, names in STANDARD_IGNORES.items() if _matches(inner, names)), None)


def _within_part(config: Mapping[str, Any], path: Path) -> Path:
    """`path` as seen from the innermost group that is the config of a part of the model."""
    parts = [n for n in range(1, len(path)) if _lookup(config, (*path[:n], "model_type"))]
    return path[max(parts, default=0) :]


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    heads = [".".join(path[: n + 1]) for n in range(len(path))]
    return any(fnmatchcase(head, pattern) for head in heads for pattern in patterns)


def _listed(checkpoint: syn.CheckpointDef) -> Iterator[tuple[str, tuple[str, ...]]]:
    for line in checkpoint.lines:
        if isinstance(line, syn.IgnoreLine) and line.config:
            yield line.reason or "listed by the checkpoint block", line.patterns
