"""Tensor lines: what they read, what they refuse, and that writing undoes reading."""

from __future__ import annotations

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from archc.compiler.checkpoint import bind, checkpoint_block, open_checkpoint, save
from archc.compiler.checkpoint.arrangement import (
    Joined,
    Reshaped,
    Sliced,
    Transposed,
    Weight,
    claims,
)
from archc.compiler.ir.graph import Axis, Parameter, Program
from archc.dsl.diagnostics import ArchError, Diagnostics
from archc.dsl.dims import Dim
from archc.dsl.parse import parse
from archc.dsl.span import Source

SIZES = {"g": 2, "r": 3, "e": 4, "d": 5, "h": 6, "vocab": 7, "experts": 3}


def parameter(path: str, dims: str, declared: str = "") -> Parameter:
    """`dims` is the stored grouping: `g r e, d`."""
    grouping = tuple(
        tuple(Axis(name, Dim.symbol(name)) for name in dim.split()) for dim in dims.split(",")
    )
    axes = tuple(axis for dim in grouping for axis in dim)
    return Parameter(path, axes, grouping, declared=tuple(declared.split()))


def program(*parameters: Parameter) -> Program:
    return Program("M", (), tuple(SIZES.items()), tuple(parameters))


def block(lines: str):
    text = f'checkpoint huggingface "M" for M {{\n{lines}\n}}\n'
    return parse(Source("m.arch", text)).items[0]


def numbered(*shape: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + math.prod(shape), dtype=np.float32).reshape(shape)


@pytest.fixture
def directory(tmp_path: Path):
    def write(**tensors: np.ndarray) -> Path:
        (tmp_path / "config.json").write_text(json.dumps({"architectures": ["M"]}))
        save_file(
            {name: np.ascontiguousarray(t) for name, t in tensors.items()},
            tmp_path / "model.safetensors",
        )
        return tmp_path

    return write


def load(lines: str, model: Program, path: Path):
    return bind(block(lines), open_checkpoint(path), model)


def refusal(lines: str, model: Program, path: Path) -> list[str]:
    """Ids of the errors of a load that must fail."""
    with pytest.raises((ArchError, Diagnostics)) as caught:
        load(lines, model, path)
    errors = getattr(caught.value, "errors", (caught.value,))
    assert str(caught.value)
    return [error.id for error in errors]


ATTENTION = program(
    parameter("q.w", "g r e, d", "g r e in"),
    parameter("k.w", "g e, d", "g e in"),
    parameter("v.w", "g e, d", "g e in"),
)
FUSED = "concat(q.w[(g, r, e) -> rows], k.w[(g, e) -> rows], v.w[(g, e) -> rows], rows)"


# ------------------------------------------------------------------------------- reading


def test_a_plain_line_reads_the_declared_grouping(directory):
    file = numbered(24, 5)
    weights = load('"w" = q.w', program(parameter("q.w", "g r e, d")), directory(w=file))
    assert weights["q.w"].shape == (2, 3, 4, 5)
    assert np.array_equal(weights["q.w"].reshape(24, 5), file)


def test_a_file_may_count_in_its_own_way(directory):
    layers = [parameter(f"layers[{i}].w", "d") for i in range(2)]
    lines = 'layers[i] at "{2 * i + 1}." { "w" = w }\n"{g + 2}.w" = last.w'
    path = directory(**{name: numbered(5, start=n) for n, name in enumerate(("1.w", "3.w", "4.w"))})
    weights = load(lines, program(*layers, parameter("last.w", "d")), path)
    assert [weights[p][0] for p in ("layers[0].w", "layers[1].w", "last.w")] == [0, 1, 2]
    assert refusal('"{missing + 1}.w" = last.w', program(parameter("last.w", "d")), path) == [
        "unknown-name"
    ]


def test_a_plain_line_copies_nothing(directory):
    weights = load(
        '"w"[d, rows] = q.w[(g, r, e) -> rows]',
        program(parameter("q.w", "g r e, d")),
        directory(w=numbered(5, 24)),
    )
    assert not weights["q.w"].flags.owndata
    assert not weights["q.w"].flags.writeable


def test_the_order_of_the_left_axes_is_the_transpose(directory):
    file = numbered(5, 24)
    model = program(parameter("q.w", "g r e, d"))
    for lines in ('"w"[d, (g, r, e)] = q.w', '"w"[d, rows] = q.w[(g, r, e) -> rows]'):
        weights = load(lines, model, directory(w=file))
        assert np.array_equal(weights["q.w"].reshape(24, 5), file.T)


def test_axes_answer_to_their_declared_names(directory):
    weights = load(
        '"w"[in, (g, e)] = k.w', program(ATTENTION.parameters[1]), directory(w=numbered(5, 8))
    )
    assert weights["k.w"].shape == (2, 4, 5)


def test_fused_rows_are_slices(directory):
    file = numbered(5, 40)
    lines = f'"w"[d, rows] = {FUSED}'
    weights = load(lines, ATTENTION, directory(w=file))
    assert np.array_equal(weights["q.w"].reshape(24, 5), file.T[:24])
    assert np.array_equal(weights["k.w"].reshape(8, 5), file.T[24:32])
    assert np.array_equal(weights["v.w"].reshape(8, 5), file.T[32:])


def test_rows_fused_per_group(directory):
    """Falcon-40B: each key-value group holds its queries, then its key, then its value."""
    file = numbered(40, 5)
    lines = '"w" = concat(q.w, k.w[r: new], v.w[r: new], r)[(g, r, e) -> rows][rows, d]'
    weights = load(lines, ATTENTION, directory(w=file))
    grouped = file.reshape(2, 5, 4, 5)
    assert np.array_equal(weights["q.w"], grouped[:, :3])
    assert np.array_equal(weights["k.w"], grouped[:, 3])
    assert np.array_equal(weights["v.w"], grouped[:, 4])


def test_rows_stacked_per_head(directory):
    """Falcon-RW, BLOOM: query, key and value of a head lie together."""
    model = program(*(parameter(f"{n}.w", "g e, d") for n in "qkv"))
    file = numbered(24, 5)
    weights = load(
        '"w"[rows, d] = stack(q.w, k.w, v.w, part)[(g, part, e) -> rows]', model, directory(w=file)
    )
    assert np.array_equal(weights["k.w"], file.reshape(2, 3, 4, 5)[:, 1])


def test_rotary_pairs_stored_interleaved(directory):
    """llama.cpp stores the halves of each head alternately."""
    file = numbered(8, 5)
    lines = '"w"[rows, d] = k.w[e -> (pair: 2, j)][(g, j, pair) -> rows]'
    weights = load(lines, program(parameter("k.w", "g e, d")), directory(w=file))
    halves = file.reshape(2, 2, 2, 5).swapaxes(1, 2).reshape(2, 4, 5)
    assert np.array_equal(weights["k.w"], halves)


def test_scopes_run_over_the_layers_that_exist(directory):
    model = program(*(parameter(f"layers[{i}].up.w", "h, d") for i in range(3)))
    files = {f"m.{i}.up": numbered(6, 5, start=100 * i) for i in range(3)}
    weights = load('layers[i] at "m.{i}." { "up" = up.w }', model, directory(**files))
    assert weights["layers[2].up.w"][0, 0] == 200
    assert weights.tensors("layers[1].up.w") == ("m.1.up",)


def test_scopes_nest(directory):
    paths = [(i, n) for i in range(2) for n in range(2)]
    model = program(*(parameter(f"layers[{i}].moe.f[{n}].w", "h, d") for i, n in paths))
    files = {f"m.{i}.x.{n}.w1": numbered(6, 5, start=100 * i + 10 * n) for i, n in paths}
    lines = 'layers[i] at "m.{i}." { moe.f[n] at "x.{n}." { "w1" = w } }'
    weights = load(lines, model, directory(**files))
    assert weights["layers[1].moe.f[1].w"][0, 0] == 110


def test_a_stacked_bank_is_filled_entry_by_entry(directory):
    model = program(parameter("moe.f.w", "experts, h, d"))
    files = {f"x.{n}.w1": numbered(6, 5, start=100 * n) for n in range(3)}
    weights = load('moe.f[n] at "x.{n}." { "w1" = w }', model, directory(**files))
    assert np.array_equal(weights["moe.f.w"], np.stack([files[f"x.{n}.w1"] for n in range(3)]))


def test_a_weight_in_two_tensors_by_slices(directory):
    model = program(parameter("up.w", "h, d"))
    file = numbered(6, 5)
    lines = '"a" = up.w[h: 0..h // 3]; "b" = up.w[h: h // 3..]'
    weights = load(lines, model, directory(a=file[:2], b=file[2:]))
    assert np.array_equal(weights["up.w"], file)


def test_dtypes_are_kept(directory):
    model = program(parameter("up.w", "h, d"))
    file = numbered(6, 5).astype(ml_dtypes.bfloat16)
    assert load('"a" = up.w', model, directory(a=file))["up.w"].dtype == ml_dtypes.bfloat16


def test_lines_vanish_with_their_weights(directory):
    model = program(parameter("up.w", "h, d"))
    lines = '"a" = up.w; "bias" = up.b; layers[i] at "m.{i}." { "b" = down.w }'
    assert set(load(lines, model, directory(a=numbered(6, 5)))) == {"up.w"}


@pytest.mark.parametrize("names", [["wte", "h.0.up"], ["transformer.wte", "transformer.h.0.up"]])
def test_an_optional_prefix(directory, names):
    model = program(parameter("embed.w", "vocab, d"), parameter("layers[0].up.w", "h, d"))
    files = dict(zip(names, (numbered(7, 5), numbered(6, 5)), strict=True))
    lines = 'prefix "transformer."?; "wte" = embed.w; layers[i] at "h.{i}." { "up" = up.w }'
    assert load(lines, model, directory(**files))["layers[0].up.w"].shape == (6, 5)


@pytest.mark.parametrize("found", ["new.", "old."])
def test_the_first_of_several_prefixes_that_the_file_has(directory, found):
    model = program(parameter("head.w", "vocab, d"), parameter("embed.w", "vocab, d"))
    files = {f"{found}head": numbered(7, 5), "embed": numbered(7, 5)}
    lines = '"embed" = embed.w; prefix "new." or "old."; "head" = head.w'
    assert load(lines, model, directory(**files))["head.w"].shape == (7, 5)


def test_none_of_several_prefixes_names_the_first(directory):
    model = program(parameter("head.w", "vocab, d"))
    with pytest.raises(Diagnostics) as caught:
        load('prefix "new." or "old."; "head" = head.w', model, directory(head=numbered(7, 5)))
    assert "new.head" in str(caught.value)


def test_a_prefix_leads_only_the_lines_below_it(directory):
    model = program(parameter("embed.w", "vocab, d"), parameter("head.w", "vocab, d"))
    files = {"head": numbered(7, 5), "m.wte": numbered(7, 5)}
    assert load('"head" = head.w; prefix "m."; "wte" = embed.w', model, directory(**files))


def test_ignored_tensors(directory):
    model = program(parameter("layers[0].up.w", "h, d"))
    files = {"m.0.up": numbered(6, 5), "m.0.attn.bias": numbered(3), "rotary.inv": numbered(3)}
    lines = 'layers[i] at "m.{i}." { "up" = up.w; ignore "*.bias": "a mask" }; ignore "rotary.*"'
    assert load(lines, model, directory(**files))


# ------------------------------------------------------------------------------- aliases

TIED = program(parameter("embed.w", "vocab, d"))
UNTIED = program(parameter("embed.w", "vocab, d"), parameter("head.w", "vocab, d"))
HEADS = '"wte" = embed.w; "head" = head.w; alias "head" = embed.w'


def test_an_alias_may_be_absent_or_equal(directory):
    table = numbered(7, 5)
    assert set(load(HEADS, TIED, directory(wte=table))) == {"embed.w"}
    assert set(load(HEADS, TIED, directory(wte=table, head=table))) == {"embed.w"}


def test_an_alias_with_other_data_is_refused(directory):
    path = directory(wte=numbered(7, 5), head=numbered(7, 5, start=1))
    assert refusal(HEADS, TIED, path) == ["alias-differs"]


def test_an_alias_yields_to_a_live_line(directory):
    path = directory(wte=numbered(7, 5), head=numbered(7, 5, start=1))
    assert load(HEADS, UNTIED, path)["head.w"][0, 0] == 1


# ------------------------------------------------------------------------------- refusals

ONE = program(parameter("up.w", "h, d"), parameter("down.w", "d, h"))
UP, DOWN = numbered(6, 5), numbered(5, 6)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('"up" = up.w', ["unused-tensor", "unread-weight"]),
        ('"up" = up.w; "dwn" = down.w', ["missing-tensor", "unused-tensor"]),
        ('"up" = up.w; "down" = dwn.w', ["unknown-weight", "unread-weight"]),
        ('"up" = down.w; "down" = up.w', ["tensor-shape", "tensor-shape"]),
        ('"up" = up.w; "down"[h, d] = down.w', ["tensor-shape"]),
        ('"up" = up.w; "down"[d, h] = up.w', ["unread-weight", "weight-read-twice"]),
        ('"up" = up.w; "up" = down.w; "down" = down.w', ["tensor-read-twice"]),
        ('"up" = up.w; "down" = down.w[d: 0..4]', ["tensor-shape"]),
        ('"up" = up.w; "down" = down.w * 2', ["not-a-permutation"]),
        ('"up" = up.w; "down" = silu(down.w)', ["not-a-permutation"]),
        ('"up" = up.w; "down"[...] = down.w', ["not-a-permutation"]),
        ('"up" = up.w; "down"[d, z] = down.w', ["checkpoint-axis"]),
        ('"up" = up.w; "down"[d] = down.w', ["checkpoint-axis"]),
        ('"up" = up.w; "down" = down.w[d -> (a: 2, b)]', ["checkpoint-axis"]),
        ('"up" = up.w; "down" = down.w[d: 3..9]', ["checkpoint-axis"]),
        ('"up" = up.w; "down" = down.w[d: 1.5..]', ["config-value"]),
        ('"up" = up.w; "down" = concat(down.w, down.b, d)', ["partial-tensor-line"]),
        ('"up" = up.w; layers[i] at "" { "{j}" = down.w }; "down" = down.w', []),
    ],
)
def test_what_does_not_match_is_named(directory, lines, expected):
    path = directory(up=UP, down=DOWN)
    if expected:
        assert refusal(lines, ONE, path) == expected
    else:
        assert load(lines, ONE, path)


def test_a_slice_through_merged_rows_is_refused(directory):
    model = program(parameter("k.w", "g e, d"))
    rows = "k.w[(g, e) -> rows]"
    lines = f'"a"[rows, d] = {rows}[rows: 0..3]; "b"[rows, d] = {rows}[rows: 3..]'
    assert refusal(lines, model, directory(a=numbered(3, 5), b=numbered(5, 5))) == [
        "not-a-permutation"
    ]


def test_an_unknown_hole_in_a_name(directory):
    model = program(parameter("layers[0].up.w", "h, d"))
    lines = 'layers[i] at "m.{j}." { "up" = up.w }'
    assert refusal(lines, model, directory(up=UP)) == ["unknown-name"]


def test_integer_tensors_are_no_weights(directory):
    weights = load(
        '"up" = up.w', program(parameter("up.w", "h, d")), directory(up=UP.astype(np.int32))
    )
    with pytest.raises(ArchError) as caught:
        weights["up.w"]
    assert caught.value.id == "tensor-dtype"


def test_no_block_for_a_class(directory):
    file = parse(Source("m.arch", 'checkpoint huggingface "N" for M { "up" = up.w }\n'))
    with pytest.raises(ArchError) as caught:
        checkpoint_block(file, "m.arch", open_checkpoint(directory(up=UP)))
    assert caught.value.id == "no-checkpoint-block"


# ------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_writing_gives_back_every_byte(directory, tmp_path, dtype):
    files = {
        "m.attn": numbered(5, 40).astype(dtype),
        "m.wte": numbered(7, 5).astype(dtype),
        "head": numbered(7, 5).astype(dtype),
    }
    model = program(*ATTENTION.parameters, parameter("embed.w", "vocab, d"))
    lines = f"""
      "head" = head.w; alias "head" = embed.w
      prefix "m."?
      "wte" = embed.w
      "attn"[d, rows] = {FUSED}
    """
    source = open_checkpoint(directory(**files))
    weights = bind(block(lines), source, model)
    save(model, weights, block(lines), tmp_path / "out", source.config, like=source)
    assert open_checkpoint(tmp_path / "out").config == source.config
    _same_tensors(tmp_path / "out" / "model.safetensors", tmp_path / "model.safetensors")


def _same_tensors(a: Path, b: Path) -> None:
    with safe_open(a, "numpy") as left, safe_open(b, "numpy") as right:
        assert set(left.keys()) == set(right.keys())
        for name in left.keys():  # noqa: SIM118 (a file is no mapping)
            assert left.get_tensor(name).tobytes() == right.get_tensor(name).tobytes()


def test_a_fresh_export_leaves_aliases_out(tmp_path):
    save(TIED, {"embed.w": numbered(7, 5)}, block('prefix "m."?; ' + HEADS), tmp_path, {})
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert list(file.keys()) == ["m.wte"]


def test_gguf_cannot_be_written(tmp_path):
    gguf = parse(Source("m.arch", 'checkpoint gguf "m" for M { "a" = up.w }\n')).items[0]
    with pytest.raises(ArchError) as caught:
        save(ONE, {}, gguf, tmp_path, {})
    assert caught.value.id == "not-exportable"


# ----------------------------------------------------------- the inverse, over random trees


@st.composite
def arrangements(draw: st.DrawFn):
    """A random tree, and its weights' shapes. Slices appear under joins, as lines make them."""
    names = iter("abcdefghijklmnop")

    def tree(shape: tuple[int, ...], depth: int):
        kind = draw(st.sampled_from(["weight", "reshape", "transpose", "join", "whole"]))
        if depth == 0 or kind == "weight":
            return Weight(next(names), shape)
        if kind == "reshape":
            return Reshaped(tree(draw(st.sampled_from(_reshapes(shape))), depth - 1), shape)
        if kind == "transpose":
            order = tuple(draw(st.permutations(range(len(shape)))))
            inner = tuple(shape[order.index(k)] for k in range(len(shape)))
            return Transposed(tree(inner, depth - 1), order)
        axis = draw(st.integers(0, len(shape) - 1))
        if kind == "join" and shape[axis] > 1:
            cut = draw(st.integers(1, shape[axis] - 1))
            parts = [(*shape[:axis], size, *shape[axis + 1 :]) for size in (cut, shape[axis] - cut)]
            return Joined(tuple(tree(part, depth - 1) for part in parts), axis)
        return Sliced(tree(shape, depth - 1), axis, 0, shape[axis])

    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3)))
    return tree(shape, draw(st.integers(0, 4)))


def _reshapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    total = math.prod(shape)
    halves = [(2, total // 2), (total // 2, 2)] if total % 2 == 0 else []
    return [(total,), (1, *shape), (*shape, 1), *halves]


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    if isinstance(tree, Weight):
        return {tree.path: tree.shape}
    parts = tree.parts if isinstance(tree, Joined) else (tree.of,)
    return {path: shape for part in parts for path, shape in _shapes(part).items()}


@given(arrangements())
@settings(max_examples=300, deadline=None)
def test_reading_inverts_building(tree):
    """Element numbers put into every weight come back from the tensor they were written to."""
    weights, start = {}, 0
    for path, shape in _shapes(tree).items():
        weights[path] = numbered(*shape, start=start)
        start += math.prod(shape)
    tensor = tree.build(weights.__getitem__)
    assert tensor.shape == tree.shape
    read = {path: np.full(shape, -1.0) for path, shape in _shapes(tree).items()}
    for claim in claims(tree):
        box = tuple(slice(*side) for side in claim.box)
        assert (read[claim.path][box] == -1).all()
        read[claim.path][box] = claim.read(tensor)
    for path, expected in weights.items():
        assert np.array_equal(read[path], expected)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 4), st.data())
@settings(max_examples=200, deadline=None)
def test_slices_of_merged_axes_are_boxes_or_refused(a, b, c, data):
    shape = (a, b, c)
    low = data.draw(st.integers(0, a * b * c - 1))
    high = data.draw(st.integers(low + 1, a * b * c))
    tree = Sliced(Reshaped(Weight("w", shape), (a * b * c,)), 0, low, high)
    numbers = numbered(*shape)
    try:
        (claim,) = claims(tree)
    except ValueError:
        return
    box = tuple(slice(*side) for side in claim.box)
    assert np.array_equal(claim.read(np.arange(low, high)), numbers[box])
