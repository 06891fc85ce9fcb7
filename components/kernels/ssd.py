"""The state space operator of Mamba-2 over packed rows, arXiv 2405.21060.

Shape letters: T packed positions, S sequences, H heads, K state width, V head width, N chunks, C positions per chunk.

Per head, with a log-decay a ≤ 0 and a state s [K, V]; keys and queries are shared by all heads:

    s_t = exp(a_t) s_{t-1} + k_tᵀ v_t        y_t = q_t s_t
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from aurora.errors import AuroraError

from ._grid import chunk_grid, scan, sequence_lengths

CHUNK = 32


class Form(Protocol):
    """One way to compute the operator; the state is given."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, a: Tensor, lengths: tuple[int, ...], state: Tensor, /
    ) -> tuple[Tensor, Tensor]: ...


def ssd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    cu_seqlens: Tensor,
    state: Tensor | None = None,
    *,
    form: str = "auto",
    return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """[T, H, V] in the dtype of v, and the final state [S, H, K, V].

    q, k [T, K], v [T, H, V], a [T, H], cu_seqlens [S + 1] on any device, state [S, H, K, V] or none for zeros.
    Computes in float32, or float64 when v is.
    """
    lengths = sequence_lengths(cu_seqlens, len(v))
    wide = torch.promote_types(v.dtype, torch.float32)
    if state is None:
        state = torch.zeros(len(lengths), v.shape[1], k.shape[-1], v.shape[-1], dtype=wide, device=v.device)
    compute = _form(form, lengths)
    y, after = compute(q.to(wide), k.to(wide), v.to(wide), a.to(wide), lengths, state.to(wide))
    return y.to(v.dtype), after if return_state else None


def ssd_step(q: Tensor, k: Tensor, v: Tensor, a: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position of S sequences: q, k [S, K], v [S, H, V], a [S, H], state [S, H, K, V] → [S, H, V], next state.

    Computes in the dtype of the state.
    """
    wide = state.dtype
    outer = k.to(wide)[:, None, :, None] * v.to(wide).unsqueeze(-2)
    state = torch.addcmul(outer, torch.exp(a.to(wide))[..., None, None], state)
    return (q.to(wide)[:, None, None] @ state).squeeze(-2).to(v.dtype), state


def ssd_reference(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written down, one position after the other."""
    outputs, states = [], []
    position = 0
    for sequence, length in enumerate(lengths):
        s = state[sequence, None]
        for t in range(position, position + length):
            y, s = ssd_step(q[t, None], k[t, None], v[t, None], a[t, None], s)
            outputs.append(y)
        states.append(s)
        position += length
    return torch.cat(outputs), torch.cat(states)


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


def _single(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, lengths: tuple[int, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    return ssd_step(q, k, v, a, state)


FORMS: dict[str, Form] = {"reference": ssd_reference, "chunk": ssd_chunk}
"""The forms by name; `auto` picks among them."""


def _form(name: str, lengths: tuple[int, ...]) -> Form:
    if name == "auto":
        return _single if max(lengths) == 1 else ssd_chunk
    if name not in FORMS:
        raise AuroraError(f"ssd has no form {name!r}. Known: auto, {', '.join(FORMS)}")
    return FORMS[name]
