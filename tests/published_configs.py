"""What the published config.json of each row of the parameter table says, field by field.

A row is (example, preset). Fields that only name a program, a tokenizer or a task are kept where real
files have them: a reader meets them too.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]
Rows = dict[tuple[str, str], Config]

# Rows of the table that no Hugging Face directory was published for.
PAPER = "described in a paper; its weights were never published"
UNPUBLISHED = {
    ("mamba2", "mamba2_2_7b"): "published in the format of its own package",
    ("gpt3", "gpt3_175b"): PAPER,
    ("palm", "palm_8b"): PAPER,
    ("palm", "palm_62b"): PAPER,
    ("palm", "palm_540b"): PAPER,
}


def _llama(d: int, layers: int, hidden: int, heads: int, **others: Any) -> Config:
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": d,
        "initializer_range": 0.02,
        "intermediate_size": hidden,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "use_cache": True,
        "vocab_size": 32000,
    } | others


LLAMA1 = {"max_sequence_length": 2048, "pad_token_id": 0}
LLAMA2 = {
    "max_position_embeddings": 4096,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
}
LLAMA3 = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def _llama3_scaling(factor: float) -> Config:
    return {
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "rope_scaling": {
            "factor": factor,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    }


CODER = {
    "bos_token_id": 32013,
    "eos_token_id": 32014,
    "max_position_embeddings": 16384,
    "pretraining_tp": 1,
    "rope_scaling": {"factor": 4.0, "type": "linear"},
    "rope_theta": 100000,
    "torch_dtype": "bfloat16",
    "vocab_size": 32256,
}
LLAMA: Rows = {
    ("llama", "llama1_7b"): _llama(4096, 32, 11008, 32, **LLAMA1),
    ("llama", "llama1_13b"): _llama(5120, 40, 13824, 40, **LLAMA1),
    ("llama", "llama1_33b"): _llama(6656, 60, 17920, 52, **LLAMA1),
    ("llama", "llama1_65b"): _llama(8192, 80, 22016, 64, **LLAMA1),
    ("llama", "llama2_7b"): _llama(4096, 32, 11008, 32, num_key_value_heads=32, **LLAMA2),
    ("llama", "llama2_13b"): _llama(5120, 40, 13824, 40, num_key_value_heads=40, **LLAMA2),
    ("llama", "llama2_70b"): _llama(8192, 80, 28672, 64, num_key_value_heads=8, **LLAMA2),
    ("llama", "llama3_8b"): _llama(4096, 32, 14336, 32, **LLAMA3),
    ("llama", "llama3_70b"): _llama(8192, 80, 28672, 64, **LLAMA3),
    ("llama", "llama31_405b"): _llama(16384, 126, 53248, 128, **LLAMA3 | _llama3_scaling(8.0)),
    ("llama", "llama32_1b"): _llama(
        *(2048, 16, 8192, 32),
        **LLAMA3 | _llama3_scaling(32.0) | {"head_dim": 64, "tie_word_embeddings": True},
    ),
    ("llama", "llama32_3b"): _llama(
        *(3072, 28, 8192, 24),
        **LLAMA3 | _llama3_scaling(32.0) | {"head_dim": 128, "tie_word_embeddings": True},
    ),
    ("llama", "deepseek_coder_1_3b"): _llama(2048, 24, 5504, 16, num_key_value_heads=16, **CODER),
    ("llama", "deepseek_coder_6_7b"): _llama(4096, 32, 11008, 32, num_key_value_heads=32, **CODER),
    ("llama", "deepseek_coder_33b"): _llama(7168, 62, 19200, 56, num_key_value_heads=8, **CODER),
    ("llama", "smollm2_135m"): _llama(
        *(576, 30, 1536, 9),
        attention_bias=False,
        attention_dropout=0.0,
        initializer_range=0.041666666666666664,
        is_llama_config=True,
        max_position_embeddings=8192,
        mlp_bias=False,
        num_key_value_heads=3,
        pretraining_tp=1,
        rms_norm_eps=1e-5,
        rope_interleaved=False,
        rope_scaling=None,
        rope_theta=100000,
        tie_word_embeddings=True,
        vocab_size=49152,
    ),
}


def _gpt2(d: int, layers: int, heads: int, **others: Any) -> Config:
    return {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": d,
        "n_head": heads,
        "n_layer": layers,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    } | others


SPECIAL = {"n_special": 0, "predict_special_tokens": True}
GPT: Rows = {
    ("gpt2", "gpt2_small"): _gpt2(768, 12, 12),
    ("gpt2", "gpt2_medium"): _gpt2(1024, 24, 16, **SPECIAL),
    ("gpt2", "gpt2_large"): _gpt2(1280, 36, 20, **SPECIAL),
    ("gpt2", "gpt2_xl"): _gpt2(1600, 48, 25, output_past=True, **SPECIAL),
    ("gpt1", "gpt1_117m"): {
        "afn": "gelu",
        "architectures": ["OpenAIGPTLMHeadModel"],
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5,
        "model_type": "openai-gpt",
        "n_ctx": 512,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 512,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 40478,
        **SPECIAL,
    },
    ("gpt3", "gpt_neo_2_7b"): {
        "activation_function": "gelu_new",
        "architectures": ["GPTNeoForCausalLM"],
        "attention_dropout": 0,
        "attention_layers": ["global", "local"] * 16,
        "attention_types": [[["global", "local"], 16]],
        "bos_token_id": 50256,
        "embed_dropout": 0,
        "eos_token_id": 50256,
        "gradient_checkpointing": False,
        "hidden_size": 2560,
        "initializer_range": 0.02,
        "intermediate_size": None,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 2048,
        "model_type": "gpt_neo",
        "num_heads": 20,
        "num_layers": 32,
        "resid_dropout": 0,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {
            "text-generation": {"do_sample": True, "max_length": 50, "temperature": 0.9}
        },
        "tokenizer_class": "GPT2Tokenizer",
        "use_cache": True,
        "vocab_size": 50257,
        "window_size": 256,
    },
}


def _bert(d: int, layers: int, heads: int, **others: Any) -> Config:
    return {
        "architectures": ["BertForMaskedLM"],
        "attention_probs_dropout_prob": 0.1,
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": d,
        "initializer_range": 0.02,
        "intermediate_size": 4 * d,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "transformers_version": "4.6.0",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": 30522,
    } | others


BGE = {
    "architectures": ["BertModel"],
    "classifier_dropout": None,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "torch_dtype": "float32",
}
ROBERTA = {
    "architectures": ["RobertaForMaskedLM"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
XLM = ROBERTA | {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "output_past": True,
    "vocab_size": 250002,
}
DEBERTA = {
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "relative_attention": True,
    "type_vocab_size": 0,
}
DEBERTA_V2 = {
    "architectures": ["DebertaV2Model"],
    "model_type": "deberta-v2",
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": "p2c|c2p",
    "position_buckets": 256,
    "share_att_key": True,
    "vocab_size": 128100,
}


def _deberta(d: int, layers: int, heads: int, **others: Any) -> Config:
    config = _bert(d, layers, heads, **DEBERTA | others)
    return {name: value for name, value in config.items() if name != "position_embedding_type"}


BERT: Rows = {
    ("bert", "bert_base"): _bert(768, 12, 12),
    ("bert", "bert_large"): _bert(1024, 24, 16),
    ("bert", "bert_large_encoder"): _bert(1024, 24, 16, **BGE),
    ("bert", "bge_base"): _bert(768, 12, 12, **BGE),
    ("bert", "e5_base"): _bert(768, 12, 12, **BGE),
    ("roberta", "roberta_base"): _bert(768, 12, 12, **ROBERTA),
    ("roberta", "roberta_large"): _bert(1024, 24, 16, **ROBERTA),
    ("roberta", "e5_multilingual_large"): _bert(1024, 24, 16, **XLM),
    ("roberta", "bge_m3"): _bert(1024, 24, 16, **XLM),
    ("deberta", "deberta_base"): _deberta(
        *(768, 12, 12),
        architectures=["DebertaModel"],
        model_type="deberta",
        pos_att_type="c2p|p2c",
        vocab_size=50265,
    ),
    ("deberta", "deberta_v3_base"): _deberta(768, 12, 12, **DEBERTA_V2),
    ("deberta", "deberta_v3_large"): _deberta(1024, 24, 16, **DEBERTA_V2),
    ("deberta", "deberta_v2_xlarge"): _deberta(
        *(1536, 24, 24), **DEBERTA_V2, attention_head_size=64, conv_act="gelu", conv_kernel_size=3
    ),
}
VIT_FIELDS = {
    "architectures": ["ViTModel"],
    "image_size": 224,
    "model_type": "vit",
    "num_channels": 3,
    "patch_size": 16,
    "qkv_bias": True,
}
TEXT_ONLY = ("max_position_embeddings", "pad_token_id", "type_vocab_size", "vocab_size")


def _vit(d: int, layers: int, heads: int) -> Config:
    config = _bert(d, layers, heads, **VIT_FIELDS)
    others = ("gradient_checkpointing", "position_embedding_type", "use_cache", *TEXT_ONLY)
    return {name: value for name, value in config.items() if name not in others}


VIT: Rows = {
    ("vit", "vit_b16"): _vit(768, 12, 12),
    ("vit", "vit_l16"): _vit(1024, 24, 16),
}


def _t5(d: int, layers: int, hidden: int, heads: int, **others: Any) -> Config:
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": hidden,
        "d_kv": 64,
        "d_model": d,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
        "n_positions": 512,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "num_layers": layers,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_num_buckets": 32,
        "task_specific_params": {
            "summarization": {"early_stopping": True, "max_length": 200, "prefix": "summarize: "}
        },
        "vocab_size": 32128,
    } | others


T5_OLD = {"architectures": ["T5WithLMHeadModel"], "d_kv": 128}
FLAN = {
    "feed_forward_proj": "gated-gelu",
    "relative_attention_max_distance": 128,
    "tie_word_embeddings": False,
}
MT5 = FLAN | {
    "architectures": ["MT5ForConditionalGeneration"],
    "model_type": "mt5",
    "tokenizer_class": "T5Tokenizer",
    "vocab_size": 250112,
}
T5: Rows = {
    ("t5", "t5_small"): _t5(512, 6, 2048, 8),
    ("t5", "t5_base"): _t5(768, 12, 3072, 12),
    ("t5", "t5_large"): _t5(1024, 24, 4096, 16),
    ("t5", "t5_3b"): _t5(1024, 24, 16384, 32, **T5_OLD),
    ("t5", "t5_11b"): _t5(1024, 24, 65536, 128, **T5_OLD),
    ("t5", "flan_t5_small"): _t5(512, 8, 1024, 6, **FLAN),
    ("t5", "flan_t5_base"): _t5(768, 12, 2048, 12, **FLAN),
    ("t5", "flan_t5_large"): _t5(1024, 24, 2816, 16, **FLAN),
    ("t5", "flan_t5_xl"): _t5(2048, 24, 5120, 32, **FLAN),
    ("t5", "flan_t5_xxl"): _t5(4096, 24, 10240, 64, **FLAN),
    ("t5", "mt5_small"): _t5(512, 8, 1024, 6, **MT5),
    ("t5", "mt5_base"): _t5(768, 12, 2048, 12, **MT5),
    ("t5", "mt5_large"): _t5(1024, 24, 2816, 16, **MT5),
    ("t5", "mt5_xl"): _t5(2048, 24, 5120, 32, **MT5),
    ("t5", "mt5_xxl"): _t5(4096, 24, 10240, 64, **MT5),
    ("t5", "ul2_20b"): _t5(
        *(4096, 32, 16384, 16), **FLAN | {"d_kv": 256, "feed_forward_proj": "gated-silu"}
    ),
}


def _encoder_decoder(d: int, layers: int, hidden: int, heads: int, **others: Any) -> Config:
    return {
        "activation_dropout": 0.1,
        "activation_function": "gelu",
        "architectures": ["BartForConditionalGeneration"],
        "attention_dropout": 0.1,
        "bos_token_id": 0,
        "d_model": d,
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": hidden,
        "decoder_layerdrop": 0.0,
        "decoder_layers": layers,
        "decoder_start_token_id": 2,
        "dropout": 0.1,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": hidden,
        "encoder_layerdrop": 0.0,
        "encoder_layers": layers,
        "eos_token_id": 2,
        "init_std": 0.02,
        "is_encoder_decoder": True,
        "max_position_embeddings": 1024,
        "model_type": "bart",
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "scale_embedding": False,
        "use_cache": True,
        "vocab_size": 50265,
    } | others


BART_OLD = {
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "classifier_dropout": 0.0,
    "forced_eos_token_id": 2,
    "normalize_before": False,
    "normalize_embedding": True,
}
NLLB = {
    "activation_function": "relu",
    "architectures": ["M2M100ForConditionalGeneration"],
    "max_length": 200,
    "model_type": "m2m_100",
    "scale_embedding": True,
    "tokenizer_class": "NllbTokenizer",
    "vocab_size": 256206,
}
VASWANI = {
    "activation_function": "relu",
    "architectures": ["MarianMTModel"],
    "decoder_vocab_size": 37000,
    "model_type": "marian",
    "scale_embedding": True,
    "share_encoder_decoder_embeddings": True,
    "static_position_embeddings": True,
    "vocab_size": 37000,
}
# The original sizes in the fields of the class that is closest, whose positions are stored.
MARIAN: dict[str, Config] = {
    "transformer_base": _encoder_decoder(512, 6, 2048, 8, **VASWANI),
    "transformer_big": _encoder_decoder(1024, 6, 4096, 16, **VASWANI),
}
SEQ2SEQ: Rows = {
    ("bart", "bart_base"): _encoder_decoder(768, 6, 3072, 12, **BART_OLD),
    ("bart", "bart_large"): _encoder_decoder(1024, 12, 4096, 16, **BART_OLD),
    ("nllb", "nllb_600m"): _encoder_decoder(1024, 12, 4096, 16, **NLLB),
    ("nllb", "nllb_1_3b"): _encoder_decoder(1024, 24, 8192, 16, **NLLB),
    ("nllb", "nllb_3_3b"): _encoder_decoder(2048, 24, 8192, 16, **NLLB),
}


def _falcon(d: int, layers: int, heads: int, **others: Any) -> Config:
    return {
        "alibi": False,
        "apply_residual_connection_post_layernorm": False,
        "architectures": ["FalconForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig"},
        "bias": False,
        "bos_token_id": 11,
        "eos_token_id": 11,
        "hidden_dropout": 0.0,
        "hidden_size": d,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5,
        "model_type": "falcon",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "parallel_attn": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 65024,
    } | others


GROUPED = {"new_decoder_architecture": True, "num_kv_heads": 8}
FALCON: Rows = {
    ("falcon", "falcon_7b"): _falcon(
        4544, 32, 71, multi_query=True, new_decoder_architecture=False
    ),
    ("falcon", "falcon_40b"): _falcon(8192, 60, 128, **GROUPED),
    ("falcon", "falcon_180b"): _falcon(
        *(14848, 80, 232), multi_query=True, tie_word_embeddings=False, **GROUPED
    ),
    ("falcon", "falcon_180b_tied"): _falcon(14848, 80, 232, multi_query=True, **GROUPED),
}


def _mistral(d: int, layers: int, hidden: int, heads: int, **others: Any) -> Config:
    return {
        "architectures": ["MistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": d,
        "initializer_range": 0.02,
        "intermediate_size": hidden,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 32768,
    } | others


MISTRAL: Rows = {
    ("mistral", "mistral_7b_v01"): _mistral(
        *(4096, 32, 14336, 32), rope_theta=10000.0, sliding_window=4096, vocab_size=32000
    ),
    ("mistral", "mistral_7b_v03"): _mistral(4096, 32, 14336, 32),
    ("mistral", "mistral_nemo_12b"): _mistral(
        *(5120, 40, 14336, 32), head_dim=128, max_position_embeddings=131072, vocab_size=131072
    ),
    ("mistral", "mistral_large_2"): _mistral(12288, 88, 28672, 96),
}


MIXTRAL_FIELDS = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
}
MIXTRAL: Rows = {
    ("mixtral", "mixtral_8x7b"): _mistral(
        *(4096, 32, 14336, 32), router_aux_loss_coef=0.02, vocab_size=32000, **MIXTRAL_FIELDS
    ),
    ("mixtral", "mixtral_8x22b"): _mistral(
        *(6144, 56, 16384, 48),
        max_position_embeddings=65536,
        router_aux_loss_coef=0.001,
        **MIXTRAL_FIELDS,
    ),
}


def _gemma(d: int, layers: int, hidden: int, heads: int, groups: int, **others: Any) -> Config:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "head_dim": 256,
        "hidden_size": d,
        "initializer_range": 0.02,
        "intermediate_size": hidden,
        "max_position_embeddings": 8192,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": groups,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 256000,
    } | others


GEMMA1 = {
    "architectures": ["GemmaForCausalLM"],
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": None,
    "model_type": "gemma",
    "rope_scaling": None,
}
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "model_type": "gemma2",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
GEMMA: Rows = {
    ("gemma", "gemma_2b"): _gemma(2048, 18, 16384, 8, 1, **GEMMA1),
    ("gemma", "gemma_7b"): _gemma(3072, 28, 24576, 16, 16, **GEMMA1),
    ("gemma", "gemma2_2b"): _gemma(2304, 26, 9216, 8, 4, **GEMMA2),
    ("gemma", "gemma2_9b"): _gemma(3584, 42, 14336, 16, 8, **GEMMA2),
    ("gemma", "gemma2_27b"): _gemma(
        *(4608, 46, 36864, 32, 16), **GEMMA2 | {"head_dim": 128, "query_pre_attn_scalar": 144}
    ),
    ("gemma", "gemma3_27b"): _gemma(
        *(5376, 62, 21504, 32, 16),
        architectures=["Gemma3ForCausalLM"],
        attn_logit_softcapping=None,
        cache_implementation="hybrid",
        final_logit_softcapping=None,
        head_dim=128,
        hidden_activation="gelu_pytorch_tanh",
        max_position_embeddings=131072,
        model_type="gemma3_text",
        query_pre_attn_scalar=168,
        rope_local_base_freq=10000,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
        rope_theta=1000000,
        sliding_window=1024,
        sliding_window_pattern=6,
        vocab_size=262208,
    ),
    ("gemma", "gemma3_1b"): _gemma(
        *(1152, 26, 6912, 4, 1),
        architectures=["Gemma3ForCausalLM"],
        attn_logit_softcapping=None,
        cache_implementation="hybrid",
        eos_token_id=[1, 106],
        final_logit_softcapping=None,
        hidden_activation="gelu_pytorch_tanh",
        max_position_embeddings=32768,
        model_type="gemma3_text",
        query_pre_attn_scalar=256,
        rope_local_base_freq=10000,
        rope_scaling=None,
        rope_theta=1000000,
        sliding_window=512,
        sliding_window_pattern=6,
        vocab_size=262144,
    ),
}


def _qwen2(d: int, layers: int, hidden: int, heads: int, groups: int, **others: Any) -> Config:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": d,
        "initializer_range": 0.02,
        "intermediate_size": hidden,
        "max_position_embeddings": 32768,
        "max_window_layers": layers,
        "model_type": "qwen2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": groups,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    } | others


APART = {"tie_word_embeddings": False, "vocab_size": 152064}
QWEN2: Rows = {
    ("qwen2", "qwen25_0_5b"): _qwen2(896, 24, 4864, 14, 2),
    ("qwen2", "qwen25_1_5b"): _qwen2(1536, 28, 8960, 12, 2),
    ("qwen2", "qwen25_3b"): _qwen2(2048, 36, 11008, 16, 2),
    ("qwen2", "qwen25_7b"): _qwen2(3584, 28, 18944, 28, 4, **APART),
    ("qwen2", "qwen25_14b"): _qwen2(5120, 48, 13824, 40, 8, **APART),
    ("qwen2", "qwen25_32b"): _qwen2(5120, 64, 27648, 40, 8, **APART),
    ("qwen2", "qwen25_72b"): _qwen2(8192, 80, 29568, 64, 8, **APART),
}


def _phi3(d: int, layers: int, hidden: int, heads: int, groups: int, **others: Any) -> Config:
    return {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": 32000,
        "hidden_act": "silu",
        "hidden_size": d,
        "initializer_range": 0.02,
        "intermediate_size": hidden,
        "max_position_embeddings": 4096,
        "model_type": "phi3",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": groups,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 32000,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 32064,
    } | others


PHI3: Rows = {
    ("phi3", "phi3_mini"): _phi3(3072, 32, 8192, 32, 32),
    ("phi3", "phi3_medium"): _phi3(5120, 40, 17920, 40, 10),
    ("phi3", "phi4_mini"): _phi3(
        *(3072, 32, 8192, 24, 8),
        full_attn_mod=1,
        interpolate_factor=1,
        lm_head_bias=False,
        max_position_embeddings=131072,
        mlp_bias=False,
        original_max_position_embeddings=4096,
        partial_rotary_factor=0.75,
        rope_scaling={
            "long_factor": [1 + i for i in range(48)],  # the published ones are not so round
            "short_factor": [1.0] * 48,
            "type": "longrope",
        },
        sliding_window=262144,
        tie_word_embeddings=True,
        vocab_size=200064,
    ),
    ("phi3", "phi4"): _phi3(
        *(5120, 40, 17920, 40, 10),
        max_position_embeddings=16384,
        original_max_position_embeddings=16384,
        rope_theta=250000,
        sliding_window=None,
        vocab_size=100352,
    ),
}


def _mamba(d: int, layers: int) -> Config:
    return {
        "architectures": ["MambaForCausalLM"],
        "bos_token_id": 0,
        "conv_kernel": 4,
        "d_inner": 2 * d,
        "d_model": d,
        "eos_token_id": 0,
        "expand": 2,
        "fused_add_norm": True,
        "hidden_act": "silu",
        "hidden_size": d,
        "initializer_range": 0.1,
        "intermediate_size": 2 * d,
        "layer_norm_epsilon": 1e-5,
        "model_type": "mamba",
        "n_layer": layers,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "pad_vocab_size_multiple": 8,
        "rescale_prenorm_residual": False,
        "residual_in_fp32": True,
        "rms_norm": True,
        "ssm_cfg": {},
        "state_size": 16,
        "time_step_floor": 0.0001,
        "time_step_init_scheme": "random",
        "time_step_max": 0.1,
        "time_step_min": 0.001,
        "time_step_rank": d // 16,
        "time_step_scale": 1.0,
        "torch_dtype": "float32",
        "transformers_version": "4.39.0.dev0",
        "use_bias": False,
        "use_cache": True,
        "use_conv_bias": True,
        "vocab_size": 50280,
    }


MAMBA: Rows = {
    ("mamba", "mamba_130m"): _mamba(768, 24),
    ("mamba", "mamba_370m"): _mamba(1024, 48),
    ("mamba", "mamba_790m"): _mamba(1536, 48),
    ("mamba", "mamba_1_4b"): _mamba(2048, 48),
    ("mamba", "mamba_2_8b"): _mamba(2560, 64),
}


def _switch(experts: int, d: int = 768, layers: int = 12, **others: Any) -> Config:
    return {
        "add_router_probs": False,
        "architectures": ["SwitchTransformersForConditionalGeneration"],
        "d_ff": 4 * d,
        "d_kv": 64,
        "d_model": d,
        "decoder_sparse_step": 2,
        "decoder_start_token_id": 0,
        "dense_act_fn": "relu",
        "dropout_rate": 0.1,
        "encoder_sparse_step": 2,
        "eos_token_id": 1,
        "expert_capacity": 64,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-6,
        "model_type": "switch_transformers",
        "num_decoder_layers": layers,
        "num_experts": experts,
        "num_heads": d // 64,
        "num_layers": layers,
        "num_sparse_decoder_layers": layers // 2,
        "num_sparse_encoder_layers": layers // 2,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "router_aux_loss_coef": 0.001,
        "router_bias": False,
        "router_dtype": "float32",
        "router_ignore_padding_tokens": False,
        "router_jitter_noise": 0.01,
        "router_z_loss_coef": 0.001,
        "use_cache": True,
        "vocab_size": 32128,
    } | others


SWITCH: Rows = {
    **{("switch", f"switch_base_{n}"): _switch(n) for n in (8, 16, 32, 64, 128, 256)},
    ("switch", "switch_large_128"): _switch(128, 1024, 24),
    ("switch", "switch_c_2048"): _switch(
        *(2048, 2080, 15),
        d_ff=6144,
        decoder_sparse_step=1,
        encoder_sparse_step=1,
        num_heads=32,
        num_sparse_decoder_layers=15,
        num_sparse_encoder_layers=15,
    ),
}


def _deepseek_v2(d: int, layers: int, hidden: int, heads: int, **others: Any) -> Config:
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001,
        "bos_token_id": 100000,
        "eos_token_id": 100001,
        "ep_size": 1,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": d,
        "initializer_range": 0.02,
        "intermediate_size": hidden,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "model_type": "deepseek_v2",
        "moe_layer_freq": 1,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_attention_heads": heads,
        "num_experts_per_tok": 6,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
        "pretraining_tp": 1,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "scoring_func": "softmax",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": 128,
        "vocab_size": 102400,
    } | others


DEEPSEEK_V2: Rows = {
    ("deepseek_v2", "deepseek_v2"): _deepseek_v2(
        *(5120, 60, 12288, 128),
        moe_intermediate_size=1536,
        n_group=8,
        n_routed_experts=160,
        q_lora_rank=1536,
        routed_scaling_factor=16.0,
        topk_group=3,
        topk_method="group_limited_greedy",
    ),
    ("deepseek_v2", "deepseek_v2_lite"): _deepseek_v2(
        *(2048, 27, 10944, 16),
        moe_intermediate_size=1408,
        n_group=1,
        n_routed_experts=64,
        q_lora_rank=None,
        routed_scaling_factor=1.0,
        topk_group=1,
        topk_method="greedy",
    ),
}

CONFIGS: Rows = (
    LLAMA
    | GPT
    | BERT
    | VIT
    | T5
    | SEQ2SEQ
    | FALCON
    | MISTRAL
    | MIXTRAL
    | SWITCH
    | DEEPSEEK_V2
    | GEMMA
    | QWEN2
    | PHI3
    | MAMBA
)
