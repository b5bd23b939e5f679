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

    def run(self, model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            result = model(**{k: torch.from_numpy(v) for k, v in inputs.items()})
        names = {"hidden": "last_hidden_state", "pooled": "pooler_output"}
        return result[names.get(self.output, self.output)].numpy()


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
}


def make_loud(model: torch.nn.Module, seed: int = 0) -> None:
    """Matrices N(0, 1/fan_in), gains and biases moved well away from one and zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.25 * noise)


def batch(example: str, tokens: int = 12, padding: int = 3, seed: int = 1) -> dict[str, np.ndarray]:
    """Two rows of ids, the second padded on the right."""
    generator = np.random.default_rng(seed)
    mask = np.ones((2, tokens), np.int64)
    mask[1, tokens - padding :] = 0
    inputs = {
        "input_ids": generator.integers(0, VOCAB, (2, tokens)),
        "attention_mask": mask,
    }
    if example == "bert":
        inputs["token_type_ids"] = generator.integers(0, 2, (2, tokens))
    return inputs


def distance(value: np.ndarray, reference: np.ndarray) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))
