"""What stands between the matrix products of RWKV-6, each in one pass over memory on a CPU.

All tensors are contiguous and of one dtype, float32 or bfloat16: their memory is read as such. What stood before the
first position of a sequence is `before` [S, C], or zero. Shape letters: T packed positions, S sequences, C width,
H heads, m mixtures.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._native import address, library


class Shifted(NamedTuple):
    """A row of positions, and what each has behind it."""

    sum: Tensor  # [T, C] what was normalised
    normal: Tensor  # [T, C]
    mixed: tuple[Tensor, ...]  # [T, C] each: between a position and the one before it


def norm_shift(
    x: Tensor, norm: tuple[Tensor, Tensor], ratios: Sequence[Tensor], cu_seqlens: Tensor, before: Tensor | None = None,
    *, delta: Tensor | None = None, gate: Tensor | None = None, eps: float = 1e-5,
) -> Shifted:
    """x [T, C], plus delta (times sigmoid(gate)), through a layer norm with weight and bias [C], mixed with the
    position before by every one of the ratios [C]. `cu_seqlens` [S + 1] lies on the CPU."""
    bounds = cu_seqlens.long().contiguous()
    sum_ = x if delta is None else torch.empty_like(x)
    normal = torch.empty_like(x)
    mixed = tuple(torch.empty_like(x) for _ in ratios)
    library("rwkv6_mix").rwkv6_norm_shift(
        *map(address, (x, delta, gate, *norm, before, bounds)), len(bounds) - 1, _pointers(ratios), len(ratios),
        address(sum_), address(normal), _pointers(mixed), x.shape[1], eps, x.dtype is torch.bfloat16,
        torch.get_num_threads(),
    )
    return Shifted(sum_, normal, mixed)


def mix_five(
    x: Tensor, ratios: Tensor, constants: Sequence[Tensor], cu_seqlens: Tensor, before: Tensor | None = None
) -> Tensor:
    """[5, T, C]: x [T, C] mixed with the position before by constants [C] plus ratios [5, T, C]."""
    bounds = cu_seqlens.long().contiguous()
    out = torch.empty_like(ratios)
    library("rwkv6_mix").rwkv6_mix_five(
        *map(address, (x, before, bounds)), len(bounds) - 1, address(ratios), _pointers(constants), address(out),
        x.shape[1], x.dtype is torch.bfloat16, torch.get_num_threads(),
    )
    return out


def norm_gate(x: Tensor, gate: Tensor, norm: tuple[Tensor, Tensor], heads: int, eps: float) -> Tensor:
    """[T, C]: x [T, C] through a group norm with weight and bias [C], times silu(gate)."""
    out = torch.empty_like(x)
    library("rwkv6_mix").rwkv6_norm_gate(
        *map(address, (x, gate, *norm, out)), *x.shape, heads, eps, x.dtype is torch.bfloat16, torch.get_num_threads()
    )
    return out


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * max(1, len(tensors)))(*(x.data_ptr() for x in tensors))
