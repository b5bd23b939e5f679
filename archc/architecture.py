"""How two architectures differ, one entry per idea, in the words of the two texts.

The models are first brought to the same sizes where they name them alike. Regions of the same path
are then aligned operation by operation; what stays unmatched is told by the statements it was written
in, by the functions called in its place, or by the numbers that a name stands for. Equal differences
of several regions are one entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import SequenceMatcher
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from .compiler.ir.graph import Function, Node, Program
from .compiler.ir.text import show_function
from .compiler.ir.walk import join, ranges
from .dsl.diagnostics import ArchError, Diagnostics
from .structural import Difference, compare_models
from .terms import Side, Term, region_of
from .texts import Place

if TYPE_CHECKING:
    from .api import Model

SHORT = 2  # statements of a new call that are shown themselves
WIDTH = 100
LOOSE = 0.5  # how alike two statements are that say the same thing differently


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that differs: what the first text says, and what the second; empty for nothing."""

    before: str
    after: str
    before_at: str = field(default="", compare=False)  # of equal items, where the first stands
    after_at: str = field(default="", compare=False)
    name: str = ""

    @property
    def named(self) -> str:
        return f"{self.name} {self.before or 'none'} -> {self.after or 'none'}"

    def lines(self) -> Iterator[str]:
        if self.name:
            return
        for mark, text, at in zip(
            "-+", (self.before, self.after), (self.before_at, self.after_at), strict=True
        ):
            if text:
                yield f"    {mark} {text}" + (f"    ({at})" if at else "")


@dataclass(frozen=True, slots=True)
class Entry:
    """One idea: where it holds and what differs there."""

    where: tuple[str, ...]
    items: tuple[Item, ...]

    def lines(self) -> Iterator[str]:
        named = ", ".join(i.named for i in self.items if i.name)
        head = f"{', '.join(self.where)}: {named}"
        yield from wrap(head, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        for item in self.items:
            yield from item.lines()


@dataclass(frozen=True, slots=True)
class Contrast:
    """All entries, and the full detail below them."""

    names: tuple[str, str]
    entries: tuple[Entry, ...]
    full: Difference

    @property
    def same(self) -> bool:
        return not self.entries

    def to_json(self) -> dict[str, Any]:
        entries = [
            {"where": list(e.where), "items": [asdict(i) for i in e.items]} for e in self.entries
        ]
        return {**self.full.to_json(), "same": self.same, "entries": entries}

    def __str__(self) -> str:
        before, after = self.names
        if self.same:
            return f"{before} and {after} are the same model"
        out = [f"--- {before}", f"+++ {after}"]
        for entry in self.entries:
            out += ["", *entry.lines()]
        return "\n".join(out)


def contrast(before: Model, after: Model) -> Contrast:
    """The ideas in which two models with their hyperparameters fixed differ."""
    full = compare_models(before, after)
    sizes = _sizes(before.program, after.program)
    left = _resized(before, after)
    found = _Comparison(Side(left), Side(after)).entries()
    entries = (*sizes, *found)
    if not entries and not full.same:
        entries = (Entry(("details",), (Item("", "operations differ: see --full"),)),)
    elif not entries and _text(before.program) != _text(after.program):
        entries = (Entry(("details",), (Item("", "another order or other initial values"),)),)
    return Contrast(full.names, entries, full)


def _text(program: Program) -> tuple[object, ...]:
    """All that a program means."""
    functions = tuple(show_function(f) for f in program.functions)
    return functions, program.parameters, program.decode, program.after


# ------------------------------------------------------------------------------ sizes


def _sizes(a: Program, b: Program) -> tuple[Entry, ...]:
    names = dict.fromkeys((*a.sizes, *b.sizes))
    items = tuple(
        Item(_size(a, n), _size(b, n), name=n) for n in names if a.sizes.get(n) != b.sizes.get(n)
    )
    return (Entry(("sizes",), items),) if items else ()


def _size(program: Program, name: str) -> str:
    return str(program.sizes[name]) if name in program.sizes else ""


def _resized(before: Model, after: Model) -> Model:
    """The first model with the second's sizes, where both name them and it can have them."""
    sizes = _measures(before.program) | _measures(after.program)
    ours, theirs = before.program.sizes, after.program.sizes
    shared = [n for n in theirs if n in ours and n in sizes]
    changed = {n: theirs[n] for n in shared if ours[n] != theirs[n]}
    at_once = _with(before, changed)
    if at_once is not None:
        return at_once
    for name, value in changed.items():
        before = _with(before, {name: value}) or before
    return before


def _with(model: Model, sizes: dict[str, int]) -> Model | None:
    """The model at other sizes, if it can have them."""
    resized = replace(model, overrides={**model.overrides, **sizes}) if sizes else model
    try:
        return resized if resized.program else None
    except (ArchError, Diagnostics):
        return None


def _measures(program: Program) -> frozenset[str]:
    """Hyperparameters that are sizes of axes or counts of layers, not switches."""
    axes = (axis.size for p in program.parameters for axis in p.axes)
    symbols = {name for size in axes for name in size.symbols()}
    repeats = {n.attrs.string("path") for n in program.main.nodes if n.op == "repeat"}
    bounds = {s for c in program.constraints for d in (c.left, c.right) for s in d.symbols()}
    return frozenset(symbols | repeats | bounds)


# ------------------------------------------------------------------------------ comparison


Told = tuple[str, tuple[Item, ...]]


@dataclass(slots=True)
class Flow:
    """Which labelled blocks of a function read which; what has no label passes on what it reads."""

    function: Function
    inputs: dict[str, str]
    edges: dict[str, dict[str, None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.function.nodes:
            for source in (self.function[i] for i in node.inputs):
                if source.op != "weight":  # a shared one is told where it is used
                    self._edge(self._label(node), self._label(source))
        for name, result in self.function.outputs:
            if name != "until":  # the exit of a repeat is told by itself
                self._edge("", self._label(self.function[result]))

    def _label(self, node: Node) -> str:
        if node.op == "input":
            return self.inputs.get(node.attrs.string("name"), f"%{node.id}")
        if node.op == "repeat":
            return node.attrs.string("path")
        return region_of(node).partition(".")[0] or f"%{node.id}"

    def _edge(self, reader: str, source: str) -> None:
        if reader != source:
            self.edges.setdefault(reader, {})[source] = None

    @property
    def names(self) -> frozenset[str]:
        found = {*self.edges, *(s for sources in self.edges.values() for s in sources)}
        return frozenset(n for n in found if not n.startswith("%"))

    def between(self, common: frozenset[str]) -> dict[str, tuple[str, ...]]:
        """What each of some blocks reads of the others, directly or through all else."""
        return {n: self._sources(n, common) for n in self.edges if n in common}

    def _sources(self, name: str, common: frozenset[str]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        todo, seen = list(self.edges.get(name, ())), set()
        while todo:
            source = todo.pop(0)
            if source in common:
                found[source] = None
            elif source not in seen:
                seen.add(source)
                todo += self.edges.get(source, ())
        return tuple(found)


def _carried(function: Function) -> dict[str, str]:
    """The inputs of a function by their own names, but for what it captures."""
    names = [function[i].attrs.string("name") for i in function.inputs]
    return {name: name for name in names if not name.startswith("captured.")}


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)


@dataclass(slots=True)
class _Comparison:
    left: Side
    right: Side

    def entries(self) -> Iterator[Entry]:
        yield from self._inputs()
        yield from self._exits()
        found: dict[tuple[Item, ...], dict[tuple[str, str], set[int]]] = {}
        counts: dict[str, int] = {"": 0}
        for path, at, a, b in self._functions():
            counts[path] = counts.get(path, 0) + len(at)
            for where, items in self._regions(a, b):
                found.setdefault(items, {}).setdefault((path, where), set()).update(at)
        for items, places in found.items():
            shown = [_shown(*place, at, counts[place[0]]) for place, at in places.items()]
            yield Entry(tuple(shown), items)

    def _inputs(self) -> Iterator[Entry]:
        a, b = self._declared(self.left), self._declared(self.right)
        items = tuple(
            Item("", f"input {n}", "", b[n]) if n in b else Item(f"input {n}", "", a[n])
            for n in dict.fromkeys((*a, *b))
            if (n in a) != (n in b)
        )
        if items:
            yield Entry(("inputs",), items)

    def _exits(self) -> Iterator[Entry]:
        """Repeats of both that stop in different ways, or of which one runs every layer."""
        left, right = _exits(self.left.program), _exits(self.right.program)
        for path in left:
            if left[path] != right.get(path, left[path]):
                yield Entry((path,), (Item(left[path], right[path], name="exit"),))

    def _declared(self, side: Side) -> dict[str, str]:
        main = side.program.main
        return {main[i].attrs.string("name"): side.texts.place(main[i]).at for i in main.inputs}

    def _functions(self) -> Iterator[tuple[str, list[int], Function | None, Function | None]]:
        """The main functions, and the kinds of layer that stand at one index."""
        left, right = self.left.program, self.right.program
        yield "", [], left.main, right.main
        a, b = _repeats(left), _repeats(right)
        for path in dict.fromkeys((*a, *b)):
            pairs: dict[tuple[str, str], list[int]] = {}
            kinds = a.get(path, ()), b.get(path, ())
            for i in range(max(map(len, kinds))):
                x, y = (k[min(i, len(k) - 1)] if k else "" for k in kinds)
                pairs.setdefault((x, y), []).append(i)
            for (x, y), at in pairs.items():
                ours, theirs = left.function(x) if x else None, right.function(y) if y else None
                yield path, at, ours, theirs

    def _regions(self, a: Function | None, b: Function | None) -> Iterator[Told]:
        left = self.left.regions(a) if a else {}
        right = self.right.regions(b) if b else {}
        yield from _tied(left, right, swapped=False)
        yield from _tied(right, left, swapped=True)
        told: list[Told] = []
        for region in dict.fromkeys(("", *left, *right)):
            if not region or (region in left and region in right):
                told += self._told(region, left.get(region, []), right.get(region, []))
        told += _alone(left, right, swapped=False)
        told += _alone(right, left, swapped=True)
        yield from _joined(told)
        yield from self._order(a, b)

    def _order(self, a: Function | None, b: Function | None) -> Iterator[Told]:
        """Regions that both have and that read something else there."""
        if a is None or b is None:
            return
        inner = a is not self.left.program.main
        names = (_carried(a), _carried(b)) if inner else ({}, {})
        left, right = (
            Flow(a, names[0]),
            Flow(b, dict(zip(names[1], names[0].values(), strict=False))),
        )
        common = left.names & right.names
        reads = left.between(common), right.between(common)
        items = [
            Item(
                _listed(was), _listed(reads[1].get(name, ())), name=f"{name or 'the result'} reads"
            )
            for name, was in reads[0].items()
            if set(was) != set(reads[1].get(name, ()))
        ]
        if items:
            yield "", tuple(items)

    def _told(self, region: str, x: list[Term], y: list[Term]) -> Iterator[Told]:
        numbers = _numbers(x), _numbers(y)
        masked = frozenset(n for n, v in numbers[0].items() if numbers[1].get(n, v) != v)
        a, b = _unmatched(x, y, masked)
        if not region:
            yield from self._statements(a, b)
            a, b = [t for t in a if t.chain], [t for t in b if t.chain]
        items = [Item(numbers[0][n], numbers[1][n], name=n) for n in sorted(masked)]
        items += _calls(x, y, a, b)
        items += _lines(_callers(a, x, y), _callers(b, x, y))
        if items:
            yield region, tuple(items)

    def _statements(self, a: list[Term], b: list[Term]) -> Iterator[Told]:
        """The model's own statements, each beside the one like it in the other text."""
        gone = {t.place.text: t for t in a if not t.chain}
        came = {t.place.text: t for t in b if not t.chain}
        for text in [t for t in gone if t in came]:
            del gone[text], came[text]
        for text, term in gone.items():
            other = _like(text, came) or self.right.texts.like(text, LOOSE)
            came.pop(other.text if other else "", None)
            yield term.near, (_beside(term, other),)
        for text, term in came.items():
            other = self.left.texts.like(text, LOOSE)
            yield term.near, (_flipped(_beside(term, other)),)


def _repeats(program: Program) -> dict[str, tuple[str, ...]]:
    found = {}
    for node in program.main.nodes:
        if node.op == "repeat":
            kinds = node.attrs["kinds"]
            assert isinstance(kinds, tuple)
            found[node.attrs.string("path")] = tuple(map(str, kinds))
    return found


def _exits(program: Program) -> dict[str, str]:
    """How each repeat stops before its last layer; nothing where it does not."""
    found = {}
    for node in program.main.nodes:
        if node.op == "repeat":
            along = (
                ", ".join(axis.name for axis in node.attrs.axes("exit"))
                if "exit" in node.attrs
                else None
            )
            named = f"row by row along {along}" if along else "all rows together"
            found[node.attrs.string("path")] = "" if along is None else named
    return found


def _shown(path: str, region: str, at: set[int], count: int) -> str:
    """`layers[*].norm1`, `layers[0..3, 5].attention`, `head`; `model` for what has no label."""
    index = "*" if len(at) == count else ranges(sorted(at))
    within = f"{path}[{index}]" if path else ""
    return (join(within, region) if region else within) or "model"


def _numbers(terms: Sequence[Term]) -> dict[str, str]:
    """The numbers that a region's text calls by one name throughout."""
    found: dict[str, set[str]] = {}
    for term in terms:
        for name, value in term.numbers.items():
            found.setdefault(name, set()).add(value)
    return {name: min(values) for name, values in found.items() if len(values) == 1}


def _unmatched(
    x: list[Term], y: list[Term], masked: frozenset[str]
) -> tuple[list[Term], list[Term]]:
    """What either side alone computes; operations of one text are matched first.

    One text means one thing, whatever axes it is about: a call decides how those are named.
    """
    keys: tuple[Callable[[Term], object], ...] = (
        lambda t: (t.key(masked), t.place.text),
        lambda t: t.key(masked),
        lambda t: (t.chain, t.place.text, t.bare(masked)),
    )
    for key in keys:
        x, y = _without(x, y, key), _without(y, x, key)
    return x, y


def _without(x: list[Term], y: list[Term], key: Callable[[Term], object]) -> list[Term]:
    """The terms of one list that the other has no equal of, each used once."""
    there = Counter(map(key, y))
    rest = []
    for term in x:
        there[key(term)] -= 1
        if there[key(term)] < 0:
            rest.append(term)
    return rest


def _calls(x: list[Term], y: list[Term], a: list[Term], b: list[Term]) -> list[Item]:
    """Functions called in one another's place, or more, where that changes what is computed."""
    gone, came = _new(x, y), _new(y, x)
    items: list[Item] = []
    for chain, call in list(gone.items()):
        other = next((c for c in came if c[:-1] == chain[:-1]), None)
        changed = any(_below(t.chain, c) for c in (chain, other) if c for t in (*a, *b))
        if other is not None and changed:
            name = call if call == came[other] else "calls"
            items.append(Item(chain[-1], other[-1], name=name))
        if other is not None:
            del gone[chain], came[other]
    items += [Item(text, "") for text in _summaries(gone, a)]
    return items + [Item("", text) for text in _summaries(came, b)]


def _summaries(calls: dict[tuple[str, ...], str], terms: list[Term]) -> Iterator[str]:
    """Calls that compute more than their statements tell at a glance; their terms are taken out."""
    for chain, call in calls.items():
        inside = [t for t in terms if _below(t.chain, chain)]
        if len({t.place.text for t in inside}) > SHORT:
            terms[:] = [t for t in terms if t not in inside]
            yield _valued(f"{call}, which is {chain[-1]}", inside)


def _new(x: list[Term], y: list[Term]) -> dict[tuple[str, ...], str]:
    """Chains of calls that the other side lacks, the outermost only, and how they are called."""
    known = {t.chain[:n] for t in y for n in range(len(t.chain) + 1)}
    found: dict[tuple[str, ...], str] = {}
    for term in x:
        for n in range(1, len(term.chain) + 1):
            if term.chain[:n] not in known:
                found.setdefault(term.chain[:n], term.place.calls[n - 1])
                break
    return found


def _below(chain: tuple[str, ...], prefix: tuple[str, ...]) -> bool:
    return chain[: len(prefix)] == prefix


def _lines(a: list[Term], b: list[Term]) -> Iterator[Item]:
    """Changed statements in the order they are computed, old beside new."""
    old, new = _by_statement(a), _by_statement(b)
    for text in [t for t in old if t in new]:
        before, after = (_bare_facts(side[text]) for side in (old, new))
        yield Item(before, after, name=f"`{text}`:")
        del old[text], new[text]
    for text, terms in old.items():
        yield Item(_valued(text, terms), "", terms[0].place.at)
    for text, terms in new.items():
        yield Item("", _valued(text, terms), "", terms[0].place.at)


def _bare_facts(terms: Sequence[Term]) -> str:
    """What one statement comes to, where both texts are the same."""
    sizes = [t.attrs.partition("sizes = ")[2].partition("}")[0] for t in terms]
    facts = (size or t.key(frozenset()) for size, t in zip(sizes, terms, strict=True))
    return "; ".join(dict.fromkeys(facts))


def _by_statement(terms: Sequence[Term]) -> dict[str, list[Term]]:
    found: dict[str, list[Term]] = {}
    for term in terms:
        found.setdefault(term.place.text, []).append(term)
    return found


def _callers(a: list[Term], x: list[Term], y: list[Term]) -> list[Term]:
    """Changed operations without those of a function both sides call, where its caller is told."""
    told = {t.chain for t in a}
    both = {t.chain[-1:] for t in x} & {t.chain[-1:] for t in y}
    return [t for t in a if not (t.chain[:-1] in told - {t.chain} and t.chain[-1:] in both)]


def _valued(text: str, terms: Sequence[Term]) -> str:
    """A statement with what its named numbers are."""
    named = {n: v for t in terms for n, v in t.numbers.items() if n.isidentifier() or not t.chain}
    values = ", ".join(f"{n} = {v}" for n, v in named.items())
    return f"{text}, where {values}" if values else text


def _like(text: str, terms: dict[str, Term]) -> Place | None:
    best = max(terms, key=lambda t: SequenceMatcher(None, text, t).ratio(), default="")
    alike = SequenceMatcher(None, text, best).ratio() > LOOSE
    return replace(terms[best].place, text=best) if best and alike else None


def _beside(term: Term, other: Place | None) -> Item:
    other = other or Place()
    return Item(_valued(term.place.text, [term]), other.text, term.place.at, other.at)


def _flipped(item: Item) -> Item:
    return Item(item.after, item.before, item.after_at, item.before_at, item.name)


Regions = dict[str, list[Term]]


def _tied(a: Regions, b: Regions, *, swapped: bool) -> Iterator[Told]:
    """Regions whose one product the other side makes with a weight that another region owns."""
    own = {t.key(frozenset()) for t in a.get("", [])}
    for region in [r for r in a if r not in b]:
        products = [t for t in a[region] if t.op != "weight"]
        for term in [t for t in b.get("", []) if t.weights and t.key(frozenset()) not in own]:
            if [t.loose for t in products] == [term.loose]:
                yield region, (_sharing(region, products[0], term, swapped),)
                b[""].remove(term)
                del a[region]
                break


def _sharing(region: str, term: Term, shared: Term, swapped: bool) -> Item:
    owner = shared.weights[0].rpartition(".")[0]
    item = Item(
        f"{term.place.calls[-1]}: own weight {region}.{term.weights[0]}",
        f"{shared.place.calls[-1]}: tied with {owner}",
        term.place.sites[-1],
        shared.place.sites[-1],
    )
    return _flipped(item) if swapped else item


def _joined(told: Sequence[Told]) -> Iterator[Told]:
    """What is told of one region at several places, as one."""
    found: dict[str, tuple[Item, ...]] = {}
    for region, items in told:
        found[region] = (*found.get(region, ()), *items)
    yield from found.items()


def _alone(a: Regions, b: Regions, *, swapped: bool) -> Iterator[Told]:
    """What only one side has: the outermost region, its call and its weights."""
    roots: dict[str, list[Term]] = {}
    for region in [r for r in a if r and r not in b]:
        roots.setdefault(_root(region, b), []).extend(a[region])
    for root, terms in roots.items():
        item, parent = _whole(root, terms), root.rpartition(".")[0]
        yield parent or root, (_flipped(item) if swapped else item,)


def _whole(root: str, terms: list[Term]) -> Item:
    """A region as the call that makes it and the weights that come with it."""
    first = min(terms, key=lambda t: len(t.chain))
    place, depth = first.place, root.count(".")
    call, at = [*zip(place.calls, place.sites, strict=True), (place.text, place.at)][depth]
    weights = dict.fromkeys(t.local for t in terms if t.op == "weight")
    label = root.rpartition(".")[2] if depth else ""
    text = f"{label} = {call.partition(' as ')[0]}" if label else call.partition(" as ")[0]
    text += f": weights {', '.join(weights)}" if weights else ""
    return Item(text, "", at)


def _root(region: str, others: Regions) -> str:
    """The shortest beginning of a path that the other side has nothing below."""
    parts = region.split(".")
    for n in range(1, len(parts) + 1):
        start = ".".join(parts[:n])
        if not any(o == start or o.startswith(f"{start}.") for o in others):
            return start
    return region
