"""Kernels that finish a product with pieces of it, in one launch or several, at ragged shapes."""

from __future__ import annotations

import pytest
from test_epilogue import LAYER, layer
from test_triton_kernels import check

from archc.backends.triton import TritonBackend
from archc.compiler.passes import optimise

pytest.importorskip("triton")

ALIGNED = {"d": 16, "heads": 2, "kv_heads": 2, "head_dim": 128}  # columns end with a block
CASES = [
    {"bias": True},
    {"pairing": "interleaved", "kv_heads": 1, "hidden": 17},
    {"turned": 4},
    ALIGNED,
]


@pytest.mark.parametrize("values", CASES, ids=str)
def test_a_decoder_layer(values: dict[str, object]) -> None:
    check(layer(**values), levels=(1,), shapes=((1, 1), (1, 17), (1, 127)))


def test_normalised_queries_are_turned() -> None:
    text = LAYER.replace("rotate = turn", "rotate = turn, norm = rmsnorm(1e-6)")
    check(layer(text), levels=(1,), shapes=((1, 17),))


def test_results_whose_columns_end_with_a_block_share_a_launch() -> None:
    """Queries and keys turn pairs of accumulators; values have one."""
    source = TritonBackend().emit(optimise(layer(**ALIGNED)).program)
    launches = source["model.py"].count("run.launch(kernels.n1_linear")
    assert launches == 1
    assert source["kernels.py"].count("def n1_linear") == 4
    apart = TritonBackend().emit(optimise(layer()).program)
    assert apart["model.py"].count("run.launch(kernels.n1_linear") == 3
