"""Names and definitions: what is not there, what is there twice."""

from __future__ import annotations

from collections.abc import Iterable

from ..diagnostics import ArchError, did_you_mean
from ..span import Span
from .wording import listed


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

    @classmethod
    def check(cls, named: Iterable[tuple[str, Span]]) -> None:
        """Raises it where a name comes again."""
        first: dict[str, Span] = {}
        for name, span in named:
            if first.setdefault(name, span) is not span:
                raise cls(name=name, span=span, first=first[name])


class UnknownInitial(ArchError, id="unknown-initial"):
    text: str
    known: tuple[str, ...]
    title = "`{text}` is no initial value"
    labels = {"span": "not a way to start a weight"}

    def help_text(self) -> str:
        return did_you_mean(self.text, self.known) or f"one of: {', '.join(self.known)}"


class WhichModel(ArchError, id="which-model"):
    file: str
    known: tuple[str, ...]
    title = "`{file}` does not hold exactly one model"

    def help_text(self) -> str:
        if not self.known:
            return "write one: `model M {{ .. }}`".format()
        return f"it has {listed(self.known)}: name one, by a preset or by `--model NAME`"


class UnknownModel(ArchError, id="unknown-model"):
    name: str
    known: tuple[str, ...]
    title = "there is no model `{name}`"

    def help_text(self) -> str:
        return did_you_mean(self.name, self.known) or f"models here: {', '.join(self.known)}"


class NoIds(ArchError, id="no-ids"):
    name: str
    title = "no id is small enough for `{name}`"
    labels = {"span": "ids are 0 and more, and below this"}
    help = "write how many ids there are: `input ids: ids[b, s] < vocab`"


class OtherPreset(ArchError, id="other-preset"):
    name: str
    model: str
    asked: str
    title = "preset `{name}` is one of `{model}`, not of `{asked}`"
    help = "leave out one of `--model` and `--preset`"


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
        if self.where == "in a scan":
            return "return below it: there every name that the scan assigned has its axis"
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


class TooManyWeights(ArchError, id="too-many-weights"):
    limit: int
    title = "this repeat makes more than {limit:,} weights"
    labels = {"span": "the limit is passed here"}
    help = "a `bank` holds any number of weights of one shape as one"


class TooLarge(ArchError, id="too-large"):
    limit: int
    title = "this file expands to more than {limit:,} expressions"
    labels = {"span": "the limit was reached here"}
    help = "repetition is written `repeat`, which costs the same for any number of layers"
