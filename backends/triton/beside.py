"""Kernels side by side in one launch: the columns of one after those of another.

The results of a packed product that are stored apart (turned queries, turned keys, values) read the
same rows. In one launch they read them once, and the small ones fill the machine beside the large.
Each program finds by its block of columns which of the functions it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...dsl.dims import Dim
from .descriptors import DESCRIPTORS
from .kernel import Kernel, Pointer
from .tiles import UNMASKED, Facts

COLUMN = "column"  # the block of columns, counted from a function's first


def beside(kernels: Sequence[Kernel]) -> Kernel | None:
    """One kernel that does the work of all, if a block of columns never belongs to two of them.

    Results are numbered through. None where rows differ or columns do not end with a block.
    """
    first = kernels[0]
    widths = [k.extents[1].constant for k in kernels]
    apart = (
        len(kernels) == 1
        or any(w is None or w % UNMASKED for w in widths[:-1])
        or widths[-1] is None
    )
    if apart or any(_outer(k) != _outer(first) for k in kernels) or first.facts.kind != "product":
        return None
    pointers, renamed = _pointers(kernels)
    sizes = dict(size for k in kernels for size in k.sizes)
    body, start = [f"{COLUMN} = tl.program_id(1)"], 0
    for i, (kernel, names, width) in enumerate(zip(kernels, renamed, widths, strict=True)):
        here = f"{COLUMN} - {start} // BLOCK_N" if start else COLUMN
        start += width or 0
        word = "else" if kernel is kernels[-1] else "elif" if i else "if"
        condition = f" {COLUMN} < {start} // BLOCK_N" if word != "else" else ""
        arguments = [here, *names, *(sizes[s] for s, _ in kernel.sizes), *kernel.blocks]
        body += [f"{word}{condition}:", f"    {{name}}_{i + 1}({', '.join(arguments)})"]
    extents = first.extents[0], Dim.of(start), first.extents[2]
    parts = tuple(_part(k) for k in kernels)
    return Kernel(
        first.name, pointers, tuple(sorted(sizes.items())), max(k.blocks for k in kernels),
        tuple(body), extents, _facts(kernels),
        wide=tuple(sorted({w for k in kernels for w in k.wide})), parts=parts,
        described=tuple(dict(d for k in kernels for d in k.described).items()),
    )  # fmt: skip


def _outer(kernel: Kernel) -> object:
    """What kernels of one launch must agree on."""
    blocks = tuple(b for b in kernel.blocks if b != DESCRIPTORS)
    return kernel.extents[0], kernel.extents[2], blocks, kernel.facts.kind


def _pointers(kernels: Sequence[Kernel]) -> tuple[tuple[Pointer, ...], list[list[str]]]:
    """The arguments of the launch, and for each kernel their names in its order."""
    known: dict[tuple[bool, int], Pointer] = {}
    taken: set[str] = set()
    renamed: list[list[str]] = []
    results = 0
    for kernel in kernels:
        names = []
        for pointer in kernel.pointers:
            value = pointer.value + results if pointer.is_result else pointer.value
            key = pointer.is_result, value
            if key not in known:
                name = _unused(pointer.name, taken)
                known[key] = replace(pointer, name=name, value=value)
            names.append(known[key].name)
        renamed.append(names)
        results += sum(p.is_result for p in kernel.pointers)
    return tuple(sorted(known.values(), key=lambda p: p.is_result)), renamed


def _unused(name: str, taken: set[str]) -> str:
    numbered = (name if i == 1 else f"{name}_{i}" for i in range(1, len(taken) + 2))
    found = next(n for n in numbered if n not in taken)
    taken.add(found)
    return found


def _part(kernel: Kernel) -> Kernel:
    lines = (line.replace("tl.program_id(1)", COLUMN) for line in kernel.body)
    return replace(kernel, body=tuple(lines), leading=(COLUMN,))


def _facts(kernels: Sequence[Kernel]) -> Facts:
    """Of the most demanding."""
    facts = [k.facts for k in kernels]
    return replace(
        facts[0],
        width=max(f.width for f in facts),
        products=max(f.products for f in facts),
        angles=any(f.angles for f in facts),
        exact=any(f.exact for f in facts),
        pieces=max(f.pieces for f in facts),
    )
