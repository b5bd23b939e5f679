"""Checkpoint files and the blocks that read them."""

from __future__ import annotations

from ..diagnostics import ArchError, did_you_mean
from ..span import Span
from .wording import listed


class NotACheckpoint(ArchError, id="not-a-checkpoint"):
    path: str
    reason: str
    title = "`{path}` is not a checkpoint: {reason}"
    help = "give a local directory with config.json and model.safetensors, or a .gguf file"


class PickledCheckpoint(ArchError, id="pickled-checkpoint"):
    path: str
    title = "`{path}` holds pickled weights, which archc never opens"
    help = (
        "a pickle runs code when read; convert it to safetensors where you trust it, then load that"
    )


class DamagedCheckpoint(ArchError, id="damaged-checkpoint"):
    path: str
    reason: str
    title = "`{path}` is damaged: {reason}"
    help = "it is truncated or was changed after it was written; fetch it again"


class MissingShard(ArchError, id="missing-shard"):
    path: str
    shard: str
    title = "`{path}` names the file `{shard}`, which is not there"
    help = "a sharded checkpoint needs all its files in one directory"


class UnsafeShard(ArchError, id="unsafe-shard"):
    path: str
    shard: str
    title = "`{path}` names the file `{shard}`, outside its own directory"
    help = "shards are plain file names next to the index"


class TensorDtype(ArchError, id="tensor-dtype"):
    tensor: str
    dtype: str
    title = "tensor `{tensor}` has dtype {dtype}, which cannot be a weight here"
    help = "float64, float32, float16, bfloat16 and GGUF's block formats can"


class NoCheckpointBlock(ArchError, id="no-checkpoint-block"):
    file: str
    format: str
    class_name: str
    known: tuple[str, ...]
    title = '{file} has no `checkpoint {format} "{class_name}"`'

    def help_text(self) -> str:
        if not self.known:
            return f'write one: `checkpoint {self.format} "{self.class_name}" for MODEL {{ .. }}`'
        return f"it reads checkpoints of {listed(self.known)}"


class UnnamedClass(ArchError, id="unnamed-class"):
    path: str
    file: str = ""
    known: tuple[str, ...] = ()
    title = "the config.json of `{path}` names no class in `architectures`"

    def help_text(self) -> str:
        if self.known:
            return f"{self.file} reads checkpoints of {listed(self.known)}: name one there"
        return f"say which it is: `archc import {self.path} --class NAME`"


class UnreadConfig(ArchError, id="unread-config"):
    fields: tuple[str, ...]
    title = "no line reads these config fields"

    @property
    def message(self) -> str:
        return f"no line of this checkpoint reads config field {listed(self.fields)}"

    def help_text(self) -> str:
        name = self.fields[0].split(" = ")[0]
        return (
            "a field nobody reads may change what the model computes: read it, or demand a value\n"
            f'with `require`, or, if it cannot matter, say why: `ignore config "{name}": "reason"`'
        )


class MissingConfig(ArchError, id="missing-config"):
    field: str
    title = "the config has no `{field}`"
    labels = {"span": "absent, and no default is given"}
    help = "if it may be absent, say what that means: `config.{field} ?? default`"


class ConfigRefused(ArchError, id="config-refused"):
    condition: str
    values: str
    title = "this checkpoint needs `{condition}`, and its config says {values}"
    labels = {"span": "required here"}
    help = "the model in this file does not compute what the config asks for"


class ConfigChoice(ArchError, id="config-choice"):
    value: str
    known: tuple[str, ...]
    title = "{value} is none of the choices of this table"
    labels = {"span": "no entry for {value}"}

    def help_text(self) -> str:
        return did_you_mean(self.value.strip('"'), self.known) or f"it has {listed(self.known)}"


class ConfigValue(ArchError, id="config-value"):
    reason: str
    title = "this cannot be computed from the config: {reason}"
    labels = {"span": "{reason}"}


class UnusedConfigLine(ArchError, id="unused-config-line"):
    name: str
    model: str
    known: tuple[str, ...]
    title = "`{name}` is no hyperparameter of `{model}`, and no later line uses it"
    labels = {"span": "sets nothing"}

    def help_text(self) -> str:
        return did_you_mean(self.name, self.known)


class CheckpointAxis(ArchError, id="checkpoint-axis"):
    axis: str
    reason: str
    known: tuple[str, ...] = ()
    title = "axis `{axis}`: {reason}"
    labels = {"span": "{reason}"}

    def help_text(self) -> str:
        return f"the axes here are {listed(self.known)}" if self.known else ""


class NotAPermutation(ArchError, id="not-a-permutation"):
    construct: str
    title = "{construct} is not allowed in a tensor line"
    labels = {"span": "not a rearrangement of elements"}
    help = (
        "a tensor line only moves elements: relabel `w[(a, b) -> c]`, slice, `concat`, `stack`;\n"
        "arithmetic on weights belongs in the model"
    )


class UnknownWeight(ArchError, id="unknown-weight"):
    weight: str
    tensor: str
    known: tuple[str, ...] = ()
    title = "`{weight}` is no weight of this model, but the file has `{tensor}`"
    labels = {"span": "no such weight"}

    def help_text(self) -> str:
        return did_you_mean(self.weight, self.known)


class PartialLine(ArchError, id="partial-tensor-line"):
    tensor: str
    present: tuple[str, ...]
    absent: tuple[str, ...]
    title = "only some weights of `{tensor}` exist in this model"
    labels = {"span": "all of its weights must exist, or none"}

    def help_text(self) -> str:
        return f"present: {listed(self.present)}\nabsent: {listed(self.absent)}"


class MissingTensor(ArchError, id="missing-tensor"):
    tensors: tuple[str, ...]
    known: tuple[str, ...]
    title = "the checkpoint lacks a tensor"
    labels = {"span": "needed here"}

    @property
    def message(self) -> str:
        return f"the checkpoint has no tensor {listed(self.tensors)}"

    def help_text(self) -> str:
        return did_you_mean(self.tensors[0], self.known)


class UnusedTensor(ArchError, id="unused-tensor"):
    tensors: tuple[str, ...]
    title = "the checkpoint has tensors that no line reads"

    @property
    def message(self) -> str:
        return f"no line reads tensor {listed(self.tensors)} of the checkpoint"

    def help_text(self) -> str:
        ignore = f'ignore "{self.tensors[0]}": "reason"'
        return f"name it in a line, or say why it is not needed: `{ignore}`"


class UnreadWeight(ArchError, id="unread-weight"):
    weights: tuple[str, ...]
    title = "weights without a tensor line"
    labels = {"span": "declared here"}
    help = (
        "every element of every weight is read exactly once; a line says from where:"
        ' `"name in the file" = {weights[0]}`'
    )

    @property
    def message(self) -> str:
        return f"no line of the checkpoint gives all of weight {listed(self.weights)}"


class WeightReadTwice(ArchError, id="weight-read-twice"):
    weight: str
    tensor: str
    other: str
    first: Span | None = None
    title = "`{weight}` is read from `{tensor}` and from `{other}`"
    labels = {"span": "read here", "first": "and here"}
    help = "if both names hold the same data, mark one line `alias`"


class TensorReadTwice(ArchError, id="tensor-read-twice"):
    tensor: str
    first: Span | None = None
    title = "tensor `{tensor}` is named by two lines"
    labels = {"span": "named here", "first": "and here"}
    help = "one line says what a tensor holds; use `concat` or `stack` for several weights"


class TensorShape(ArchError, id="tensor-shape"):
    tensor: str
    found: str
    expected: str
    layout: str
    more: str = ""
    title = "tensor `{tensor}`{more} is {found} in the file, but {expected} by this line"
    labels = {"span": "{layout} is {expected}"}

    def help_text(self) -> str:
        swapped = self.found.strip("[]").split(", ")[::-1] == self.expected.strip("[]").split(", ")
        return "the file stores it transposed: write the left axes in its order" if swapped else ""


class AliasDiffers(ArchError, id="alias-differs"):
    tensor: str
    weights: tuple[str, ...]
    title = "`{tensor}` is an alias here, but its data differs"
    labels = {"span": "not equal to what it names"}

    def help_text(self) -> str:
        return f"the checkpoint stores {listed(self.weights)} apart: the model must not share them"


class NotExportable(ArchError, id="not-exportable"):
    format: str
    title = "a checkpoint of format `{format}` can be read but not written"
    help = "write a `checkpoint huggingface` block for the model and export by that"


class NoExportBlock(ArchError, id="no-export-block"):
    model: str
    title = "`{model}` has no `checkpoint huggingface` block to export by"
    labels = {"span": "no block of this file is for it"}
    help = "its lines say which tensors there are, and what config.json says"


class UnsaidModel(ArchError, id="unsaid-model"):
    model: str
    names: tuple[str, ...]
    title = "no config.json says this model, by the lines of its checkpoint block"
    labels = {"span": "its lines read other sizes or choices than the model has"}

    def help_text(self) -> str:
        if not self.names:
            return "a hyperparameter without a config line has another value than its default"
        return (
            f"no field gives {listed(self.names)}: what can be turned round is `config.field`,\n"
            "`config.field ?? default` and a table, with the value that the model has"
        )


class NoTokenizer(ArchError, id="no-tokenizer"):
    path: str
    reason: str
    title = "no tokenizer in `{path}`: {reason}"
    help = (
        "a directory needs tokenizer.json; a GGUF needs byte-level BPE tokens and merges,"
        " else take the directory it was made from"
    )


class NoExample(ArchError, id="no-example"):
    format: str
    class_name: str
    title = "no bundled example reads checkpoints of `{class_name}`"
    help = (
        "start from the example of a similar model, and give it a block"
        ' `checkpoint {format} "{class_name}" for MODEL {{ .. }}`'
    )
