"""Which known convention would make two sides agree? Each is tried on the nodes that differ.

A convention is a way in which two implementations of one idea are known to disagree: the pairing of
rotary entries, a gain of `1 + w`, a bound that is included. It is a generator of alternatives, each a
changed graph or changed weights. Whoever asks runs an alternative and judges it by the usual rule;
only one that agrees is told. Graphs here are primitive nodes in one function, as `extract` makes them.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, pairwise

import numpy as np

from ..backends.base import Array
from ..compiler.ir.graph import Attrs, Axis, Builder, Node, Parameter, Program
from ..dsl.diagnostics import ArchError
from ..dsl.dims import Dim
from ..dsl.span import Span
from .regions import places

EPSILONS = (0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-3)
SMALL = 1e-2  # a constant up to this is an epsilon


@dataclass(frozen=True, slots=True)
class Hint:
    """What would make the sides agree, and where the text says otherwise."""

    words: str
    spans: tuple[Span, ...] = ()

    def __str__(self) -> str:
        span = next(places(self.spans), None)
        at = f" ({span.source.name}:{span.line})" if span else ""
        return f"it would agree with {self.words}{at}"


@dataclass(frozen=True, slots=True)
class Setting:
    """What alternatives are of: a graph, its weights, those of its neighbours, numbers of the config."""

    program: Program
    weights: Mapping[str, Array]
    neighbours: Mapping[str, Parameter] = field(default_factory=dict)
    numbers: Collection[float] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.program.main.nodes

    def node(self, node_id: int) -> Node:
        return self.program.main[node_id]


@dataclass(frozen=True, slots=True)
class Alternative:
    """A graph and weights to try in place of those that were compared."""

    hint: Hint
    program: Program
    weights: Mapping[str, Array]


Change = Callable[[Builder, Node, tuple[int, ...]], int | None]
Convention = Callable[[Setting], Iterator[Alternative]]


def hints(setting: Setting, agrees: Callable[[Alternative], bool]) -> tuple[Hint, ...]:
    """The first alternative of each convention that agrees."""
    found = (next((a.hint for a in c(setting) if _tried(a, agrees)), None) for c in CONVENTIONS)
    return tuple(hint for hint in found if hint is not None)


def _tried(alternative: Alternative, agrees: Callable[[Alternative], bool]) -> bool:
    try:
        with np.errstate(all="ignore"):
            return agrees(alternative)
    except (ArchError, ArithmeticError, ValueError):  # it makes no program of this one
        return False


# ----------------------------------------------------------------------------------- graphs


def _changed(setting: Setting, words: str, at: Collection[int], change: Change) -> Alternative:
    """The graph with `change` in place of the nodes `at`, whose types it keeps."""
    main, builder, made = setting.program.main, Builder("main"), dict[int, int]()
    for node in main.nodes:
        inputs = tuple(made[i] for i in node.inputs)
        new = change(builder, node, inputs) if node.id in at else None
        made[node.id] = _copied(builder, node, inputs) if new is None else new
    function = builder.finish((name, made[i]) for name, i in main.outputs)
    program = setting.program.with_functions([replace(function, name=main.name)])
    spans = setting.node(min(at)).spans
    return Alternative(Hint(words, spans), program, setting.weights)


def _copied(builder: Builder, node: Node, inputs: tuple[int, ...], **attrs: object) -> int:
    changed = Attrs({**node.attrs, **attrs})  # type: ignore[dict-item]
    return builder.add(node.op, inputs, changed, node.types, node.origins, node.hint)


def _valued(value: object, builder: Builder, node: Node, inputs: tuple[int, ...]) -> int:
    return _copied(builder, node, inputs, value=value)


def _with_op(op: str, builder: Builder, node: Node, inputs: tuple[int, ...]) -> int:
    return builder.add(op, inputs, node.attrs, node.types, node.origins)


def _operand(at: int, builder: Builder, node: Node, inputs: tuple[int, ...]) -> int:
    return inputs[at]


def _number(builder: Builder, like: Node, value: float) -> int:
    return builder.add("const", (), {"dtype": like.type.dtype, "value": value})


def _constant(node: Node) -> float | None:
    value = node.attrs["value"] if node.op == "const" else None
    return value if isinstance(value, float) else None


def bounds(s: Setting) -> Iterator[Alternative]:
    """`<` and `<=`; a window of one more or one less."""
    other = {"le": "lt", "lt": "le"}
    sign = {"le": "`<=`", "lt": "`<`"}
    for node in (n for n in s.nodes if n.op in other):
        new = other[node.op]
        yield _changed(
            s,
            f"{sign[new]} in place of {sign[node.op]}",
            {node.id},
            partial(_with_op, new),
        )
        for number in (s.node(i) for i in node.inputs if s.node(i).op == "const"):
            if node.type.dtype != "bool" or number.type.dtype != "int":
                continue
            value = number.attrs["value"]
            assert isinstance(value, int | Dim)
            for by, word in ((1, "more"), (-1, "less")):
                yield _changed(
                    s,
                    f"a bound of one {word}",
                    {number.id},
                    partial(_valued, value + by),
                )


def pairing(s: Setting) -> Iterator[Alternative]:
    """Rotary pairs of neighbours, or of one entry from each half."""
    users = s.program.main.users()
    turned = [n for n in s.nodes if n.op == "split" and _is_paired(n)]
    turned = [n for n in turned if {s.node(u).op for u in users[n.id]} == {"pick"}]
    if not turned:
        return
    first, _ = turned[0].attrs.axes("into")
    words = "neighbours" if first.size.constant == 2 else "halves"

    def change(b: Builder, n: Node, inputs: tuple[int, ...]) -> int:
        """Entries are dealt out first, so that the pairs are the other ones."""
        axis, into = n.attrs.axis("axis"), n.attrs.axes("into")
        parted = b.add("split", inputs, {"axis": axis, "into": into[::-1]})
        dealt = b.add("merge", (parted,), {"axes": into, "into": axis})
        return b.add("split", (dealt,), n.attrs, None, n.origins, n.hint)

    yield _changed(s, f"rotary pairs of {words}", {n.id for n in turned}, change)


def _is_paired(node: Node) -> bool:
    into = node.attrs.axes("into")
    return len(into) == 2 and any(axis.size.constant == 2 for axis in into)


def gates(s: Setting) -> Iterator[Alternative]:
    """SiLU and the three GELUs: x times a gate of x."""
    for node in s.nodes:
        name, x = _gated(s, node) or ("", 0)
        for words, make in GATES.items():
            if name not in ("", words):
                yield _gate(s, node, x, words, make)


Gate = Callable[[Builder, Node, int], int]  # adds 2 gate(x) - 1


def _gate(s: Setting, node: Node, x: int, words: str, make: Gate) -> Alternative:
    places_of = {n.id: k for k, n in enumerate(s.nodes)}  # builders number nodes from 0

    def change(b: Builder, n: Node, inputs: tuple[int, ...]) -> int:
        signed = make(b, n, places_of[x])
        if n.op != "sigmoid":
            return signed
        half = b.add("mul", (signed, _number(b, n, 0.5)))
        return b.add("add", (half, _number(b, n, 0.5)))

    return _changed(s, f"{words} in place of this activation", {node.id}, change)


def _gated(s: Setting, node: Node) -> tuple[str, int] | None:
    """The name of the activation whose gate a node is, and its operand."""
    if node.op not in ("sigmoid", "erf", "tanh"):
        return None
    inner = s.node(node.inputs[0])
    factors = [_constant(s.node(i)) for i in inner.inputs] if inner.op == "mul" else []
    number = next((f for f in factors if f is not None), None)
    operand = next((i for i, f in zip(inner.inputs, factors, strict=False) if f is None), None)
    if node.op == "sigmoid":
        quick = number is not None and abs(number - 1.702) < SMALL
        return ("gelu_quick", operand) if quick and operand is not None else ("silu", inner.id)
    if number is None or operand is None:
        return None
    if node.op == "erf":
        return ("gelu", operand)
    cubic = s.node(operand)
    plain = [i for i in cubic.inputs if s.node(i).op != "mul"]
    plain = plain or [i for i in cubic.inputs if s.node(i).op == "mul"][:1]
    return ("gelu_tanh", plain[0]) if cubic.op == "add" and plain else None


def _sigmoid_of(factor: float) -> Gate:
    def make(b: Builder, n: Node, x: int) -> int:
        scaled = b.add("mul", (x, _number(b, n, factor / 2)))
        return b.add("tanh", (scaled,))  # 2 sigmoid(z) - 1 = tanh(z / 2)

    return make


def _erf(b: Builder, n: Node, x: int) -> int:
    return b.add("erf", (b.add("mul", (x, _number(b, n, 0.5**0.5))),))


def _tanh(b: Builder, n: Node, x: int) -> int:
    square = b.add("mul", (x, x))
    cubic = b.add("mul", (b.add("mul", (square, x)), _number(b, n, 0.044715)))
    scaled = b.add("mul", (b.add("add", (x, cubic)), _number(b, n, (2 / math.pi) ** 0.5)))
    return b.add("tanh", (scaled,))


GATES: dict[str, Gate] = {
    "gelu": _erf,
    "gelu_tanh": _tanh,
    "gelu_quick": _sigmoid_of(1.702),
    "silu": _sigmoid_of(1.0),
}


def epsilons(s: Setting) -> Iterator[Alternative]:
    """Another epsilon, none, or one outside of the root."""
    numbers = dict.fromkeys((*s.numbers, *EPSILONS))
    for node in s.nodes:
        value = _constant(node)
        if value is None or not 0 <= value <= SMALL:
            continue
        for other in (x for x in numbers if x != value):
            yield _changed(
                s,
                f"{other:g} in place of {value:g}" if other else f"no {value:g} here",
                {node.id},
                partial(_valued, other),
            )
    for node in s.nodes:
        yield from _moved(s, node)


def _moved(s: Setting, node: Node) -> Iterator[Alternative]:
    """1 / (sqrt(x) + eps) for rsqrt(x + eps), and sqrt(x + eps) for sqrt(x) + eps."""
    sum_ = s.node(node.inputs[0]) if node.op == "rsqrt" else node
    constants = [i for i in sum_.inputs if _constant(s.node(i)) is not None]
    if sum_.op != "add" or len(constants) != 1:
        return
    place = {n.id: k for k, n in enumerate(s.nodes)}  # builders number nodes from 0
    (inner,) = (s.node(i) for i in sum_.inputs if i not in constants)
    eps = place[constants[0]]

    def out(b: Builder, n: Node, inputs: tuple[int, ...]) -> int:
        below = b.add("add", (b.add("sqrt", (place[inner.id],)), eps))
        return b.add("div", (_number(b, n, 1.0), below))

    def into(b: Builder, n: Node, inputs: tuple[int, ...]) -> int:
        return b.add("sqrt", (b.add("add", (place[inner.inputs[0]], eps)),))

    if node.op == "rsqrt":
        yield _changed(s, "the epsilon outside of the root", {node.id}, out)
    elif inner.op == "sqrt":
        yield _changed(s, "the epsilon inside of the root", {node.id}, into)


def scales(s: Setting) -> Iterator[Alternative]:
    """Scores that are or are not divided by the root of a size."""
    dots = (n for n in s.nodes if n.op == "dot")
    sizes = _sizes(s, (axis for node in dots for axis in node.attrs.axes("axes")))
    for node in (n for n in s.nodes if n.op == "softmax"):
        for size in sizes:
            for power in (-0.5, 0.5, -1.0):
                words = {-0.5: "multiplied by", 0.5: "not multiplied by", -1.0: "divided by"}
                shown = f"{size}" if power == -1.0 else f"{size} ** -0.5"

                def change(
                    b: Builder, n: Node, inputs: tuple[int, ...], by: float = size**power
                ) -> int:
                    scaled = b.add("mul", (inputs[0], _number(b, n, by)))
                    return _copied(b, n, (scaled,))

                yield _changed(s, f"scores {words[power]} {shown}", {node.id}, change)


def _sizes(s: Setting, axes: Iterable[Axis]) -> list[int]:
    """Those of `axes` that no call decides and that scale something, in order."""
    known = s.program.sizes
    found = {a.size.evaluate(known) for a in axes if a.size.symbols() <= known.keys()}
    return sorted(found - {0, 1})


def factors(s: Setting) -> Iterator[Alternative]:
    """A result times the root of a size, as embeddings are taken (Vaswani et al., 2017, 3.4), or a
    power of two, by which a class may keep its stream in the range of a half format."""
    for result in dict.fromkeys(i for _, i in s.program.main.outputs):
        kind = s.node(result).type
        sizes = _sizes(s, kind.axes)
        by = {f"{size} ** {power}": size**power for size in sizes for power in (0.5, -0.5)}
        by |= {f"{factor:g}": factor for k in (1, 2, 3) for factor in (0.5**k, 2.0**k)}
        for words, factor in by.items() if kind.dtype not in ("int", "bool") else ():

            def change(b: Builder, n: Node, inputs: tuple[int, ...], by: float = factor) -> int:
                return b.add("mul", (_copied(b, n, inputs), _number(b, n, by)))

            yield _changed(s, f"the result multiplied by {words}", {result}, change)


def gains(s: Setting) -> Iterator[Alternative]:
    """A gain of `1 + w`, or of `w`."""

    def more(b: Builder, n: Node, inputs: tuple[int, ...]) -> int:
        return b.add("add", (_copied(b, n, inputs), _number(b, n, 1.0)))

    at_load = {i for n in s.nodes if n.op == "derived" for i in n.inputs}
    for node in s.nodes:
        if node.op == "weight" and len(node.axes) == 1 and node.id not in at_load:
            yield _changed(s, f"a gain of `1 + {node.hint or 'w'}`", {node.id}, more)
        if node.op == "add" and len(node.axes) == 1:
            ones = [i for i in node.inputs if s.node(i).attrs.get("value") in (1, 1.0)]
            if len(ones) == 1:
                kept = next(k for k, i in enumerate(node.inputs) if i not in ones)
                yield _changed(s, "a gain without `1 +`", {node.id}, partial(_operand, kept))


# ---------------------------------------------------------------------------------- weights


def transposed(s: Setting) -> Iterator[Alternative]:
    """A square matrix read the other way."""
    for path, matrix in _matrices(s):
        rows, columns = matrix.shape
        if rows == columns:
            yield _read(s, f"`{path}` transposed", {path: matrix.T})


def rows(s: Setting) -> Iterator[Alternative]:
    """Rows counted in another order: heads inside of entries, or pairs inside of halves."""
    for path, matrix in _matrices(s):
        for inner in _inner_sizes(s, path):
            outer = len(matrix) // inner
            for a, b in ((outer, inner), (inner, outer)):
                turned = matrix.reshape(a, b, -1).swapaxes(0, 1)
                words = f"the rows of `{path}` as ({b}, {a}) in place of ({a}, {b})"
                yield _read(s, words, {path: turned})
            if inner % 2 == 0:
                pairs = matrix.reshape(outer, 2, inner // 2, -1).swapaxes(1, 2)
                yield _read(
                    s, f"the halves of each head's rows of `{path}` alternating", {path: pairs}
                )
                pairs = matrix.reshape(outer, inner // 2, 2, -1).swapaxes(1, 2)
                yield _read(s, f"each head's rows of `{path}` in halves", {path: pairs})


def exchanged(s: Setting) -> Iterator[Alternative]:
    """Two weights of one block in each other's place."""
    own = [p.path for p in s.program.parameters]
    done = set[frozenset[str]]()
    for path in own:
        for other in _alike(s, path):
            pair = frozenset((path, other))
            if other != path and pair not in done:
                done.add(pair)
                words = f"`{path}` and `{other}` exchanged"
                yield _read(s, words, {path: s.weights[other], other: s.weights[path]})
                first, second = (p.rpartition(".")[0] for p in (path, other))
                changed = _swapped(s, path, other)
                if len(changed) > 2:
                    yield _read(s, f"`{first}` and `{second}` exchanged", changed)


def _swapped(s: Setting, a: str, b: str) -> dict[str, Array]:
    """Two weights exchanged, and the other weights of their labels with them."""
    first, second = a.rpartition(".")[0], b.rpartition(".")[0]
    names = [p.rpartition(".")[2] for p in s.neighbours if p.rpartition(".")[0] == first]
    pairs = [(f"{first}.{n}", f"{second}.{n}") for n in names if f"{second}.{n}" in s.neighbours]
    alike = [p for p in pairs if _size(s, p[0]) == _size(s, p[1])]
    return {x: s.weights[y] for pair in alike for x, y in (pair, pair[::-1])}


def joint(s: Setting) -> Iterator[Alternative]:
    """Parts of a fused matrix, head by head in place of one after the other, or the other way."""
    groups = dict.fromkeys(tuple(_alike(s, p.path)) for p in s.program.parameters)
    for group in groups:
        for first, last in combinations(range(len(group) + 1), 2):
            if last - first > 1:
                yield from _regrouped(s, group[first:last])


def _regrouped(s: Setting, parts: Sequence[str]) -> Iterator[Alternative]:
    whole = np.concatenate([_matrix(s, p) for p in parts])
    count, length = len(parts), len(whole) // len(parts)
    named = ", ".join(f"`{p}`" for p in parts)
    for inner in (*_inner_sizes(s, parts[0]), 1):
        outer = length // inner
        for shape, words in (
            ((count, outer, inner), "one after the other in the file"),
            ((outer, count, inner), "head by head in the file"),
        ):
            back = whole.reshape(*shape, -1).swapaxes(0, 1).reshape(whole.shape)
            pieces = dict(zip(parts, np.split(back, count), strict=True))
            yield _read(s, f"the rows of {named} {words}", pieces)


def _matrices(s: Setting) -> Iterator[tuple[str, Array]]:
    for parameter in s.program.parameters:
        if len(parameter.grouping) == 2:
            yield parameter.path, _matrix(s, parameter.path)


def _matrix(s: Setting, path: str) -> Array:
    """A weight by its stored rows; a vector has one column."""
    parameter, weight = _parameter(s, path), s.weights[path]
    first = parameter.grouping[0] if parameter.grouping else parameter.axes
    sizes = [a.size.evaluate(s.program.sizes) for a in first]
    return weight.reshape(math.prod(sizes), -1)


def _parameter(s: Setting, path: str) -> Parameter:
    own = {p.path: p for p in s.program.parameters}
    return own.get(path) or s.neighbours[path]


def _inner_sizes(s: Setting, path: str) -> list[int]:
    """How many rows belong together, by the axes that the rows are made of."""
    first = _parameter(s, path).grouping[0]
    sizes = [a.size.evaluate(s.program.sizes) for a in first]
    inner = [math.prod(sizes[k:]) for k, _ in enumerate(pairwise(sizes), start=1)]
    return sorted({n for n in inner if 1 < n < math.prod(sizes)})


def _alike(s: Setting, path: str) -> list[str]:
    """The weights of the same block that are as large and called the same, in order."""
    if path not in s.neighbours:
        return []
    block, own = path.rpartition(".")[0].rpartition(".")[0], path.rpartition(".")[2]
    size = _size(s, path)
    return [
        p
        for p, parameter in s.neighbours.items()
        if p.rpartition(".")[0].rpartition(".")[0] == block
        and p.rpartition(".")[2] == own
        and len(parameter.grouping) == 2
        and _size(s, p) == size
    ]


def _size(s: Setting, path: str) -> tuple[int, ...]:
    """That of each stored dimension of a weight."""
    parameter = s.neighbours[path]
    groups = parameter.grouping or tuple((axis,) for axis in parameter.axes)
    return tuple(math.prod(a.size.evaluate(s.program.sizes) for a in g) for g in groups)


def _read(s: Setting, words: str, changed: Mapping[str, Array]) -> Alternative:
    """Other values for some weights, in the shapes that they have."""
    shapes = {p: s.weights[p].shape for p in changed}
    fitting = {p: np.ascontiguousarray(v).reshape(shapes[p]) for p, v in changed.items()}
    spans = [n.spans for n in s.nodes if n.op == "weight" and n.attrs["path"] in changed]
    hint = Hint(words, spans[0] if spans else ())
    return Alternative(hint, s.program, ChainMap(fitting, s.weights))  # type: ignore[arg-type]


CONVENTIONS: Sequence[Convention] = (
    epsilons,
    gates,
    pairing,
    bounds,
    scales,
    factors,
    gains,
    exchanged,
    joint,
    transposed,
    rows,
)
