"""The bundled examples' checkpoint blocks, importing by them, and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shipped import minilm, smollm2

from archc.compiler.checkpoint import (
    bind,
    checkpoint_block,
    evaluate_config,
    open_checkpoint,
    save,
)
from archc.compiler.elaborate import (
    Request,
    elaborate,
    hyperparameters,
    module_of,
    preset_overrides,
    the_model,
)
from archc.compiler.weights import random_weights
from archc.dsl import syntax as syn
from archc.dsl.diagnostics import ArchError
from archc.dsl.parse import parse
from archc.dsl.span import Source
from archc.importer import PRESET, examples, import_directory, write

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 131,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 131,
    "n_positions": 40,
    "n_ctx": 40,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}
BERT = {
    "vocab_size": 131,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 112,
    "hidden_act": "gelu",
    "is_decoder": False,
}
BART = {
    "architectures": ["BartForConditionalGeneration"],
    "vocab_size": 131,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 112,
    "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 40,
    "activation_function": "gelu",
    "num_hidden_layers": 2,  # the rest as published, some of it long obsolete
    "_num_labels": 3,
    "prefix": " ",
    "output_past": True,
    "extra_pos_embeddings": 2,
    "force_bos_token_to_be_generated": True,
    "normalize_embedding": True,
    "normalize_before": False,
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "scale_embedding": False,
}
MARIAN = {
    **{k: v for k, v in BART.items() if k not in ("prefix", "output_past")},
    "architectures": ["MarianMTModel"],
    "decoder_vocab_size": 131,
    "normalize_embedding": False,
    "static_position_embeddings": True,
    "scale_embedding": True,
}
T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 131,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 112,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "n_positions": 512,
}
STORED = {  # tensors whose being there is a choice
    "bart": ("final_logits_bias",),
    "marian with tables": ("final_logits_bias", "model.encoder.embed_positions.weight"),
}
DEBERTA = {
    **BERT,
    "architectures": ["DebertaV2ForMaskedLM"],
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "p2c|c2p",
    "position_buckets": 8,
    "max_relative_positions": -1,
}
GEMMA2 = {  # the fields of the published files
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 24,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 64,
    "intermediate_size": 112,
    "max_position_embeddings": 8192,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 144,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
    "vocab_size": 131,
}
PHI4_MINI = {  # the fields of the published file
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "full_attn_mod": 1,
    "hidden_act": "silu",
    "hidden_size": 64,
    "interpolate_factor": 1,
    "intermediate_size": 112,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 0.75,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "long_factor": [1, 1.118320672, 1.250641126, 1.398617824, 33.5, 47.77],
        "short_factor": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        "type": "longrope",
    },
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "vocab_size": 131,
}
VIT = {
    "architectures": ["ViTModel"],
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 112,
    "hidden_act": "gelu",
    "image_size": 24,
    "patch_size": 6,
    "num_channels": 2,
}
CONFIGS = {
    "bart": BART,
    "bart without bias": BART,
    "marian": MARIAN,
    "marian with tables": MARIAN,
    "llama": LLAMA,
    "llama tied": {**LLAMA, "tie_word_embeddings": True},
    "llama biased": {**LLAMA, "attention_bias": True, "mlp_bias": True, "head_dim": 8},
    "llama 3": {**LLAMA, "rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE},
    "llama yarn": {
        **LLAMA,
        "max_position_embeddings": 64,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
        },
    },
    "phi4 mini": PHI4_MINI,
    "llama 3 (5.x)": {**LLAMA, "rope_parameters": {"rope_theta": 5e5, **LLAMA3_ROPE}},
    "gpt2": GPT2,
    "gpt2 untied": {**GPT2, "tie_word_embeddings": False, "n_inner": 96},
    "bert": {**BERT, "architectures": ["BertModel"]},
    "bert mlm": {**BERT, "architectures": ["BertForMaskedLM"]},
    "deberta v2": {**DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"},
    "deberta v3": {**DEBERTA, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "deberta v1": {**DEBERTA, "architectures": ["DebertaModel"], "position_buckets": None},
    "gemma2": GEMMA2,
    "vit": VIT,
}


def example_for(config: dict[str, object]) -> syn.File:
    names = config["architectures"]
    found = [
        file
        for file in examples()
        for item in file.items
        if isinstance(item, syn.CheckpointDef) and names[0] in item.class_names
    ]
    return found[0]


def elaborated(file: syn.File, block: syn.CheckpointDef, config: dict, tensors=()):
    module = module_of(file)
    model = the_model(module, block.model)
    values = evaluate_config(block, config, hyperparameters(model), tensors)
    return elaborate(module, model, Request(overrides=values))


@pytest.fixture(params=CONFIGS)
def written(request, tmp_path: Path):
    """A directory as Hugging Face would write it, made of random weights by the example's block."""
    config = CONFIGS[request.param]
    file = example_for(config)
    block = next(
        item
        for item in file.items
        if isinstance(item, syn.CheckpointDef) and config["architectures"][0] in item.class_names
    )
    program = elaborated(file, block, config, STORED.get(request.param, ()))
    weights = random_weights(program, 7)
    save(program, weights, block, tmp_path, config)
    return tmp_path, file, weights


def test_weights_survive_a_directory(written):
    path, file, expected = written
    opened = open_checkpoint(path)
    block = checkpoint_block(file, "example", opened)
    program = elaborated(file, block, opened.config, opened.tensors.names)
    weights = bind(block, opened, program)
    assert set(weights) == set(expected)
    for name in expected:
        assert np.array_equal(weights[name], expected[name]), name


def test_an_import_has_the_same_parameters(written):
    path, _, expected = written
    text = import_directory(path)
    module = module_of(parse(Source("imported.arch", text)))
    name, overrides = preset_overrides(module, PRESET)
    program = elaborate(module, the_model(module, name), Request(overrides=overrides))
    shapes = {p.path: expected[p.path].shape for p in program.parameters}
    found = {
        p.path: tuple(a.size.evaluate(program.sizes) for a in p.axes) for p in program.parameters
    }
    assert found == shapes
    assert set(shapes) == set(expected)


@pytest.mark.parametrize(
    ("base", "fields", "expected"),
    [
        (LLAMA, {"hidden_act": "mish"}, "config-choice"),
        (LLAMA, {"rope_scaling": {"rope_type": "proportional", "factor": 4.0}}, "config-choice"),
        (LLAMA, {"sliding_window": 4096}, "unread-config"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "unread-config"),
        (LLAMA, {"rope_interleaved": True}, "config-refused"),
        (LLAMA, {"vocab_size": None}, "missing-config"),
        (PHI4_MINI, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "config-refused"),
        (PHI4_MINI, {"lm_head_bias": True}, "config-refused"),
        (PHI4_MINI, {"interpolate_factor": 2}, "config-refused"),
        (BART, {"activation_function": "mish"}, "config-choice"),
        (BART, {"tie_word_embeddings": False}, "config-refused"),
        (BART, {"normalize_before": True}, "config-refused"),
        (BART, {"add_final_layer_norm": True}, "config-refused"),
        (BART, {"normalize_embedding": False}, "config-refused"),
        (BART, {"static_position_embeddings": True}, "config-refused"),
        (BART, {"extra_pos_embeddings": 0}, "config-refused"),
        (BART, {"is_decoder": True}, "unread-config"),
        (MARIAN, {"normalize_embedding": True}, "config-refused"),
        (MARIAN, {"share_encoder_decoder_embeddings": False}, "config-refused"),
        (MARIAN, {"decoder_vocab_size": 130}, "config-refused"),
        (MARIAN, {"static_position_embeddings": False}, "config-refused"),
    ],
)
def test_configs_the_example_does_not_express(base, fields, expected):
    config = {**base, **fields}
    file = example_for(config)
    block = next(i for i in file.items if isinstance(i, syn.CheckpointDef))
    with pytest.raises(ArchError) as caught:
        elaborated(file, block, config)
    assert caught.value.id == expected


@pytest.mark.parametrize(
    ("fields", "scaled"),
    [
        ({}, True),
        ({"tie_word_embeddings": False}, False),  # as version 1.1 was published
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),  # as saved again
        ({"architectures": ["MT5ForConditionalGeneration"]}, False),
    ],
)
def test_which_t5_scales_its_output(fields, scaled):
    file = example_for(T5)
    block = next(i for i in file.items if isinstance(i, syn.CheckpointDef))
    hypers = hyperparameters(the_model(module_of(file), block.model))
    assert evaluate_config(block, {**T5, **fields}, hypers)["scale_output"] is scaled


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"relative_attention": False}, "config-refused"),
        ({"pos_att_type": ["p2p"]}, "config-refused"),
        ({"pos_att_type": None}, "config-refused"),
        ({"embedding_size": 32}, "config-refused"),
        ({"attention_head_size": 32}, "config-refused"),
        ({"conv_kernel_size": 4}, "config-refused"),
        ({"conv_kernel_size": 3, "conv_groups": 2}, "config-refused"),
        ({"tie_word_embeddings": False}, "config-refused"),
        ({"norm_rel_ebd": "batch_norm"}, "config-choice"),
        ({"conv_act": "mish"}, "config-choice"),
        ({"talking_head": True}, "unread-config"),
        ({"architectures": ["DebertaModel"], "talking_head": True}, "config-refused"),
        ({"architectures": ["DebertaModel"]}, "unread-config"),  # buckets are of version 2
    ],
)
def test_configs_that_deberta_does_not_express(fields, expected):
    config = {**DEBERTA, **fields}
    file = example_for(config)
    wanted = config["architectures"][0]
    blocks = (i for i in file.items if isinstance(i, syn.CheckpointDef))
    with pytest.raises(ArchError) as caught:
        elaborated(file, next(b for b in blocks if wanted in b.class_names), config)
    assert caught.value.id == expected


def test_no_example_for_a_class(tmp_path):
    save_empty(tmp_path, {"architectures": ["LamaForCausalLM"]})
    with pytest.raises(ArchError) as caught:
        import_directory(tmp_path)
    assert caught.value.id == "no-example"
    assert 'checkpoint huggingface "LamaForCausalLM"' in str(caught.value)


def save_empty(path: Path, config: dict) -> None:
    (path / "config.json").write_text(json.dumps(config))
    header = b"{}      "
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    "text",
    [
        "silu",
        "3",
        "1e-05",
        '"half"',
        "-2",
        "[full, sliding(4096)]",
        "llama3(8.0, low = 1)",
        "(a + b) * c",
        "not (a and b)",
        "config.x",
        "linear(g: 4)",
        "a if (b == c) else d",
    ],
)
def test_values_are_written_as_they_are_read(text):
    def value(of: str) -> syn.Expr:
        return parse(Source("v.arch", f"preset p = {of}\n")).items[0].value

    assert value(write(value(text))) == value(text)


# ------------------------------------------------------------------------ random weights


@pytest.fixture(scope="module")
def gpt2():
    file = example_for(GPT2)
    block = next(item for item in file.items if isinstance(item, syn.CheckpointDef))
    return elaborated(file, block, GPT2)


def test_random_weights_depend_on_path_and_seed_alone(gpt2):
    first, again, other = (random_weights(gpt2, seed) for seed in (1, 1, 2))
    reversed_order = {path: again[path] for path in reversed(list(again))}
    for path in first:
        assert first[path].dtype == np.float32
        assert np.array_equal(first[path], reversed_order[path])
        assert not np.array_equal(first[path], other[path])
    path = "layers[{}].ffn.in.w"
    assert not np.array_equal(first[path.format(0)], first[path.format(1)])


def test_random_weights_are_loud(gpt2):
    weights = random_weights(gpt2, 1)
    gains = np.concatenate([weights[p] for p in weights if p.endswith("gain")])
    biases = np.concatenate([weights[p].ravel() for p in weights if p.endswith(".b")])
    matrix = weights["layers[0].ffn.out.w"]  # 256 inputs
    assert (gains.mean(), gains.std()) == pytest.approx((1, 0.25), abs=0.03)
    assert (biases.mean(), biases.std()) == pytest.approx((0, 0.15), abs=0.02)
    assert matrix.std() == pytest.approx(1 / 16, rel=0.02)


# ----------------------------------------------------------------- real files


def test_smollm2_fits_the_llama_example():
    opened = open_checkpoint(smollm2())
    file = example_for(LLAMA)
    block = checkpoint_block(file, "llama.arch", opened)
    program = elaborated(file, block, opened.config, opened.tensors.names)
    weights = bind(block, opened, program)
    assert sum(p.size(program.sizes) for p in program.parameters) == 134_515_008
    assert weights["layers[29].attention.k.w"].shape == (3, 64, 576)


def test_minilm_fits_the_bert_example():
    opened = open_checkpoint(minilm())
    file = example_for({"architectures": ["BertModel"]})
    block = checkpoint_block(file, "bert.arch", opened)
    program = elaborated(file, block, opened.config, opened.tensors.names)
    weights = bind(block, opened, program)
    assert not weights["tokens.w"].flags.owndata
    assert weights["pooler.w"].shape == (384, 384)
