"""RAG's losses, RETRO, Atlas and RALLM, against `transformers` and torch models written here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from bundled import FOLDER
from references import EPSILON, RAG, VOCAB, Reference, distance, documents
from torch.nn.functional import gelu, linear, silu
from transformers.modeling_outputs import BaseModelOutput

import archc
from archc.dsl.diagnostics import ArchError

RUNS = [
    ("numpy", "f64", 0),
    ("numpy", "f64", 1),
    ("torch", "f32", 0),
    ("torch", "f32", 1),
    ("triton", "f32", 1),
]
TOLERANCE = {"f64": 1e-12, "f32": 1e-5}
Weights = Mapping[str, torch.Tensor]


@cache
def loud(name: str, **values: Any) -> tuple[archc.api.Model, Weights]:
    """An example with gains and biases far from one and zero, and its weights."""
    made = archc.load(FOLDER / f"{name}.arch", preset="tiny", **values).with_random_weights(4)
    noise = np.random.default_rng(2)
    moved = {
        path: (w + (0.3 if w.ndim == 1 else 0.0) * noise.standard_normal(w.shape)).astype("f")
        for path, w in made.given_weights().items()
    }
    model = archc.load(FOLDER / f"{name}.arch", preset="tiny", weights=moved, **values)
    return model, {path: torch.from_numpy(w).double() for path, w in moved.items()}


def filled(lengths: list[int], size: int) -> np.ndarray:
    return np.arange(size) < np.array(lengths)[:, None]


# -------------------------------------------------------------------------------------- RAG

TARGETS = {  # what a row of the decoder holds; 0 starts a text, 1 pads it
    "plain": [[2, 7, 9, 30, 8, 12], [2, 5, 40, 3, 1, 1]],
    "starts": [[2, 0, 9, 30, 8, 12], [2, 0, 40, 3, 1, 1]],
    "one starts": [[2, 0, 9, 30, 8, 12], [2, 4, 40, 3, 1, 1]],
    "short": [[2, 7], [2, 1]],
}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("RagTokenForGeneration", {}),
        ("RagSequenceForGeneration", {}),
        ("RagSequenceForGeneration", {"exclude_bos_score": True, "bos_token_id": 0}),
    ],
)
def test_the_losses_of_rag(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    reference = Reference("rag", name, RAG | {"reduce_loss": True} | fields)
    theirs = reference.build(tmp_path).double()
    ours = archc.load(FOLDER / "rag.arch", weights=tmp_path, loss=True)
    given = documents(np.random.default_rng(3))
    exact = ours.compile(dtype="f64", level=0, inputs=given)
    masking = ours.compile("torch", inputs=[*given, "decoder_attention_mask"])
    for targets in TARGETS.values():
        ids = np.array(targets)
        given |= {"decoder_input_ids": ids}
        asked = {k: torch.from_numpy(v) for k, v in given.items() if "question" not in k}
        expected = theirs(**asked, labels=torch.from_numpy(ids))["loss"].item()
        assert exact(**given)["loss"] == pytest.approx(expected, rel=1e-9), targets
        masked = masking(**given, decoder_attention_mask=ids != 1)["loss"]
        assert masked == pytest.approx(expected, rel=1e-5), targets


def test_documents_are_scored_by_their_embeddings(tmp_path: Path) -> None:
    model = archc.load(FOLDER / "rag.arch", preset="tiny").with_random_weights(1)
    given = documents(np.random.default_rng(3))
    del given["doc_scores"]
    embedded = np.random.default_rng(4).standard_normal((2, 3, 48))
    found = model.compile(dtype="f64")(**given, retrieved_doc_embeds=embedded)
    scores = np.einsum("bd,bnd->bn", found["question_embedding"], embedded)
    again = model.compile(dtype="f64", inputs=[*given, "doc_scores"])(**given, doc_scores=scores)
    assert distance(again["logits"], found["logits"]) <= 1e-12
    with pytest.raises(ArchError) as caught:
        model.compile()(**given)
    assert caught.value.id == "missing-input"


def test_the_size_of_rag() -> None:
    """BART large, and BERT base without its pooler."""
    model = archc.load(FOLDER / "rag.arch", preset="rag_token")
    assert model.parameter_count() == 406_291_456 + 108_891_648 == 515_183_104


# ------------------------------------------------------------------------------------ RETRO

CHUNK, DIMS, HEADS = 4, 8, 4


def retro_norm(w: Weights, path: str, x: torch.Tensor) -> torch.Tensor:
    return x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5) * w[f"{path}.gain"]


def affine(w: Weights, path: str, x: torch.Tensor) -> torch.Tensor:
    return linear(x, w[f"{path}.w"].reshape(-1, x.shape[-1]), w[f"{path}.b"].reshape(-1))


def ffn(w: Weights, path: str, x: torch.Tensor) -> torch.Tensor:
    return affine(w, f"{path}.out", gelu(affine(w, f"{path}.in", x)))


def turned(x: torch.Tensor, at: torch.Tensor, theta: float, dims: int) -> torch.Tensor:
    """The first `dims` elements of [h, s, e] turned by the positions `at`, in halves."""
    rate = theta ** (-torch.arange(0, dims, 2, dtype=x.dtype) / dims)
    angle = at.to(x.dtype)[:, None] * rate
    z = torch.complex(x[..., : dims // 2], x[..., dims // 2 : dims])
    z = z * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag, x[..., dims:]), -1)


def heads_of(w: Weights, path: str, x: torch.Tensor, heads: int = HEADS) -> torch.Tensor:
    return (
        (x @ w[f"{path}.w"].reshape(-1, x.shape[-1]).T).unflatten(-1, (heads, -1)).transpose(0, 1)
    )


def attend(
    w: Weights,
    path: str,
    x: torch.Tensor,
    memory: torch.Tensor,
    seen: torch.Tensor,
    at: tuple[torch.Tensor, torch.Tensor] | None,
    null: bool = False,
) -> torch.Tensor:
    """Of one row, x [s, d], memory [t, m] and seen [s, t]; at most one more key, which has no place.

    The package hides by a finite number: what sees nothing is never read, and must not be NaN.
    """
    q, k, v = (
        heads_of(w, f"{path}.{n}", y) for n, y in zip("qkv", (x, memory, memory), strict=True)
    )
    if at is not None:
        q, k = turned(q, at[0], 1e4, DIMS), turned(k, at[1], 1e4, DIMS)
    if null:
        shape = (HEADS, 1, q.shape[-1])
        k = torch.cat((w[f"{path}.null_k"].reshape(shape), k), 1)
        v = torch.cat((w[f"{path}.null_v"].reshape(shape), v), 1)
        seen = torch.cat((torch.ones(len(x), 1, dtype=torch.bool), seen), 1)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -1e30)
    y = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
    return affine(w, f"{path}.o", y)


def encoded(w: Weights, at: str, ids: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
    """One neighbour [r], with a look at its chunk [c, d] in the second of two layers."""
    x, seen = w["embed.w"][ids], (ids != 0).expand(len(ids), -1)
    places, slots = torch.arange(len(ids)), torch.arange(CHUNK)
    for i in range(2):
        layer = f"{at}.layers[{i}]"
        n = retro_norm(w, f"{layer}.norm1", x)
        x = x + attend(w, f"{layer}.self", n, n, seen, (places, places))
        if i == 1:
            n, whole = retro_norm(w, f"{layer}.norm2", x), torch.ones(len(ids), CHUNK) > 0
            x = x + attend(w, f"{layer}.cross", n, chunk, whole, (places, slots))
        x = x + ffn(w, f"{layer}.ffn", retro_norm(w, f"{layer}.norm3", x))
    return affine(w, f"{at}.out", retro_norm(w, f"{at}.norm", x))


def retro(w: Weights, ids: torch.Tensor, retrieved: torch.Tensor) -> torch.Tensor:
    """One row [s] with its neighbours [u, k, r]: each window of queries after a chunk reads them."""
    length, (chunks, count, size) = len(ids), retrieved.shape
    x = affine(w, "widen", w["embed.w"][ids] + w["positions.w"][:length])
    slots, past = torch.arange(length), torch.ones(length, length).tril() > 0
    places = torch.arange(size).repeat(count)
    for i in range(3):
        layer = f"decoder[{i}]"
        n = retro_norm(w, f"{layer}.norm1", x)
        x = x + attend(w, f"{layer}.self", n, n, past, (slots, slots))
        if i == 1:
            read = [
                torch.cat(
                    [encoded(w, f"{layer}.encoder", one, x[u * CHUNK :][:CHUNK]) for one in k]
                )
                for u, k in enumerate(retrieved)
            ]
        if i in (1, 2):
            n, y = retro_norm(w, f"{layer}.norm2", x), torch.zeros_like(x)
            for u in range(chunks):
                here = slice((u + 1) * CHUNK - 1, min((u + 2) * CHUNK - 1, length))
                at = torch.tensor([2 * CHUNK - 2, 0, 0, 0])[: here.stop - here.start]
                seen = (retrieved[u].flatten() != 0).expand(len(at), -1)
                y[here] = attend(
                    w, f"{layer}.cross", n[here], read[u], seen, (at, places), null=True
                )
            x = x + y
        x = x + ffn(w, f"{layer}.ffn", retro_norm(w, f"{layer}.norm3", x))
    return affine(w, "head", retro_norm(w, "final_norm", x))


def neighbours(length: int) -> dict[str, np.ndarray]:
    """Two rows; some neighbours are shorter than others, and one is not there at all."""
    generator = np.random.default_rng(length)
    retrieved = generator.integers(1, VOCAB, (2, length // CHUNK, 3, 6))
    retrieved[0, 0, 1, 4:] = retrieved[1, 0, 2, 2:] = retrieved[1, 0, 0] = 0
    return {"input_ids": generator.integers(0, VOCAB, (2, length)), "retrieved": retrieved}


@pytest.mark.parametrize(("backend", "dtype", "level"), RUNS)
def test_retro_agrees_with_the_formula(backend: str, dtype: str, level: int) -> None:
    """One chunk, whole ones, and one that is not finished."""
    model, w = loud("retro")
    run = model.compile(backend, dtype=dtype, level=level)
    for length in (4, 8, 11) if backend != "triton" else (4, 11):
        given = neighbours(length)
        for row, value in enumerate(run(**given)["logits"]):
            expected = retro(w, *(torch.from_numpy(given[k][row]) for k in given))
            assert distance(value, expected.numpy()) <= TOLERANCE[dtype], length


def test_retro_reads_no_later_token_and_no_neighbour_of_an_unfinished_chunk() -> None:
    run, given = loud("retro")[0].compile(dtype="f64"), neighbours(11)
    before = run(**given)["logits"]
    for slot in range(11):
        ids = given["input_ids"].copy()
        ids[:, slot] = (ids[:, slot] + 1) % VOCAB
        after = run(**given | {"input_ids": ids})["logits"]
        changed = np.abs(after - before).max((0, 2)) > 1e-9
        assert changed.tolist() == [s >= slot for s in range(11)]
    for chunk in range(2):
        retrieved = given["retrieved"].copy()
        retrieved[:, chunk, :, 0] = 7
        after = run(**given | {"retrieved": retrieved})["logits"]
        changed = np.abs(after - before).max((0, 2)) > 1e-9
        assert changed.tolist() == [s >= (chunk + 1) * CHUNK - 1 for s in range(11)]


def test_the_size_of_retro() -> None:
    """The package's defaults: 4 of 12 layers read neighbours, both of the encoder read their chunk."""
    d, e, h, vocab = 768, 896, 512, 28996

    def attention(n: int, memory: int) -> int:
        return 2 * n * h + 2 * memory * h + 2 * n  # a bias and a gain

    def feed(n: int) -> int:
        return 8 * n * n + 6 * n

    decoder = 12 * (attention(d, d) + feed(d)) + 4 * (attention(d, d) + 2 * h) + d
    encoder = 2 * (attention(e, e) + attention(e, d) + feed(e)) + e + e * d + d
    around = vocab * e + 2048 * e + e * d + d + d * vocab + vocab
    model = archc.load(FOLDER / "retro.arch", preset="package")
    assert model.parameter_count() == decoder + encoder + around


# ------------------------------------------------------------------------------------ Atlas

QUESTION = {
    "query_tokens": "tokens",
    "query_positions": "positions",
    "query_types": "types",
    "query_norm": "embedding_norm",
}


def passages() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(6)
    return {
        "query_ids": generator.integers(0, VOCAB, (2, 7)),
        "query_mask": filled([7, 4], 7),
        "query_types": generator.integers(0, 2, (2, 7)),
        "passage_embeddings": generator.standard_normal((2, 3, 48)),
        "input_ids": generator.integers(0, VOCAB, (2, 3, 6)),
        "attention_mask": filled([6, 3, 5, 2, 6, 4], 6).reshape(2, 3, 6),
        "decoder_input_ids": generator.integers(0, VOCAB, (2, 5)),
        "decoder_attention_mask": filled([5, 4], 5),
    }


Models = tuple[torch.nn.Module, torch.nn.Module]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """BERT and T5 of `transformers` with the weights of Atlas: each has them under its own paths."""
    _, w = loud("atlas", eps=EPSILON, query_eps=EPSILON)
    asking: dict[str, np.ndarray] = {}
    answering: dict[str, np.ndarray] = {}
    for path, value in w.items():
        top, rest = path.split(".", 1)
        mine = top in QUESTION or top.startswith("retriever[")
        name = f"{QUESTION.get(top, top)}.{rest}".replace("retriever[", "layers[")
        (asking if mine else answering)[name] = value.float().numpy()
    sizes = {"d": 48, "layers": 2, "hidden": 80, "mlm": False, "eps": EPSILON}
    bert = archc.load(FOLDER / "bert.arch", preset="tiny", weights=asking, overrides=sizes)
    sizes = {"vocab": VOCAB, "d": 64, "layers": 2, "decoder_layers": 3, "hidden": 112, "heads": 4}
    sizes |= {"head_dim": 16, "eps": EPSILON}
    t5 = archc.load(FOLDER / "t5.arch", preset="flan_t5_small", weights=answering, overrides=sizes)
    root = tmp_path_factory.mktemp("atlas")
    bert.export(root / "bert")
    t5.export(root / "t5")
    return (
        transformers.BertModel.from_pretrained(root / "bert", add_pooling_layer=False).eval(),
        transformers.T5ForConditionalGeneration.from_pretrained(root / "t5").eval(),
    )


def fused(model: torch.nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of T5 for passages that are encoded one by one and joined by hand."""
    rows = []
    for ids, mask in zip(given["input_ids"], given["attention_mask"], strict=True):
        alone = zip(ids, mask, strict=True)
        rows.append(
            torch.cat([model.encoder(i[None], attention_mask=m[None])[0] for i, m in alone], 1)
        )
    return model(
        encoder_outputs=BaseModelOutput(torch.cat(rows)),
        attention_mask=given["attention_mask"].flatten(1),
        decoder_input_ids=given["decoder_input_ids"],
        decoder_attention_mask=given["decoder_attention_mask"],
    )["logits"]


@pytest.mark.parametrize(("backend", "dtype", "level"), RUNS)
def test_atlas_agrees_with_transformers(
    theirs: Models, backend: str, dtype: str, level: int
) -> None:
    model, given = loud("atlas", eps=EPSILON, query_eps=EPSILON)[0], passages()
    found = model.compile(backend, dtype=dtype, level=level)(**given)
    bert, t5 = (m.double() if dtype == "f64" else m.float() for m in theirs)
    asked = {k: torch.from_numpy(v) for k, v in given.items()}
    seen = asked["query_mask"]
    with torch.no_grad():
        logits = fused(t5, asked).numpy()
        hidden = bert(
            asked["query_ids"], attention_mask=seen.int(), token_type_ids=asked["query_types"]
        )[0]
    query = ((hidden * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)).numpy()
    bound = {"f64": 1e-6, "f32": 1e-5}[dtype]  # there are float32 islands in the reference
    kept = given["decoder_attention_mask"]
    assert distance(found["logits"][kept], logits[kept]) <= bound
    assert distance(found["query_embedding"], query) <= bound
    scores = np.einsum("bd,bpd->bp", query, given["passage_embeddings"])
    assert distance(found["passage_scores"], scores) <= bound


@pytest.mark.parametrize(
    ("preset", "size"),  # T5 1.1
    [
        ("base", 247_577_856),
        ("large", 783_150_080),
        ("xl", 2_849_757_184),
        ("xxl", 11_135_332_352),
    ],
)
def test_the_size_of_atlas(preset: str, size: int) -> None:
    """That of T5 1.1, and of a BERT without a pooler."""
    model = archc.load(FOLDER / "atlas.arch", preset=preset)
    assert model.parameter_count() == size + 108_891_648


# ------------------------------------------------------------------------------------ RALLM


def rms(w: Weights, path: str, x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * w[f"{path}.gain"]


def gated(w: Weights, path: str, x: torch.Tensor) -> torch.Tensor:
    hidden = silu(x @ w[f"{path}.gate.w"].T) * (x @ w[f"{path}.up.w"].T)
    return hidden @ w[f"{path}.down.w"].T


def mixed(
    w: Weights, path: str, x: torch.Tensor, memory: torch.Tensor, seen: torch.Tensor, turn: bool
) -> torch.Tensor:
    q, k, v = (
        heads_of(w, f"{path}.{n}", y) for n, y in zip("qkv", (x, memory, memory), strict=True)
    )
    if turn:
        q, k = (turned(y, torch.arange(len(x)), 1e4, y.shape[-1]) for y in (q, k))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ w[f"{path}.o.w"].flatten(1).T


def rallm(w: Weights, ids: torch.Tensor, documents: list[torch.Tensor]) -> torch.Tensor:
    """One row and its documents, without their padding."""
    x, memory = w["embed.w"][ids], w["embed.w"][torch.cat(documents)]
    every, past = torch.ones(len(ids), len(memory)) > 0, torch.ones(len(ids), len(ids)).tril() > 0
    for i in range(2):
        at = f"readers[{i}]"
        x = x + mixed(w, f"{at}.cross", rms(w, f"{at}.norm1", x), memory, every, turn=False)
        x = x + gated(w, f"{at}.ffn", rms(w, f"{at}.norm2", x))
    for i in range(3):
        at = f"layers[{i}]"
        n = rms(w, f"{at}.norm1", x)
        x = x + mixed(w, f"{at}.attention", n, n, past, turn=True)
        x = x + gated(w, f"{at}.ffn", rms(w, f"{at}.norm2", x))
    return rms(w, "final_norm", x) @ w["embed.w"].T


@pytest.mark.parametrize(("backend", "dtype", "level"), RUNS)
def test_rallm_agrees_with_the_formula(backend: str, dtype: str, level: int) -> None:
    model, w = loud("rallm", eps=EPSILON)
    generator = np.random.default_rng(8)
    given = {
        "query_ids": generator.integers(0, VOCAB, (2, 5)),
        "query_mask": filled([5, 3], 5),
        "document_ids": generator.integers(0, VOCAB, (2, 3, 4)),
        "document_mask": filled([4, 2, 3, 1, 4, 0], 4).reshape(2, 3, 4),
        "input_ids": generator.integers(0, VOCAB, (2, 6)),
        "attention_mask": filled([6, 4], 6),
    }
    found = model.compile(backend, dtype=dtype, level=level)(**given)
    for row in range(2):
        of = {k: torch.from_numpy(v[row]) for k, v in given.items()}
        asked = w["embed.w"][of["query_ids"][of["query_mask"]]].mean(0)
        assert distance(found["query"][row], asked.numpy()) <= TOLERANCE[dtype]
        pairs = zip(of["document_ids"], of["document_mask"], strict=True)
        kept = given["attention_mask"][row]
        expected = rallm(w, of["input_ids"][of["attention_mask"]], [i[m] for i, m in pairs])
        assert distance(found["logits"][row, kept], expected.numpy()) <= TOLERANCE[dtype]


def test_the_size_of_rallm() -> None:
    d, layers = 768, 12 + 2
    matrices = 4 * d * d + 3 * d * 4 * d
    model = archc.load(FOLDER / "rallm.arch", preset="base")
    assert model.parameter_count() == 32000 * d + layers * (matrices + 2 * d) + d
