"""The WKV operator of RWKV-6 (Finch) over packed rows, arXiv 2404.05892, eq. 18-20.

Shape letters: T packed positions, S sequences, H heads, K key width, V value width.

Per head, with the log-decay lw = -exp(w), computed here from the raw w, and a state s [K, V]:

    y_t = r_t (s_t + diag(bonus) k_tᵀ v_t)        s_{t+1} = diag(exp lw_t) s_t + k_tᵀ v_t
"""

from functools import partial

import torch
from torch import Tensor

from . import _native
from ._forms import Form, Operator, step_by_step
from ._triton import fla_unfit, late
from ._triton import unfit as triton_unfit
from ._wkv6_chunk import LARGEST_W, wkv6_chunk
from ._wkv_cpu import wkv6_cpu


def _step(r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    decay = torch.exp(-torch.exp(w.to(state.dtype).clamp(max=LARGEST_W)))
    outer = k.to(state.dtype).unsqueeze(-1) * v.to(state.dtype).unsqueeze(-2)
    y = r.to(state.dtype).unsqueeze(-2) @ torch.addcmul(state, bonus.to(state.dtype).unsqueeze(-1), outer)
    return y.squeeze(-2).to(v.dtype), torch.addcmul(outer, decay.unsqueeze(-1), state)


def wkv6_reference(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written down, one position after the other."""
    return step_by_step(lambda r, k, v, w, s: _step(r, k, v, w, bonus, s), r, k, v, w, lengths, state)


FORMS = {
    "triton": Form(late("_wkv6_triton", "wkv6_triton"), triton_unfit, widens=False),
    "fla": Form(late("_fla", "wkv6_fla"), fla_unfit, widens=False),
    "cpu": Form(wkv6_cpu, partial(_native.unfit, "wkv6"), widens=False),
    "chunk": Form(wkv6_chunk),
    "reference": Form(wkv6_reference),
}
wkv6 = Operator(
    "wkv6", FORMS, {"r": "THK", "k": "THK", "v": "THV", "w": "THK", "bonus": "HK"}, _step, apart=("w", "bonus")
)
wkv6_step = wkv6.step
