"""WKV-6 as matrix products over chunks, forward and backward.

Shape letters: T packed positions, S sequences, N chunks, H heads, n sub-chunks per chunk, c positions per sub-chunk,
C = n · c, K key width, V value width.

A pair of positions s < t is weighted with exp(L[t - 1] - L[s]), L the running sum of the log-decay. A product of
matrices needs that split into a factor of t and a factor of s, and neither may overflow:

- across sub-chunks the split is at the borders between them, where every exponent is ≤ 0;
- inside a sub-chunk of 8 it is at the middle, and the exponents span four log-decays to either side. Log-decays are
  kept ≥ -20 in float32 (a retention of 2e-9) and ≥ -150 in float64, so that these stay within the format.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._grid import ChunkGrid, chunk_grid, scan_backward, scan_forward

# exp(-exp(10)) is 0 in every format, while the gradient of exp(-exp(w)) turns NaN from w = 89 on
LARGEST_W = 10.0
SUB_CHUNK = 8
LOWEST_LOG_DECAY = {torch.float32: -20.0, torch.float64: -150.0}


def wkv6_chunk(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """The chunked form: r, k, w [T, H, K], v [T, H, V], state [S, H, K, V] → [T, H, V], [S, H, K, V]."""
    # measured on a CPU: 8 and 16 are alike, 32 is slower; elsewhere each step of the scan costs a launch
    grid = chunk_grid(lengths, 16 if r.device.type == "cpu" else 64, r.shape[1], r.device)
    apply: Callable[..., tuple[Tensor, Tensor]] = _Chunked.apply
    return apply(r, k, v, w.clamp(max=LARGEST_W), bonus, state, grid)


class _Scaled(NamedTuple):
    """The inputs on the grid [N, H, n, c, K], and scaled by the decay between positions and marks."""

    r: Tensor
    k: Tensor
    v: Tensor  # [N, H, C, V]
    from_middle: Tensor  # [N, H, n, c, K] from the middle of the sub-chunk to before each position
    to_middle: Tensor  # [N, H, n, c, K] from each position to the middle
    r_middle: Tensor  # r · from_middle
    k_middle: Tensor  # k · to_middle
    half: Tensor  # [N, H, n, 1, K] from the start of the sub-chunk to its middle
    rest: Tensor  # [N, H, n, 1, K] from the middle to the end
    queries: Tensor  # r from the start of the sub-chunk
    keys: Tensor  # k to the end of the sub-chunk
    start: Tensor  # [N, H, n, 1, K] from the start of the chunk to that of the sub-chunk
    end: Tensor  # [N, H, n, 1, K] from the end of the sub-chunk to that of the chunk
    between: Tensor  # [N, H, n, n, 1, K] from the end of sub-chunk j to the start of i, at [i, j]
    total: Tensor  # [N, H, K, 1] over the whole chunk


def _scale(r: Tensor, k: Tensor, v: Tensor, w: Tensor, grid: ChunkGrid) -> _Scaled:
    log_decay = torch.exp(w).neg_().clamp_(min=LOWEST_LOG_DECAY[w.dtype])
    r, k, log_decay = (_subdivide(grid.scatter(x)) for x in (r, k, log_decay))
    through = log_decay.cumsum(-2)  # [N, H, n, c, K] up to and with each position
    middle = through[..., SUB_CHUNK // 2 - 1, None, :]
    subs = through[..., -1:, :]  # [N, H, n, 1, K]
    ends = subs.cumsum(2)
    starts = torch.cat([torch.zeros_like(ends[:, :, :1]), ends[:, :, :-1]], dim=2)
    half, rest = middle.exp(), (subs - middle).exp_()
    to_middle = (middle - through).exp_()
    from_middle = (through - middle).sub_(log_decay).exp_()
    r_middle, k_middle = r * from_middle, k * to_middle
    return _Scaled(
        r=r,
        k=k,
        v=grid.scatter(v),
        from_middle=from_middle,
        to_middle=to_middle,
        r_middle=r_middle,
        k_middle=k_middle,
        half=half,
        rest=rest,
        queries=r_middle * half,
        keys=k_middle * rest,
        start=starts.exp(),
        end=(ends[:, :, -1:] - ends).exp_(),
        between=(starts.unsqueeze(3) - ends.unsqueeze(2)).clamp_(max=0).exp_(),
        total=ends[:, :, -1, 0].exp().unsqueeze(-1),
    )


def _subdivide(x: Tensor) -> Tensor:
    """[N, H, C, K] → [N, H, n, c, K]."""
    return x.view(*x.shape[:2], -1, SUB_CHUNK, x.shape[-1])


def _scores(x: _Scaled, bonus: Tensor) -> Tensor:
    """[N, H, C, C]: how much of position s each position t reads; the bonus on the diagonal."""
    chunks, heads, subs, size, _ = x.r.shape
    scores = x.r.new_zeros(chunks, heads, subs, size, subs, size)
    own = (x.r_middle @ x.k_middle.mT).tril_(-1)
    own.diagonal(dim1=-2, dim2=-1).copy_((x.r * bonus[:, None, None]).mul_(x.k).sum(-1))
    for j in range(subs):
        scores[:, :, j, :, j] = own[:, :, j]
        later = x.queries[:, :, j + 1 :] * x.between[:, :, j + 1 :, j]
        scores[:, :, j + 1 :, :, j] = _subdivide(later.flatten(2, 3) @ x.keys[:, :, j].mT)
    return scores.flatten(4, 5).flatten(2, 3)


class _Chunked(torch.autograd.Function):
    """Keeps its inputs, the scores, and the states between chunks; scales again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, state: Tensor, grid: ChunkGrid
    ) -> tuple[Tensor, Tensor]:
        x = _scale(r, k, v, w, grid)
        keys = (x.keys * x.end).flatten(2, 3)  # [N, H, C, K]
        before, after = scan_forward(x.total, keys.mT @ x.v, state, grid)
        scores = _scores(x, bonus)
        queries = (x.queries * x.start).flatten(2, 3)
        y = grid.gather((scores @ x.v).add_(queries @ before))
        ctx.save_for_backward(r, k, v, w, bonus, scores, before)
        ctx.grid = grid
        ctx.set_materialize_grads(False)
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_after: Tensor | None) -> tuple[Tensor | None, ...]:
        r, k, v, w, bonus, scores, before = ctx.saved_tensors
        grid: ChunkGrid = ctx.grid
        x = _scale(r, k, v, w, grid)
        grad_y = grid.scatter(torch.zeros_like(v) if grad_y is None else grad_y)  # [N, H, C, V]
        grad_scores = grad_y @ x.v.mT  # [N, H, C, C]

        queries, keys = (x.queries * x.start).flatten(2, 3), (x.keys * x.end).flatten(2, 3)
        grad_initial, grad_state = scan_backward(x.total, queries.mT @ grad_y, grad_after, grid)
        grad_v = (scores.mT @ grad_y).add_(keys @ grad_state)

        from_before, from_after = grad_y @ before.mT, x.v @ grad_state.mT  # [N, H, C, K]
        # of the log-decay of a whole chunk: both what passed through it and what it added end with it
        handed = x.total.squeeze(-1) * (grad_state * before).sum(-1) + (keys * from_after).sum(-2)
        grad_r, grad_k = _pair_gradients(
            x, grad_scores, _subdivide(from_before).mul_(x.start), _subdivide(from_after).mul_(x.end)
        )
        grad_log = _decay_gradient(x, grad_r, grad_k, handed)
        grad_own = grad_scores.diagonal(dim1=-2, dim2=-1).contiguous()  # [N, H, C]
        grad_bonus = (grad_own.unsqueeze(-2) @ (x.r * x.k).flatten(2, 3)).sum((0, 2))
        weighted = _subdivide(grad_own.unsqueeze(-1) * bonus[:, None])

        log_decay = torch.exp(w).neg_()
        grad_w = grid.gather(grad_log).mul_(log_decay).masked_fill_(log_decay < LOWEST_LOG_DECAY[w.dtype], 0)
        return (
            grid.gather(grad_r.addcmul_(weighted, x.k)),
            grid.gather(grad_k.addcmul_(weighted, x.r)),
            grid.gather(grad_v),
            grad_w,
            grad_bonus,
            grad_initial,
            None,
        )


def _pair_gradients(x: _Scaled, grad_scores: Tensor, grad_r: Tensor, grad_k: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of r and k [N, H, n, c, K] without the bonus; those given came through the states, are of `queries`
    and `keys`, and are added to in place."""
    subs, size = x.r.shape[2:4]
    pairs = grad_scores.view(*grad_scores.shape[:2], subs, size, subs, size)
    own = torch.stack([pairs[:, :, j, :, j] for j in range(subs)], dim=2).tril_(-1)  # [N, H, n, c, c]
    for j in range(subs - 1):
        pair = pairs[:, :, j + 1 :, :, j].flatten(2, 3)  # [N, H, (n - j - 1) c, c]
        between = x.between[:, :, j + 1 :, j]
        grad_r[:, :, j + 1 :].addcmul_(_subdivide(pair @ x.keys[:, :, j]), between)
        grad_k[:, :, j] += pair.mT @ (x.queries[:, :, j + 1 :] * between).flatten(2, 3)
    grad_r = (own @ x.k_middle).addcmul_(grad_r, x.half).mul_(x.from_middle)
    grad_k = (own.mT @ x.r_middle).addcmul_(grad_k, x.rest).mul_(x.to_middle)
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
