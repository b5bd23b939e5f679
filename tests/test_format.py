"""The canonical layout: what it looks like, and that it changes nothing."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archc.dsl import Source, format_file, parse


def formatted(text: str) -> str:
    return format_file(parse(Source("t.arch", text)))


def model(*lines: str) -> str:
    return "model M {\n" + "".join(f"  {line}\n" if line else "\n" for line in lines) + "}\n"


CANONICAL = {
    "empty": "",
    "one-line bodies": model("if a { b = 1; c = 2 } else { b = 2 }", "repeat l[i] { } until b"),
    "joined statements": model("a = 1; b = 2; c = 3", "", "d = 4; # joined no more"[:5]),
    "comments": model(
        "# above",
        "a = 1      # aligned",
        "bcd = 234  # with this",
        "",
        "e = 5  # apart",
        "# below",
    ),
    "a comment behind a brace": "model M {  # first\n  a = 1\n}  # last\n",
    "brackets": model(
        "y[..., s] = x[(g, r) -> h, e: 0..n, a: new] * -d ** -2 - f(-1, k = [1, 2])",
        'z = {"a": f, "b": (u[...], s) -> -u}["a"]',
        "scan s (reverse = true) with h[..., d] = 0 { h = h + [f(i) for i in (n)][0] }",
        "input x: ids[b, s] < vocab or -100 = y",
    ),
    "docstrings": (
        '"""A file."""\nuse std\n\nfn f(x) {\n  """Two lines,\n  the second.\n\n    Indented.\n'
        '  It "ends".\n  """\n  return x\n}\n'.replace('\n  It "ends".\n  """', '"""')
    ),
    "a checkpoint": (
        'checkpoint gguf "llama" for Llama {\n  prefix "model."?\n  require (config.a ?? 1) == 1\n'
        '  layers[i] at "layers.{i}." { "w"[(g, e), d] = q.w; alias "v" = q.w }\n'
        '  ignore "a.*", "b": "reason"; ignore config "c": "reason"\n}\n'
    ),
}


@pytest.mark.parametrize("name", CANONICAL)
def test_canonical_text_stays(name: str) -> None:
    assert formatted(CANONICAL[name]) == CANONICAL[name]


LONG = ", ".join(f"argument{i} = value{i}" for i in range(4))

REWRITTEN = {
    "blanks": ("model  M{a=1;b  =-2*c [ s->t ]  }", "model M { a = 1; b = -2 * c[s -> t] }\n"),
    "blank lines": ("\n\n\nuse a\n\n\n\nuse b\n\n", "use a\n\nuse b\n"),
    "indentation": ("model M {\na = 1\n   if a {\nb = 1 } }", "@a = 1@if a {@  b = 1@}"),
    "else": ("model M {\nif a\n{ b = 1 }\n\nelse\n{ b = 2 }\n}", "@if a { b = 1 } else { b = 2 }"),
    "trailing commas": ("model M {\na = f(1,\n  2,\n)\n}", "@a = f(1, 2)"),
    "carriage returns": ("use a # x \r\nuse b\r\n", "use a  # x\nuse b\n"),
    "a pipeline that fits": ("model M {\nx = x\n |> f\n |> g\n}", "@x = x |> f |> g"),
    "a long pipeline": (
        f"model M {{\nx += x |> f({LONG}) as f |> g\n}}",
        f"@x += x@  |> f({LONG}) as f@  |> g",
    ),
    "a long pipeline with comments": (
        "model M {\nx = x # why\n# how\n |> f\n}",
        "@x = x  # why@  # how@  |> f",
    ),
    "a long call keeps its breaks": (
        f"model M {{\nx = f(\n{LONG},\n{LONG}\n)\n}}",
        f"@x = f(@  {LONG},@  {LONG}@)",
    ),
    "a long signature keeps its breaks": (
        f"block f({LONG},\nx)\n(y[...],s)->[..., {'d' * 60}] {{ return y }}",
        f"block f({LONG},\n    x)\n    (y[...], s) -> [..., {'d' * 60}] {{\n  return y\n}}\n",
    ),
    "a long table": (
        'model M {\nf = { # one\n"a": b,\n# two\n"c": d}[e]\n}',
        '@f = {  # one@  "a": b,@  # two@  "c": d}[e]',
    ),
    "too many joined statements": (
        f"model M {{\n a = '{'a' * 60}'; b = '{'b' * 60}'; c = 1\n}}".replace("'", '"'),
        f"@a = '{'a' * 60}'@b = '{'b' * 60}'; c = 1".replace("'", '"'),
    ),
    "a comment between a body and its else": (
        "model M {\nif a { b = 1 } # one\n# two\nelse { b = 2 }\n}",
        "@if a {@  b = 1@}  # one@  # two@else {@  b = 2@}",
    ),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_rewritten(name: str) -> None:
    text, expected = REWRITTEN[name]
    if expected.startswith("@"):
        expected = "model M {" + expected.replace("@", "\n  ") + "\n}\n"
    assert formatted(text) == expected


# ------------------------------------------------------------------ laws


def check_laws(text: str) -> None:
    tree = parse(Source("t.arch", text))
    once = format_file(tree)
    assert parse(Source("t.arch", once)) == tree
    assert formatted(once) == once
    assert comments(once) == comments(text)
    assert not re.search(r"[ \t\r]$", once, re.MULTILINE)


def comments(text: str) -> list[str]:
    without_strings = re.sub(r'"""(?s:.*?)"""|"[^"\n]*"', "", text)
    return [comment.rstrip() for comment in re.findall(r"#[^\n]*", without_strings)]


@pytest.mark.parametrize("name", [*CANONICAL, *REWRITTEN])
def test_laws_hold_for_the_examples(name: str) -> None:
    check_laws(CANONICAL[name] if name in CANONICAL else REWRITTEN[name][0])


SHIPPED = [
    path
    for package in ("archc.std", "archc.examples")
    for path in files(package).iterdir()
    if path.name.endswith(".arch")
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_laws_hold_for_what_is_shipped(path) -> None:
    check_laws(path.read_text(encoding="utf-8"))


EXAMPLES = [path for path in SHIPPED if "examples" in str(path)]
LIMIT = 90  # lines of an example, its comments, documentation and checkpoint blocks apart


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_read_at_a_glance(path) -> None:
    text = re.sub(r'"""(?s:.*?)"""', "", path.read_text(encoding="utf-8"))
    text = re.sub(r"^checkpoint .*?^}", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.split("\n") if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= LIMIT


NAMES = st.sampled_from(["x", "value", "time", "a_rather_long_name_of_something", "in"])
ATOMS = st.one_of(NAMES, st.sampled_from(["1", "2.5", '"text"', "none", "f()"]))
GAP = st.sampled_from([" ", "", "\n", "  # note\n", "\n# a line\n\n"])


def compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    many = st.lists(inner, min_size=1, max_size=4)
    return st.one_of(
        st.builds("({}{}{})".format, GAP, inner, GAP),
        st.builds("{} {} ({})".format, ATOMS, st.sampled_from("+ - ** and ?? <".split()), inner),
        st.builds("f({}{}{})".format, GAP, many.map(",\n".join), GAP),
        st.builds("({} |> f({}){}|> g as h)".format, ATOMS, inner, GAP),
        st.builds("[{}]".format, many.map(" , ".join)),
        st.builds('{{{}"k" : {}, {}"l" : {}}}'.format, GAP, inner, GAP, inner),
        st.builds("((u[ ... ] , s) -> {})".format, inner),
        st.builds("x[a : ({}){}, (g,r)->h]".format, inner, GAP),
    )


VALUES = st.deferred(lambda: st.one_of(ATOMS, ATOMS, compound(VALUES)))
PLAIN = st.one_of(
    st.builds("{} = {}".format, st.sampled_from(["y", "y[..., s]", "y, z"]), VALUES),
    st.builds("y = ({}){}|> f({})\n|> g".format, VALUES, GAP, VALUES),
    st.builds("weight w[(out...), in:{}]".format, ATOMS),
    st.builds("buffer w[in:{}]=zeros".format, ATOMS),
    st.builds("return {}".format, VALUES),
)
ENDS = st.sampled_from(["\n", "; ", " # end\n", "\n\n\n", " ;\n# alone\n"])


def bodies(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    body = st.lists(st.tuples(inner, ENDS).map("".join), max_size=3).map("".join)
    braces = st.builds("{{{}{}}}".format, st.sampled_from(["", " ", "\n", " # open\n"]), body)
    return st.one_of(
        inner,
        st.builds("if {} {}".format, ATOMS, braces),
        st.builds("if {} {}{}else {}".format, ATOMS, braces, GAP, braces),
        st.builds("repeat l[i: ({})] {}".format, VALUES, braces),
        st.builds("repeat l[i] {} until {}".format, braces, ATOMS),
        st.builds("scan s (r = {}) with h = 0 {}".format, ATOMS, braces),
    )


STATEMENTS = st.deferred(lambda: st.one_of(PLAIN, PLAIN, bodies(STATEMENTS)))
TEXTS = st.lists(st.tuples(STATEMENTS, ENDS).map("".join), max_size=5).map("".join)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_laws_hold_for_generated_models(body: str) -> None:
    check_laws(f"model M {{{body}}}")


@settings(max_examples=100, deadline=None)
@given(st.text('ab"\\ \n\t#é', max_size=30), st.sampled_from(["", "  "]))
def test_docstrings_keep_their_words(words: str, indent: str) -> None:
    inner = re.sub('"""+', '""', words).rstrip('"')
    check_laws(f'model M {{\n{indent}"""{inner}"""\n}}')
