"""Axes and sizes: alignment, order, splitting, slicing."""

from __future__ import annotations

from ..diagnostics import ArchError, did_you_mean
from ..span import Span


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


class TimelineMismatch(ArchError, id="timeline-mismatch"):
    axis: str
    first: str
    second: str
    title = (
        "axis `{axis}` follows the time of `{first}` in one operand and of `{second}` in another"
    )
    labels = {"span": "these meet here"}
    help = "rename one of them: `x[{axis} -> other]`"


class PermutedTime(ArchError, id="permuted-time"):
    axis: str
    time: str
    title = (
        "an index moves entries along `{axis}`, and what `time {time}` declares differs along it"
    )
    labels = {"span": "the padding and positions of `{time}` would stay behind"}
    help = (
        "pick along another axis, or declare no `time {time}`: index its mask likewise, and hide"
        " by `where` or by the mask of an attention"
    )


class UnrelatedTimelines(ArchError, id="unrelated-timelines"):
    first: str
    second: str
    title = "positions along `{first}` and `{second}` are not comparable"
    labels = {"span": "compares two unrelated timelines"}
    help = "a mask such as `causal` needs queries and keys of one sequence; use `full` across sequences"


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


class TooManyAxes(ArchError, id="too-many-axes"):
    count: int
    limit: int
    title = "this has {count} axes, more than {limit}"
    labels = {"span": "computed here"}
    help = "operands align by axis name: two axes that are one need the same name"


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
    help = (
        "give one of the sizes a name of its own: `x[{axis} -> other]`, then `other` for `{axis}`"
    )


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
    what: str
    got: str
    title = "{what} is indexed by {got}"
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


class NotDivisible(ArchError, id="not-divisible"):
    whole: str
    parts: str
    title = "{whole} does not divide by {parts}"
    labels = {"span": "leaves a rest"}
    help = "choose sizes that divide; `//` rounds down on purpose"
