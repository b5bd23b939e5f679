"""The text of programs: both round-trip laws, a reader that never crashes, and the verifier."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archc.compiler.ir.graph import (
    Attrs,
    Axis,
    Builder,
    Constraint,
    Function,
    Node,
    Parameter,
    Program,
    TensorType,
)
from archc.compiler.ir.text import canonical, parse, show
from archc.compiler.ir.verify import verify
from archc.compiler.ops import OPS, infer
from archc.compiler.ops.registry import SAMPLE_SIZES
from archc.dsl import dims
from archc.dsl.diagnostics import InternalError
from archc.dsl.dims import Dim
from archc.dsl.errors import IrSyntax

TINY = """\
program Tiny(d = 12, n = 5)
axis s: <s>
axis d: <d>
axis two: <2>
axis e: <d // 2>
axis m: <d>
parameter layers[0].w: [two, e], [d] = "normal(0.02)"
parameter layers[1].w: [two, e], [d]
require <s> <= <4096>

function main(%0) {
  %0 = input {kind = "float", name = "x"} : float[s, d]
  %1 = repeat(%0) {indices = (0, 1), kinds = ("layer", "layer"), path = "layers", scalars = ((1.0, -inf),)} : float[s, d]
  %2 = result(%1) {index = 0} : float[s, d]
  return y = %2
}

function layer(%0, %1) {
  %0 = input : float[s, d]
  %1 = input : float[]
  %2 = weight {path = "w"} : float[two, e, d]
  %3 = merge(%2) {axes = (two, e), into = m} : float[m, d]
  return x = %0
}
"""  # noqa: E501


def sample_programs() -> list[Program]:
    """Each sample of each op as a program: its operands as inputs, its results as outputs."""
    programs = []
    for name, op in OPS.items():
        for sample in op.samples:
            attrs = {k: v for k, v in sample.attrs.items()}
            build = Builder("main")
            types = [sample.inputs] if name == "result" else [(t,) for t in sample.inputs]
            inputs = tuple(
                build.add("input", (), {"name": f"x{i}", "kind": "float"}, t)
                for i, t in enumerate(types)
            )
            node = build.add(name, inputs, attrs, infer(name, Attrs(attrs), sample.inputs))
            main = build.finish([("y", node)])
            programs.append(Program(name, (main,), tuple(SAMPLE_SIZES.items())))
    return programs


def every_kind_of_value() -> Program:
    """Odd names, all attribute values, constraints, a second entry, several results."""
    odd, none = Axis("two words", Dim.of(3)), Axis("none", Dim.symbol("n") // 2, "two words")
    attrs = {
        "axis": odd,
        "axes": (none, odd),
        "dim": dims.maximum(Dim.symbol("n") - 3, 2 * Dim.symbol("a") * Dim.symbol("n")),
        "empty": (),
        "nested": ((1, 2.0), (), ("a", (None, True))),
        "numbers": (-1, -0.5, 1e-05, 1e30, float("inf"), float("-inf")),
        "text": 'a "quote", a \\ and a\nline, é',
    }
    float_of = TensorType("float", (odd, none))
    node = Node(7, "topk", (), Attrs(attrs), (float_of, TensorType("bool")))
    main = Function("start here", (node,), (), (("an output", 7),))
    return Program(
        "Odd name",
        (main,),
        (("n", 4), ("a", -1)),
        (
            Parameter("p[0].w", (odd, none), ((odd, none),), 'normal("x")', ("a b", "in")),
            Parameter("s", (), ()),
            Parameter("b", (odd,), ((odd,),), trained=False),
        ),
        (Constraint(Dim.symbol("n"), "<=", Dim.of(9)), Constraint(Dim.of(1), "==", Dim.of(1))),
        main_name="start here",
        decode="two words",
    )


PROGRAMS = [*sample_programs(), every_kind_of_value(), parse(TINY)]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_text_parses_back(program):
    text = show(program)
    assert parse(text) == canonical(program)
    assert show(parse(text)) == text
    assert parse(show(program, locs=True)) == canonical(program)


@pytest.mark.parametrize("program", sample_programs(), ids=lambda p: p.name)
def test_sample_programs_verify(program):
    assert verify(program) is program


def test_printed_text_is_what_the_module_shows():
    assert show(parse(TINY)) == TINY


BAD_TEXTS = {
    "an op nobody knows": (TINY.replace("merge(", "merg("), "no op `merg`"),
    "an axis nobody declared": (TINY.replace("into = m", "into = mm"), "no axis `mm`"),
    "a value from below": (TINY.replace("return x = %0", "return x = %9"), "%9"),
    "a value twice": (TINY.replace("%1 = input : float[]", "%0 = input : float[]"), "twice"),
    "an axis twice": (TINY.replace("axis e:", "axis d:"), "twice"),
    "an attribute twice": (TINY.replace("index = 0", "index = 0, index = 1"), "twice"),
    "no such kind": (TINY.replace('("layer", "layer")', '("layer", "lair")'), "no function `lair`"),
    "no main": (TINY.replace("function main", "function mein"), "no function `main`"),
    "a bad size": (TINY.replace("<d // 2>", "<d // 0>"), "not a size"),
    "a bad dtype": (TINY.replace("float[two", "floot[two"), "no element kind"),
    "a bad escape": (TINY.replace('"w"', '"\\x"'), "escape"),
    "an endless integer": (TINY.replace("n = 5", "n = " + "5" * 9999), "too long"),
    "deep nesting": (TINY.replace("index = 0", "index = " + "(" * 9999), "too deep"),
    "a deep size": (TINY.replace("<2>", f"<{'(' * 99999}2>"), "not a size"),
    "the end": (TINY[:-3], "the end"),
    "a stray character": (TINY.replace("%2 =", "%2 @"), "'@'"),
}


@pytest.mark.parametrize(("text", "words"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_a_bad_text_is_a_person_s_mistake(text, words):
    with pytest.raises(IrSyntax) as caught:
        parse(text)
    assert words in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_reader_is_total(data):
    """Cuts, swaps and repeats of a good text give a program or an IrSyntax."""
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(TINY))] * 2)))
    piece = data.draw(
        st.sampled_from(["", TINY[start:end] * 2, *'%"<>({[=:,', "%99", "<d>", "(,)"])
    )
    try:
        text = show(parse(TINY[:start] + piece + TINY[end:]))
    except IrSyntax:
        return
    assert show(parse(text)) == text


SIZES = st.recursive(
    st.integers(-9, 9).map(Dim.of) | st.sampled_from("abcd").map(Dim.symbol),
    lambda inner: st.builds(
        lambda f, x, y: f(x, y) if f is not Dim.__floordiv__ or y.terms else x,
        st.sampled_from(
            [
                Dim.__add__,
                Dim.__sub__,
                Dim.__mul__,
                Dim.__floordiv__,
                dims.minimum,
                dims.maximum,
            ]
        ),
        inner,
        inner,
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(SIZES)
def test_sizes_parse_back(size):
    assert dims.parse(str(size)) == size


def corrupt(program: Program, name: str, op: str, **changes: object) -> Program:
    """The program with the first `op` node of function `name` changed."""
    function = program.function(name)
    node = next(n for n in function.nodes if n.op == op)
    nodes = tuple(replace(node, **changes) if n is node else n for n in function.nodes)
    return swapped(program, replace(function, nodes=nodes))


def swapped(program: Program, function: Function) -> Program:
    """The program with another function of that name, whatever it calls."""
    same = tuple(function if f.name == function.name else f for f in program.functions)
    return replace(program, functions=same)


def bad_programs() -> dict[str, tuple[Program, str]]:
    text = TINY.replace("%3 = merge(%2) {axes = (two, e), into = m} : float[m, d]", "")
    tiny = parse(text)
    layer = tiny.function("layer")
    weight = layer.nodes[-1]
    axes = weight.type.axes
    return {
        "a wrong type": (
            corrupt(tiny, "main", "result", types=(TensorType("f32", axes),)),
            "the shape rule gives",
        ),
        "a cycle of functions": (
            parse(text.replace('("layer", "layer")', '("main", "main")')),
            "calls itself",
        ),
        "no parameter": (parse(text.replace('path = "w"', 'path = "u"')), "layers[0].u"),
        "a parameter of other axes": (
            corrupt(tiny, "layer", "weight", types=(TensorType("float", axes[::-1]),)),
            "other axes",
        ),
        "an id twice": (
            swapped(tiny, replace(layer, nodes=(*layer.nodes, weight))),
            "id is taken",
        ),
        "a value from below": (
            corrupt(tiny, "main", "input", inputs=(2,)),
            "not above it",
        ),
        "an iteration too many": (
            parse(text.replace("(0, 1)", "(0, 1, 2)")),
            "kinds and indices",
        ),
        "an argument too few": (
            parse(text.replace("((1.0, -inf),)", "()")),
            "takes 1 scalars",
        ),
        "two sizes of an axis": (
            corrupt(tiny, "layer", "weight", types=(TensorType("float", (Axis("d", Dim.of(1)),)),)),
            "two axes",
        ),
        "an unknown function": (
            corrupt(tiny, "main", "repeat", attrs=Attrs({"kinds": ("nowhere",)})),
            "nowhere",
        ),
        "an input that is none": (
            swapped(tiny, replace(layer, inputs=layer.inputs[:1])),
            "not its input nodes",
        ),
        "sizes that only bindings tell apart": (
            parse(TINY.replace("<d // 2>", "<d // 3>")),
            "differ",
        ),
    }


@pytest.mark.parametrize("name", bad_programs())
def test_the_verifier_names_the_place(name):
    program, words = bad_programs()[name]
    with pytest.raises(InternalError) as caught:
        verify(program)
    assert words in str(caught.value)
