"""Weights in few bits: each group of entries along one axis has its own scale.

    8 bits   scale = max |w| / 127            code = round(w / scale)                 in -127 .. 127
    4 bits   scale = (max w - min w) / 15     code = round((w - offset) / scale) + 8     in 0 .. 15
             offset = min w + 8 scale

`dequantise` gives scale * code, or scale * (code - 8) + offset. Codes are made with the scale and
the offset as they are stored, so an entry is wrong by half a scale and, at the ends of the range,
by what storing them rounds off. With 8 bits a zero stays zero and a group has one number. With 4
bits both ends count for more than a second number costs: on trained weights the error is a tenth
below that of 16 symmetric levels, and torch's products of 4 bits take both. Two codes of 4 bits
share a byte, the first in its low half. The last group, and the last byte, may be shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...dsl.dims import Dim
from ..ir.graph import Attrs, AttrValue, Axis, TensorType
from .numeric import Array, np
from .registry import (
    A,
    B,
    Call,
    N,
    Sample,
    Types,
    may_be_equal,
    op,
    per_operand,
    per_result,
    require,
    tensor,
)
from .structure import replaced

MIDDLE = 8  # the code of 4 bits that stands for the offset
MOST = {8: 127, 4: 15}  # the greatest code


@dataclass(frozen=True, slots=True)
class Format:
    """How `axis` is quantised: bytes along `packed`, and along `groups` a scale for `group` codes."""

    bits: int
    group: int
    axis: Axis
    packed: Axis
    groups: Axis

    @classmethod
    def of(cls, attrs: Attrs) -> Format:
        bits, group = attrs.integer("bits"), attrs.integer("group")
        found = cls(bits, group, *(attrs.axis(name) for name in ("axis", "packed", "groups")))
        require(bits in MOST, f"codes of {bits} bits")
        require(group > 0 and group % found.per_byte == 0, "a group that ends within a byte")
        for axis, entries in ((found.packed, found.per_byte), (found.groups, group)):
            whole = pieces(found.axis, entries)
            require(may_be_equal(axis.size, whole), f"`{axis}` has another size")
        return found

    @property
    def per_byte(self) -> int:
        return 8 // self.bits

    @property
    def parts(self) -> tuple[Axis, ...]:
        """The axis of each stored array in place of `axis`: codes, scales and, of 4 bits, offsets."""
        return (self.packed, self.groups, self.groups)[: 2 if self.bits == 8 else 3]


def pieces(axis: Axis, entries: int) -> Dim:
    """How many runs of `entries` cover the axis, the last perhaps shorter."""
    return (axis.size + (entries - 1)) // entries


def _sample(bits: int) -> dict[str, AttrValue]:
    """Groups of 4 along `n`, whose 5 entries fill neither the last group nor the last byte."""
    packed = N if bits == 8 else Axis("packed", pieces(N, 2))
    groups = Axis("groups", pieces(N, 4))
    return {"axis": N, "packed": packed, "groups": groups, "bits": bits, "group": 4}


def _stored(bits: int, *axes: Axis) -> Types:
    """What `quantise` with the attributes of `_sample` makes of float[axes]."""
    parts = Format.of(Attrs(_sample(bits))).parts
    kinds = ("i8", "float", "float")
    return tuple(tensor(k, *replaced(axes, N, (p,))) for k, p in zip(kinds, parts, strict=False))  # type: ignore[arg-type]


QUANTISE = op(
    "quantise",
    "codes of `bits` along `packed`, for each `group` entries of `axis` a scale along `groups` and,"
    " with 4 bits, an offset",
    time="M",
    elementwise=per_operand,
    samples=(
        Sample((tensor("float", A, N),), _sample(8)),
        Sample((tensor("float", N, B),), _sample(4)),
    ),
)


@QUANTISE.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (w,) = inputs
    form = Format.of(attrs)
    require(w.dtype in ("float", "f32", "f64"), "quantises what is no float")
    codes, *others = (replaced(w.axes, form.axis, (part,)) for part in form.parts)
    return (TensorType("i8", codes), *(TensorType(w.dtype, axes) for axes in others))


@QUANTISE.meaning
def _(call: Call, w: Array) -> tuple[Array, ...]:
    form, (source,) = Format.of(call.attrs), call.inputs
    place, stored = source.position(form.axis), call.precision.storage(source.dtype)
    count = w.shape[place]
    # In float32 whatever the run is in: an entry that lies between two codes has one everywhere.
    entries = _in_groups(np.moveaxis(w.astype(np.float32), place, -1), form.group)
    steps = [x.astype(stored) for x in _steps(entries, form.bits)]
    scale, *offset = (x.astype(entries.dtype)[..., None] for x in steps)
    codes = _codes(entries, scale, offset, form.bits)
    codes = codes.reshape(*codes.shape[:-2], -1)[..., :count]
    found = (_packed(codes) if form.bits == 4 else codes.astype(np.int8), *steps)
    return tuple(np.ascontiguousarray(np.moveaxis(x, -1, place)) for x in found)


def _in_groups(x: Array, group: int) -> Array:
    """x[..., n] as [..., groups, group]; a last group that is shorter repeats its last entry."""
    short = -x.shape[-1] % group
    if short:
        x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)], mode="edge")
    return x.reshape(*x.shape[:-1], -1, group)


def _steps(entries: Array, bits: int) -> tuple[Array, ...]:
    """The scale of each group and, with 4 bits, its offset."""
    most, least = entries.max(-1), entries.min(-1)
    if bits == 8:
        return (np.maximum(most, -least) / MOST[8],)
    scale = (most - least) / MOST[4]
    return scale, least + MIDDLE * scale


def _codes(entries: Array, scale: Array, offset: Sequence[Array], bits: int) -> Array:
    """Where all entries of a group are equal the scale is 0: there the code is that of 0 scales."""
    middle, least = (MIDDLE, 0) if bits == 4 else (0, -MOST[8])
    moved = entries - offset[0] if offset else entries
    steps = np.divide(moved, scale, out=np.zeros_like(entries), where=scale != 0)
    found: Array = np.clip(np.rint(steps) + middle, least, MOST[bits])
    return found


def _packed(codes: Array) -> Array:
    """Two codes of 4 bits in a byte, the first in its low half."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], -1)
    codes = codes.astype(np.uint8)
    joined: Array = codes[..., ::2] | codes[..., 1::2] << 4
    return joined.view(np.int8)


DEQUANTISE = op(
    "dequantise",
    "what the codes, scales and offsets of `quantise` stand for, along `axis`",
    elementwise=per_result,
    samples=(
        Sample(_stored(8, A, N), _sample(8), (-127.0, 127.0)),
        Sample(_stored(4, N, B), _sample(4), (-128.0, 127.0)),
    ),
)


@DEQUANTISE.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    form = Format.of(attrs)
    require(len(inputs) == len(form.parts) and inputs[0].dtype == "i8", "codes, scales, offsets")
    axes = [replaced(x.axes, p, (form.axis,)) for x, p in zip(inputs, form.parts, strict=True)]
    require(all(set(found) == set(axes[0]) for found in axes), "operands of several axes")
    return (TensorType(inputs[1].dtype, axes[0]),)


@DEQUANTISE.meaning
def _(call: Call, *operands: Array) -> Array:
    form, (result,) = Format.of(call.attrs), call.outputs
    order = [*(a for a in result.axes if a != form.axis)]
    codes, scale, *offset = (
        x.transpose([t.position(a) for a in (*order, part)])
        for x, t, part in zip(operands, call.inputs, form.parts, strict=True)
    )
    count = call.extent(form.axis)
    if form.bits == 4:
        codes = _unpacked(codes)
    entries = _in_groups(call.compute(codes[..., :count], result.dtype), form.group)
    entries = entries - MIDDLE if offset else entries
    entries = entries * call.compute(scale, result.dtype)[..., None]
    if offset:
        entries += call.compute(offset[0], result.dtype)[..., None]
    whole = entries.reshape(*entries.shape[:-2], -1)[..., :count]
    return np.moveaxis(whole, -1, result.position(form.axis))


def _unpacked(packed: Array) -> Array:
    codes = packed.view(np.uint8)
    return np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)
