"""What stands between the matrix products of a vision transformer that merges tokens.

On a CPU, where no gradient is wanted, each is one pass in C++; else it is done by torch. Shape letters: N frames, M
tokens before a merge, G after it, r = M - G merged, H heads, K head width, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .._rows import add_to, take
from ._dense import dense, onednn
from ._native import address, library, serves, threads


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[..., W] → [..., F]: x · weightᵀ + bias.

    In bfloat16 on a CPU by oneDNN's product with the bias in it: 7 % less than torch's, which lays the bias out first.
    In float32 by the faster library.
    """
    if x.dtype == torch.bfloat16 and serves("vision", x, weight, bias) and torch._C._has_mkldnn:
        return onednn(x, weight, bias)
    return dense(x, weight, bias)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation; may write into `x`, which is its own from here on."""
    if not (serves("vision", x) and x.is_contiguous()):
        return F.gelu(x, approximate="tanh")
    library("vision").gelu_tanh(address(x), x.numel(), x.dtype == torch.bfloat16, threads())
    return x


def merge_means(x: Tensor, size: Tensor, survivors: Tensor, sources: Tensor, into: Tensor) -> Tensor:
    """[N, M, W], sizes [N, M] → [N, G, W]: the size-weighted mean of every survivor and what goes into it.

    `survivors` [N, G] and `sources` [N, r] index the tokens, `into` [N, r] the survivors.
    """
    if not (serves("vision", x) and x.is_contiguous()):
        weight = size.unsqueeze(-1).to(x.dtype)
        total = add_to(take(weight, survivors), into, take(weight, sources))
        return add_to(take(x * weight, survivors), into, take(x * weight, sources)) / total
    frames, tokens, width = x.shape
    out = x.new_empty(frames, survivors.shape[1], width)
    given = (size.float().contiguous(), survivors.contiguous(), sources.contiguous(), into.contiguous())
    library("vision").merge_means(
        *map(address, (x, *given, out)), frames, tokens, survivors.shape[1], width, x.dtype == torch.bfloat16, threads()
    )
    return out


def mean_direction(keys: Tensor) -> Tensor:
    """[N, H, M, K] → [N, M, K] float32 of length one: the mean over the heads, whose products are cosines."""
    if not serves("vision", keys):
        return F.normalize(keys.float().mean(1), dim=-1)
    frames, heads, tokens, width = keys.shape
    out = torch.empty(frames, tokens, width, dtype=torch.float32)
    library("vision").mean_direction(
        address(keys), keys.stride(0), keys.stride(2), keys.stride(1), address(out), frames, tokens, heads, width,
        keys.dtype == torch.bfloat16, threads(),
    )
    return out
