"""float32 products by either library that torch brings, and the choice between them."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aurora.errors import AuroraError
from components.kernels import _dense
from components.kernels._dense import LIBRARIES, choose, dense
from components.kernels.vision import affine

POSITIONS, WIDTH, OUTPUTS = 96, 520, 610


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was chosen or asked for yet."""
    monkeypatch.setattr(_dense, "_chosen", {})
    monkeypatch.delenv("AURORA_FLOAT32", raising=False)


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the inputs that oneDNN has multiplied."""
    calls: list[tuple[int, ...]] = []
    product = _dense.onednn

    def recorded(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append((*x.shape,))
        return product(x, weight, bias)

    monkeypatch.setattr(_dense, "onednn", recorded)
    return calls


def inputs(*positions: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(*positions, WIDTH, generator=generator), torch.randn(OUTPUTS, WIDTH, generator=generator),
            torch.randn(OUTPUTS, generator=generator))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@torch.no_grad()
def test_both_libraries_give_the_product(
    library: str, biased: bool, transposed: bool, by_onednn: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AURORA_FLOAT32", library)
    x, weight, bias = inputs(2, POSITIONS)
    given = weight.t().contiguous().t() if transposed else weight
    out = dense(x, given, bias if biased else None)
    expected = F.linear(x.double(), weight.double(), bias.double() if biased else None)
    assert out.shape == expected.shape and (out - expected).norm() <= 1e-6 * expected.norm()
    assert by_onednn == ([(2, POSITIONS, WIDTH)] if library == "onednn" else [])


@torch.no_grad()
def test_the_choice_is_measured_once_and_told(caplog: pytest.LogCaptureFixture) -> None:
    x, weight, bias = inputs(POSITIONS)
    with caplog.at_level(logging.INFO, _dense.__name__):
        first, second = dense(x, weight, bias), dense(torch.cat([x, x]), weight, bias)
    torch.testing.assert_close(second[:POSITIONS], first)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"float32 products of {OUTPUTS} by {WIDTH} are made by {next(iter(_dense._chosen.values()))}"]


@pytest.mark.parametrize(("seconds", "difference", "library"), [
    ((1.2, 1.0), 1e-6, "onednn"), ((1.19, 1.0), 1e-7, "torch"), ((9.0, 1.0), 2e-6, "torch"),
    ((9.0, 1.0), float("nan"), "torch"), ((1.0, 9.0), 0.0, "torch"),
])
def test_onednn_has_to_be_faster_and_as_exact(seconds: tuple[float, float], difference: float, library: str) -> None:
    assert choose(*seconds, difference) == library


@pytest.mark.parametrize("wants", range(3))
def test_gradients_are_those_of_torch(
    wants: int, by_onednn: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AURORA_FLOAT32", "onednn")
    given = inputs(POSITIONS)
    given[wants].requires_grad_()
    for product in (dense, affine):
        (own,) = torch.autograd.grad(product(*given).sum(), given[wants])
        (expected,) = torch.autograd.grad(F.linear(*given).sum(), given[wants])
        assert torch.equal(own, expected)
    assert not by_onednn


@torch.no_grad()
def test_small_products_and_other_types_are_those_of_torch(
    by_onednn: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AURORA_FLOAT32", "onednn")
    x, weight, _ = inputs(POSITIONS)
    dense(x[:63], weight)
    dense(x, weight[:8])
    dense(x.double(), weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert dense(x, weight).dtype is torch.bfloat16
    assert not by_onednn


@torch.no_grad()
def test_an_unknown_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURORA_FLOAT32", "mkl")
    with pytest.raises(AuroraError, match=r"AURORA_FLOAT32=mkl: .* torch or onednn"):
        dense(*inputs(POSITIONS))
