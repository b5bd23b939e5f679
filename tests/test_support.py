"""Every cell of the support table: what runs agrees with the reference, what is refused says so.

The constructs that one backend runs are compiled together, as one model with an output for each:
a worker that interprets Triton kernels is started once for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import archc
from archc import support
from archc.compiler.checkpoint import save
from archc.compiler.incremental import derive
from archc.compiler.ir.graph import Program
from archc.compiler.ops import FUSED, OPS
from archc.compiler.passes import optimise
from archc.diff.inputs import random_cases
from archc.dsl.diagnostics import ArchError, Diagnostics
from archc.dsl.errors import NeedsWholeSequence, NoDecode
from archc.support import CONSTRUCTS, RUNS, Construct

ROOT = Path(__file__).parent.parent
BACKENDS = tuple(archc.api.BACKENDS)
CELLS = [(construct, backend) for construct in CONSTRUCTS for backend in BACKENDS]
SIZES = {"b": 2, "s": 5, "t": 3}
TOLERANCE = {"f64": 1e-12, "f32": 1e-5, "f16": 1e-2, "bf16": 5e-2}
Arrays = Mapping[str, np.ndarray]


def name_of(value: Construct | str) -> str:
    return value if isinstance(value, str) else f"{value.group}: {value.name}"


@pytest.mark.parametrize(("construct", "backend"), CELLS, ids=name_of)
def test_cell(construct: Construct, backend: str, tmp_path: Path) -> None:
    refused = support.status(construct, backend)
    if refused != RUNS:
        assert refused == error_of(construct, backend)
    elif construct.stored:
        check_stored(construct, backend, tmp_path)
    else:
        group = together(construct, backend)
        number = group.index(construct)
        got, expected = results(group, backend, construct.dtype), results(group, "", "f64")
        own = f"c{number}_" if not construct.example else ""
        names = [name for name in expected if name.startswith(own)]
        assert names
        for name in names:
            assert_close(got[name], expected[name], TOLERANCE[construct.dtype])


def error_of(construct: Construct, backend: str) -> str:
    """The id of the error that running it raises."""
    try:
        model = support.alone(construct).with_random_weights(0)
        model.compile(backend, dtype=construct.dtype)
    except Diagnostics as found:
        return found.errors[0].id
    except ArchError as found:
        return found.id
    return RUNS


def together(construct: Construct, backend: str) -> tuple[Construct, ...]:
    """What is compiled in one model with a construct: same header, same dtype, all run there."""
    return tuple(
        other
        for other in CONSTRUCTS
        if (other.header, other.dtype, other.example, other.quant)
        == (construct.header, construct.dtype, construct.example, construct.quant)
        and not other.stored
        and support.status(other, backend) == RUNS
    )


@cache
def model_of(group: tuple[Construct, ...]) -> archc.api.Model:
    """The model of a group, whose graph is made once for every backend."""
    made = support.alone(*group) if len(group) == 1 else support.model_of(group)
    return made.with_random_weights(1)


@cache
def results(group: tuple[Construct, ...], backend: str, dtype: str) -> Arrays:
    """Outputs on a backend; by the reference where none is named."""
    model = model_of(group)
    level = 1 if backend else 0
    compiled = model.compile(backend or "numpy", dtype=dtype, level=level, quant=group[0].quant)
    example = any(construct.example for construct in group)
    return compiled(**(unpadded if example else inputs_of)(model.program))


def unpadded(program: Program) -> Arrays:
    """Inputs of a whole model: its outputs at padding are unspecified, so there is none."""
    case = next(iter(random_cases(program, 0, {"b": 2})))
    return {n: np.ones_like(a) if a.dtype == np.bool_ else a for n, a in case.inputs.items()}


def inputs_of(program: Program) -> Arrays:
    """Equal inputs for equal names, whichever of them a model reads."""
    every = support.model_of([Construct("", "", EVERY_INPUT)]).program
    case = next(iter(random_cases(every, 0, SIZES)))
    read = {program.main[i].attrs["name"] for i in program.main.inputs}
    return {name: array for name, array in case.inputs.items() if name in read}


EVERY_INPUT = "output @[b] = sum(where(keep, x * y, ids), s, d) + sum(m, t, d)"


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert got.shape == expected.shape
    if expected.dtype.kind in "bi":
        np.testing.assert_array_equal(got, expected)
        return
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


# ------------------------------------------------------------------------ stored weights


def check_stored(construct: Construct, backend: str, folder: Path) -> None:
    """Weights written in a format and read back run like the arrays they decode to."""
    path, weights = write(construct, folder)
    file = folder / "support.arch"
    file.write_text(support.source_of([construct]).text, encoding="utf-8")
    model = archc.load(file, weights=path)
    inputs = inputs_of(model.program)
    got = model.compile(backend)(**inputs)
    exact = replace(support.alone(construct), weights=weights)
    expected = exact.compile("numpy", dtype="f64", level=0)(**inputs)
    for name, value in expected.items():
        assert_close(got[name], value, TOLERANCE["f32"])


def write(construct: Construct, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint of random weights, and the weights as it holds them."""
    model = support.alone(construct).with_random_weights(0)
    assert model.weights is not None
    weights = dict(model.weights)
    kind, _, variant = construct.stored.partition(" ")
    if kind == "gguf":
        return write_gguf(folder / "weights.gguf", variant, weights)
    (block,) = model.module.checkpoints
    save(model.program, weights, block, folder, {"architectures": ["tiny"]})
    if variant == "shards":
        split_into_shards(folder)
    return folder, weights


def write_gguf(
    path: Path, variant: str, weights: dict[str, np.ndarray]
) -> tuple[Path, dict[str, np.ndarray]]:
    """`up` is stored transposed, as the checkpoint block says."""
    kind = gguf.GGMLQuantizationType[variant]
    writer = gguf.GGUFWriter(path, "tiny")
    decoded = {}
    for name, array in weights.items():
        up = name.endswith("u.w")
        packed = gguf.quantize(np.ascontiguousarray(array.T if up else array), kind)
        stored = gguf.dequantize(packed, kind).astype(np.float32)
        decoded[name] = stored.T if up else stored
        writer.add_tensor("up.weight" if up else "down.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, decoded


def split_into_shards(folder: Path) -> None:
    """One file for each tensor, with an index."""
    whole = folder / "model.safetensors"
    index = {}
    for number, (name, array) in enumerate(load_file(whole).items()):
        index[name] = f"model-{number}.safetensors"
        save_file({name: array}, folder / index[name])
    whole.unlink()
    text = json.dumps({"weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


# ---------------------------------------------------------------------- the table as a whole


def test_names_are_unique() -> None:
    names = [(c.group, c.name) for c in CONSTRUCTS]
    assert len(set(names)) == len(names)


def graphs() -> Iterator[Program]:
    """Of every construct as written, then what is made of it: all of them are asked for by no test."""
    run = [c for c in CONSTRUCTS if support.status(c, "numpy") == RUNS]
    yield from (support.alone(construct).program for construct in run)
    for construct in run:
        program = support.alone(construct).program
        with suppress(NoDecode, NeedsWholeSequence):
            yield derive(program).chunk
        yield optimise(program, quant=construct.quant).program


def test_every_op_is_used_by_some_construct() -> None:
    """In the whole program or its chunk. Only large matrices are `packed`: `test_pack_weights.py`; only
    gradients have a `logsumexp`: `test_gradient.py`."""
    unused = set(OPS) - set(FUSED) - {"packed", "logsumexp"}
    for program in graphs():
        unused -= {node.op for function in program.functions for node in function.nodes}
        if not unused:
            break
    assert unused == set()


@pytest.mark.parametrize("page", support.PAGES, ids=str)
def test_the_pages_are_fresh(page: Path, accept: bool) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    fresh = support.replaced(text, support.PAGES[page]())
    if accept:
        (ROOT / page).write_text(fresh, encoding="utf-8")
    else:
        assert text == fresh, "`python -m archc.support` would change it"


NOTHING = """use std
model M {
  d = 4
  input x: float[b, s, d]
  input known: bool[b, m] = true
  input memory: float[b, m, d] = 1
  output seen[b] = any(known, m)
  output most[b, d] = amax(memory, m)
  output total[b, d] = sum(memory, m)
  output y[b, s, d] = where(any(known, m), x, 0)
}
"""


@pytest.mark.parametrize("given", [None, ["x"]], ids=["left out of the call", "compiled without"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_read_of_nothing(backend: str, given: list[str] | None, tmp_path: Path) -> None:
    (tmp_path / "m.arch").write_text(NOTHING)
    model = archc.load(tmp_path / "m.arch").with_random_weights(0)
    found = model.compile(backend, inputs=given)(x=np.ones((2, 3, 4), np.float32))
    assert not found["seen"].any()
    assert (found["most"] == -np.inf).all()
    assert not found["total"].any()
    assert not found["y"].any()
