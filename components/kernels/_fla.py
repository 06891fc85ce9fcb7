"""The operators of flash-linear-attention over our packed rows: a peer to compare with, and an alternative on a GPU.

Shape letters: T packed positions, S sequences, B sequences of one length L, H heads, K key width, V value width.

Only its chunked operators: `fused_recurrent_rwkv6` drops the gradient of the final state.
"""

from typing import Any

import torch
from fla.ops.rwkv6 import chunk_rwkv6
from fla.ops.rwkv7 import chunk_rwkv7
from torch import Tensor

from ._triton import positions
from ._wkv6_chunk import LARGEST_W


def wkv6_fla(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """r, k, w [T, H, K], v [T, H, V], bonus [H, K], state [S, H, K, V] → [T, H, V], [S, H, K, V]."""
    log_decay = -torch.exp(w.float().clamp(max=LARGEST_W))
    inputs = _batched(lengths, r=r, k=k, v=v, w=log_decay)
    y, after = chunk_rwkv6(**inputs, u=bonus, scale=1.0, initial_state=state, output_final_state=True)
    return y.flatten(0, 1), after


def wkv7_fla(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """r, w, k, a, b [T, H, K], v [T, H, V], state [S, H, K, V] → [T, H, V], [S, H, K, V]."""
    inputs = _batched(lengths, r=r, w=w.float(), k=k, v=v, a=a, b=b)
    y, after = chunk_rwkv7(**inputs, scale=1.0, initial_state=state, output_final_state=True)
    return y.flatten(0, 1), after


def _batched(lengths: tuple[int, ...], **tensors: Tensor) -> dict[str, Any]:
    """[T, ...] → [B, L, ...] where all sequences have one length, otherwise [1, T, ...] with their bounds."""
    if len(set(lengths)) == 1:
        return {name: x.view(len(lengths), -1, *x.shape[1:]) for name, x in tensors.items()}
    bounds = positions(lengths, next(iter(tensors.values())).device).long()
    return {name: x.unsqueeze(0) for name, x in tensors.items()} | {"cu_seqlens": bounds}
