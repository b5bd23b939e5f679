"""One spelling for one idea, so that later passes need one rule each:

    f(c, c') -> a constant      x + 0, x * 1, x / 1 -> x      c + x -> x + c
    rename, split and merge, transpose and cast chains -> the shortest one
    split(merge(x)) -> x        equal nodes -> one node

Legal everywhere: each rule is an identity of the op table. Casts are floors, so raising and
lowering a value with nothing in between is nothing; `round_to` changes values and is never
touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...dsl.dims import Dim, maximum, minimum
from ..ir.graph import AttrValue, Axis, Node, TensorType
from ..ops.numeric import np
from ..ops.registry import Call, Precision, evaluate
from ..rewrite import Edit, Guard, Outcome, Pass, Rule
from .properties import constant, is_elementwise

COMMUTATIVE = frozenset({"add", "mul", "min", "max", "eq"})

# op -> the right operand that leaves the left one as it is
NEUTRAL: dict[str, int] = {"add": 0, "sub": 0, "mul": 1, "div": 1, "pow": 1, "floordiv": 1}

SIZE_ARITHMETIC = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "min": minimum,
    "max": maximum,
}


def fold_constants(edit: Edit, node: Node) -> Outcome:
    """An elementwise op of numbers is a number. Sizes stay symbolic where the algebra allows."""
    operands = edit.operands(node)
    if not operands or node.axes or not is_elementwise(node):
        return None
    values = [constant(o) for o in operands]
    if any(v is None for v in values):
        return None
    if any(isinstance(v, Dim) for v in values):
        return _fold_sizes(edit, node, values)
    call = Call(node.attrs, tuple(o.type for o in operands), node.types, {}, Precision("f64"))
    with np.errstate(all="ignore"):
        (result,) = evaluate(node.op, call, [np.asarray(v) for v in values])
    return _constant(edit, result.item(), node.type)


def _fold_sizes(edit: Edit, node: Node, values: list[int | float | bool | Dim | None]) -> Outcome:
    rule = SIZE_ARITHMETIC.get(node.op)
    if rule is None or node.type.dtype != "int":
        return None
    return _constant(edit, rule(*(Dim.of(v) for v in values)), node.type)  # type: ignore[arg-type]


def _constant(edit: Edit, value: int | float | bool | Dim, kind: TensorType) -> int:
    return edit.add("const", (), {"value": value, "dtype": kind.dtype}, (kind,))


def neutral(edit: Edit, node: Node) -> Iterator[Node]:
    """`x op c` where c is the right neutral element of op."""
    if len(node.inputs) == 2:
        value = constant(edit[node.inputs[1]])
        number = node.op in NEUTRAL and not isinstance(value, Dim) and value == NEUTRAL[node.op]
        truth = (
            node.op in ("min", "max") and isinstance(value, bool) and value == (node.op == "min")
        )
        if number or truth:
            yield node


def drop_neutral(edit: Edit, node: Node) -> int:
    return node.inputs[0]


def constant_first(edit: Edit, node: Node) -> Iterator[Node]:
    if constant(edit[node.inputs[0]]) is not None:
        yield node


def constants_right(edit: Edit, node: Node) -> int:
    return edit.add(node.op, node.inputs[::-1], node.attrs)


def _constant_last(edit: Edit, node: Node) -> bool:
    return constant(edit[node.inputs[1]]) is not None


def decided(edit: Edit, node: Node) -> Iterator[Node]:
    """A choice by a constant."""
    if constant(edit[node.inputs[0]]) is not None:
        yield node


def decide_where(edit: Edit, node: Node) -> int:
    return node.inputs[1 if constant(edit[node.inputs[0]]) else 2]


def same_kind(kept: Callable[[Edit, Node], int]) -> Guard:
    """What is kept of a node may stand in its place: it has its dtype and its axes."""

    def refuse(edit: Edit, node: Node) -> bool:
        old, new = node.type, edit[kept(edit, node)].type
        return new.dtype != old.dtype or set(new.axes) != set(old.axes)

    return Guard("same-kind", "x has the dtype and the axes of the result", refuse)


def double_not(edit: Edit, node: Node) -> Outcome:
    (inner,) = edit.operands(node)
    return inner.inputs[0] if inner.op == "not" else None


def shorten_cast(edit: Edit, node: Node) -> Outcome:
    """A cast to what the value is; a value raised and lowered again; raised twice."""
    (x,) = edit.operands(node)
    if x.type.dtype == node.type.dtype:
        return x.id
    if x.op != "cast":
        return None
    source = edit[x.inputs[0]]
    if source.type.dtype == node.type.dtype == "float":
        return source.id
    if x.type.dtype == "f32" and node.type.dtype == "f64":
        return edit.add("cast", (source.id,), node.attrs)
    return None


def shorten_rename(edit: Edit, node: Node) -> Outcome:
    """No renaming, renaming twice, and the index of a renamed axis."""
    (x,) = edit.operands(node)
    pairs = {old: new for old, new in node.attrs.pairs("pairs") if old != new}
    if not pairs:
        return x.id
    if x.op == "index":
        return edit.add("index", (), {"axis": pairs[x.attrs.axis("axis")]})
    if x.op != "rename":
        return None
    first = dict(x.attrs.pairs("pairs"))
    source = edit[x.inputs[0]]
    through = {a: pairs.get(first.get(a, a), first.get(a, a)) for a in source.axes}
    together = tuple((a, b) for a, b in through.items() if a != b)
    return edit.add("rename", (source.id,), {"pairs": together}) if together else source.id


def renamed_expression(edit: Edit, node: Node) -> Iterator[Node]:
    (x,) = edit.operands(node)
    if is_elementwise(x) and x.inputs:
        yield node


def rename_sources(edit: Edit, node: Node) -> int:
    """A renamed expression of indices and numbers is the expression of renamed indices."""
    (x,) = edit.operands(node)
    inputs = tuple(_renamed(edit, o, dict(node.attrs.pairs("pairs"))) for o in edit.operands(x))
    return edit.add(x.op, inputs, x.attrs)


def _is_stored(edit: Edit, node: Node) -> bool:
    return not _made_of_indices(edit, edit[node.inputs[0]])


def _made_of_indices(edit: Edit, node: Node) -> bool:
    if node.op in ("const", "index"):
        return True
    return is_elementwise(node) and all(_made_of_indices(edit, o) for o in edit.operands(node))


def _renamed(edit: Edit, node: Node, pairs: dict[Axis, Axis]) -> int:
    kept = tuple((old, new) for old, new in pairs.items() if old in node.axes)
    return edit.add("rename", (node.id,), {"pairs": kept}) if kept else node.id


def shorten_transpose(edit: Edit, node: Node) -> Outcome:
    (x,) = edit.operands(node)
    if x.axes == node.axes:
        return x.id
    return edit.add("transpose", x.inputs, node.attrs) if x.op == "transpose" else None


def whole_slice(edit: Edit, node: Node) -> int:
    """A slice of everything is at most a renaming."""
    axis, into = node.attrs.axis("axis"), node.attrs.axis("into")
    if axis == into:
        return node.inputs[0]
    return edit.add("rename", node.inputs, {"pairs": ((axis, into),)})


def _strides(edit: Edit, node: Node) -> bool:
    return node.attrs["step"] != 1


def _is_shorter(edit: Edit, node: Node) -> bool:
    return node.attrs.axis("axis").size != node.attrs.axis("into").size


@dataclass(frozen=True, slots=True)
class Relabelled:
    """A split of a merge, or a merge of a split: of which axis and parts each is."""

    source: int
    axes: tuple[AttrValue, AttrValue]
    parts: tuple[AttrValue, AttrValue]


def relabelled(edit: Edit, node: Node) -> Iterator[Relabelled]:
    (x,) = edit.operands(node)
    named = {"merge": ("into", "axes"), "split": ("axis", "into")}
    if x.op in named and x.op != node.op:
        (axis, parts), (above, above_parts) = named[node.op], named[x.op]
        yield Relabelled(
            x.inputs[0],
            (node.attrs[axis], x.attrs[above]),
            (node.attrs[parts], x.attrs[above_parts]),
        )


def cancel_relabel(edit: Edit, found: Relabelled) -> int:
    return found.source


def _differs_in_axis(edit: Edit, found: Relabelled) -> bool:
    return found.axes[0] != found.axes[1]


def _differs_in_parts(edit: Edit, found: Relabelled) -> bool:
    return found.parts[0] != found.parts[1]


def one_part(edit: Edit, node: Node) -> Outcome:
    """A concatenation of one operand is a renaming."""
    if len(node.inputs) != 1:
        return None
    pairs = ((node.attrs.axes("parts")[0], node.attrs.axis("axis")),)
    return edit.add("rename", node.inputs, {"pairs": pairs})


def empty_broadcast(edit: Edit, node: Node) -> Outcome:
    return None if node.attrs["axes"] else node.inputs[0]


def share_equal(edit: Edit, node: Node) -> Outcome:
    """Two nodes of one op, operands and attributes are one value; the earlier one stays."""
    if node.op in ("input", "repeat"):
        return None
    twins = [n.id for n in _neighbours(edit, node) if n.id != node.id and _equal(n, node)]
    earlier = [i for i in twins if edit.before(i, node.id)]
    return earlier[0] if earlier else None


def _neighbours(edit: Edit, node: Node) -> Iterator[Node]:
    if node.inputs:
        yield from edit.users(node.inputs[0])
    else:
        yield from (n for n in edit.nodes() if n.op == node.op)


def _equal(a: Node, b: Node) -> bool:
    return (a.op, a.inputs, a.attrs, a.types) == (b.op, b.inputs, b.attrs, b.types)


# What any pass may leave behind.
TIDY = (
    Rule("shorten-cast", shorten_cast, ("cast",), equation="cast(cast(x)) = cast(x)"),
    Rule("shorten-transpose", shorten_transpose, ("transpose",), equation="(x')' = x"),
    Rule("share-equal", share_equal, equation="f(x), f(x) = f(x)"),
)

CANCEL_RELABEL = Rule(
    "cancel-relabel",
    cancel_relabel,
    ("split", "merge"),
    relabelled,
    (
        Guard("same-axis", "what is split is what was merged, or the other way", _differs_in_axis),
        Guard("same-parts", "into the same parts in the same order", _differs_in_parts),
    ),
    "split(merge(x)) = x = merge(split(x))",
)

CANONICALIZE = Pass(
    "canonicalize",
    "x + 0 = x, f(c) = c', split(merge(x)) = x, equal nodes are one node",
    (
        Rule("fold-constants", fold_constants, equation="f(c) = c'"),
        Rule(
            "drop-neutral",
            drop_neutral,
            (*NEUTRAL, "min", "max"),
            neutral,
            (same_kind(drop_neutral),),
            "x + 0 = x - 0 = x * 1 = x / 1 = x, p and true = p or false = p",
        ),
        Rule(
            "constants-right",
            constants_right,
            tuple(sorted(COMMUTATIVE)),
            constant_first,
            (Guard("one-constant", "the right operand is no constant", _constant_last),),
            "c + x = x + c",
        ),
        Rule(
            "decide-where",
            decide_where,
            ("where",),
            decided,
            (same_kind(decide_where),),
            "where(true, x, y) = x",
        ),
        Rule("double-not", double_not, ("not",), equation="not not p = p"),
        Rule(
            "shorten-rename", shorten_rename, ("rename",), equation="x[a -> b][b -> c] = x[a -> c]"
        ),
        Rule(
            "rename-sources",
            rename_sources,
            ("rename",),
            renamed_expression,
            (Guard("of-indices", "x is made of indices and numbers alone", _is_stored),),
            "f(index(a))[a -> b] = f(index(b))",
        ),
        Rule(
            "whole-slice",
            whole_slice,
            ("slice",),
            guards=(
                Guard("forward", "it takes every entry in order", _strides),
                Guard("whole", "it takes as many as there are", _is_shorter),
            ),
            equation="x[a: 0, 1, .., |a| - 1] = x",
        ),
        CANCEL_RELABEL,
        Rule("one-part", one_part, ("concat",), equation="concat(x) = x"),
        Rule("empty-broadcast", empty_broadcast, ("broadcast",), equation="broadcast(x, ()) = x"),
        *TIDY,
    ),
)
