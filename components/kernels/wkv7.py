"""The generalised delta rule of RWKV-7 (Goose) over packed rows, arXiv 2503.14456, eq. 15-17.

Shape letters: T packed positions, S sequences, H heads, K key width, V value width.

Per head, with a log-decay w ≤ 0 and a state s [K, V]:

    s_t = diag(exp w_t) s_{t-1} + b_tᵀ (a_t s_{t-1}) + k_tᵀ v_t        y_t = r_t s_t

RWKV-7 itself has w = -0.606531 · sigmoid(·), a = -κ and b = κ · gate for a κ of length one; the gated delta rule has
one w for all keys, a = -k̂, b = exp(w) · β · k̂ and k = β · k̂.
"""

from functools import partial

import torch
from torch import Tensor

from . import _native
from ._forms import Form, Operator, step_by_step
from ._triton import fla_unfit, late
from ._triton import unfit as triton_unfit
from ._wkv7_chunk import wkv7_chunk
from ._wkv_cpu import wkv7_cpu


def _step(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    dtype = v.dtype
    r, w, k, v, a, b = (x.to(state.dtype) for x in (r, w, k, v, a, b))
    read = a.unsqueeze(-2) @ state  # [S, H, 1, V]
    written = torch.addcmul(k.unsqueeze(-1) * v.unsqueeze(-2), b.unsqueeze(-1), read)
    state = torch.addcmul(written, w.exp().unsqueeze(-1), state)
    return (r.unsqueeze(-2) @ state).squeeze(-2).to(dtype), state


FORMS = {
    "triton": Form(late("_wkv7_triton", "wkv7_triton"), triton_unfit, widens=False),
    "fla": Form(late("_fla", "wkv7_fla"), fla_unfit, widens=False),
    "cpu": Form(wkv7_cpu, partial(_native.unfit, "wkv7"), widens=False),
    "chunk": Form(wkv7_chunk),
    "reference": Form(partial(step_by_step, _step)),
}
wkv7 = Operator(
    "wkv7", FORMS, {"r": "THK", "w": "THK", "k": "THK", "v": "THV", "a": "THK", "b": "THK"}, _step, apart=("w",)
)
wkv7_step = wkv7.step
