"""WKV-6 as matrix products over chunks, forward and backward.

Shape letters: N chunks, H heads, n sub-chunks per chunk, c positions per sub-chunk, C = n · c, K key width,
V value width.

A pair of positions s < t is weighted with exp(L[t - 1] - L[s]), L the running sum of the log-decay. A product of
matrices needs that split into a factor of t and a factor of s, and neither may overflow:

- across sub-chunks the split is at the borders between them, where every exponent is ≤ 0;
- inside a sub-chunk of 8 it is at the middle, and the exponents that count span three log-decays to either side.
  Log-decays are kept ≥ -20 in float32 (a retention of 2e-9) and ≥ -200 in float64, far from either format's limits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._grid import ChunkGrid, chunk_grid, scan_backward, scan_forward

SUB_CHUNK = 8
LOWEST_LOG_DECAY = {torch.float32: -20.0, torch.float64: -200.0}


def wkv6_chunk(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """The chunked form: r, k, w [T, H, K], v [T, H, V], state [S, H, K, V] → [T, H, V], [S, H, K, V]."""
    heads, width = r.shape[1:]
    grid = chunk_grid(lengths, _chunk_size(max(lengths), width), heads, r.device)
    y, after = _Chunked.apply(r, k, v, w, bonus, state, grid)
    return y, after


def _chunk_size(longest: int, width: int) -> int:
    # measured on a CPU
    return 16


class _Scaled(NamedTuple):
    """The inputs on the grid [N, H, n, c, K], and what positions are scaled with."""

    r: Tensor
    k: Tensor
    v: Tensor  # [N, H, C, V]
    r_start: Tensor  # from the start of the sub-chunk to t
    k_end: Tensor  # from s to the end of the sub-chunk
    r_middle: Tensor
    k_middle: Tensor
    start: Tensor  # [N, H, n, 1, K] from the start of the chunk to that of the sub-chunk
    end: Tensor  # [N, H, n, 1, K] from the end of the sub-chunk to that of the chunk
    between: Tensor  # [N, H, n, n, 1, K] from the end of sub-chunk j to the start of i, at [i, j]
    total: Tensor  # [N, H, K, 1] over the whole chunk


def _scale(r: Tensor, k: Tensor, v: Tensor, w: Tensor, grid: ChunkGrid) -> _Scaled:
    lowest = LOWEST_LOG_DECAY[w.dtype]
    log_decay = torch.exp(w).neg_().clamp_(min=lowest)
    r, k, log_decay = (grid.scatter(x).unflatten(2, (-1, SUB_CHUNK)) for x in (r, k, log_decay))
    through = log_decay.cumsum(-2)  # [N, H, n, c, K] up to and with each position
    until = through - log_decay
    middle = through[..., SUB_CHUNK // 2 - 1, None, :]
    subs = through[..., -1:, :]  # [N, H, n, 1, K]
    ends = subs.cumsum(2)
    starts = torch.cat([torch.zeros_like(ends[:, :, :1]), ends[:, :, :-1]], dim=2)
    between = (starts.unsqueeze(3) - ends.unsqueeze(2)).clamp_(max=0)
    return _Scaled(
        r=r,
        k=k,
        v=grid.scatter(v),
        r_start=until.exp(),
        k_end=(subs - through).exp_(),
        r_middle=(until - middle).clamp_(max=-3 * lowest).exp_(),
        k_middle=(middle - through).clamp_(max=-3 * lowest).exp_(),
        start=starts.exp(),
        end=(ends[:, :, -1:] - ends).exp_(),
        between=between.exp_(),
        total=ends[:, :, -1, 0].exp().unsqueeze(-1),
    )


def _scores(x: _Scaled, bonus: Tensor) -> Tensor:
    """[N, H, C, C]: how much of position s each position t reads; the bonus on the diagonal."""
    chunks, heads, subs, size, _ = x.r.shape
    scores = x.r.new_zeros(chunks, heads, subs, size, subs, size)
    own = ((x.r * x.r_middle) @ (x.k * x.k_middle).mT).tril_(-1)
    own.diagonal(dim1=-2, dim2=-1).copy_((x.r * x.k * bonus[:, None, None]).sum(-1))
    scores.diagonal(dim1=2, dim2=4).copy_(own.permute(0, 1, 3, 4, 2))
    queries, keys = x.r * x.r_start, x.k * x.k_end
    for j in range(subs - 1):
        rows = queries[:, :, j + 1 :] * x.between[:, :, j + 1 :, j]
        scores[:, :, j + 1 :, :, j] = (rows.flatten(2, 3) @ keys[:, :, j].mT).unflatten(2, (-1, size))
    return scores.flatten(4, 5).flatten(2, 3)


class _Chunked(torch.autograd.Function):
    """Keeps its inputs and the states between chunks; computes the rest again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, state: Tensor, grid: ChunkGrid
    ) -> tuple[Tensor, Tensor]:
        x = _scale(r, k, v, w, grid)
        keys = (x.k * x.k_end * x.end).flatten(2, 3)  # [N, H, C, K]
        before, after = scan_forward(x.total, keys.mT @ x.v, state, grid)
        queries = (x.r * x.r_start * x.start).flatten(2, 3)
        y = grid.gather(_scores(x, bonus) @ x.v + queries @ before)
        ctx.save_for_backward(r, k, v, w, bonus, before, after)
        ctx.grid = grid
        ctx.set_materialize_grads(False)
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_after: Tensor | None) -> tuple[Tensor | None, ...]:
        r, k, v, w, bonus, before, after = ctx.saved_tensors
        grid: ChunkGrid = ctx.grid
        x = _scale(r, k, v, w, grid)
        grad_y = grid.scatter(torch.zeros_like(v) if grad_y is None else grad_y)  # [N, H, C, V]
        grad_scores = grad_y @ x.v.mT  # [N, H, C, C]

        queries = (x.r * x.r_start * x.start).flatten(2, 3)
        keys = (x.k * x.k_end * x.end).flatten(2, 3)
        grad_before, grad_state = scan_backward(x.total, queries.mT @ grad_y, grad_after, grid)
        grad_v = _scores(x, bonus).mT @ grad_y + keys @ grad_state

        from_before, from_after = grad_y @ before.mT, x.v @ grad_state.mT  # [N, H, C, K]
        grad_r, grad_k = _pair_gradients(
            x, grad_scores, from_before.view_as(x.r) * x.start, from_after.view_as(x.k) * x.end
        )
        # of the log-decay of a whole chunk: both what passed through it and what it added end with it
        handed = x.total.squeeze(-1) * (grad_state * before).sum(-1) + (keys * from_after).sum(-2)
        grad_log = _decay_gradient(x, grad_r, grad_k, handed)

        grad_own = grad_scores.diagonal(dim1=-2, dim2=-1).unsqueeze(-1).unflatten(2, x.r.shape[2:4])
        grad_bonus = (grad_own * x.r * x.k).sum((0, 2, 3))
        weighted = grad_own * bonus[:, None, None]
        grad_r = grid.gather((grad_r + weighted * x.k).flatten(2, 3))
        grad_k = grid.gather((grad_k + weighted * x.r).flatten(2, 3))
        log_decay = -torch.exp(w)
        grad_w = torch.where(log_decay < LOWEST_LOG_DECAY[w.dtype], 0.0, grid.gather(grad_log) * log_decay)
        grad_initial = torch.empty_like(after)
        grad_initial[grid.order] = grad_before[: len(after)]
        return grad_r, grad_k, grid.gather(grad_v), grad_w, grad_bonus, grad_initial, None


def _pair_gradients(x: _Scaled, grad_scores: Tensor, grad_r: Tensor, grad_k: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of r and k [N, H, n, c, K] without the bonus; those given came through the states, and are scaled up
    to the borders of the sub-chunk."""
    subs, size = x.r.shape[2:4]
    pairs = grad_scores.unflatten(3, (subs, size)).unflatten(2, (subs, size))  # [N, H, n, c, n, c]
    queries, keys = x.r * x.r_start, x.k * x.k_end
    for j in range(subs - 1):
        pair = pairs[:, :, j + 1 :, :, j].flatten(2, 3)  # [N, H, (n - j - 1) c, c]
        between = x.between[:, :, j + 1 :, j]
        grad_r[:, :, j + 1 :] += (pair @ keys[:, :, j]).unflatten(2, (-1, size)) * between
        grad_k[:, :, j] += pair.mT @ (queries[:, :, j + 1 :] * between).flatten(2, 3)
    own = pairs.diagonal(dim1=2, dim2=4).permute(0, 1, 4, 2, 3).tril(-1)  # [N, H, n, c, c]
    grad_r = grad_r * x.r_start + (own @ (x.k * x.k_middle)) * x.r_middle
    grad_k = grad_k * x.k_end + (own.mT @ (x.r * x.r_middle)) * x.k_middle
    return grad_r, grad_k


def _decay_gradient(x: _Scaled, grad_r: Tensor, grad_k: Tensor, handed: Tensor) -> Tensor:
    """[N, H, C, K], of the log-decays; `handed` [N, H, K] is the gradient of their sum.

    r_t enters with exp(L[t - 1]) and k_s with exp(-L[s]), so the gradient of L[p] is r · dr at p + 1 minus k · dk at
    p, and that of a log-decay is the sum of those from its position on.
    """
    gain = (x.r * grad_r).flatten(2, 3)
    loss = (x.k * grad_k).flatten(2, 3)
    from_here_on = torch.ones(gain.shape[2], gain.shape[2], dtype=gain.dtype, device=gain.device).triu_()
    return from_here_on @ (gain - loss) - gain + handed.unsqueeze(2)
