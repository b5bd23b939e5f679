"""`convolve`: a causal convolution along a sequence, by fast Fourier transforms."""

from __future__ import annotations

from ..ir.graph import Attrs, Axis, TensorType
from .numeric import Array, np
from .registry import (
    A,
    B,
    Call,
    N,
    Sample,
    Types,
    align,
    may_be_equal,
    op,
    promote,
    require,
    tensor,
)
from .structure import replaced

LAG, TO = Axis("lag", N.size), Axis("to", N.size)
PLACES = {"axis": N, "lag": LAG, "into": TO}

CONVOLVE = op(
    "convolve",
    "y at `into` = the sum over `axis` up to there of x * kernel, whose `lag` is the distance;"
    " axes both share align",
    time="M",
    samples=(
        Sample((tensor("float", B, N, A), tensor("float", LAG, A)), PLACES),
        Sample((tensor("f32", N), tensor("float", B, LAG)), PLACES),
        Sample((tensor("f64", A, N), tensor("f64", TO, B, A)), PLACES | {"lag": TO}),
    ),
)


def _places(attrs: Attrs) -> tuple[Axis, Axis, Axis]:
    return attrs.axis("axis"), attrs.axis("lag"), attrs.axis("into")


@CONVOLVE.rule
def _(attrs: Attrs, inputs: Types) -> Types:
    (x, kernel), (axis, lag, into) = inputs, _places(attrs)
    sizes = (axis.size, lag.size)
    require(all(may_be_equal(size, into.size) for size in sizes), "sequences of several lengths")
    placed = replaced(x.axes, axis, (into,)), replaced(kernel.axes, lag, (into,))
    require(all(len(set(axes)) == len(axes) for axes in placed), "an operand has the axis already")
    dtype = promote(x.dtype, kernel.dtype)
    require(dtype not in ("bool", "int"), "a transform of whole numbers")
    return (TensorType(dtype, tuple(dict.fromkeys((*placed[0], *placed[1])))),)


@CONVOLVE.meaning
def _(call: Call, x: Array, kernel: Array) -> Array:
    """The product of transforms long enough that nothing wraps around."""
    axis, lag, into = _places(call.attrs)
    (result,), (of_x, of_kernel) = call.outputs, call.inputs
    length, place = call.extent(into), result.axes.index(into)
    size = max(2 * length, 1)
    spectra = [
        np.fft.rfft(
            align(call.compute(a, result.dtype), replaced(axes, old, (into,)), result.axes),
            size,
            axis=place,
        )
        for a, axes, old in ((x, of_x.axes, axis), (kernel, of_kernel.axes, lag))
    ]
    whole = np.fft.irfft(spectra[0] * spectra[1], size, axis=place)
    return np.moveaxis(np.moveaxis(whole, place, 0)[:length], 0, place)
