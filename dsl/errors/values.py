"""Values of the wrong kind: numbers, tensors, conditions, choices."""

from __future__ import annotations

from ..diagnostics import ArchError, did_you_mean
from ..span import Span


class NotATensor(ArchError, id="not-a-tensor"):
    got: str
    title = "a tensor is expected here, this is {got}"
    labels = {"span": "not a tensor"}

    def help_text(self) -> str:
        if self.got.startswith("the block"):
            return "a block gives a tensor when it is applied: `x |> block(..)`"
        if self.got == "a shared block":
            return "it gives a tensor when it is applied: `x |> embed`, `x |> experts[i]`"
        return ""


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
    labels = {"span": "in this loop"}
    help = (
        "convert it above the loop, or inside: `float(x)`, `int(x)`, and `x != 0` for truth values"
    )


class FixedExit(ArchError, id="fixed-exit"):
    title = "the condition of this `until` is known at compile time"
    labels = {"span": "no value decides it"}
    help = "say how many iterations there are: `repeat layers[i: count] {{ .. }}`"


class ExitAxes(ArchError, id="exit-axes"):
    axes: str
    title = "an `until` has no axis or one axis, this one has {axes}"
    labels = {"span": "in this condition"}
    help = (
        "without axes all rows stop together; with one, each entry of it by itself."
        " Reduce the others: `any(done, s)`, `mean(x, s) > 0.9`"
    )


class SharedByRows(ArchError, id="shared-by-rows"):
    name: str
    got: str
    axis: str
    title = "rows stop one by one along `{axis}`, but `{name}`, which they carry, has axes {got}"
    labels = {"span": "this condition has the axis `{axis}`"}
    help = "give `{name}` the axis `{axis}` above the repeat, or reduce the condition over `{axis}`"


class FixedRows(ArchError, id="fixed-rows"):
    axis: str
    size: str
    title = "rows stop one by one along an axis of an input; `{axis}` has the size {size}"
    labels = {"span": "in this condition"}
    help = "the axis must be one whose size a call decides, such as `b`"


class MixesRows(ArchError, id="mixes-rows"):
    op: str
    axis: str
    until_at: Span | None = None
    title = "rows along `{axis}` stop one by one, but `{op}` makes a row depend on the others"
    labels = {"span": "here rows meet", "until_at": "each row stops by itself"}
    help = "let all rows stop together: reduce the condition over `{axis}`"
