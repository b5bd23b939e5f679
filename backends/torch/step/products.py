"""Sums of products. With a weight that is stored as the kernels of `rows.h` read it: one call of those.

Any other, as those of attention, is a loop over all axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....compiler.ir.graph import Axis, Node, elements
from .elements import Block, Env
from .frame import ONE, ZERO
from .loops import ONLY, Writer
from .places import GROUP, Place


def dot(writer: Writer, node: Node) -> None:
    for x, w in (node.inputs, node.inputs[::-1]):
        if _matrix(writer, node, x, w):
            return
    _general(writer, node)


def _matrix(writer: Writer, node: Node, x: int, w: int) -> bool:
    """A few rows times a weight, where it is stored as the kernels read it."""
    place, given = writer.place(w), writer.function[x]
    if place is None or not _is_weight(writer, place) or writer.type(node.type) != "float":
        return False
    inner = set(node.attrs.axes("axes"))
    outer = {*place.strides} - inner
    if not inner <= set(given.axes) or not inner <= {*place.strides} or outer & set(given.axes):
        return False
    order = sorted(place.strides, key=lambda a: -writer.number(place.strides[a]))
    columns, summed = [a for a in order if a in outer], [a for a in order if a in inner]
    sizes = {a: writer.number(writer.static(a.size)) for a in order}
    if order != [*columns, *summed] or not writer.is_dense(place, order) or place.offset != ZERO:
        return False
    k, n = (math.prod(sizes[a] for a in axes) for axes in (summed, columns))
    rows = [a for a in given.axes if a not in inner]
    source = _rows(writer, given, rows, summed)
    made = writer.new(node, (*rows, *columns))
    count = writer.length(elements(rows))
    kernel = _kernel(writer, place, k)
    if place.ctype == "coded4":
        kernel, source = _paired(writer, kernel, source, count, k)
    writer.reads |= {source}
    writer.stage(
        [f"  product(run, {kernel}, {source}, {made.pointer}, {count}, {n}, {k});"],
        made.pointer,
    )
    return True


def _is_weight(writer: Writer, place: Place) -> bool:
    named = {p for s, p in zip(writer.slots, writer.pointers(), strict=True) if s.of == "tensor"}
    return place.pointer in named and place.ctype in ("float", "uint16_t", "coded8", "coded4")


def _rows(writer: Writer, given: Node, rows: Sequence[Axis], summed: Sequence[Axis]) -> str:
    """A pointer to the operand as a matrix of rows."""
    place, order = writer.place(given.id), [*rows, *summed]
    if (
        place is not None
        and place.ctype == "float"
        and place.offset == ZERO
        and writer.is_dense(place, order)
    ):
        return place.pointer
    packed = writer.buffer("float", order)
    writer.each(
        tuple(order),
        lambda b, env: writer.put(b, packed, env, writer.element(b, given.id, env)),
        packed.pointer,
    )
    return packed.pointer


def _kernel(writer: Writer, place: Place, k: int) -> str:
    if not place.ctype.startswith("coded"):
        return f"Plain<{place.ctype}>{{{place.pointer}, {k}}}"
    scales, offsets, ctype = writer.coded[place.pointer]
    if place.ctype == "coded8":
        return f"Bytes<{ctype}>{{{place.pointer}, {scales}, {k}}}"
    codes = f"reinterpret_cast<const uint8_t*>({place.pointer})"
    return f"Nibbles<{ctype}>{{{codes}, {scales}, {offsets}, sums, {k}}}"


def _paired(writer: Writer, kernel: str, source: str, count: str, k: int) -> tuple[str, str]:
    pairs, sums = (
        writer.scratch("float", f"{count} * {k}"),
        writer.scratch("float", f"{count} * {k // GROUP}"),
    )
    writer.reads |= {source}
    writer.stage([f"  pair(run, {source}, {pairs}, {sums}, {count} * {k});"], pairs)
    return kernel.replace("sums", sums), pairs


def _general(writer: Writer, node: Node) -> None:
    """A loop over all axes, the one along which an operand lies in memory inside."""
    summed = [*node.attrs.axes("axes")]
    fast = _fast(writer, node)
    a, b = node.inputs
    ctype = writer.type(node.type)

    def term(block: Block, env: Env) -> str:
        left_, right = (f"{ctype}({writer.element(block, i, env)})" for i in (a, b))
        return f"{left_} * {right}"

    if fast is None or fast in summed:
        summed = [x for x in summed if x != fast] + ([fast] if fast else [])
        place = writer.new(node, node.axes)

        def body(block: Block, env: Env) -> None:
            block.line(f"{ctype} total = 0;")
            writer.nest(
                block, summed, env, lambda b, e: b.line(f"total += {term(b, e)};"), summed=True
            )
            writer.put(block, place, env, "total")

        writer.each(node.axes, body, place.pointer)
        return
    rest = tuple(x for x in node.axes if x != fast)
    place = writer.new(node, (*rest, fast))
    length = writer.length(fast.size)

    def across(block: Block, env: Env) -> None:
        block.line(f"{ctype}* row = {place.pointer} + {writer.address(place, {**env, fast: '0'})};")
        block.line(f"for (int64_t i = 0; i < {length}; i++) row[i] = 0;")
        index = writer.fresh("i")

        def add(b: Block, e: Env) -> None:
            b.line(f"row[{index}] += {term(b, e)};")

        writer.nest(block, [*summed, fast], env, add, last=index)

    writer.each((*rest, ONLY), across, place.pointer)


def _fast(writer: Writer, node: Node) -> Axis | None:
    """The axis with a stride of 1 in the operand that has more axes, or lies outside."""
    found = [
        (len(p.strides), a)
        for p in map(writer.place, node.inputs)
        if p is not None
        for a, s in p.strides.items()
        if s == ONE and (a in node.axes or a in node.attrs.axes("axes"))
    ]
    outside = [
        a
        for i in node.inputs
        for p in [writer.place(i)]
        if p is not None and _is_held(writer, p)
        for a, s in p.strides.items()
        if s == ONE
    ]
    if outside and (outside[-1] in node.axes or outside[-1] in node.attrs.axes("axes")):
        return outside[-1]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _is_held(writer: Writer, place: Place) -> bool:
    slots = zip(writer.slots, writer.pointers(), strict=True)
    return any(p == place.pointer and s.of == "state" for s, p in slots)
