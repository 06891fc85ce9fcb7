"""WKV-7 on a CPU: the recurrence in C++ (csrc/wkv7.cpp), forward and backward.

Shape letters: T packed positions, S sequences, H heads, K key width, V value width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _native
from ._native import address


def unfit(k: Tensor, v: Tensor) -> str | None:
    """Why the C++ recurrence cannot take these; None when it can."""
    return _native.unfit("wkv7", k)


def wkv7_cpu(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """r, w, k, a, b [T, H, K], v [T, H, V], state [S, H, K, V] → [T, H, V], [S, H, K, V].

    All float32, or all of them but w and the state bfloat16.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _Recurrence.apply
    return apply(r, w.float(), k, v, a, b, state, lengths)


@cache
def _library() -> ctypes.CDLL:
    library = _native.library("wkv7")
    library.wkv7_interval.restype = ctypes.c_int64
    library.wkv7_shares.restype = ctypes.c_int64
    library.wkv7_shares.argtypes = _native.arguments("p llll i")
    library.wkv7_forward.argtypes = _native.arguments("i pppppp p p llll i pppp")
    library.wkv7_backward.argtypes = _native.arguments("i pppppp p p llll i pppp pppppp p")
    return library


class _Recurrence(torch.autograd.Function):
    """Keeps its inputs, what each position reads of the state, and the state every so many positions."""

    @staticmethod
    def forward(
        ctx: Any,
        r: Tensor,
        w: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        state: Tensor,
        lengths: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        library = _library()
        inputs = [x.contiguous() for x in (r, w, k, v, a, b, state)]
        bounds = _native.bounds(lengths)
        y, after = torch.empty_like(inputs[3]), torch.empty_like(inputs[6])
        kept = reads = None
        if any(ctx.needs_input_grad):
            kept = after.new_empty(len(r) // library.wkv7_interval() + len(lengths), *state.shape[1:])
            reads = after.new_empty(v.shape)
            ctx.save_for_backward(*inputs, bounds, kept, reads)
            ctx.set_materialize_grads(False)
        library.wkv7_forward(*_shared(inputs, bounds), *(address(x) for x in (y, after, kept, reads)))
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_after: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, bounds, kept, reads = ctx.saved_tensors
        v, state = inputs[3], inputs[6]
        grad_y = torch.zeros_like(v) if grad_y is None else grad_y.to(v.dtype).contiguous()
        grad_after = None if grad_after is None else grad_after.contiguous()
        shared = _shared(inputs, bounds)
        shares = _library().wkv7_shares(*shared[8:])
        grad_r, grad_w, grad_k, grad_a, grad_b = (x.new_empty(shares, *x.shape) for x in (*inputs[:3], *inputs[4:6]))
        grad_v, grad_state = torch.empty_like(v), torch.empty_like(state)
        gradients = (grad_r, grad_w, grad_k, grad_v, grad_a, grad_b, grad_state)
        _library().wkv7_backward(*shared, *(address(x) for x in (kept, reads, grad_y, grad_after, *gradients)))
        r, w, k, a, b = (x[0] if shares == 1 else x.sum(0) for x in (grad_r, grad_w, grad_k, grad_a, grad_b))
        return r, w, k, grad_v, a, b, grad_state, None


def _shared(inputs: list[Tensor], bounds: Tensor) -> tuple[Any, ...]:
    """What both passes are told first: the inputs, the bounds, the sizes S, H, K, V, and the threads."""
    half = inputs[0].dtype is torch.bfloat16
    return (int(half), *(address(x) for x in (*inputs, bounds)), *inputs[6].shape, _native.threads())
