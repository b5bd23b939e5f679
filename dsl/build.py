"""From reductions to the syntax tree: one row of `RULES` for each rule of the grammar.

A row is called with the rule's span and its children, in the order of the grammar: syntax nodes,
the text of names, the value of strings, and None for an optional part that was not written.
Most rows are a node class and the names of its fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from textwrap import dedent
from typing import Any, Literal

from .errors import ChainedComparison, DefinedTwice, NumberTooLarge, WrongParameter
from .grammar import DOC, OPERATOR, RELATION, STRING
from .lexer import Lexeme
from .span import Source, Span
from .syntax import (
    Argument,
    Assign,
    Attribute,
    AxisDecl,
    AxisGroup,
    AxisRef,
    BankStmt,
    Binary,
    Brackets,
    Call,
    CallableDef,
    CheckpointDef,
    CheckpointLine,
    Choice,
    Conditional,
    ConfigLine,
    ConstStmt,
    DecodeStmt,
    Expr,
    File,
    HyperParam,
    IfStmt,
    IgnoreLine,
    Index,
    InputParam,
    InputStmt,
    Lambda,
    ListExpr,
    ModelDef,
    Name,
    Node,
    Number,
    OutputStmt,
    Pipeline,
    PrefixLine,
    PresetDef,
    Relabel,
    RepeatStmt,
    RequireLine,
    ReturnStmt,
    ScanStmt,
    ScopeLine,
    Select,
    SharedStmt,
    Stage,
    Stmt,
    String,
    Table,
    Target,
    TensorLine,
    TimeStmt,
    Unary,
    UseItem,
    WeightStmt,
)

Row = Callable[..., Any]

LARGEST_INTEGER = 2**63 - 1


# ------------------------------------------------------------------ tokens


def token_value(lexeme: Lexeme, source: Source) -> object:
    """What a token is to the rows: text, a value, or the operator with its place."""
    if lexeme.kind == STRING:
        return lexeme.text[1:-1]
    if lexeme.kind == DOC:
        return doc_words(lexeme.text)
    if lexeme.kind in (OPERATOR, RELATION) or lexeme.kind in BINDING | PREFIX:
        return _Operator(lexeme.text, Span(source, lexeme.start, lexeme.end))
    return lexeme.text


def doc_words(text: str) -> str:
    """The words of a docstring, without quotes and without the indentation of its lines."""
    first, newline, rest = text[3:-3].strip().partition("\n")
    lines = "\n".join(line.rstrip() for line in rest.split("\n"))
    return first.rstrip() + newline + dedent(lines)


def _number(span: Span, text: str) -> Number:
    value: int | float = float(text)  # first, for int() takes no thousands of digits
    if value != float("inf") and text.isdigit():
        value = int(text)
    if value > LARGEST_INTEGER and (text.isdigit() or value == float("inf")):
        raise NumberTooLarge(span=span, whole=text.isdigit())
    return Number(span=span, value=value, text=text)


# ------------------------------------------------------------------ operators


@dataclass(frozen=True, slots=True)
class _Operator:
    text: str
    span: Span


# How tightly an operator binds. A prefix binds as tightly as PREFIX says: `-x ** 2` is `-(x ** 2)`.
BINDING = {
    "or": 1, "and": 2,
    "==": 4, "!=": 4, "<": 4, "<=": 4, ">": 4, ">=": 4,
    "??": 5, "+": 6, "-": 6, "*": 7, "/": 7, "//": 7, "%": 7, "**": 9,
}  # fmt: skip
PREFIX = {"not": 3, "-": 8}
COMPARISON = BINDING["=="]


def _row_of_operators(_: Span, *row: Expr | _Operator) -> Expr:
    """Group `a + b * c ..` by `BINDING`, with a stack and no recursion."""
    operands: list[Expr] = []
    waiting: list[tuple[int, _Operator, bool]] = []  # binding, operator, whether it is a prefix
    after_operand = False
    for i, item in enumerate(row):
        if not isinstance(item, _Operator):
            operands.append(item)
        elif after_operand:
            binding = BINDING[item.text]
            while waiting and waiting[-1][0] >= binding and item.text != "**":
                if waiting[-1][0] == binding == COMPARISON:
                    raise _chained(operands, waiting[-1][1], item, row[i + 1])
                _apply(operands, waiting.pop())
            waiting.append((binding, item, False))
        else:
            waiting.append((PREFIX[item.text], item, True))
        after_operand = not isinstance(item, _Operator)
    while waiting:
        _apply(operands, waiting.pop())
    return operands[0]


def _apply(operands: list[Expr], waiting: tuple[int, _Operator, bool]) -> None:
    _, operator, is_prefix = waiting
    right = operands.pop()
    op: Any = operator.text
    if is_prefix:
        operands.append(Unary(span=operator.span.to(right.span), op=op, operand=right))
    else:
        left = operands.pop()
        span = left.span.to(right.span)
        operands.append(Binary(span=span, op=op, left=left, right=right))


def _chained(
    operands: list[Expr], first: _Operator, second: _Operator, last: Expr | _Operator
) -> ChainedComparison:
    left, middle = operands[-2].span.text, operands[-1].span.text
    return ChainedComparison(
        span=second.span,
        first=first.span,
        left=f"{left} {first.text} {middle}",
        right=f"{middle} {second.text} {last.span.text}",
    )


# ------------------------------------------------------------------ signatures


@dataclass(frozen=True, slots=True)
class _Param:
    """An entry of a parameter list, before it is known which list that is."""

    span: Span
    name: str
    brackets: Brackets | None = None
    default: Expr | None = None
    pack: bool = False


def _hyper(param: _Param) -> HyperParam:
    if param.brackets is not None:
        raise WrongParameter(
            span=param.span, what="a tensor", where="among hyperparameters",
            advice="inputs stand in the second list: `f(hyperparameters)(inputs)`",
        )  # fmt: skip
    return HyperParam(span=param.span, name=param.name, default=param.default, pack=param.pack)


def _input(param: _Param) -> InputParam:
    if param.pack:
        raise WrongParameter(
            span=param.span, what="a pack", where="among inputs",
            advice="a pack is a hyperparameter: `f(out...)(x[..., in])`",
        )  # fmt: skip
    return InputParam(
        span=param.span, name=param.name, brackets=param.brackets, default=param.default
    )


@dataclass(frozen=True, slots=True)
class _Body:
    doc: str | None
    statements: tuple[Stmt, ...]


def _callable(
    kind: Literal["block", "fn"],
) -> Callable[..., CallableDef]:
    def build(
        span: Span,
        name: str,
        first: tuple[_Param, ...],
        second: tuple[_Param, ...] | None,
        results: tuple[Brackets, ...] | None,
        body: _Body | Expr,
    ) -> CallableDef:
        short = not isinstance(body, _Body)
        if isinstance(body, Expr):
            body = _Body(None, (ReturnStmt(span=body.span, values=(body,)),))
        return CallableDef(
            span=span,
            kind=kind,
            name=name,
            hypers=None if second is None else tuple(map(_hyper, first)),
            inputs=tuple(map(_input, first if second is None else second)),
            results=results,
            doc=body.doc,
            body=body.statements,
            short=short,
        )

    return build


# ------------------------------------------------------------------ other irregular rows


def _file(span: Span, doc: str | None, *items: Any) -> File:
    whole = Span(span.source, 0, len(span.source.text))
    return File(span=whole, doc=doc, items=items)


def _model(span: Span, name: str, body: _Body) -> ModelDef:
    return ModelDef(span=span, name=name, doc=body.doc, body=body.statements)


def _if(
    span: Span, condition: Expr, then: tuple[Stmt, ...], otherwise: tuple[Stmt, ...] | Stmt | None
) -> IfStmt:
    if isinstance(otherwise, Stmt):
        otherwise = (otherwise,)
    return IfStmt(span=span, condition=condition, then=then, otherwise=otherwise or ())


def _scan(
    span: Span,
    axis: str,
    options: tuple[Argument, ...] | None,
    states: tuple[tuple[Target, Expr], ...],
    body: tuple[Stmt, ...],
) -> ScanStmt:
    return ScanStmt(span=span, axis=axis, options=options or (), states=states, body=body)


def _lambda(span: Span, *children: Any) -> Lambda:
    *params, body = children
    return Lambda(span=span, inputs=tuple(map(_input, params)), body=body)


def _axis_ref(span: Span, value: Expr) -> AxisRef:
    return AxisRef(span=span, name=value.name if isinstance(value, Name) else None, value=value)


def _group(span: Span, *members: tuple[str, Expr | None]) -> AxisGroup:
    names, sizes = zip(*members, strict=True)
    return AxisGroup(span=span, names=names, sizes=sizes, grouped=True)


def _one_axis(span: Span, name: str) -> AxisGroup:
    return AxisGroup(span=span, names=(name,), sizes=(None,), grouped=False)


def _checkpoint(
    span: Span,
    format_: str | None,
    class_names: tuple[str, ...],
    model: str,
    lines: tuple[CheckpointLine, ...],
) -> CheckpointDef:
    format_ = format_ or "huggingface"
    return CheckpointDef(
        span=span, format=format_, class_names=class_names, model=model, lines=lines
    )


def _table(span: Span, *entries: tuple[str, Expr]) -> Table:
    DefinedTwice.check((f'"{key}"', value.span) for key, value in entries)
    return Table(span=span, entries=entries)


# ------------------------------------------------------------------ the table


def _node(cls: type[Node], fields: str, **fixed: object) -> Row:
    """A row that fills `fields` of `cls` with the children; `*name` takes those that remain."""
    *single, last = fields.split() or [""]
    rest = last[1:] if last.startswith("*") else None
    names = [*single, last] if last and rest is None else single

    def build(span: Span, *children: object) -> Node:
        values = dict(zip(names, children, strict=rest is None))
        if rest is not None:
            values[rest] = children[len(names) :]
        return cls(span=span, **values, **fixed)

    return build


def _all(_: Span, *children: object) -> tuple[object, ...]:
    return children


def _only(_: Span, child: object) -> object:
    return child


RULES: dict[str, Row] = {
    "file": _file,
    "use": _node(UseItem, "name"),
    "model": _model,
    "preset": _node(PresetDef, "name value"),
    "block": _callable("block"),
    "fn": _callable("fn"),
    "short_fn": _callable("fn"),
    "definition": lambda _, doc, *statements: _Body(doc, statements),
    # signatures
    "params": _all,
    "param": _Param,
    "pack_param": lambda span, name: _Param(span, name, pack=True),
    "choice": _node(Choice, "*options"),
    "results": _all,
    "axes": _all,
    "axis": _node(AxisDecl, "name size", kind="axis"),
    "axis_pack": _node(AxisDecl, "name", kind="pack"),
    "axis_open": _node(AxisDecl, "", kind="open"),
    "axis_group": _node(AxisDecl, "*group", kind="group"),
    # statements
    "body": _all,
    "assign": _node(Assign, "targets op value"),
    "assign_op": _only,
    "targets": _all,
    "target": _node(Target, "name brackets"),
    "weight": _node(WeightStmt, "name brackets init"),
    "buffer": _node(WeightStmt, "name brackets init", trained=False),
    "const": _node(ConstStmt, "name brackets value"),
    "bank": _node(BankStmt, "name brackets value"),
    "shared": _node(SharedStmt, "name value"),
    "input": _node(InputStmt, "name kind brackets below extra default"),
    "time": _node(TimeStmt, "axis *facts"),
    "fact": _all,
    "decode": _node(DecodeStmt, "axis after"),
    "output": _node(OutputStmt, "name brackets value"),
    "return": _node(ReturnStmt, "*values"),
    "if": _if,
    "repeat": _node(RepeatStmt, "path index count body until"),
    "scan": _scan,
    "states": _all,
    "state": _all,
    # expressions
    "pipeline": _node(Pipeline, "value *stages"),
    "stage": _node(Stage, "call label"),
    "lambda": _lambda,
    "conditional": _node(Conditional, "then condition otherwise"),
    "logic": _row_of_operators,
    "sum": _row_of_operators,
    "name": _node(Name, "name"),
    "constant": _only,
    "number": _number,
    "string": _node(String, "value"),
    "call": _node(Call, "function arguments"),
    "attribute": _node(Attribute, "value name"),
    "index": _node(Index, "value items"),
    "parenthesis": lambda span, expr: replace(expr, span=span),
    "list": _node(ListExpr, "*items"),
    "comprehension": lambda span, item, variable, over: ListExpr(
        span=span, items=(item,), variable=variable, over=over
    ),
    "table": _table,
    "entry": _all,
    "arguments": _all,
    "positional": _node(Argument, "value"),
    "keyword": _node(Argument, "name value"),
    "axis_argument": _node(Argument, "name value", axis=True),
    "items": _all,
    "axis_ref": _axis_ref,
    "axis_rest": _node(AxisRef, "", name="..."),
    "select": _node(Select, "axis start"),
    "slice": _node(Select, "axis start stop", is_slice=True),
    "relabel": _node(Relabel, "source target"),
    "one_axis": _one_axis,
    "merged": _group,
    "split": _group,
    "member": _all,
    # checkpoints
    "checkpoint": _checkpoint,
    "lines": _all,
    "config": _node(ConfigLine, "name value"),
    "require": _node(RequireLine, "condition"),
    "tensor": _node(TensorLine, "file_name brackets value"),
    "alias": _node(TensorLine, "file_name brackets value", alias=True),
    "scope": _node(ScopeLine, "path prefix lines"),
    "path_name": _node(Name, "name"),
    "path_attribute": _node(Attribute, "value name"),
    "path_index": _node(Index, "value items"),
    "ignore": _node(IgnoreLine, "patterns reason"),
    "ignore_config": _node(IgnoreLine, "patterns reason", config=True),
    "patterns": _all,
    "prefix": _node(PrefixLine, "prefixes", optional=False),
    "prefix_optional": _node(PrefixLine, "prefixes", optional=True),
    "alternatives": _all,
}
