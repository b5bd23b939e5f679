"""Products of a few rows against float64, and weights on huge pages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from archc.backends.torch import few_rows, pages
from archc.backends.torch.emit import HELPERS

N = 7  # rows of w: fewer than a thread's share, and odd
EXACT = {torch.float32: 2e-6, torch.bfloat16: 5e-3}  # relative, of results rounded to the dtype
DTYPES = list(EXACT)


def distance(result: torch.Tensor, gold: torch.Tensor) -> float:
    return float((result.double() - gold).norm() / gold.norm())


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def compiler() -> None:
    assert few_rows.built(), "PyTorch's own compiled models need a C++ compiler too"


@pytest.fixture(scope="session")
def text(compiler: None) -> dict[str, Any]:
    """What an emitted file defines of products."""
    found: dict[str, Any] = {"__name__": "few_rows_text", "torch": torch, "F": F}
    names = ["OPS", "dequantise", "few_rows", "linear", "packed_linear", "quantise"]
    for name in [*names, "quantised_linear"]:
        exec(HELPERS[name], found)
    return found


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 7, 32, 50, 96])
def test_a_product_of_a_few_rows(k: int, dtype: torch.dtype, stored: torch.dtype) -> None:
    for rows in range(1, 8):  # beyond those that one pass serves, and not
        x, w = torch.randn(rows, k).to(dtype), torch.randn(N, k).to(stored)
        result = torch.ops.few_rows.product(x, w)
        assert result.dtype == dtype
        assert distance(result, x.double() @ w.double().T) < EXACT[dtype]


@pytest.mark.parametrize("steps", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_multiplied_as_they_are(
    bits: int, dtype: torch.dtype, steps: torch.dtype
) -> None:
    k = 96
    codes = torch.randint(-127, 128, (N, k)) if bits == 8 else torch.randint(16, (N, k))
    scales, offsets = torch.rand(N, 3).to(steps) + 0.5, torch.randn(N, 3).to(steps)
    groups = codes.view(N, 3, 32).double()
    if bits == 8:
        stored, w = (codes.to(torch.int8), scales), groups * scales.double()[..., None]
    else:
        pairs = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8).view(torch.int8)
        stored = (pairs, scales, offsets)
        w = (groups - 8) * scales.double()[..., None] + offsets.double()[..., None]
    for rows in (1, 2, 3, 5):
        x = torch.randn(rows, k).to(dtype)
        result = torch.ops.few_rows.coded(x, *stored)
        assert distance(result, x.double() @ w.view(N, k).T) < EXACT[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_matrix_is_decoded_as_the_formula_has_it(
    text: dict[str, Any], bits: int, dtype: torch.dtype
) -> None:
    stored = text["quantise"](torch.randn(2, N, 96).to(dtype), bits, 32)
    with torch.profiler.profile() as profile:
        whole = text["dequantise"](*stored, group=32, length=96)
    assert any(event.name == "few_rows::decoded" for event in profile.events())
    plain = text | {"HAS_FEW_ROWS": False}
    exec(HELPERS["dequantise"], plain)
    assert torch.equal(whole, plain["dequantise"](*stored, group=32, length=96))
    assert whole.shape == (2, N, 96)


def test_rows_are_quantised_alike_in_any_block(text: dict[str, Any]) -> None:
    w = torch.randn(3, 5, 2**18 - 8)  # a block is four rows
    for bits in (8, 4):
        found, wanted = text["quantise"](w, bits, 32), text["quantise_rows"](w, bits, 32)
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_those_of_pytorch(text: dict[str, Any], dtype: torch.dtype, bits: int) -> None:
    """Also between two codes, of equal entries, of zeros, and of what is no number."""
    w = torch.randn(2, 300, 96)
    w[0, :100] = torch.randint(-30, 31, (100, 96)) / 2
    w[0, 100:104, :40] = torch.tensor([0.0, 0.3, torch.inf, torch.nan])[:, None]
    w[0, 104:106, 5] = torch.tensor([-torch.inf, torch.nan])
    w = w.to(dtype)
    with torch.profiler.profile() as profile:
        found = text["quantise"](w, bits, 32)
    assert any(event.name == "few_rows::encode" for event in profile.events())
    for part, wanted in zip(found, text["quantise_rows"](w, bits, 32), strict=True):
        torch.testing.assert_close(part, wanted, rtol=0, atol=0, equal_nan=True)
    transposed = text["quantise"](w.mT.contiguous().mT, bits, 32)
    for part, same in zip(found, transposed, strict=True):
        torch.testing.assert_close(part, same, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("rows", "length", "taken"), [(1, 64, True), (8, 64, False), (1, 40, False)]
)
def test_codes_that_the_loops_do_not_take_are_dequantised(
    text: dict[str, Any], rows: int, length: int, taken: bool
) -> None:
    w, x = torch.randn(N, length), torch.randn(1, rows, length)
    for bits in (8, 4):
        codes, *steps = text["quantise"](w, bits, 32)
        whole = text["dequantise"](codes, *steps, group=32, length=length)
        with torch.profiler.profile() as profile:
            result = text["quantised_linear"](x, codes, *steps, group=32, length=length)
        torch.testing.assert_close(result, F.linear(x, whole))
        assert taken == any(event.name == "few_rows::coded" for event in profile.events())


@pytest.mark.parametrize("shape", [(1, 1, 24), (24,), (2, 3, 24), (2, 9, 24), (0, 24)])
def test_linear_is_a_linear(text: dict[str, Any], shape: tuple[int, ...]) -> None:
    x, w = torch.randn(shape), torch.randn(N, 24)
    for given, matrix in ((x, w), (x.double(), w.double()), (x, w.T.contiguous().T)):
        result = text["linear"](given, matrix)
        assert result.shape == (*shape[:-1], N)
        assert result.dtype == given.dtype
        torch.testing.assert_close(result, F.linear(given, matrix))


def test_gradients_flow(text: dict[str, Any]) -> None:
    x, w = torch.randn(1, 8, requires_grad=True), torch.randn(N, 8)
    text["linear"](x, w).sum().backward()
    torch.testing.assert_close(x.grad, w.sum(0)[None])


def test_a_nan_and_an_infinity_stay_what_they_are(text: dict[str, Any]) -> None:
    x = torch.tensor([[1.0, torch.inf], [torch.nan, 1.0]])
    for dtype in DTYPES:
        result = text["linear"](x.to(dtype), torch.ones(N, 2))
        assert (result[0] == torch.inf).all()
        assert result[1].isnan().all()


def test_operands_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RuntimeError, match="another size"):
        torch.ops.few_rows.product(torch.ones(1, 8), torch.ones(N, 9))
    with pytest.raises(RuntimeError, match="neither float32 nor bfloat16"):
        torch.ops.few_rows.product(torch.ones(1, 8), torch.ones(N, 8).half())
    with pytest.raises(RuntimeError, match="whole number of groups"):
        torch.ops.few_rows.coded(torch.ones(1, 8), torch.ones(N, 8).char(), torch.ones(N, 1))


def test_threads_share_the_rows(text: dict[str, Any]) -> None:
    before = torch.get_num_threads()
    x, w = torch.randn(1, 512), torch.randn(301, 512)
    try:
        torch.set_num_threads(1)
        alone = text["linear"](x, w)
        torch.set_num_threads(2)
        assert torch.equal(text["linear"](x, w), alone)  # a row has one order of summing
    finally:
        torch.set_num_threads(before)


def test_weights_move_to_huge_pages_and_shared_ones_stay_shared() -> None:
    first, second = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    second.weight = first.weight
    model = torch.nn.Sequential(first, second)
    model.register_buffer("alias", first.weight.detach())
    model.register_buffer("codes", torch.arange(7, dtype=torch.int8))
    model.register_buffer("across", torch.ones(4, 6).T)
    x = torch.randn(2, 5)
    before, across = first(x), model.across.data_ptr()
    pages.Arena().gather([*model.buffers(), first.weight, first.bias, second.weight, second.bias])
    torch.testing.assert_close(first(x), before, rtol=0, atol=0)
    assert model.alias.data_ptr() == first.weight.data_ptr() == second.weight.data_ptr()
    assert model.codes.tolist() == list(range(7))
    assert model.across.data_ptr() == across
    places = [first.weight, first.bias, second.bias, model.codes]
    assert all(t.data_ptr() % pages.LINE == 0 for t in places)
    assert max(t.data_ptr() for t in places) - min(t.data_ptr() for t in places) < pages.PAGE


def test_huge_pages_begin_at_one() -> None:
    memory = pages.huge(3)
    assert memory.tolist() == [0, 0, 0]
    assert memory.data_ptr() % pages.PAGE == 0
