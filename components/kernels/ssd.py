"""The state space operator of Mamba-2 over packed rows, arXiv 2405.21060.

Shape letters: T packed positions, S sequences, H heads, K state width, V head width, N chunks, C positions per chunk.

Per head, with a log-decay a ≤ 0 and a state s [K, V]; keys and queries are shared by all heads:

    s_t = exp(a_t) s_{t-1} + k_tᵀ v_t        y_t = q_t s_t
"""

from functools import partial

import torch
from torch import Tensor

from ._forms import Form, Operator, step_by_step
from ._grid import chunk_grid, scan

CHUNK = 32


def _step(q: Tensor, k: Tensor, v: Tensor, a: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    wide = state.dtype
    outer = k.to(wide)[:, None, :, None] * v.to(wide).unsqueeze(-2)
    state = torch.addcmul(outer, torch.exp(a.to(wide))[..., None, None], state)
    return (q.to(wide)[:, None, None] @ state).squeeze(-2).to(v.dtype), state


def ssd_chunk(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """Matrix products inside chunks, a scan between them."""
    grid = chunk_grid(lengths, CHUNK, v.shape[1], v.device)
    shared = chunk_grid(lengths, CHUNK, 1, v.device)
    q, k = shared.scatter(q.unsqueeze(1)), shared.scatter(k.unsqueeze(1))  # [N, 1, C, K]
    v, through = grid.scatter(v), grid.scatter(a.unsqueeze(-1)).cumsum(2)  # [N, H, C, V], [N, H, C, 1]
    total = through[:, :, -1:]

    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=v.device).triu(1)
    # what is masked is masked before exp, which would overflow there
    weights = (through - through.mT).masked_fill(later, -torch.inf).exp()
    update = k.mT @ (v * (total - through).exp())
    before, after = scan(total.exp(), update, state, grid)
    return grid.gather((q @ k.mT * weights) @ v + (q @ before) * through.exp()), after


FORMS = {"chunk": Form(ssd_chunk), "reference": Form(partial(step_by_step, _step))}
ssd = Operator("ssd", FORMS, {"q": "TK", "k": "TK", "v": "THV", "a": "TH"}, _step, apart=("q", "k", "a"))
ssd_step = ssd.step
