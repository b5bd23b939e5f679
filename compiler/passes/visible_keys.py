"""attend(..., mask) -> attend(..., mask, first, stop): tiles that no row sees are not visited.

    first[i] = min {j : mask(i, j)},   stop[i] = 1 + max {j : mask(i, j)}

for what the text does not prove: documents, padding, a prefix of each row, blocks. The rows of a
tile together see keys from the least first to the greatest stop; what lies outside has weight 0,
and what lies between is visited, holes too. Legal for any condition of the scores. It is worth it
where the condition is elementwise, so that it costs less than the scores, and where a whole
sequence is attended to at once: the few rows of a decoding step would pay for all slots. Distances
between slots are bounds of the attention itself (`bounds.py`). All layers that see alike share one
pair: `hoist-invariant` moves it before their loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from ..ir.graph import Attrs, Axis, Function, Node, TensorType
from ..ir.walk import cone
from ..ops.attend import plan_attend
from ..rewrite import Edit, Guard, Pass, Rewrite, Rule
from .properties import SOURCES, VIEWS, is_elementwise, line

RANGED = "ranged"  # the attribute of an attention whose last two operands are first and stop
INT = TensorType("int")
NOTE = "keys from the first to the last that a row sees"
DISTANCES = VIEWS | {"index", "const", "size", "add", "sub", "neg"}


@dataclass(frozen=True, slots=True)
class Masked:
    """An attention over `keys`, and conditions of its scores, values of `body`."""

    node: Node
    body: Function
    keys: Axis
    conditions: tuple[int, ...]

    @property
    def above(self) -> list[Node]:
        """What the conditions are made of."""
        wanted = cone(self.body, self.conditions)
        return [n for n in self.body.nodes if n.id in wanted]


def masked(edit: Edit, node: Node) -> Iterator[Masked]:
    """An attention with one softmax, some of whose keys are hidden by more than their distance."""
    if node.attrs.get(RANGED):
        return
    body = edit.program.body(node)
    keys = node.attrs.get("keys")
    plan = plan_attend(body, keys if isinstance(keys, Axis) else None)
    if len(plan.softmaxes) == 1:
        (softmax,) = plan.softmaxes
        parts = [p for mask in plan.masks[softmax] for p in _conjuncts(body, mask)]
        given = dict(zip(body.inputs, node.inputs, strict=True))
        hidden = [
            p for p in parts if plan.keys in body[p].axes and not _is_distance(edit, body, given, p)
        ]
        if hidden:
            yield Masked(node, body, plan.keys, tuple(dict.fromkeys(hidden)))


def _conjuncts(body: Function, condition: int) -> Iterator[int]:
    """The conditions whose conjunction one is: `min` is `and` of bools."""
    node = body[condition]
    if node.op == "min":
        for operand in node.inputs:
            yield from _conjuncts(body, operand)
    else:
        yield condition


def _is_distance(edit: Edit, body: Function, given: Mapping[int, int], condition: int) -> bool:
    """Whether a condition compares the distance of two slots with a number, or with a size."""
    node = body[condition]
    while node.op in VIEWS | {"not"}:
        node = body[node.inputs[0]]
    if node.op not in ("le", "lt"):
        return False
    above = cone(body, node.inputs)
    outside = cone(edit, [given[i] for i in above if i in given])
    inside = [body[i] for i in above if i not in given]
    return all(n.op in DISTANCES for n in (*inside, *(edit[i] for i in outside)))


def see(edit: Edit, found: Masked) -> Rewrite:
    first, stop = _range(edit, found)
    node, body = found.node, found.body
    widened = _widened(edit, body, (first, stop))
    attrs = {**node.attrs, "body": widened.name, RANGED: True}
    made = edit.add("attend", (*node.inputs, first, stop), attrs, node.types, node.hint)
    values = {node.id: made}
    if len(node.types) > 1:
        values = {
            user.id: edit.add("result", (made,), user.attrs, user.types)
            for user in edit.users(node.id)
        }
    return Rewrite(values, NOTE, functions=(widened,))


def _widened(edit: Edit, body: Function, values: Sequence[int]) -> Function:
    """The body with an input more for each value, which nothing in it reads."""
    new = count(max(n.id for n in body.nodes) + 1)
    given = [
        Node(i, "input", (), Attrs({"name": edit[v].hint}), edit[v].types, hint=edit[v].hint)
        for i, v in zip(new, values, strict=False)
    ]
    inputs = (*body.inputs, *(n.id for n in given))
    return replace(body, name=edit.name(body.name), nodes=(*given, *body.nodes), inputs=inputs)


def _range(edit: Edit, found: Masked) -> tuple[int, int]:
    """First and stop, over the axes of the conditions but the keys'."""
    values = dict(zip(found.body.inputs, found.node.inputs, strict=True))
    for node in found.above:
        if node.op != "input":
            inputs = tuple(values[i] for i in node.inputs)
            values[node.id] = edit.add(node.op, inputs, node.attrs, hint=node.hint)
    mask, *rest = (values[i] for i in found.conditions)
    for other in rest:
        mask = edit.add("min", (mask, other))
    key = edit.add("index", (), {"axis": found.keys})
    none, one = (edit.add("const", (), {"value": n}, (INT,)) for n in (0, 1))
    size = edit.add("size", (), {"axis": found.keys})
    over = {"axes": (found.keys,)}
    seen = edit.add("where", (mask, one, none))  # one value of both, so that they are one kernel
    # The least is the greatest of what is turned round.
    ahead = edit.add("mul", (seen, edit.add("sub", (size, key))))
    first = edit.add("sub", (size, edit.add("amax", (ahead,), over)), hint="first_key")
    behind = edit.add("mul", (seen, edit.add("add", (key, one))))
    return first, edit.add("amax", (behind,), over, hint="stop_key")


# ------------------------------------------------------------------------------- guards


def _goes_on(edit: Edit, found: Masked) -> str:
    if any(function.states for function in edit.program.functions):
        return "a decoding step has few rows for all slots"
    return ""


def _costs(edit: Edit, found: Masked) -> str:
    for node in found.above:
        if node.op not in SOURCES | VIEWS and not is_elementwise(node):
            return f"the mask needs `{node.op}` at {line(node)}"
    return ""


GUARDS = (
    Guard("whole-sequence", "no earlier slots are attended to", _goes_on),
    Guard("cheap", "the mask is elementwise in what it reads", _costs),
)

VISIBLE_KEYS = Pass(
    "visible-keys",
    "sum_j softmax_j(s) v[j] = the sum from the first to the last j that the mask leaves",
    (
        Rule(
            "visible",
            see,
            ("attend",),
            masked,
            GUARDS,
            "attend(s, mask) = attend(s, mask) over min {j : mask} .. max {j : mask}",
        ),
    ),
)
