"""Gated linear attention over packed rows, arXiv 2312.06635, eq. 3.

Shape letters: T packed positions, S sequences, H heads, K key width, V value width.

Per head, with a log-decay a ≤ 0 per key and a state s [K, V]:

    s_t = diag(exp a_t) s_{t-1} + k_tᵀ v_t        y_t = q_t s_t

It is WKV-6 read one position later: WKV-6 reads s_{t-1}, so the query carries the decay, and what position t adds is
read in addition. So every form of WKV-6 is a form of this.
"""

import torch
from torch import Tensor

from ._forms import wide, without_autocast
from .wkv6 import wkv6

# exp(-1e-20) is 1 in every format, while the logarithm of a decay rate of 0 has no gradient
SMALLEST_RATE = 1e-20


def gla(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, cu_seqlens: Tensor, state: Tensor | None = None, *,
    form: str = "auto", return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """[T, H, V] in the dtype of v, and the final state [S, H, K, V].

    q, k, a [T, H, K], v [T, H, V], cu_seqlens [S + 1] on any device, state [S, H, K, V] or none for zeros. Computes in
    float32, or float64 when q is; `form` is one of WKV-6.
    """
    exact = wide(q.dtype)
    rate = a.to(exact).neg().clamp(min=SMALLEST_RATE)
    decayed = (q.to(exact) * torch.exp(-rate)).to(q.dtype)
    bonus = torch.zeros(q.shape[1:], dtype=q.dtype, device=q.device)
    past, after = wkv6(decayed, k, v, rate.log(), bonus, cu_seqlens, state, form=form, return_state=return_state)
    own = (q.to(exact) * k.to(exact)).sum(-1, keepdim=True) * v.to(exact)
    return (past.to(exact) + own).to(v.dtype), after


@without_autocast
def gla_step(q: Tensor, k: Tensor, v: Tensor, a: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position of S sequences: q, k, a [S, H, K], v [S, H, V], state [S, H, K, V] → [S, H, V], next state.

    Computes in the dtype of the state.
    """
    outer = k.to(state.dtype).unsqueeze(-1) * v.to(state.dtype).unsqueeze(-2)
    after = torch.addcmul(outer, torch.exp(a.to(state.dtype)).unsqueeze(-1), state)
    y = q.to(state.dtype).unsqueeze(-2) @ after
    return y.squeeze(-2).to(v.dtype), after
