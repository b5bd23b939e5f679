"""How two models differ as texts of one meaning: hyperparameters, parameters, operations.

Both are elaborated and their graphs as written are aligned function by function and region by
region; within a region operations are aligned as lines of a text are, each described by its op,
attributes, type and the kinds of its operands, so that a change is not seen again downstream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

from .compiler.ir.graph import Function, Node, Parameter, Program
from .compiler.ir.text import show_node
from .diff.regions import folded, in_std, places

if TYPE_CHECKING:
    from .api import Model

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: what the first model has there, and what the second; empty for nothing."""

    where: str
    before: str
    after: str
    before_at: str = ""
    after_at: str = ""

    @property
    def kind(self) -> str:
        if not self.before:
            return "added"
        return "changed" if self.after else "removed"

    def lines(self) -> Iterator[str]:
        sides = ((self.before, self.before_at), (self.after, self.after_at))
        for mark, (text, place) in zip("-+", sides, strict=True):
            if text:
                yield f"  {mark} {text}" + (f"    {place}" if place else "")


@dataclass(frozen=True, slots=True)
class Difference:
    """All changes from the first model to the second."""

    names: tuple[str, str]
    hyperparameters: tuple[Change, ...]
    parameters: tuple[Change, ...]
    operations: tuple[Change, ...]

    @property
    def same(self) -> bool:
        return not (self.hyperparameters or self.parameters or self.operations)

    def to_json(self) -> dict[str, Any]:
        def plain(changes: Sequence[Change]) -> list[dict[str, str]]:
            return [{"kind": change.kind, **asdict(change)} for change in changes]

        return {
            "models": list(self.names),
            "same": self.same,
            "hyperparameters": plain(self.hyperparameters),
            "parameters": plain(self.parameters),
            "operations": plain(self.operations),
        }

    def __str__(self) -> str:
        before, after = self.names
        if self.same:
            return f"{before} and {after} are the same model"
        out = [f"--- {before}", f"+++ {after}"]
        for title, changes in (
            ("hyperparameters", self.hyperparameters),
            ("parameters", self.parameters),
            ("operations", self.operations),
        ):
            out += ["", f"{title}: {len(changes) or 'the same'}"]
            out += _grouped(changes)
        return "\n".join(out)


def _grouped(changes: Sequence[Change]) -> Iterator[str]:
    """Changes under the region they are in, which is named once."""
    heading = ""
    for change in changes:
        if change.where != heading:
            heading = change.where
            yield f" {heading}"
        yield from change.lines()


def compare_models(before: Model, after: Model) -> Difference:
    """The structural difference of two models with their hyperparameters fixed."""
    a, b = before.program, after.program
    return Difference(
        (_title(before), _title(after)),
        tuple(_sizes(a.sizes, b.sizes)),
        tuple(_parameters(a, b)),
        tuple(_operations(a, b)),
    )


def _title(model: Model) -> str:
    return f"{model.definition.name} ({model.definition.span.source.name})"


def _sizes(a: Mapping[str, int], b: Mapping[str, int]) -> Iterator[Change]:
    for name in dict.fromkeys((*a, *b)):
        if a.get(name) != b.get(name):
            values = (f"{name} = {x[name]}" if name in x else "" for x in (a, b))
            yield Change("", *values)


def _parameters(a: Program, b: Program) -> Iterator[Change]:
    """Paths and shapes; layers that changed alike are one `layers[0..2]`."""
    left, right = _shapes(a), _shapes(b)
    changed = [
        (path, (left.get(path, ""), right.get(path, "")))
        for path in dict.fromkeys((*left, *right))
        if left.get(path) != right.get(path)
    ]
    for label, members in folded(changed):
        shapes = changed[members[0]][1]
        yield Change("", *(f"{label}{shape}" if shape else "" for shape in shapes))


def _shapes(program: Program) -> dict[str, str]:
    return {p.path: _shape(p, program.sizes) for p in program.parameters}


def _shape(parameter: Parameter, sizes: Mapping[str, int]) -> str:
    axes = ", ".join(f"{axis.name}: {axis.size.evaluate(sizes)}" for axis in parameter.axes)
    return f"[{axes}]" if parameter.trained else f"[{axes}], a buffer"


def _operations(a: Program, b: Program) -> Iterator[Change]:
    names = dict.fromkeys(f.name for program in (a, b) for f in program.functions)
    for name in names:
        left, right = _regions(a, name), _regions(b, name)
        for region in _merged(list(left), list(right)):
            where = f"{name}, {region}" if region else name
            yield from _aligned(where, left.get(region, []), right.get(region, []))


@dataclass(frozen=True, slots=True)
class _Line:
    """An operation as a line of text, and where it was written."""

    op: str
    text: str
    place: str


def _regions(program: Program, name: str) -> dict[str, list[_Line]]:
    """The operations of a function by region, each region in the order it runs."""
    found: dict[str, list[_Line]] = {}
    functions = {f.name: f for f in program.functions}
    for node in functions[name].nodes if name in functions else ():
        region = node.origins[0].region if node.origins else ""
        found.setdefault(region, []).append(_line(functions[name], node))
    return found


def _line(function: Function, node: Node) -> _Line:
    operands = ", ".join(_operand(function[i]) for i in node.inputs)
    _, text = show_node(replace(node, inputs=())).split(" = ", 1)
    shown = f"{node.op}({operands}){text.removeprefix(node.op)}"
    return _Line(node.op, shown.strip(), _place(node))


def _operand(node: Node) -> str:
    """What is read, without where it comes from: a name for sources, the op for the others."""
    named = {"weight": "path", "input": "name"}.get(node.op)
    return node.attrs.string(named) if named else node.op


def _place(node: Node) -> str:
    spans = node.origins[0].spans if node.origins else ()
    shown = [f"{s.source.name}:{s.line}" for s in places(spans)]
    return f"{shown[0]} ({shown[1]})" if len(shown) > 1 and in_std(spans[0]) else "".join(shown[:1])


def _merged(left: Sequence[T], right: Sequence[T]) -> list[T]:
    """Both orders in one: what only the right has stands where it stands there."""
    out: list[T] = []
    for _, i, j, k, m in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        out += dict.fromkeys((*left[i:j], *right[k:m]))
    return list(dict.fromkeys(out))


def _aligned(where: str, left: Sequence[_Line], right: Sequence[_Line]) -> Iterator[Change]:
    texts = [x.text for x in left], [x.text for x in right]
    for tag, i, j, k, m in SequenceMatcher(None, *texts, autojunk=False).get_opcodes():
        if tag != "equal":
            yield from _paired(where, left[i:j], right[k:m])


def _paired(where: str, left: Sequence[_Line], right: Sequence[_Line]) -> Iterator[Change]:
    """Lines that replaced one another; two that have the same op are one changed line."""
    alike = SequenceMatcher(None, [x.op for x in left], [x.op for x in right], autojunk=False)
    for tag, i, j, k, m in alike.get_opcodes():
        for a, b in zip_longest(left[i:j], right[k:m]):
            if tag == "equal" or a is None or b is None:
                yield _change(where, a, b)
            else:
                yield _change(where, a, None)
                yield _change(where, None, b)


def _change(where: str, a: _Line | None, b: _Line | None) -> Change:
    texts = (x.text if x else "" for x in (a, b))
    return Change(where, *texts, *(x.place if x else "" for x in (a, b)))
