"""Tiny random models of `transformers`, saved as a user would find them, with loud weights.

Every epsilon is large, every gain and bias is random, the vocabulary is a prime: whatever an
implementation ignores or confuses shows in the output.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCAB, EPSILON = 131, 2e-3
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 8.0,
    "beta_slow": 1.5,
}
DEEPSEEK_SCALES = {"mscale": 0.7, "mscale_all_dim": 0.3}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.7, 2.3, 3.1, 4.5, 6.0],
}
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "rms_norm_eps": EPSILON,
}
BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": EPSILON,
}
GPT2 = {
    "vocab_size": VOCAB,
    "n_positions": 40,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "layer_norm_epsilon": EPSILON,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL = {  # the names most decoders share
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": EPSILON,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FALCON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "layer_norm_epsilon": EPSILON,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEBERTA = BERT | {
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 7,
    "legacy": False,
}
DEBERTA_V2 = DEBERTA | {
    "pos_att_type": ["p2c", "c2p"],
    "max_relative_positions": 9,
    "position_buckets": 6,
}
VIT = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "layer_norm_eps": EPSILON,
    "image_size": 24,
    "patch_size": 6,
    "num_channels": 2,
}
MAMBA = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "state_size": 6,
    "time_step_rank": 5,
    "layer_norm_epsilon": EPSILON,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA2 = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_heads": 6,
    "head_dim": 16,
    "n_groups": 2,
    "state_size": 6,
    "chunk_size": 5,
    "layer_norm_epsilon": EPSILON,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 112,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "layer_norm_epsilon": EPSILON,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
BART = {
    "vocab_size": VOCAB,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 112,
    "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
DPR = BERT | {"model_type": "dpr", "hidden_size": 48, "num_hidden_layers": 2, "projection_dim": 40}
RAG = {"n_docs": 3, "question_encoder": DPR, "generator": BART | {"model_type": "bart"}}
MARIAN = BART | {"decoder_vocab_size": VOCAB, "eos_token_id": 2}
ENCODER_DECODERS = ("t5", "bart", "nllb", "transformer")
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
}
GEMMA3_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]


def mean_over_tokens(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    kept = mask[..., None].to(hidden.dtype)
    return (hidden * kept).sum(1) / kept.sum(1)


EMBEDDINGS = {  # what E5 and BGE take of the hidden states, before they scale it to unit length
    "embed_mean": mean_over_tokens,
    "embed_cls": lambda hidden, mask: hidden[:, 0],
}


@dataclass(frozen=True)
class Reference:
    """A class of `transformers`, its config, the `.arch` file and the output to compare."""

    example: str
    class_name: str
    config: dict[str, Any]
    output: str = "logits"

    def build(self, directory: Path) -> torch.nn.Module:
        """The model with loud weights, saved to `directory` and read back."""
        cls = getattr(transformers, self.class_name)
        made = cls(cls.config_class(**self.config))
        make_loud(made)
        made.save_pretrained(directory)
        return cls.from_pretrained(directory).eval()

    def inputs(self) -> dict[str, np.ndarray]:
        """Inputs that fit the example and this config."""
        given, kinds = batch(self.example), self.config.get("type_vocab_size", 0)
        if kinds > 1:
            shape = given["input_ids"].shape
            given["token_type_ids"] = np.random.default_rng(2).integers(0, kinds, shape)
        return given

    def run(self, model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            kind = next(model.parameters()).dtype
            given = {k: torch.from_numpy(v) for k, v in inputs.items()}
            given = {k: v.to(kind) if v.is_floating_point() else v for k, v in given.items()}
            if self.example == "rag":
                return self.run_rag(model, given)
            result = model(**given)
        if self.output in EMBEDDINGS:
            pooled = EMBEDDINGS[self.output](result["last_hidden_state"], given["attention_mask"])
            return torch.nn.functional.normalize(pooled, dim=-1).numpy()
        names = {"hidden": "last_hidden_state", "pooled": "pooler_output"}
        return result[names.get(self.output, self.output)].numpy()

    def run_rag(self, model: torch.nn.Module, given: dict[str, torch.Tensor]) -> np.ndarray:
        """The class embeds no question but to retrieve, and marginalises where it is asked to."""
        of_question = {k.removeprefix("question_"): v for k, v in given.items() if "question" in k}
        if self.output == "question_embedding":
            of_question["input_ids"] = of_question.pop("ids")
            return model.rag.question_encoder(**of_question)[0].numpy()
        others = {k: v for k, v in given.items() if "question" not in k}
        marginalised = self.class_name == "RagTokenForGeneration"
        others |= {"do_marginalize": True} if marginalised else {}
        return model(**others)["logits"].numpy()


REFERENCES: dict[str, Reference] = {
    "llama": Reference("llama", "LlamaForCausalLM", LLAMA),
    "llama-grouped": Reference("llama", "LlamaForCausalLM", LLAMA | {"num_key_value_heads": 2}),
    "llama3-tied": Reference(
        "llama",
        "LlamaForCausalLM",
        LLAMA
        | {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE},
    ),
    "llama-linear-rope": Reference(
        "llama",
        "LlamaForCausalLM",
        LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}},
    ),
    "llama-dynamic-rope": Reference(
        "llama",
        "LlamaForCausalLM",
        LLAMA
        | {
            "max_position_embeddings": 8,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0},
        },
    ),
    "llama-yarn": Reference(
        "llama", "LlamaForCausalLM", LLAMA | {"rope_parameters": YARN | DEEPSEEK_SCALES}
    ),
    "llama-biased": Reference(
        "llama",
        "LlamaForCausalLM",
        LLAMA | {"attention_bias": True, "mlp_bias": True, "head_dim": 24, "hidden_act": "gelu"},
    ),
    "gpt2": Reference("gpt2", "GPT2LMHeadModel", GPT2),
    "gpt2-untied": Reference(
        "gpt2", "GPT2LMHeadModel", GPT2 | {"tie_word_embeddings": False, "n_inner": 80}
    ),
    "bert-mlm": Reference("bert", "BertForMaskedLM", BERT),
    "bert-hidden": Reference("bert", "BertModel", BERT, "hidden"),
    "bert-pooled": Reference("bert", "BertModel", BERT | {"hidden_act": "gelu_new"}, "pooled"),
    "gpt1": Reference("gpt1", "OpenAIGPTLMHeadModel", GPT2),
    "gpt-neo-bands": Reference(
        "gpt3",
        "GPTNeoForCausalLM",
        {
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "num_layers": 4,
            "num_heads": 4,
            "max_position_embeddings": 40,
            "window_size": 5,
            "attention_types": [[["global", "local"], 2]],
            "layer_norm_epsilon": EPSILON,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "mistral-window": Reference("mistral", "MistralForCausalLM", SMALL | {"sliding_window": 5}),
    "mistral-nemo": Reference(
        "mistral", "MistralForCausalLM", SMALL | {"sliding_window": None, "head_dim": 24}
    ),
    "mistral-yarn": Reference(
        "mistral",
        "MistralForCausalLM",
        SMALL | {"sliding_window": None, "rope_parameters": YARN | {"attention_factor": 1.3}},
    ),
    "qwen2-yarn": Reference(
        "qwen2", "Qwen2ForCausalLM", SMALL | {"rope_parameters": YARN | {"truncate": False}}
    ),
    "qwen2": Reference("qwen2", "Qwen2ForCausalLM", SMALL | {"tie_word_embeddings": True}),
    "phi3-window": Reference("phi3", "Phi3ForCausalLM", SMALL | {"sliding_window": 6}),
    "phi3-longrope-short": Reference(
        "phi3",
        "Phi3ForCausalLM",
        SMALL | {"original_max_position_embeddings": 12, "rope_parameters": LONGROPE},
    ),
    "phi3-longrope-long": Reference(
        "phi3",
        "Phi3ForCausalLM",
        SMALL | {"original_max_position_embeddings": 11, "rope_parameters": LONGROPE},
    ),
    "gemma": Reference(
        "gemma", "GemmaForCausalLM", SMALL | {"head_dim": 24, "num_key_value_heads": 1}
    ),
    "gemma2": Reference(
        "gemma",
        "Gemma2ForCausalLM",
        SMALL
        | {
            "head_dim": 24,
            "sliding_window": 5,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.5,
            "attn_implementation": "eager",  # the others leave out the cap on scores
        },
    ),
    "gemma2-kinds": Reference(
        "gemma",
        "Gemma2ForCausalLM",
        SMALL
        | {"head_dim": 24, "sliding_window": 4, "layer_types": GEMMA3_KINDS[1:] * 2}
        | {"num_hidden_layers": 4, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 1.0}
        | {"attn_implementation": "eager"},
    ),
    "gemma3": Reference(
        "gemma",
        "Gemma3ForCausalLM",
        SMALL
        | {
            "head_dim": 24,
            "sliding_window": 5,
            "query_pre_attn_scalar": 20,
            "layer_types": GEMMA3_KINDS,
            "rope_parameters": GEMMA3_ROPE,
        },
    ),
    "falcon-7b": Reference("falcon", "FalconForCausalLM", FALCON),
    "falcon-40b": Reference(
        "falcon",
        "FalconForCausalLM",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon-rw": Reference(
        "falcon",
        "FalconForCausalLM",
        FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "roberta": Reference(
        "roberta", "RobertaForMaskedLM", BERT | {"type_vocab_size": 1, "pad_token_id": 1}
    ),
    "xlm-roberta": Reference(
        "roberta", "XLMRobertaModel", BERT | {"type_vocab_size": 1, "pad_token_id": 1}, "hidden"
    ),
    "e5-mean": Reference(
        "roberta", "XLMRobertaModel", BERT | {"type_vocab_size": 1, "pad_token_id": 1}, "embed_mean"
    ),
    "bge-m3-cls": Reference(
        "roberta", "XLMRobertaModel", BERT | {"type_vocab_size": 1, "pad_token_id": 1}, "embed_cls"
    ),
    "e5-en-mean": Reference("bert", "BertModel", BERT, "embed_mean"),
    "bge-en-cls": Reference("bert", "BertModel", BERT, "embed_cls"),
    "deberta": Reference("deberta", "DebertaForMaskedLM", DEBERTA),
    "deberta-legacy-head": Reference(
        "deberta", "DebertaForMaskedLM", DEBERTA | {"legacy": True, "pos_att_type": "p2c|c2p"}
    ),
    "deberta-c2p": Reference(
        "deberta",
        "DebertaModel",
        DEBERTA
        | {"pos_att_type": ["c2p"], "position_biased_input": True, "type_vocab_size": 2}
        | {"max_relative_positions": -1},
        "hidden",
    ),
    "deberta-v2-conv": Reference(
        "deberta",
        "DebertaV2ForMaskedLM",
        DEBERTA_V2 | {"conv_kernel_size": 5, "conv_act": "tanh", "legacy": True},
    ),
    "deberta-v2-p2c": Reference(
        "deberta",
        "DebertaV2Model",
        DEBERTA_V2 | {"pos_att_type": ["p2c"], "position_buckets": -1, "hidden_act": "gelu_new"},
        "hidden",
    ),
    "deberta-v3": Reference(
        "deberta",
        "DebertaV2ForMaskedLM",
        DEBERTA_V2 | {"share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    "vit": Reference("vit", "ViTModel", VIT, "hidden"),
    "vit-pooled": Reference(
        "vit",
        "ViTModel",
        VIT | {"qkv_bias": False, "pooler_output_size": 48},
        "pooler_output",
    ),
    "mamba": Reference("mamba", "MambaForCausalLM", MAMBA),
    "mamba-biased": Reference(
        "mamba",
        "MambaForCausalLM",
        MAMBA
        | {"use_bias": True, "use_conv_bias": False, "hidden_act": "gelu", "conv_kernel": 3}
        | {"tie_word_embeddings": False, "residual_in_fp32": False, "time_step_rank": "auto"},
    ),
    "mamba2": Reference("mamba2", "Mamba2ForCausalLM", MAMBA2),
    "mamba2-biased": Reference(
        "mamba2",
        "Mamba2ForCausalLM",
        MAMBA2
        | {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3, "residual_in_fp32": False}
        | {"tie_word_embeddings": True, "n_groups": 3, "time_step_limit": [0.4, 1.1]},
    ),
    "t5": Reference("t5", "T5ForConditionalGeneration", T5),
    "t5-gated": Reference(
        "t5",
        "T5ForConditionalGeneration",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "mt5": Reference(
        "t5",
        "MT5ForConditionalGeneration",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_heads": 3},
    ),
    "ul2": Reference("t5", "T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-silu"}),
    "bart": Reference("bart", "BartForConditionalGeneration", BART),
    "bart-hidden": Reference(
        "bart",
        "BartModel",
        BART | {"scale_embedding": True, "activation_function": "gelu_new"},
        "hidden",
    ),
    "rag-token": Reference("rag", "RagTokenForGeneration", RAG),
    "rag-sequence": Reference(
        "rag",
        "RagSequenceForGeneration",
        RAG
        | {"question_encoder": DPR | {"projection_dim": 0}}
        | {"generator": RAG["generator"] | {"scale_embedding": True}},
    ),
    "rag-question": Reference("rag", "RagTokenForGeneration", RAG, "question_embedding"),
    "nllb": Reference("nllb", "M2M100ForConditionalGeneration", BART),
    "nllb-unscaled": Reference(
        "nllb",
        "M2M100ForConditionalGeneration",
        BART | {"scale_embedding": False, "activation_function": "silu"},
    ),
    "marian": Reference(
        "transformer",
        "MarianMTModel",
        MARIAN | {"scale_embedding": True, "activation_function": "relu"},
    ),
    "marian-unscaled": Reference(
        "transformer", "MarianMTModel", MARIAN | {"activation_function": "swish"}
    ),
}


def make_loud(model: torch.nn.Module, seed: int = 0) -> None:
    """Matrices N(0, 1/fan_in), gains, biases and stored buffers moved well away from one and zero."""
    generator = torch.Generator().manual_seed(seed)
    stored = (b for name, b in model.named_buffers() if name in model.state_dict())
    with torch.no_grad():
        for parameter in (*model.parameters(), *stored):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.25 * noise)


def batch(example: str, tokens: int = 12, padding: int = 3, seed: int = 1) -> dict[str, np.ndarray]:
    """Two rows of ids, the second padded on the right. So are a decoder's own rows."""
    generator = np.random.default_rng(seed)
    mask = np.ones((2, tokens), np.int64)
    mask[1, tokens - padding :] = 0
    inputs = {
        "input_ids": generator.integers(0, VOCAB, (2, tokens)),
        "attention_mask": mask,
    }
    if example == "vit":
        return {"pixel_values": generator.standard_normal((2, 2, 24, 24)).astype(np.float32)}
    if example == "rag":
        return documents(generator)
    if example == "roberta":  # the padding token decides the positions
        inputs["input_ids"] = np.where(mask == 1, inputs["input_ids"].clip(2), 1)
    if example in ENCODER_DECODERS:
        inputs["decoder_input_ids"] = generator.integers(0, VOCAB, (2, 9))
        inputs["decoder_attention_mask"] = np.ones((2, 9), np.int64)
        inputs["decoder_attention_mask"][1, -1] = 0
    if example == "nllb":  # positions skip padding tokens, seen or not, and no others
        inputs["input_ids"][:, [0, 4, -1]] = [5, 1, 1]
        inputs["decoder_input_ids"][:, [0, 3]] = [1, 1]
        mask[0, 0] = inputs["decoder_attention_mask"][0, 5] = 0
    return inputs


def documents(generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Two questions with three documents each, of several lengths."""
    lengths, asked = np.array([11, 7, 10, 11, 4, 9]), np.array([6, 8])
    return {
        "question_ids": generator.integers(0, VOCAB, (2, 8)),
        "question_attention_mask": np.int64(np.arange(8) < asked[:, None]),
        "context_input_ids": generator.integers(0, VOCAB, (6, 11)),
        "context_attention_mask": np.int64(np.arange(11) < lengths[:, None]),
        "decoder_input_ids": generator.integers(0, VOCAB, (2, 9)),
        "doc_scores": generator.standard_normal((2, 3)),
    }


def seen(inputs: dict[str, np.ndarray]) -> np.ndarray | None:
    """What is not padding, of the sequence whose outputs are compared; an image has none."""
    mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
    return None if mask is None else mask.astype(bool)


def distance(value: np.ndarray, reference: np.ndarray) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))
