"""Which modules of a published class compute which regions of a program: the checkpoint map says.

A line that reads the tensor `model.layers.0.mlp.up_proj.weight` into `layers[0].ffn.up.w` says that
the module `model.layers.0.mlp.up_proj` is the region `layers[0].ffn.up`. A module whose tensors
make up all weights of a region is that region; one whose tensor holds the weights of several
regions, as a fused projection's does, is a part of each. What a region *returns* is its last value
that is read outside; `Layout` says where its features are in the module's array.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from ..backends.base import Array, ValueKey
from ..compiler.checkpoint.arrangement import Arrangement, claims, inside
from ..compiler.checkpoint.lines import Entry, Lines
from ..compiler.extract import SOURCES
from ..compiler.ir.graph import Axis, Function, Node, Parameter, Program
from .names import Owned
from .regions import UNPLACED
from .report import LeftOut
from .values import Values

FLOATS = ("float", "f32", "f64")


@dataclass(frozen=True, slots=True)
class Region:
    """A region, the module that it is, and the nodes of `path` that it consists of.

    `reads` are the values it is given and `exits` those it returns, in the order of the text.
    `forms` are other values that the module may return for an exit: what constants and casts make of
    it at once. `entries` are the checkpoint's lines for tensors that the module itself has. Of a
    module that is `shared` the region is a part, which the bracket of these lines cuts out.
    """

    name: str
    module: str
    path: str
    inside: tuple[int, ...]
    reads: tuple[ValueKey, ...]
    exits: tuple[ValueKey, ...]
    forms: Mapping[ValueKey, tuple[ValueKey, ...]]
    entries: tuple[Entry, ...]
    shared: bool = False

    @property
    def is_layer(self) -> bool:
        return self.name == self.path


@dataclass(frozen=True, slots=True)
class Matched:
    """Regions in the order they end, inner before outer; and those that are no part of their module."""

    regions: Sequence[Region]
    left_out: Sequence[LeftOut]


def matched(
    values: Values, lines: Lines, modules: Mapping[str, Owned], used: Collection[str]
) -> Matched:
    """The regions that are modules, or parts of modules that several share.

    `modules` gives the tensors that each module has; `used` are those of the file. A bank's weights
    make no region: of which entries its values are differs from token to token.
    """
    entries = [e for e in lines.live() if e.name in used and not e.line.alias]
    weights = {e.name: {c.path for c in claims(e.tree)} for e in entries if e.tree is not None}
    banks = {p.path for p in values.program.parameters if p.banks}
    found: dict[str, Region] = {}
    parts: dict[str, Region] = {}
    left_out: list[LeftOut] = []
    for module, tensors in modules.items():
        inside = weights.keys() & tensors.tensors
        read = {path for name in inside for path in weights[name]}
        if not read or read <= banks:
            continue
        elsewhere = {p: n for n in weights.keys() - inside for p in weights[n]}
        own = tuple(e for e in entries if e.name in tensors.own)
        name = _region(read)
        if name and not any(is_below(path, name) for path in elsewhere):
            region = _made(values, name, module, own)
            if region is not None:  # of modules with the same tensors the innermost comes last
                found[name] = region
        elif len(own) == len(inside):
            for part in dict.fromkeys(path.rpartition(".")[0] for path in sorted(read)):
                other = next((n for path, n in elsewhere.items() if is_below(path, part)), None)
                region = _made(values, part, module, own, shared=True) if part else None
                if region is not None and other is not None:
                    why = f"it also reads `{other}`, which the module has not"
                    left_out.append(LeftOut(part, module, why))
                elif region is not None:
                    parts[part] = region
    order = {key: i for i, key in enumerate(values.order)}
    regions = (parts | found).values()
    ordered = sorted(regions, key=lambda r: (order.get(r.exits[-1], -1), -len(r.name)))
    return Matched(ordered, left_out)


def _region(weights: Collection[str]) -> str:
    """What the paths of weights have in common; of one weight, all but its own name."""
    levels = zip(*(path.split(".")[:-1] for path in weights), strict=False)
    return ".".join(level[0] for level in takewhile(lambda level: len({*level}) == 1, levels))


def is_below(path: str, region: str) -> bool:
    """Whether a path or a region is inside of a region."""
    return path.startswith((f"{region}.", f"{region}["))


def _made(
    values: Values, name: str, module: str, own: tuple[Entry, ...], *, shared: bool = False
) -> Region | None:
    """The region in the program, none where no node is of it."""
    paths = [p for p in values.functions if p in ("", name) or name.startswith(f"{p}.")]
    path = max(paths, key=len)
    function, relative = values.functions[path], name[len(path) :].removeprefix(".")
    inside = [n for n in function.nodes if n.op != "input" and _is_of(n, relative)]
    exits = _exits(function, inside, bool(relative))
    if not exits:
        return None
    ids = {n.id for n in inside}
    reads = dict.fromkeys(i for n in inside for i in n.inputs if i not in ids)
    return Region(
        name,
        module,
        path,
        tuple(sorted(ids)),
        tuple(values.maker((path, i)) for i in reads if _is_float(function[i])),
        tuple(values.maker((path, i)) for i in exits),
        {values.maker((path, i)): tuple(_forms(function, path, i)) for i in exits},
        own,
        shared,
    )


def _is_of(node: Node, region: str) -> bool:
    return not region or any(o.region == region or is_below(o.region, region) for o in node.origins)


def _exits(function: Function, inside: Sequence[Node], partly: bool) -> list[int]:
    """The values that something outside reads; of a whole function its outputs that it makes."""
    if not partly:
        made = (i for i in function.output_ids if function[i].op != "input")
        return [i for i in made if _is_float(function[i])]
    ids, users = {n.id for n in inside}, function.users()
    outputs = set(function.output_ids)
    read = (n for n in inside if n.id in outputs or any(u not in ids for u in users[n.id]))
    return [n.id for n in read if _is_float(n)]


def _forms(function: Function, path: str, exit_: int) -> Iterator[ValueKey]:
    """What a value is scaled to where it is returned: a class may count that in."""
    for node in function.nodes:
        others = [function[i].op for i in node.inputs if i != exit_]
        if exit_ in node.inputs and node.op in ("mul", "cast") and set(others) <= {"const"}:
            yield path, node.id
            yield from _forms(function, path, node.id)


def _is_float(node: Node) -> bool:
    sources = SOURCES | UNPLACED - {"input"}
    return len(node.types) == 1 and node.type.dtype in FLOATS and node.op not in sources


# ------------------------------------------------------------------------------------ layout


@dataclass(frozen=True, slots=True)
class Layout:
    """How arrays of a program lie in the order of a module's: the axes of inputs lead, then come features.

    `sizes` are those of the axes of inputs, `masks` the inputs that say which entries of their axes
    count, `weighted` the axes that weights have.
    """

    program: Program
    sizes: Mapping[Axis, int]
    masks: Mapping[tuple[Axis, ...], Array]
    weighted: frozenset[Axis]

    @classmethod
    def of(cls, program: Program, inputs: Mapping[str, Array], bound: Mapping[str, int]) -> Layout:
        """`bound` are the sizes of a run on `inputs`."""
        given = [program.main[i] for i in program.main.inputs]
        masks = {
            node.axes: inputs[node.attrs.string("name")].astype(np.bool_)
            for node in given
            if node.type.dtype == "bool" and node.attrs.string("name") in inputs
        }
        sizes = {a: a.size.evaluate(bound) for n in given for a in n.axes}
        weighted = frozenset(a for p in program.parameters for a in p.axes)
        return cls(program, sizes, masks, weighted)

    def arranged(self, value: Array, node: Node, shape: tuple[int, ...]) -> Array | None:
        """`value` of `node` as an array of `shape`; None where it has not that shape.

        A module may have merged leading axes that are neighbours. What no weight has either, such as
        the patches of an image, may be among them.
        """
        lead, rest = self._axes(node)
        more = [a for a in rest if a not in self.weighted]
        for split in ((lead, rest), ([*lead, *more], [a for a in rest if a not in more])):
            flat = _flat(value, node, *split)
            if flat.shape[-1:] == shape[-1:] and merges(flat.shape[:-1], shape[:-1]):
                return flat.reshape(shape)
        return None

    def by_token(self, value: Array, node: Node) -> Array:
        """`value` of `node` with its leading axes first, and its features merged into one axis."""
        return _flat(value, node, *self._axes(node))

    def _axes(self, node: Node) -> tuple[list[Axis], list[Axis]]:
        """The leading axes of a value, and the others."""
        lead = [a for a in self.sizes if a in node.axes]
        return lead, [a for a in node.axes if a not in lead]

    def seen(self, node: Node, shape: tuple[int, ...]) -> Array:
        """Which entries of the arranged value of `node` are no padding, along its first dimensions."""
        lead, _ = self._axes(node)
        seen = np.ones([self.sizes[a] for a in lead], np.bool_)
        for axes, mask in self.masks.items():
            if set(axes) <= set(lead):
                order = [axes.index(a) for a in lead if a in axes]
                own = [self.sizes[a] if a in axes else 1 for a in lead]
                seen = seen & mask.transpose(order).reshape(own)
        for depth in range(len(shape)):
            if merges(seen.shape, shape[:depth]):
                return seen.reshape(shape[:depth])
        return seen.repeat(shape[0] // seen.size)  # merged with axes that no input has

    def part(self, result: Array, node: Node, region: Region) -> Array | None:
        """What of a module's array is a region's value of `node`, features in the order of its axes.

        By the first tensor of the module's own that counts these features. None where the region is
        a part of the module, and not all of them do so and agree.
        """
        found = self.places(result.shape[-1], node, region).values()
        places = [p for p in found if p is not None]
        if region.shared and (len(places) < len(found) or len({tuple(p) for p in places}) != 1):
            return None
        return result[..., places[0]] if places else result

    def places(self, length: int, node: Node, region: Region) -> dict[str, Array | None]:
        """Where the features of a value are along a module's last axis, by each own tensor of them.

        None for a tensor that has no dimension of this length which counts them alone.
        """
        parameters = {p.path: p for p in self.program.parameters}
        rest = [a for a in self._axes(node)[1] if a in self.weighted]
        found = {}
        for entry in region.entries:
            assert entry.tree is not None
            paths = {c.path for c in claims(entry.tree)}
            mine = {p for p in paths if not region.shared or is_below(p, region.name)}
            parameter = parameters.get(mine.pop()) if len(mine) == 1 else None
            if parameter is not None and rest and set(rest) <= set(parameter.axes):
                places = _places(entry.tree, parameter, rest, length, self.program.sizes)
                found[entry.name] = places
        return found


def merges(parts: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether dimensions become `whole` where some are merged with their neighbours."""
    left = list(parts)
    for size in whole:
        product = 1
        while left and product < size:
            product *= left.pop(0)
        if product != size:
            return False
    return all(size == 1 for size in left)


def _flat(value: Array, node: Node, lead: Sequence[Axis], rest: Sequence[Axis]) -> Array:
    ordered = value.transpose([node.axes.index(a) for a in (*lead, *rest)])
    return ordered.reshape(*ordered.shape[: len(lead)], -1) if rest else ordered


def _places(
    tree: Arrangement,
    parameter: Parameter,
    axes: Sequence[Axis],
    length: int,
    sizes: Mapping[str, int],
) -> Array | None:
    """Along the dimension of the tensor, `length` long, that alone counts `axes` of a weight: where.

    This reads the bracket backwards. None where no one dimension counts them.
    """
    shape = tuple(axis.size.evaluate(sizes) for axis in parameter.axes)
    at = [parameter.axes.index(axis) for axis in axes]
    count = int(np.prod([shape[k] for k in at]))
    for dim in (k for k, size in enumerate(tree.shape) if size == length):
        line = np.arange(length).reshape([-1 if k == dim else 1 for k in range(len(tree.shape))])
        numbers, read = np.broadcast_to(line, tree.shape), np.full(shape, -1)
        for claim in claims(tree):
            if claim.path == parameter.path:
                inside(read, claim.box)[...] = claim.read(numbers)
        by_feature = np.moveaxis(read, at, range(len(at))).reshape(count, -1)
        first: Array = by_feature[:, 0]
        if (by_feature == first[:, None]).all() and len({*first.tolist()} - {-1}) == count:
            return first
    return None
