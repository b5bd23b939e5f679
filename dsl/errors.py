"""The catalogue: every mistake a person can make, as facts and words. See `diagnostics.py`."""

from __future__ import annotations

import unicodedata

from .diagnostics import ArchError, did_you_mean
from .span import Span


class UnknownName(ArchError, id="unknown-name"):
    name: str
    known: tuple[str, ...] = ()
    in_std: bool = False
    title = "`{name}` is not defined here"
    labels = {"span": "no such name"}

    def help_text(self) -> str:
        if self.in_std:
            return "the standard library has it: write `use std` at the top of the file"
        return did_you_mean(self.name, self.known)


class SyntaxMistake(ArchError, id="syntax"):
    found: str
    expected: str
    title = "unexpected {found}"
    labels = {"span": "expected {expected}"}


class SizeMismatch(ArchError, id="size-mismatch"):
    axis: str
    got: str
    expected: str
    bound_at: Span | None = None
    title = "axis `{axis}` is {got} here, but {expected} elsewhere"
    labels = {"span": "`{axis}` is {got}", "bound_at": "`{axis}` is {expected} here"}
    help = (
        "operands align by axis name: rename one with `x[{axis} -> other]`, or make the sizes agree"
    )


# ------------------------------------------------------------------------- axes and sizes


class TimelineMismatch(ArchError, id="timeline-mismatch"):
    axis: str
    first: str
    second: str
    title = (
        "axis `{axis}` follows the time of `{first}` in one operand and of `{second}` in another"
    )
    labels = {"span": "these meet here"}
    help = "rename one of them: `x[{axis} -> other]`"


class UnrelatedTimelines(ArchError, id="unrelated-timelines"):
    first: str
    second: str
    title = "positions along `{first}` and `{second}` are not comparable"
    labels = {"span": "compares two unrelated timelines"}
    help = "a mask such as `causal` needs queries and keys of one sequence; use `full` across sequences"


# ------------------------------------------------------------------------- checkpoints


def _listed(names: tuple[str, ...], limit: int = 5) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


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
        return f"it reads checkpoints of {_listed(self.known)}"


class UnreadConfig(ArchError, id="unread-config"):
    fields: tuple[str, ...]
    title = "no line reads these config fields"

    @property
    def message(self) -> str:
        return f"no line of this checkpoint reads config field {_listed(self.fields)}"

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
        return did_you_mean(self.value.strip('"'), self.known) or f"it has {_listed(self.known)}"


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
        return f"the axes here are {_listed(self.known)}" if self.known else ""


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
        return f"present: {_listed(self.present)}\nabsent: {_listed(self.absent)}"


class MissingTensor(ArchError, id="missing-tensor"):
    tensors: tuple[str, ...]
    known: tuple[str, ...]
    title = "the checkpoint lacks a tensor"
    labels = {"span": "needed here"}

    @property
    def message(self) -> str:
        return f"the checkpoint has no tensor {_listed(self.tensors)}"

    def help_text(self) -> str:
        return did_you_mean(self.tensors[0], self.known)


class UnusedTensor(ArchError, id="unused-tensor"):
    tensors: tuple[str, ...]
    title = "the checkpoint has tensors that no line reads"

    @property
    def message(self) -> str:
        return f"no line reads tensor {_listed(self.tensors)} of the checkpoint"

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
        return f"no line of the checkpoint gives all of weight {_listed(self.weights)}"


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
    title = "tensor `{tensor}` is {found} in the file, but {expected} by this line"
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
        return f"the checkpoint stores {_listed(self.weights)} apart: the model must not share them"


class NotExportable(ArchError, id="not-exportable"):
    format: str
    title = "a checkpoint of format `{format}` can be read but not written"
    help = "write a `checkpoint huggingface` block for the model and export by that"


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


# Inputs of a run


class IndexOutOfRange(ArchError, id="index-range"):
    axis: str
    index: int
    size: int
    title = "index {index} is outside axis `{axis}` of size {size}"
    labels = {"span": "this reads outside"}
    help = (
        "give smaller inputs or a larger axis; or, to read the nearest entry, clamp the index:"
        " `min(max(i, 0), size({axis}) - 1)`"
    )


class MissingInput(ArchError, id="missing-input"):
    name: str
    type: str
    title = "input `{name}` is not given"
    labels = {"span": "declared here as {type}"}


class UnknownInput(ArchError, id="unknown-input"):
    name: str
    known: tuple[str, ...]
    title = "the model has no input `{name}`"

    def help_text(self) -> str:
        return did_you_mean(self.name, self.known) or f"its inputs are {', '.join(self.known)}"


class InputDtype(ArchError, id="input-dtype"):
    name: str
    got: str
    expected: str
    title = "input `{name}` has dtype {got}; it takes {expected}"
    labels = {"span": "declared here"}


class InputShape(ArchError, id="input-shape"):
    name: str
    got: str
    expected: str
    title = "input `{name}` has shape ({got}), but should have {expected}"
    labels = {"span": "declared here"}


class InputRange(ArchError, id="input-range"):
    name: str
    value: int
    last: int
    extra: str = ""
    title = "input `{name}` holds {value}; its values are 0 to {last}{extra}"
    labels = {"span": "the bound is declared here"}


class MissingWeight(ArchError, id="missing-weight"):
    path: str
    known: tuple[str, ...] = ()
    title = "there is no weight for parameter `{path}`"
    labels = {"span": "declared here"}

    def help_text(self) -> str:
        return did_you_mean(self.path, self.known)


class WeightShape(ArchError, id="weight-shape"):
    path: str
    got: str
    expected: str
    title = "weight `{path}` has shape ({got}), but the model declares ({expected})"
    labels = {"span": "declared here"}


# --------------------------------------------------------------------------- syntax


class NestedTooDeep(ArchError, id="nested-too-deep"):
    limit: int
    title = "this is nested more than {limit} levels deep"
    labels = {"span": "level {limit} is passed here"}
    help = "give inner parts names of their own"


class StrayCharacter(ArchError, id="stray-character"):
    character: str
    title = "`{character}` has no meaning here"
    labels = {"span": "not part of the language"}

    def help_text(self) -> str:
        name = unicodedata.name(self.character, "")
        plain = self.character.isascii() and self.character.isprintable()
        return "" if plain else f"this is U+{ord(self.character):04X} {name}".rstrip()


class SingleQuotes(ArchError, id="single-quotes"):
    content: str
    title = "strings stand in double quotes"
    labels = {"span": 'write "{content}"'}


class ForeignOperator(ArchError, id="foreign-operator"):
    written: str
    instead: str
    title = "there is no operator `{written}`"
    labels = {"span": "write {instead}"}


class UnclosedString(ArchError, id="unclosed-string"):
    quotes: str
    title = "this string is never closed"
    labels = {"span": "no closing `{quotes}` follows"}


class UnclosedBracket(ArchError, id="unclosed-bracket"):
    bracket: str
    closing: str
    found: str = ""
    found_at: Span | None = None
    title = "`{bracket}` is never closed"
    labels = {"span": "no `{closing}` follows", "found_at": "`{found}` comes first"}


class UnopenedBracket(ArchError, id="unopened-bracket"):
    bracket: str
    title = "`{bracket}` closes nothing"
    labels = {"span": "no bracket is open that this could close"}


class NumberTooLarge(ArchError, id="number-too-large"):
    title = "this number is too large"
    labels = {"span": "integers end at 2 ** 63 - 1, others near 1.8e308"}
    help = "an infinite mask value is written `-inf`"


class ChainedComparison(ArchError, id="chained-comparison"):
    left: str
    right: str
    first: Span | None = None
    title = "comparisons do not chain"
    labels = {"span": "a second comparison", "first": "the first one"}
    help = "write `{left} and {right}`"


class WrongParameter(ArchError, id="wrong-parameter"):
    what: str
    where: str
    advice: str
    title = "{what} cannot stand {where}"
    labels = {"span": "{what}"}
    help = "{advice}"


# --------------------------------------------------------------------------- backends


class NoLowering(ArchError, id="no-lowering"):
    op: str
    backend: str
    title = "the {backend} backend cannot express `{op}`"
    labels = {"span": "this needs `{op}`"}
    help = "run it on the numpy backend, which has every op"


class MissingPackage(ArchError, id="missing-package"):
    package: str
    purpose: str
    extra: str
    title = "{package} is not installed; {purpose} needs it"
    help = 'pip install "archc[{extra}]"'


class SourceUnreadable(ArchError, id="source-unreadable"):
    path: str
    reason: str
    title = "cannot read {path}: {reason}"


class PipelineAsOperand(ArchError, id="pipeline-as-operand"):
    operator: str
    whole: str
    part: str
    operator_at: Span | None = None
    title = "a pipeline behind `{operator}` needs parentheses"
    labels = {"span": "what flows in here?", "operator_at": "all of this, or what follows it"}
    help = "write `{part}`\nor    `{whole}`"


class OperatorAfterPipeline(ArchError, id="operator-after-pipeline"):
    operator: str
    reading: str
    title = "a pipeline before `{operator}` needs parentheses"
    labels = {"span": "the pipeline ends here"}
    help = "write `{reading}`"


class BrokenLine(ArchError, id="broken-line"):
    where: str
    text: str
    title = "a line cannot {where} with `{text}`"
    labels = {"span": "the statement {where}s here"}
    help = (
        "inside `(` or `[` an expression may take several lines; "
        "a line that starts with `|>` continues"
    )


class AssignmentInCondition(ArchError, id="assignment-in-condition"):
    title = "`=` sets a value; a condition compares with `==`"
    labels = {"span": "write `==`"}


class ComparisonAsAssignment(ArchError, id="comparison-as-assignment"):
    title = "`==` compares; a statement sets a value with `=`"
    labels = {"span": "write `=`"}


class ForeignWord(ArchError, id="foreign-word"):
    word: str
    instead: str
    title = "`{word}` is not a word of this language"
    labels = {"span": "write {instead}"}


class MisplacedWord(ArchError, id="misplaced-word"):
    word: str
    place: str
    title = "`{word}` cannot stand here"
    labels = {"span": "`{word}` {place}"}


class ReservedWord(ArchError, id="reserved-word"):
    word: str
    title = "`{word}` is a word of the language, not a name"
    labels = {"span": "choose another name"}


class MisplacedDocstring(ArchError, id="misplaced-docstring"):
    title = "a docstring comes first in a file or in the body of a model, block or fn"
    labels = {"span": "something stands before this one"}
    help = "anywhere else, write a comment: `# ..`"


class ResultBrackets(ArchError, id="result-brackets"):
    axes: str
    title = "result axes stand in brackets"
    labels = {"span": "write `[..., {axes}]`"}
    help = "one list for each result: `-> [b, s, d]`, `-> ([b, s], [b])`"


class MisplacedArrow(ArchError, id="misplaced-arrow"):
    title = "`->` cannot stand here"
    labels = {"span": "not a lambda, a relabelling or a result"}
    help = (
        "a lambda has its inputs in parentheses: `(x) -> ..`\n"
        "a relabelling has an axis, or axes in parentheses, on both sides: `x[(g, r) -> h]`"
    )


class MissingBody(ArchError, id="missing-body"):
    opener: str
    title = "the body of this `{opener}` is missing"
    labels = {"span": "expected `{{`"}
    help = "a body stands in braces: `{opener} .. {{ .. }}`"


class ExpressionStatement(ArchError, id="expression-statement"):
    text: str
    title = "an expression alone does nothing"
    labels = {"span": "its value is lost"}
    help = "name it, `y = {text}`, or `return` it"


# ---------------------------------------------------------------- elaboration: definitions


class UnknownUse(ArchError, id="unknown-use"):
    name: str
    title = "there is no library called `{name}`"
    labels = {"span": "not found"}
    help = "the library that comes with archc is `std`: `use std`"


class DefinedTwice(ArchError, id="defined-twice"):
    name: str
    first: Span
    title = "`{name}` is defined twice"
    labels = {"span": "defined again", "first": "first defined here"}


class WhichModel(ArchError, id="which-model"):
    file: str
    known: tuple[str, ...]
    title = "`{file}` does not hold exactly one model"

    def help_text(self) -> str:
        if not self.known:
            return "write one: `model M {{ .. }}`".format()
        return f"it has {_listed(self.known)}: name one, by a preset or by `--model NAME`"


class UnknownModel(ArchError, id="unknown-model"):
    name: str
    known: tuple[str, ...]
    title = "there is no model `{name}`"

    def help_text(self) -> str:
        return did_you_mean(self.name, self.known) or f"models here: {', '.join(self.known)}"


class UnknownPreset(ArchError, id="unknown-preset"):
    name: str
    known: tuple[str, ...]
    title = "there is no preset `{name}`"

    def help_text(self) -> str:
        return did_you_mean(self.name, self.known) or f"presets here: {', '.join(self.known)}"


class BadPreset(ArchError, id="bad-preset"):
    name: str
    title = "preset `{name}` must be a model with named values"
    labels = {"span": "not of this form"}
    help = "write `preset {name} = Model(d = 64, layers = 2)`"


class HyperKind(ArchError, id="hyperparameter-kind"):
    name: str
    got: str
    declared_at: Span
    title = "`{name}` is a whole number, this is {got}"
    labels = {"span": "not a whole number", "declared_at": "its default is one"}


class HyperTarget(ArchError, id="hyperparameter-target"):
    title = "above the first `input`, each line sets one hyperparameter"
    labels = {"span": "not of the form `name = value`"}
    help = "move the line below the inputs, or write a line for each name"


class UnknownHyperparameter(ArchError, id="unknown-hyperparameter"):
    model: str
    name: str
    known: tuple[str, ...]
    title = "`{model}` has no hyperparameter `{name}`"
    labels = {"span": "set here"}

    def help_text(self) -> str:
        return did_you_mean(self.name, self.known) or f"it has: {', '.join(self.known)}"


class RunTimeHyperparameter(ArchError, id="run-time-hyperparameter"):
    name: str
    title = "`{name}` stands above the first `input`, so it must be known at compile time"
    labels = {"span": "this is computed at run time"}
    help = "move the line below the inputs"


class NoOutput(ArchError, id="no-output"):
    name: str
    title = "model `{name}` has no output"
    labels = {"span": "no `output` line in this model"}
    help = "end the model with a line such as `output logits[b, s, vocab] = x`"


class OutputLoss(ArchError, id="output-loss"):
    title = "the loss is no `output`"
    labels = {"span": "an output with this name"}
    help = "write `loss = ..`: it is computed only where it is asked for, and may look ahead"


class OutputOrder(ArchError, id="output-order"):
    name: str
    axes: str
    title = "nobody wrote an order for the axes {axes} of output `{name}`"
    labels = {"span": "which axis comes first?"}
    help = "write the axes in the order you want: `output {name}{axes} = ..`"


class OutputTwice(ArchError, id="output-twice"):
    name: str
    title = "output `{name}` is given twice"
    labels = {"span": "already an output"}


class LossAxes(ArchError, id="loss-axes"):
    axes: str
    title = "a loss is one number, this has axes {axes}"
    labels = {"span": "still has axes"}
    help = "reduce it: `mean(x, b)`, `sum(x, s)`"


class NoReturn(ArchError, id="no-return"):
    name: str
    title = "`{name}` ends without `return`"
    labels = {"span": "the end of `{name}`"}
    help = "say what it gives: `return y`"


class MisplacedReturn(ArchError, id="misplaced-return"):
    where: str
    title = "`return` cannot stand {where}"
    labels = {"span": "no block or fn ends here"}

    def help_text(self) -> str:
        if self.where == "in a model":
            return "a model names what it gives: `output y[b, s, d] = ..`"
        return "assign to a name that exists above the repeat, and return that below it"


class ResultCount(ArchError, id="result-count"):
    name: str
    expected: int
    got: int
    title = "`{name}` declares {expected} result(s) and returns {got}"
    labels = {"span": "declared here"}


class TooDeep(ArchError, id="too-deep"):
    limit: int
    title = "calls are nested more than {limit} deep"
    labels = {"span": "one call too many"}
    help = "a definition must not call itself: repetition is written `repeat`"


class Unsupported(ArchError, id="unsupported"):
    what: str
    title = "{what} is part of the language, but this version cannot compile it"
    labels = {"span": "not supported yet"}


class TooLarge(ArchError, id="too-large"):
    limit: int
    title = "this file expands to more than {limit:,} expressions"
    labels = {"span": "the limit was reached here"}
    help = "repetition is written `repeat`, which costs the same for any number of layers"


# --------------------------------------------------------------------- elaboration: calls


class UnknownArgument(ArchError, id="unknown-argument"):
    function: str
    name: str
    known: tuple[str, ...]
    title = "`{function}` has no parameter `{name}`"
    labels = {"span": "no such parameter"}

    def help_text(self) -> str:
        if not self.known:
            return "it takes values in order, without names"
        return did_you_mean(self.name, self.known) or f"it takes: {', '.join(self.known)}"


class MissingArgument(ArchError, id="missing-argument"):
    function: str
    name: str
    declared_at: Span
    title = "`{function}` needs a value for `{name}`"
    labels = {"span": "`{name}` is missing here", "declared_at": "declared without a default"}


class TooManyArguments(ArchError, id="too-many-arguments"):
    name: str
    count: int
    defined_at: Span
    title = "`{name}` has {count} hyperparameter(s)"
    labels = {"span": "one too many", "defined_at": "`{name}` is defined here"}
    help = "more inputs are given by keyword: `x |> attention(heads, memory = m)`"


class TooManyInputs(ArchError, id="too-many-inputs"):
    name: str
    count: int
    defined_at: Span
    title = "`{name}` has {count} input(s)"
    labels = {"span": "one too many", "defined_at": "`{name}` is defined here"}
    help = "what flows in by `|>` is the first input; a configured value takes hyperparameters by keyword"


class TensorHyperparameter(ArchError, id="tensor-hyperparameter"):
    name: str
    title = "`{name}(..)` sets hyperparameters, and a tensor is none"
    labels = {"span": "known only when the model runs"}
    help = "apply it with `|>`: `x |> {name}(..)`"


class ArgumentTwice(ArchError, id="argument-twice"):
    name: str
    title = "`{name}` is given twice"
    labels = {"span": "given again"}


class ArgumentCount(ArchError, id="argument-count"):
    name: str
    expected: str
    got: int
    title = "`{name}` takes {expected}, not {got}"
    labels = {"span": "in this call"}

    def help_text(self) -> str:
        """Most often the axis is what is missing."""
        usage = dict.fromkeys(("sum", "amax", "any", "softmax", "cumsum"), "x, a")
        usage["dot"] = "x, y, a"
        arguments = usage.get(self.name)
        return f"write `{self.name}({arguments})`, where `a` is an axis" if arguments else ""


class NoneUsed(ArchError, id="none-used"):
    function: str
    title = "`none` is given to `{function}`"
    labels = {"span": "this is none"}
    help = "test it first: `if x != none {{ .. }}`, or give a default: `x ?? 1`"


class NotAChoice(ArchError, id="not-a-choice"):
    function: str
    name: str
    got: str
    options: str
    declared_at: Span
    title = "`{name}` of `{function}` is {options}, not {got}"
    labels = {"span": "in this call", "declared_at": "the choices are listed here"}


class NotCallable(ArchError, id="not-callable"):
    got: str
    title = "{got} cannot be applied"
    labels = {"span": "not a block, fn, lambda or instance"}


class NotATemplate(ArchError, id="not-a-template"):
    got: str
    title = "a block is expected here, this is {got}"
    labels = {"span": "not a block"}
    help = "configure one without applying it: `shared e = embedding(vocab, d)`"


class SharedSizes(ArchError, id="shared-sizes"):
    weight: str
    got: str
    expected: str
    shared_at: Span | None = None
    title = "one shared weight `{weight}` cannot be both {expected} and {got}"
    labels = {"span": "{got} here, {expected} earlier", "shared_at": "shared by all its uses"}
    help = "for new weights at each use drop `shared`: `f = linear(d)`, then `x |> f as name`"


class BankSize(ArchError, id="bank-size"):
    title = "a bank has one size in its brackets"
    labels = {"span": "not of the form `bank f[n] = block`"}
    help = "write `bank experts[n] = ffn(64)`, or with a size `bank experts[n: 8] = ffn(64)`"


class LabelTwice(ArchError, id="label-twice"):
    label: str
    first: Span
    title = "two applications here are both called `{label}`"
    labels = {"span": "its weights would be at `{label}` again", "first": "`{label}` is taken here"}
    help = "name one of them: `.. |> {label}(..) as other`"


class WeightInFunction(ArchError, id="weight-in-function"):
    name: str
    title = "weight `{name}` stands in a `fn`, which owns none"
    labels = {"span": "a weight"}
    help = "write `block` instead of `fn`"


class NoWeight(ArchError, id="no-weight"):
    instance: str
    path: str
    known: tuple[str, ...]
    declared_at: Span
    title = "`{instance}` has no weight `{path}`"
    labels = {"span": "read here", "declared_at": "`{instance}` is declared here"}

    def help_text(self) -> str:
        if not self.known:
            return (
                f"an instance makes its weights when first applied: apply `{self.instance}` above"
            )
        return did_you_mean(self.path, self.known) or f"it has: {', '.join(self.known)}"


# what tensors of other libraries have, and what is written here
FOREIGN_ATTRIBUTES = {
    "view": "split or merge by name: `x[h -> (heads, e)]`, `x[(heads, e) -> h]`",
    "transpose": "axes have no order to change: operands align by name",
    "shape": "an axis' own name is its size: `d`; of a run-time axis it is `size(s)`",
    "unsqueeze": "operands align by name; an axis of size 1 is `x[one: new]`",
    "expand": "operands align by name: there is nothing to expand",
    "float": "write `float(x)`, `f32(x)`",
    "mean": "functions are called by name: `mean(x, d)`",
}
SAME_ATTRIBUTES = {
    **dict.fromkeys(("reshape", "flatten", "unflatten", "rearrange", "chunk", "split"), "view"),
    **dict.fromkeys(("permute", "T", "mT", "swapaxes", "contiguous"), "transpose"),
    **dict.fromkeys(("size", "ndim", "dim"), "shape"),
    **dict.fromkeys(("squeeze", "expand_dims"), "unsqueeze"),
    **dict.fromkeys(("repeat", "expand_as", "broadcast_to"), "expand"),
    **dict.fromkeys(("to", "type", "half", "astype", "int", "bool"), "float"),
    **dict.fromkeys(("sum", "max", "softmax", "exp", "sqrt", "pow", "abs", "cumsum"), "mean"),
}


class NoAttribute(ArchError, id="no-attribute"):
    got: str
    name: str
    title = "{got} has no `.{name}`"
    labels = {"span": "only a `shared` instance has attributes: its weights"}

    def help_text(self) -> str:
        name = SAME_ATTRIBUTES.get(self.name, self.name)
        return FOREIGN_ATTRIBUTES.get(name, "") if self.got == "a tensor" else ""


# --------------------------------------------------------- elaboration: axes, continued


class NoSuchAxis(ArchError, id="no-such-axis"):
    axis: str
    axes: str
    known: tuple[str, ...]
    title = "there is no axis `{axis}` on a value with axes {axes}"
    labels = {"span": "`{axis}` is not one of {axes}"}

    def help_text(self) -> str:
        return did_you_mean(self.axis, self.known)


class ExtraAxes(ArchError, id="extra-axes"):
    axes: str
    extra: str
    title = "the value has axes {axes}, but `{extra}` is not written"
    labels = {"span": "does not mention `{extra}`"}
    help = "write it too, or `...` for any other axes"


class WriteTheAxes(ArchError, id="write-the-axes"):
    name: str
    axes: str
    title = "`{name}` binds axes by their written order, and nobody wrote one for {axes}"
    labels = {"span": "the order of these axes is open"}
    help = "write the axes on the left of an assignment: `y[..., s, d] = ..`, or here: `x[b, s, d]`"


class AxisCount(ArchError, id="axis-count"):
    name: str
    wanted: str
    got: str
    declared_at: Span
    title = "`{name}` needs axes {wanted}, this value has {got}"
    labels = {"span": "has axes {got}", "declared_at": "declared with {wanted}"}


class AxisClash(ArchError, id="axis-clash"):
    name: str
    first: str
    second: str
    title = "`{name}` must be one axis of the caller, not both `{first}` and `{second}`"
    labels = {"span": "brings `{second}`"}


class AxisTwice(ArchError, id="axis-twice"):
    axis: str
    title = "a value would carry axis `{axis}` twice"
    labels = {"span": "`{axis}` is already there"}
    help = (
        "rename one of them: `x[{axis} -> other]`\n"
        "where axes are declared, a second one needs a name and a size: `[{axis}, other: {axis}]`"
    )


class BoundTwice(ArchError, id="bound-twice"):
    axis: str
    first: str
    second: str
    title = "axis `{axis}` stands for both `{first}` and `{second}` in this call"
    labels = {"span": "cannot tell which is meant"}
    help = "rename the captured value to the axis you mean: `x[{axis} -> {first}]`"


class PrivateAxis(ArchError, id="private-axis"):
    axis: str
    name: str
    title = "`{name}` returns its private axis `{axis}`"
    labels = {"span": "declares no result axes"}
    help = "declare it: `-> [..., {axis}]`"


class OuterProduct(ArchError, id="outer-product"):
    name: str
    axes: str
    title = "`{name}` would have axes {axes}, which no operand has"
    labels = {"span": "an outer product"}
    help = "if that is meant, write the axes: `{name}{axes} = ..`"


class AddsAxes(ArchError, id="adds-axes"):
    axes: str
    left: str
    title = "`+=` keeps the axes {left}, but the right side brings `{axes}`"
    labels = {"span": "adds an axis"}
    help = "if that is meant, assign: `x[..] = x + ..`"


class AmbiguousAxis(ArchError, id="ambiguous-axis"):
    axis: str
    declared_at: Span | None
    title = "axis `{axis}` has several sizes in this body"
    labels = {"span": "which size is meant?", "declared_at": "first declared here"}
    help = "give the sizes different axis names"


class UnknownSize(ArchError, id="unknown-size"):
    axis: str
    title = "axis `{axis}` has no size here"
    labels = {"span": "declared without a size"}
    help = "write its size: `{axis}: 4 * d`"


class UnnamedAxis(ArchError, id="unnamed-axis"):
    got: str
    title = "an axis is expected here, this is {got}"
    labels = {"span": "a size without a name"}
    help = "name the axis it makes: `linear(wide: 4 * d)`"


class NotAnAxis(ArchError, id="not-an-axis"):
    got: str
    title = "an axis is expected here, this is {got}"
    labels = {"span": "not an axis"}
    help = "an axis is given by its name: `softmax(x, d)`"


class NotWhole(ArchError, id="not-whole"):
    got: str
    title = "a size must be a whole number, this is {got}"
    labels = {"span": "a fraction"}
    help = "`/` gives a fraction; `//` divides sizes"


class NotASize(ArchError, id="not-a-size"):
    got: str
    title = "a size is expected here, this is {got}"
    labels = {"span": "not a size"}


class RunTimeSize(ArchError, id="run-time-size"):
    axis: str
    title = "the size of `{axis}` is known only at run time"
    labels = {"span": "needs a number at compile time"}
    help = "inside tensor arithmetic write `size({axis})`"


class NegativeSize(ArchError, id="negative-size"):
    axis: str
    size: str
    title = "axis `{axis}` would have size {size}"
    labels = {"span": "a negative size"}


class MisplacedAxes(ArchError, id="misplaced-axes"):
    what: str
    title = "{what} cannot stand in these brackets"
    labels = {"span": "not an axis"}
    help = (
        "a group `(g, e)` stands in the brackets of a `weight`, or left of `->`: `x[(g, e) -> h]`\n"
        "`...` stands once, for all other axes, and not where a weight or table is declared"
    )


class UnknownPack(ArchError, id="unknown-pack"):
    name: str
    known: tuple[str, ...]
    title = "there is no pack `{name}...` here"
    labels = {"span": "not a pack"}

    def help_text(self) -> str:
        declared = "declare it among the hyperparameters: `block f({name}..., bias = false)(..)`"
        return did_you_mean(self.name, self.known) or declared.format(name=self.name)


class SplitSizes(ArchError, id="split-sizes"):
    axes: str
    title = "the sizes of `{axes}` cannot all be left out"
    labels = {"span": "at most one size may be left out"}
    help = "write the others: `x[h -> (g: 4, r)]`"


class SplitUneven(ArchError, id="split-uneven"):
    axis: str
    size: str
    parts: str
    product: str
    title = "axis `{axis}` ({size}) does not split into ({parts}), which is {product}"
    labels = {"span": "does not divide"}


class SliceRange(ArchError, id="slice-range"):
    axis: str
    start: str
    stop: str
    size: str
    title = "the slice {start}..{stop} is outside axis `{axis}` of size {size}"
    labels = {"span": "out of range"}


class PickRange(ArchError, id="pick-range"):
    axis: str
    index: int
    size: int
    title = "index {index} is outside axis `{axis}` of size {size}"
    labels = {"span": "out of range"}


class BadIndex(ArchError, id="bad-index"):
    axis: str
    got: str
    title = "axis `{axis}` is indexed by {got}"
    labels = {"span": "needs whole numbers"}
    help = "convert it: `int(x)`"


class TensorIndex(ArchError, id="tensor-index"):
    axis: str
    title = "a tensor is indexed by axis name"
    labels = {"span": "which axis?"}
    help = "write `x[{axis}: index]`"


class MixedBrackets(ArchError, id="mixed-brackets"):
    title = "brackets either relabel and select, or state an order"
    labels = {"span": "does both"}
    help = "write two brackets: `x[s -> t][b, t]`"


class JoinAxes(ArchError, id="join-axes"):
    first: str
    second: str
    title = "parts of a concatenation must agree in every other axis: {first} against {second}"
    labels = {"span": "these differ"}
    help = "repeat a part along the axis `a` that it lacks: `x[a, ..] = where(index(a) >= 0, x, 0)`"


class TopkAxis(ArchError, id="topk-axis"):
    title = "`topk` needs one new axis for its results"
    labels = {"span": "no axis named"}
    help = "write `topk(x, experts, k: 2)`"


class TopkCount(ArchError, id="topk-count"):
    count: int
    axis: str
    size: int
    title = "axis `{axis}` of size {size} has no {count} largest entries"
    labels = {"span": "more than there are"}


class ReductionName(ArchError, id="reduction-name"):
    name: str
    instead: str
    axis: str
    title = "`{name}` compares two values; it does not reduce axis `{axis}`"
    labels = {"span": "an axis of the other argument"}
    help = "the largest entry along an axis is `amax(x, {axis})`, the smallest `-amax(-x, {axis})`"


# ------------------------------------------------------------ elaboration: kinds of value


class NotATensor(ArchError, id="not-a-tensor"):
    got: str
    title = "a tensor is expected here, this is {got}"
    labels = {"span": "not a tensor"}

    def help_text(self) -> str:
        applied = "a block gives a tensor when it is applied: `x |> block(..)`"
        return applied if self.got.startswith("the block") else ""


class NotABoolTensor(ArchError, id="not-a-bool"):
    got: str
    title = "a condition is expected here, this is {got}"
    labels = {"span": "not a condition"}
    help = "compare it: `mask != 0`, `x > 0`"


class NotANumber(ArchError, id="not-a-number"):
    op: str
    got: str
    title = "`{op}` needs numbers, this is {got}"
    labels = {"span": "in this expression"}


class BoolArithmetic(ArchError, id="bool-arithmetic"):
    op: str
    title = "`{op}` needs numbers, and these are truth values"
    labels = {"span": "truth values only"}
    help = (
        "combine conditions with `and`, `or`, `not`; count them with `sum`; convert one by `int(x)`"
    )


class MixedKinds(ArchError, id="mixed-kinds"):
    title = "truth values and numbers do not mix here"
    labels = {"span": "some of each"}
    help = "convert one: `float(mask)`, `int(mask)`"


class NotAList(ArchError, id="not-a-list"):
    got: str
    title = "`for .. in` runs over a list or up to a whole number, this is {got}"
    labels = {"span": "neither a list nor a number"}


class RunTimeTable(ArchError, id="run-time-table"):
    title = "a `const` is computed before the model runs, this value only then"
    labels = {"span": "not known yet"}
    help = "drop `const`, or use only numbers, `index(i)` and other tables"


class NumberOnly(ArchError, id="number-only"):
    name: str
    title = "`{name}` works on compile-time numbers only"
    labels = {"span": "a tensor is given"}
    help = "of a tensor, `ceil(x)` is `-floor(-x)` and `log2(x)` is `log(x) / log(2)`"


class NumberOutOfRange(ArchError, id="number-out-of-range"):
    op: str
    title = "`{op}` has no value for these numbers"
    labels = {"span": "in this expression"}


class DivisionByZero(ArchError, id="division-by-zero"):
    title = "division by zero"
    labels = {"span": "in this expression"}


class NotACondition(ArchError, id="not-a-condition"):
    got: str
    title = "true or false is expected here, this is {got}"
    labels = {"span": "not a condition"}
    help = 'compare it: `n > 0`, `kind == "full"`, `x != none`'


class RunTimeCondition(ArchError, id="run-time-condition"):
    title = "this is known only at run time, but a choice of text is made at compile time"
    labels = {"span": "a tensor"}
    help = "choose values instead: `where(condition, a, b)`"


class NotIndexable(ArchError, id="not-indexable"):
    got: str
    title = "{got} cannot be indexed like this"
    labels = {"span": "in these brackets"}
    help = 'a list or a bank takes a number, `kinds[0]`; a table takes a word, `acts["silu"]`'


class NoEntry(ArchError, id="no-entry"):
    key: str
    known: tuple[str, ...]
    title = '"{key}" is not in this table'
    labels = {"span": "no such entry"}

    def help_text(self) -> str:
        return did_you_mean(self.key, self.known) or f"it has: {', '.join(self.known)}"


class ListIndex(ArchError, id="list-index"):
    index: int
    length: int
    title = "there is no entry {index}: there are {length}, counted from 0"
    labels = {"span": "out of range"}


class NotADtype(ArchError, id="not-a-dtype"):
    known: tuple[str, ...]
    title = "a dtype is expected here"
    labels = {"span": "not a dtype"}

    def help_text(self) -> str:
        return f"one of: {', '.join(self.known)}"


class TargetCount(ArchError, id="target-count"):
    targets: int
    values: int
    title = "{targets} name(s) on the left, {values} value(s) on the right"
    labels = {"span": "in this assignment"}


class RepeatCount(ArchError, id="repeat-count"):
    count: int
    most: int
    title = "a repeat cannot run {count} times"
    labels = {"span": "not from 0 to {most:,}"}


class IdleRepeat(ArchError, id="idle-repeat"):
    title = "this repeat changes nothing"
    labels = {"span": "no name from above is assigned in it"}
    help = "names first assigned in a repeat end with the iteration: write `x = ..` or `x += ..`"


class CarriedValue(ArchError, id="carried-value"):
    name: str
    got: str
    title = "a repeat cannot change `{name}`, which is {got}"
    labels = {"span": "this repeat assigns `{name}`"}
    help = (
        "only tensors and numbers are carried between iterations; give the inner value another name"
    )


class CarriedAxes(ArchError, id="carried-axes"):
    name: str
    before: str
    after: str
    title = "`{name}` enters an iteration with axes {before} and leaves it with {after}"
    labels = {"span": "in this repeat"}
    help = "a value carried through a repeat keeps its axes"


class CarriedDtype(ArchError, id="carried-dtype"):
    name: str
    before: str
    after: str
    title = "`{name}` enters an iteration as {before} and leaves it as {after}"
    labels = {"span": "in this repeat"}
    help = "convert it above the repeat, or inside: `float(x)`, `int(x)`, and `x != 0` for truth values"


# -------------------------------------------------------------------- elaboration: inputs


class InputKind(ArchError, id="input-kind"):
    kind: str
    known: tuple[str, ...]
    title = "`{kind}` is no kind of input"
    labels = {"span": "unknown kind of input"}

    def help_text(self) -> str:
        kinds = f"kinds of input: {', '.join(self.known)}"
        return did_you_mean(self.kind, self.known) or kinds


class InputAxes(ArchError, id="input-axes"):
    title = "an input's axes are names, perhaps with a size"
    labels = {"span": "not a plain axis"}
    help = "write all of them: `x: float[b, s, d]`, with a size where it is known: `d: 64`"


class InputDefault(ArchError, id="input-default"):
    name: str
    kind: str
    title = "the default of input `{name}` must be one constant of its kind, `{kind}`"
    labels = {"span": "not such a constant"}
    help = "`bool` takes true or false, `ids` and `int` a whole number, `float` any number"


class InputTwice(ArchError, id="input-twice"):
    name: str
    title = "input `{name}` is declared twice"
    labels = {"span": "already an input"}


class TimeAxis(ArchError, id="time-axis"):
    axis: str
    known: tuple[str, ...]
    title = "`{axis}` is no run-time axis of an input above"
    labels = {"span": "only an input's axis has time"}

    def help_text(self) -> str:
        listed = f"run-time axes: {', '.join(self.known)}" if self.known else ""
        return did_you_mean(self.axis, self.known) or listed


class TimeFact(ArchError, id="time-fact"):
    name: str
    title = "time has `valid`, `position` and `segment`, not `{name}`"
    labels = {"span": "the value of `{name}`"}

    def help_text(self) -> str:
        padding = "a padding mask is `valid`: true where an entry exists"
        return did_you_mean(self.name, ("valid", "position", "segment")) or padding


class TimeFactValue(ArchError, id="time-fact-value"):
    name: str
    axis: str
    expected: str
    got: str
    axes: str
    title = "`{name}` must be {expected} along `{axis}`; this is {got} with {axes}"
    labels = {"span": "not {expected} along `{axis}`"}

    def help_text(self) -> str:
        return "make truth values of a mask of 0 and 1: `mask != 0`" if self.name == "valid" else ""


class DecodeTwice(ArchError, id="decode-twice"):
    first: str
    second: str
    title = "a model decodes along one axis, not both `{first}` and `{second}`"
    labels = {"span": "a second axis"}


# ------------------------------------------------------------------------------- passes


class BadKnob(ArchError, id="bad-knob"):
    name: str
    got: str
    expected: str
    title = "{name}={got} is not understood"
    help = "it takes {expected}"


class UnknownPass(ArchError, id="unknown-pass"):
    name: str
    known: tuple[str, ...]
    title = "there is no pass `{name}`"

    def help_text(self) -> str:
        return did_you_mean(self.name, self.known) or f"the passes are {', '.join(self.known)}"


# --------------------------------------------------------------------------- text of the graph


class IrSyntax(ArchError, id="ir-syntax"):
    problem: str
    advice: str = ""
    title = "this is not a graph: {problem}"
    labels = {"span": "here"}
    help = "{advice}"


class OnlyInModel(ArchError, id="only-in-model"):
    title = "this statement belongs to a model's own text"
    labels = {"span": "not allowed inside a block, fn or repeat"}
    help = "move it to the model; a block is given what it needs: `block f(x[..., d], mask[...])`"


# --------------------------------------------------------------------------- the command


class UnknownBackend(ArchError, id="unknown-backend"):
    name: str
    known: tuple[str, ...]
    title = "there is no backend `{name}`"

    def help_text(self) -> str:
        return did_you_mean(self.name, self.known) or f"backends: {', '.join(self.known)}"


class NoWeights(ArchError, id="no-weights"):
    model: str
    title = "`{model}` has no weights yet"
    help = "name a checkpoint with `--weights DIR`, or take random ones with `--random SEED`"


class NotDivisible(ArchError, id="not-divisible"):
    whole: str
    parts: str
    title = "{whole} does not divide by {parts}"
    labels = {"span": "leaves a rest"}
    help = "choose sizes that divide; `//` rounds down on purpose"


class LooksAhead(ArchError, id="looks-ahead"):
    axis: str
    output: str
    op: str
    title = "`decode {axis}` promises that no position reads a later one, but `{output}` does"
    labels = {"span": "this `{op}` is not proved to stay at or before its own position"}

    def help_text(self) -> str:
        drop = f"drop `decode {self.axis}` from the model"
        if self.op in ("softmax", "dot", "sum", "amax"):
            mask = "mask later positions with `causal` and -inf (a finite fill proves nothing)"
            return f"{mask}, or {drop}"
        return f"read the position itself or earlier ones, or {drop}"


class BadTensorFile(ArchError, id="bad-tensor-file"):
    path: str
    reason: str
    title = "cannot read tensors from {path}: {reason}"
    help = "inputs are one safetensors file, keyed by the names of the model's `input` lines"


class Unwritable(ArchError, id="unwritable"):
    path: str
    reason: str
    title = "cannot write {path}: {reason}"


class OtherModel(ArchError, id="other-model"):
    path: str
    model: str
    asked: str
    title = "the checkpoint {path} is one of `{model}`, not of `{asked}`"
    labels = {"span": "this block reads it"}
    help = "run `{model}`, or write a `checkpoint` block for `{asked}`"


class NotGenerative(ArchError, id="not-generative"):
    model: str
    reason: str
    title = "`{model}` cannot generate text: {reason}"
    help = (
        "it takes a line `decode s`, one `ids` input along s without a default, and logits along s"
    )


class NoChatTemplate(ArchError, id="no-chat-template"):
    path: str
    title = "the checkpoint {path} has no chat template"
    help = "leave out `--chat` to continue the prompt as plain text"


class ChatTemplateFails(ArchError, id="chat-template"):
    path: str
    reason: str
    title = "the chat template of {path} cannot be used: {reason}"
    help = "leave out `--chat` to continue the prompt as plain text"


class EmptyPrompt(ArchError, id="empty-prompt"):
    title = "the prompt has no tokens"
    help = "a model without a beginning-of-text token needs at least one to go on from"


class OutOfMemory(ArchError, id="out-of-memory"):
    reason: str
    title = "this machine has too little memory: {reason}"
    help = "take a smaller model or batch, or `--dtype bf16`"
