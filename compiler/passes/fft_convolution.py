"""sum_t kernel[s - t] x[t] -> convolve(x, kernel): n log n in place of a product with n^2 entries.

The text is a contraction with a Toeplitz matrix, `where(t <= s, kernel[s - t], 0)`; other conditions
in front of it, such as padding, move to x. Legal when the matrix is zero exactly where t > s, the
index is s - t wherever it is not, kernel and sequence have one length, and each entry of the matrix
is read by this product alone. Over the reals: a transform rounds every result as coarsely as the
largest one of its row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...dsl.dims import Dim
from ..ir.graph import Axis, Node
from ..rewrite import Declined, Edit, Outcome, Pass, Rewrite, Rule
from .bounds import FORMS, UNKNOWN, Slot, Visibility
from .properties import constant, traffic, unfused_traffic

BACK = Slot(keys=-1, queries=1)  # the query's slot minus the key's


@dataclass(frozen=True, slots=True)
class Toeplitz:
    """A matrix of `kernel` along `lag`, hidden where a mask does not hold, and the nodes it is."""

    kernel: Node
    lag: Axis
    query: Axis
    masks: tuple[int, ...]
    nodes: tuple[int, ...]


def fft_convolution(edit: Edit, node: Node) -> Outcome:
    """Starts at a contraction of one axis."""
    summed = node.attrs.axes("axes")
    if len(summed) != 1 or node.type.dtype in ("int", "bool"):
        return None
    (key,) = summed
    for i in (0, 1):
        matrix, x = edit[node.inputs[i]], edit[node.inputs[1 - i]]
        found = _toeplitz(edit, matrix, key)
        if isinstance(found, Toeplitz):
            return _convolved(edit, node, x, key, found)
        if found is not None:
            return found
    return None


def _toeplitz(edit: Edit, matrix: Node, key: Axis) -> Toeplitz | Declined | None:
    """What a matrix is made of; None for one that gathers nothing at s - t."""
    conditions: list[int] = []
    nodes: list[int] = []
    while matrix.op == "where" and constant(edit[matrix.inputs[2]]) == 0:
        conditions.append(matrix.inputs[0])
        nodes.append(matrix.id)
        matrix = edit[matrix.inputs[1]]
    if matrix.op != "take" or matrix.attrs["fill"] is not None or not conditions:
        return None
    kernel, index = edit.operands(matrix)
    others = [a for a in index.axes if a != key]
    if len(index.axes) != 2 or len(others) != 1:
        return None
    (query,), lag = others, matrix.attrs.axis("axis")
    sight = Visibility(edit, key, query)
    if _clamped(sight, index) != BACK:
        return None
    causal = [c for c in conditions if _is_causal(sight, edit[c])]
    masks = tuple(c for c in conditions if c not in causal)
    if not causal:
        return Declined("later entries are not hidden")
    if any(query in edit[c].axes for c in masks):
        return Declined("a mask of pairs")
    if key in kernel.axes or not key.size == query.size == lag.size:
        return Declined("the kernel is not as long as the sequence")
    return Toeplitz(kernel, lag, query, masks, (*nodes, matrix.id))


def _clamped(sight: Visibility, index: Node) -> Slot:
    """An index that bounds keep at or above zero, without them."""
    while index.op == "max":
        low = constant(sight.edit[index.inputs[1]])
        if not isinstance(low, int | Dim) or Dim.of(low) != Dim():
            return UNKNOWN
        index = sight.edit[index.inputs[0]]
    return sight.slot(index.id)


def _is_causal(sight: Visibility, condition: Node) -> bool:
    """Whether a condition is t <= s, in either spelling: exactly, not only implied by it."""
    if condition.op not in ("le", "lt"):
        return False
    a, b = (sight.slot(i) for i in condition.inputs)
    least = Dim.of(0 if condition.op == "le" else 1)
    return FORMS["sub"](b, a) == replace(BACK, low=least, high=least)


def _convolved(edit: Edit, node: Node, x: Node, key: Axis, found: Toeplitz) -> Outcome:
    if key not in x.axes or found.query in x.axes:
        return Declined("the sequence is no operand of its own")
    if not all(edit.used_once(i) for i in found.nodes):
        return Declined("the matrix is read elsewhere")
    value = x.id
    for mask in found.masks:
        zero = edit.add("const", (), {"value": 0, "dtype": x.type.dtype})
        value = edit.add("where", (mask, value, zero))
    places = {"axis": key, "lag": found.lag, "into": found.query}
    made = edit.add("convolve", (value, found.kernel.id), places)
    before = unfused_traffic(edit, (*found.nodes, node.id))
    after = traffic(edit, (x.id, found.kernel.id), (made,))
    return Rewrite({node.id: made}, "", before, after)


FFT_CONVOLUTION = Pass(
    "fft-convolution",
    "sum_t kernel[s - t] x[t] = inverse(transform(kernel) transform(x))",
    (Rule("convolve", fft_convolution, ("dot",)),),
)
