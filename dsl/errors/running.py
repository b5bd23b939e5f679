"""Running a program: its inputs, its weights, what a backend lacks."""

from __future__ import annotations

from ..diagnostics import ArchError, did_you_mean


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


class UnknownOutput(ArchError, id="unknown-output"):
    name: str
    known: tuple[str, ...]
    title = "the model has no output `{name}`"

    def help_text(self) -> str:
        return did_you_mean(self.name, self.known) or f"its outputs are {', '.join(self.known)}"


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


class SizeRelation(ArchError, id="size-relation"):
    relation: str
    given: str
    title = "the inputs have {given}, but {relation} must hold"
    labels = {"span": "this needs {relation}"}


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


class NoLowering(ArchError, id="no-lowering"):
    op: str
    backend: str
    title = "the {backend} backend cannot express `{op}`"
    labels = {"span": "this needs `{op}`"}
    help = "run it on the numpy backend, which has every op"


class NoGradient(ArchError, id="no-gradient"):
    what: str
    title = "no gradient is known of {what}"
    labels = {"span": "the loss depends on weights through this"}
    help = "where none should flow, say so: `stop_gradient(x)`"


class LossShape(ArchError, id="loss-shape"):
    name: str
    got: str
    title = "`{name}` is {got}; a gradient is of one number"
    labels = {"span": "computed here"}
    help = "sum it, or take its mean, over all axes"


class UntrainedWeight(ArchError, id="untrained-weight"):
    path: str
    known: tuple[str, ...]
    title = "the model trains no weight `{path}`"

    def help_text(self) -> str:
        return did_you_mean(self.path, self.known) or "its weights are listed by `archc cost`"


class MissingPackage(ArchError, id="missing-package"):
    package: str
    purpose: str
    extra: str
    title = "{package} is not installed; {purpose} needs it"
    help = 'pip install "archc[{extra}]"'


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
