"""The gated delta rule over packed rows, arXiv 2412.06464, eq. 10.

Shape letters: T packed positions, S sequences, H heads, K key width, V value width.

Per head, with a log-decay g ≤ 0, a writing strength β, keys of length one and a state s [K, V]:

    s_t = exp(g_t) (1 - β_t k_tᵀ k_t) s_{t-1} + β_t k_tᵀ v_t        y_t = q_t s_t

It is WKV-7 with one decay for all keys, so every form of WKV-7 is a form of this.
"""

from torch import Tensor

from ._forms import wide
from .wkv7 import wkv7


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, strength: Tensor, cu_seqlens: Tensor, state: Tensor | None = None, *,
    form: str = "auto", return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """[T, H, V] in the dtype of v, and the final state [S, H, K, V].

    q, k [T, H, K], v [T, H, V], g, strength [T, H], cu_seqlens [S + 1] on any device, state [S, H, K, V] or none for
    zeros. Computes in float32, or float64 when q is; `form` is one of WKV-7.
    """
    return wkv7(*_as_wkv7(q, k, v, g, strength), cu_seqlens, state, form=form, return_state=return_state)


def gated_delta_step(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, strength: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One position of S sequences: q, k [S, H, K], v [S, H, V], g, strength [S, H], state [S, H, K, V] → [S, H, V],
    next state. Computes in the dtype of the state."""
    return wkv7.step(*_as_wkv7(q, k, v, g, strength), state)


def _as_wkv7(q: Tensor, k: Tensor, v: Tensor, g: Tensor, strength: Tensor) -> tuple[Tensor, ...]:
    """r, w, k, v, a, b: what is written for a key is β k v, and a k s decays away with the rest of β k."""
    exact = wide(k.dtype)
    g = g.to(exact).unsqueeze(-1)
    written = strength.to(exact).unsqueeze(-1) * k.to(exact)
    return q, g.expand(k.shape), written.to(k.dtype), v, -k, (g.exp() * written).to(k.dtype)
