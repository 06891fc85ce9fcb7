"""WKV-6 and WKV-7 on a CPU: the recurrences in C++ (csrc/wkv6.cpp, csrc/wkv7.cpp), forward and backward.

Shape letters: T packed positions, S sequences, H heads, K key width, V value width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _native
from ._native import address, library


def wkv6_cpu(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """r, k, w [T, H, K], v [T, H, V], all float32 or bfloat16, state [S, H, K, V] → [T, H, V], [S, H, K, V]."""
    apply: Callable[..., tuple[Tensor, Tensor]] = _Wkv6.apply
    return apply(r, k, v, w.float(), bonus.float(), state, lengths)


def wkv7_cpu(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """r, w, k, a, b [T, H, K], v [T, H, V], state [S, H, K, V] → [T, H, V], [S, H, K, V].

    All float32, or all of them but w and the state bfloat16.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _Wkv7.apply
    return apply(r, w.float(), k, v, a, b, state, lengths)


class _Wkv6(torch.autograd.Function):
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
        shared, grads = _shared(inputs, bounds), _given(v, grad_y, grad_after)
        shares = library("wkv6").wkv6_shares(*shared[7:])
        grad_r, grad_k, grad_w, grad_state = (torch.empty_like(x) for x in (r, k, w, state))
        grad_v, grad_bonus = v.new_empty(shares, *v.shape), w.new_empty(len(state), *bonus.shape)
        gradients = (grad_r, grad_k, grad_v, grad_w, grad_bonus, grad_state)
        library("wkv6").wkv6_backward(*shared, *map(address, (kept, *grads, *gradients)))
        return grad_r, grad_k, _summed(grad_v), grad_w, grad_bonus.sum(0), grad_state, None


def _forward6(inputs: list[Tensor], bounds: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """[T, H, V], [S, H, K, V], and with `keep` the state every so many positions."""
    y, after = torch.empty_like(inputs[2]), torch.empty_like(inputs[5])
    steps = len(y) // library("wkv6").wkv6_interval() + len(after) if keep else 0
    kept = after.new_empty(steps, *after.shape[1:])
    library("wkv6").wkv6_forward(*_shared(inputs, bounds), *map(address, (y, after, kept if keep else None)))
    return y, after, kept


# an operator of torch's, so that selective recomputing of activations sees it and keeps what it gave
_OPERATORS = torch.library.Library("aurora", "FRAGMENT")  # type: ignore[no-untyped-call]
_OPERATORS.define(  # type: ignore[no-untyped-call]
    "wkv6_cpu(Tensor[] inputs, Tensor bounds, bool keep) -> (Tensor, Tensor, Tensor)")
_OPERATORS.impl("wkv6_cpu", _forward6, "CPU")  # type: ignore[no-untyped-call]


class _Wkv7(torch.autograd.Function):
    """Keeps its inputs, what each position reads of the state, and the state every so many positions."""

    @staticmethod
    def forward(
        ctx: Any, r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor,
        lengths: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        inputs = [x.contiguous() for x in (r, w, k, v, a, b, state)]
        bounds = _native.bounds(lengths)
        y, after = torch.empty_like(inputs[3]), torch.empty_like(inputs[6])
        kept = reads = None
        if any(ctx.needs_input_grad):
            kept = after.new_empty(len(r) // library("wkv7").wkv7_interval() + len(lengths), *state.shape[1:])
            reads = after.new_empty(v.shape)
            ctx.save_for_backward(*inputs, bounds, kept, reads)
            ctx.set_materialize_grads(False)
        library("wkv7").wkv7_forward(*_shared(inputs, bounds), *map(address, (y, after, kept, reads)))
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_after: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, bounds, kept, reads = ctx.saved_tensors
        v, state = inputs[3], inputs[6]
        shared, grads = _shared(inputs, bounds), _given(v, grad_y, grad_after)
        shares = library("wkv7").wkv7_shares(*shared[8:])
        grad_r, grad_w, grad_k, grad_a, grad_b = (x.new_empty(shares, *x.shape) for x in (*inputs[:3], *inputs[4:6]))
        grad_v, grad_state = torch.empty_like(v), torch.empty_like(state)
        gradients = (grad_r, grad_w, grad_k, grad_v, grad_a, grad_b, grad_state)
        library("wkv7").wkv7_backward(*shared, *map(address, (kept, reads, *grads, *gradients)))
        r, w, k, a, b = map(_summed, (grad_r, grad_w, grad_k, grad_a, grad_b))
        return r, w, k, grad_v, a, b, grad_state, None


def _shared(inputs: list[Tensor], bounds: Tensor) -> tuple[Any, ...]:
    """What both passes are given first: the inputs, the bounds, the sizes S, H, K, V, and the threads."""
    half = inputs[0].dtype is torch.bfloat16
    return (int(half), *map(address, (*inputs, bounds)), *inputs[-1].shape, torch.get_num_threads())


def _given(v: Tensor, grad_y: Tensor | None, grad_after: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The gradients of the outputs as the kernels read them; none of the final state means zeros."""
    grad_y = torch.zeros_like(v) if grad_y is None else grad_y.to(v.dtype).contiguous()
    return grad_y, None if grad_after is None else grad_after.contiguous()


def _summed(shares: Tensor) -> Tensor:
    """A gradient that several threads have made in shares [shares, T, H, K]."""
    return shares[0] if len(shares) == 1 else shares.sum(0)
