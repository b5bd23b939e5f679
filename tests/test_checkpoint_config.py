"""Config lines: values, residual expressions, completeness and refusals."""

from __future__ import annotations

import pytest

from archc.compiler.checkpoint import config_of, evaluate_config
from archc.dsl import syntax as syn
from archc.dsl.diagnostics import ArchError
from archc.dsl.parse import parse
from archc.dsl.span import Source

HYPERS = ("d", "heads", "kv_heads", "act", "scaling", "kinds", "tied", "theta")


def block(lines: str) -> syn.CheckpointDef:
    return parse(Source("m.arch", f'checkpoint huggingface "M" for M {{\n{lines}\n}}\n')).items[0]


def values(lines: str, **config: object) -> dict[str, object]:
    return evaluate_config(block(lines), config, HYPERS)


def refusal(lines: str, **config: object) -> ArchError:
    with pytest.raises(ArchError) as caught:
        values(lines, **config)
    assert str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("config.a", 8),
        ("config.a * 2 + config.b.c", 19),
        ("config.a // 3", 2),
        ("-config.a", -8),
        ("int(config.a / 3)", 2),
        ("ceil(config.a / 3)", 3),
        ("floor(-config.a / 3)", -3),
        ("1 if int(config.a * 1.5) == 12 else 2", 1),
        ("2 ** 3 ** 2", 512),
        ("config.missing ?? config.a", 8),
        ("config.null ?? 5", 5),
        ("config.b.missing.deep ?? 1", 1),
        ("config.missing.deep ?? 1", 1),
        ("1 if config.flag else 2", 1),
        ("1 if not config.flag else 2", 2),
        ("1 if config.a == 8 and config.b.c != 3 else 2", 2),
        ("1 if config.missing == none else 2", 1),
        ("1 if config.a < 9 or config.missing > 1 else 2", 1),
        ('{"x": 1, "y": 2}[config.name]', 2),
        ("config.list[1]", 20),
        ("config.list[-1]", 30),
        ('config["b"]["c"]', 3),
        ("[config.a, 2]", [8, 2]),
        ("[x * 2 for x in config.list]", [20, 40, 60]),
        ("[i for i in config.b.c]", [0, 1, 2]),
        ('["odd" if i % 2 == 1 else "even" for i in 2]', ["even", "odd"]),
        ("config.name", "y"),
    ],
)
def test_values(expression, expected):
    config = {"a": 8, "b": {"c": 3}, "null": None, "flag": True, "name": "y", "list": [10, 20, 30]}
    every = "seen = [config.a, config.b.c, config.flag, config.name, config.list]; d = seen[0]"
    assert values(f"{every}; heads = {expression}", **config)["heads"] == expected


def test_infinities_as_transformers_writes_them():
    limits = [0.0, {"__float__": "Infinity"}, {"__float__": "-Infinity"}]
    found = values("theta = config.limits[1]; scaling = -config.limits[2]", limits=limits)
    assert found == {"theta": float("inf"), "scaling": float("inf")}


def test_names_of_definitions_stay_syntax():
    act = values(
        'act = {"silu": silu, "gelu_new": gelu_tanh}[config.hidden_act]', hidden_act="silu"
    )
    assert act["act"] == block("x = silu").lines[0].value


def test_calls_keep_their_known_arguments():
    lines = (
        'scaling = llama3(config.r.factor, low = config.r.low) if config.r.type == "l3" else none'
    )
    found = values(lines, r={"factor": 8.0, "low": 1, "type": "l3"})["scaling"]
    assert found == block("x = llama3(8.0, low = 1)").lines[0].value
    assert values(lines, r={"type": "default"})["scaling"] is None


def test_lists_of_definitions():
    lines = 'kinds = [sliding(config.w) if k == "s" else causal for k in config.kinds]'
    found = values(lines, w=3, kinds=["s", "f"])["kinds"]
    assert found == block("x = [sliding(3), causal]").lines[0].value


def test_locals_and_earlier_hyperparameters():
    lines = """
      r = config.rope_parameters ?? config.rope
      theta = r.theta ?? 10000.0
      heads = config.heads; kv_heads = config.kv_heads ?? heads
    """
    expected = {"theta": 5.0, "heads": 4, "kv_heads": 4}
    assert values(lines, rope={"theta": 5.0}, heads=4) == expected
    assert values(lines, rope_parameters={"theta": 5.0}, heads=4) == expected


def test_unknown_hyperparameters_stay_names():
    assert (
        values("kv_heads = heads * config.a", a=2)["kv_heads"]
        == block("x = heads * 2").lines[0].value
    )


# ------------------------------------------------------------------------ completeness


def test_a_field_nobody_reads_is_named():
    error = refusal("d = config.a", a=1, attention_bias=True, rope={"factor": 2})
    assert error.fields == ("attention_bias = true", "rope.factor = 2")


def test_a_group_is_not_read_by_testing_it():
    error = refusal("scaling = none if config.rope == none else 1", rope={"factor": 2})
    assert error.fields == ("rope.factor = 2",)


def test_fields_that_cannot_matter_need_no_line():
    ignored = {"architectures": ["M"], "torch_dtype": "float32", "hidden_dropout_prob": 0.1}
    off = {"is_decoder": False, "pruned_heads": {}, "rope_scaling": None}
    assert values("d = config.a", a=1, **ignored, **off) == {"d": 1}
    assert refusal("d = config.a", a=1, is_decoder=True).fields == ("is_decoder = true",)


def test_ignored_fields_and_groups():
    lines = 'd = config.a; ignore config "n_ctx", "quant*": "metadata"'
    assert values(lines, a=1, n_ctx=5, quantization={"bits": 4}) == {"d": 1}


def test_required_values():
    lines = "d = config.a; require not config.bias; require (config.tp ?? 1) == 1"
    assert values(lines, a=1) == {"d": 1}
    assert values(lines, a=1, bias=False, tp=1) == {"d": 1}
    error = refusal(lines, a=1, bias=True)
    assert error.id == "config-refused"
    assert error.values == "`bias` = true"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("d = config.missing", "missing-config"),
        ("d = config.missing * 2", "missing-config"),
        ("d = config.null", "missing-config"),
        ('act = {"silu": silu}[config.name]', "config-choice"),
        ('act = {"silu": silu}[config.missing]', "config-choice"),
        ("d = config.name * 2", "config-value"),
        ("d = config.a.b", "config-value"),
        ("d = config.a // 0", "config-value"),
        ("d = 1 if config.name else 2", "config-value"),
        ("d = config.list[7]", "config-value"),
        ("d = config.a[0]", "config-value"),
        ("d = [config.b, x]", "config-value"),
        ("dd = config.a", "unused-config-line"),
    ],
)
def test_refusals_point_at_the_line(line, expected):
    error = refusal(line, a=8, b={"c": 3}, null=None, name="y", list=[1])
    assert error.id == expected
    assert error.span is not None


# ------------------------------------------------------------------------------ inverse


DERIVED = [
    ("d = config.n.d", {"d": 8}, {"n": {"d": 8}}),
    ("kv_heads = config.kv ?? 1", {"kv_heads": 2}, {"kv": 2}),
    (
        "kv_heads = config.kv ?? heads; heads = config.h",
        {"kv_heads": 4, "heads": 4},
        {"kv": 4, "h": 4},
    ),
    ('act = {"silu": silu, "x": gelu}[config.act]', {"act": "gelu"}, {"act": "x"}),
    ("theta = config.window ?? none", {"theta": None}, {"window": None}),
    ("tied = not config.apart", {"tied": True}, {"apart": False}),
    ("d = 2 * config.t if config.b else config.t", {"d": 3}, {"b": False, "t": 3}),
    (
        'k = config.k ?? "r"; tied = {"a": false, "r": true, "b": true}[k]\n'
        'act = {"a": silu, "r": silu, "b": gelu}[k]',
        {"tied": True, "act": "gelu"},
        {"k": "b"},
    ),
    (
        'r = config.r; scaling = far(r.f, low = r.l) if r.type == "far" else none',
        {"scaling": "far(8.0, low = 1)"},
        {"r": {"type": "far", "f": 8.0, "l": 1}},
    ),
    ('r = config.r; scaling = far(r.f) if r.type == "far" else none', {"scaling": None}, {}),
    ("require not config.bias; require (config.s ?? 1) == 1", {}, {"bias": False, "s": 1}),
    (
        'require config.p == "a" or config.p == "b"; tied = config.p == "b"',
        {"tied": True},
        {"p": "b"},
    ),
    ('tied = not tensors["head"]', {"tied": False}, {}),
]


@pytest.mark.parametrize(("lines", "known", "expected"), DERIVED, ids=[d[0] for d in DERIVED])
def test_config_of_turns_lines_round(lines, known, expected):
    words = {"act", "scaling"}
    typed = {
        name: block(f"x = {value}").lines[0].value if name in words and value else value
        for name, value in known.items()
    }
    derived = config_of(block(lines), typed, tensors=("head",))
    assert derived.unsaid == ()
    assert derived.config == {"architectures": ["M"], **expected}
    read = evaluate_config(block(lines), derived.config, HYPERS, ("head",))
    assert {name: read[name] for name in typed} == typed


@pytest.mark.parametrize(
    ("lines", "known"),
    [
        ("theta = config.t ** -0.5", {"theta": 0.5}),
        ("theta = 1.0", {"theta": 2.0}),
        ('act = {"silu": silu}[config.act]', {"act": "other"}),
        ('tied = not tensors["head"]', {"tied": True}),
    ],
)
def test_what_no_field_can_say_is_named(lines, known):
    derived = config_of(block(lines), known, tensors=("head",))
    assert derived.unsaid == tuple(known)


def test_lines_that_contradict_each_other_say_nothing():
    lines = "d = config.a; heads = config.a"
    assert config_of(block(lines), {"d": 1, "heads": 2}).unsaid == ("d", "heads")


def test_tensors_without_a_file_say_nothing():
    lines = 'tied = not (tensors["head"] ?? config.apart)'
    assert values(lines, apart=True) == {"tied": False}
    assert evaluate_config(block(lines), {"apart": True}, HYPERS, ()) == {"tied": True}
    assert evaluate_config(block(lines), {"apart": False}, HYPERS, ("head",)) == {"tied": False}
