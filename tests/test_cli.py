"""The commands as a person types them: what they print, write, and exit with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import SMALL, invoke, ok, refused
from safetensors.numpy import load_file, save_file

import archc

LLAMA = str(Path(__file__).parent.parent / "examples" / "llama.arch")
BERT = str(Path(__file__).parent.parent / "examples" / "bert.arch")


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "in.safetensors"
    save_file({"input_ids": np.array([[1, 2, 3], [4, 5, 6]])}, path)
    return path


# ------------------------------------------------------------------------------ the command


def test_help_lists_every_command() -> None:
    text = ok("--help")
    for name in (
        "check",
        "fmt",
        "cost",
        "show",
        "explain",
        "compile",
        "run",
        "diff",
        "generate",
        "import",
    ):
        assert f"\n  {name} " in text
        assert ok(name, "--help").startswith("Usage:")


def test_version() -> None:
    assert ok("--version") == f"archc, version {archc.__version__}\n"


def test_shell_completion_knows_the_commands() -> None:
    words = {"_ARCHC_COMPLETE": "bash_complete", "COMP_WORDS": "archc ch", "COMP_CWORD": "1"}
    result = invoke(**words)
    assert result.output == "plain,check\n"


@pytest.mark.parametrize(
    "args",
    [
        ("chek", LLAMA),
        ("check",),
        ("check", LLAMA, "--prest", "tiny"),
        ("fmt",),
        ("cost", LLAMA, "--set", "layers"),
        ("cost", LLAMA, "--set", "b=-2"),
        ("cost", LLAMA, "--set", "s=1.5"),
        ("show", LLAMA, "-o", "x.png"),
        ("show", LLAMA, "-o", "x.svg", "--backend", "torch"),
        ("show", LLAMA, "-o", "x.html", "--json"),
        ("compile", LLAMA, "--backend", "tritn", "-o", "x"),
        ("compile", LLAMA, "--backend", "numpy"),
        ("compile", LLAMA, "--backend", "torch", "--target", "sm_90", "-o", "x"),
        ("compile", LLAMA, "--backend", "triton", "--target", "sm_91", "-o", "x"),
        ("compile", LLAMA, "--backend", "torch", "--report", "-o", "x"),
        ("compile", LLAMA, "--backend", "triton", "--report", "--set", "b=1", "-o", "x"),
        ("run", LLAMA, "--random", "0", "--inputs", "x", "--output", "y", "--dtype", "f12"),
        ("run", LLAMA, "--random", "0", "--inputs", "x", "--output", "y", "-O", "7"),
        ("run", LLAMA, "--random", "0", "--inputs", "x", "--output", "y", "--compile"),
        ("run", LLAMA, "--random", "0", "--weights", "w", "--inputs", "x", "--output", "y"),
        ("generate", LLAMA, "--prompt", "x"),
        ("generate", LLAMA, "--weights", "x", "--prompt", "x", "--temperature", "-1"),
    ],
)
def test_wrong_usage_exits_with_2(args: tuple[str, ...]) -> None:
    assert "Usage:" in refused(2, *args)


def test_a_bug_exits_with_70_and_hides_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: object) -> None:
        raise ZeroDivisionError("inner")

    monkeypatch.setattr("archc.commands.check.parse_file", broken)
    said = refused(70, "check", LLAMA)
    assert said.startswith("internal error: ZeroDivisionError: inner\n")
    assert archc.__version__ in said
    assert "ARCHC_DEBUG" in said
    monkeypatch.setenv("ARCHC_DEBUG", "1")
    assert "Traceback" in invoke("check", LLAMA).stderr


def test_a_lack_of_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(path: object) -> None:
        raise MemoryError("Unable to allocate 9.00 TiB")

    monkeypatch.setattr("archc.commands.check.parse_file", greedy)
    assert "error[out-of-memory]" in refused(1, "check", LLAMA)


def test_a_knob_that_is_not_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHC_DEBUG", "2")
    assert "error[bad-knob]: ARCHC_DEBUG=2" in refused(1, "check", LLAMA)


def test_interruption_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("archc.commands.check.parse_file", interrupted)
    assert refused(130, "check", LLAMA).strip() == ""


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m archc.cli cost {LLAMA} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("command", ["check", "cost"])
def test_a_full_disk_is_no_bug(command: str) -> None:
    line = f"{sys.executable} -m archc.cli {command} {LLAMA} > /dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error[unwritable]: cannot write what it prints: No space left")


# ------------------------------------------------------------------------- files that are bad


def test_a_command_that_is_nearly_one() -> None:
    assert "No such command 'chek': did you mean `check`?" in refused(2, "chek", LLAMA)


@pytest.mark.parametrize("command", ["check", "fmt", "cost", "show", "explain"])
def test_a_missing_file_is_named(command: str, tmp_path: Path) -> None:
    said = refused(1, command, tmp_path / "none.arch")
    assert said.startswith("error[source-unreadable]: cannot read ")
    assert "none.arch: no such file" in said


def test_a_directory_and_binary_junk_are_no_source(tmp_path: Path) -> None:
    assert "is a directory" in refused(1, "check", tmp_path)
    junk = tmp_path / "junk.arch"
    junk.write_bytes(bytes(range(256)))
    assert "byte 128 is not UTF-8" in refused(1, "check", junk)
    junk.write_bytes(b"\0\1\2\3")
    assert refused(1, "check", junk).startswith("error[")


def test_several_mistakes_in_one_run(tmp_path: Path) -> None:
    path = tmp_path / "two.arch"
    path.write_text(SMALL.replace("x * w", "a\n  output z[b, n] = c"))
    said = refused(1, "check", path)
    assert said.count("error[") == 2
    assert "\n\nerror[" in said


# ----------------------------------------------------------------------- check, fmt, cost, explain


def test_check_says_what_the_model_is() -> None:
    text = ok("check", LLAMA)
    assert "model Llama: 6,738,415,616 parameters, 32 layers of 1 kind; presets tiny," in text
    text = ok("check", LLAMA, "--preset", "llama2_70b")
    assert "preset llama2_70b of Llama: 68,976,648,192 parameters, 80 layers of 1 kind" in text


def test_check_finds_a_mistake_in_a_preset_and_names_it(small: Path) -> None:
    small.write_text(SMALL + "preset broken = Small(m = 3)\n")
    said = refused(1, "check", small)
    assert said.startswith("error[unknown-hyperparameter]")
    assert "note: found in preset broken of Small" in said
    assert "preset tiny of Small" in ok("check", small, "--preset", "tiny")


def test_check_says_a_mistake_of_all_presets_once(small: Path) -> None:
    small.write_text(SMALL.replace("x * w", "z * w"))
    assert refused(1, "check", small).count("error[") == 1


def test_an_unknown_preset_is_the_users_mistake() -> None:
    said = refused(1, "check", LLAMA, "--preset", "tinny")
    assert "there is no preset `tinny`" in said
    assert "did you mean `tiny`?" in said


def test_fmt(small: Path) -> None:
    small.write_text(SMALL.replace("n = 4", "n   =   4"))
    said = invoke("fmt", "--check", small)
    assert (said.exit_code, said.stdout.splitlines()[0]) == (1, f"would reformat {small}")
    assert f"reformatted {small}" in ok("fmt", small)
    assert "n = 4" in small.read_text()
    assert ok("fmt", "--check", small) == "1 file already formatted\n"


def test_fmt_touches_nothing_when_one_file_does_not_parse(small: Path, tmp_path: Path) -> None:
    small.write_text(ugly := SMALL.replace("n = 4", "n   =   4"))
    bad = tmp_path / "bad.arch"
    bad.write_text("model {")
    refused(1, "fmt", small, bad)
    assert small.read_text() == ugly


def test_cost_as_text_and_json() -> None:
    assert "310,912" in ok("cost", LLAMA, "--preset", "tiny", "--set", "d=128")
    found = json.loads(ok("cost", LLAMA, "--preset", "llama2_70b", "--json"))
    assert found["parameters"] == 68_976_648_192


def test_cost_takes_run_time_sizes() -> None:
    sizes = ("--set", "b=1", "--set", "s=2048")
    found = json.loads(ok("cost", LLAMA, "--preset", "tiny", *sizes, "--json"))
    assert found["sizes"] == {"b": 1, "s": 2048}
    assert found["flops"]["value"] > 0


def test_set_reads_expressions() -> None:
    said = ok("cost", LLAMA, "--preset", "tiny", "--set", "d=2 * 64", "--set", "act=gelu", "--json")
    assert json.loads(said)["parameters"] == 310_912
    tied = ok("cost", LLAMA, "--preset", "tiny", "--set", "tied=true", "--json")
    assert json.loads(tied)["parameters"] < 310_912


@pytest.mark.parametrize(
    ("setting", "error"),
    [("layres=3", "unknown-hyperparameter"), ("d=3 +", "syntax"), ("act=gellu", "unknown-name")],
)
def test_a_bad_setting_is_shown_with_its_text(setting: str, error: str) -> None:
    said = refused(1, "cost", LLAMA, "--set", setting)
    assert said.startswith(f"error[{error}]")
    assert setting in said


def test_explain_lists_sites() -> None:
    text = ok("explain", LLAMA, "--preset", "tiny")
    assert "tile-attention in layers\n  fired    attend" in text
    assert "in sum\n  tile-attention     1 fired, 0 declined  [" in text
    assert "activations" not in text  # their sizes are not known


def test_explain_measures_activations() -> None:
    text = ok("explain", LLAMA, "--preset", "tiny", "--set", "b=1", "--set", "s=64")
    rows = re.findall(r"^  ([a-z ]+?) +([\d,]+) -> ([\d,]+) bytes$", text, re.MULTILINE)
    found = {what: tuple(int(n.replace(",", "")) for n in sizes) for what, *sizes in rows}
    apart, shared, alive = found.values()
    assert list(found) == ["a buffer for each value", "shared buffers", "most alive at once"]
    assert alive <= shared <= apart
    assert all(after < before for before, after in found.values())


def test_explain_bisects_whole_sequences_only() -> None:
    assert "does not go with --program" in refused(
        2, "explain", LLAMA, "--bisect", "--program", "chunk"
    )


# ------------------------------------------------------------------------------------ compile


def test_compile_numpy_writes_the_graph_and_verifies(tmp_path: Path) -> None:
    out = tmp_path / "new" / "dir"
    said = ok("compile", LLAMA, "--preset", "tiny", "--backend", "numpy", "--verify", "-o", out)
    assert sorted(p.name for p in out.iterdir()) == ["after.ir", "before.ir"]
    assert "verified" in said
    assert "tile-attention            1         0" in said
    assert sorted(p.name for p in out.parent.iterdir()) == ["dir"]


def test_compile_into_a_directory_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ok("compile", LLAMA, "--preset", "tiny", "--backend", "torch", "-o", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "model.py"]
    ok("compile", LLAMA, "--preset", "tiny", "--backend", "torch", "--emit", "ir", "-o", tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_compile_to_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    args = ("compile", LLAMA, "--preset", "tiny", "--backend", "torch", "-o")
    assert "error[unwritable]" in refused(1, *args, tmp_path / "file")
    assert "error[unwritable]" in refused(1, *args, tmp_path / "file" / "below")


def test_compile_a_kernel_for_a_target(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    small.write_text(SMALL.replace("x * w", "x * 2.0").replace("  weight w[n]\n", ""))
    out = tmp_path / "out"
    args = ("--backend", "triton", "--target", "sm_90", "--report", "--set", "b=300")
    said = ok("compile", small, *args, "-o", out)
    printed = json.loads(ok("compile", small, *args, "-o", tmp_path / "again", "--json"))
    assert f"wrote {out / 'kernels.py'}" in said
    assert "tensor ops" in said
    assert list((out / "sm_90").glob("*.cubin"))
    moved = 2 * 2 * 300 * 4  # x is read and y written, in two bytes each
    (kernel,) = json.loads((out / "report.json").read_text())["kernels"]
    assert (kernel["issued"], kernel["unique"], kernel["exact"]) == (moved, moved, True)
    assert re.search(rf"unfused plan +{moved / 1e3:.2f} kB +1 kernels", said)
    assert re.search(rf"lower bound +{moved / 1e3:.2f} kB", said)
    assert kernel["resources"]["sm_90"]["spills"] == 0
    found = printed["programs"]["model"]
    assert found["report"] == json.loads((tmp_path / "again" / "report.json").read_text())
    assert [k["usage"]["spills"] for k in found["kernels"]] == [0]


# ---------------------------------------------------------------------------------------- run


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("level", ["0", "1"])
def test_run(ids: Path, tmp_path: Path, backend: str, level: str) -> None:
    out = tmp_path / "out.safetensors"
    args = ("--preset", "tiny", "--random", "0", "--inputs", ids, "--output", out)
    said = ok("run", LLAMA, *args, "--backend", backend, "-O", level)
    assert said == f"wrote {out}: logits [2, 3, 131] float32\n"
    logits = load_file(out)["logits"]
    model = archc.load(LLAMA, preset="tiny").with_random_weights(0)
    expected = model.compile("numpy", dtype="f64")(input_ids=load_file(ids)["input_ids"])["logits"]
    assert np.linalg.norm(logits - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(("dtype", "stored"), [("f64", "float64"), ("bf16", "float32")])
def test_outputs_are_wide(ids: Path, tmp_path: Path, dtype: str, stored: str) -> None:
    out = tmp_path / "out.safetensors"
    args = ("--preset", "tiny", "--random", "0", "--inputs", ids, "--output", out)
    ok("run", LLAMA, *args, "--dtype", dtype)
    assert load_file(out)["logits"].dtype == stored


def test_run_reads_weights_of_a_preset_only_with_a_seed(ids: Path, tmp_path: Path) -> None:
    args = ("--inputs", ids, "--output", tmp_path / "out.safetensors")
    said = refused(1, "run", LLAMA, "--preset", "tiny", *args)
    assert "--random SEED" in said


RUN = ("run", BERT, "--preset", "tiny", "--random", "0")


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        ({"input_idz": np.array([[1, 2]])}, "unknown-input"),
        ({"attention_mask": np.ones((1, 2), bool)}, "missing-input"),
        ({"input_ids": np.array([1, 2])}, "input-shape"),
        ({"input_ids": np.array([[1, 2]]), "attention_mask": np.ones((1, 3), bool)}, "input-shape"),
        ({"input_ids": np.array([[1.0, 2.0]])}, "input-dtype"),
        ({"input_ids": np.array([[1, 131]])}, "input-range"),
        ({"input_ids": np.array([[1, -1]])}, "input-range"),
    ],
)
def test_wrong_inputs(tmp_path: Path, arrays: dict[str, np.ndarray], error: str) -> None:
    save_file(arrays, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    said = refused(1, *RUN, "--inputs", tmp_path / "in.safetensors", "--output", out)
    assert said.startswith(f"error[{error}]")
    assert not out.exists()


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_sequence_longer_than_the_position_table(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "in.safetensors"
    save_file({"input_ids": np.ones((1, 41), np.int64)}, path)
    args = ("--inputs", path, "--output", tmp_path / "out.safetensors", "--backend", backend)
    assert refused(1, *RUN, *args).startswith("error[")


@pytest.mark.parametrize("content", [b"", b"junk" * 9, None])
def test_input_files_that_are_bad(ids: Path, tmp_path: Path, content: bytes | None) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(ids.read_bytes()[:-8] if content is None else content)
    said = refused(1, *RUN, "--inputs", bad, "--output", tmp_path / "out.safetensors")
    assert said.startswith("error[bad-tensor-file]: cannot read tensors from ")


def test_input_and_output_paths_that_do_not_work(ids: Path, tmp_path: Path) -> None:
    none = tmp_path / "none" / "x.safetensors"
    assert "no such file" in refused(1, *RUN, "--inputs", none, "--output", none)
    assert "is a directory" in refused(1, *RUN, "--inputs", tmp_path, "--output", none)
    assert "error[unwritable]" in refused(1, *RUN, "--inputs", ids, "--output", none)
    assert "error[unwritable]" in refused(1, *RUN, "--inputs", ids, "--output", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.safetensors"]


def test_checkpoints_that_are_none(ids: Path, tmp_path: Path) -> None:
    args = ("--inputs", ids, "--output", tmp_path / "out.safetensors")
    missing = refused(1, "run", LLAMA, "--weights", tmp_path / "none", *args)
    assert missing.startswith("error[not-a-checkpoint]")
    assert "no config.json" in refused(1, "run", LLAMA, "--weights", tmp_path, *args)
    assert refused(1, "import", tmp_path).startswith("error[not-a-checkpoint]")


# ------------------------------------------------------------------- what commands do not import

HEAVY = "{'torch', 'triton', 'transformers', 'rich', 'networkx'}"


@pytest.mark.parametrize("args", [["check", LLAMA], ["fmt", "--check", LLAMA], ["cost", LLAMA]])
def test_quick_commands_import_nothing_heavy(args: list[str]) -> None:
    text = (
        "import sys; from archc.cli import main\n"
        f"main({args!r}, standalone_mode=False)\n"
        f"print(sorted({HEAVY} & sys.modules.keys()))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_missing_torch_is_one_line(
    ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archc.backends.torch.find_spec", lambda name: None)
    args = ("--inputs", ids, "--output", tmp_path / "out.safetensors", "--backend", "torch")
    said = refused(1, "run", LLAMA, "--preset", "tiny", "--random", "0", *args)
    assert said == (
        "error[missing-package]: PyTorch is not installed; the torch backend needs it\n"
        '  help: pip install "archc[torch]"\n'
    )
