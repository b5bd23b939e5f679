"""Programs as text that parses back: `parse(show(p)) == canonical(p)`, `show(parse(t)) == t`.

    program Tiny(d = 12)
    axis s: <s>
    axis t on s: <s>                              # a rename of s: it has s's timeline
    parameter layers[0].q: [g, e], [d] as (g, e, in) = "normal"

    function main(%0) {
      %0 = input {kind = "float", name = "x"} : float[s, d]
      %1 = rename(%0) {pairs = ((s, t),)} : float[t, d]
      return y = %1
    }

Values are numbered in print order, attributes sorted, sizes in angle brackets in canonical form.
Line breaks mean nothing to the reader and `#` starts a comment. The reader is total: whatever the
text, it returns a program or raises `IrSyntax`. It checks names, not types: `verify` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ...dsl import dims
from ...dsl.diagnostics import did_you_mean
from ...dsl.dims import Dim
from ...dsl.errors import IrSyntax
from ...dsl.span import Source, Span
from .graph import (
    Attrs,
    AttrValue,
    Axis,
    Constraint,
    DType,
    Function,
    Node,
    Parameter,
    Program,
    TensorType,
)

Item = TypeVar("Item")

BARE = re.compile(r"[A-Za-z_][\w.']*(?:\[[0-9]+\][\w.']*)*")  # also `layers[3].attention.q`
WORDS: dict[str, AttrValue] = {
    "none": None,
    "true": True,
    "false": False,
    "inf": float("inf"),
    "nan": float("nan"),
}
RESERVED = {*WORDS, "axis"}


def canonical(program: Program) -> Program:
    """The program with the values of each function numbered 0, 1, ... in order."""
    return replace(program, functions=tuple(map(_renumbered, program.functions)))


def _renumbered(function: Function) -> Function:
    new = {node.id: i for i, node in enumerate(function.nodes)}
    return Function(
        function.name,
        tuple(
            replace(node, id=new[node.id], inputs=tuple(new[i] for i in node.inputs))
            for node in function.nodes
        ),
        tuple(new[i] for i in function.inputs),
        tuple((name, new[i]) for name, i in function.outputs),
    )


# ------------------------------------------------------------------------------------- printing


def show(program: Program, *, locs: bool = False) -> str:
    """The text of a program. `locs` adds each value's name, source and region as a comment."""
    lines = [f"program {_name(program.name)}({_pairs(program.bindings)})"]
    if program.main_name != "main":
        lines.append(f"entry {_name(program.main_name)}")
    if program.decode:
        after = f" after {_name(program.after)}" if program.after else ""
        lines.append(f"decode {_name(program.decode)}{after}")
    lines += map(_show_axis, all_axes(program))
    lines += map(_show_parameter, program.parameters)
    lines += [f"require <{c.left}> {c.op} <{c.right}>" for c in program.constraints]
    for function in program.functions:
        lines += ["", show_function(function, locs=locs)]
    return "\n".join(lines) + "\n"


def show_function(function: Function, *, locs: bool = False) -> str:
    """The text of one function, its values numbered in order."""
    function = _renumbered(function)
    arguments = ", ".join(f"%{i}" for i in function.inputs)
    results = ", ".join(f"{_name(name)} = %{i}" for name, i in function.outputs)
    nodes = [f"  {show_node(n)}{_location(n) if locs else ''}" for n in function.nodes]
    head = f"function {_name(function.name)}({arguments}) {{"
    return "\n".join([head, *nodes, f"  return {results}", "}"])


def show_node(node: Node) -> str:
    """One line: `%3 = add(%1, %2) : float[s, d]`."""
    operands = f"({', '.join(f'%{i}' for i in node.inputs)})" if node.inputs else ""
    attrs = f" {{{_pairs(tuple(node.attrs.items()))}}}" if node.attrs else ""
    types = ", ".join(map(_show_type, node.types))
    return f"%{node.id} = {node.op}{operands}{attrs} : {types}"


def all_axes(program: Program) -> tuple[Axis, ...]:
    """Every axis that the program mentions, in order of first mention."""
    found: dict[Axis, None] = {}
    for function in program.functions:
        for node in function.nodes:
            found |= dict.fromkeys(axis for t in node.types for axis in t.axes)
            found |= dict.fromkeys(a for v in node.attrs.values() for a in _axes_in(v))
    found |= dict.fromkeys(axis for p in program.parameters for axis in p.axes)
    return tuple(found)


def _axes_in(value: AttrValue) -> Iterator[Axis]:
    if isinstance(value, Axis):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _axes_in(item)


def _show_axis(axis: Axis) -> str:
    timeline = f" on {_name(axis.time)}" if axis.time is not None else ""
    return f"axis {_name(axis.name)}{timeline}: <{axis.size}>"


def _show_parameter(parameter: Parameter) -> str:
    shown = [f"[{', '.join(_name(a.name) for a in g)}]" for g in parameter.grouping]
    banks = [f"bank {group}" for group in shown[: parameter.banks]]
    groups = ", ".join([*banks, *shown[parameter.banks :]])
    word = "parameter" if parameter.trained else "buffer"
    text = f"{word} {_name(parameter.path)}: {groups}"
    if parameter.declared:
        text += f" as ({', '.join(map(_name, parameter.declared))})"
    return f"{text} = {json.dumps(parameter.init)}" if parameter.init else text


def _show_type(type_: TensorType) -> str:
    return f"{type_.dtype}[{', '.join(_name(a.name) for a in type_.axes)}]"


def _location(node: Node) -> str:
    places = [
        f"{origin.spans[0]} {origin.region}".strip() for origin in node.origins if origin.spans
    ]
    words = [node.hint, *places] if node.hint else places
    return f"  # {', '.join(words)}" if words else ""


def _pairs(items: tuple[tuple[str, AttrValue], ...]) -> str:
    return ", ".join(f"{_name(name)} = {_show_value(value)}" for name, value in items)


def _show_value(value: AttrValue) -> str:
    if isinstance(value, tuple):
        inner = ", ".join(map(_show_value, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, Axis):
        bare = BARE.fullmatch(value.name) and value.name not in RESERVED
        return value.name if bare else f"axis {json.dumps(value.name)}"
    if isinstance(value, Dim):
        return f"<{value}>"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value).lower()


def _name(name: str) -> str:
    return name if BARE.fullmatch(name) else json.dumps(name)


# ------------------------------------------------------------------------------------- reading


def parse(text: str, name: str = "<ir>") -> Program:
    """Reads a program. Raises IrSyntax, which points into `text` under the given name."""
    return _Reader(list(_tokens(Source(name, text)))).program()


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    span: Span


TOKEN = re.compile(
    r"""(?P<skip>(?:\s|\#[^\n]*)+)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<size><[^<>\n]*>)
      | (?P<value>%[0-9]+)
      | (?P<number>-?(?:inf\b|[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?))
      | (?P<name>"""
    + BARE.pattern
    + r""")
      | (?P<mark>==|<=|[=(){}\[\],:])""",
    re.VERBOSE,
)
DEEPEST = 40  # nesting of attribute values


def _tokens(source: Source) -> Iterator[Token]:
    place = 0
    while place < len(source.text):
        found = TOKEN.match(source.text, place)
        if found is None:
            character = source.text[place]
            raise IrSyntax(
                problem=f"{character!r} starts no word", span=Span(source, place, place + 1)
            )
        kind, span = str(found.lastgroup), Span(source, place, found.end())
        if kind != "skip":
            yield Token(kind, found.group(), span)
        place = found.end()
    yield Token("end", "", Span(source, place, place))


@dataclass(slots=True)
class _Reader:
    """One method per construct; each consumes the tokens of its construct."""

    tokens: list[Token]
    place: int = 0
    axes: dict[str, Axis] = field(default_factory=dict)
    depth: int = 0

    # Tokens

    @property
    def ahead(self) -> Token:
        return self.tokens[self.place]

    def next(self) -> Token:
        token = self.ahead
        self.place += token.kind != "end"
        return token

    def fail(self, problem: str, token: Token, advice: str = "") -> IrSyntax:
        return IrSyntax(problem=problem, advice=advice, span=token.span)

    def take(self, kind: str, words: str) -> Token:
        token = self.next()
        if token.kind != kind:
            raise self.fail(f"expected {words}, found `{token.text or 'the end'}`", token)
        return token

    def has(self, text: str) -> bool:
        """Consumes the mark or word `text` if it comes next."""
        found = self.ahead.text == text and self.ahead.kind in ("mark", "name")
        self.place += found
        return found

    def expect(self, text: str) -> None:
        if not self.has(text):
            raise self.fail(
                f"expected `{text}`, found `{self.ahead.text or 'the end'}`", self.ahead
            )

    def list_of(self, item: Callable[[], Item], close: str) -> tuple[Item, ...]:
        """Items separated by commas up to the mark `close`; a comma may precede it."""
        items: list[Item] = []
        while not self.has(close):
            items.append(item())
            if not self.has(","):
                self.expect(close)
                break
        return tuple(items)

    def unique(self, pairs: tuple[tuple[str, Item], ...]) -> tuple[tuple[str, Item], ...]:
        if len(dict(pairs)) != len(pairs):
            raise self.fail("a name occurs twice in this list", self.ahead)
        return pairs

    # Words

    def name(self) -> str:
        if self.ahead.kind == "string":
            return self.string()
        return self.take("name", "a name").text

    def string(self) -> str:
        token = self.take("string", "a string")
        try:
            return str(json.loads(token.text))
        except ValueError:
            raise self.fail("this string has an escape that means nothing", token) from None

    def integer(self) -> int:
        token = self.take("number", "an integer")
        number = self.number(token)
        if not isinstance(number, int):
            raise self.fail("expected an integer", token)
        return number

    def number(self, token: Token) -> int | float:
        try:
            return float(token.text) if re.search(r"[.einf]", token.text) else int(token.text)
        except ValueError:  # Python limits the digits of an integer
            raise self.fail("this number is too long", token) from None

    def size(self) -> Dim:
        token = self.take("size", "a size such as `<2*d>`")
        try:
            return dims.parse(token.text[1:-1])
        except (ValueError, ZeroDivisionError, RecursionError):
            raise self.fail(f"`{token.text[1:-1]}` is not a size", token) from None

    def axis(self) -> Axis:
        token = self.ahead
        name = self.name()
        if name not in self.axes:
            raise self.fail(f"no axis `{name}`", token, did_you_mean(name, self.axes))
        return self.axes[name]

    def value(self) -> AttrValue:
        """An attribute's value."""
        token = self.next()
        if token.kind == "number":
            return self.number(token)
        if token.text in WORDS:
            return WORDS[token.text]
        if token.text == "(":
            return self.nested(token)
        if token.text == "axis":
            return self.axis()
        self.place -= token.kind != "end"
        if token.kind == "string":
            return self.string()
        return self.size() if token.kind == "size" else self.axis()

    def nested(self, token: Token) -> tuple[AttrValue, ...]:
        if self.depth == DEEPEST:
            raise self.fail("this value is nested too deep", token)
        self.depth += 1
        items = self.list_of(self.value, ")")
        self.depth -= 1
        return items

    # Declarations

    def program(self) -> Program:
        self.expect("program")
        name = self.name()
        self.expect("(")
        bindings = self.unique(self.list_of(self.binding, ")"))
        entry = self.name() if self.has("entry") else "main"
        decode = self.name() if self.has("decode") else ""
        after = self.name() if decode and self.has("after") else ""
        while self.has("axis"):
            self.declare_axis()
        parameters = tuple(self.parameters())
        constraints = tuple(self.while_has("require", self.constraint))
        functions = tuple(self.while_has("function", self.function))
        self.take("end", "a function or the end")
        self.check_functions(functions, entry)
        return Program(name, functions, bindings, parameters, constraints, entry, decode, after)

    def while_has(self, word: str, item: Callable[[], Item]) -> Iterator[Item]:
        while self.has(word):
            yield item()

    def binding(self) -> tuple[str, int]:
        name = self.name()
        self.expect("=")
        return name, self.integer()

    def declare_axis(self) -> None:
        token = self.ahead
        name = self.name()
        time = self.name() if self.has("on") else None
        self.expect(":")
        if name in self.axes:
            raise self.fail(f"axis `{name}` is declared twice", token)
        self.axes[name] = Axis(name, self.size(), time)

    def parameters(self) -> Iterator[Parameter]:
        while (trained := self.has("parameter")) or self.has("buffer"):
            yield self.parameter(trained)

    def parameter(self, trained: bool) -> Parameter:
        path = self.name()
        self.expect(":")
        grouping: list[tuple[Axis, ...]] = []
        banks = 0
        while (bank := self.has("bank")) or self.has("["):
            if bank:
                self.expect("[")
                banks += 1
            grouping.append(self.list_of(self.axis, "]"))
            self.has(",")
        axes = tuple(axis for group in grouping for axis in group)
        declared: tuple[str, ...] = ()
        if self.has("as"):
            self.expect("(")
            declared = self.list_of(self.name, ")")
        init = self.string() if self.has("=") else ""
        return Parameter(path, axes, tuple(grouping), init, declared, trained, banks)

    def constraint(self) -> Constraint:
        left, equal = self.size(), self.has("==")
        if not equal:
            self.expect("<=")
        return Constraint(left, "==" if equal else "<=", self.size())

    # Functions

    def function(self) -> Function:
        return _FunctionReader(self, self.name()).read()

    def check_functions(self, functions: tuple[Function, ...], entry: str) -> None:
        names = self.unique(tuple((f.name, f) for f in functions))
        known = dict(names)
        called = {callee for f in functions for callee in f.called}
        for name in (entry, *sorted(called)):
            if name not in known:
                raise self.fail(f"no function `{name}`", self.ahead, did_you_mean(name, known))

    def type(self) -> TensorType:
        token = self.ahead
        dtype = self.take("name", "an element kind").text
        if dtype not in DTYPES:
            raise self.fail(f"no element kind `{dtype}`", token, did_you_mean(dtype, DTYPES))
        self.expect("[")
        axes = self.list_of(self.axis, "]")
        if len({axis.name for axis in axes}) != len(axes):
            raise self.fail("an axis occurs twice in this type", token)
        return TensorType(DTYPES[dtype], axes)


DTYPES: dict[str, DType] = {
    "float": "float",
    "f32": "f32",
    "f64": "f64",
    "int": "int",
    "i8": "i8",
    "bool": "bool",
}


@dataclass(slots=True)
class _FunctionReader:
    """Reads one function; `nodes` are the values defined so far."""

    reader: _Reader
    name: str
    nodes: dict[int, Node] = field(default_factory=dict)

    def read(self) -> Function:
        reader = self.reader
        reader.expect("(")
        inputs = reader.list_of(lambda: reader.take("value", "a value such as `%0`"), ")")
        reader.expect("{")
        while reader.ahead.kind == "value":
            node = self.node()
            self.nodes[node.id] = node
        reader.expect("return")
        outputs = reader.unique(reader.list_of(self.output, "}"))
        ids = tuple(self.resolve(token) for token in inputs)
        return Function(self.name, tuple(self.nodes.values()), ids, outputs)

    def output(self) -> tuple[str, int]:
        name = self.reader.name()
        self.reader.expect("=")
        return name, self.operand()

    def operand(self) -> int:
        return self.resolve(self.reader.take("value", "a value such as `%0`"))

    def resolve(self, token: Token) -> int:
        number = self.number(token)
        if number not in self.nodes:
            raise self.reader.fail(f"`{token.text}` is not defined above", token)
        return number

    def number(self, token: Token) -> int:
        return int(self.reader.number(replace(token, text=token.text[1:])))

    def node(self) -> Node:
        reader = self.reader
        token = reader.take("value", "a value")
        number = self.number(token)
        if number in self.nodes:
            raise reader.fail(f"`{token.text}` is defined twice", token)
        reader.expect("=")
        op = self.op()
        inputs = reader.list_of(self.operand, ")") if reader.has("(") else ()
        attrs = reader.list_of(self.attribute, "}") if reader.has("{") else ()
        reader.expect(":")
        types = [reader.type()]
        while reader.has(","):
            types.append(reader.type())
        return Node(number, op, inputs, Attrs(dict(reader.unique(attrs))), tuple(types))

    def op(self) -> str:
        from ..ops import OPS  # ops import the graph's types

        token = self.reader.take("name", "an op")
        if token.text not in OPS:
            problem = f"there is no op `{token.text}`"
            raise self.reader.fail(problem, token, did_you_mean(token.text, OPS))
        return token.text

    def attribute(self) -> tuple[str, AttrValue]:
        name = self.reader.name()
        self.reader.expect("=")
        return name, self.reader.value()
