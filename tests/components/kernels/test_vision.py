"""What stands between a vision transformer's products: the compiled forms against torch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.kernels.vision import gelu_tanh, mean_direction, merge_means

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("count", [1, 16, 45, 9000])
def test_gelu_equals_its_definition(count: int, dtype: torch.dtype) -> None:
    x = torch.linspace(-12, 12, count).to(dtype)
    expected = F.gelu(x.double(), approximate="tanh")
    error = (gelu_tanh(x.clone()).double() - expected).abs() / expected.abs().clamp(min=1)
    assert error.max() <= TOLERANCE[dtype]


def test_gelu_of_extremes() -> None:
    *finite, nothing = gelu_tanh(torch.tensor([0.0, -1e4, 1e30, torch.inf, torch.nan]))
    torch.testing.assert_close(torch.stack(finite), torch.tensor([0.0, 0.0, 1e30, torch.inf]))
    assert nothing.isnan()


def test_gelu_leaves_what_has_gradients_alone() -> None:
    x = torch.randn(20, requires_grad=True)
    before = x.detach().clone()
    (own,) = torch.autograd.grad(gelu_tanh(x).sum(), x)
    (expected,) = torch.autograd.grad(F.gelu(x, approximate="tanh").sum(), x)
    assert torch.equal(x.detach(), before) and torch.equal(own, expected)


def some_merge(frames: int, tokens: int, removed: int) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.stack([torch.randperm(tokens) for _ in range(frames)])
    return order[:, removed:], order[:, :removed], torch.randint(tokens - removed, (frames, removed))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("frames", "tokens", "removed", "width"), [(3, 40, 15, 64), (1, 9, 8, 37), (2, 5, 1, 8)])
def test_merged_tokens_are_weighted_means(
    frames: int, tokens: int, removed: int, width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, size = torch.randn(frames, tokens, width).to(dtype), torch.randint(1, 9, (frames, tokens)).float()
    survivors, sources, into = some_merge(frames, tokens, removed)
    expected = torch.zeros(frames, tokens - removed, width, dtype=torch.float64)
    for n in range(frames):
        groups = [[int(s)] for s in survivors[n]]
        for source, group in zip(sources[n].tolist(), into[n].tolist(), strict=True):
            groups[group].append(source)
        for g, group in enumerate(groups):
            weight = size[n, group].double()[:, None]
            expected[n, g] = (x[n, group].double() * weight).sum(0) / weight.sum()
    own = merge_means(x, size, survivors, sources, into).double()
    assert (own - expected).abs().max() <= TOLERANCE[dtype] * 4


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("width", [64, 20])
def test_the_mean_of_the_heads_has_length_one(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    keys = torch.randn(2, 7, 3, width).to(dtype).transpose(1, 2)
    expected = F.normalize(keys.double().mean(1), dim=-1)
    torch.testing.assert_close(mean_direction(keys).double(), expected, atol=1e-6, rtol=0)
    assert mean_direction(torch.zeros(1, 2, 3, width).to(dtype)).eq(0).all()


def test_the_default_dtype_decides_nothing() -> None:
    keys = torch.randn(2, 3, 9, 4).bfloat16()
    expected = mean_direction(keys)
    torch.set_default_dtype(torch.bfloat16)  # as training in pure bfloat16 does
    try:
        own = mean_direction(keys)
    finally:
        torch.set_default_dtype(torch.float32)
    assert own.dtype is torch.float32 and torch.equal(own, expected)
