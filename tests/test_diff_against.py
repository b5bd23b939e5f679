"""A port against its class in `transformers`: right ones agree, each planted mistake is named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from references import REFERENCES
from safetensors.numpy import load_file, save_file

import archc
from archc.cli import main
from archc.diff import Candidate
from archc.diff.against import diff_against
from archc.diff.inputs import Case, run_time_symbols
from archc.diff.matching import merges
from archc.diff.names import owned, prefixes
from archc.diff.peer import Peer
from archc.diff.port import EXACT
from archc.diff.regions import places
from archc.diff.report import Report

EXAMPLES = Path(archc.__file__).parent.parent / "examples"
LENGTHS = {"b": 3, "s": 7}  # the last row is not padded


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory):
    """The class of a reference with its checkpoint, made once."""

    @cache
    def made(name: str) -> Peer:
        directory = tmp_path_factory.mktemp(name)
        REFERENCES[name].build(directory)
        return Peer(directory, REFERENCES[name].class_name)

    return made


def compared(peer: Peer, file: Path, *candidates: Candidate) -> Report:
    return against(archc.load(file, weights=peer.directory), peer, *candidates)


def against(model: archc.Model, peer: Peer, *candidates: Candidate) -> Report:
    sizes = {s: LENGTHS.get(s, 5) for s in run_time_symbols(model.program)}
    return diff_against(model, candidates or (EXACT,), peer, sizes=sizes)


# --------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        (
            "llama-grouped",
            {
                "layers[0].attention": "model.layers.0.self_attn",
                "layers[2].attention.k": "model.layers.2.self_attn.k_proj",
                "layers[1]": "model.layers.1",
                "layers[1].ffn": "model.layers.1.mlp",
                "output logits": "logits",
            },
        ),
        (
            "gpt2",
            {
                "layers[0].attention": "transformer.h.0.attn",
                "layers[0].attention.q": "transformer.h.0.attn.c_attn",
                "layers[2].attention.v": "transformer.h.2.attn.c_attn",
                "tokens": "transformer.wte",
            },
        ),
        (
            "falcon-40b",  # a group of queries, its key and its value, group by group
            {
                f"layers[1].attention.{name}": "transformer.h.1.self_attention.query_key_value"
                for name in "qkv"
            },
        ),
        ("falcon-7b", {"layers[0].ffn": "transformer.h.0.mlp"}),  # the class adds to it in place
        (
            "phi3-window",
            {
                "layers[0].ffn.gate": "model.layers.0.mlp.gate_up_proj",
                "layers[0].ffn.up": "model.layers.0.mlp.gate_up_proj",
                "layers[1].attention.k": "model.layers.1.self_attn.qkv_proj",
            },
        ),
        ("mamba", {"layers[0].mixer.write": "backbone.layers.0.mixer.x_proj"}),
        (
            "bert-hidden",
            {
                "layers[0].norm1": "encoder.layer.0.attention.output.LayerNorm",
                "output hidden": "last_hidden_state",
            },
        ),
        (
            "mixtral",  # its file says `block_sparse_moe` where the class says `mlp`
            {
                "layers[0].moe": "model.layers.0.mlp",
                "layers[0].moe.router": "model.layers.0.mlp.gate",
                "layers[2].moe.router: experts": "model.layers.2.mlp.gate",
            },
        ),
        (
            "deepseek-v2",
            {"layers[1].mixture.router: experts": "model.layers.1.mlp.gate"},
        ),
        (
            "jamba",  # which keeps its choice to itself: the largest of its scores
            {"layers[3].mixture.router: experts": "model.layers.3.feed_forward.router"},
        ),
        (
            "switch",  # a one for the expert that takes a token, none past its capacity
            {"decoder[1].ffn.router: experts": ("decoder.block.1.layer.2.mlp.router.classifier")},
        ),
        ("t5", {"decoder[0].cross": "decoder.block.0.layer.1.EncDecAttention"}),
        (
            "vit",  # patches lead, which no input counts; its file has other names than the class
            {
                "layers[2]": "layers.2",
                "layers[0].attention.o": "layers.0.attention.o_proj",
                "layers[1].ffn": "layers.1.mlp",
                "final_norm": "layernorm",
                "output hidden": "last_hidden_state",
            },
        ),
        (
            "roberta",  # ids of types have no padding
            {"tokens": "roberta.embeddings.word_embeddings"},
        ),
        ("gemma2", {"embed": "model.embed_tokens"}),  # whose module scales, outside of the region
    ],
)
def test_a_right_port_agrees(name: str, pairs: dict[str, str], peer) -> None:
    found = compared(peer(name), EXAMPLES / f"{REFERENCES[name].example}.arch")
    assert found.agree, str(found)
    modules = {row.region: row.module for row in found.rows}
    assert pairs.items() <= modules.items()


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        (
            "llava",  # whose tower hands the features of one layer through all others
            {"tower[2]": "model.vision_tower.encoder.layers.2"},
        ),
        (
            "rag-sequence",  # the class counts the documents of all questions along one axis
            {"decoder[2].cross.k": "rag.generator.model.decoder.layers.2.encoder_attn.k_proj"},
        ),
    ],
)
def test_a_right_port_agrees_on_given_inputs(name: str, pairs: dict[str, str], peer) -> None:
    """Classes that do not run on random ones."""
    made, reference = peer(name), REFERENCES[name]
    inputs = {n: v.astype(bool) if "mask" in n else v for n, v in reference.inputs().items()}
    model = archc.load(EXAMPLES / f"{reference.example}.arch", weights=made.directory)
    found = diff_against(model, (EXACT,), made, inputs=Case("given", inputs))
    assert found.agree, str(found)
    assert pairs.items() <= {row.region: row.module for row in found.rows}.items()


def test_neighbours_merge() -> None:
    assert merges((2, 3, 4), (6, 4))
    assert merges((2, 3, 4), (24,))
    assert merges((2, 1, 3), (1, 2, 3))
    assert merges((), ())
    assert not merges((2, 3), (3, 2))
    assert not merges((4, 3), (2, 6))
    assert not merges((2, 3), (2,))


def test_backends_are_held_to_the_class_too(peer) -> None:
    others = Candidate("numpy"), Candidate("torch", 0), Candidate("numpy", 1, "bf16", "bf16")
    found = compared(peer("llama-grouped"), EXAMPLES / "llama.arch", *others)
    assert found.agree, str(found)
    logits = next(row for row in found.rows if row.region == "output logits")
    assert set(logits.cells) == {"numpy", "torch", "bf16"}
    assert logits.cells["bf16"].error > logits.cells["numpy"].error > 0


# ------------------------------------------------------------------------- tensors in common

Q, K = "attention.q.w[(g, r, e) -> rows]", "attention.k.w[(g, e) -> rows]"


def test_a_part_of_a_module_is_named(peer) -> None:
    """Rows of k alone differ: the part of the module that they make is at fault."""
    model = archc.load(EXAMPLES / "phi3.arch", weights=peer("phi3-window").directory)
    weights = dict(model.given_weights())
    weights["layers[1].attention.k.w"] = 1.01 * weights["layers[1].attention.k.w"]
    report = against(model.with_weights(weights), peer("phi3-window"))
    status = {row.region: row.statuses["numpy@O0@f64"] for row in report.rows}
    assert status["layers[1].attention.q"] == status["layers[1].attention.v"] == "agrees"
    (found,) = report.divergences
    assert (found.region, found.introduced) == ("layers[1].attention.k", True)
    assert found.lines()[0].endswith(
        "layers[1].attention.k, which is part of `model.layers.1.self_attn.qkv_proj`"
    )


@pytest.mark.parametrize(
    ("name", "change", "region", "why"),
    [
        ("gpt2", ("", ""), "positions", "the module is given whole numbers alone"),
        ("bart", ("", ""), "positions", "the module makes nothing of what it is given"),
        (
            "deberta",
            ("", ""),
            "layers[0].attention.q",
            "it also reads `deberta.encoder.layer.0.attention.self.q_bias`, which the module has not",
        ),
        (
            "gpt2",  # one under the other where the file has them side by side
            (
                f"[d, rows] = concat(\n      {Q}, {K}, attention.v.w[(g, e) -> rows], rows)",
                f"[rows, d] = concat(\n      {Q}, {K}, attention.v.w[(g, e) -> rows], d)",
            ),
            "layers[0].attention.q",
            "no dimension of `transformer.h.0.attn.c_attn.weight` counts what it returns",
        ),
        (
            "gpt2",  # the bias as the file has it, the weight not
            (f"{Q}, {K}", f"{K}, {Q}"),
            "layers[0].attention.k",
            "`transformer.h.0.attn.c_attn.weight` and `transformer.h.0.attn.c_attn.bias`"
            " have it in different places",
        ),
    ],
)
def test_what_is_not_compared_is_named(
    name: str, change: tuple[str, str], region: str, why: str, peer, tmp_path: Path
) -> None:
    text = (EXAMPLES / f"{REFERENCES[name].example}.arch").read_text()
    assert change[0] in text
    file = tmp_path / "port.arch"
    file.write_text(text.replace(*change))
    report = compared(peer(name), file)
    assert {x.region: x.why for x in report.left_out}[region] == why
    assert region not in {row.region for row in report.rows}
    assert "not compared" in str(report)
    assert {"region": region, "why": why}.items() <= next(
        x for x in report.to_json()["left_out"] if x["region"] == region
    ).items()


# ----------------------------------------------------------------------------------- experts


@dataclass(frozen=True)
class Routed:
    """A router of a reference: its region, and where the text chooses."""

    reference: str
    region: str
    line: str


ROUTERS = [
    Routed("mixtral", "layers[1].moe.router", "mixture(experts"),
    Routed("deepseek-v2", "layers[2].mixture.router", "mix as mixture"),
    Routed("jamba", "layers[1].mixture.router", "mixture(experts"),
    Routed("switch", "decoder[1].ffn.router", "as router"),
]


@pytest.mark.parametrize("routed", ROUTERS, ids=lambda r: r.reference)
def test_rows_of_a_router_exchanged(routed: Routed, peer) -> None:
    """Scores and choice both differ; it is told at the router, with the line and the ids."""
    made, file = peer(routed.reference), REFERENCES[routed.reference].example
    model = archc.load(EXAMPLES / f"{file}.arch", weights=made.directory)
    weights, path = dict(model.given_weights()), f"{routed.region}.w"
    weights[path] = weights[path][[1, 0, *range(2, len(weights[path]))]]
    report = against(model.with_weights(weights), made)
    (found,) = report.divergences
    assert (found.region, found.introduced) == (routed.region, True), str(report)
    assert found.experts.startswith("experts ")
    assert " instead of " in found.experts
    span = next(places(found.spans))
    assert routed.line in span.source.line(span.line)
    assert any("it chooses experts" in line for line in found.lines())
    assert found.to_json()["experts"] == found.experts


CHOICES = {  # what the text chooses by instead, where that is written
    "the smallest": (
        "mixtral",
        "route = softmax_top(used, renormalise = true)",
        "route = smallest(used)",
        "layers[0].moe.router",
        "topk(-score",
    ),
    "of all groups": (
        "deepseek-v2",
        "within = best_groups(groups, kept_groups) if grouped else none",
        "within = none",
        "layers[1].mixture.router",
        "mix as mixture",
    ),
    "moved by a bias": (
        "mixtral",
        "route = softmax_top(used, renormalise = true)",
        "route = moved(used)",
        "layers[0].moe.router",
        "topk(score +",
    ),
}
ROUTES = """
fn smallest(used)(score[..., n]) -> ([..., k], [..., k]) {
  worst, chosen = topk(-score, n, k: used)
  return float(softmax(f32(-worst), k)), chosen
}

fn moved(used)(score[..., n]) -> ([..., k], [..., k]) {
  best, chosen = topk(score + 0.5 * index(n), n, k: used)
  share = score[n: chosen]
  return float(softmax(f32(share), k)), chosen
}

model """


@pytest.mark.parametrize("kind", CHOICES)
def test_a_choice_by_another_score(kind: str, peer, tmp_path: Path) -> None:
    """The router's scores agree, the choice does not."""
    name, before, after, region, line = CHOICES[kind]
    text = (EXAMPLES / f"{REFERENCES[name].example}.arch").read_text()
    assert before in text
    file = tmp_path / "port.arch"
    file.write_text(text.replace(before, after).replace("\nmodel ", ROUTES, 1))
    report = compared(peer(name), file)
    (found,) = report.divergences
    assert (found.region, found.introduced) == (region, True), str(report)
    assert found.comparison.mismatch.startswith("experts ")
    span = next(places(found.spans))
    assert span.source.name == str(file)
    assert line in span.source.line(span.line)
    status = {row.region: row.statuses["numpy@O0@f64"] for row in report.rows}
    assert status[region] == "agrees"
    assert status[f"{region}: experts"] == "introduced"


def test_experts_that_tie_may_differ(peer, tmp_path: Path) -> None:
    """Two rows of a router that rounding cannot tell apart: either expert, and what follows, is right."""
    REFERENCES["mixtral"].build(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    gate = tensors["model.layers.1.block_sparse_moe.gate.weight"]
    gate[2] = gate[1] * np.float32(1 + 1e-7)
    save_file(tensors, path, {"format": "pt"})
    made = Peer(tmp_path, "MixtralForCausalLM")
    model = archc.load(EXAMPLES / "mixtral.arch", weights=tmp_path)
    weights = dict(model.given_weights())
    weights["layers[1].moe.router.w"] = weights["layers[1].moe.router.w"][[0, 2, 1, 3]]
    report = against(model.with_weights(weights), made)
    status = {row.region: row.statuses["numpy@O0@f64"] for row in report.rows}
    assert status["layers[1].moe"] == "inherited"  # other experts did run
    assert status["layers[1].moe.router: experts"] == "agrees"
    assert report.agree, str(report)


# ---------------------------------------------------------------------------------- mistakes


@dataclass(frozen=True)
class Mistake:
    """A change of an example's text, where it is found, a part of that line, and the hint."""

    reference: str
    before: str
    after: str
    region: str
    line: str
    hint: str = ""


LLAMA, ATTENTION, FFN = "llama-grouped", "layers[0].attention", "layers[0].ffn"
NORM2 = "x += x |> rmsnorm(eps) as norm2"
GATE, UP = '"mlp.gate_proj.weight" = ffn.gate.w', '"mlp.up_proj.weight" = ffn.up.w'
OUT = '"self_attn.o_proj.weight" = attention.o.w'
QUERY = '"self_attn.q_proj.weight" = attention.q.w'
MISTAKES = {
    "epsilon": Mistake(
        LLAMA,
        NORM2,
        NORM2.replace("(eps)", "(1e-6)"),
        "layers[0].norm2",
        "rmsnorm(1e-6)",
        "0.002 in place of 1e-06",
    ),
    "epsilon outside": Mistake(
        "gemma",
        "rsqrt(mean(h * h, d) + eps)",
        "(1 / (sqrt(mean(h * h, d)) + eps))",
        "layers[0].norm1",
        "sqrt(mean",
        "the epsilon inside of the root",
    ),
    "gain of w": Mistake(
        "gemma",
        "(1 + f32(gain))",
        "f32(gain)",
        "layers[0].norm1",
        "f32(gain)",
        "a gain of `1 + gain`",
    ),
    "no scale": Mistake(
        LLAMA,
        "head_dim, mask",
        "head_dim, scale = 1.0, mask",
        ATTENTION,
        "attention(heads",
        "scores multiplied by 16 ** -0.5",
    ),
    "rotary pairs": Mistake(
        LLAMA,
        "rope(theta,",
        'rope(theta, pairing = "interleaved",',
        ATTENTION,
        "attention(heads",
        "rotary pairs of halves",
    ),
    "no causal mask on itself": Mistake(
        LLAMA,
        "mask = causal,",
        "mask = (s, t) -> slot(t) < slot(s),",
        ATTENTION,
        "attention(heads",
        "`<=` in place of `<`",
    ),
    "window": Mistake(
        "mistral-window",
        "sliding(window)",
        "sliding(window + 1)",
        ATTENTION,
        "attention(heads",
        "a bound of one less",
    ),
    "GELU": Mistake(
        "gpt2",
        '"gelu_new": gelu_tanh',
        '"gelu_new": gelu',
        FFN,
        "ffn(hidden",
        "gelu_tanh in place of this activation",
    ),
    "SiLU": Mistake(
        LLAMA, '"silu": silu', '"silu": gelu', FFN, "gated_ffn(", "silu in place of this activation"
    ),
    "gate and up": Mistake(
        LLAMA,
        f"{GATE}; ",
        f"{GATE.replace('gate.w', 'up.w')}; {UP.replace('up.w', 'gate.w')}; ",
        FFN,
        "gated_ffn(",
        "`layers[0].ffn.gate.w` and `layers[0].ffn.up.w` exchanged",
    ),
    "order of q and k": Mistake(
        "gpt2",
        f"{Q}, {K}",
        f"{K}, {Q}",
        ATTENTION,
        "attention(heads",
        "`layers[0].attention.q.w` and `layers[0].attention.k.w` exchanged",
    ),
    "head by head": Mistake(
        "gpt2",
        f"concat(\n      {Q}, {K}, attention.v.w[(g, e) -> rows], rows)",
        f"stack({Q.split('[')[0]}[r: 0], {K.split('[')[0]}, attention.v.w, part)"
        "[(g, part, e) -> rows]",
        ATTENTION,
        "attention(heads",
        "one after the other in the file",
    ),
    "square matrix": Mistake(
        LLAMA,
        OUT,
        OUT.replace('"', '"[h, d]', 2).replace('"[h, d]', '"', 1),
        f"{ATTENTION}.o",
        "attention(heads",
        "`layers[0].attention.o.w` transposed",
    ),
    "rows": Mistake(
        LLAMA,
        QUERY,
        QUERY.replace('" =', '"[(e, g, r), in] ='),
        ATTENTION,
        "attention(heads",
        "the rows of `layers[0].attention.q.w` as (16, 4) in place of (4, 16)",
    ),
    "no residual": Mistake(LLAMA, NORM2, NORM2.replace("+=", "="), "layers[0]", "gated_ffn(hidden"),
    "stream not scaled": Mistake(
        "gemma",
        "embed(input_ids) * d ** 0.5",
        "embed(input_ids)",
        "embed",
        "embed(input_ids)",
        "the result multiplied by 64 ** 0.5",
    ),
    "wrong layer": Mistake(
        LLAMA,
        '"input_layernorm.weight" = norm1.gain\n',
        '"input_layernorm.weight" = norm2.gain\n',
        "layers[0].norm1",
        "rmsnorm(eps) as norm1",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_named(kind: str, peer, tmp_path: Path) -> None:
    mistake = MISTAKES[kind]
    text = planted(mistake, kind)
    file = tmp_path / "port.arch"
    file.write_text(text)

    report = compared(peer(mistake.reference), file)

    (found,) = report.divergences
    span = next(places(found.spans))
    assert found.region == mistake.region, str(report)
    assert span.source.name == str(file)
    assert mistake.line in span.source.line(span.line)
    words = [hint.words for hint in found.hints]
    assert any(mistake.hint in w for w in words) if mistake.hint else not words, words
    statuses = {row.region: row.statuses["numpy@O0@f64"] for row in report.rows}
    assert statuses[mistake.region] == ("inherited" if kind == "wrong layer" else "introduced")


def test_a_class_that_halves_its_stream(peer) -> None:
    """RWKV divides weights of later layers, which a file has whole: apart inside, equal at the end."""
    report = compared(peer("rwkv4"), EXAMPLES / "rwkv4.arch")
    (found,) = report.divergences
    assert (found.region, found.introduced) == ("layers[2].time.o", True)
    assert [hint.words for hint in found.hints] == ["the result multiplied by 0.5"]
    assert report.rows[-1].statuses["numpy@O0@f64"] == "agrees"


def planted(mistake: Mistake, kind: str) -> str:
    text = (EXAMPLES / f"{REFERENCES[mistake.reference].example}.arch").read_text()
    assert mistake.before in text
    text = text.replace(mistake.before, mistake.after)
    if kind == "gate and up":  # the line that reads it rightly goes
        assert text.count(UP) == 1
        text = text.replace(f"{UP}; ", "")
    if kind == "wrong layer":
        text = text.replace(
            '"post_attention_layernorm.weight" = norm2.gain',
            '"post_attention_layernorm.weight" = norm1.gain',
        )
    return text


def test_an_error_that_came_wrong_is_inherited(peer, tmp_path: Path) -> None:
    file = tmp_path / "port.arch"
    file.write_text(planted(MISTAKES["no scale"], "no scale"))
    report = compared(peer(LLAMA), file)
    status = {row.region: row.statuses["numpy@O0@f64"] for row in report.rows}
    assert status["layers[0].attention.q"] == "agrees"
    assert status["layers[0].attention.o"] == "inherited"  # it projects what it is given rightly
    assert status["layers[0].norm2"] == status["layers[1].ffn"] == "inherited"
    assert status["layers[1].attention"] == status["layers[0]"] == "introduced"
    assert status["output logits"] == "differs"


def test_what_is_between_two_regions_is_shown(peer, tmp_path: Path) -> None:
    """No region is at fault: the line is that of the value that came wrong, and no tensor is suspect."""
    text, line = (EXAMPLES / "llama.arch").read_text(), "x = embed(input_ids)\n"
    file = tmp_path / "port.arch"
    file.write_text(text.replace(line, f"{line}  x = x + 1.0\n"))
    (found,) = compared(peer(LLAMA), file).divergences
    assert (found.region, found.introduced) == ("layers[0].norm1", False)
    span = next(places(found.spans))
    assert span.source.line(span.line).strip() == "x = x + 1.0"
    assert found.lines_read == ()


# --------------------------------------------------------------------------------- the names


def test_modules_under_other_names() -> None:
    """A prefix that the file lacks or has more, and one child that is called otherwise."""
    below = {"": ["bert", "cls"], "bert": ["a"], "bert.a": ["gate"]}
    assert prefixes(below, ["a.gate.w", "cls.w"], "bert") == {
        "cls": "cls.",
        "bert.a": "a.",
        "bert.a.gate": "a.gate.",
    }
    assert prefixes({"": ["a"]}, ["bert.a.w", "cls.w"], "bert") == {"a": "bert.a.", "": "bert."}
    assert prefixes({"": ["m"], "m": ["mlp", "b"]}, ["m.moe.w", "m.b.w"], "") == {
        "m": "m.",
        "m.mlp": "m.moe.",
        "m.b": "m.b.",
    }


def test_modules_by_the_numbers_they_hold() -> None:
    """Where names differ: a weight of its own, a bias beside it, a norm like that of another layer."""
    noise, zeros = np.random.default_rng(0), np.zeros(3, np.float32)
    q, k = noise.standard_normal((2, 3, 4)).astype(np.float32)
    tensors = {
        "tower.block.0.query.weight": q,
        "tower.block.0.query.bias": zeros,
        "tower.block.0.key.weight": k,
        "tower.block.0.key.bias": zeros,
        "tower.block.0.norm.bias": zeros,
        "tower.block.1.norm.bias": zeros,
        "head.weight": zeros,
    }
    parameters = {
        "layers.0.attention.k_proj.weight": k,
        "layers.0.attention.k_proj.bias": zeros,
        "layers.0.attention.q_proj.weight": q,
        "layers.0.attention.q_proj.bias": zeros,
        "layers.0.norm.bias": zeros,
        "layers.1.norm.bias": zeros,
        "layers.1.scale": zeros,  # any of five tensors might be meant
        "head.weight": zeros,
    }
    found = owned(parameters, tensors, tensors.__getitem__, "")
    key, query = (f"tower.block.0.{name}" for name in ("key", "query"))
    names = {module: set(entry.tensors) for module, entry in found.items()}
    assert names == {
        "layers.0": {f"{m}.{n}" for m in (key, query) for n in ("weight", "bias")}
        | {"tower.block.0.norm.bias"},
        "layers.0.attention": {f"{m}.{n}" for m in (key, query) for n in ("weight", "bias")},
        "layers.0.attention.k_proj": {f"{key}.weight", f"{key}.bias"},
        "layers.0.attention.q_proj": {f"{query}.weight", f"{query}.bias"},
        "layers.0.norm": {"tower.block.0.norm.bias"},
        "layers.1.norm": {"tower.block.1.norm.bias"},
        "head": {"head.weight"},
    }
    assert found["layers.0"].own == set()
    assert found["layers.0.norm"].own == {"tower.block.0.norm.bias"}


# ------------------------------------------------------------------------------- the command


def run(*arguments: object):
    return CliRunner().invoke(main, ["diff", *map(str, arguments)])


def test_command(peer, tmp_path: Path) -> None:
    directory = peer("gpt2").directory
    save_file(
        {"input_ids": np.arange(6).reshape(2, 3), "attention_mask": np.ones((2, 3), np.int64)},
        tmp_path / "in.safetensors",
    )
    given = ("--against", f"hf:{directory}", "--inputs", tmp_path / "in.safetensors")
    result = run(EXAMPLES / "gpt2.arch", *given)
    assert result.exit_code == 0, result.output
    assert "layers[0..2].attention  " in result.output
    assert "transformer.h.0..2.attn  " in result.output
    assert result.output.rstrip().endswith("numpy@O0@f64 agrees with GPT2LMHeadModel")

    file = tmp_path / "port.arch"
    file.write_text(planted(MISTAKES["GELU"], "GELU"))
    result = run(file, *given, "--backends", "torch", "--json")
    assert result.exit_code == 1, result.output
    (found,) = json.loads(result.stdout)["divergences"]
    assert (found["region"], found["module"]) == (FFN, "transformer.h.0.mlp")
    assert found["hints"] == ["gelu_tanh in place of this activation"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--against", "somewhere"), 2, "is not of the form hf:DIR"),
        (("--against", "hf:nowhere"), 1, "not-a-checkpoint"),
        (("--against", "hf:x", "--chunks", "auto"), 2, "--against goes with none of"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = run(EXAMPLES / "llama.arch", *arguments)
    assert result.exit_code == code, result.output
    assert words in result.output
