"""Python text of one function: single assignments become code a person would write.

Lowerings append statements whose operands are placeholders (`%7`). `Method.render` then puts a
short expression that is used once into its user, gives every value the name it has in the `.arch`
file (a name is free again after its last use), and prints with shapes and regions as comments.
Expressions are `ast` nodes, so parentheses are Python's business and no text of a user is pasted.
"""

from __future__ import annotations

import ast
import json
import keyword
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

Node = TypeVar("Node", bound=ast.AST)

WIDTH = 100
INLINE_WIDTH = 88  # an expression that would make its user longer gets a name
RESERVED = frozenset(keyword.kwlist) | set(
    "F PATHS TAPS affine_steps amax any append are_few as_rows cache cat check convolve delattr"
    " dequantise float getattr grouped_linear in_chunks int layer_states left len linear list max"
    " min nn onednn_linear pack packed_linear quantise quantised_linear range reversed rows_by_index"
    " self slice softmax stack substitute super torch zip".split()
)


@dataclass(slots=True)
class Statement:
    """`node` holds placeholders; `targets` are those it assigns.

    `hints` are the names wanted, `region` and `place` say where it came from, `note` is a comment
    on its shape. A statement that is not `movable` stays where it is (loops, taps, named values).
    """

    node: ast.stmt
    targets: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    region: str = ""
    place: str = ""
    note: str = ""
    movable: bool = False


@dataclass(slots=True)
class Method:
    """The body of one Python function under construction."""

    reserved: set[str] = field(default_factory=set)
    statements: list[Statement] = field(default_factory=list)
    count: int = 0  # of placeholders
    _assigned: dict[str, ast.Name] = field(default_factory=dict)  # text of value: placeholder

    def placeholder(self) -> str:
        self.count += 1
        return f"%{self.count}"

    def assign(
        self,
        value: ast.expr,
        hint: str,
        fallback: str,
        note: str,
        region: str = "",
        place: str = "",
    ) -> ast.Name:
        """A statement `placeholder = value`; returns the placeholder. Only one with a hint stays.

        The same expression again is the same value.
        """
        text = ast.unparse(value)
        if text in self._assigned:
            self.name(self._assigned[text], hint)
            return self._assigned[text]
        name = self.placeholder()
        self._assigned[text] = ast.Name(name)
        node = ast.Assign([ast.Name(name)], value, lineno=0)
        self.statements.append(
            Statement(node, (name,), (hint or fallback,), region, place, note, movable=not hint)
        )
        return ast.Name(name)

    def append(self, statement: Statement) -> None:
        self.statements.append(statement)

    def name(self, value: ast.expr, hint: str) -> None:
        """Gives the statement that defines placeholder `value` a name, unless it has one."""
        for statement in reversed(self.statements):
            if isinstance(value, ast.Name) and statement.targets == (value.id,):
                if statement.movable and hint:
                    statement.hints, statement.movable = (hint,), False
                return

    def render(self, indent: int, fixed: Mapping[str, str] | None = None) -> list[str]:
        """The lines of the body. `fixed` names the placeholders that are parameters."""
        fixed = dict(fixed or {})
        statements = inlined(self.statements, fixed)
        return _printed(statements, _named(statements, self.reserved, fixed), indent)


def identifier(text: str, taken: Iterable[str] = (), fallback: str = "x") -> str:
    """`text` as a Python identifier that is neither reserved nor `taken`."""
    stem = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or fallback
    stem = f"{fallback}_{stem}" if stem[0].isdigit() else stem
    used = RESERVED | set(taken)
    names = iter([stem, *(f"{stem}_{n}" for n in range(2, len(used) + 3))])
    return next(name for name in names if name not in used)


def expression(template: str, *operands: ast.expr, **words: ast.expr) -> ast.expr:
    """The expression `template` with `{0}`, `{1}`, ... and `{word}` replaced by expressions."""
    made = statement(template, *operands, **words)
    assert isinstance(made, ast.Expr)
    return made.value


def statement(template: str, *operands: ast.expr, **words: ast.expr) -> ast.stmt:
    """As `expression`, for a statement."""
    holes = {f"_{i}": operand for i, operand in enumerate(operands)}
    holes |= {f"_{word}": node for word, node in words.items()}
    text = template.format(*(f"_{i}" for i in range(len(operands))), **{w: f"_{w}" for w in words})
    return replaced(ast.parse(text).body[0], holes)


def replaced(node: Node, names: Mapping[str, ast.expr]) -> Node:
    """`node` with expressions in place of names; it is changed, unless it is a name itself."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node)  # type: ignore[return-value]
    for field_name in node._fields:
        part = getattr(node, field_name, None)
        if isinstance(part, ast.AST):
            setattr(node, field_name, replaced(part, names))
        elif isinstance(part, list):
            part[:] = [replaced(p, names) if isinstance(p, ast.AST) else p for p in part]
    return node


def number(value: float | int | bool) -> ast.expr:
    """A literal. Negative numbers are operators, infinities are torch's."""
    if isinstance(value, bool):
        return ast.Constant(value)
    if math.copysign(1, value) < 0:
        return ast.UnaryOp(ast.USub(), number(-value))
    if math.isfinite(value):
        return ast.Constant(value)
    return expression("torch.inf" if math.isinf(value) else "torch.nan")


def plain(text: str) -> str:
    """Text for a docstring or a comment: printable, and nothing that could end it."""
    return re.sub(r'["\\]|[^ -~]', "", text)


class _Quote(ast.NodeTransformer):
    """Strings in double quotes, which `ast.unparse` does not write."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return ast.Name(json.dumps(node.value)) if isinstance(node.value, str) else node


def text_of(node: ast.AST) -> str:
    text = ast.unparse(node)
    return ast.unparse(_Quote().visit(node)) if "'" in text else text


def _uses(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id.startswith("%"):
            yield part.id


def _reads(statement: Statement) -> Counter[str]:
    """Placeholders a statement reads, with multiplicity. An assignment's targets are not read."""
    reads = Counter(_uses(statement.node))
    if isinstance(statement.node, ast.Assign):
        reads.subtract(statement.targets)
    return +reads


def inlined(statements: list[Statement], fixed: Mapping[str, str] | None = None) -> list[Statement]:
    """Single-use expressions put into their users, first to last, where the line stays short."""
    reads = [_reads(s) for s in statements]
    gone = _unread(statements, reads)
    live = {i: read for i, read in enumerate(reads) if i not in gone}
    total = sum(live.values(), Counter[str]())
    users = {name: i for i, read in live.items() for name in read}
    hints = {t: h for s in statements for t, h in zip(s.targets, s.hints, strict=True)}
    lengths = [_length(s.node, {**hints, **(fixed or {})}) for s in statements]
    for i in sorted(live):
        name = statements[i].targets[0] if len(statements[i].targets) == 1 else ""
        if total[name] != 1:
            continue
        j = users[name]
        joined = lengths[i] + lengths[j] - len(f"{hints[name]} = {hints[name]}")
        if joined <= INLINE_WIDTH and _joins(statements[i], statements[j]):
            _join(statements[i], statements[j])
            lengths[j] = joined
            users |= dict.fromkeys(reads[i], j)
            gone.add(i)
    return [s for i, s in enumerate(statements) if i not in gone]


def _join(part: Statement, user: Statement) -> None:
    """Puts the expression of `part` into `user`, which keeps the name that the text knows."""
    assert isinstance(part.node, ast.Assign)
    replaced(user.node, {part.targets[0]: part.node.value})
    if user.movable and not part.movable:
        user.hints, user.movable = part.hints, False


def _length(node: ast.stmt, hints: Mapping[str, str]) -> int:
    """The length of a statement once its placeholders have their names."""
    names = sum(len(hints.get(name, "x")) - len(name) for name in _uses(node))
    return len(text_of(node)) + names


def _unread(statements: list[Statement], reads: list[Counter[str]]) -> set[int]:
    """Assignments whose targets nothing reads, directly or in the end."""
    left = sum(reads, Counter[str]())
    gone: set[int] = set()
    for i, statement in reversed(list(enumerate(statements))):
        pure = isinstance(statement.node, ast.Assign) and statement.targets
        if pure and not any(left[target] for target in statement.targets):
            gone.add(i)
            left -= reads[i]
    return gone


def _continues(part: Statement, user: Statement) -> bool:
    """Whether `user` only applies a parameter to `part`: `y = linear(x)`, then `y = y + b`."""
    if not (isinstance(user.node, ast.Assign) and isinstance(user.node.value, ast.BinOp)):
        return False
    sides = [user.node.value.left, user.node.value.right]
    named = [isinstance(side, ast.Name) and side.id in part.targets for side in sides]
    return any(named) and any(isinstance(side, ast.Attribute) for side in sides)


def _joins(part: Statement, user: Statement) -> bool:
    """Expressions stay in their region and out of loops, and named ones mostly by themselves."""
    if not (part.movable or _continues(part, user)):
        return False
    if isinstance(user.node, ast.Return):
        return True
    return isinstance(user.node, ast.Assign) and _section(part) == _section(user)


def _section(statement: Statement) -> str:
    return statement.region.split(".")[0]


def _named(
    statements: list[Statement], reserved: set[str], names: dict[str, str]
) -> dict[str, str]:
    """Placeholder -> identifier. A name may be taken again after the last use of its holder."""
    last = {name: i for i, s in enumerate(statements) for name in {*_reads(s), *s.targets}}
    live = {name: last.get(name, -1) for name in names}
    for i, statement in enumerate(statements):
        again = isinstance(statement.node, ast.For)  # the next round reads what this one does
        live = {name: end for name, end in live.items() if end >= i + (not again)}
        for target, hint in zip(statement.targets, statement.hints, strict=True):
            taken = reserved | {names[name] for name in live}
            names[target] = identifier(hint, taken)
            live[target] = last[target]
    return names


def _printed(statements: list[Statement], names: dict[str, str], indent: int) -> list[str]:
    lines: list[str] = []
    section = ""
    nodes: dict[str, ast.expr] = {k: ast.Name(v) for k, v in names.items()}
    for statement in statements:
        replaced(statement.node, nodes)
        if _is_identity(statement.node):
            continue
        if _section(statement) != section or isinstance(statement.node, ast.For):
            section = _section(statement)
            heading = f"{' ' * indent}# {plain(section)}{statement.place}"
            lines += ["", heading] if section else [""]
        lines += _with_note(format_node(statement.node, indent), statement.note)
    return lines


def _is_identity(node: ast.stmt) -> bool:
    """`x = x`: a loop's initial value already has the name it is carried under."""
    if not isinstance(node, ast.Assign) or type(node.targets[0]) is not type(node.value):
        return False
    return text_of(node.targets[0]) == text_of(node.value)


def _with_note(lines: list[str], note: str) -> list[str]:
    fits = len(lines[-1]) + len(note) + 4 <= WIDTH
    return [*lines[:-1], f"{lines[-1]}  # {note}"] if note and fits else lines


def format_node(node: ast.stmt, indent: int) -> list[str]:
    """A statement's lines, broken at the outermost call or operator where it is too long."""
    if isinstance(node, ast.For):
        head = f"{' ' * indent}for {_target_text(node.target)} in "
        body = (line for part in node.body for line in format_node(part, indent + 4))
        return [*_format(node.iter, head, ":", indent), *body]
    if isinstance(node, ast.Assign):
        heads = [_target_text(target) + " = " for target in node.targets]
        return _format(node.value, " " * indent + "".join(heads), "", indent)
    if isinstance(node, ast.Return) and node.value is not None:
        return _format(node.value, " " * indent + "return ", "", indent)
    if isinstance(node, ast.Expr):
        return _format(node.value, " " * indent, "", indent)
    return [" " * indent + line for line in text_of(node).split("\n")]


def _target_text(target: ast.expr) -> str:
    text = text_of(target)
    return text.strip("()") if isinstance(target, ast.Tuple) and len(target.elts) > 1 else text


def _format(node: ast.expr, head: str, tail: str, indent: int) -> list[str]:
    line = f"{head}{text_of(node)}{tail}"
    if len(line) <= WIDTH:
        return [line]
    breaker = _BREAKERS.get(type(node))
    return breaker(node, head, tail, indent) if breaker else [line]


def _break_call(node: ast.Call, head: str, tail: str, indent: int) -> list[str]:
    if not node.args and not node.keywords:
        return [f"{head}{text_of(node)}{tail}"]
    parts: list[tuple[str, ast.expr]] = [("", arg) for arg in node.args]
    parts += [(f"{k.arg}=" if k.arg else "**", k.value) for k in node.keywords]
    return _block(f"{head}{text_of(node.func)}(", parts, f"){tail}", indent)


def _break_display(node: ast.Tuple | ast.List, head: str, tail: str, indent: int) -> list[str]:
    opening, closing = "()" if isinstance(node, ast.Tuple) else "[]"
    return _block(head + opening, [("", e) for e in node.elts], closing + tail, indent)


def _break_comprehension(node: ast.ListComp, head: str, tail: str, indent: int) -> list[str]:
    (loop,) = node.generators
    inner = " " * (indent + 4)
    lines = _format(node.elt, inner, "", indent + 4)
    lines += _format(loop.iter, f"{inner}for {_target_text(loop.target)} in ", "", indent + 4)
    return [f"{head}[", *lines, f"{' ' * indent}]{tail}"]


def _break_dict(node: ast.Dict, head: str, tail: str, indent: int) -> list[str]:
    pairs = zip(node.keys, node.values, strict=True)
    return _block(head + "{", [(f"{text_of(k)}: ", v) for k, v in pairs if k], "}" + tail, indent)


def _block(opening: str, parts: list[tuple[str, ast.expr]], closing: str, indent: int) -> list[str]:
    """`opening`, the parts on one line if they fit, else one line each, `closing`."""
    inner = " " * (indent + 4)
    together = inner + ", ".join(prefix + text_of(node) for prefix, node in parts)
    if len(together) <= WIDTH:
        return [opening, together, " " * indent + closing]
    lines = [
        line for prefix, node in parts for line in _format(node, inner + prefix, ",", indent + 4)
    ]
    return [opening, *lines, " " * indent + closing]


def _break_operator(node: ast.BinOp, head: str, tail: str, indent: int) -> list[str]:
    """Terms under one another in parentheses, each with its operator in front."""
    terms: list[ast.BinOp] = []
    rest: ast.expr = node
    while isinstance(rest, ast.BinOp) and type(rest.op) is type(node.op):
        terms.insert(0, ast.BinOp(ast.Name("_"), rest.op, rest.right))
        rest = rest.left
    " " * (indent + 4)
    symbol = text_of(terms[0]).split(" ")[1]
    first = text_of(ast.BinOp(rest, node.op, ast.Name("_"))).removesuffix(f" {symbol} _")
    lines = _term(rest, "", first, indent + 4)
    for term in terms:
        lines += _term(term.right, symbol + " ", text_of(term)[2:], indent + 4)
    return [f"{head}(", *lines, f"{' ' * indent}){tail}"]


def _term(node: ast.expr, operator: str, text: str, indent: int) -> list[str]:
    """One operand; a call that is too long is broken (it needs no parentheses, others may)."""
    if isinstance(node, ast.Call):
        return _format(node, " " * indent + operator, "", indent)
    return [" " * indent + text]


_BREAKERS: dict[type[ast.expr], Callable[..., list[str]]] = {
    ast.Call: _break_call,
    ast.Tuple: _break_display,
    ast.List: _break_display,
    ast.ListComp: _break_comprehension,
    ast.Dict: _break_dict,
    ast.BinOp: _break_operator,
}
