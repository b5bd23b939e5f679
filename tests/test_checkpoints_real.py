"""Real weights that packages ship: SmolLM2-135M-Instruct (GGUF) and all-MiniLM-L6-v2 (safetensors).

The GGUF is also read here with the `gguf` package alone, its q and k rows put back into the order of
`transformers`, so that nothing of archc's own reader is on both sides of the comparison.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize
from references import distance
from shipped import minilm, smollm2

import archc
from archc.tokenizer import open_tokenizer

EXAMPLES = Path(__file__).parent.parent / "examples"
PROMPT = "The capital of France is"
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def reference_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in TOP:
        return f"{TOP[stem]}.weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{LAYER[part]}.weight"


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp stores the two halves of a head's rows alternately; this puts them one after the other."""
    width = rows.shape[1]
    return rows.reshape(heads, -1, 2, width).swapaxes(1, 2).reshape(rows.shape)


def reference_model(path: Path) -> transformers.LlamaForCausalLM:
    reader = GGUFReader(path)
    field = {name: f.contents() for name, f in reader.fields.items() if name.startswith("llama.")}
    heads = field["llama.attention.head_count"]
    groups = field["llama.attention.head_count_kv"]
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=field["llama.embedding_length"],
        intermediate_size=field["llama.feed_forward_length"],
        num_hidden_layers=field["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=groups,
        rms_norm_eps=field["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": field["llama.rope.freq_base"]},
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for tensor in reader.tensors:
            value = dequantize(tensor.data, tensor.tensor_type)
            kind = tensor.name.split(".")[-2]
            if kind in ("attn_q", "attn_k"):
                value = halves(value, heads if kind == "attn_q" else groups)
            own[reference_name(tensor.name)].copy_(torch.from_numpy(value.copy()))
    return model


def test_smollm2_logits_and_greedy_text() -> None:
    reference = reference_model(smollm2())
    model = archc.load(EXAMPLES / "llama.arch", weights=smollm2())
    compiled = model.compile("torch", inputs=["input_ids"])
    assert model.checkpoint is not None
    ids = list(open_tokenizer(model.checkpoint).encode(PROMPT))
    start = torch.tensor([ids])
    with torch.no_grad():
        logits = reference(start).logits.numpy()
    assert distance(compiled(input_ids=start.numpy())["logits"], logits) <= 1e-4
    greedy = reference.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=48, do_sample=False
    )[0].tolist()
    for _ in range(len(greedy) - len(ids)):
        ids.append(int(compiled(input_ids=np.array([ids]))["logits"][0, -1].argmax()))
    assert ids == greedy


LOADING = """
import resource, sys, torch, numpy, gguf, archc
from archc.backends import torch as backend
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
compiled = archc.load(sys.argv[1], weights=sys.argv[2]).compile("torch", inputs=["input_ids"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, compiled.model.parameter_count())
"""


def test_loading_needs_little_more_than_the_weights() -> None:
    """Peak memory while loading stays under 1.3 times the weights in float32."""
    found = subprocess.run(
        [sys.executable, "-c", LOADING, str(EXAMPLES / "llama.arch"), str(smollm2())],
        capture_output=True,
        text=True,
        check=True,
    )
    kilobytes, count = map(int, found.stdout.split())
    assert kilobytes * 1024 <= 1.3 * 4 * count


def test_minilm_embeddings() -> None:
    """Mean-pooled, normalised sentence vectors, as sentence-transformers defines them."""
    directory = minilm()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    texts = ["A cat sits on the mat.", "Compilers turn text into programs.", "Hello"]
    batch = tokenizer(texts, padding=True, return_tensors="np")
    reference = transformers.BertModel.from_pretrained(directory).eval()
    with torch.no_grad():
        hidden = reference(**{k: torch.from_numpy(v) for k, v in batch.items()}).last_hidden_state
    mask = torch.from_numpy(batch["attention_mask"])[..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(mean).numpy()
    model = archc.load(EXAMPLES / "bert.arch", weights=directory)
    inputs = {name: np.asarray(batch[name]) for name in batch}
    for backend in ("numpy", "torch"):
        found = model.compile(backend, inputs=list(inputs))(**inputs)["embed_mean"]
        assert distance(found, expected) <= 1e-5
