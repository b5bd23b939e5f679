"""Running chunk by chunk from the command: `run --chunks`, `diff --chunks`, the derived programs."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from commands import invoke, ok
from safetensors.numpy import load_file, save_file

import archc
from archc.api import Model
from archc.chunks import described, sizes_of
from archc.compiler.causality import elaborate_proved
from archc.compiler.elaborate import Request, module_of, the_model
from archc.compiler.incremental import derive
from archc.compiler.incremental.chunk import _Chunk
from archc.compiler.state import Kind
from archc.decoder import Decoder, State
from archc.diff import Candidate, diff_chunks, random_cases
from archc.dsl import Source, parse
from archc.dsl.diagnostics import CATALOGUE

EXAMPLES = Path(__file__).parent.parent / "examples"
LLAMA = EXAMPLES / "llama.arch"
PAGE = EXAMPLES.parent / "docs" / "decode.md"
SHIFTED = """use std
model Shifted {
  input x: float[b, s]
  input keep: bool[b, s] = true
  input bias: float[b]
  decode s
  output y[b, s] = bias + x + x[s: max(slot(s) - 1, 0)]
  output twice[b] = 2 * bias
}
"""


def tiny(name: str) -> Model:
    return archc.load(EXAMPLES / f"{name}.arch", preset="tiny").with_random_weights(0)


@pytest.fixture
def shifted(tmp_path: Path) -> Path:
    path = tmp_path / "shifted.arch"
    path.write_text(SHIFTED)
    return path


# ------------------------------------------------------------------------------ run --chunks


def outputs(model: Path, inputs: Path, out: Path, *options: str) -> dict[str, np.ndarray]:
    ok("run", model, "--random", "0", "--inputs", inputs, "--output", out, *options)
    return load_file(out)


@pytest.mark.parametrize(("backend", "level"), [("numpy", "0"), ("torch", "1")])
def test_chunks_give_what_one_run_gives(backend: str, level: str, tmp_path: Path) -> None:
    """Rows of a batch padded on both sides, as many tokens as heads."""
    ids = np.arange(8).reshape(2, 4)
    mask = np.array([[0, 1, 1, 1], [1, 1, 1, 0]], bool)
    save_file({"input_ids": ids, "attention_mask": mask}, path := tmp_path / "in")
    fixed = ("--preset", "tiny", "--backend", backend, "-O", level, "--dtype", "f64")
    whole = outputs(LLAMA, path, tmp_path / "out", *fixed)["logits"]
    for chunks in ("auto", "1,2,1"):
        got = outputs(LLAMA, path, tmp_path / "out", *fixed, "--chunks", chunks)["logits"]
        np.testing.assert_allclose(got, whole, rtol=1e-10, atol=1e-12)


def test_what_has_no_rows_is_given_and_taken_once(shifted: Path, tmp_path: Path) -> None:
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    save_file({"x": x, "bias": np.array([1, 2], np.float32)}, path := tmp_path / "in")
    whole = outputs(shifted, path, tmp_path / "out")
    got = outputs(shifted, path, tmp_path / "out", "--chunks", "2,2,1")
    assert set(got) == {"y", "twice"}
    for name in got:
        np.testing.assert_array_equal(got[name], whole[name])


def test_inputs_are_judged_before_chunks_are(shifted: Path, tmp_path: Path) -> None:
    save_file({"x": np.zeros((2, 5, 1), np.float32)}, path := tmp_path / "in")
    fixed = ("--inputs", path, "--output", tmp_path / "out", "--random", "0")
    assert "error[missing-input]" in invoke("run", shifted, *fixed, "--chunks", "3,1").output
    save_file({"x": np.zeros(2, np.float32), "bias": np.zeros(2, np.float32)}, path)
    assert "error[input-shape]" in invoke("run", shifted, *fixed, "--chunks", "3,1").output


@pytest.mark.parametrize("chunks", ["", "3,", "0,4", "-1", "half", "1.5"])
def test_chunks_are_numbers_of_rows(chunks: str, shifted: Path) -> None:
    result = invoke("run", shifted, "--inputs", "x", "--output", "y", "--chunks", chunks)
    assert result.exit_code == 2
    assert "neither auto nor numbers" in result.output


def test_auto_holds_the_prefix_in_the_first_chunk() -> None:
    program = tiny("prefix_lm").program
    ids = np.zeros((2, 6), int)
    assert sizes_of("auto", program, {"input_ids": ids}) == (3, 1, 1, 1)
    given = {"input_ids": ids, "prefix_length": np.array([2, 5])}
    assert sizes_of("auto", program, given) == (5, 1)
    assert described((5, 1)) == "5, 1"
    assert described((3, 1, 1, 1)) == "3, 3 x 1"


# ------------------------------------------------------------------------------ diff --chunks


@pytest.mark.parametrize("name", ["gemma", "t5", "prefix_lm", "mamba"])
def test_examples_agree_with_themselves(name: str) -> None:
    """A window, an encoder, a prefix that sees itself, recurrent states."""
    model = tiny(name)
    case = next(random_cases(model.program, 0, {}))
    report = diff_chunks(model, [Candidate("numpy", dtype="f64")], inputs=case)
    assert report.agree, str(report)


def test_the_screen_says_how_each_run_compares() -> None:
    fixed = ("--preset", "tiny", "--backends", "numpy,numpy@O0@f64")
    text = ok("diff", LLAMA, *fixed, "--chunks", "2,1,1")
    assert "ragged: input_ids [3, 4]" in text
    assert "ragged: logits, in one run" in text
    assert "colliding: logits, in chunks of 2, 2 x 1" in text
    assert "numpy and numpy@O0@f64 agree with the reference" in text
    auto = ok("diff", LLAMA, *fixed, "--size", "b=2", "--size", "s=6", "--chunks", "auto")
    for words in ("row by row", "half, then row by row", "in thirds"):
        assert f"ragged: logits, {words} " in auto


@pytest.mark.parametrize("other", [[LLAMA], ["--introduced"]])
def test_chunks_are_of_one_model(other: list[Any]) -> None:
    assert invoke("diff", LLAMA, *other, "--chunks", "auto").exit_code == 2


SMALL = ("diff", LLAMA, "--preset", "tiny", "--size", "b=2", "--size", "s=6", "--chunks", "auto")


def differing(monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """What the command shows, and the divergence that JSON has, of a model that is made wrong."""
    shown = invoke(*SMALL, "--backends", "numpy@f64")
    assert shown.exit_code == 1, shown.output
    as_json = invoke(*SMALL, "--backends", "numpy@f64", "--json")
    (divergence,) = json.loads(as_json.stdout)["divergences"]
    return shown.stdout, divergence


def test_a_position_that_does_not_advance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are turned by it: those of the first layer are named, where the second chunk wrote them."""
    monkeypatch.setattr(_Chunk, "slots", lambda c: c.add("index", (), {"axis": c.decoded}))
    text, found = differing(monkeypatch)
    assert "first differs in row 1 of `logits`, in chunk 2 of 6, run row by row" in text
    assert "the first state that differs is `layers[0].attention.k` (append), after chunk 2" in text
    assert "llama.arch:26" in text
    assert "in one run" in text
    assert (found["row"], found["state"]["chunk"], found["whole"]) == (1, 1, False)
    assert found["places"][0]["file"].endswith("llama.arch")


def test_a_stale_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of values that is not written shows in the rows after it."""
    before = Decoder._state

    def stale(self: Decoder, length: int, *args: Any) -> State:
        state = before(self, length, *args)
        if length == 4 and args[-1]:  # not what the reference makes at once
            value = state.values["layers[1].attention.v"].array
            value[:, length - 1] = value[:, length - 2]
        return state

    monkeypatch.setattr(Decoder, "_state", stale)
    text, found = differing(monkeypatch)
    assert "`layers[1].attention.v` (append), after chunk 4 (row 3)" in text
    assert (found["row"], found["state"]["path"]) == (4, "layers[1].attention.v")


def test_a_step_that_is_wrong_over_right_states(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Decoder.__call__

    def doubled(self: Decoder, state: State | None, /, **inputs: Any) -> Any:
        made, after = before(self, state, **inputs)
        return {n: a * 2 if state else a for n, a in made.items()}, after

    monkeypatch.setattr(Decoder, "__call__", doubled)
    text, found = differing(monkeypatch)
    assert "every state is right after every chunk" in text
    assert found["state"] is None
    assert found["row"] == 1


def test_a_step_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Decoder, *args: Any) -> Any:
        raise ZeroDivisionError("inner")

    monkeypatch.setattr(Decoder, "_given", broken)
    text, found = differing(monkeypatch)
    assert "does not run row by row: ZeroDivisionError: inner" in text
    assert found["output"] == ""


def test_a_backend_that_is_wrong_without_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is not blamed for it."""
    from archc.backends.numpy import NumpyExecutable

    before = NumpyExecutable.run
    monkeypatch.setattr(
        NumpyExecutable, "run", lambda self, x: {n: -a for n, a in before(self, x).items()}
    )
    text, found = differing(monkeypatch)
    assert "first differs in row 0 of `logits`, run in one run" in text
    assert "`archc diff` without --chunks says what is" in text
    assert found["whole"]


def test_a_random_prefix_is_no_longer_than_the_sequence() -> None:
    program = tiny("prefix_lm").program
    for seed in range(20):
        for case in random_cases(program, seed, {"b": 4}):
            ids, prefix = case.inputs["input_ids"], case.inputs["prefix_length"]
            assert prefix.max() <= ids.shape[1]


# ---------------------------------------------------------------------- the derived programs


def test_explain_shows_the_passes_of_a_derived_program() -> None:
    chunk = ok("explain", LLAMA, "--preset", "tiny", "--program", "chunk")
    assert "tiles with j <= i + s.past" in chunk
    prefill = ok("explain", LLAMA, "--preset", "tiny", "--program", "prefill")
    assert "tiles with j <= i " in prefill
    assert "s.past" not in prefill
    assert "s.past" not in ok("explain", LLAMA, "--preset", "tiny")


def test_compile_writes_the_graphs_of_derived_programs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ok("compile", LLAMA, "--preset", "tiny", "--backend", "numpy", "--decode", "-o", out)
    names = {f"{p}.{stage}.ir" for p in ("prefill", "chunk") for stage in ("before", "after")}
    assert {path.name for path in out.iterdir()} == names
    assert "= append(" in (out / "chunk.before.ir").read_text()
    wrong = invoke("compile", LLAMA, "--backend", "numpy", "--decode", "--verify", "-o", out)
    assert wrong.exit_code == 2


def imported(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_written_step_runs_by_itself(tmp_path: Path) -> None:
    """As the first lines of the two files say: buffers with room, states by prefix."""
    torch = pytest.importorskip("torch")
    model, out = tiny("llama"), tmp_path / "out"
    text = ok("compile", LLAMA, "--preset", "tiny", "--backend", "torch", "--decode", "-o", out)
    assert "prefill " in text
    assert "chunk " in text
    modules = []
    for file in map(imported, (out / "prefill.py", out / "chunk.py")):
        made = file.Model(dtype=torch.float64)
        for path, module, attribute in file.weights(made):
            value = torch.from_numpy(np.asarray(model.given_weights()[path], np.float64))
            parameter = getattr(module, attribute)
            parameter.data = value.reshape(parameter.shape)
        for module in made.modules():
            getattr(module, "prepare", lambda: None)()
        modules.append(made)
    prefill, chunk = modules
    ids, mask = torch.arange(6).reshape(1, 6) + 3, torch.ones(1, 6, dtype=torch.bool)
    first, left = prefill(ids[:, :4], mask[:, :4], ids[:, :4])
    (seen,) = (roomy(state) for state in left.pop(""))
    states = {prefix: [roomy(state) for state in held] for prefix, held in left.items()}
    made = [first["logits"]]
    for past in (4, 5):
        rows = slice(past, past + 1)
        later, after = chunk(ids[:, rows], mask[:, rows], past, seen, states)
        assert not any(after.values())
        made.append(later["logits"])
    whole = model.compile("numpy", dtype="f64")(input_ids=ids.numpy())["logits"]
    np.testing.assert_allclose(torch.cat(made, 1).detach().numpy(), whole, rtol=1e-9, atol=1e-11)


def roomy(state: Any) -> Any:
    """A buffer of six entries along dimension 1, the first of them written."""
    buffer = state.new_empty(state.shape[0], 6, *state.shape[2:])
    buffer[:, : state.shape[1]] = state.detach()
    return buffer


def test_written_steps_say_what_they_take(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fixed = ("--preset", "tiny", "--backend", "torch", "--decode")
    ok("compile", EXAMPLES / "mamba.arch", *fixed, "-o", out)
    head = (out / "chunk.py").read_text().partition('"""\n')[0]
    assert "goes on from the first `past` rows" in head
    assert "Those returned, in their order:" in head
    ok("compile", LLAMA, "--preset", "tiny", "--backend", "torch", "-o", tmp_path / "plain")
    assert "rows" not in (tmp_path / "plain" / "model.py").read_text().partition('"""\n')[0]


# --------------------------------------------------------------------------------- its page


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {})


def test_the_page_names_what_there_is() -> None:
    """Its errors are of the catalogue, its options of some command, its kinds what a model has."""
    page = PAGE.read_text()
    refusals = page.partition("## What is refused")[2]
    assert set(re.findall(r"^\| `([a-z-]+)`", refusals, re.MULTILINE)) <= set(CATALOGUE)
    helps = "".join(ok(name, "--help") for name in ("run", "diff", "explain", "compile"))
    assert set(re.findall(r"--[a-z]+", page)) <= set(re.findall(r"--[a-z]+", helps))
    kinds = set(re.findall(r"^\| (\w+) \|", page.partition("## The command")[0], re.MULTILINE))
    assert kinds - {"kind"} == set(get_args(Kind))


def test_the_states_of_the_pages_model() -> None:
    """Its remarks say of each line what is kept of it."""
    (text,) = re.findall(r"```arch\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = module_of(parse(Source("small.arch", text)))
    slots = derive(elaborate_proved(module, the_model(module), Request())).slots
    kinds = {slot.path: slot.kind for slot in slots}
    told = {
        re.search(r" as (\w+)|scan", line): kind
        for line, kind in re.findall(
            r"^(.*?)# (append|ring|constant|recurrent)", text, re.MULTILINE
        )
    }
    for match, kind in told.items():
        assert match is not None
        found = {k for path, k in kinds.items() if path.startswith(match[1] or "scan")}
        assert found == {kind}, kinds
    assert kinds["keep"] == "append"
