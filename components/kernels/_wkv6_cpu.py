"""WKV-6 on a CPU: the recurrence in C++ (csrc/wkv6.cpp), forward and backward.

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
    return _native.unfit("wkv6", k)


def wkv6_cpu(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """r, k, w [T, H, K], v [T, H, V], all float32 or bfloat16, state [S, H, K, V] → [T, H, V], [S, H, K, V]."""
    apply: Callable[..., tuple[Tensor, Tensor]] = _Recurrence.apply
    return apply(r, k, v, w.float(), bonus.float(), state, lengths)


@cache
def _library() -> ctypes.CDLL:
    library = _native.library("wkv6")
    library.wkv6_interval.restype = ctypes.c_int64
    library.wkv6_shares.restype = ctypes.c_int64
    library.wkv6_shares.argtypes = _native.arguments("p llll i")
    library.wkv6_forward.argtypes = _native.arguments("i ppp ppp p llll i ppp")
    library.wkv6_backward.argtypes = _native.arguments("i ppp ppp p llll i ppp ppp ppp")
    return library


class _Recurrence(torch.autograd.Function):
    """Keeps its inputs, and the state every so many positions."""

    @staticmethod
    def forward(
        ctx: Any, r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, state: Tensor, lengths: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        inputs = [x.contiguous() for x in (r, k, v, w, bonus, state)]
        bounds, keep = _native.bounds(lengths), any(ctx.needs_input_grad)
        y, after, kept = torch.ops.aurora.wkv6_cpu(inputs, bounds, keep)
        if keep:
            ctx.save_for_backward(*inputs, bounds, kept)
            ctx.set_materialize_grads(False)
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_after: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, bounds, kept = ctx.saved_tensors
        r, k, v, w, bonus, state = inputs
        grad_y = torch.zeros_like(v) if grad_y is None else grad_y.to(v.dtype).contiguous()
        grad_after = None if grad_after is None else grad_after.contiguous()
        shared = _shared(inputs, bounds)
        shares = _library().wkv6_shares(*shared[7:])
        grad_r, grad_k, grad_w, grad_state = (torch.empty_like(x) for x in (r, k, w, state))
        grad_v, grad_bonus = v.new_empty(shares, *v.shape), w.new_empty(len(state), *bonus.shape)
        gradients = (grad_r, grad_k, grad_v, grad_w, grad_bonus, grad_state)
        _library().wkv6_backward(*shared, *(address(x) for x in (kept, grad_y, grad_after, *gradients)))
        whole = grad_v[0] if shares == 1 else grad_v.sum(0)
        return grad_r, grad_k, whole, grad_w, grad_bonus.sum(0), grad_state, None


def _forward(inputs: list[Tensor], bounds: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """[T, H, V], [S, H, K, V], and with `keep` the state every so many positions."""
    y, after = torch.empty_like(inputs[2]), torch.empty_like(inputs[5])
    steps = len(y) // _library().wkv6_interval() + len(after) if keep else 0
    kept = after.new_empty(steps, *after.shape[1:])
    _library().wkv6_forward(*_shared(inputs, bounds), address(y), address(after), address(kept if keep else None))
    return y, after, kept


# an operator of torch's, so that selective recomputing of activations sees it and keeps what it gave
_OPERATORS = torch.library.Library("aurora", "FRAGMENT")  # type: ignore[no-untyped-call]
_OPERATORS.define(  # type: ignore[no-untyped-call]
    "wkv6_cpu(Tensor[] inputs, Tensor bounds, bool keep) -> (Tensor, Tensor, Tensor)")
_OPERATORS.impl("wkv6_cpu", _forward, "CPU")  # type: ignore[no-untyped-call]


def _shared(inputs: list[Tensor], bounds: Tensor) -> tuple[Any, ...]:
    """What both passes are told first: the inputs, the bounds, the sizes S, H, K, V, and the threads."""
    half = inputs[0].dtype is torch.bfloat16
    return (int(half), *(address(x) for x in (*inputs, bounds)), *inputs[5].shape, _native.threads())
