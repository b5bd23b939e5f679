"""What a model as a whole declares: inputs, time, outputs, causality."""

from __future__ import annotations

from ..diagnostics import ArchError, did_you_mean


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
    title = "the default of input `{name}` must be of its kind, `{kind}`"
    labels = {"span": "of another kind"}
    help = "`bool` takes true or false, `ids` and `int` whole numbers, `float` any number"


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
    title = "a model decodes in one way, not by both `{first}` and `{second}`"
    labels = {"span": "a second way"}


class DecodeAfter(ArchError, id="decode-after"):
    axis: str
    name: str
    problem: str
    title = "`decode {axis} after {name}` needs a whole number for each row, an input"
    labels = {"span": "{problem}"}
    help = "declare it above: `input {name}: int[b]`, perhaps with a number as its default"


class ShortPrefix(ArchError, id="short-prefix"):
    name: str
    axis: str
    needed: int
    rows: int
    title = (
        "`{name}` says that the first {needed} slots see one another, but the first call has {rows}"
    )
    labels = {"span": "declared here"}
    help = "give at least {needed} slots along `{axis}` at first: they cannot see what comes later"


class ExitInDecode(ArchError, id="exit-in-decode"):
    axis: str
    title = "`decode {axis}` needs every layer at every position, and this `repeat` may stop early"
    labels = {"span": "stops `until` its condition holds"}
    help = "a layer that was skipped left no keys for later positions; drop `decode {axis}`"


class NoDecode(ArchError, id="no-decode"):
    model: str
    title = "`{model}` cannot be run chunk by chunk: it has no line `decode`"
    labels = {"span": "reads its sequence as a whole"}
    help = "an encoder reads all positions at once; `decode s` declares that none reads a later one"


class NeedsWholeSequence(ArchError, id="needs-whole-sequence"):
    axis: str
    reason: str
    title = "the model cannot be run chunk by chunk along `{axis}`: a value {reason}"
    labels = {"span": "{reason}"}
    help = "give what is needed as an input without `{axis}`, declared like `input length: int[]`"


class LooksAhead(ArchError, id="looks-ahead"):
    axis: str
    output: str
    op: str
    after: str = ""
    title = "`decode {axis}` promises that no position reads a later one, but `{output}` does"
    labels = {"span": "this `{op}` is not proved to stay at or before its own position"}

    @property
    def message(self) -> str:
        if not self.after:
            return super().message
        promise = f"`decode {self.axis} after {self.after}` promises that no position reads a later"
        return f"{promise} one behind the first `{self.after}`, but `{self.output}` does"

    def help_text(self) -> str:
        after = f" after {self.after}" if self.after else ""
        drop = f"drop `decode {self.axis}{after}` from the model"
        if self.op in ("softmax", "dot", "sum", "amax"):
            shown = f"prefix({self.axis}, t, {self.after})" if after else "causal"
            mask = f"mask later positions with `{shown}` and -inf (a finite fill proves nothing)"
            return f"{mask}, or {drop}"
        if self.op == "scan":
            return f"run it forwards and read no last state along `{self.axis}`, or {drop}"
        return f"read the position itself or earlier ones, or {drop}"
