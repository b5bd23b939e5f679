"""The law of decoding, for one bundled example: any split of a sequence gives what the whole gives.

    f(x[0 : p + n])[p :]  =  chunk(x[p : p + n], states of prefill(x[0 : p]))

The whole is the full program on the numpy backend in float64, as elaborated; every row is compared,
padding too. Two cases: *ragged*, more rows than any window, row by row of the batch padded before,
after, within and not at all; *colliding*, as many rows and as large a batch as a size of the model.
`law` tries both in many splits; `brief_law` has all of that in seven calls, for a backend that takes
its time, and `smallest` the examples with a layer of each kind and sizes that are one number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

import archc
from archc.backends.base import node_name, plain_symbol
from archc.compiler.ir.graph import Node
from archc.decoder import Decoder, State
from archc.diff.inputs import random_cases, read_inputs, run_time_symbols

FOLDER = Path(__file__).parent.parent / "examples"
ROWS, BATCH = 9, 4
COLLIDING = range(4, 17)

LAYER: dict[str, Any] = {"layers": 1, "d": 16, "heads": 4, "vocab": 20}  # heads of four entries
FED = {**LAYER, "hidden": 12}
PAIR = {**FED, "decoder_layers": 1}  # an encoder and a decoder
MIXED = {**FED, "experts": 4}
SMALLEST: dict[str, dict[str, Any]] = {
    "atlas": {
        **PAIR, "head_dim": 4, "query_layers": 1, "query_d": 16, "query_hidden": 12, "query_vocab": 20,
    },
    "bart": PAIR,
    "conditioned_llm": FED,
    "deepseek_v2": {
        **MIXED, "layers": 2, "rank": 4, "q_rank": 6, "plain": 4, "turned": 4, "value": 4,
        "used": 2, "groups": 2, "kept_groups": 1, "expert_hidden": 4,
    },
    "falcon": LAYER,
    "gemma": {**FED, "head_dim": 4},
    "glam": {**MIXED, "layers": 2, "head_dim": 4},
    "gpt1": LAYER,
    "gpt2": LAYER,
    "gpt3": {**LAYER, "layers": 2, "band": 3},
    "gpt4_speculated": MIXED,
    "grok1": {**MIXED, "head_dim": 4},
    "hybrid": {**MIXED, "layers": 2, "attention_period": 2, "attention_offset": 1},
    "hyena": {"d": 4, "hidden": 4},
    "linear_transformer": LAYER,
    "llama": {**FED, "kv_heads": 4},
    "llava": {
        **FED, "kv_heads": 4, "tower_d": 16, "tower_layers": 2, "tower_heads": 4,
        "tower_hidden": 12,
    },
    "mamba": {"layers": 1, "d": 4, "vocab": 20},
    "mamba2": {"layers": 1, "d": 8, "head_dim": 4, "vocab": 20},
    "mistral": {**FED, "window": 3},
    "mixtral": MIXED,
    "nllb": PAIR,
    "palm": {**LAYER, "head_dim": 4},
    "phi3": {**FED, "window": 3},
    "prefix_lm": {**FED, "head_dim": 4},
    "qwen2": FED,
    "rag": {**PAIR, "docs": 2, "question_layers": 1, "question_d": 16, "question_hidden": 12},
    "rallm": {**FED, "cross_layers": 1},
    "retnet": {**FED, "value_dim": 16},
    "rwkv4": {"layers": 1, "d": 4, "width": 4, "hidden": 12, "vocab": 20},
    "s4": {"d": 4, "state": 4},
    "s4d": {"d": 4, "state": 4},
    "switch": {**PAIR, "layers": 2, "decoder_layers": 2, "head_dim": 4},
    "t5": {**PAIR, "head_dim": 4},
    "transformer": PAIR,
}  # fmt: skip

Array = np.ndarray[Any, Any]
Outputs = dict[str, Array]


def declaring() -> list[str]:
    """The examples whose texts have a line `decode`."""
    texts = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.arch"))}
    line = re.compile(r"^ *(if .*\{ )?decode \w", re.MULTILINE)
    return [name for name, text in texts.items() if line.search(text)]


@dataclass(frozen=True, eq=False)
class Case:
    """Inputs of one call on the whole sequence. The first chunk must have `first` of its rows."""

    name: str
    inputs: Mapping[str, Array]
    rows: int
    first: int = 1


class Example:
    """A bundled model with small sizes and random weights, what it is given, and what it gives."""

    def __init__(self, name: str, **sizes: Any) -> None:
        text = (FOLDER / f"{name}.arch").read_text()
        presets = re.findall(r"^preset (\w+)", text, re.MULTILINE)
        preset = "tiny" if "tiny" in presets else presets[0]
        model = archc.load(FOLDER / f"{name}.arch", preset=preset, **sizes)
        self.name, self.model = name, model.with_random_weights(0)
        # A default that sums over the sequence is given instead: a chunk does not see it all.
        self.wanted = COMPUTED.get(name)
        self.program = self.model.program_for(self.wanted)
        self.axis = self.program.decode
        self._whole: dict[Case, Outputs] = {}

    def decoder(self, backend: str, **options: Any) -> Decoder:
        return self.model.decoder(backend, inputs=self.wanted, **options)

    @cached_property
    def places(self) -> dict[str, int]:
        """The dimension of rows of each input and output that has one."""
        main = self.program.main
        nodes = {node_name(main[i]): main[i] for i in main.inputs}
        nodes |= {name: main[i] for name, i in main.outputs}
        names = {name: [axis.name for axis in node.axes] for name, node in nodes.items()}
        return {name: axes.index(self.axis) for name, axes in names.items() if self.axis in axes}

    @cached_property
    def cases(self) -> tuple[Case, Case]:
        nodes = (node for function in self.program.functions for node in function.nodes)
        sizes = {axis.size for node in nodes for kind in node.types for axis in kind.axes}
        known = {s.evaluate(self.program.sizes) for s in sizes if self._is_known(s.symbols())}
        collision = min((n for n in known if n in COLLIDING), default=BATCH)
        return self.case("ragged", BATCH, ROWS, 0), self.case("colliding", collision, collision, 1)

    def _is_known(self, symbols: frozenset[str]) -> bool:
        return symbols <= self.program.sizes.keys()

    def case(self, name: str, batch: int, rows: int, seed: int) -> Case:
        timed = next(n for n in read_inputs(self.program).values() if self._is_timed(n))
        symbols = [plain_symbol(axis.size) for axis in timed.axes]
        sizes = {s: batch for s in symbols if s in run_time_symbols(self.program)}
        at = [axis.name for axis in timed.axes].index(self.axis)
        sizes[str(symbols[at])] = rows
        inputs = dict(next(random_cases(self.program, seed, sizes)).inputs)
        for key, node in read_inputs(self.program).items():
            if node.type.dtype == "bool" and self._is_timed(node):
                inputs[key] = padding(*inputs[key].shape)
        if self.name in COMPUTED:
            inputs |= images(inputs)
        first = 1
        if self.program.after:
            inputs[self.program.after] %= rows // 2
            first = int(inputs[self.program.after].max())
        return Case(name, inputs, rows, max(first, 1))

    def _is_timed(self, node: Node) -> bool:
        return self.axis in (axis.name for axis in node.axes)

    @cached_property
    def compiled(self) -> Any:
        return self.model.compile("numpy", dtype="f64", level=0, inputs=self.wanted)

    def whole(self, case: Case) -> Outputs:
        """Of one call with all rows, in float64."""
        if case not in self._whole:
            self._whole[case] = self.compiled(**case.inputs)
        return self._whole[case]

    # ------------------------------------------------------------------------------ in chunks

    def rows_of(self, case: Case, start: int, stop: int) -> Outputs:
        """What a call is given: a first one everything, a later one only what has rows."""
        return {
            name: x.take(range(start, stop), axis=self.places[name]) if name in self.places else x
            for name, x in case.inputs.items()
            if start == 0 or name in self.places
        }

    def go_on(
        self, decoder: Decoder, case: Case, split: Sequence[int], start: int = 0, state: Any = None
    ) -> tuple[list[Outputs], State]:
        """The outputs of each chunk, the first of them at row `start`, and the state after them."""
        outputs = []
        for count in split:
            found, state = decoder(state, **self.rows_of(case, start, start + count))
            outputs.append(found)
            start += count
        return outputs, state

    def joined(self, outputs: Sequence[Outputs]) -> Outputs:
        """Rows one after the other; what has none is as the first call gave it."""
        return {
            name: np.concatenate([o[name] for o in outputs], self.places[name])
            if name in self.places
            else first
            for name, first in outputs[0].items()
        }

    def error(self, outputs: Sequence[Outputs], whole: Outputs, start: int = 0) -> float:
        """The greatest error of an output, relative in L2, of the rows from `start` on."""
        got = self.joined(outputs)
        assert got.keys() == (whole.keys() if start == 0 else whole.keys() & self.places.keys())
        return max(
            distance(x, whole[name].take(range(start, whole[name].shape[place]), place))
            if (place := self.places.get(name)) is not None
            else distance(x, whole[name])
            for name, x in got.items()
        )


def law(example: Example, decoder: Decoder, thorough: bool = False) -> float:
    """The greatest error over cases, splits and rollbacks. One decoder has several prompts."""
    found = []
    for case in example.cases:
        for split in splits(case, thorough):
            outputs, state = example.go_on(decoder, case, split)
            assert state.length == case.rows
            found.append(example.error(outputs, example.whole(case)))
    ragged = example.cases[0]
    found.append(rollback(example, decoder, ragged))
    return max(found)


def brief_law(example: Example, decoder: Decoder) -> float:
    """The greatest error where an older state is continued after a newer one, and the newer one then;
    and of a second prompt in the same decoder."""
    ragged, colliding = example.cases
    at = ragged.first + 2
    other = changed(example, ragged, at)
    mine, old = example.go_on(decoder, ragged, [at - 1, 1])
    next_row, newer = example.go_on(decoder, ragged, [1], at, old)
    theirs, _ = example.go_on(decoder, other, [ragged.rows - at], at, old)
    rest, state = example.go_on(decoder, ragged, [ragged.rows - at - 1], at + 1, newer)
    assert state.length == ragged.rows
    second, _ = example.go_on(decoder, colliding, [colliding.rows - 2, 2])
    return max(
        example.error([*mine, *next_row, *rest], example.whole(ragged)),
        example.error(theirs, example.whole(other), at),
        example.error(second, example.whole(colliding)),
    )


def rollback(example: Example, decoder: Decoder, case: Case) -> float:
    """An older state is continued after a newer one was made from it, and the newer one after that."""
    at = case.first + 2
    other = changed(example, case, at)
    _, old = example.go_on(decoder, case, [at - 1, 1])
    mine, newer = example.go_on(decoder, case, [1, 2], at, old)
    theirs, later = example.go_on(decoder, other, [2], at, old)
    mine += example.go_on(decoder, case, [case.rows - at - 3], at + 3, newer)[0]
    theirs += example.go_on(decoder, other, [1] * (case.rows - at - 2), at + 2, later)[0]
    again, _ = example.go_on(decoder, case, [case.rows - at], at, old)
    return max(
        example.error(mine, example.whole(case), at),
        example.error(theirs, example.whole(other), at),
        example.error(again, example.whole(case), at),
    )


@cache
def changed(example: Example, case: Case, at: int) -> Case:
    """Another case from row `at` on: what has rows is in the opposite order there."""
    inputs = dict(case.inputs)
    for name in inputs.keys() & example.places.keys():
        place = example.places[name]
        rows = [*range(at), *range(case.rows - 1, at - 1, -1)]
        inputs[name] = inputs[name].take(rows, axis=place)
    return replace(case, inputs=inputs)


def splits(case: Case, thorough: bool) -> Iterator[list[int]]:
    """One by one, all but a few at once, and by chance; the first chunk is long enough."""
    rows, after = case.rows, case.rows - case.first
    yield [case.first] + [1] * after
    if not thorough and case.name == "colliding":
        return
    yield [case.first + max(after - 3, 0)] + [1] * min(3, after)
    random = np.random.default_rng(rows)
    for _ in range(2 * thorough):
        cuts = random.choice(np.arange(case.first, rows), min(3, after), replace=False)
        yield np.diff([0, *sorted(cuts.tolist()), rows]).tolist()


def padding(batch: int, rows: int) -> Array:
    """Which slots are tokens: padded before, after, within, and not at all, in turn."""
    mask = np.ones((batch, rows), np.bool_)
    few = max(rows // 4, 1)
    for row, hidden in enumerate(mask):
        start = (0, rows - few, rows // 2, rows)[row % 4]
        hidden[start : start + few] = False
    return mask


def images(inputs: Mapping[str, Array], token: int = 7, places: int = 9) -> dict[str, Array]:
    """Marks where features of an image stand, and how many of them the rows above have."""
    pixels, ids = inputs["pixel_values"], inputs["input_ids"].copy()
    ids[:, 1::3] = token
    marked = (ids == token).sum(1)
    count = -(-int(marked.sum()) // places)
    noise = np.random.default_rng(0).standard_normal((count, *pixels.shape[1:]))
    more = {"input_ids": ids, "pixel_values": noise.astype(pixels.dtype)}
    return more | {"earlier": np.cumsum(marked) - marked}


COMPUTED = {"llava": ("input_ids", "pixel_values", "attention_mask", "earlier")}


def distance(got: Array, want: Array) -> float:
    """The L2 norm of the difference relative to what is wanted; infinite where NaNs differ."""
    if got.shape != want.shape:
        return np.inf
    a, b = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return np.inf
    error = float(np.linalg.norm((a - b)[finite]))
    return error / max(float(np.linalg.norm(b[finite])), 1e-30) if error == error else np.inf


@cache
def example(name: str) -> Example:
    """Read once in a session."""
    return Example(name)


@cache
def smallest(name: str) -> Example:
    """With one layer of each kind, where tokens, heads, their size and the batch may be one number."""
    return Example(name, **SMALLEST[name])
