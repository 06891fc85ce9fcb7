"""WKV-7 in Triton: chunks in parallel over segments, and the recurrence for short sequences.

Shape letters: T packed positions, S sequences, G segments, H heads, K key width, V value width.

As in `_wkv6_triton`, a sequence is cut into segments only where heads and sequences do not fill the device. What a
segment does to a state is then a matrix [K, K] and what it adds: two passes, one from the identity, one from zeros.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _wkv7_backward as gradients
from . import _wkv7_kernels as kernels
from ._triton import device_of, interpreted
from ._triton_plan import SHORT, Plan, link, plan, recur

LEVELS = 4
"""Chunks of 16 positions: with 32 the products of a chunk do not fit in the registers."""


def wkv7_triton(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """r, w, k, a, b [T, H, K], v [T, H, V], state [S, H, K, V] float32 → [T, H, V], [S, H, K, V] float32."""
    apply: Callable[..., tuple[Tensor, Tensor]] = _Fused.apply
    with device_of(v):
        return apply(r, w, k, v, a, b, state, lengths)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor,
        lengths: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        r, w, k, v, a, b, state = (x.contiguous() for x in (r, w, k, v, a, b, state))
        y, final = torch.empty_like(v), torch.empty_like(state)
        ctx.lengths = lengths
        ctx.set_materialize_grads(False)
        start, maps = state, None
        if max(lengths) <= SHORT:
            recur(kernels.recurrent, (r, w, k, v, a, b), state, y, final, lengths)
        else:
            row = plan(lengths, v, r, k, a, b, narrow_levels=LEVELS)
            if row.parts.split:
                local, maps = _alone(w, k, v, a, b, row)
                start = _link(state, local, maps, row, backward=False)
            kernels.forward[row.segments](
                r, w, k, v, a, b, start, y, final, None, None, row.parts.table, *row.sizes, row.levels,
                True, False, False, *row.numbers, _inverse(row), **row.through,
            )
        ctx.save_for_backward(r, w, k, v, a, b, start, maps)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        r, w, k, v, a, b, start, maps = ctx.saved_tensors
        with device_of(v):
            row = plan(ctx.lengths, v, r, k, a, b, narrow_levels=LEVELS)
            dy = torch.zeros_like(v) if dy is None else dy.contiguous()
            end = None if dfinal is None else dfinal.contiguous()
            if maps is not None:
                local = row.states(len(row.parts))
                _retreat(r, w, a, b, dy, None, local, None, None, row)
                end = _link(end, local, maps, row, backward=True)
            chunks = len(row.parts.chunks)
            states, dstates = row.states(chunks, row.narrow), row.states(chunks, row.narrow)
            dstate = row.states(len(ctx.lengths))
            u, du = torch.empty_like(v, dtype=row.narrow), torch.empty_like(v, dtype=row.narrow)
            kernels.forward[row.segments](
                None, w, k, v, a, b, start, None, None, states, u, row.parts.table, *row.sizes, row.levels,
                False, True, False, *row.numbers, _inverse(row), **row.through,
            )
            _retreat(r, w, a, b, dy, end, dstate, dstates, du, row)
            dr, dw, dk, dv, da, db = (torch.empty_like(x) for x in (r, w, k, v, a, b))
            gradients.backward[row.chunks](
                r, w, k, v, a, b, dy, states, dstates, u, du, dr, dw, dk, dv, da, db, row.parts.chunks,
                *row.sizes, row.levels, *row.numbers, **row.once,
            )
        return dr, dw, dk, dv, da, db, dstate, None


def _alone(w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, row: Plan) -> tuple[Tensor, Tensor]:
    """What every segment adds to a state [G, H, K, V], and the matrix that it multiplies it with [G, H, K, K]."""
    heads, keys, _, chunk = row.sizes
    local = row.states(len(row.parts))
    maps = local.new_empty(len(row.parts), heads, keys, keys)
    for end, width, identity in ((local, row.sizes[2], False), (maps, keys, True)):
        kernels.forward[row.segments](
            None, w, k, v, a, b, None, None, end, None, None, row.parts.table, heads, keys, width, chunk, row.levels,
            False, False, identity, *row.numbers, _inverse(row), **row.through,
        )
    return local, maps


def _retreat(
    r: Tensor, w: Tensor, a: Tensor, b: Tensor, dy: Tensor, start: Tensor | None, end: Tensor, states: Tensor | None,
    du: Tensor | None, row: Plan,
) -> None:
    gradients.retreat[row.segments](
        r, w, a, b, dy, start, end, states, du, row.parts.table, *row.sizes, row.levels,
        start is not None, states is not None, *row.numbers, _inverse(row), **row.through,
    )


def _link(outer: Tensor | None, local: Tensor, maps: Tensor, row: Plan, backward: bool) -> Tensor:
    precision = "ieee" if interpreted() else "tf32x3"
    return link(kernels.link, outer, local, maps, row, precision, blocks=row.sizes[2], backward=backward)


def _inverse(row: Plan) -> str:
    """How inverses are multiplied: in bfloat16 the errors of its levels would add up."""
    return "tf32" if row.narrow is torch.bfloat16 and not interpreted() else row.numbers[1]
