"""A checkpoint block spread over a program: one `Entry` per file tensor a line can name.

Scopes run over the layers (or bank entries) that the program has; a line whose weights all do not
exist vanishes. Nothing is read from a file here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from ...dsl import syntax as syn
from ...dsl.errors import PartialLine, UnknownName
from ..ir.graph import Program
from .arrangement import Arrangement
from .fold import Fold, Value
from .layout import LineReader, Named, WeightTable

# A hole of a tensor name: an index, or an affine form of it as files count what is several to a layer.
_HOLE = re.compile(r"\{(?:(?P<times>\d+) ?\* ?)?(?P<index>[^\W\d]\w*)(?: ?\+ ?(?P<plus>\d+))?\}")


@dataclass(frozen=True, slots=True)
class Entry:
    """File tensor `name` by one line: `tree` is its layout, none when all weights are `absent`."""

    name: str
    line: syn.TensorLine
    tree: Arrangement | None
    dims: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ignored:
    """A pattern of tensors that need not be read."""

    pattern: str
    line: syn.IgnoreLine


@dataclass(frozen=True, slots=True)
class Lines:
    """All entries of a block, and the tensors it ignores."""

    entries: tuple[Entry, ...]
    ignored: tuple[Ignored, ...]

    def ignores(self, tensor: str) -> syn.IgnoreLine | None:
        """The line by which a tensor need not be read."""
        lines = (item.line for item in self.ignored if fnmatchcase(tensor, item.pattern))
        return next(lines, None)

    def live(self) -> Iterator[Entry]:
        """Entries with weights: the plain ones, and aliases whose tensor no plain one names."""
        plain = {e.name for e in self.entries if e.tree is not None and not e.line.alias}
        for entry in self.entries:
            if entry.tree is not None and not (entry.line.alias and entry.name in plain):
                yield entry


@dataclass(frozen=True, slots=True)
class _Scope:
    """What leads every weight path and every tensor name, and the numbers in reach: indices, sizes."""

    path: str = ""
    file: str = ""
    indices: Mapping[str, Value] = field(default_factory=dict)

    def text(self, template: str, line: syn.Node) -> str:
        """`template` with `{i}` and `{2 * i + 1}` filled in, after the leading part."""

        def fill(hole: re.Match[str]) -> str:
            index = self.indices.get(hole["index"])
            if not isinstance(index, int):
                known = tuple(self.indices)
                raise UnknownName(span=line.span, name=hole["index"], known=known)
            return str(int(hole["times"] or 1) * index + int(hole["plus"] or 0))

        return self.file + _HOLE.sub(fill, template)


def expand(
    checkpoint: syn.CheckpointDef, program: Program, tensors: Collection[str] | None = None
) -> Lines:
    """The block's lines for `program`. `tensors` are the names a file has, none to write one.

    An optional prefix applies when some tensor starts with it, and always when writing.
    """
    spread = _Spread(WeightTable(program), tensors)
    outermost = _Scope(indices=program.sizes)
    found = tuple(spread.lines(checkpoint.lines, outermost))
    entries = tuple(item for item in found if isinstance(item, Entry))
    return Lines(entries, tuple(item for item in found if isinstance(item, Ignored)))


@dataclass(frozen=True, slots=True)
class _Spread:
    weights: WeightTable
    tensors: Collection[str] | None

    def lines(
        self, lines: Iterable[syn.CheckpointLine], outer: _Scope
    ) -> Iterator[Entry | Ignored]:
        scope = outer
        for line in lines:
            if isinstance(line, syn.PrefixLine):
                scope = self.prefixed(line, outer)
            elif isinstance(line, syn.ScopeLine):
                for inner in self.scopes(line, scope):
                    yield from self.lines(line.lines, inner)
            elif isinstance(line, syn.TensorLine):
                yield self.entry(line, scope)
            elif isinstance(line, syn.IgnoreLine) and not line.config:
                yield from (Ignored(scope.text(p, line), line) for p in line.patterns)

    def prefixed(self, line: syn.PrefixLine, outer: _Scope) -> _Scope:
        """A prefix leads the lines below it in the same braces, up to the next prefix.

        Of several it is the first that leads some tensor, and the first when writing.
        """
        files = [outer.file + prefix for prefix in line.prefixes]
        names = self.tensors or ()
        found = [file for file in files if any(name.startswith(file) for name in names)]
        if self.tensors is not None and line.optional and not found:
            return outer
        return replace(outer, file=(found or files)[0])

    def scopes(self, line: syn.ScopeLine, outer: _Scope) -> Iterator[_Scope]:
        """One scope per layer or bank entry that matches the line's path."""
        for path, indices in self.matches(line.path, outer.path, outer.indices):
            inner = replace(outer, path=f"{path}.", indices=indices)
            yield replace(inner, file=inner.text(line.prefix, line))

    def matches(
        self, expr: syn.Expr, lead: str, indices: Mapping[str, Value]
    ) -> Iterator[tuple[str, dict[str, Value]]]:
        """Paths of the program that `expr` names, with the indices each one binds."""
        if isinstance(expr, syn.Name):
            yield lead + expr.name, dict(indices)
        elif isinstance(expr, syn.Attribute):
            for path, bound in self.matches(expr.value, lead, indices):
                yield f"{path}.{expr.name}", bound
        elif isinstance(expr, syn.Index) and isinstance(expr.items[0], syn.AxisRef):
            for path, bound in self.matches(expr.value, lead, indices):
                yield from self.indexed(path, expr.items[0], bound)

    def indexed(
        self, path: str, item: syn.AxisRef, bound: dict[str, Value]
    ) -> Iterator[tuple[str, dict[str, Value]]]:
        assert item.value is not None  # only `...` has none
        number = Fold(bound)(item.value)
        if isinstance(number, int):
            yield f"{path}[{number}]", bound
            return
        for index in self.numbers(path):
            yield f"{path}[{index}]", {**bound, str(item.name): index}

    def numbers(self, path: str) -> Iterable[int]:
        """Which `path[n]` exist: layers by their own weights, else entries of a stacked bank."""
        pattern = re.compile(re.escape(path) + r"\[(\d+)\]")
        matches = (pattern.match(weight) for weight in self.weights.parameters)
        layers = sorted({int(match[1]) for match in matches if match})
        return layers or range(self.weights.entries(path))

    def entry(self, line: syn.TensorLine, scope: _Scope) -> Entry:
        reader = LineReader(self.weights, scope.path, scope.indices)
        name = scope.text(line.file_name, line)
        paths = tuple(reader.weight_paths(line.value))
        absent = tuple(path for path in paths if self.weights.find(path) is None)
        if not absent:
            return _live(name, line, reader.stored(line))
        if len(absent) < len(paths):
            present = tuple(path for path in paths if path not in absent)
            raise PartialLine(span=line.span, tensor=name, present=present, absent=absent)
        return Entry(name, line, None, absent=absent)


def _live(name: str, line: syn.TensorLine, stored: Named) -> Entry:
    return Entry(name, line, stored.tree, tuple(map(str, stored.sides)))
