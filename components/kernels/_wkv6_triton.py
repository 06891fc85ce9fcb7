"""WKV-6 in Triton: chunks in parallel over segments, and the recurrence for short sequences.

Shape letters: T packed positions, S sequences, G segments, H heads, K key width, V value width.

Where heads and sequences fill the device, each is one segment and the row is read once. Where they do not, sequences
are cut: `advance` finds what each segment does to a state, `link` carries the states over the segments, and only then
are outputs made. The backward pass keeps the inputs and the states between segments; it makes those between chunks
again, and goes through the segments from their ends.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _wkv6_kernels as kernels
from ._triton import device_of
from ._triton_plan import SHORT, Plan, link, plan, recur


def wkv6_triton(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """r, k, w [T, H, K], v [T, H, V], bonus [H, K], state [S, H, K, V] float32 → [T, H, V], [S, H, K, V] float32."""
    apply: Callable[..., tuple[Tensor, Tensor]] = _Fused.apply
    with device_of(v):
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
        start, total = state, None
        if max(lengths) <= SHORT:
            recur(kernels.recurrent, (r, k, v, w, bonus), state, y, final, lengths)
        else:
            row = plan(lengths, v, r, k)
            if row.parts.split:
                local, total = _advance(k, v, w, row, backward=False)
                start = link(kernels.link, state, local, total, row, blocks=row.sizes[1], backward=False)
            kernels.forward[row.segments](
                r, k, v, w, bonus, start, y, final, row.parts.table, *row.sizes, row.levels, *row.numbers, **row.through
            )
        ctx.save_for_backward(r, k, v, w, bonus, start, total)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        r, k, v, w, bonus, start, total = ctx.saved_tensors
        with device_of(v):
            row = plan(ctx.lengths, v, r, k)
            dy = torch.zeros_like(v) if dy is None else dy.contiguous()
            end = None if dfinal is None else dfinal.contiguous()
            if total is not None:
                local, _ = _advance(r, dy, w, row, backward=True)
                end = link(kernels.link, end, local, total, row, blocks=row.sizes[1], backward=True)
            states, _ = _states(k, v, w, start, row, backward=False)
            dstates, dstate = _states(r, dy, w, end, row, backward=True)
            dr, dk, dv, dw = (torch.empty_like(x) for x in (r, k, v, w))
            dbonus = torch.empty(len(row.parts.chunks), *bonus.shape, dtype=torch.float32, device=r.device)
            kernels.backward[row.chunks](
                r, k, v, w, bonus, dy, states, dstates, dr, dk, dv, dw, dbonus, row.parts.chunks,
                *row.sizes, row.levels, *row.numbers, **row.once,
            )
        return dr, dk, dv, dw, dbonus.sum(0).to(bonus.dtype), dstate, None


def _advance(a: Tensor, x: Tensor, w: Tensor, row: Plan, backward: bool) -> tuple[Tensor, Tensor]:
    """What every segment adds to a state [G, H, K, V] and its sum of log-decays [G, H, K]."""
    end = row.states(len(row.parts))
    total = torch.empty(end.shape[:3], dtype=torch.float32, device=a.device)
    kernels.advance[row.segments](
        a, x, w, None, None, end, total, row.parts.table, *row.sizes, backward, False, False,
        *row.numbers, **row.through,
    )
    return end, total


def _states(
    a: Tensor, x: Tensor, w: Tensor, start: Tensor | None, row: Plan, backward: bool
) -> tuple[Tensor, Tensor]:
    """The states before every chunk [N, H, K, V], in what they are multiplied in; backward, those are gradients, and
    with them come the ones before every sequence [S, H, K, V]."""
    states, outer = row.states(len(row.parts.chunks), row.narrow), row.states(len(row.parts.bounds) - 1)
    kernels.advance[row.segments](
        a, x, w, start, states, outer, None, row.parts.table, *row.sizes, backward, start is not None, True,
        *row.numbers, **row.through,
    )
    return states, outer
