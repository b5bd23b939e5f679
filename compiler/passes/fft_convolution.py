"""sum_t kernel[s - t] x[t] -> convolve(x, kernel): n log n in place of a product with n^2 entries.

The text is a contraction with a Toeplitz matrix, `where(t <= s, kernel[s - t], 0)`; other conditions
in front of it, such as padding, move to x. Legal when the matrix is zero exactly where t > s, the
index is s - t wherever it is not, kernel and sequence have one length, and each entry of the matrix
is read by this product alone. Over the reals: a transform rounds every result as coarsely as the
largest one of its row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...dsl.dims import Dim
from ..ir.graph import Axis, Node
from ..rewrite import Edit, Guard, Pass, Rewrite, Rule
from .bounds import FORMS, UNKNOWN, Slot, Visibility
from .properties import constant, traffic, unfused_traffic

Ids = tuple[int, ...]
BACK = Slot(keys=-1, queries=1)  # the query's slot minus the key's


@dataclass(frozen=True, slots=True)
class Toeplitz:
    """A sum over `key` of x and a matrix of `kernel` along `lag`, and the nodes that the matrix is.

    It is hidden where one of `masks` does not hold; `hidden` are the conditions that say t <= s.
    """

    product: Node
    x: Node
    key: Axis
    kernel: Node
    lag: Axis
    query: Axis
    hidden: tuple[int, ...]
    masks: tuple[int, ...]
    nodes: tuple[int, ...]


def toeplitz(edit: Edit, node: Node) -> Iterator[Toeplitz]:
    """A contraction of one axis with a matrix that gathers at s - t where conditions hold."""
    summed = node.attrs.axes("axes")
    for x, matrix in (edit.operands(node)[::-1], edit.operands(node)):
        conditions: list[int] = []
        nodes: list[int] = []
        while matrix.op == "where" and constant(edit[matrix.inputs[2]]) == 0:
            conditions.append(matrix.inputs[0])
            nodes.append(matrix.id)
            matrix = edit[matrix.inputs[1]]
        if matrix.op == "take" and matrix.attrs["fill"] is None and conditions and len(summed) == 1:
            nodes.append(matrix.id)
            yield from _gathered(edit, node, x, matrix, tuple(conditions), tuple(nodes))


def _gathered(
    edit: Edit, node: Node, x: Node, take: Node, conditions: Ids, nodes: Ids
) -> Iterator[Toeplitz]:
    (key,) = node.attrs.axes("axes")
    kernel, index = edit.operands(take)
    others = [a for a in index.axes if a != key]
    if len(index.axes) != 2 or len(others) != 1:
        return
    (query,), lag = others, take.attrs.axis("axis")
    sight = Visibility(edit, key, query)
    if _clamped(sight, index) == BACK:
        hidden = tuple(c for c in conditions if _is_causal(sight, edit[c]))
        masks = tuple(c for c in conditions if c not in hidden)
        yield Toeplitz(node, x, key, kernel, lag, query, hidden, masks, nodes)


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


def convolve(edit: Edit, found: Toeplitz) -> Rewrite:
    value, x = found.x.id, found.x
    for mask in found.masks:
        zero = edit.add("const", (), {"value": 0, "dtype": x.type.dtype})
        value = edit.add("where", (mask, value, zero))
    places = {"axis": found.key, "lag": found.lag, "into": found.query}
    made = edit.add("convolve", (value, found.kernel.id), places)
    before = unfused_traffic(edit, (*found.nodes, found.product.id))
    after = traffic(edit, (x.id, found.kernel.id), (made,))
    return Rewrite({found.product.id: made}, "", before, after)


def _is_exact(edit: Edit, found: Toeplitz) -> bool:
    return found.product.type.dtype in ("int", "bool")


def _looks_ahead(edit: Edit, found: Toeplitz) -> str:
    return "" if found.hidden else "later entries are not hidden"


def _masks_pairs(edit: Edit, found: Toeplitz) -> str:
    return "a mask of pairs" if any(found.query in edit[c].axes for c in found.masks) else ""


def _has_other_length(edit: Edit, found: Toeplitz) -> str:
    alike = found.key.size == found.query.size == found.lag.size
    ok = alike and found.key not in found.kernel.axes
    return "" if ok else "the kernel is not as long as the sequence"


def _is_entangled(edit: Edit, found: Toeplitz) -> str:
    alone = found.key in found.x.axes and found.query not in found.x.axes
    return "" if alone else "the sequence is no operand of its own"


def _is_read(edit: Edit, found: Toeplitz) -> str:
    once = all(edit.used_once(i) for i in found.nodes)
    return "" if once else "the matrix is read elsewhere"


GUARDS = (
    Guard("real", "the numbers are no integers: a transform rounds", _is_exact),
    Guard("causal", "a condition is t <= s, in either spelling", _looks_ahead),
    Guard("mask-of-keys", "other conditions do not depend on s", _masks_pairs),
    Guard("one-length", "kernel and sequence have one length", _has_other_length),
    Guard("own-operand", "x has the axis of t and not that of s", _is_entangled),
    Guard("private", "no one else reads an entry of the matrix", _is_read),
)

FFT_CONVOLUTION = Pass(
    "fft-convolution",
    "sum_t kernel[s - t] x[t] = inverse(transform(kernel) transform(x))",
    (
        Rule(
            "convolve",
            convolve,
            ("dot",),
            toeplitz,
            GUARDS,
            "sum_t where(t <= s, kernel[s - t], 0) x[t] = convolve(x, kernel)[s]",
        ),
    ),
)
