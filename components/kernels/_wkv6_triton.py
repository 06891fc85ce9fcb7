"""WKV-6 in Triton: chunks in parallel over segments, and the recurrence for short sequences.

Shape letters: T packed positions, S sequences, G segments, H heads, K key width, V value width.

Where heads and sequences fill the device, each is one segment and the row is read once. Where they do not, sequences
are cut: `advance` finds what each segment does to a state, `link` carries the states over the segments, and only then
are outputs made. The backward pass keeps the inputs and the states between segments; it makes those between chunks
again, and goes through the segments from their ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _wkv6_kernels as kernels
from ._triton import CHUNK, LEVELS, Segments, interpreted, positions, segments, warps

SHORT = 8
"""Up to this length the recurrence is used."""


def wkv6_triton(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """r, k, w [T, H, K], v [T, H, V], bonus [H, K], state [S, H, K, V] float32 → [T, H, V], [S, H, K, V] float32."""
    apply: Callable[..., tuple[Tensor, Tensor]] = _Fused.apply
    return apply(r, k, v, w, bonus, state, lengths)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, state: Tensor, lengths: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        r, k, v, w, bonus, state = (x.contiguous() for x in (r, k, v, w, bonus, state))
        y, final = torch.empty_like(v), torch.empty_like(state)
        ctx.lengths = lengths
        ctx.set_materialize_grads(False)
        if max(lengths) <= SHORT:
            _recur(r, k, v, w, bonus, state, y, final, lengths)
            ctx.save_for_backward(r, k, v, w, bonus, state, None)
            return y, final
        parts = segments(lengths, r.shape[1], r.device)
        start, total = state, None
        if parts.split:
            local, total = _advance(k, v, w, parts, backward=False)
            start = _link(state, local, total, parts, backward=False)
        heads, keys, values = state.shape[1:]
        kernels.forward[(len(parts) * heads,)](
            r, k, v, w, bonus, start, y, final, parts.table, heads, keys, values, CHUNK, LEVELS,
            *_precision(v.dtype), num_warps=warps(keys, values),
        )
        ctx.save_for_backward(r, k, v, w, bonus, start, total)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        r, k, v, w, bonus, start, total = ctx.saved_tensors
        parts = segments(ctx.lengths, r.shape[1], r.device)
        dy = torch.zeros_like(v) if dy is None else dy.contiguous()
        dfinal = None if dfinal is None else dfinal.float().contiguous()
        if total is None and parts.split:  # the forward pass was the recurrence
            local, total = _advance(k, v, w, parts, backward=False)
            start = _link(start, local, total, parts, backward=False)
        end = dfinal
        if total is not None:
            local, _ = _advance(r, dy, w, parts, backward=True)
            end = _link(dfinal, local, total, parts, backward=True)
        states, _ = _states(k, v, w, start, parts, backward=False)
        dstates, dstate = _states(r, dy, w, end, parts, backward=True)
        heads, keys, values = start.shape[1:]
        dr, dk, dv, dw = (torch.empty_like(x) for x in (r, k, v, w))
        dbonus = torch.empty(len(parts.chunks), heads, keys, dtype=torch.float32, device=r.device)
        kernels.backward[(len(parts.chunks) * heads,)](
            r, k, v, w, bonus, dy, states, dstates, dr, dk, dv, dw, dbonus, parts.chunks,
            heads, keys, values, CHUNK, LEVELS, *_precision(v.dtype), num_warps=warps(keys, values), num_stages=1,
        )
        return dr, dk, dv, dw, dbonus.sum(0).to(bonus.dtype), dstate, None


def _recur(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, state: Tensor, y: Tensor, final: Tensor,
    lengths: tuple[int, ...],
) -> None:
    sequences, heads, keys, values = state.shape
    columns = 16
    kernels.recurrent[(sequences * heads * (values // columns),)](
        r, k, v, w, bonus, state, y, final, positions(lengths, r.device), heads, keys, values, columns,
        max(lengths) == 1, num_warps=1,
    )


def _advance(a: Tensor, x: Tensor, w: Tensor, parts: Segments, backward: bool) -> tuple[Tensor, Tensor]:
    """What every segment adds to a state [G, H, K, V] and its sum of log-decays [G, H, K]."""
    heads, keys, values = *a.shape[1:], x.shape[-1]
    end = torch.empty(len(parts), heads, keys, values, dtype=torch.float32, device=a.device)
    total = torch.empty(len(parts), heads, keys, dtype=torch.float32, device=a.device)
    kernels.advance[(len(parts) * heads,)](
        a, x, w, None, None, end, total, parts.table, heads, keys, values, CHUNK,
        backward, False, False, *_precision(x.dtype), num_warps=warps(keys, values),
    )
    return end, total


def _states(
    a: Tensor, x: Tensor, w: Tensor, start: Tensor | None, parts: Segments, backward: bool
) -> tuple[Tensor, Tensor]:
    """The states before every chunk [N, H, K, V], in what they are multiplied in; backward, those are gradients, and
    with them come the ones before every sequence [S, H, K, V]."""
    heads, keys, values = *a.shape[1:], x.shape[-1]
    dtype = torch.bfloat16 if x.dtype is torch.bfloat16 else torch.float32
    states = torch.empty(len(parts.chunks), heads, keys, values, dtype=dtype, device=a.device)
    outer = torch.empty(len(parts.bounds) - 1, heads, keys, values, dtype=torch.float32, device=a.device)
    kernels.advance[(len(parts) * heads,)](
        a, x, w, start, states, outer, None, parts.table, heads, keys, values, CHUNK,
        backward, start is not None, True, *_precision(x.dtype), num_warps=warps(keys, values),
    )
    return states, outer


def _link(outer: Tensor | None, local: Tensor, total: Tensor, parts: Segments, backward: bool) -> Tensor:
    """The states before every segment [G, H, K, V], or their gradients after it."""
    _, heads, keys, values = local.shape
    states = torch.empty_like(local)
    rows = 16
    kernels.link[((len(parts.bounds) - 1) * heads * (keys // rows),)](
        outer, local, total, states, parts.bounds, heads, keys, values, rows, backward, outer is not None,
    )
    return states


def _precision(dtype: torch.dtype) -> tuple[tl.dtype, str, bool]:
    """What products of matrices multiply in, how, and whether sums are exact.

    float16 inputs are multiplied in tf32, which has their mantissa and cannot overflow, since states and scores are no
    more bounded than a sum of products is. For float32 tf32 alone would be 1e-3 off; three products make up for it.
    """
    if interpreted():  # its product of bfloat16 is garbage
        return tl.float32, "ieee", True
    if dtype is torch.bfloat16:
        return tl.bfloat16, "ieee", False
    return tl.float32, "tf32" if dtype is torch.float16 else "tf32x3", True
