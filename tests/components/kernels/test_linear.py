"""Our matrix products against float64, and the rounding of weights to int8."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from components.kernels import _native
from components.kernels import linear as module
from components.kernels.linear import Int8Linear, linear, linear_reference, project, quantize, quantize_linears

SHAPES = [(1, 32, 16), (3, 70, 45), (8, 160, 33), (9, 33, 31), (33, 70, 45), (130, 260, 96), (513, 300, 70)]
TOLERANCE = {torch.float32: 5e-7, torch.bfloat16: 4e-3}


def inputs(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [T, K] and w [N, K]."""
    positions, width, outputs = shape
    generator = torch.Generator().manual_seed(sum(shape))
    x, w = torch.randn(positions, width, generator=generator), torch.randn(outputs, width, generator=generator)
    return x.to(dtype), w.to(dtype)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of our kernels were called."""
    calls: list[str] = []
    for name in ("_few", "_many"):
        kernel = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *arguments, kernel=kernel, name=name: calls.append(name) or kernel(*arguments)
        )
    return calls


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_a_product_equals_that_in_float64(
    shape: tuple[int, int, int], transposed: bool, dtype: torch.dtype, used: list[str]
) -> None:
    x, w = inputs(shape, dtype)
    given = w.t().contiguous().t() if transposed else w
    assert error(linear(x, given), x.double() @ w.double().T) <= TOLERANCE[dtype]
    assert used == ["_few" if len(x) <= module.FEW else "_many"]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_a_product_with_int8_is_that_with_its_multiples(
    shape: tuple[int, int, int], transposed: bool, dtype: torch.dtype
) -> None:
    x, w = inputs(shape, dtype)
    rounded, scale = quantize(w)
    given = rounded.t().contiguous().t() if transposed else rounded
    expected = x.double() @ (rounded.double() * scale.double()[:, None]).T
    assert error(linear(x, given, scale), expected) <= TOLERANCE[dtype]
    assert error(linear_reference(x, given, scale), expected) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("positions", [4, 40])
@torch.no_grad()
def test_the_squared_relu_is_applied(positions: int, dtype: torch.dtype) -> None:
    x, w = inputs((positions, 96, 80), dtype)
    expected = (x.double() @ w.double().T).relu().square()
    assert error(linear(x, w, activation="squared_relu"), expected) <= 2 * TOLERANCE[dtype]


def adversarial(kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x, w = (torch.randn(64, 512, generator=generator) for _ in range(2))
    if kind == "all of one sign":
        return x.abs(), w.abs()
    if kind == "sums that cancel":
        return torch.cat([x, x], 1), torch.cat([w, -w + 1e-4 * torch.randn(w.shape, generator=generator)], 1)
    if kind == "eight decades":
        return x * 10 ** (8 * torch.rand(512, generator=generator) - 4), w
    return x * 1e-30, w * 1e8  # "almost nothing"


@pytest.mark.parametrize("kind", ["all of one sign", "sums that cancel", "eight decades", "almost nothing"])
@torch.no_grad()
def test_float32_is_float32_whatever_the_values(kind: str) -> None:
    x, w = adversarial(kind)
    summed = x.double().abs() @ w.double().abs().T  # what a rounding error is relative to
    assert float(((linear(x, w).double() - x.double() @ w.double().T).abs() / summed).max()) <= 1e-6


@torch.no_grad()
def test_a_nan_stays_one() -> None:
    for positions in (4, 40):
        x, w = inputs((positions, 64, 48), torch.float32)
        x[1, 3] = torch.nan
        out = linear(x, w, activation="squared_relu")
        assert out[1].isnan().all() and not out[0].isnan().any()


@torch.no_grad()
def test_dimensions_before_the_last_are_kept() -> None:
    x, w = inputs((24, 32, 16), torch.float32)
    torch.testing.assert_close(linear(x.view(2, 3, 4, 32), w), linear(x, w).view(2, 3, 4, 16))


def test_gradients_and_types_that_kernels_cannot_take_go_to_torch(used: list[str]) -> None:
    x, w = inputs((9, 32, 16), torch.float32)
    linear(x, nn.Parameter(w)).sum().backward()
    with torch.no_grad():
        linear(x.double(), w.double())
        linear(x[:0], w)
        linear(x, torch.cat([w, w], 1)[:, ::2])
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, w).dtype is torch.bfloat16
    assert not used


def test_rounding_is_to_the_nearest_step_of_each_output() -> None:
    w = torch.randn(300, 40, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 3, 300)[:, None]
    w[5] = 0
    rounded, scale = quantize(w)
    assert rounded.abs().amax() == 127 and (rounded[5] == 0).all()
    assert ((rounded * scale[:, None] - w).abs() <= scale[:, None] * 0.5001).all()


def test_layers_are_replaced_and_keep_their_bias() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ModuleDict({"inner": nn.Linear(6, 4, bias=False)}), nn.LayerNorm(4))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    expected = model[0](x)
    assert quantize_linears(model, nn.Linear) == 2
    assert isinstance(model[0], Int8Linear) and isinstance(model[1]["inner"], Int8Linear)
    torch.testing.assert_close(model[0](x), expected, atol=0.03, rtol=0)
    torch.testing.assert_close(project(x, model[0]) + model[0].bias, model[0](x))


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["avx2", "plain"])
def test_a_processor_without_a_tile_unit_multiplies_many_positions_and_few(instructions: str) -> None:
    if _native.missing("linear") or instructions not in _native.here():
        pytest.skip("cannot be compiled for here")
    # widths that end in the middle of a line and of a vector
    code = """
import torch
from components.kernels.linear import linear
for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
    for width in (1, 8, 16, 24, 40, 48, 63, 70, 80, 95):
        x, w = torch.randn(33, width).to(dtype), torch.randn(45, width).to(dtype)
        for rows in (x, x[:3], x[:1], x[:8]):
            for given in (w, w.t().contiguous().t()):
                right = (rows.double() @ w.double().T).to(dtype)
                torch.testing.assert_close(linear(rows, given), right, rtol=tolerance, atol=tolerance)
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "AURORA_CPU": instructions}, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
