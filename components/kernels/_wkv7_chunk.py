"""WKV-7 as matrix products over chunks, in torch; autograd takes the gradients.

Shape letters: T packed positions, S sequences, N chunks, H heads, C positions per chunk, K key width, V value width.

What position t reads of the state, u_t = a_t s_{t-1}, depends on what the positions before it have read:

    u_t = a_t exp(L_{t-1}) s_0 + sum over q < t of a_t exp(L_{t-1} - L_q) (b_qᵀ u_q + k_qᵀ v_q)

with L the running sum of the log-decay and s_0 the state before the chunk. So u solves a triangular system per chunk
(the UT transform of arXiv 2406.06484), and a chunk as a whole is an affine map of s_0.

A decay between two positions is split at a border that lies between them: neighbouring positions are paired first, then
neighbouring pairs, up to the halves of the chunk. Exponents are ≤ 0 and sums of numbers of one sign, so no decay is too
strong, and a weak one is not lost next to a strong one.
"""

import torch
from torch import Tensor

from ._grid import ChunkGrid, chunk_grid


def wkv7_chunk(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """The chunked form: r, w, k, a, b [T, H, K], v [T, H, V], state [S, H, K, V] → [T, H, V], [S, H, K, V]."""
    # as for WKV-6: 16 on a CPU, elsewhere each step of the scan costs a launch
    grid = chunk_grid(lengths, 16 if r.device.type == "cpu" else 64, r.shape[1], r.device)
    r, w, k, v, a, b = (grid.scatter(x) for x in (r, w, k, v, a, b))
    through, before, to_end = w.cumsum(-2), _up_to(w), _up_to(w.flip(-2)).flip(-2)  # [N, H, C, K]
    ab, ak, rb, rk = _pairs(a, r, b, k, w)
    start, own = a * before.exp(), ak @ v
    eye = torch.eye(grid.chunk, dtype=w.dtype, device=w.device)
    solved = torch.linalg.solve_triangular(eye - ab, torch.cat([start, own], -1), upper=False, unitriangular=True)
    of_state, given = solved.split([k.shape[-1], v.shape[-1]], dim=-1)  # u = of_state · s_0 + given
    to_end = to_end.exp()
    written = (b * to_end).mT
    states, after = _scan(
        written @ of_state + torch.diag_embed(through[..., -1, :].exp()),
        written @ given + (k * to_end).mT @ v,
        state,
        grid,
    )
    y = (r * through.exp()) @ states + rb @ (of_state @ states + given) + rk @ v
    return grid.gather(y), after


def _up_to(x: Tensor) -> Tensor:
    """The sum of what lies before each position, along the last but one axis."""
    return torch.cat([torch.zeros_like(x[..., :1, :]), x[..., :-1, :].cumsum(-2)], dim=-2)


def _pairs(a: Tensor, r: Tensor, b: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How much of what position q writes with b or k is found at t by a (before t writes) or r: ab, ak, rb, rk, each
    [N, H, C, C]."""
    writers = torch.stack([b, k])  # [2, N, H, C, K]
    at_once = (r * writers).sum(-1)
    blocks = torch.stack([torch.zeros_like(at_once), at_once])[..., None, None]  # [2, 2, N, H, C, 1, 1]
    for half in (2**level for level in range((w.shape[-2] - 1).bit_length())):
        halves = (x.reshape(*x.shape[:-2], -1, 2, half, x.shape[-1]) for x in (a, r, writers, w))
        (_, late_a), (_, late_r), (early, _), (early_w, late_w) = (x.unbind(-3) for x in halves)
        late = torch.stack([late_a * _up_to(late_w).exp(), late_r * late_w.cumsum(-2).exp()])
        early = early * _up_to(early_w.flip(-2)).flip(-2).exp()
        first, second = blocks.reshape(*blocks.shape[:4], -1, 2, half, half).unbind(-3)
        below = torch.cat([late.unsqueeze(1) @ early.mT, second], dim=-1)
        blocks = torch.cat([torch.cat([first, torch.zeros_like(first)], dim=-1), below], dim=-2)
    (ab, ak), (rb, rk) = blocks.squeeze(-3)
    return ab, ak, rb, rk


def _scan(transition: Tensor, update: Tensor, initial: Tensor, grid: ChunkGrid) -> tuple[Tensor, Tensor]:
    """The state before every chunk [N, H, K, V] and after every sequence [S, H, K, V], where a chunk turns a state s
    into transition · s + update; `transition` [N, H, K, K], `update` [N, H, K, V], `initial` [S, H, K, V]."""
    states = [initial[grid.order]]
    widths = list(grid.widths)
    steps = zip(torch.split(transition, widths), torch.split(update, widths), widths[1:], strict=False)
    for through, added, alive in steps:
        states.append(through[:alive] @ states[-1][:alive] + added[:alive])
    before = torch.cat(states)
    last = grid.last
    return before, transition[last] @ before[last] + update[last]
