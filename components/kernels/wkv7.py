"""The generalised delta rule of RWKV-7 (Goose) over packed rows, arXiv 2503.14456, eq. 15-17.

Shape letters: T packed positions, S sequences, H heads, K key width, V value width.

Per head, with a log-decay w ≤ 0 and a state s [K, V]:

    s_t = diag(exp w_t) s_{t-1} + b_tᵀ (a_t s_{t-1}) + k_tᵀ v_t        y_t = r_t s_t

RWKV-7 itself has w = -0.606531 · sigmoid(·), a = -κ and b = κ · gate for a κ of length one; the gated delta rule has
one w for all keys, a = -k̂, b = exp(w) · β · k̂ and k = β · k̂.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from . import _native
from ._forms import Form, Operator, step_by_step, without_autocast
from ._triton import fla_unfit, late
from ._triton import unfit as triton_unfit
from ._wkv7_chunk import wkv7_chunk
from ._wkv_cpu import wkv7_cpu


@without_autocast
def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    cu_seqlens: Tensor,
    state: Tensor | None = None,
    *,
    form: str = "auto",
    return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """[T, H, V] in the dtype of v, and the final state [S, H, K, V].

    r, w, k, a, b [T, H, K], v [T, H, V], cu_seqlens [S + 1] on any device, state [S, H, K, V] or none for zeros. `w` is
    the log-decay itself, ≤ 0, and better not of less than float32. Computes in float32, or float64 when r is.
    """
    return OPERATOR.read((r, w, k, v, a, b), cu_seqlens, state, form, return_state)


@without_autocast
def wkv7_step(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position of S sequences: r, w, k, a, b [S, H, K], v [S, H, V], state [S, H, K, V] → [S, H, V], next state.

    Computes in the dtype of the state.
    """
    return OPERATOR.read_one((r, w, k, v, a, b), state)


def _step(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    dtype = v.dtype
    r, w, k, v, a, b = (x.to(state.dtype) for x in (r, w, k, v, a, b))
    read = a.unsqueeze(-2) @ state  # [S, H, 1, V]
    written = torch.addcmul(k.unsqueeze(-1) * v.unsqueeze(-2), b.unsqueeze(-1), read)
    state = torch.addcmul(written, w.exp().unsqueeze(-1), state)
    return (r.unsqueeze(-2) @ state).squeeze(-2).to(dtype), state


def wkv7_reference(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written down, one position after the other."""
    return step_by_step(_step, (r, w, k, v, a, b), lengths, state)


FORMS: dict[str, Form] = {
    "triton": Form(late("_wkv7_triton", "wkv7_triton"), triton_unfit, widens=False),
    "fla": Form(late("_fla", "wkv7_fla"), fla_unfit, widens=False),
    "cpu": Form(wkv7_cpu, partial(_native.unfit, "wkv7"), widens=False),
    "chunk": Form(wkv7_chunk),
    "reference": Form(wkv7_reference),
}
LETTERS = {"r": "THK", "w": "THK", "k": "THK", "v": "THV", "a": "THK", "b": "THK"}
OPERATOR = Operator("wkv7", FORMS, LETTERS, _step, apart=("w",))
