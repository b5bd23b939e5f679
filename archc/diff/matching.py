"""Which modules of a published class compute which regions of a program: the checkpoint map says.

A line that reads the tensor `model.layers.0.mlp.up_proj.weight` into `layers[0].ffn.up.w` says that
the module `model.layers.0.mlp.up_proj` is the region `layers[0].ffn.up`. A module whose tensors
make up all weights of a region is that region. What a region *returns* is its last value that is
read outside; `Layout` brings such a value into the order of the module's array.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from ..backends.base import Array, ValueKey
from ..compiler.checkpoint.arrangement import claims, whole
from ..compiler.checkpoint.lines import Entry, Lines
from ..compiler.extract import SOURCES
from ..compiler.ir.graph import Axis, Function, Node, Program
from .regions import UNPLACED
from .values import Values

FLOATS = ("float", "f32", "f64")


@dataclass(frozen=True, slots=True)
class Region:
    """A region, the module that it is, and the nodes of `path` that it consists of.

    `reads` are the values it is given and `exits` those it returns, in the order of the text.
    `forms` are other values that the module may return for an exit: what constants and casts make of
    it at once. `entries` are the checkpoint's lines for tensors that the module itself has.
    """

    name: str
    module: str
    path: str
    inside: tuple[int, ...]
    reads: tuple[ValueKey, ...]
    exits: tuple[ValueKey, ...]
    forms: Mapping[ValueKey, tuple[ValueKey, ...]]
    entries: tuple[Entry, ...]

    @property
    def is_layer(self) -> bool:
        return self.name == self.path


def regions(
    values: Values, lines: Lines, modules: Mapping[str, str], used: Collection[str]
) -> list[Region]:
    """The regions that are modules, in the order they end, inner before outer.

    `modules` gives the leading part of file names that each module has; `used` are the tensors.
    """
    entries = [e for e in lines.live() if e.name in used and not e.line.alias]
    weights = {e.name: {c.path for c in claims(e.tree)} for e in entries if e.tree is not None}
    found: dict[str, Region] = {}
    for module, prefix in modules.items():
        inside = {name for name in weights if name.startswith(prefix)}
        read = {path for name in inside for path in weights[name]}
        elsewhere = {p for name in weights.keys() - inside for p in weights[name]}
        name = _region(read)
        if name and not any(_below(path, name) for path in elsewhere):
            own = tuple(e for e in entries if e.name.rpartition(".")[0] + "." == prefix)
            region = _made(values, name, module, own)
            if region is not None:  # of modules with the same tensors the innermost comes last
                found[name] = region
    order = {key: i for i, key in enumerate(values.order)}
    return sorted(found.values(), key=lambda r: (order.get(r.exits[-1], -1), -len(r.name)))


def _region(weights: Collection[str]) -> str:
    """What the paths of weights have in common; of one weight, all but its own name."""
    levels = zip(*(path.split(".")[:-1] for path in weights), strict=False)
    return ".".join(level[0] for level in takewhile(lambda level: len({*level}) == 1, levels))


def _below(path: str, region: str) -> bool:
    return path.startswith((f"{region}.", f"{region}["))


def _made(values: Values, name: str, module: str, own: tuple[Entry, ...]) -> Region | None:
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
    )


def _is_of(node: Node, region: str) -> bool:
    return not region or any(o.region == region or _below(o.region, region) for o in node.origins)


def _exits(function: Function, inside: Sequence[Node], partly: bool) -> list[int]:
    """The values that something outside reads; of a whole function its outputs."""
    if not partly:
        return [i for i in function.output_ids if _is_float(function[i])]
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


# ----------------------------------------------------------------------------------- modules


def prefixes(
    children: Mapping[str, Sequence[str]], tensors: Collection[str], base: str
) -> dict[str, str]:
    """For each module, what leads the names of its tensors in a file.

    `children` has every module that owns a parameter, below its parent; the root is "". A class and
    its file may differ in the prefix `base`, and in what they call one child of a module.
    """
    names = [tuple(tensor.split(".")) for tensor in tensors]
    found: dict[str, str] = {}
    todo: list[tuple[str, tuple[str, ...]]] = [("", ())]
    if base:
        below, heads = children.get("", ()), {name[0] for name in names}
        if base in below and base not in heads:
            todo.append((base, ()))
        elif base not in below and base in heads:
            todo.append(("", (base,)))
    for module, lead in todo:
        if lead:
            found[module] = ".".join(lead) + "."
        todo += _children(module, lead, children.get(module, ()), names)
    return found


def _children(
    module: str, lead: tuple[str, ...], below: Sequence[str], names: Sequence[tuple[str, ...]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The children of a module under their names in the file; one that is left of both is the same."""
    depth = len(lead)
    there = {n[depth] for n in names if n[:depth] == lead and len(n) > depth + 1}
    same = [child for child in below if child in there]
    left, others = [c for c in below if c not in there], sorted(there - set(below))
    pairs = [*zip(same, same, strict=True)]
    if lead and len(left) == len(others) == 1:
        pairs += zip(left, others, strict=True)
    for child, name in pairs:
        yield f"{module}.{child}" if module else child, (*lead, name)


# ------------------------------------------------------------------------------------ layout


@dataclass(frozen=True, slots=True)
class Layout:
    """How arrays of a program lie in the order of a module's: `lead` axes, then features.

    `masks` are the inputs that say which entries of their axes count.
    """

    program: Program
    lead: tuple[Axis, ...]
    masks: Mapping[tuple[Axis, ...], Array]

    @classmethod
    def of(cls, program: Program, inputs: Mapping[str, Array]) -> Layout:
        given = [program.main[i] for i in program.main.inputs]
        lead = dict.fromkeys(axis for node in given for axis in node.axes)
        masks = {
            node.axes: inputs[node.attrs.string("name")]
            for node in given
            if node.type.dtype == "bool" and node.attrs.string("name") in inputs
        }
        return cls(program, tuple(lead), masks)

    def arranged(
        self, value: Array, node: Node, shape: tuple[int, ...], entries: Sequence[Entry] = ()
    ) -> Array | None:
        """`value` of `node` as an array of `shape`, its features in the order of the tensors.

        None where it has not that shape. A module may have merged the leading axes.
        """
        lead = [a for a in self.lead if a in node.axes]
        rest = [a for a in node.axes if a not in lead]
        ordered = value.transpose([node.axes.index(a) for a in (*lead, *rest)])
        sizes = ordered.shape
        flat = ordered.reshape(*sizes[: len(lead)], -1) if rest else ordered
        order = self._order(rest, entries)
        if order is not None:
            flat = flat[..., order]
        for wanted in (flat.shape, (-1, flat.shape[-1])):
            arranged = flat.reshape(wanted)
            if arranged.shape == shape:
                return arranged
        return None

    def seen(self, node: Node, shape: tuple[int, ...]) -> Array:
        """Which entries of the arranged value of `node` are no padding."""
        lead = [a for a in self.lead if a in node.axes]
        sizes = dict(zip(lead, shape, strict=False))
        seen = np.ones([sizes[a] for a in lead] if len(shape) > len(lead) else shape[:1], np.bool_)
        if len(shape) <= len(lead):  # merged leading axes
            return self._merged(lead, shape[0])
        for axes, mask in self.masks.items():
            if set(axes) <= set(lead):
                order = [axes.index(a) for a in lead if a in axes]
                own = [sizes[a] if a in axes else 1 for a in lead]
                seen = seen & mask.astype(np.bool_).transpose(order).reshape(own)
        return seen

    def _merged(self, lead: Sequence[Axis], rows: int) -> Array:
        mask = self.masks.get(tuple(lead))
        return np.ones(rows, np.bool_) if mask is None else mask.astype(np.bool_).reshape(-1)

    def _order(self, rest: Sequence[Axis], entries: Sequence[Entry]) -> Array | None:
        """Where each feature of the tensors is among the merged axes `rest` of a value."""
        parameters = {p.path: p for p in self.program.parameters}
        for entry in entries:
            assert entry.tree is not None
            paths = {claim.path for claim in claims(entry.tree)}
            parameter = parameters.get(paths.pop()) if len(paths) == 1 else None
            if parameter is None or not set(rest) <= set(parameter.axes) or not rest:
                continue
            shape = tuple(a.size.evaluate(self.program.sizes) for a in parameter.axes)
            at = [parameter.axes.index(a) for a in rest]
            order = _feature_order(entry, shape, at)
            if order is not None:
                return order
        return None


def _feature_order(entry: Entry, shape: tuple[int, ...], at: Sequence[int]) -> Array | None:
    """Along the one dimension of the tensor that counts the axes `at` of its weight: which is where."""
    assert entry.tree is not None
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    stored = entry.tree.build(
        lambda _, box: numbers[tuple(slice(a, b) for a, b in box or whole(shape))]
    )
    sizes = tuple(shape[k] for k in at)
    for dim in range(stored.ndim):
        line = stored[tuple(slice(None) if k == dim else 0 for k in range(stored.ndim))]
        places = np.unravel_index(line, shape)
        order = np.ravel_multi_index([places[k] for k in at], sizes)
        if sorted(order.tolist()) == list(range(int(np.prod(sizes)))):
            return np.asarray(order)
    return None


def by_module(children: Sequence[str]) -> dict[str, list[str]]:
    """Names of modules below their parents."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in children:
        parent, _, own = name.rpartition(".")
        found[parent].append(own)
    return found
