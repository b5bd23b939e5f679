"""Pictures: LLaVA on rows with several, one or no image, and the page on preprocessing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import consoles
import numpy as np
import pytest
import torch
from references import IMAGE_TOKEN, LLAVA, VOCAB, Reference, distance
from safetensors.numpy import load_file, save_file
from snippets import Fence, fences

import archc

ROOT = Path(archc.__file__).parent.parent
EXAMPLE = ROOT / "examples" / "llava.arch"
REFERENCE = Reference("llava", "LlavaForConditionalGeneration", LLAVA)
FEATURES, TOKENS = 4, 14
BACKENDS = [("numpy", "f64", 0), ("torch", "f32", 1), ("triton", "f32", 1)]
TOLERANCE = {"f64": 1e-6, "f32": 1e-5}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The reference model and its checkpoint, loaded."""
    folder = tmp_path_factory.mktemp("llava")
    model = REFERENCE.build(folder)
    return SimpleNamespace(theirs=model, ours=archc.load(EXAMPLE, weights=folder), folder=folder)


def batch(images: list[int]) -> dict[str, np.ndarray]:
    """Rows of ids with so many images each."""
    random = np.random.default_rng(7)
    ids = random.integers(0, IMAGE_TOKEN, (len(images), TOKENS))
    for row, count in enumerate(images):
        for i in range(count):  # a word between two images
            start = 1 + row + i * (FEATURES + 1)
            ids[row, start : start + FEATURES] = IMAGE_TOKEN
    pixels = random.standard_normal((sum(images), 2, 24, 24)).astype(np.float32)
    return {"input_ids": ids, "pixel_values": pixels}


@pytest.mark.parametrize("images", [[1, 1], [2, 0, 1], [0, 1], [0, 0]], ids=str)
@pytest.mark.parametrize(("backend", "dtype", "level"), BACKENDS)
def test_rows_with_images(
    pair: SimpleNamespace, backend: str, dtype: str, level: int, images: list[int]
) -> None:
    given = batch(images)
    expected = REFERENCE.run(pair.theirs, {n: x for n, x in given.items() if x.size})
    run = pair.ours.compile(backend, dtype=dtype, level=level)
    assert distance(run(**given)["logits"], expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("hidden", [[0], [2], [1, 2], [3, 7], [5, 10]], ids=str)
def test_a_hidden_mark_has_its_feature(pair: SimpleNamespace, hidden: list[int]) -> None:
    """Attention passes over it; the marks behind it keep theirs."""
    given = batch([2, 1])
    mask = np.ones(given["input_ids"].shape, np.int64)
    mask[0, hidden] = 0
    given["attention_mask"] = mask
    expected = REFERENCE.run(pair.theirs, given)
    got = pair.ours.compile(dtype="f64")(**given)["logits"]
    assert distance(got[mask == 1], expected[mask == 1]) <= TOLERANCE["f64"]


def test_an_image_is_seen(pair: SimpleNamespace) -> None:
    """By the tokens at and behind its marks, and by no other row."""
    run, given = pair.ours.compile(dtype="f64"), batch([1, 1])
    before = run(**given)["logits"]
    given["pixel_values"][1] += 1
    changed = np.abs(run(**given)["logits"] - before).max(-1) > 1e-9
    assert not changed[0].any()
    assert changed[1].tolist() == [False] * 2 + [True] * (TOKENS - 2)


def test_what_is_behind_the_layer_that_is_read_has_no_influence(
    pair: SimpleNamespace, tmp_path: Path
) -> None:
    tensors = load_file(pair.folder / "model.safetensors")
    unread = [n for n in tensors if (".layers.2." in n and "tower" in n) or "post_layernorm" in n]
    assert len(unread) == 18
    save_file(
        {n: x * 3 if n in unread else x for n, x in tensors.items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_bytes((pair.folder / "config.json").read_bytes())
    given = batch([1, 1])
    moved = archc.load(EXAMPLE, weights=tmp_path).compile(dtype="f64")(**given)["logits"]
    assert np.array_equal(moved, pair.ours.compile(dtype="f64")(**given)["logits"])


LEADS = {  # of the language model, its head, the tower and the two maps
    "first": (
        "language_model.model.",
        "language_model.lm_head.",
        "vision_tower.vision_model.",
        "multi_modal_projector.",
    ),
    "flat": (
        "model.language_model.",
        "lm_head.",
        "model.vision_tower.vision_model.",
        "model.multi_modal_projector.",
    ),
}


@pytest.mark.parametrize("names", LEADS)
def test_tensors_by_the_names_of_other_releases(
    pair: SimpleNamespace, tmp_path: Path, names: str
) -> None:
    now = (
        "language_model.model.",
        "language_model.lm_head.",
        "vision_tower.",
        "multi_modal_projector.",
    )
    tensors = load_file(pair.folder / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        ((old, new),) = (
            (o, n) for o, n in zip(now, LEADS[names], strict=True) if name.startswith(o)
        )
        renamed[new + name.removeprefix(old)] = tensor
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((pair.folder / "config.json").read_bytes())
    given = batch([1])
    got = archc.load(EXAMPLE, weights=tmp_path).compile(dtype="f64")(**given)["logits"]
    assert np.array_equal(got, pair.ours.compile(dtype="f64")(**given)["logits"])


# ------------------------------------------------------------------------ docs/images.md

FENCES = list(fences(ROOT / "docs" / "images.md"))
WORDS = "<unk> <image> user assistant : ? what is this a cat dog".split()


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A folder with a checkpoint, its processor and a picture; what the page's commands print there."""
    pillow = pytest.importorskip("PIL.Image")
    import tokenizers
    import transformers

    folder = tmp_path_factory.mktemp("images")
    vocabulary = {word: i for i, word in enumerate(WORDS[:1] + WORDS[2:])} | {
        f"w{i}": i for i in range(len(WORDS) - 1, IMAGE_TOKEN)
    }
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary | {"<image>": IMAGE_TOKEN}, unk_token="<unk>")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        model_input_names=["input_ids", "attention_mask"],
    )
    pictures = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )
    processor = transformers.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=12,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder / "llava")
    config = LLAVA | {"vision_config": LLAVA["vision_config"] | {"num_channels": 3}}
    made = Reference("llava", "LlavaForConditionalGeneration", config).build(folder / "llava")
    tall, wide = np.mgrid[:40, :56]
    picture = np.stack([tall * 6, wide * 4, (tall * wide) % 256], -1).astype(np.uint8)
    pillow.fromarray(picture).save(folder / "picture.png")
    results = consoles.walk(FENCES, folder)
    return SimpleNamespace(folder=folder, results=results, theirs=made, processor=processor)


@pytest.mark.parametrize("console", [f for f in FENCES if f.kind == "console"], ids=str)
def test_a_command_prints_what_the_page_shows(console: Fence, walked: SimpleNamespace) -> None:
    consoles.check(console, walked.results[console.number])


def test_the_page_computes_what_transformers_does(walked: SimpleNamespace) -> None:
    """The arrays that it saved, and the word that it printed."""
    given = load_file(walked.folder / "inputs.safetensors")
    assert (given["input_ids"] == IMAGE_TOKEN).sum() == FEATURES
    assert np.abs(given["pixel_values"]).max() > 1
    with torch.no_grad():
        theirs = walked.theirs(**{n: torch.from_numpy(x) for n, x in given.items()}).logits.numpy()
    got = load_file(walked.folder / "out.safetensors")["logits"]
    assert got.shape == (1, 12, VOCAB)
    assert distance(got, theirs) <= 1e-5
    word = walked.processor.decode(theirs[0, -1].argmax())
    (said,) = (got for rows in walked.results.values() for got in rows if "next:" in got)
    assert said.strip().endswith(f"next: {word}")
