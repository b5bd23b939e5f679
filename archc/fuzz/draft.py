"""A program being written: its random choices, the values that a line may read, the lines so far.

`compose(seed)` is the whole generator. It draws the sizes first, so that several are equal more often
than not (tokens, heads, the size of a head), then lines of the table of `productions.py`, each of
which reads earlier values, and gives what is left over as outputs. The same seed gives the same text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from ..compiler.ops import ModelDType
from ..dsl import Source, format_file, parse
from .productions import (
    ACTS,
    BLOCKS,
    EXPERTS,
    GROUPS,
    MASKS,
    MASKS_AHEAD,
    ROPES,
    ROUTES,
    SCORES,
    Production,
)

NAME = "fuzz.arch"
STREAM = ("b", "s", "d")
WIDEST = 4  # axes of a value
INPUTS = ("x", "y")
GIVEN = re.compile(r"(@\w*)\[([^\]]*)\] =")
WORD = re.compile(r"\{(\w+)\}")

# How often a line comes of each group.
WEIGHTS = {
    "unary": 2.0,
    "binary": 2.0,
    "steps": 1.5,
    "rows": 1.5,
    "layers": 3.0,
    "ahead": 2.5,
    "shapes": 3.0,
    "instances": 1.5,
    "choices": 0.7,
    "exits": 0.3,
}
DTYPES: Mapping[ModelDType, float] = {"f32": 0.8, "f64": 0.1, "bf16": 0.1}
# The lines between the inputs and the first value; the first of each is nothing.
TIMES = (
    "",
    "time s: valid = keep",
    "time s: segment = ids // 2",
    "time s: valid = keep, position = places",
    "time s: valid = keep, segment = ids % 2, position = places",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A program, and how it is run: sizes of its inputs, the dtype; `productions` are in it."""

    seed: int
    text: str
    sizes: Mapping[str, int]
    dtype: ModelDType
    productions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Value:
    """A name of the text with the axes it was written with."""

    name: str
    axes: tuple[str, ...]


@dataclass(slots=True)
class Draft:
    """`values` are those that a line may read; `blocks` are definitions in front of the model."""

    random: Random
    causal: bool
    smooth: bool
    timed: bool
    d: int
    heads: int
    values: list[Value] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    blocks: dict[str, str] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    depth: int = 0
    names: int = 0

    # ---- lines

    def write(self, lines: int) -> None:
        for _ in range(lines):
            self.add(self.production())

    def production(self) -> Production:
        """One that fits here."""
        while True:
            (group,) = self.random.choices(tuple(GROUPS), [WEIGHTS[name] for name in GROUPS])
            made = self.random.choice(GROUPS[group])
            if self.fits(made):
                return made

    def fits(self, made: Production) -> bool:
        return not (
            (made.ahead and self.causal)
            or (made.jumps and self.smooth)
            or (made.untimed and self.timed)
            or (made.top and self.depth > ("{body}" in made.text))
        )

    def add(self, made: Production) -> None:
        """Writes a production, whose value later lines may read."""
        self.used.append(made.name)
        self.names += 1
        own = f"v{self.names}"
        words = _Words(self, own)
        text = words.filled(made.text)
        name, axes = GIVEN.findall(text)[-1]
        self.lines.append(text.replace("@", own))
        self.values.append(Value(name.replace("@", own), tuple(axes.split(", "))))

    def body(self, carried: str) -> tuple[str, str]:
        """Lines of a body that carries a value, and the text of a value they end in."""
        outside, lines = list(self.values), self.lines
        self.values.append(Value(carried, STREAM))
        self.lines = []
        self.depth += 1
        self.write(self.random.randint(1, 2))
        text, value = "; ".join(self.lines), self.stream(recent=True)
        self.values, self.lines = outside, lines
        self.depth -= 1
        return text, value

    # ---- values

    def stream(self, recent: bool = False) -> str:
        """The name of a value `[b, s, d]`, written in this order."""
        return self._one_of([v for v in self.values if v.axes == STREAM], recent).name

    def any_value(self, beside: Value | None = None) -> Value:
        """A value of any axes, few enough together with those of another."""
        axes = beside.axes if beside else ()
        return self._one_of([v for v in self.values if len({*axes, *v.axes}) <= WIDEST], False)

    def _one_of(self, values: Sequence[Value], recent: bool) -> Value:
        """Late ones more often than early ones, so that lines hang together."""
        if recent or self.random.random() < 0.6:
            values = values[-2:]
        return self.random.choice(values)

    # ---- options

    def mask(self) -> str:
        return self.random.choice(MASKS if self.causal else MASKS + MASKS_AHEAD)

    def attention(self) -> str:
        """The arguments of `attention`; rotation needs heads of an even size."""
        options = [f"mask = {self.mask()}"]
        kv_heads = self.random.choice([n for n in (1, 2, 3) if self.heads % n == 0])
        if self.chance(0.4):
            options.append(f"kv_heads = {kv_heads}")
        head_dim = self.d // self.heads
        if self.chance(0.2):
            head_dim = 4
            options.append("head_dim = 4")
        if head_dim % 2 == 0 and self.chance(0.5):
            options.append(f"rotate = rope({self.random.choice(ROPES)})")
        if self.chance(0.3):
            score = self.random.choice(SCORES[1:]).replace("{a}", "a")
            options.append(f"score = (a[...], s, t) -> {score}")
        optional = (
            "norm = rmsnorm(1e-3)",
            "scale = 0.3",
            "sinks = true",
            "bias = true",
            "out_bias = true",
        )
        options += [option for option in optional if self.chance(0.15)]
        return ", ".join(("heads", *options))

    def block(self) -> str:
        """A block of the file applied, which is defined if it was not."""
        name = self.random.choice(tuple(BLOCKS))
        definition, applied = BLOCKS[name]
        self.blocks[name] = definition
        return self.random.choice(applied)

    def chance(self, share: float) -> bool:
        return self.random.random() < share


@dataclass(slots=True)
class _Words:
    """Fills in the words in braces of one production; those that must agree are drawn once."""

    draft: Draft
    own: str
    drawn: dict[str, str] = field(default_factory=dict)
    last: str = ""  # the value that the body before ends in

    def filled(self, text: str) -> str:
        """A word may stand for text that has words itself."""
        while True:
            found = WORD.search(text)
            if found is None:
                return text
            text = text[: found.start()] + self.word(found[1]) + text[found.end() :]

    def word(self, name: str) -> str:
        if name in self.drawn:
            return self.drawn[name]
        made = _WORDS[name](self)
        if name in _ONCE:
            self.drawn[name] = made
        return made

    # ---- those that are drawn together

    def operands(self, wanted: str) -> str:
        """`{a}`, `{e}` and what their axes are, alone and together."""
        a = self.draft.any_value()
        e = self.draft.any_value(a)
        both = dict.fromkeys((*a.axes, *e.axes))
        axes, every = ", ".join(a.axes), ", ".join(both)
        self.drawn |= {"a": a.name, "e": e.name, "axes": axes, "both": every}
        return self.drawn[wanted]

    def inputs(self, wanted: str) -> str:
        raw = self.draft.random.choice(INPUTS)
        self.drawn |= {"raw": raw, "other": next(name for name in INPUTS if name != raw)}
        return self.drawn[wanted]

    def body(self) -> str:
        text, self.last = self.draft.body(f"{self.own}x")
        return text

    def score(self) -> str:
        return f"({self.one_of(SCORES)})".replace("{a}", f"{self.own}a")

    def one_of(self, choices: Sequence[str]) -> str:
        return self.draft.random.choice(choices)


_ONCE = frozenset("xyzk")
_WORDS: dict[str, Callable[[_Words], str]] = {
    "x": lambda w: w.draft.stream(),
    "y": lambda w: w.draft.stream(),
    "z": lambda w: w.draft.stream(),
    "a": lambda w: w.operands("a"),
    "e": lambda w: w.operands("e"),
    "axes": lambda w: w.operands("axes"),
    "both": lambda w: w.operands("both"),
    "raw": lambda w: w.inputs("raw"),
    "other": lambda w: w.inputs("other"),
    "k": lambda w: str(w.draft.random.randint(1, w.draft.d - 1)),
    "c": lambda w: w.one_of(("0.5", "0.25", "0.75", "0.9")),
    "n": lambda w: w.one_of(("2", "3")),
    "wide": lambda w: w.one_of((str(w.draft.d), "3", "2 * d")),
    "flag": lambda w: w.one_of(("true", "false")),
    "act": lambda w: w.one_of(ACTS),
    "rope": lambda w: w.one_of(ROPES),
    "mask": lambda w: w.draft.mask(),
    "score": lambda w: w.score(),
    "attention": lambda w: w.draft.attention(),
    "expert": lambda w: w.one_of(EXPERTS),
    "route": lambda w: w.one_of(ROUTES),
    "block": lambda w: w.draft.block(),
    "body": lambda w: w.body(),
    "inner": lambda w: w.last,
}


# ------------------------------------------------------------------------------------ a program


def compose(seed: int) -> Sample:
    """The program of a seed."""
    random = Random(seed)
    (dtype,) = random.choices(tuple(DTYPES), tuple(DTYPES.values()))
    head, heads = random.choice((1, 2, 3, 4)), random.choice((1, 2, 3, 4))
    d = head * heads if head * heads % 2 == 0 else 2 * head * heads
    time = random.choice(TIMES)
    causal, smooth = random.random() < 0.5, dtype == "bf16"
    draft = Draft(random, causal, smooth, timed=bool(time), d=d, heads=heads)
    draft.values = [Value(name, STREAM) for name in INPUTS]
    equal = (heads, d // heads, d)
    sizes = {name: _size(random, equal) for name in ("b", "s", "u")}
    hypers = {"d": d, "heads": heads, "vocab": _size(random, equal) + 1, "n": random.randint(2, 4)}
    draft.write(random.randint(2, 7))
    text = _formatted(_text(draft, hypers, time))
    return Sample(seed, text, sizes, dtype, tuple(draft.used))


def _size(random: Random, equal: Sequence[int]) -> int:
    """One that equals another size in the model, or is odd, or passes the border of a chunk."""
    odd, long = (1, 3, 5, 7), (9, 17, 33)
    choices, weights = ((equal, odd, long), (0.6, 0.37, 0.03))
    (kind,) = random.choices(choices, weights)
    return random.choice(kind)


def _text(draft: Draft, hypers: Mapping[str, int], time: str) -> str:
    named = "; ".join(f"{name} = {value}" for name, value in hypers.items())
    outputs = [f"output {v.name}o[{', '.join(v.axes)}] = {v.name}" for v in _last(draft)]
    lines = [
        "input ids: ids[b, s] < vocab",
        *(f"input {name}: float[b, s, d]" for name in INPUTS),
        "input memory: float[b, u, d]",
        "input keep: bool[b, s] = true",
        "input places: int[b, s] = 0",
        time,
        "decode s" if draft.causal else "",
        *draft.lines,
        *outputs,
    ]
    body = "\n".join(_lines(filter(None, lines)))
    definitions = "\n".join(draft.blocks.values())
    return f"use std\n\n{definitions}\n\nmodel Fuzz {{\n{named}\n{body}\n}}\n"


def _last(draft: Draft) -> Sequence[Value]:
    """The values to give: the last one, and others that would be lost."""
    text = "\n".join(draft.lines)
    made = [v for v in draft.values if v.name not in INPUTS]
    unread = [v for v in made if len(re.findall(rf"\b{v.name}\b", text)) == 1]
    return unread[-3:] or made[-1:]


def _lines(statements: Iterable[str]) -> list[str]:
    """Statements on lines of their own, those in braces with them."""
    found, depth, line = [], 0, ""
    for character in "\n".join(statements):
        depth += (character == "{") - (character == "}")
        if character in ";\n" and depth == 0:
            found.append(line.strip())
            line = ""
        else:
            line += character
    return [*found, line.strip()]


def _formatted(text: str) -> str:
    return format_file(parse(Source(NAME, text)))
