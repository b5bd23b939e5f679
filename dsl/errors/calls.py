"""Calls: arguments, labels of weights, instances."""

from __future__ import annotations

from ..diagnostics import ArchError, did_you_mean
from ..span import Span

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
    labels = {"span": "not one of them", "declared_at": "the choices are listed here"}


class NotCallable(ArchError, id="not-callable"):
    got: str
    title = "{got} cannot be applied"
    labels = {"span": "not a block, fn, lambda or instance"}

    def help_text(self) -> str:
        return "pick an entry: `x |> experts[i]`" if self.got == "a bank" else ""


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


class BankTwoWays(ArchError, id="bank-two-ways"):
    name: str
    first: Span
    title = "bank `{name}` is indexed by numbers and by tensors"
    labels = {"span": "here the other way", "first": "first here"}
    help = (
        "numbers make weights entry by entry, tensors one weight of all entries: declare two banks"
    )


class BankAxis(ArchError, id="bank-axis"):
    axis: str
    name: str
    title = "block `{name}` of a bank takes axis `{axis}` as its own, along which the index runs"
    labels = {"span": "the index has this axis too"}
    help = "each entry of the index applies the block by itself: let its signature take fewer axes"


class LabelTwice(ArchError, id="label-twice"):
    label: str
    first: Span
    title = "two applications here are both called `{label}`"
    labels = {"span": "its weights would be at `{label}` again", "first": "`{label}` is taken here"}
    help = "name one of them: `.. |> {label}(..) as other`"


class WeightInFunction(ArchError, id="weight-in-function"):
    kind: str
    name: str
    title = "{kind} `{name}` stands in a `fn`, which owns none"
    labels = {"span": "a {kind}"}
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


class NoAttribute(ArchError, id="no-attribute"):
    got: str
    name: str
    title = "{got} has no `.{name}`"
    labels = {"span": "only a `shared` instance has attributes: its weights"}

    def help_text(self) -> str:
        name = SAME_ATTRIBUTES.get(self.name, self.name)
        return FOREIGN_ATTRIBUTES.get(name, "") if self.got == "a tensor" else ""
