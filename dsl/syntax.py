"""The syntax tree: one frozen dataclass per construct, each with the span it was read from.

Nothing here knows what a program means. `parse.py` builds these, `format.py` prints them back,
`compiler/elaborate.py` gives them meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Literal

from .span import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    span: Span = field(compare=False, repr=False)


# --------------------------------------------------------------------------- expressions


@dataclass(frozen=True, slots=True, kw_only=True)
class Expr(Node):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Name(Expr):
    """`x`. The keywords `true`, `false`, `none` and `new` are names too; meaning is given later."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Number(Expr):
    """`3`, `1e-5`. `text` is kept for the formatter."""

    value: int | float
    text: str = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class String(Expr):
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListExpr(Expr):
    """`[1, 2]`, or `[f(i) for i in n]` when `variable` is given (`items` then holds one)."""

    items: tuple[Expr, ...]
    variable: str | None = None
    over: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(Expr):
    """`{"silu": silu, "gelu": gelu}`: compile-time choice by a string."""

    entries: tuple[tuple[str, Expr], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unary(Expr):
    op: Literal["-", "not"]
    operand: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary(Expr):
    """Arithmetic, comparison, `and`, `or`, and `??` (left unless it is none)."""

    op: Literal[
        "+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "and", "or", "??"
    ]
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditional(Expr):
    """`then if condition else otherwise`, decided at compile time."""

    condition: Expr
    then: Expr
    otherwise: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument(Node):
    """One argument: positional (`name` none), `name = value`, or an axis argument `name: value`."""

    value: Expr
    name: str | None = None
    axis: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Expr):
    """`f(a, k = b, g: n)`."""

    function: Expr
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute(Expr):
    """`embed.w`, `config.hidden_size`."""

    value: Expr
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisGroup(Node):
    """One axis, or a parenthesised row-major group; a member may carry a size: `(g: 4, r)`."""

    names: tuple[str, ...]
    sizes: tuple[Expr | None, ...]
    grouped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabel(Node):
    """`s -> t`, `(g, r) -> h`, `h -> (g: 4, r)`."""

    source: AxisGroup
    target: AxisGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Select(Node):
    """`a: expr` (take, pick or `new`), or a slice `a: start..stop` (`is_slice`; `stop` may be none)."""

    axis: str
    start: Expr
    is_slice: bool = False
    stop: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisRef(Node):
    """A bare axis in brackets (`x[b, s]`), the open part `...`, or a list index `kinds[i + 1]`.

    `name` (`...` for the open part) is none when the bracket holds an expression that is no name;
    `value` always holds it.
    """

    name: str | None
    value: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Index(Expr):
    """`x[...]`: relabel, select, order; `list[i]`, `bank[i]` when the item is one `AxisRef`."""

    value: Expr
    items: tuple[Relabel | Select | AxisRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Node):
    """One stage of a pipeline: `attention(heads) as self`. `call` is the text after `|>`."""

    call: Expr
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline(Expr):
    """`x |> f(..) as a |> g`."""

    value: Expr
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Expr):
    """`"half" | "interleaved"`, only as a hyperparameter's default: the first is the default."""

    options: tuple[Expr, ...]


# ---------------------------------------------------------------- signatures and declarations


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisDecl(Node):
    """One entry of declared brackets: `s`, `i: n`, `...`, `out...` (pack), or a group `(g, r, e)`.

    `kind` is "axis", "open" (`...`), "pack" (`out...`) or "group" (members in `group`).
    """

    kind: Literal["axis", "open", "pack", "group"]
    name: str = ""
    size: Expr | None = None
    group: tuple[AxisDecl, ...] = ()


Brackets = tuple[AxisDecl, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperParam(Node):
    """`heads`, `bias = false`, `out...` (pack), `pairing = "half" | "interleaved"`."""

    name: str
    default: Expr | None = None
    pack: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InputParam(Node):
    """`x[..., d]` (a tensor, `brackets` given), or `s` (an axis, `brackets` none); maybe a default."""

    name: str
    brackets: Brackets | None = None
    default: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lambda(Expr):
    """`(a[...], s) -> expr`."""

    inputs: tuple[InputParam, ...]
    body: Expr


# --------------------------------------------------------------------------- statements


@dataclass(frozen=True, slots=True, kw_only=True)
class Stmt(Node):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Target(Node):
    """A name on the left of `=`, with annotated axes or none."""

    name: str
    brackets: Brackets | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign(Stmt):
    """`y[..., s, n] = expr`, `w, i = topk(..)`, `x += expr`."""

    targets: tuple[Target, ...]
    op: Literal["=", "+="]
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightStmt(Stmt):
    """`weight w[(out...), in] = init`. A `buffer` is a weight that is stored and not trained."""

    name: str
    brackets: Brackets
    init: Expr | None = None
    trained: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstStmt(Stmt):
    """`const f[i: n] = expr`: a table evaluated once, in float64."""

    name: str
    brackets: Brackets
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class BankStmt(Stmt):
    """`bank f[n] = block`."""

    name: str
    brackets: Brackets
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedStmt(Stmt):
    """`shared e = embedding(vocab, d)`."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStmt(Stmt):
    """`input x: ids[b, s] < vocab or -100 = default`."""

    name: str
    kind: str
    brackets: Brackets
    below: Expr | None = None
    extra: Expr | None = None
    default: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeStmt(Stmt):
    """`time s: valid = m, position = p, segment = g`."""

    axis: str
    facts: tuple[tuple[str, Expr], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeStmt(Stmt):
    """`decode s`, `decode s after p`."""

    axis: str
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputStmt(Stmt):
    """`output y[b, s, v] = expr`."""

    name: str
    brackets: Brackets | None
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnStmt(Stmt):
    values: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IfStmt(Stmt):
    """Compile-time choice. `else if` nests in `otherwise`."""

    condition: Expr
    then: tuple[Stmt, ...]
    otherwise: tuple[Stmt, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatStmt(Stmt):
    """`repeat path[index: count] { } until cond`; `count` none means the hyperparameter `path`."""

    path: str
    index: str
    count: Expr | None
    body: tuple[Stmt, ...]
    until: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanStmt(Stmt):
    """`scan s (reverse = r) with h[..., n] = 0 { }`."""

    axis: str
    options: tuple[Argument, ...]
    states: tuple[tuple[Target, Expr], ...]
    body: tuple[Stmt, ...]


# --------------------------------------------------------------------------- definitions


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition(Node):
    name: str
    doc: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallableDef(Definition):
    """A `block` (owns weights) or a `fn` (owns none).

    `hypers` is none when only one list was written (a one-list `fn`: its list is the inputs).
    `results` holds one bracket list per result, none when `->` was not written. A `fn f() = expr`
    has a body of one `ReturnStmt` and `short` set.
    """

    kind: Literal["block", "fn"]
    hypers: tuple[HyperParam, ...] | None
    inputs: tuple[InputParam, ...]
    results: tuple[Brackets, ...] | None
    body: tuple[Stmt, ...]
    short: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDef(Definition):
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetDef(Definition):
    """`preset p = M(d = 64)`."""

    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class UseItem(Node):
    """`use std`."""

    name: str


# --------------------------------------------------------------------------- checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLine(Node):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigLine(CheckpointLine):
    """`d = config.hidden_size ?? 768`: a hyperparameter of the model, or a local."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireLine(CheckpointLine):
    """`require not config.attention_bias`: what this file can express of a config field."""

    condition: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLine(CheckpointLine):
    """`"file.name"[rows, d] = expr over weights`. `alias` marks a second name of the same data."""

    file_name: str
    brackets: Brackets | None
    value: Expr
    alias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeLine(CheckpointLine):
    """`layers[i] at "model.layers.{i}." { .. }`."""

    path: Expr
    prefix: str
    lines: tuple[CheckpointLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IgnoreLine(CheckpointLine):
    """`ignore "attn.bias", "rotary.*": "recomputed"`; `config` says config fields, not tensors."""

    patterns: tuple[str, ...]
    reason: str | None = None
    config: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixLine(CheckpointLine):
    """`prefix "transformer."?`: a leading part of every name, which may be absent when `optional`.

    Of several, `prefix "a." or "b."`, it is the first that the file has.
    """

    prefixes: tuple[str, ...]
    optional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDef(Node):
    """`checkpoint huggingface "Class", "Other" for M { }`, `checkpoint gguf "arch" for M { }`."""

    format: str
    class_names: tuple[str, ...]
    model: str
    lines: tuple[CheckpointLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class File(Node):
    doc: str | None
    items: tuple[UseItem | CallableDef | ModelDef | PresetDef | CheckpointDef, ...]


def walk(node: object) -> Iterator[Node]:
    """Every syntax node under (and including) `node`, in text order."""
    pending = [node]
    while pending:
        item = pending.pop()
        if isinstance(item, Node):
            yield item
            kind: type = type(item)
            pending += [getattr(item, name) for name in _parts(kind)]
        elif isinstance(item, tuple):
            pending += item[::-1]


@cache
def _parts(kind: type) -> tuple[str, ...]:
    """The fields that can hold nodes, last first."""
    names = [f.name for f in fields(kind) if f.name != "span" and f.type not in ("str", "bool")]
    return tuple(reversed(names))
