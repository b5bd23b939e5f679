"""Text to syntax tree: every construct, its spans, and what no text may do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archc.dsl import Source, format_file, parse, parse_file
from archc.dsl import syntax as syn
from archc.dsl.diagnostics import ArchError, Diagnostics
from archc.dsl.grammar import GRAMMAR, TABLES, grammar
from archc.dsl.lexer import FOREIGN_OPERATORS, LARGEST_FILE
from archc.dsl.tables import compile_grammar


def tree(text: str) -> syn.File:
    return parse(Source("t.arch", text))


def statements(*lines: str) -> tuple[syn.Stmt, ...]:
    model = tree("model M {\n" + "\n".join(lines) + "\n}").items[0]
    assert isinstance(model, syn.ModelDef)
    return model.body


def expr(text: str) -> syn.Expr:
    (statement,) = statements(f"y = {text}")
    assert isinstance(statement, syn.Assign)
    return statement.value


def grouped(node: syn.Expr) -> str:
    """An expression with every operator in parentheses."""
    match node:
        case syn.Binary():
            return f"({grouped(node.left)} {node.op} {grouped(node.right)})"
        case syn.Unary():
            return f"({node.op} {grouped(node.operand)})"
        case syn.Conditional():
            parts = (node.then, node.condition, node.otherwise)
            return "({} if {} else {})".format(*map(grouped, parts))
        case _:
            return node.span.text


def mistakes(text: str) -> tuple[ArchError, ...]:
    try:
        tree(text)
    except Diagnostics as found:
        return found.errors
    return ()


def ids(text: str) -> list[str]:
    return [error.id for error in mistakes(text)]


# ------------------------------------------------------------------ expressions


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a + b * c", "(a + (b * c))"),
        ("a - b - c", "((a - b) - c)"),
        ("a ** b ** c", "(a ** (b ** c))"),
        ("-a ** 2", "(- (a ** 2))"),
        ("2 ** -a", "(2 ** (- a))"),
        ("-a * b", "((- a) * b)"),
        ("a // b % c", "((a // b) % c)"),
        ("a ?? b == c", "((a ?? b) == c)"),
        ("not a == b and c or d", "(((not (a == b)) and c) or d)"),
        ("a or b and not c", "(a or (b and (not c)))"),
        ("a if b < c else d if e else f", "(a if (b < c) else (d if e else f))"),
        ("- - a", "(- (- a))"),
        ("x[a: 0..n].w - f(1)", "(x[a: 0..n].w - f(1))"),
    ],
)
def test_precedence(text: str, meaning: str) -> None:
    assert grouped(expr(text)) == meaning


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1.", 1.0), (".5", 0.5), ("1e-5", 1e-5), ("2.5E3", 2500.0), ("1e4", 10000.0)],
)
def test_numbers(text: str, value: float) -> None:
    number = expr(text)
    assert isinstance(number, syn.Number)
    assert (number.value, type(number.value), number.text) == (value, type(value), text)


def test_a_slice_from_zero_is_not_a_float() -> None:
    sliced = expr("x[e: 0..]")
    assert isinstance(sliced, syn.Index)
    (item,) = sliced.items
    assert isinstance(item, syn.Select)
    assert item.is_slice
    assert item.stop is None
    assert item.start == expr("0")


def test_brackets() -> None:
    index = expr("x[b, ..., s -> t, (g, r) -> h, d -> (p: 2, q), a: i + 1, c: new, i]")
    assert isinstance(index, syn.Index)
    kinds = [type(item).__name__ for item in index.items]
    assert kinds == ["AxisRef", "AxisRef", *["Relabel"] * 3, "Select", "Select", "AxisRef"]
    rest, merge, split = index.items[1], index.items[3], index.items[4]
    assert isinstance(rest, syn.AxisRef)
    assert rest.name == "..."
    assert isinstance(merge, syn.Relabel)
    assert (merge.source.names, merge.source.grouped) == (("g", "r"), True)
    assert (merge.target.names, merge.target.grouped) == (("h",), False)
    assert isinstance(split, syn.Relabel)
    assert [size is not None for size in split.target.sizes] == [True, False]


def test_an_expression_in_brackets_indexes_a_list() -> None:
    index = expr("kinds[i + 1]")
    assert isinstance(index, syn.Index)
    (item,) = index.items
    assert isinstance(item, syn.AxisRef)
    assert item.name is None
    assert item.value == expr("i + 1")


def test_arguments() -> None:
    call = expr("linear(d, g: 4, bias = true)")
    assert isinstance(call, syn.Call)
    assert [(a.name, a.axis) for a in call.arguments] == [
        (None, False),
        ("g", True),
        ("bias", False),
    ]


def test_pipelines_keep_labels_per_stage() -> None:
    pipeline = expr("x |> norm(eps) as n |> act |> linear(d) as out")
    assert isinstance(pipeline, syn.Pipeline)
    assert [stage.label for stage in pipeline.stages] == ["n", None, "out"]


@pytest.mark.parametrize(
    "body", ["u + near(s, t)", "u |> g", "(u |> g)", "u if causal else v", "(v) -> u"]
)
def test_lambdas(body: str) -> None:
    call = expr(f"attend(score = (u[...], s, t = m) -> {body}, k = 1)")
    assert isinstance(call, syn.Call)
    value = call.arguments[0].value
    assert isinstance(value, syn.Lambda)
    assert [(p.name, p.brackets is None) for p in value.inputs] == [
        ("u", False),
        ("s", True),
        ("t", True),
    ]
    assert value.body == expr(body)
    assert len(call.arguments) == 2


def test_lists_tables_and_comprehensions() -> None:
    assert expr("[1, 2,]") == expr("[1, 2]")
    assert expr("[]").items == ()
    made = expr("[f(i) for i in n // 2]")
    assert isinstance(made, syn.ListExpr)
    assert (made.variable, made.over) == ("i", expr("n // 2"))
    table = expr('{\n  "a": f,\n  "b": (x) -> x,\n}[kind]')
    assert isinstance(table, syn.Index)
    assert isinstance(table.value, syn.Table)
    assert [key for key, _ in table.value.entries] == ["a", "b"]


# ------------------------------------------------------------------ statements and definitions


def test_every_statement() -> None:
    body = statements(
        "d = 8; layers = 2",
        "input x: ids[b, s] < vocab or -100 = pad",
        "input n: int[]",
        "time s: valid = x != pad, position = p",
        "decode s after n",
        "weight w[(out...), in, k: 3] = normal(0.02)",
        "buffer shift[d] = zeros",
        "const f[i: n] = index(i)",
        "shared e = embedding(d)",
        "bank f[experts] = expert",
        "w, i = topk(p, experts, k: 2)",
        "y[..., s] += e(x)",
        "if d == 8 { z = 1 } else if d == 9 { z = 2 } else { z = 3 }",
        "repeat layers[i] { x += x |> f }",
        "repeat deep[i: 2 * n] { x = g(x) } until done(x)",
        "scan s (reverse = true) with h[..., d] = 0, c = 0 { h = h + c }",
        "output logits[b, s, vocab] = x",
        "return x, y",
    )
    names = [type(statement).__name__.removesuffix("Stmt") for statement in body]
    assert (
        names
        == (
            "Assign Assign Input Input Time Decode Weight Weight Const Shared Bank Assign Assign If "
            "Repeat Repeat Scan Output Return"
        ).split()
    )
    choice = body[13]
    assert isinstance(choice, syn.IfStmt)
    assert isinstance(choice.otherwise[0], syn.IfStmt)
    assert len(choice.otherwise[0].otherwise) == 1


def test_domain_of_an_input() -> None:
    (domain,) = statements("input x: ids[b, u: s // 64] < vocab - 1 or -100 = y")
    assert isinstance(domain, syn.InputStmt)
    assert (domain.name, domain.kind) == ("x", "ids")
    assert domain.brackets[1].size == expr("s // 64")
    assert (domain.below, domain.extra, domain.default) == (
        expr("vocab - 1"),
        expr("-100"),
        expr("y"),
    )


def test_signatures() -> None:
    file = tree(
        'block f(out..., kind = "a" | "b", k = 1,)(x[..., (g, r), n: 2], s, m[t] = x)\n'
        "  -> ([..., out...], [..., k]) { }\n"
        "fn mask(s, t) = s <= t\n"
        "fn full(k)(s, t) { return k }\n"
    )
    f, mask, full = file.items
    assert isinstance(f, syn.CallableDef)
    assert f.hypers is not None
    assert [(p.name, p.pack) for p in f.hypers] == [("out", True), ("kind", False), ("k", False)]
    assert isinstance(f.hypers[1].default, syn.Choice)
    assert [(p.name, p.brackets is None) for p in f.inputs] == [
        ("x", False),
        ("s", True),
        ("m", False),
    ]
    assert f.results is not None
    assert [axis.kind for axis in f.results[0]] == ["open", "pack"]
    assert isinstance(mask, syn.CallableDef)
    assert (mask.hypers, mask.short, mask.results) == (None, True, None)
    assert isinstance(full, syn.CallableDef)
    assert (full.kind, full.short) == ("fn", False)


def test_docstrings() -> None:
    file = tree(
        '"""A file."""\nuse std\n'
        'model M { """A model,\n           in two lines."""\n  d = 1 }\n'
        'fn f(x) {\n  """\n  A function.\n  """\n  return x }\n'
    )
    _, model, fn = file.items
    assert file.doc == "A file."
    assert isinstance(model, syn.ModelDef)
    assert model.doc == "A model,\nin two lines."
    assert isinstance(fn, syn.CallableDef)
    assert fn.doc == "A function."


def test_checkpoints() -> None:
    file = tree(
        'checkpoint huggingface "LlamaForCausalLM" for Llama {\n'
        '  prefix "model."?; prefix "transformer." or "decoder."\n'
        "  d = config.hidden_size ?? 64\n"
        "  require not config.bias\n"
        '  "embed.weight" = embed.w; alias "head.weight"[vocab, d] = embed.w\n'
        '  layers[i] at "layers.{i}." {\n'
        '    "qkv"[d, rows] = concat(q.w[(g, e) -> rows], k.w[r: new], rows)\n'
        '    moe.f[n] at "experts.{n}." { "w" = up.w }\n'
        "  }\n"
        '  ignore "rotary.*", "mask": "recomputed"\n'
        '  ignore config "use_cache": "no effect"\n'
        "}\n"
        'checkpoint gguf "llama" for Llama { }\n'
        'checkpoint "GPT2LMHeadModel" for GPT2 { }\n'
    )
    first, *others = file.items
    assert isinstance(first, syn.CheckpointDef)
    assert [type(line).__name__.removesuffix("Line") for line in first.lines] == (
        "Prefix Prefix Config Require Tensor Tensor Scope Ignore Ignore".split()
    )
    assert [(c.format, c.class_names) for c in others if isinstance(c, syn.CheckpointDef)] == [
        ("gguf", ("llama",)),
        ("huggingface", ("GPT2LMHeadModel",)),
    ]
    prefixes = [line for line in first.lines if isinstance(line, syn.PrefixLine)]
    assert [(line.prefixes, line.optional) for line in prefixes] == [
        (("model.",), True),
        (("transformer.", "decoder."), False),
    ]
    ignored = [line for line in first.lines if isinstance(line, syn.IgnoreLine)]
    assert [(line.patterns, line.config) for line in ignored] == [
        (("rotary.*", "mask"), False),
        (("use_cache",), True),
    ]


MODELS = {
    "an encoder and a decoder": """
use std
block bias(heads, buckets = 32)(s, t) -> [..., heads, s, t] {
  weight table[bucket: buckets, heads]
  gap[..., s, t] = abs(position(t) - position(s))
  exact = buckets // 2; far = exact + int(log(max(gap, 1) / exact) * exact)
  return table[bucket: where(gap < exact, gap, min(far, buckets - 1))]
}
model Translator {
  vocab = 100; d = 8; layers = 2; heads = 2; tied = true
  attend = attention(heads, scale = 1)
  input source: ids[b, t] < vocab; input present: bool[b, t] = true
  input target: ids[b, s] < vocab; input labels: ids[b, s] < vocab or -100
  time t: valid = present; decode s
  shared embed = embedding(vocab, d)
  shared near = bias(heads)
  m = embed(source)
  repeat encoder[i: layers] {
    m += m |> rmsnorm() as norm |> attend(score = (a[...], s, t) -> a + near(s, t)) as self
  }
  x = embed(target)
  repeat decoder[i: layers] { x += x |> rmsnorm() as norm |> attend(memory = m) as cross }
  output logits[b, s, vocab] = (x |> unembed(embed.w)) if tied else (x |> linear(vocab) as head)
  loss = cross_entropy(logits, labels)
}
preset small = Translator(d = 4, layers = 1)
""",
    "a recurrent mixer": """
block mixer(inner = 2 * d, state = 16, rank = ceil(d / 16))(x[..., s, d]) -> [..., s, d] {
  z = x |> linear(inner)
  u = x |> linear(inner) as u |> causal_conv(4) as conv |> silu
  step = u |> linear(rank) as down |> linear(inner, bias = true) as up |> softplus
  weight decay[inner, state]; weight skip[inner] = ones
  scan s (reverse = false) with h[..., inner, state] = 0, c = 0 {
    h = exp(-exp(decay) * step) * h + prev(c) * u
    y = dot(h, c, state)
  }
  return ((y + skip * u) * silu(z)) |> linear(d) as out
}
""",
    "experts and their checkpoint": """
block experts(n, chosen, expert)(x[..., d]) -> [..., d] {
  p = f32(x |> linear(n) as router) |> softmax(n)
  w, i = topk(p, n, k: chosen)
  bank f[n] = expert
  return sum(w / sum(w, k) * f[i](x), k)
}
checkpoint "SomeForCausalLM" for Some {
  act = {"silu": silu, "gelu_new": gelu_tanh}[config.hidden_act]
  layers[i] at "model.layers.{i}." {
    "attn.qkv"[rows, d] = concat(q.w[(g, r, e) -> rows], k.w[(g, e) -> rows], rows)
    "fused" = stack(q.w[r: 0], k.w, part)[(g, part, e) -> rows]
    moe.f[n] at "experts.{n}." { "w1.weight" = gate.w; "w2.weight" = down.w }
  }
}
""",
}


@pytest.mark.parametrize("name", MODELS)
def test_whole_models(name: str) -> None:
    file = tree(MODELS[name])
    assert file.items
    assert tree(format_file(file)) == file


def test_keywords_are_names_where_a_name_is_wanted() -> None:
    (statement,) = statements("y[time] = dot(x, weight, in) |> f(scan = prefix.input) as output")
    assert isinstance(statement, syn.Assign)
    found = {node.name for node in syn.walk(statement) if isinstance(node, syn.Name)}
    assert {"weight", "in", "prefix"} <= found


# ------------------------------------------------------------------ layout


LAYOUTS = {
    "newlines": "model M {\n  a = 1\n  if a { b = f(a, 2) |> g } else { b = 0 }\n  c = b\n}\n",
    "one line": "model M { a = 1; if a { b = f(a, 2) |> g } else { b = 0 }; c = b }",
    "no separator behind a brace": (
        "model M { a = 1; if a { b = f(a, 2) |> g } else { b = 0 } c = b }"
    ),
    "carriage returns": (
        "model M {\r\n  a = 1\r\n  if a { b = f(a, 2) |> g } else { b = 0 }\r\n  c = b\r\n}\r\n"
    ),
    "many separators": (
        ";;\nmodel M {;\n\n a = 1;;\n;\n if a {; b = f(a, 2) |> g; } else { b = 0 };\n c = b;\n}\n"
    ),
    "comments": (
        "# one\nmodel M { # two\n  a = 1 # three\n  # four\n  if a { b = f(a, # five\n 2)\n"
        "    # six\n\n    |> g # seven\n }\n else { b = 0 }\n  c = b\n} # eight"
    ),
    "braces and else on lines of their own": (
        "model M\n{\n  a = 1\n  if a\n  {\n b = f(\n a,\n 2,\n )\n |> g\n }\n\n  else\n  {\n"
        " b = 0\n  }\n  c = b\n}"
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_does_not_matter(name: str) -> None:
    assert tree(LAYOUTS[name]) == tree(LAYOUTS["newlines"])


def test_a_signature_may_take_several_lines() -> None:
    one = "block f(a, b)(x[..., d], s) -> [..., d] { return x }"
    several = "block f(a,\n  b)\n  (x[..., d], s)\n  -> [..., d]\n{\n return x }"
    assert tree(one) == tree(several)


def test_until_may_start_a_line() -> None:
    assert statements("repeat l[i] { x = f(x) }\nuntil x") == statements(
        "repeat l[i] { x = f(x) } until x"
    )


def test_braces_and_separators_in_strings_are_text() -> None:
    (line,) = statements('x = f("a; { # } |> (\\") # "')
    assert isinstance(line, syn.Assign)


# ------------------------------------------------------------------ spans


EVERYTHING = """use std
block f(a..., b = "p" | "q")(x[..., (g, r)], s) -> [..., a...] {
  weight w[(a...), r] = zeros
  y[..., s] = -(x + 1) ** 2 |> g(n: 3, k = [1, 2]) as z
  if a != none { y += {"k": v}["k"] } else { y = x[s -> t, (g, r) -> h, e: 0..2] }
  return (u[...], t) -> u if t else config.w
}
checkpoint "C" for M { l[i] at "p.{i}." { "w"[a, b] = w } }
"""


def test_spans_enclose_their_parts() -> None:
    text = EVERYTHING.replace("-(x + 1) ** 2", "(-(x + 1) ** 2)")
    for node in syn.walk(tree(text)):
        assert 0 <= node.span.start <= node.span.end <= len(text)
        for name in type(node).__dataclass_fields__:
            for part in syn.walk(getattr(node, name)):
                inside = node.span.start <= part.span.start and part.span.end <= node.span.end
                assert inside, (node, part)


@pytest.mark.parametrize(
    "text", ["f(a, b)[s -> t].w", "(a + b) * c", "a |> f(x) as n |> g", "[1, 2]", "-a ** 2"]
)
def test_the_span_of_an_expression_is_its_text(text: str) -> None:
    for blank in ("", "  "):
        assert expr(f"{blank}{text}{blank}  # note").span.text == text


def test_spans_count_columns_after_carriage_returns() -> None:
    file = tree("use std\r\nmodel M {\r\n  x = 1\r\n}")
    model = file.items[1]
    assert isinstance(model, syn.ModelDef)
    assert str(model.body[0].span) == "t.arch:3:3"
    assert model.body[0].span.text == "x = 1"


def test_parsing_what_a_span_covers_gives_the_node_again() -> None:
    for node in syn.walk(tree(EVERYTHING.replace("-(x + 1) ** 2", "(-(x + 1) ** 2)"))):
        if isinstance(node, syn.Expr) and not isinstance(node, syn.Choice):
            assert expr(node.span.text) == node


# ------------------------------------------------------------------ mistakes (screens: errors/)


def test_several_mistakes_in_one_run_in_text_order() -> None:
    found = ids(
        "block f(x) {\n  y = x + x |> g\n  if y = 2 { z = 0 <= y < 3; z = (y z) }\n  return y\n}\n"
        "model M {\n  class A\n  b = 'text'\n  return\n}\n"
    )
    assert found == [
        "pipeline-as-operand",
        "assignment-in-condition",
        "foreign-word",
        "single-quotes",
        "syntax",
    ]


def test_a_mistake_in_an_inner_statement_leaves_the_outer_ones() -> None:
    assert ids("model M {\n repeat l[i] {\n x = = 1\n if a { y = ) }\n }\n z = \n}") == [
        "unopened-bracket"
    ]
    assert ids("model M {\n repeat l[i] {\n x = = 1\n if a { y = + }\n }\n z = \n}") == [
        "syntax",
        "syntax",
        "broken-line",
    ]


def test_there_is_an_end_to_mistakes() -> None:
    assert len(ids("model M {\n" + "x = = 1\n" * 500 + "}")) == 20


@pytest.mark.parametrize(
    "text",
    [
        "model M { x = " + "(" * 5000 + ")" * 5000 + " }",
        "model M { x = " + "-" * 5000 + "1 }",
        "model M { x = a" + " + a" * 5000 + " }",
        "model M { x = a" + ".w" * 5000 + " }",
        "model M { x = " + "a if b else " * 5000 + "c }",
        "model M { x = " + "() -> " * 5000 + "c }",
        "model M { " + "if a { } else " * 5000 + "{ } }",
        "model M " + "{ if a " * 5000,
    ],
)
def test_deep_nesting_is_an_error_not_a_crash(text: str) -> None:
    assert ids(text) == ["nested-too-deep"]


@pytest.mark.parametrize("text", ["(" * 10_000_000, "a" * (LARGEST_FILE + 1)])
def test_a_huge_file_is_refused_at_once(text: str) -> None:
    assert ids(text) == ["source-unreadable"]


@pytest.mark.parametrize("written", FOREIGN_OPERATORS)
def test_foreign_operators_are_the_only_mistake_in_their_line(written: str) -> None:
    prefix = written == "!"
    assigns = written.endswith("=") and written not in ("===",)
    line = f"y = {written} x" if prefix else f"y {written} x" if assigns else f"y = x {written} x"
    assert "foreign-operator" in ids(f"model M {{ {line} }}")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "b.arch"
    binary.write_bytes(b"use \xff")
    for path in (tmp_path / "missing.arch", tmp_path, binary):
        with pytest.raises(Diagnostics, match="source-unreadable"):
            parse_file(path)


SNIPPETS = st.sampled_from(
    "use block fn model preset checkpoint weight buffer const input time decode output return if else"
    " repeat scan with until for in as and or not none new x y s d f 1 2.5 .. ... |> -> ( ) [ ]"
    ' { } , : ; . = += == < + - * ** // ?? | ? "text" """doc""" # ! @ \' " \n \r \t é'.split(" ")
)
PIECES = st.one_of(SNIPPETS, st.sampled_from(EVERYTHING.split()), st.text(max_size=3))


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=40).map(" ".join))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    for error in mistakes(text):
        assert isinstance(error, ArchError)
        assert str(error)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 200), st.sampled_from([1, 2, 5]), PIECES)
def test_no_edit_of_a_file_makes_the_parser_fail_otherwise(at: int, cut: int, piece: str) -> None:
    words = EVERYTHING.split(" ")
    words[at % len(words) : at % len(words) + cut] = [piece]
    for error in mistakes(" ".join(words)):
        assert str(error)


# ------------------------------------------------------------------ the stored table


def test_the_stored_table_is_the_table_of_the_grammar() -> None:
    table = compile_grammar(GRAMMAR.read_text(encoding="utf-8"))
    assert grammar() == table
    stored = json.loads(TABLES.read_text(encoding="utf-8"))
    assert stored["checksum"] == table.checksum, "run: python -m archc.dsl.tables"
