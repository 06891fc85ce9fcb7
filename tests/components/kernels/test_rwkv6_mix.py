"""What stands between the matrix products of RWKV-6, against its plain twin in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from components.kernels.rwkv6_mix import Shifted, mix_five, norm_gate, norm_shift

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
LENGTHS = [(1,), (2, 1, 7), (40,), (1, 1, 1)]
WIDTHS = [32, 44, 130]


def draw(count: int, *shape: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count + sum(shape))
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def bounds(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance)


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.double() for x in tensors]


def norm_shift_reference(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    ratios: Sequence[Tensor],
    cu_seqlens: Tensor,
    before: Tensor | None = None,
    *,
    delta: Tensor | None = None,
    gate: Tensor | None = None,
    eps: float = 1e-5,
) -> Shifted:
    """The same by torch."""
    if delta is not None:
        x = x + (delta if gate is None else torch.sigmoid(gate) * delta)
    normal = F.layer_norm(x, x.shape[-1:], *norm, eps)
    difference = shift(normal, cu_seqlens, before) - normal
    return Shifted(x, normal, tuple(torch.addcmul(normal, difference, ratio) for ratio in ratios))


def mix_five_reference(
    x: Tensor, ratios: Tensor, constants: Sequence[Tensor], cu_seqlens: Tensor, before: Tensor | None = None
) -> Tensor:
    """The same by torch."""
    difference = shift(x, cu_seqlens, before) - x
    return torch.stack([torch.addcmul(x, difference, r + c) for r, c in zip(ratios, constants, strict=True)])


def norm_gate_reference(x: Tensor, gate: Tensor, norm: tuple[Tensor, Tensor], heads: int, eps: float) -> Tensor:
    """The same by torch."""
    return F.group_norm(x, heads, *norm, eps) * F.silu(gate)


def shift(x: Tensor, cu_seqlens: Tensor, before: Tensor | None) -> Tensor:
    """[T, C]: what stood before each position."""
    first = cu_seqlens[:-1].to(x.device)
    if before is None:
        before = x.new_zeros(len(first), x.shape[-1])
    return torch.cat([x[:1], x[:-1]]).index_copy(0, first, before.to(x.dtype))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("added", ["nothing", "delta", "gated"])
@pytest.mark.parametrize("remembered", [False, True])
def test_norm_and_shift(
    lengths: tuple[int, ...], width: int, dtype: torch.dtype, added: str, remembered: bool
) -> None:
    x, delta, gate = draw(3, sum(lengths), width, dtype=dtype)
    weight, bias, one, two = draw(4, width, dtype=dtype)
    before = draw(1, len(lengths), width, dtype=dtype)[0] if remembered else None
    delta, gate = None if added == "nothing" else delta, gate if added == "gated" else None
    actual = norm_shift(x, (weight, bias), [one, two], bounds(lengths), before, delta=delta, gate=gate)
    x, weight, bias, one, two, before, delta, gate = wide(x, weight, bias, one, two, before, delta, gate)
    expected = norm_shift_reference(x, (weight, bias), [one, two], bounds(lengths), before, delta=delta, gate=gate)
    for mine, right in zip((*actual[:2], *actual.mixed), (*expected[:2], *expected.mixed), strict=True):
        assert_close(mine, right)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("remembered", [False, True])
def test_five_mixtures(lengths: tuple[int, ...], width: int, dtype: torch.dtype, remembered: bool) -> None:
    (x,), constants = draw(1, sum(lengths), width, dtype=dtype), draw(5, width, dtype=dtype)
    (ratios,) = draw(1, 5, sum(lengths), width, dtype=dtype)
    before = draw(1, len(lengths), width, dtype=dtype)[0] if remembered else None
    actual = mix_five(x, ratios, constants, bounds(lengths), before)
    x, ratios, before = wide(x, ratios, before)
    assert_close(actual, mix_five_reference(x, ratios, wide(*constants), bounds(lengths), before))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("width", "heads"), [(32, 1), (44, 4), (130, 10)])
def test_norm_and_gate(width: int, heads: int, dtype: torch.dtype) -> None:
    (x, gate), (weight, bias) = draw(2, 17, width, dtype=dtype), draw(2, width, dtype=dtype)
    gate[0] *= 60  # exp must not overflow
    actual = norm_gate(x, gate, (weight, bias), heads, 64e-5)
    x, gate, weight, bias = wide(x, gate, weight, bias)
    assert_close(actual, norm_gate_reference(x, gate, (weight, bias), heads, 64e-5))
