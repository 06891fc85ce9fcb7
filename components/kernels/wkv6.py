"""The WKV operator of RWKV-6 (Finch) over packed rows, arXiv 2404.05892, eq. 18-20.

Shape letters: T packed positions, S sequences, H heads, K key width, V value width.

Per head, with the log-decay lw = -exp(w) and a state s [K, V]:

    y_t = r_t (s_t + diag(bonus) k_tᵀ v_t)        s_{t+1} = diag(exp lw_t) s_t + k_tᵀ v_t
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from . import _native
from ._forms import Form, Operator, step_by_step, without_autocast
from ._triton import fla_unfit, late
from ._triton import unfit as triton_unfit
from ._wkv6_chunk import LARGEST_W, wkv6_chunk
from ._wkv_cpu import wkv6_cpu


@without_autocast
def wkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    bonus: Tensor,
    cu_seqlens: Tensor,
    state: Tensor | None = None,
    *,
    form: str = "auto",
    return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """[T, H, V] in the dtype of v, and the final state [S, H, K, V].

    r, k, w [T, H, K], v [T, H, V], bonus [H, K], cu_seqlens [S + 1] on any device, state [S, H, K, V] or none for
    zeros. `w` is raw: the decay exp(-exp(w)) is computed here. Computes in float32, or float64 when r is.
    """
    return OPERATOR.read((r, k, v, w, bonus), cu_seqlens, state, form, return_state)


@without_autocast
def wkv6_step(r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position of S sequences: r, k, w [S, H, K], v [S, H, V], state [S, H, K, V] → [S, H, V], next state.

    Computes in the dtype of the state.
    """
    return OPERATOR.read_one((r, k, v, w, bonus), state)


def _step(r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    decay = torch.exp(-torch.exp(w.to(state.dtype).clamp(max=LARGEST_W)))
    outer = k.to(state.dtype).unsqueeze(-1) * v.to(state.dtype).unsqueeze(-2)
    y = r.to(state.dtype).unsqueeze(-2) @ torch.addcmul(state, bonus.to(state.dtype).unsqueeze(-1), outer)
    return y.squeeze(-2).to(v.dtype), torch.addcmul(outer, decay.unsqueeze(-1), state)


def wkv6_reference(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written down, one position after the other."""
    return step_by_step(lambda r, k, v, w, s: _step(r, k, v, w, bonus, s), (r, k, v, w), lengths, state)


FORMS: dict[str, Form] = {
    "triton": Form(late("_wkv6_triton", "wkv6_triton"), triton_unfit, widens=False),
    "fla": Form(late("_fla", "wkv6_fla"), fla_unfit, widens=False),
    "cpu": Form(wkv6_cpu, partial(_native.unfit, "wkv6"), widens=False),
    "chunk": Form(wkv6_chunk),
    "reference": Form(wkv6_reference),
}
LETTERS = {"r": "THK", "k": "THK", "v": "THV", "w": "THK", "bonus": "HK"}
OPERATOR = Operator("wkv6", FORMS, LETTERS, _step, apart=("w", "bonus"))
