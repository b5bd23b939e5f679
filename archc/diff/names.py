"""Which tensors of a file each module of its class has.

By name where the two agree, but for a prefix and what one child of a module is called. What a class
renames beyond that as it is loaded is found by content: a parameter is the tensor that holds the same
numbers.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..backends.base import Array

Read = Callable[[str], Array]


@dataclass(frozen=True, slots=True)
class Owned:
    """The tensors of a module's parameters, and those of them that are none of a child's."""

    tensors: frozenset[str]
    own: frozenset[str]


def owned(
    parameters: Mapping[str, Array], tensors: Collection[str], read: Read, base: str
) -> dict[str, Owned]:
    """For each module whose parameters are all found in a file, their tensors; outer modules first.

    `parameters` are those of the class by name, `read` gives a tensor of the file, `base` is the
    prefix that a class and its file may differ in.
    """
    modules = _modules(parameters)
    leads = prefixes(_by_module(modules), tensors, base)
    found = {module: _below(lead, tensors) for module, lead in leads.items()}
    left = {p for m, own in modules.items() if m not in found for p in own}
    free = set(tensors).difference(*(o.own for o in found.values()))
    named = same_numbers({p: parameters[p] for p in sorted(left)}, sorted(free), read)
    for module, own in modules.items():
        if module not in found and own <= named.keys():
            direct = frozenset(named[p] for p in own if _parent(p) == module)
            found[module] = Owned(frozenset(named[p] for p in own), direct)
    return {module: found[module] for module in modules if module in found}


def _modules(parameters: Collection[str]) -> dict[str, set[str]]:
    """The modules that have parameters, with all of them; outer ones before inner ones."""
    found: dict[str, set[str]] = defaultdict(set)
    for name in parameters:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            found[".".join(parts[:depth])].add(name)
    return found


def _below(lead: str, tensors: Collection[str]) -> Owned:
    inside = frozenset(t for t in tensors if t.startswith(lead))
    return Owned(inside, frozenset(t for t in inside if "." not in t[len(lead) :]))


# ----------------------------------------------------------------------------------- by name


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


def _by_module(children: Iterable[str]) -> dict[str, list[str]]:
    """Names of modules below their parents."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in children:
        parent, _, own = name.rpartition(".")
        found[parent].append(own)
    return found


# -------------------------------------------------------------------------------- by content


def same_numbers(
    parameters: Mapping[str, Array], tensors: Sequence[str], read: Read
) -> dict[str, str]:
    """For each parameter the tensor that holds the same numbers.

    Of several that do, one of the parameter's own name: that beside a tensor of the same module, else
    the one whose whole name has most in common with the parameter's, where that decides.
    """
    if not parameters:
        return {}
    alike: dict[bytes, list[str]] = defaultdict(list)
    for name in tensors:
        alike[_digest(read(name))].append(name)
    candidates = {p: alike.get(_digest(value), []) for p, value in parameters.items()}
    found = {p: names[0] for p, names in candidates.items() if len(names) == 1}
    beside = {_parent(p): _parent(name) for p, name in found.items()}
    for parameter, names in candidates.items():
        parent, _, own = parameter.rpartition(".")
        named = [n for n in names if n.rpartition(".")[2] == own]
        near = [n for n in named if _parent(n) == beside.get(parent)] or named
        common = {n: _in_common(n, parameter) for n in near}
        best = [n for n in near if common[n] == max(common.values())]
        if parameter not in found and len(best) == 1:
            found[parameter] = best[0]
    return found


def _digest(value: Array) -> bytes:
    exact = np.ascontiguousarray(value, np.float32)
    return hashlib.blake2b(exact.data, key=repr(exact.shape).encode()[:64]).digest()


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _in_common(a: str, b: str) -> int:
    return (Counter(a.split(".")) & Counter(b.split("."))).total()
