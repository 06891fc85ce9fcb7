"""Softmax attention of whole frames, as a vision transformer needs it.

Shape letters: N frames, M tokens, H heads, K head width.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from ._native import address, library, serves, threads


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """[N, M, H, K] each, and what is added to every score of a key [N, M] or nothing → [N, M, H * K].

    On a CPU with AVX-512, where no gradient is wanted, by our own kernel; else by torch.
    """
    if serves("attention", query, key, value) and library("attention").attention_supported():
        return _native(query, key, value, bias)
    return attention_reference(query, key, value, bias)


def attention_reference(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by torch."""
    mask = None if bias is None else bias[:, None, None].to(query.dtype)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


def _native(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    frames, tokens, heads, width = query.shape
    strides = (ctypes.c_int64 * 9)(*(stride for x in (query, key, value) for stride in x.stride()[:3]))
    shift = None if bias is None else bias.float().contiguous()
    out = query.new_empty(frames, tokens, heads * width)
    library("attention").attention(
        *map(address, (query, key, value)), strides, address(shift), address(out), frames, heads, tokens, width,
        query.dtype == torch.bfloat16, threads(),
    )
    return out
