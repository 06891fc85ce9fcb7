"""The WKV operator of RWKV-6 (Finch) over packed rows, arXiv 2404.05892, eq. 18-20.

Shape letters: T packed positions, S sequences, H heads, K key width, V value width.

Per head, with the log-decay lw = -exp(w) and a state s [K, V]:

    y_t = r_t (s_t + diag(bonus) k_tᵀ v_t)        s_{t+1} = diag(exp lw_t) s_t + k_tᵀ v_t
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._forms import Form, as_one_dtype, check_inputs, choose, of_one_step, step_by_step, wide, without_autocast
from ._grid import sequence_lengths
from ._triton import fla_unfit, late
from ._triton import unfit as triton_unfit
from ._wkv6_chunk import wkv6_chunk
from ._wkv_cpu import unfit, wkv6_cpu

# exp(-exp(10)) is 0 in every format, while the gradient of exp(-exp(w)) turns NaN from w = 89 on
LARGEST_W = 10.0


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
    lengths = sequence_lengths(cu_seqlens, len(r))
    dtype = v.dtype
    r, k, v = as_one_dtype(r, k, v)
    exact = wide(r.dtype)
    if state is None:
        state = torch.zeros(len(lengths), *k.shape[1:], v.shape[-1], dtype=exact, device=r.device)
    given = {"r": (r, "THK"), "k": (k, "THK"), "v": (v, "THV"), "w": (w, "THK"), "bonus": (bonus, "HK")}
    check_inputs("wkv6", {**given, "state": (state, "SHKV")}, S=len(lengths))
    chosen = choose("wkv6", FORMS, form, k, v, lengths, wkv6_step)
    if chosen.widens:
        r, k, v, w, bonus = (x.to(exact) for x in (r, k, v, w, bonus))
        w = w.clamp(max=LARGEST_W)
    y, after = chosen.compute(r, k, v, w, bonus, lengths, state.to(exact))
    return y.to(dtype), after if return_state else None


@without_autocast
def wkv6_step(r: Tensor, k: Tensor, v: Tensor, w: Tensor, bonus: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position of S sequences: r, k, w [S, H, K], v [S, H, V], state [S, H, K, V] → [S, H, V], next state.

    Computes in the dtype of the state.
    """
    fused = of_one_step(FORMS, state, k, r, v)
    if fused is not None:
        given = {"r": (r, "SHK"), "k": (k, "SHK"), "v": (v, "SHV"), "w": (w, "SHK"), "bonus": (bonus, "HK")}
        check_inputs("wkv6_step", {**given, "state": (state, "SHKV")})
        return fused.compute(r, k, v, w, bonus, (1,) * len(k), state)
    return _step(r, k, v, w, bonus, state)


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
    "cpu": Form(wkv6_cpu, unfit("wkv6"), widens=False),
    "chunk": Form(wkv6_chunk),
    "reference": Form(wkv6_reference),
}
"""The forms by name; `auto` takes the first that can."""
