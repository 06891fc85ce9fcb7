"""What stands between the matrix products of RWKV-6: each in one pass over memory on a CPU, with its plain twin.

Shape letters: T packed positions, S sequences, C width, H heads, m mixtures. What stood before the first position of
a sequence is `before` [S, C], or zero.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._native import address, library, serves, threads


class Shifted(NamedTuple):
    """A row of positions, and what each has behind it."""

    sum: Tensor  # [T, C] what was normalised
    normal: Tensor  # [T, C]
    mixed: tuple[Tensor, ...]  # [T, C] each: between a position and the one before it


def norm_shift(
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
    """x [T, C], plus delta (times sigmoid(gate)), through a layer norm with weight and bias [C], mixed with the
    position before by every one of the ratios [C]. `cu_seqlens` [S + 1] lies on the CPU."""
    given = [tensor for tensor in (x, delta, gate, *norm, *ratios, before) if tensor is not None]
    if not _serves(*given):
        return norm_shift_reference(x, norm, ratios, cu_seqlens, before, delta=delta, gate=gate, eps=eps)
    bounds = cu_seqlens.long().contiguous()
    sum_ = x if delta is None else torch.empty_like(x)
    normal = torch.empty_like(x)
    mixed = tuple(torch.empty_like(x) for _ in ratios)
    library("rwkv6_mix").rwkv6_norm_shift(
        *map(address, (x, delta, gate, *norm, before, bounds)), len(bounds) - 1, _pointers(ratios), len(ratios),
        address(sum_), address(normal), _pointers(mixed), x.shape[1], eps, x.dtype is torch.bfloat16, threads(),
    )
    return Shifted(sum_, normal, mixed)


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


def mix_five(
    x: Tensor, ratios: Tensor, constants: Sequence[Tensor], cu_seqlens: Tensor, before: Tensor | None = None
) -> Tensor:
    """[5, T, C]: x [T, C] mixed with the position before by constants [C] plus ratios [5, T, C]."""
    if not _serves(x, ratios, *constants, *(() if before is None else (before,))):
        return mix_five_reference(x, ratios, constants, cu_seqlens, before)
    bounds = cu_seqlens.long().contiguous()
    out = torch.empty_like(ratios)
    library("rwkv6_mix").rwkv6_mix_five(
        *map(address, (x, before, bounds)), len(bounds) - 1, address(ratios), _pointers(constants), address(out),
        x.shape[1], x.dtype is torch.bfloat16, threads(),
    )
    return out


def mix_five_reference(
    x: Tensor, ratios: Tensor, constants: Sequence[Tensor], cu_seqlens: Tensor, before: Tensor | None = None
) -> Tensor:
    """The same by torch."""
    difference = shift(x, cu_seqlens, before) - x
    return torch.stack([torch.addcmul(x, difference, r + c) for r, c in zip(ratios, constants, strict=True)])


def norm_gate(x: Tensor, gate: Tensor, norm: tuple[Tensor, Tensor], heads: int, eps: float) -> Tensor:
    """[T, C]: x [T, C] through a group norm with weight and bias [C], times silu(gate)."""
    if not _serves(x, gate, *norm):
        return norm_gate_reference(x, gate, norm, heads, eps)
    out = torch.empty_like(x)
    library("rwkv6_mix").rwkv6_norm_gate(
        *map(address, (x, gate, *norm, out)), *x.shape, heads, eps, x.dtype is torch.bfloat16, threads()
    )
    return out


def norm_gate_reference(x: Tensor, gate: Tensor, norm: tuple[Tensor, Tensor], heads: int, eps: float) -> Tensor:
    """The same by torch."""
    return F.group_norm(x, heads, *norm, eps) * F.silu(gate)


def shift(x: Tensor, cu_seqlens: Tensor, before: Tensor | None) -> Tensor:
    """[T, C]: what stood before each position."""
    first = cu_seqlens[:-1].to(x.device)
    if before is None:
        before = x.new_zeros(len(first), x.shape[-1])
    return torch.cat([x[:1], x[:-1]]).index_copy(0, first, before.to(x.dtype))


def _serves(*tensors: Tensor) -> bool:
    return serves("rwkv6_mix", *tensors) and all(x.is_contiguous() for x in tensors)


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * max(1, len(tensors)))(*(x.data_ptr() for x in tensors))
