"""What a vision transformer that merges tokens computes: softmax attention of whole frames, and what stands between its
matrix products.

On a CPU, where no gradient is wanted, each is one pass in C++; else it is done by torch. Shape letters: N frames, P
patches, M tokens before a merge, G after it, r = M - G merged, A even and B odd tokens, H heads, K head width, W width.
"""

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from aurora.types import VisualTokens

from .._rows import take
from ._dense import dense, onednn
from ._native import address, library, serves


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """[N, M, H, K] each, and what is added to every score of a key [N, M] or nothing → [N, M, H * K].

    On a CPU with AVX-512, where no gradient is wanted, by our own kernel; else by torch.
    """
    if serves("attention", query, key, value) and library("attention").attention_supported():
        return _attend(query, key, value, bias)
    return attention_reference(query, key, value, bias)


def attention_reference(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by torch."""
    mask = None if bias is None else bias[:, None, None].to(query.dtype)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    frames, tokens, heads, width = query.shape
    strides = (ctypes.c_int64 * 9)(*query.stride()[:3], *key.stride()[:3], *value.stride()[:3])
    shift = None if bias is None else bias.to(torch.float32).contiguous()
    out = query.new_empty(frames, tokens, heads * width)
    library("attention").attention(
        *map(address, (query, key, value)), strides, address(shift), address(out), frames, heads, tokens, width,
        query.dtype == torch.bfloat16, torch.get_num_threads(),
    )
    return out


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[..., W] → [..., F]: x · weightᵀ + bias.

    In bfloat16 on a CPU by oneDNN's product with the bias in it: 7 % less than torch's, which lays the bias out first.
    In float32 by the faster library.
    """
    if x.dtype == torch.bfloat16 and serves("vision", x, weight, bias) and _onednn_takes_bfloat16():
        return onednn(x, weight, bias)
    return dense(x, weight, bias)


def _onednn_takes_bfloat16() -> bool:
    """False on processors without AVX-512 (or AVX-NE-CONVERT), where oneDNN has no such product."""
    return bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation; may write into `x`, which is its own from here on."""
    if not (serves("vision", x) and x.is_contiguous()):
        return F.gelu(x, approximate="tanh")
    library("vision").gelu_tanh(address(x), x.numel(), x.dtype == torch.bfloat16, torch.get_num_threads())
    return x


def mean_direction(keys: Tensor) -> Tensor:
    """[N, H, M, K] → [N, M, K] float32 of length one: the mean over the heads, whose products are cosines."""
    if not serves("vision", keys):
        return F.normalize(keys.float().mean(1), dim=-1)
    frames, heads, tokens, width = keys.shape
    out = torch.empty(frames, tokens, width, dtype=torch.float32, device=keys.device)
    library("vision").mean_direction(
        address(keys), keys.stride(0), keys.stride(2), keys.stride(1), address(out), frames, tokens, heads, width,
        keys.dtype == torch.bfloat16, torch.get_num_threads(),
    )
    return out


def match_pairs(scores: Tensor, remove: int) -> tuple[Tensor, Tensor, Tensor]:
    """[N, A, B] float32, how alike even and odd tokens are → the merge of the `remove` even ones that are most like an
    odd one into that one: survivors [N, G], which are the other even tokens and then the odd ones, each in their order,
    sources [N, r], and the survivors that those go into [N, r]. ValueError where that cannot be."""
    frames, even, odd = scores.shape
    rest = even - remove
    if odd == 0 or not 0 <= remove <= even:
        raise ValueError(f"{remove} of {even} tokens cannot go into {odd} others")
    if not (serves("vision", scores) and scores.is_contiguous() and scores.dtype == torch.float32):
        best, partner = scores.max(-1)  # [N, A]
        ranked = best.argsort(dim=-1, descending=True, stable=True)
        chosen, others = ranked[:, :remove], ranked[:, remove:].sort(-1).values
        odd_places = torch.arange(1, 2 * odd, 2, device=scores.device).expand(frames, -1)
        return torch.cat((others * 2, odd_places), dim=1), chosen * 2, partner.gather(1, chosen) + rest
    survivors, sources, into = (torch.empty(frames, count, dtype=torch.int64, device=scores.device)
                                for count in (rest + odd, remove, remove))
    library("vision").match_pairs(
        *map(address, (scores, survivors, sources, into)), frames, even, odd, remove, torch.get_num_threads())
    return survivors, sources, into


def absorb(tokens: VisualTokens, survivors: Tensor, sources: Tensor, into: Tensor) -> VisualTokens | None:
    """The tokens after a merge: `survivors` [N, G] and `sources` [N, r] index them, `into` [N, r] the survivors that
    the sources go into, all int64. Each survivor becomes the size-weighted mean. None where torch has to do it.

    ValueError for indices of another kind or number, IndexError where one names a token that does not exist.
    """
    features, size, owner = tokens
    (frames, count, width), kept = features.shape, survivors.shape[1]
    if sources.shape[1] != count - kept or sources.shape != into.shape:
        raise ValueError(f"a merge of {kept} + {sources.shape[1]} tokens is not one of {count}")
    indices = (owner, survivors, sources, into)
    if any(len(x) != frames or x.dtype is not torch.int64 for x in indices):
        raise ValueError(f"a merge of {frames} frames needs int64 indices of each of them, not "
                         f"{[(str(x.dtype), len(x)) for x in indices]}")
    if not (serves("vision", features) and size.dtype == torch.float32):
        return None
    given = [x.contiguous() for x in (features, size, owner, survivors, sources, into)]
    merged = VisualTokens(features.new_empty(frames, kept, width), size.new_empty(frames, kept),
                          torch.empty_like(given[2]))
    if not library("vision").absorb(
            *map(address, (*given, *merged)), frames, count, kept, owner.shape[1], width,
            features.dtype == torch.bfloat16, torch.get_num_threads()):
        raise IndexError(f"a merge of {count} tokens into {kept} names one that does not exist")
    return merged


def reorder(tokens: VisualTokens, order: Tensor) -> VisualTokens:
    """The tokens read in `order` [N, M], a permutation of each frame's. The compiled form raises IndexError for
    others."""
    features, size, owner = tokens
    frames, count, width = features.shape
    if not (serves("vision", features) and size.dtype == torch.float32):
        places = torch.arange(count, device=order.device).expand_as(order)
        place = torch.empty_like(order).scatter(1, order, places)
        return VisualTokens(take(features, order), size.gather(1, order), place.gather(1, owner))
    given = [x.contiguous() for x in (features, size, owner, order)]
    ordered = VisualTokens(torch.empty_like(given[0]), torch.empty_like(given[1]), torch.empty_like(given[2]))
    if not library("vision").reorder(
            *map(address, (*given, *ordered)), frames, count, owner.shape[1], width * features.element_size()):
        raise IndexError(f"an order of {count} tokens must name each of them once")
    return ordered
