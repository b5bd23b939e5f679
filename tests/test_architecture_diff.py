"""`archc diff A B`: one entry per idea, in the words of the two texts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import goldens
import pytest

import archc
from archc.architecture import Contrast, Entry, contrast

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
LLAMA = EXAMPLES / "llama.arch"
GOLDEN = Path(__file__).parent / "golden" / "architecture_diff.txt"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.arch"))


@pytest.fixture(scope="module")
def tiny() -> dict[str, archc.Model]:
    return {name: archc.load(EXAMPLES / f"{name}.arch", preset="tiny") for name in NAMES}


def compared(before: str, after: str, monkeypatch: pytest.MonkeyPatch) -> Contrast:
    monkeypatch.chdir(ROOT)  # places are shown as the files were named
    return contrast(*(archc.load(f"examples/{name}.arch") for name in (before, after)))


def altered(tmp_path: Path, *changes: tuple[str, str]) -> tuple[Entry, ...]:
    """The entries for llama.arch beside itself with some text replaced."""
    text = LLAMA.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = tmp_path / "other.arch"
    path.write_text(text)
    return contrast(*(archc.load(p, preset="tiny") for p in (LLAMA, path))).entries


@pytest.mark.parametrize("steps", [1, 9])
def test_pairs_of_examples(steps: int, tiny: dict[str, archc.Model]) -> None:
    """Each example with others near and far in the alphabet; all pairs take minutes."""
    for before, after in ((a, NAMES[i - steps]) for i, a in enumerate(NAMES)):
        found = contrast(tiny[before], tiny[after])
        assert not found.same, (before, after)
        assert found.to_json()["entries"]
    again = contrast(tiny[before], tiny[after])
    assert (str(again), again.to_json()) == (str(found), found.to_json())


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_the_same_as_itself(name: str, tiny: dict[str, archc.Model]) -> None:
    assert contrast(tiny[name], tiny[name]).same


@pytest.mark.parametrize(
    ("before", "after", "where", "shown"),
    [
        (
            "eps = 1e-5; theta",
            "eps = 1e-3; theta",
            ("final_norm", "layers[*].norm1", "layers[*].norm2"),
            ["eps 1e-05 -> 0.001"],
        ),
        (
            "bias = bias)",
            "bias = bias, out_bias = true)",
            ("layers[*].attention.o",),
            ["+ weight b[(out...)] = zeros", "+ y += b"],
        ),
        (
            "mask = causal",
            "mask = sliding(5)",
            ("layers[*].attention",),
            ["mask(s, t) causal -> sliding", "where keys = 5"],
        ),
        (
            "act = silu",
            "act = gelu_tanh",
            ("layers[*].ffn",),
            ["act silu -> gelu_tanh", "- x * sigmoid(x)", "+ 0.5 * x * (1 + tanh("],
        ),
        (
            "theta = 10000.0; scaling",
            "theta = 500.0; scaling",
            ("layers[*].attention",),
            ["theta 10000.0 -> 500.0"],
        ),
        (
            "hidden = 112",
            "hidden = 96",
            ("sizes",),
            ["hidden 112 -> 96"],
        ),
        (
            "tied = false",
            "tied = true",
            ("head",),
            ["own weight head.w", "tied with embed"],
        ),
        (
            "x = embed(input_ids)",
            "x = embed(input_ids) * d ** 0.5",
            ("embed",),
            ["- x = embed(input_ids)", "+ x = embed(input_ids) * d ** 0.5, where d ** 0.5 = 8.0"],
        ),
        (
            "gated_ffn(hidden, act, bias = mlp_bias) as ffn",
            "gated_ffn(hidden, act, bias = mlp_bias) as ffn |> rmsnorm(eps) as after",
            ("layers[*].after",),
            ["+ rmsnorm(eps): weights gain"],
        ),
        (
            "rmsnorm(eps) as norm2 |> gated_ffn(hidden, act, bias = mlp_bias) as ffn",
            "gated_ffn(hidden, act, bias = mlp_bias) as ffn |> rmsnorm(eps) as norm2",
            ("layers[*]",),
            ["norm2 reads x and attention -> ffn", "ffn reads norm2 -> x and attention"],
        ),
    ],
)
def test_an_edit_is_one_entry(
    before: str, after: str, where: tuple[str, ...], shown: list[str], tmp_path: Path
) -> None:
    (entry,) = altered(tmp_path, (before, after))
    assert entry.where == where
    text = re.sub(r"\s+", " ", "\n".join(entry.lines()))
    for words in shown:
        assert words in text


def test_two_edits_are_two_entries(tmp_path: Path) -> None:
    found = altered(
        tmp_path, ("mask = causal", "mask = sliding(5)"), ("kv_heads = 2", "kv_heads = 4")
    )
    assert [e.where for e in found] == [("sizes",), ("layers[*].attention",)]


def test_ideas_of_llama_and_gemma(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compared("llama", "gemma", monkeypatch)
    assert len(found.entries) <= 15
    at = {e.where[0]: re.sub(r"\s+", " ", "\n".join(e.lines())) for e in found.entries}
    for size in (
        "vocab 32000 -> 256000",
        "layers 32 -> 18",
        "head_dim 128 -> 256",
        "kv_heads 32 -> 1",
    ):
        assert size in at["sizes"]
    assert "d ** 0.5 = 45.25" in at["embed"]
    assert "examples/gemma.arch:26" in at["embed"]
    assert "layers[*].norm1, layers[*].norm2" in at["final_norm"]
    assert "eps 1e-05 -> 1e-06" in at["final_norm"]
    assert "(1 + f32(gain))" in at["final_norm"]
    assert "silu -> gelu_tanh" in at["layers[*].ffn"]
    assert "tied with embed" in at["head"]


def test_layers_of_two_kinds() -> None:
    gemma = EXAMPLES / "gemma.arch"
    found = contrast(*(archc.load(gemma, preset=p) for p in ("gemma_2b", "gemma3_1b"))).entries
    where = {place for entry in found for place in entry.where}
    assert {"layers[5, 11, 17, 23].attention", "layers[*].after1"} <= where
    assert sum("q_norm = norm: weights gain" in str(list(e.lines())) for e in found) == 2


@pytest.mark.parametrize(
    ("change", "exit"),
    [
        (("} until sure", "}"), "exit all rows together -> none"),
        (("per_batch = true", "per_batch = false"), "all rows together -> row by row along b"),
    ],
)
def test_an_exit(change: tuple[str, str], exit: str, tmp_path: Path) -> None:
    adaptive = EXAMPLES / "adaptive_llm.arch"
    text = adaptive.read_text().replace(*change)
    (tmp_path / "other.arch").write_text(text)
    found = contrast(*(archc.load(p, preset="tiny") for p in (adaptive, tmp_path / "other.arch")))
    first = found.entries[0]
    assert first.where == ("layers",)
    assert exit in "\n".join(first.lines())


@pytest.mark.parametrize(("before", "after"), [("llama", "gemma"), ("llama", "qwen2")])
def test_golden(before: str, after: str, accept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = goldens.read(GOLDEN) if GOLDEN.exists() else {}
    shown = str(compared(before, after, monkeypatch))
    goldens.compare(GOLDEN, sections, f"{before} {after}", shown, accept=accept)


def test_page_shows_what_is_printed(accept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "diff.md"
    shown = str(compared("llama", "gemma", monkeypatch))
    text = page.read_text()
    fresh = re.sub(
        r"```text\n--- .*?```", lambda _: f"```text\n{shown}\n```", text, flags=re.DOTALL
    )
    if accept:
        page.write_text(fresh)
    else:
        assert fresh == text
    assert shown in fresh


def test_torch_is_not_imported() -> None:
    code = "import sys, archc.architecture; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
